//! Deadlines on a made-up clock: many answers of a machine that is slow now and then.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use super::clock::Clock;
use super::scripted::{Guess, MadeUpClock, Script, ScriptedModel};
use super::suffixes::mix;
use super::*;
use crate::backend::{Backend, Logits, Prefill};
use crate::error::Result;
use crate::preprocess::PixelValues;

const SCRIPT: Script = Script {
    seed: 5,
    n_vocab: 40,
    order: 3,
    n_levels: 1 << 20,
};

const MAX_TOKENS: usize = 12;

/// A model whose passes take time, and which notes when each began.
struct Slow {
    model: ScriptedModel,
    clock: MadeUpClock,
    pace: Arc<Pace>,
    /// Ticks of a prefill, and of a step of one row; more rows cost half as much each.
    costs: [u64; 2],
    random: u64,
    begun: Vec<Begun>,
}

/// A pass that began.
struct Begun {
    at: Duration,
    took: Duration,
    /// What was known of such passes.
    p99: Option<Duration>,
}

impl Slow {
    fn take(&mut self, pass: Pass, ticks: u64) {
        self.random = mix(self.random);
        // Up to a tenth more, and one of two hundred takes five times as long.
        let jitter = ticks * (self.random % 100) / 1000;
        let ticks = match self.random >> 32 {
            r if r % 200 == 0 => 5 * ticks,
            _ => ticks + jitter,
        };
        self.begun.push(Begun {
            at: self.clock.now(),
            took: Duration::from_micros(ticks),
            p99: self.pace.p99(pass),
        });
        self.clock.advance(ticks);
    }
}

impl Backend for Slow {
    fn encode(&mut self, _: &PixelValues) -> Result<usize> {
        Ok(0)
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        self.take(Pass::Prefill(prompt.ids.len()), self.costs[0]);
        self.model.prefill(prompt)
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        let ticks = self.costs[1] * (1 + ids.len() as u64) / 2;
        self.take(Pass::Step(ids.len()), ticks);
        self.model.step(ids, position)
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        self.model.rollback(n_rows)
    }

    fn hidden(&self) -> Option<&[f32]> {
        self.model.hidden()
    }
}

fn answer(
    slow: &mut Slow,
    speculator: &mut Speculator,
    deadline: Option<Deadline<'_>>,
) -> Generated {
    let pace = Arc::clone(&slow.pace);
    let limits = Limits {
        eos: &[],
        max_tokens: MAX_TOKENS,
        deadline,
        cancel: None,
    };
    let prompt = Prefill {
        ids: &[1, 2, 3, 4],
        positions: &[0, 1, 2, 3],
        visual: &[],
        image_token: u32::MAX,
        reserve: MAX_TOKENS,
    };
    let mut sampler = Sampler::new(Sampling::default()).expect("greedy");
    let mut backend = Paced::new(slow, &pace);
    let done = generate(
        &mut backend,
        &prompt,
        &mut sampler,
        &limits,
        speculator,
        &mut |_| Ok(ControlFlow::Continue(())),
    );
    done.expect("an answer")
}

/// Drafts that are always right, of four tokens.
fn drafting() -> Speculator {
    let mut speculator = Speculator::new(vec![Box::new(Guess::new(SCRIPT, 256, 0))]);
    let strategy = Strategy::Always {
        drafter: "guess",
        n: 4,
    };
    speculator.set(strategy).expect("a drafter");
    speculator
}

fn check(mut speculator: Speculator) {
    let clock = MadeUpClock::default();
    let mut slow = Slow {
        model: ScriptedModel::new(SCRIPT),
        pace: Arc::new(Pace::new(Box::new(clock.clone()))),
        clock,
        costs: [400, 100],
        random: 7,
        begun: Vec::new(),
    };
    let whole = answer(&mut slow, &mut Speculator::off(), None).ids;
    let pace = Arc::clone(&slow.pace);
    let (mut n_cut, mut n_whole, mut n_late, mut n_empty) = (0, 0, 0, 0);
    for number in 0..2000u64 {
        let left = Duration::from_micros(mix(number) % 3000);
        let deadline = pace.deadline_after(left);
        let at = slow.clock.now() + left;
        slow.begun.clear();
        let done = answer(&mut slow, &mut speculator, Some(deadline));
        for pass in &slow.begun {
            assert!(pass.at < at, "{number}: a pass began after the deadline");
            let fits = pass.p99.is_none_or(|p99| p99 <= at - pass.at);
            assert!(
                fits,
                "{number}: {:?} for a pass of {:?}",
                at - pass.at,
                pass.p99
            );
        }
        let running = slow.begun.last().map_or(Duration::ZERO, |pass| pass.took);
        assert!(slow.clock.now() <= at + running, "{number}");
        assert!(whole.starts_with(&done.ids), "{number}");
        let is_whole = done.ids.len() == MAX_TOKENS;
        match done.stop {
            Stop::Length => assert!(is_whole, "{number}"),
            stop => assert_eq!((stop, is_whole), (Stop::Deadline, false), "{number}"),
        }
        n_whole += usize::from(is_whole);
        n_cut += usize::from(!is_whole && !done.ids.is_empty());
        n_empty += usize::from(done.ids.is_empty());
        n_late += usize::from(slow.clock.now() > at);
    }
    assert!(
        n_whole > 100 && n_cut > 100 && n_empty > 100,
        "{n_whole} {n_cut} {n_empty}"
    );
    // Only passes that took longer than 99 of 100 make an answer late.
    assert!(n_late <= 100, "{n_late} of 2000 are late");
}

#[test]
fn no_pass_begins_that_would_end_too_late() {
    check(Speculator::off());
}

#[test]
fn no_pass_with_drafts_begins_that_would_end_too_late() {
    check(drafting());
}

/// A pass of five rows takes three times as long as one of one row.
#[test]
fn draft_is_withdrawn_where_only_one_row_is_in_time() {
    let clock = MadeUpClock::default();
    let mut slow = Slow {
        model: ScriptedModel::new(SCRIPT),
        pace: Arc::new(Pace::new(Box::new(clock.clone()))),
        clock: clock.clone(),
        costs: [100, 100],
        random: 3,
        begun: Vec::new(),
    };
    let pace = Arc::clone(&slow.pace);
    let run = |pass: Pass, ticks: u64| {
        let run = || {
            clock.advance(ticks);
            Ok::<(), ()>(())
        };
        pace.measure(pass, run).expect("done");
    };
    run(Pass::Step(1), 110);
    run(Pass::Step(5), 330);
    let deadline = pace.deadline_after(Duration::from_micros(350));
    let done = answer(&mut slow, &mut drafting(), Some(deadline));
    assert_eq!(done.stop, Stop::Deadline);
    assert!(done.ids.len() >= 2, "{:?}", done.ids);
    assert_eq!(done.speculation.proposed, 0);
}
