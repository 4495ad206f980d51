//! Who drafts, how much, and what came of it.

use std::time::Duration;

use super::clock::{Clock, WallClock};
use super::draft::{Accepted, Draft, Drafter, MAX_DRAFT, fault_of};
use super::report::Report;
use crate::backend::Prefill;
use crate::error::{Error, Result};

/// How a session drafts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Strategy {
    /// One token a pass.
    #[default]
    Off,
    /// Before every pass, with the drafter of this name.
    Always {
        /// Name of the drafter.
        drafter: &'static str,
        /// Most tokens of a draft, 1 to [`MAX_DRAFT`].
        n: usize,
    },
}

/// The drafters of a session and what is known of them.
pub struct Speculator {
    drafters: Vec<Box<dyn Drafter>>,
    strategy: Strategy,
    clock: Box<dyn Clock>,
    now: Answer,
}

/// What is known of the answer at hand.
#[derive(Debug, Default)]
struct Answer {
    report: Report,
    /// Draft tokens of each drafter.
    proposed: Vec<usize>,
    /// Time that drafters took.
    drafting: Duration,
}

impl Speculator {
    /// Makes a session with these drafters, whose names differ; it does not draft before
    /// [`set`](Self::set) says so.
    pub fn new(drafters: Vec<Box<dyn Drafter>>) -> Self {
        Self::with_clock(drafters, Box::new(WallClock::default()))
    }

    /// As [`new`](Self::new), with a clock of the caller's.
    pub fn with_clock(drafters: Vec<Box<dyn Drafter>>, clock: Box<dyn Clock>) -> Self {
        Self {
            drafters,
            strategy: Strategy::Off,
            clock,
            now: Answer::default(),
        }
    }

    /// A session that never drafts.
    pub fn off() -> Self {
        Self::new(Vec::new())
    }

    /// Chooses how answers are drafted from now on.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no such drafter, [`Error::Argument`] if a draft would have
    /// no token or more than [`MAX_DRAFT`].
    pub fn set(&mut self, strategy: Strategy) -> Result<()> {
        if let Strategy::Always { drafter, n } = strategy {
            if self.find(drafter).is_none() {
                let names: Vec<&str> = self.drafters.iter().map(|d| d.name()).collect();
                return Err(Error::Unavailable {
                    what: format!("the drafter `{drafter}`"),
                    reason: format!("this model has {}", names.join(", ")),
                });
            }
            if !(1..=MAX_DRAFT).contains(&n) {
                return Err(Error::Argument {
                    name: "draft-tokens",
                    reason: format!("{n}, from 1 to {MAX_DRAFT}"),
                });
            }
        }
        self.strategy = strategy;
        Ok(())
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.drafters.iter().position(|d| d.name() == name)
    }

    /// Starts an answer.
    pub(super) fn begin(&mut self, prompt: &Prefill<'_>) {
        self.now = Answer {
            proposed: vec![0; self.drafters.len()],
            ..Answer::default()
        };
        self.ask_each(|drafter| drafter.begin(prompt));
    }

    /// Notes the tokens that the target took from a pass, or from the prefill, with its `draft`.
    pub(super) fn accept(&mut self, tokens: &Accepted<'_>, draft: &Draft) {
        let pairs = tokens.ids.iter().zip(&draft.ids);
        let n_accepted = pairs
            .take_while(|(taken, drafted)| taken == drafted)
            .count();
        self.now.report.count(draft.ids.len(), n_accepted);
        self.ask_each(|drafter| drafter.accept(*tokens));
    }

    /// Writes a draft of at most `n_max` tokens, or none.
    pub(super) fn propose(&mut self, n_max: usize, n_vocab: usize, draft: &mut Draft) {
        draft.clear();
        if self.now.report.switched_off.is_some() || n_max == 0 {
            return;
        }
        let start = self.clock.now();
        if let Some((which, n)) = self.choose(n_max)
            && let Some(drafter) = self.drafters.get_mut(which)
        {
            let fault = match drafter.propose(n, draft) {
                Ok(()) => draft.fault(n_vocab),
                Err(error) => Some(fault_of(&error)),
            };
            match fault {
                Some(fault) => {
                    draft.clear();
                    self.switch_off(which, fault);
                }
                None => {
                    draft.ids.truncate(n);
                    draft.drawn_from.truncate(n);
                    self.now.proposed[which] += draft.ids.len();
                }
            }
        }
        self.now.drafting += self.clock.now().saturating_sub(start);
    }

    /// The drafter to ask, and for how many tokens.
    fn choose(&mut self, n_max: usize) -> Option<(usize, usize)> {
        match self.strategy {
            Strategy::Off => None,
            Strategy::Always { drafter, n } => {
                let which = self.find(drafter)?;
                let outlook = self.drafters[which].outlook()?;
                let n = n.min(n_max).min(outlook.n);
                (n > 0).then_some((which, n))
            }
        }
    }

    /// A pass of the target begins.
    pub(super) fn pass_begins(&mut self) {}

    /// A pass of the target over `n_rows` rows has ended.
    pub(super) fn pass_ends(&mut self, _n_rows: usize) {
        self.now.report.steps += 1;
    }

    /// Ends an answer of `n_ids` tokens; `decode` is the time after the first one.
    pub(super) fn end(&mut self, n_ids: usize, decode: Duration) -> Report {
        if self.now.report.switched_off.is_none() {
            for which in 0..self.drafters.len() {
                if self.uses(which) {
                    self.drafters[which].end();
                }
            }
        }
        let Answer {
            mut report,
            proposed,
            drafting,
        } = std::mem::take(&mut self.now);
        let most = (0..proposed.len()).max_by_key(|&which| proposed[which]);
        if let Some(which) = most.filter(|&which| proposed[which] > 0) {
            report.draft = self.drafters[which].name();
        }
        if report.steps > 0 {
            let n = n_ids.saturating_sub(1);
            report.tokens_per_pass = Some(n as f64 / report.steps as f64);
        }
        if !decode.is_zero() {
            report.drafter_share = (drafting.as_secs_f64() / decode.as_secs_f64()).min(1.0);
        }
        report
    }

    /// True if this drafter may be asked for a draft.
    fn uses(&self, which: usize) -> bool {
        match self.strategy {
            Strategy::Off => false,
            Strategy::Always { drafter, .. } => self.drafters[which].name() == drafter,
        }
    }

    /// Tells something to each drafter that may be asked for a draft.
    fn ask_each(&mut self, mut tell: impl FnMut(&mut dyn Drafter) -> Result<()>) {
        if self.now.report.switched_off.is_some() {
            return;
        }
        let start = self.clock.now();
        for which in 0..self.drafters.len() {
            if self.uses(which)
                && let Err(error) = tell(self.drafters[which].as_mut())
            {
                self.switch_off(which, fault_of(&error));
                break;
            }
        }
        self.now.drafting += self.clock.now().saturating_sub(start);
    }

    fn switch_off(&mut self, which: usize, fault: String) {
        let name = self.drafters[which].name();
        let reason = format!("drafter `{name}`: {fault}");
        tracing::warn!("{reason}; the rest of the answer comes without drafts");
        self.now.report.switched_off = Some(reason);
    }
}
