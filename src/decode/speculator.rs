//! Who drafts, how much, and what came of it.

use std::time::Duration;

use super::auto::{Auto, Candidate, Choice, Learned, Made};
use super::clock::{Clock, WallClock};
use super::costs::{Costs, ms};
use super::draft::{Accepted, Draft, Drafter, MAX_DRAFT, fault_of};
use super::report::{Refused, Report};
use crate::backend::{Backend, Prefill};
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
    /// With the drafter and the number of tokens that promise the most tokens per second, none
    /// included. Needs [`Costs`]: without them nothing is drafted.
    Auto,
}

/// The drafters of a session and what is known of them.
pub struct Speculator {
    drafters: Vec<Box<dyn Drafter>>,
    strategy: Strategy,
    /// Most tokens of a draft.
    most: usize,
    clock: Box<dyn Clock>,
    auto: Auto,
    now: Answer,
}

/// What is known of the answer at hand.
#[derive(Debug, Default)]
struct Answer {
    report: Report,
    /// Tokens so far.
    n_tokens: usize,
    /// Draft tokens of each drafter.
    proposed: Vec<usize>,
    /// Time that drafters took.
    drafting: Duration,
    /// The same since the newest pass began.
    drafting_now: Duration,
    /// What the draft at hand was asked for, and how long it took.
    choice: Option<Choice>,
    proposing: Duration,
    pass_began: Duration,
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
            auto: Auto::new(drafters.iter().map(|d| d.known_acceptance())),
            drafters,
            strategy: Strategy::Off,
            most: MAX_DRAFT,
            clock,
            now: Answer::default(),
        }
    }

    /// A session that never drafts.
    pub fn off() -> Self {
        Self::new(Vec::new())
    }

    /// Says how many draft tokens a pass of the target can check, at most [`MAX_DRAFT`].
    pub fn limit(&mut self, most: usize) {
        self.most = most.min(MAX_DRAFT);
    }

    /// Chooses how answers are drafted from now on.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if there is no such drafter, [`Error::Argument`] if a draft would have
    /// no token or more than a pass can check.
    pub fn set(&mut self, strategy: Strategy) -> Result<()> {
        self.check(strategy)?;
        self.strategy = strategy;
        Ok(())
    }

    /// Says whether answers can be drafted so.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn check(&self, strategy: Strategy) -> Result<()> {
        if let Strategy::Always { drafter, n } = strategy {
            if self.find(drafter).is_none() {
                return Err(Error::Unavailable {
                    what: format!("the drafter `{drafter}`"),
                    reason: format!("this model has {}", self.names().join(", ")),
                });
            }
            if !(1..=self.most).contains(&n) {
                let reason = match self.most {
                    0 => format!("{n}, and a pass of this model checks none"),
                    MAX_DRAFT => format!("{n}, from 1 to {MAX_DRAFT}"),
                    most => format!("{n}, and a pass of this model checks at most {most}"),
                };
                return Err(Error::Argument {
                    name: "draft-tokens",
                    reason,
                });
            }
        }
        Ok(())
    }

    /// What passes and drafts cost, once it is known.
    pub fn costs(&self) -> Option<&Costs> {
        self.auto.costs()
    }

    /// Says what passes and drafts cost, as an earlier session has [measured](Self::measure) it.
    pub fn set_costs(&mut self, costs: Costs) {
        self.auto.set_costs(costs);
    }

    /// Measures what passes of `backend` and drafts cost, in about twenty passes of 1 to 9 rows; the
    /// backend's sequence is lost. Nothing is learned if `stop` says so before the end.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn measure(&mut self, backend: &mut dyn Backend, stop: &dyn Fn() -> bool) -> Result<()> {
        let clock = self.clock.as_ref();
        let drafters = &mut self.drafters;
        if let Some(costs) = Costs::measure(backend, drafters, self.most, clock, stop)? {
            self.auto.set_costs(costs);
        }
        Ok(())
    }

    /// What was learned of the drafters, for a later session.
    pub fn learned(&self) -> Learned {
        self.auto.learned(&self.names())
    }

    /// Goes on from what an earlier session has [learned](Self::learned).
    pub fn set_learned(&mut self, learned: Learned) {
        let names = self.names();
        self.auto.set_learned(learned, &names);
    }

    /// Most tokens of a draft.
    pub fn most(&self) -> usize {
        self.most
    }

    /// Forgets earlier answers.
    pub fn forget_answers(&mut self) {
        for drafter in &mut self.drafters {
            drafter.forget();
        }
    }

    /// Names of the drafters.
    pub fn names(&self) -> Vec<&'static str> {
        self.drafters.iter().map(|d| d.name()).collect()
    }

    fn find(&self, name: &str) -> Option<usize> {
        self.drafters.iter().position(|d| d.name() == name)
    }

    /// Starts an answer.
    pub(super) fn begin(&mut self, prompt: &Prefill<'_>) {
        let mut proposed = std::mem::take(&mut self.now.proposed);
        proposed.clear();
        proposed.resize(self.drafters.len(), 0);
        self.now = Answer {
            proposed,
            ..Answer::default()
        };
        self.auto.begin(prompt.ids.len());
        self.ask_each(|drafter| drafter.begin(prompt));
    }

    /// Notes the tokens that the target took from a pass, or from the prefill, with its `draft`.
    pub(super) fn accept(&mut self, tokens: &Accepted<'_>, draft: &Draft) {
        let pairs = tokens.ids.iter().zip(&draft.ids);
        let n_accepted = pairs
            .take_while(|(taken, drafted)| taken == drafted)
            .count();
        self.now.report.count(draft.ids.len(), n_accepted);
        let n_drafted = draft.ids.len();
        if let Some(choice) = self.now.choice
            && let (Some(&drafted), Some(&chosen)) =
                (draft.ids.get(n_accepted), tokens.ids.get(n_accepted))
        {
            self.now.report.refused.push(Refused {
                drafter: self.drafters[choice.drafter].name(),
                index: self.now.n_tokens + n_accepted,
                drafted,
                chosen,
            });
        }
        self.now.n_tokens += tokens.ids.len();
        let outcome = self.now.choice.map(|choice| {
            // Where a drafter was too unsure to go on, a token was asked for in vain.
            let went_on = tokens.ids.len() > n_drafted;
            let was_short = went_on && n_accepted == n_drafted && n_drafted < choice.n;
            let n_tested = n_drafted.min(tokens.ids.len()) + usize::from(was_short);
            (choice, n_tested, n_accepted)
        });
        if self.strategy == Strategy::Auto {
            let (n_tokens, is_drafted) = (tokens.ids.len(), n_drafted > 0);
            self.auto.saw_tokens(n_tokens, is_drafted, outcome);
        }
        self.ask_each(|drafter| drafter.accept(*tokens));
    }

    /// Writes a draft of at most `n_max` tokens, or none.
    pub(super) fn propose(&mut self, n_max: usize, n_vocab: usize, draft: &mut Draft) {
        let n_max = n_max.min(self.most);
        draft.clear();
        self.now.choice = None;
        let is_off = self.strategy == Strategy::Off || self.now.report.switched_off.is_some();
        if is_off || n_max == 0 {
            return;
        }
        let start = self.clock.now();
        if let Some(choice) = self.choose(n_max)
            && let Some(drafter) = self.drafters.get_mut(choice.drafter)
        {
            let asked = self.clock.now();
            let fault = match drafter.propose(choice.n, draft) {
                Ok(()) => draft.fault(n_vocab),
                Err(error) => Some(fault_of(&error)),
            };
            self.now.proposing = self.clock.now().saturating_sub(asked);
            if let Some(fault) = fault {
                draft.clear();
                self.switch_off(choice.drafter, fault);
            } else {
                draft.ids.truncate(choice.n);
                draft.drawn_from.truncate(choice.n);
                self.now.proposed[choice.drafter] += draft.ids.len();
                self.now.choice = Some(choice);
            }
        }
        self.drafted_since(start);
    }

    /// Whom to ask, and for how many tokens.
    fn choose(&mut self, n_max: usize) -> Option<Choice> {
        match self.strategy {
            Strategy::Off => None,
            Strategy::Always { drafter, n } => {
                let which = self.find(drafter)?;
                let outlook = self.drafters[which].outlook()?;
                let n = n.min(n_max).min(outlook.n);
                (n > 0).then_some(Choice {
                    drafter: which,
                    class: outlook.class,
                    n,
                })
            }
            Strategy::Auto => {
                // Without costs there is no choice to be made.
                self.auto.costs()?;
                let outlooks = self.drafters.iter_mut().enumerate().filter_map(|(i, d)| {
                    Some(Candidate {
                        drafter: i,
                        name: d.name(),
                        outlook: d.outlook()?,
                    })
                });
                let candidates: Vec<Candidate> = outlooks.collect();
                self.auto.choose(&candidates, n_max)
            }
        }
    }

    /// Takes a draft back for which there is no time.
    pub(super) fn withdraw(&mut self, draft: &mut Draft) {
        if let Some(choice) = self.now.choice.take() {
            self.now.proposed[choice.drafter] -= draft.ids.len();
        }
        draft.clear();
    }

    /// A pass of the target begins.
    pub(super) fn pass_begins(&mut self) {
        self.now.pass_began = self.clock.now();
    }

    /// A pass of the target over `n_rows` rows has ended.
    pub(super) fn pass_ends(&mut self, n_rows: usize) {
        self.now.report.steps += 1;
        let pass = self.clock.now().saturating_sub(self.now.pass_began);
        let drafting = std::mem::take(&mut self.now.drafting_now);
        if self.strategy != Strategy::Auto {
            // What the caller wants pays for nothing, and is no fault of anybody.
            return;
        }
        let made = self.now.choice.map(|choice| Made {
            drafter: choice.drafter,
            name: self.drafters[choice.drafter].name(),
            asked: choice.n,
            proposed: n_rows - 1,
            ms: ms(self.now.proposing),
        });
        self.auto.saw_pass(n_rows, ms(pass), ms(drafting), made);
    }

    /// Ends an answer of `n_ids` tokens; `decode` is the time after the first one.
    pub(super) fn end(&mut self, n_ids: usize, decode: Duration) -> Report {
        if self.strategy == Strategy::Auto {
            self.auto.end();
        }
        if self.now.report.switched_off.is_none() {
            for which in 0..self.drafters.len() {
                if self.uses(which) {
                    self.drafters[which].end();
                }
            }
        }
        let mut report = std::mem::take(&mut self.now.report);
        let (proposed, drafting) = (&self.now.proposed, self.now.drafting);
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
            Strategy::Auto => true,
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
        self.drafted_since(start);
    }

    /// Puts another drafter in the place of one.
    #[cfg(test)]
    pub(super) fn replace(&mut self, which: usize, drafter: Box<dyn Drafter>) {
        self.drafters[which] = drafter;
    }

    fn drafted_since(&mut self, start: Duration) {
        let took = self.clock.now().saturating_sub(start);
        self.now.drafting += took;
        self.now.drafting_now += took;
    }

    fn switch_off(&mut self, which: usize, fault: String) {
        let name = self.drafters[which].name();
        let reason = format!("drafter `{name}`: {fault}");
        tracing::warn!("{reason}; the rest of the answer comes without drafts");
        self.now.report.switched_off = Some(reason);
    }
}
