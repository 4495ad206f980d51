//! `auto` against plain decoding and against fixed drafts, by a made-up clock.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::scripted::{Guess, MadeUpClock, Script, ScriptedModel};
use super::*;
use crate::backend::Prefill;

const SCRIPT: Script = Script {
    seed: 1,
    n_vocab: 50,
    order: 2,
    n_levels: 1000,
};

/// Ticks of a pass of one row.
const STEP: u64 = 1000;

/// Ticks of passes of 1 to 9 rows, each row after the first this much.
fn passes(row: u64) -> Vec<u64> {
    (0..=MAX_DRAFT as u64).map(|n| STEP + row * n).collect()
}

/// Those, and a drafter that takes `token` ticks for a token and `row` for a row of the prompt.
fn costs(passes: &[u64], token: u64, row: u64) -> Costs {
    let ms = |ticks: u64| ticks as f64 / 1e3;
    let cost = DraftCost {
        token_ms: ms(token),
        prompt_row_ms: ms(row),
    };
    let drafters = BTreeMap::from([("guess".to_owned(), cost)]);
    Costs::new(passes.iter().map(|&ticks| ms(ticks)).collect(), drafters).expect("costs")
}

/// A drafter that is right with the probability `right` / 256.
fn guess(clock: &MadeUpClock, token: u64, right: u64) -> Guess {
    let mut guess = Guess::new(SCRIPT, right, 7);
    guess.cost = Some((clock.clone(), token));
    guess
}

/// A session on a made-up machine.
struct Session {
    clock: MadeUpClock,
    model: ScriptedModel,
    speculator: Speculator,
}

impl Session {
    /// A machine with these costs, on which a token of a drafter takes `token` ticks and is right
    /// with the probability `right` / 256.
    fn new(passes: &[u64], token: u64, right: u64) -> Self {
        let clock = MadeUpClock::default();
        let mut model = ScriptedModel::new(SCRIPT);
        model.cost = Some((clock.clone(), passes.to_vec()));
        let guess = guess(&clock, token, right);
        let speculator = Speculator::with_clock(vec![Box::new(guess)], Box::new(clock.clone()));
        Self {
            clock,
            model,
            speculator,
        }
    }

    fn auto(passes: &[u64], token: u64, right: u64) -> Self {
        let mut session = Self::new(passes, token, right);
        session.speculator.set_costs(costs(passes, token, 0));
        session.speculator.set(Strategy::Auto).expect("auto");
        session
    }

    /// With a trained drafter, of which four fifths are said to be accepted, which takes `start` ticks once for a prompt.
    fn trained(passes: &[u64], token: u64, start: u64, right: u64) -> Self {
        let mut session = Self::auto(passes, token, right);
        let mut guess = guess(&session.clock, token, right);
        // Prompts have two rows.
        guess.row_cost = start / 2;
        guess.known = Some(0.8);
        let clock = Box::new(session.clock.clone());
        session.speculator = Speculator::with_clock(vec![Box::new(guess)], clock);
        session
            .speculator
            .set_costs(costs(passes, token, start / 2));
        session.speculator.set(Strategy::Auto).expect("auto");
        session
    }

    /// Answers with `n` tokens; returns the ticks that it took for each plain step's.
    fn answer(&mut self, n: usize, prompt: u32) -> (f64, Report) {
        let before = self.clock.now();
        let limits = Limits {
            eos: &[],
            max_tokens: n,
            deadline: None,
            cancel: None,
        };
        let ids = [prompt % 50, prompt / 50 % 50];
        let prompt = Prefill {
            ids: &ids,
            positions: &[0, 1],
            visual: &[],
            image_token: 100,
            reserve: n,
        };
        let done = generate(
            &mut self.model,
            &prompt,
            &mut Sampler::new(Sampling::default()).expect("greedy"),
            &limits,
            &mut self.speculator,
            &mut |_| Ok(ControlFlow::Continue(())),
        );
        let took = self.clock.now() - before;
        let plain = ((n - 1) as u64 * STEP) as f64 / 1e6;
        (
            took.as_secs_f64() / plain,
            done.expect("an answer").speculation,
        )
    }
}

#[test]
fn auto_that_can_gain_nothing_has_lost_at_most_two_percent_after_every_answer() {
    let mut n_drafted = 0;
    for row in [10, 100, 400, 1000] {
        for token in [0, 50, 500] {
            for start in [0, 400, 2000] {
                for n in [3, 12, 64, 500] {
                    let mut strange = Session::auto(&passes(row), token, 0);
                    let mut trained = Session::trained(&passes(row), token, start, 0);
                    for session in [&mut strange, &mut trained] {
                        let mut sum = 0.0;
                        for answer in 1..=24 {
                            let (time, report) = session.answer(n, answer);
                            sum += time;
                            let mean = sum / f64::from(answer);
                            let context = format!("row {row}, token {token}, start {start}, n {n}");
                            assert!(mean <= 1.02, "{context}, {answer}: {mean} {report:?}");
                            assert_eq!(report.accepted, 0, "{context}");
                            n_drafted += report.proposed;
                        }
                    }
                }
            }
        }
    }
    // It was tried.
    assert!(n_drafted > 1000, "{n_drafted}");
}

#[test]
fn auto_with_what_another_session_learned_goes_on_where_that_was() {
    let passes = passes(100);
    let start = 2000;
    let mut first = Session::trained(&passes, 50, start, 230);
    let (time, _) = first.answer(12, 0);
    assert!(time <= 1.02, "a stranger risks nothing: {time}");
    for answer in 1..60 {
        first.answer(12, answer);
    }
    let learned = first.speculator.learned();
    assert!(learned.is_valid());
    let mut second = Session::trained(&passes, 50, start, 230);
    second.speculator.set_learned(learned.clone());
    let (time, report) = second.answer(12, 60);
    assert!(time < 0.8 && report.proposed > 0, "{time} {report:?}");
    assert_eq!(second.speculator.learned().is_valid(), learned.is_valid());

    // Sessions of one answer each: what was tried is known, and paid, once.
    let mut learned = None;
    let mut sum = 0.0;
    for answer in 1..=200 {
        let mut session = Session::trained(&passes, 50, start, 0);
        if let Some(learned) = learned.take() {
            session.speculator.set_learned(learned);
        }
        sum += session.answer(12, answer).0;
        assert!(sum / f64::from(answer) <= 1.02, "{answer}: {sum}");
        learned = Some(session.speculator.learned());
    }
}

#[test]
fn auto_after_answers_that_had_no_token_drafts_all_the_same() {
    let learned = r#"{"credit": 3, "answer_tokens": 0, "acceptance": []}"#;
    let learned: Learned = serde_json::from_str(learned).expect("learned");
    assert!(learned.is_valid());
    let mut session = Session::auto(&passes(100), 0, 240);
    session.speculator.set_learned(learned);
    let (time, report) = session.answer(30, 1);
    assert!(time < 0.6 && report.proposed > 10, "{time} {report:?}");
}

#[test]
fn auto_starts_a_dear_drafter_only_in_answers_that_are_long_enough() {
    let passes = passes(100);
    for (n, is_worth_it) in [(6, false), (100, true)] {
        let mut session = Session::trained(&passes, 20, 4000, 250);
        let times: Vec<f64> = (0..60).map(|answer| session.answer(n, answer).0).collect();
        let mean = times[40..].iter().sum::<f64>() / 20.0;
        assert_eq!(mean < 0.5, is_worth_it, "{n}: {mean}");
        assert!(mean <= 1.02, "{n}: {mean}");
    }
}

#[test]
fn auto_that_can_gain_comes_near_the_best_fixed_draft() {
    for (row, token, right) in [
        (100, 20, 192),
        (100, 0, 250),
        (300, 50, 230),
        (50, 200, 240),
    ] {
        let passes = passes(row);
        let fixed = (1..=MAX_DRAFT).map(|k| {
            let mut session = Session::new(&passes, token, right);
            let strategy = Strategy::Always {
                drafter: "guess",
                n: k,
            };
            session.speculator.set(strategy).expect("guess");
            session.answer(2000, 1).0
        });
        let best = fixed.fold(f64::INFINITY, f64::min);
        let (time, report) = Session::auto(&passes, token, right).answer(2000, 1);
        let context = format!("{row} {token} {right}: {time}, best {best}");
        assert!(best < 0.8, "{context}");
        assert!(time < best * 1.08, "{context}");
        assert_eq!(report.draft, "guess");
    }
}

#[test]
fn auto_in_short_answers_of_a_session_gains_too() {
    let mut session = Session::auto(&passes(100), 0, 240);
    let times: Vec<f64> = (0..40).map(|n| session.answer(12, n).0).collect();
    // Nothing is risked at first.
    assert!(times.iter().all(|&time| time <= 1.02), "{times:?}");
    let late: f64 = times[20..].iter().sum::<f64>() / 20.0;
    assert!(late < 0.4, "{late}: {times:?}");
}

#[test]
fn auto_with_passes_that_cost_what_they_give_never_drafts() {
    for right in [0, 128, 256] {
        let mut session = Session::auto(&passes(STEP), 0, right);
        let (time, report) = session.answer(1000, 1);
        assert_eq!((time, report.proposed, report.draft), (1.0, 0, "off"));
    }
}

#[test]
fn auto_whose_drafts_turn_bad_loses_little() {
    let passes = passes(100);
    for n in [12, 64, 300] {
        let mut session = Session::auto(&passes, 10, 240);
        for prompt in 0..30 {
            session.answer(n, prompt);
        }
        assert!(session.answer(n, 30).0 < 0.7);
        // The same session, the same knowledge, other drafts.
        let bad = guess(&session.clock, 10, 0);
        session.speculator.replace(0, Box::new(bad));
        let mut lost = 0.0;
        for answer in 1..=20 {
            lost += (session.answer(n, answer).0 - 1.0) * (n - 1) as f64;
            // What was won before covers three steps.
            let most = 3.0 + 0.02 * f64::from(answer) * n as f64;
            assert!(lost <= most, "{n}, {answer}: {lost}");
        }
    }
}

#[test]
fn auto_with_costs_of_another_machine_corrects_them() {
    // What was measured says that rows are free; they are not.
    let mut session = Session::new(&passes(700), 0, 128);
    session.speculator.set_costs(costs(&passes(10), 0, 0));
    session.speculator.set(Strategy::Auto).expect("auto");
    let (time, report) = session.answer(3000, 1);
    assert!(time < 1.05, "{time} {report:?}");
    // What was measured says that rows are dear, and they are not: found out as soon as one is tried.
    let mut session = Session::new(&passes(100), 0, 240);
    session.speculator.set_costs(costs(&passes(300), 0, 0));
    session.speculator.set(Strategy::Auto).expect("auto");
    let (time, _) = session.answer(3000, 1);
    assert!(time < 0.45, "{time}");
}

#[test]
fn auto_without_costs_drafts_nothing_until_they_are_measured() {
    let mut session = Session::new(&passes(100), 10, 240);
    session.speculator.set(Strategy::Auto).expect("auto");
    let (time, report) = session.answer(100, 1);
    assert_eq!((time, report.proposed), (1.0, 0));
    let stopped = session.speculator.measure(&mut session.model, &|| true);
    assert!(stopped.is_ok() && session.speculator.costs().is_none());
    let measured = session.speculator.measure(&mut session.model, &|| false);
    measured.expect("measured");
    assert_eq!(
        session.speculator.costs(),
        Some(&costs(&passes(100), 10, 0))
    );
    assert!(session.answer(1000, 1).0 < 0.5);
}

#[test]
fn auto_takes_the_better_of_two_drafters() {
    let passes = passes(100);
    let clock = MadeUpClock::default();
    let mut model = ScriptedModel::new(SCRIPT);
    model.cost = Some((clock.clone(), passes.clone()));
    let good = guess(&clock, 40, 230);
    let drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Ngram::new()), Box::new(good)];
    let speculator = Speculator::with_clock(drafters, Box::new(clock.clone()));
    let mut session = Session {
        clock,
        model,
        speculator,
    };
    session.speculator.set_costs(costs(&passes, 40, 0));
    session.speculator.set(Strategy::Auto).expect("auto");
    // A text that does not repeat itself for long: the guess is right where nothing can be looked up.
    let (time, report) = session.answer(300, 1);
    assert!(time < 0.7 && report.draft == "guess", "{time} {report:?}");
}
