//! Answers are the same with drafts and without: many short runs on made-up models.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::scripted::{Fault, Guess, MadeUpClock, Script, ScriptedDraft, ScriptedModel};
use super::*;
use crate::backend::{Backend, Prefill};

/// One run: a model, a prompt, what ends the answer, and how it is drafted.
#[derive(Debug, Clone)]
struct Case {
    script: Script,
    prompt: Vec<u32>,
    positions: Vec<u32>,
    sampling: Sampling,
    eos: Vec<u32>,
    max_tokens: usize,
    /// The caller sets the flag to cancel when it sees this token of the answer.
    cancel_at: Option<usize>,
    /// The caller ends the answer at this token.
    break_at: Option<usize>,
    n_draft: usize,
    right: u64,
    fault: Option<(usize, Fault)>,
    seed: u64,
}

struct Random(ChaCha8Rng);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        (self.0.next_u64() % n as u64) as usize
    }

    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn case(&mut self) -> Case {
        let n_vocab = 3 + self.below(10);
        let ids = |r: &mut Self, n: usize| (0..n).map(|_| r.below(n_vocab) as u32).collect();
        let n_prompt = 1 + self.below(6);
        // Dropped visual tokens leave gaps.
        let mut position = 0;
        let positions = (0..n_prompt).map(|_| {
            position += 1 + self.one(&[0, 0, 7]) as u32;
            position
        });
        let positions = positions.collect();
        let greedy = Sampling::default();
        let drawn = Sampling {
            temperature: 0.5 + self.below(4) as f32,
            top_k: self.one(&[0, 2, 5]),
            top_p: self.one(&[1.0, 0.8]),
            repetition_penalty: self.one(&[1.0, 1.5]),
            seed: self.0.next_u64(),
        };
        let penalized = Sampling {
            repetition_penalty: 1.3,
            ..greedy
        };
        let faults = [
            Fault::OutOfRange,
            Fault::NotANumber,
            Fault::TooMany,
            Fault::BadDistribution,
        ];
        let fault = (self.below(6) == 0).then(|| (self.below(4), self.one(&faults)));
        let n_eos = self.below(3);
        let early = self.below(8);
        Case {
            script: Script {
                seed: self.0.next_u64(),
                n_vocab,
                order: self.one(&[1, 2, 3, 1000]),
                n_levels: self.one(&[2, 5, 1000]),
            },
            prompt: ids(self, n_prompt),
            positions,
            sampling: self.one(&[greedy, greedy, penalized, drawn]),
            eos: ids(self, n_eos),
            max_tokens: 1 + self.below(24),
            cancel_at: (early == 0).then(|| self.below(12)),
            break_at: (early == 1).then(|| self.below(12)),
            n_draft: 1 + self.below(MAX_DRAFT),
            right: self.one(&[0, 80, 180, 230, 256]),
            fault,
            seed: self.0.next_u64(),
        }
    }
}

/// What came of a run, and the cache that it left behind.
type Outcome = (Generated, Vec<u32>, Vec<(u32, u32)>);

impl Case {
    fn run(&self, speculator: &mut Speculator) -> Outcome {
        let mut model = ScriptedModel::new(self.script);
        let prompt = Prefill {
            ids: &self.prompt,
            positions: &self.positions,
            visual: &[],
            image_token: u32::MAX,
            // What an answer without drafts needs, not a row more.
            reserve: self.max_tokens - 1,
        };
        let cancel = AtomicBool::new(false);
        let limits = Limits {
            eos: &self.eos,
            max_tokens: self.max_tokens,
            deadline: None,
            cancel: Some(&cancel),
        };
        let mut sampler = Sampler::new(self.sampling).expect("sampling");
        let mut seen = Vec::new();
        let done = generate(
            &mut model,
            &prompt,
            &mut sampler,
            &limits,
            speculator,
            &mut |id| {
                seen.push(id);
                if self.cancel_at == Some(seen.len() - 1) {
                    cancel.store(true, Ordering::Relaxed);
                }
                Ok(match self.break_at == Some(seen.len() - 1) {
                    true => ControlFlow::Break(Stop::Sentence),
                    false => ControlFlow::Continue(()),
                })
            },
        );
        let done = done.expect("an answer");
        assert_eq!(model.n_steps, done.speculation.steps);
        (done, seen, model.cache)
    }

    fn drafted(&self) -> Outcome {
        let mut guess = Guess::new(self.script, self.right, self.seed);
        guess.fault = self.fault;
        let mut speculator = Speculator::new(vec![Box::new(guess)]);
        let strategy = Strategy::Always {
            drafter: "guess",
            n: self.n_draft,
        };
        speculator.set(strategy).expect("a drafter");
        self.run(&mut speculator)
    }

    /// A greedy answer, by a loop that shares nothing with ours.
    fn by_hand(&self) -> (Vec<u32>, Stop) {
        let mut ids = self.prompt.clone();
        let mut n = 0;
        loop {
            let id = self.script.next(&ids);
            ids.push(id);
            n += 1;
            let stop = if self.eos.contains(&id) {
                Stop::Eos
            } else if self.break_at == Some(n - 1) {
                Stop::Sentence
            } else if n == self.max_tokens {
                Stop::Length
            } else if self.cancel_at == Some(n - 1) {
                Stop::Cancelled
            } else {
                continue;
            };
            return (ids.split_off(self.prompt.len()), stop);
        }
    }
}

/// Runs of the property test.
const RUNS: usize = 20_000;

#[test]
fn answer_with_drafts_is_the_one_without() {
    let mut random = Random(ChaCha8Rng::seed_from_u64(5));
    let mut stops = [0; 5];
    let (mut n_greedy, mut n_off, mut n_cut) = (0, 0, 0);
    for run in 0..RUNS {
        let case = random.case();
        let (plain, plain_seen, plain_cache) = case.run(&mut Speculator::off());
        let (drafted, seen, cache) = case.drafted();
        let context = format!("run {run}: {case:?}");
        assert_eq!(drafted.ids, plain.ids, "{context}");
        assert_eq!(drafted.stop, plain.stop, "{context}");
        assert_eq!(seen, plain_seen, "{context}");
        assert_eq!(cache, plain_cache, "{context}");
        if case.sampling == Sampling::default() {
            assert_eq!((plain.ids.clone(), plain.stop), case.by_hand(), "{context}");
            n_greedy += 1;
        }
        assert_eq!(plain.speculation.steps, plain.ids.len() - 1, "{context}");
        assert_eq!(plain.speculation.draft, "off");

        let report = drafted.speculation;
        // A pass gives the accepted drafts and one token more, unless a draft ended the answer.
        let n_most = report.accepted + report.steps + 1;
        let cut = n_most - drafted.ids.len();
        assert!(cut <= 1, "{context}: {report:?}");
        let proposed: usize = report.by_position.iter().map(|p| p.proposed).sum();
        let accepted: usize = report.by_position.iter().map(|p| p.accepted).sum();
        assert_eq!((proposed, accepted), (report.proposed, report.accepted));
        assert!(report.by_position.len() <= case.n_draft, "{context}");
        for refused in &report.refused {
            assert_eq!(drafted.ids[refused.index], refused.chosen, "{context}");
            assert_ne!(refused.drafted, refused.chosen, "{context}");
        }
        // Each pass refuses one token or none, and what stands behind it.
        let n_refused = report.refused.len();
        let is_something = report.proposed > report.accepted + cut * MAX_DRAFT;
        assert!(
            n_refused <= report.steps && (n_refused > 0 || !is_something),
            "{context}"
        );
        let greedy = case.sampling == Sampling::default();
        if greedy && case.right == 256 && case.fault.is_none() {
            assert_eq!(
                report.steps,
                plain.speculation.steps.div_ceil(case.n_draft + 1),
                "{context}: {report:?}"
            );
        }
        n_off += usize::from(report.switched_off.is_some());
        n_cut += cut;
        stops[drafted.stop as usize] += 1;
    }
    // What is claimed for each of these was put to the test.
    let often = RUNS / 100;
    let [eos, length, sentence, _, cancelled] = stops;
    for n in [n_greedy, n_off, n_cut, eos, length, sentence, cancelled] {
        assert!(n > often, "{stops:?} {n_greedy} {n_off} {n_cut}");
    }
}

/// Another prompt for the same model, answered with drafts of `drafter` and without: the same.
fn next_answer(
    random: &mut Random,
    case: &mut Case,
    speculator: &mut Speculator,
    drafter: &'static str,
    context: &str,
) -> Generated {
    let other = random.case();
    let n_vocab = case.script.n_vocab as u32;
    case.prompt = other.prompt.iter().map(|id| id % n_vocab).collect();
    case.positions = other.positions;
    let n = other.n_draft;
    let strategy = Strategy::Always { drafter, n };
    speculator.set(strategy).expect("a drafter");
    let (plain, _, plain_cache) = case.run(&mut Speculator::off());
    let (drafted, _, cache) = case.run(speculator);
    let context = format!("{context}: {case:?}");
    assert_eq!(drafted.ids, plain.ids, "{context}");
    assert_eq!(
        (drafted.stop, cache),
        (plain.stop, plain_cache),
        "{context}"
    );
    drafted
}

#[test]
fn answer_with_ngram_drafts_is_the_one_without() {
    let mut random = Random(ChaCha8Rng::seed_from_u64(6));
    let mut n_accepted = 0;
    for session in 0..1000 {
        let mut speculator = Speculator::new(vec![Box::new(Ngram::new())]);
        let mut case = random.case();
        for answer in 0..5 {
            let context = format!("session {session}, answer {answer}");
            let drafted = next_answer(&mut random, &mut case, &mut speculator, "ngram", &context);
            n_accepted += drafted.speculation.accepted;
        }
    }
    assert!(n_accepted > 1000, "{n_accepted}");
}

#[test]
fn answer_with_a_trained_drafter_is_the_one_without() {
    let mut random = Random(ChaCha8Rng::seed_from_u64(7));
    let (mut n_accepted, mut n_refused, mut n_off, mut n_ends) = (0, 0, 0, 0);
    for session in 0..4000 {
        let mut case = random.case();
        let mut model = ScriptedDraft::new(case.script, random.one(&[0.0, 4.0, 30.0]));
        model.fault = case.fault;
        let trained = Trained::new(Box::new(model), &case.eos);
        let mut speculator = Speculator::new(vec![Box::new(trained)]);
        for answer in 0..2 {
            let context = format!("session {session}, answer {answer}");
            let drafted = next_answer(
                &mut random,
                &mut case,
                &mut speculator,
                "scripted",
                &context,
            );
            let report = drafted.speculation;
            n_accepted += report.accepted;
            n_refused += report.proposed - report.accepted;
            n_off += usize::from(report.switched_off.is_some());
            n_ends += usize::from(drafted.stop == Stop::Eos && report.accepted > 0);
        }
    }
    for n in [n_accepted, n_refused, n_off, n_ends] {
        assert!(n > 300, "{n_accepted} {n_refused} {n_off} {n_ends}");
    }
}

fn case() -> Case {
    let mut case = Random(ChaCha8Rng::seed_from_u64(1)).case();
    case.sampling = Sampling::default();
    case.eos.clear();
    (case.cancel_at, case.break_at, case.fault) = (None, None, None);
    case.script.order = 2;
    (case.max_tokens, case.n_draft, case.right) = (20, 4, 256);
    case
}

#[test]
fn drafter_that_goes_wrong_is_not_asked_again_in_this_answer() {
    for (fault, why) in [
        (Fault::OutOfRange, "`guess`: it proposed id"),
        (Fault::NotANumber, "`guess`: its model returned NaN"),
        (Fault::BadDistribution, "`guess`: its probabilities"),
    ] {
        let case = Case {
            fault: Some((1, fault)),
            ..case()
        };
        let report = case.drafted().0.speculation;
        assert!(report.switched_off.expect("off").contains(why));
        // One draft of four was accepted, then one token a pass.
        assert_eq!((report.proposed, report.accepted), (4, 4));
        assert_eq!((report.steps, report.draft), (1 + 14, "guess"));
    }
}

#[test]
fn answer_past_its_deadline_takes_no_more_of_a_pass() {
    let case = case();
    let plain = case.run(&mut Speculator::off()).0;
    let mut model = ScriptedModel::new(case.script);
    let mut speculator = Speculator::new(vec![Box::new(Guess::new(case.script, 256, 0))]);
    let strategy = Strategy::Always {
        drafter: "guess",
        n: 4,
    };
    speculator.set(strategy).expect("a drafter");
    let clock = MadeUpClock::default();
    let pace = Pace::new(Box::new(clock.clone()));
    let limits = Limits {
        eos: &[],
        max_tokens: case.max_tokens,
        deadline: Some(pace.deadline_after(Duration::from_micros(200))),
        cancel: None,
    };
    let prompt = Prefill {
        ids: &case.prompt,
        positions: &case.positions,
        visual: &[],
        image_token: u32::MAX,
        reserve: case.max_tokens,
    };
    let mut sampler = Sampler::new(case.sampling).expect("sampling");
    let n_seen = Cell::new(0);
    let done = generate(
        &mut model,
        &prompt,
        &mut sampler,
        &limits,
        &mut speculator,
        &mut |_| {
            n_seen.set(n_seen.get() + 1);
            // The third token of a pass of five.
            if n_seen.get() == 4 {
                clock.advance(200);
            }
            Ok(ControlFlow::Continue(()))
        },
    );
    let done = done.expect("an answer");
    assert_eq!(done.stop, Stop::Deadline);
    assert!(done.ids.len() <= 4 && plain.ids.starts_with(&done.ids));
    assert_eq!(model.cache.len(), case.prompt.len() + done.ids.len() - 1);
}

#[test]
fn near_ties_of_passes_with_drafts_are_listed() {
    let mut case = case();
    // Two levels of logits: almost every choice is between equals.
    case.script.n_levels = 2;
    let report = case.drafted().0.speculation;
    assert!(report.near_ties.len() >= 10, "{report:?}");
    assert!(report.near_ties.iter().all(|tie| tie.margin == 0.0));
    // The first token comes from the prefill.
    assert!(report.near_ties.iter().all(|tie| tie.index > 0));
    assert!(
        case.run(&mut Speculator::off())
            .0
            .speculation
            .near_ties
            .is_empty()
    );
}

#[test]
fn logits_of_the_wrong_number_of_rows_are_refused() {
    struct Short(ScriptedModel);
    impl Backend for Short {
        fn encode(&mut self, image: &crate::preprocess::PixelValues) -> crate::Result<usize> {
            self.0.encode(image)
        }
        fn prefill(&mut self, prompt: &Prefill<'_>) -> crate::Result<crate::backend::Logits> {
            self.0.prefill(prompt)
        }
        fn step(&mut self, ids: &[u32], position: u32) -> crate::Result<crate::backend::Logits> {
            self.0.step(&ids[..1], position)
        }
        fn rollback(&mut self, n_rows: usize) -> crate::Result<()> {
            self.0.rollback(n_rows)
        }
    }
    let case = case();
    let mut speculator = Speculator::new(vec![Box::new(Hasty)]);
    let strategy = Strategy::Always {
        drafter: "hasty",
        n: 2,
    };
    speculator.set(strategy).expect("a drafter");
    let prompt = Prefill {
        ids: &case.prompt,
        positions: &case.positions,
        visual: &[],
        image_token: u32::MAX,
        reserve: case.max_tokens,
    };
    let limits = Limits {
        eos: &[],
        max_tokens: case.max_tokens,
        deadline: None,
        cancel: None,
    };
    let e = generate(
        &mut Short(ScriptedModel::new(case.script)),
        &prompt,
        &mut Sampler::new(case.sampling).expect("sampling"),
        &limits,
        &mut speculator,
        &mut |_| Ok(ControlFlow::Continue(())),
    );
    let e = e.expect_err("one row of three");
    assert!(e.to_string().contains("expected 3 rows"), "{e}");
}

/// Proposes zeros.
struct Hasty;

impl Drafter for Hasty {
    fn name(&self) -> &'static str {
        "hasty"
    }
    fn begin(&mut self, _: &Prefill<'_>) -> crate::Result<()> {
        Ok(())
    }
    fn accept(&mut self, _: Accepted<'_>) -> crate::Result<()> {
        Ok(())
    }
    fn outlook(&mut self) -> Option<Outlook> {
        Some(Outlook { n: 8, class: 0 })
    }
    fn propose(&mut self, n: usize, draft: &mut Draft) -> crate::Result<()> {
        draft.ids.resize(n, 0);
        Ok(())
    }
    fn end(&mut self) {}
}

#[test]
fn strategy_that_cannot_be_followed_is_refused() {
    let mut speculator = Speculator::new(vec![Box::new(Hasty)]);
    let always = |drafter, n| Strategy::Always { drafter, n };
    let e = speculator.set(always("head", 4)).expect_err("none");
    assert!(
        e.to_string().contains("`head`") && e.to_string().contains("hasty"),
        "{e}"
    );
    for n in [0, MAX_DRAFT + 1] {
        let e = speculator.set(always("hasty", n)).expect_err("range");
        assert!(e.to_string().contains("draft-tokens"), "{e}");
    }
    assert!(speculator.set(always("hasty", MAX_DRAFT)).is_ok());
}
