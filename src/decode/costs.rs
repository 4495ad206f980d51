//! What passes of the target and drafts cost on this machine.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clock::Clock;
use super::draft::{Accepted, Draft, Drafter, MAX_DRAFT};
use crate::backend::{Backend, Prefill};
use crate::error::Result;

/// Rows of the context in which costs are measured, about those of a question.
const CONTEXT: usize = 64;

/// Each cost is the least of so many measurements.
const ROUNDS: usize = 2;

/// Largest cost that is believed, in milliseconds.
const MOST_MS: f64 = 1e7;

/// By how much a pass moves the estimate of how fast the machine is now.
const RATE: f64 = 0.1;

/// By how much a pass moves the estimate of its number of rows.
const OWN_RATE: f64 = 0.2;

/// How much of what was learned of a number of rows stays after a pass: what was measured at rest
/// counts again in the end.
const KEPT: f64 = 0.995;

/// Most by which one pass may differ from its estimate, as a natural logarithm: a machine that was
/// busy for a moment tells nothing.
const SURPRISE: f64 = 1.4;

/// Measured costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// Milliseconds of a pass of 1, 2, ... [`MAX_DRAFT`] + 1 rows.
    passes_ms: Vec<f64>,
    /// What drafters take, by name.
    drafters: BTreeMap<String, DraftCost>,
}

/// What a drafter takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftCost {
    /// Milliseconds for a token.
    pub token_ms: f64,
    /// Milliseconds for a row of the prompt, before the first draft of an answer.
    pub prompt_row_ms: f64,
}

impl Costs {
    /// Costs, if they can be costs.
    pub fn new(passes_ms: Vec<f64>, drafters: BTreeMap<String, DraftCost>) -> Option<Self> {
        let costs = Self {
            passes_ms,
            drafters,
        };
        costs.is_valid().then_some(costs)
    }

    /// False for what no measurement gives; a file may say anything.
    pub fn is_valid(&self) -> bool {
        let n = self.passes_ms.len();
        let passes = self.passes_ms.iter().all(|ms| *ms > 0.0 && *ms <= MOST_MS);
        let drafters = self.drafters.values();
        let mut drafters = drafters.flat_map(|cost| [cost.token_ms, cost.prompt_row_ms]);
        n == MAX_DRAFT + 1 && passes && drafters.all(|ms| (0.0..=MOST_MS).contains(&ms))
    }

    /// Measures passes of `backend`, whose sequence is lost, and drafts. `None` if `stop` said so. A pass checks at
    /// most `most` drafts; one of more rows, which nobody makes, is said to cost as much as the largest.
    ///
    /// # Errors
    /// Those of the backend.
    pub(super) fn measure(
        backend: &mut dyn Backend,
        drafters: &mut [Box<dyn Drafter>],
        most: usize,
        clock: &dyn Clock,
        stop: &dyn Fn() -> bool,
    ) -> Result<Option<Self>> {
        // Any token will do: what is computed depends on how many there are.
        let ids = [0; CONTEXT];
        let positions: Vec<u32> = (0..CONTEXT as u32).collect();
        let prompt = Prefill {
            ids: &ids,
            positions: &positions,
            visual: &[],
            image_token: u32::MAX,
            reserve: MAX_DRAFT + 1,
        };
        for drafter in drafters.iter_mut() {
            // One that fails is left out below.
            let _ = drafter.begin(&prompt);
        }
        backend.prefill(&prompt)?;
        let first = backend.hidden().map(<[f32]>::to_vec);
        backend.step(&ids[..1], CONTEXT as u32)?;
        let second = backend.hidden().map(<[f32]>::to_vec);
        backend.rollback(CONTEXT)?;
        let hidden = [first.as_deref(), second.as_deref()];
        let mut costs = BTreeMap::new();
        for drafter in drafters {
            if let Some(cost) = draft_cost(drafter.as_mut(), &prompt, hidden, clock) {
                costs.insert(drafter.name().to_owned(), cost);
            }
        }
        let most_rows = most.min(MAX_DRAFT) + 1;
        let mut passes_ms = vec![f64::INFINITY; most_rows];
        for _ in 0..ROUNDS {
            for (n_rows, ms) in (1..).zip(&mut passes_ms) {
                if stop() {
                    return Ok(None);
                }
                let start = clock.now();
                if backend
                    .step_greedily(&ids[..n_rows], CONTEXT as u32)?
                    .is_none()
                {
                    backend.step(&ids[..n_rows], CONTEXT as u32)?;
                }
                *ms = ms.min(ms_since(clock, start));
                if n_rows < most_rows {
                    backend.rollback(CONTEXT)?;
                }
            }
            backend.rollback(CONTEXT)?;
        }
        // A pass of fewer rows costs no more: the rest could be filled up.
        for n in (1..passes_ms.len()).rev() {
            passes_ms[n - 1] = passes_ms[n - 1].min(passes_ms[n]);
        }
        passes_ms.resize(MAX_DRAFT + 1, passes_ms[most_rows - 1]);
        Ok(Self::new(passes_ms, costs))
    }
}

/// What a draft takes after the prefill of `prompt` and two tokens, which were chosen
/// from the states `hidden`; `None` from a drafter that fails, which tells so when it is
/// used.
fn draft_cost(
    drafter: &mut dyn Drafter,
    prompt: &Prefill<'_>,
    hidden: [Option<&[f32]>; 2],
    clock: &dyn Clock,
) -> Option<DraftCost> {
    let (mut first_ms, mut token_ms) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        drafter.begin(prompt).ok()?;
        let mut draft = Draft::default();
        let [first, second] = hidden.map(|hidden| Accepted { ids: &[0], hidden });
        drafter.accept(first).ok()?;
        let start = clock.now();
        drafter.propose(1, &mut draft).ok()?;
        first_ms = first_ms.min(ms_since(clock, start));
        draft.clear();
        drafter.accept(second).ok()?;
        let start = clock.now();
        let n = drafter.outlook().map_or(1, |outlook| outlook.n);
        drafter.propose(n.clamp(1, MAX_DRAFT), &mut draft).ok()?;
        token_ms = token_ms.min(ms_since(clock, start) / draft.ids.len().max(1) as f64);
    }
    Some(DraftCost {
        token_ms,
        prompt_row_ms: (first_ms - token_ms).max(0.0) / CONTEXT as f64,
    })
}

fn ms_since(clock: &dyn Clock, start: Duration) -> f64 {
    // A clock that stood still would make a pass free, and all others endlessly dear.
    ms(clock.now().saturating_sub(start)).max(1e-6)
}

/// A time in milliseconds.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Costs as they are now: measured ones, and what later passes have told.
#[derive(Debug)]
pub(super) struct RunningCosts {
    measured: Costs,
    /// Logarithm of how much slower the machine is now.
    level: f64,
    /// The same of each number of rows, beyond `level`.
    own: Vec<f64>,
    /// Milliseconds of a pass of one row, by such passes alone: what others take may be blamed on the machine.
    plain_ms: f64,
}

impl RunningCosts {
    pub(super) fn new(measured: Costs) -> Self {
        Self {
            level: 0.0,
            plain_ms: measured.passes_ms[0],
            own: vec![0.0; measured.passes_ms.len()],
            measured,
        }
    }

    pub(super) fn measured(&self) -> &Costs {
        &self.measured
    }

    /// Milliseconds of a pass of `n_rows` rows, 1 to [`MAX_DRAFT`] + 1.
    pub(super) fn pass_ms(&self, n_rows: usize) -> f64 {
        let n = n_rows.clamp(1, self.own.len()) - 1;
        self.measured.passes_ms[n] * (self.level + self.own[n]).exp()
    }

    /// Milliseconds of a pass of one row, as those have told that were seen.
    pub(super) fn plain_ms(&self) -> f64 {
        self.plain_ms
    }

    /// Cost of a pass of `n_rows` rows in passes of one row.
    pub(super) fn pass(&self, n_rows: usize) -> f64 {
        self.pass_ms(n_rows) / self.pass_ms(1)
    }

    /// A token of a drafter, in passes of one row.
    pub(super) fn token(&self, drafter: &str) -> f64 {
        let cost = self.measured.drafters.get(drafter);
        cost.map_or(0.0, |cost| cost.token_ms) / self.pass_ms(1)
    }

    /// What a drafter does once for a prompt of `n_rows` rows, in passes of one row.
    pub(super) fn start(&self, drafter: &str, n_rows: usize) -> f64 {
        let cost = self.measured.drafters.get(drafter);
        cost.map_or(0.0, |cost| cost.prompt_row_ms) * n_rows as f64 / self.pass_ms(1)
    }

    /// The most that a drafter does once for a prompt of `n_rows` rows, in passes of one row.
    pub(super) fn dearest_start(&self, n_rows: usize) -> f64 {
        let names = self.measured.drafters.keys();
        names
            .map(|name| self.start(name, n_rows))
            .fold(0.0, f64::max)
    }

    /// Takes note of what a pass took.
    pub(super) fn saw_pass(&mut self, n_rows: usize, ms: f64) {
        let surprise = (ms / self.pass_ms(n_rows)).ln();
        if surprise.is_nan() {
            return;
        }
        let surprise = surprise.clamp(-SURPRISE, SURPRISE);
        self.level += RATE * surprise;
        if n_rows == 1 {
            let surprise = (ms / self.plain_ms).ln().clamp(-SURPRISE, SURPRISE);
            self.plain_ms *= (OWN_RATE * surprise).exp();
        }
        for own in &mut self.own {
            *own *= KEPT;
        }
        // One row is what the others are compared with.
        if n_rows > 1
            && let Some(own) = self.own.get_mut(n_rows - 1)
        {
            *own += OWN_RATE * surprise;
        }
    }

    /// Takes note of what a draft of `n` tokens took that was not the first of its answer.
    pub(super) fn saw_draft(&mut self, drafter: &str, n: usize, ms: f64) {
        let seen = ms / n.max(1) as f64;
        let known = self.measured.drafters.entry(drafter.to_owned());
        let known = known.or_insert(DraftCost {
            token_ms: seen,
            ..DraftCost::default()
        });
        known.token_ms += RATE * (seen - known.token_ms);
    }

    /// Takes note of what a draft of `n` tokens took that was the first after a prompt of
    /// `n_rows` rows.
    pub(super) fn saw_start(&mut self, drafter: &str, n_rows: usize, n: usize, ms: f64) {
        if let Some(known) = self.measured.drafters.get_mut(drafter) {
            let once = (ms - known.token_ms * n as f64).max(0.0);
            known.prompt_row_ms += RATE * (once / n_rows.max(1) as f64 - known.prompt_row_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::scripted::{Guess, MadeUpClock, Script, ScriptedModel};
    use super::*;

    const SCRIPT: Script = Script {
        seed: 1,
        n_vocab: 8,
        order: 2,
        n_levels: 10,
    };

    fn costs(passes_ms: &[f64]) -> Option<Costs> {
        Costs::new(passes_ms.to_vec(), BTreeMap::new())
    }

    #[test]
    fn measured_costs_are_those_of_the_clock() {
        let clock = MadeUpClock::default();
        let mut model = ScriptedModel::new(SCRIPT);
        // Three rows take longer than four: they could be filled up.
        let ticks = vec![1000, 1100, 1500, 1300, 1400, 1500, 1600, 1700, 1800];
        model.cost = Some((clock.clone(), ticks));
        let mut guess = Guess::new(SCRIPT, 256, 0);
        guess.cost = Some((clock.clone(), 25));
        guess.row_cost = 500;
        let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(guess)];
        let measured = Costs::measure(&mut model, &mut drafters, MAX_DRAFT, &clock, &|| false);
        let measured = measured.expect("passes").expect("not stopped");
        assert_eq!(
            measured.passes_ms,
            [1.0, 1.1, 1.3, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]
        );
        let guess = measured.drafters["guess"];
        assert_eq!(guess.token_ms, 0.025);
        assert!((guess.prompt_row_ms - 0.5).abs() < 1e-9, "{guess:?}");

        let left = Cell::new(5);
        let stop = || left.replace(left.get() - 1) == 0;
        let stopped = Costs::measure(&mut model, &mut drafters, MAX_DRAFT, &clock, &stop);
        assert_eq!(stopped.expect("passes"), None);
    }

    #[test]
    fn passes_of_more_rows_than_a_model_checks_are_not_made() {
        let clock = MadeUpClock::default();
        let mut model = ScriptedModel::new(SCRIPT);
        // A pass of more rows would be a panic: it has no cost.
        model.cost = Some((clock.clone(), vec![1000, 1100, 1200]));
        let measured = Costs::measure(&mut model, &mut [], 2, &clock, &|| false);
        let measured = measured.expect("passes").expect("not stopped");
        assert_eq!(measured.passes_ms[..4], [1.0, 1.1, 1.2, 1.2]);
        assert!(measured.is_valid());
    }

    #[test]
    fn costs_that_nothing_costs_are_invalid() {
        assert!(costs(&[1.0; 9]).is_some());
        for passes in [
            &[1.0; 8][..],
            &[1.0; 10],
            &[0.0; 9],
            &[-1.0; 9],
            &[f64::NAN; 9],
            &[f64::INFINITY; 9],
            &[1e9; 9],
        ] {
            assert_eq!(costs(passes), None, "{passes:?}");
        }
        for (token_ms, prompt_row_ms) in [(-1.0, 0.0), (0.0, -1.0), (f64::NAN, 0.0)] {
            let cost = DraftCost {
                token_ms,
                prompt_row_ms,
            };
            let drafters = BTreeMap::from([("ngram".to_owned(), cost)]);
            assert_eq!(Costs::new(vec![1.0; 9], drafters), None);
        }
    }

    #[test]
    fn running_costs_follow_the_machine_and_each_number_of_rows() {
        let measured = costs(&[1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8]).expect("costs");
        let mut running = RunningCosts::new(measured);
        // Everything takes twice as long: what is told apart is the same.
        for _ in 0..100 {
            running.saw_pass(1, 2.0);
        }
        assert!((running.pass_ms(1) - 2.0).abs() < 0.01);
        assert!((running.pass(5) - 1.4).abs() < 0.01);
        // Five rows are dearer than was measured.
        for _ in 0..50 {
            running.saw_pass(1, 2.0);
            running.saw_pass(5, 5.0);
        }
        assert!((running.pass(5) - 2.5).abs() < 0.2, "{}", running.pass(5));
        assert!((running.pass(4) - 1.3).abs() < 0.01);
        assert!((running.plain_ms() - 2.0).abs() < 0.01);
        // What nobody tries any more is believed as it was measured.
        for _ in 0..1000 {
            running.saw_pass(1, 2.0);
        }
        assert!((running.pass(5) - 1.4).abs() < 0.05, "{}", running.pass(5));
        for nonsense in [0.0, f64::NAN, f64::INFINITY] {
            running.saw_pass(1, nonsense);
            for ms in [running.pass_ms(1), running.plain_ms()] {
                assert!(ms.is_finite() && ms > 0.0);
            }
        }
    }
}
