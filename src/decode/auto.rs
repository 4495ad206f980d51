//! Drafting only while it pays.
//!
//! All is reckoned in plain steps: a pass of one row costs 1 and gives one token. A pass that checks
//! a draft costs what its rows and the draft cost, and gives the tokens that can be expected of
//! drafts of its class. The best rate wins; 1, that of no draft, is among them.
//!
//! What can be expected has to be learned, and a pass whose draft is refused is a loss. Two rules
//! keep the sum of losses below [`ALLOWANCE`] of what was answered:
//!
//! - A draft may be tried if what it loses at worst is covered by *credit*. Credit starts at nothing, grows with every
//!   token by the allowance and with what drafts have won, and shrinks with what they have lost. It does not grow beyond one step.
//! - A draft beyond that is asked for where its class has proved itself, here or when the drafter was trained, as long as drafts have not lost anything in
//!   this answer.

use super::acceptance::Acceptance;
use super::costs::{Costs, RunningCosts};
use super::draft::{MAX_DRAFT, Outlook};

/// Share of plain decoding's time that may be lost on trials.
const ALLOWANCE: f64 = 0.015;

/// Most credit, in plain steps.
const MOST_CREDIT: f64 = 1.0;

/// Rate, in tokens for each plain step, below which a draft is not worth its while.
const LEAST_RATE: f64 = 1.02;

/// Drafts of a class after which it can have proved itself.
const PROVED: f64 = 6.0;

/// Most by which a pass may cost more or less than expected in the accounts: a machine that was busy
/// for a moment was no fault of the draft.
const SURPRISE: f64 = 3.0;

/// A decision, and what it was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Choice {
    /// Index of the drafter.
    pub drafter: usize,
    /// Class of the draft.
    pub class: usize,
    /// Tokens to ask for.
    pub n: usize,
}

/// What the choice is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    /// Index of the drafter.
    pub drafter: usize,
    /// Its name.
    pub name: &'static str,
    /// What it could propose.
    pub outlook: Outlook,
}

/// What a session knows: costs, acceptance, credit.
#[derive(Debug, Default)]
pub(super) struct Auto {
    costs: Option<RunningCosts>,
    acceptance: Vec<Acceptance>,
    credit: f64,
    /// What drafts have won or lost in this answer.
    balance: f64,
}

impl Auto {
    /// Of drafters of which this is known already.
    pub(super) fn new(known: impl Iterator<Item = Option<f64>>) -> Self {
        Self {
            acceptance: known.map(Acceptance::knowing).collect(),
            ..Self::default()
        }
    }

    /// What was measured; nothing is drafted before that is known.
    pub(super) fn costs(&self) -> Option<&Costs> {
        self.costs.as_ref().map(RunningCosts::measured)
    }

    pub(super) fn set_costs(&mut self, costs: Costs) {
        self.costs = Some(RunningCosts::new(costs));
    }

    /// Starts an answer.
    pub(super) fn begin(&mut self) {
        self.balance = 0.0;
    }

    /// The draft with the best rate, of at most `n_max` tokens; `None` if no draft is better.
    pub(super) fn choose(&mut self, candidates: &[Candidate], n_max: usize) -> Option<Choice> {
        let costs = self.costs.as_ref()?;
        let mut best = (LEAST_RATE, None);
        for candidate in candidates {
            let Candidate {
                drafter, outlook, ..
            } = *candidate;
            let acceptance = &self.acceptance[drafter];
            let expected = acceptance.expected_tokens(outlook.class);
            let is_trusted = acceptance.is_known() || acceptance.n_trials(outlook.class) >= PROVED;
            let proved = is_trusted && self.balance >= 0.0;
            let token = costs.token(candidate.name);
            for n in 1..=n_max.min(outlook.n).min(MAX_DRAFT) {
                let cost = costs.pass(n + 1) + token * n as f64;
                let rate = expected[n - 1] / cost;
                // At worst a pass gives one token.
                let covered = cost - 1.0 <= self.credit;
                if rate > best.0 && (covered || proved) {
                    let class = outlook.class;
                    best = (rate, Some(Choice { drafter, class, n }));
                }
            }
        }
        let choice = best.1;
        for candidate in candidates {
            if choice.is_none_or(|choice| choice.drafter != candidate.drafter) {
                self.acceptance[candidate.drafter].passed_over(candidate.outlook.class);
            }
        }
        choice
    }

    /// Takes note of a pass of `n_rows` rows and of all that drafters took since the pass before
    /// it. `draft` is who proposed, how many tokens, and in what time.
    pub(super) fn saw_pass(
        &mut self,
        n_rows: usize,
        pass_ms: f64,
        drafting_ms: f64,
        draft: Option<(&'static str, usize, f64)>,
    ) {
        let Some(costs) = &mut self.costs else {
            return;
        };
        let plain = costs.pass_ms(1);
        let expected = costs.pass_ms(n_rows);
        if n_rows > 1 {
            // Tokens are added when it is known how many there are.
            let cost = pass_ms.clamp(expected / SURPRISE, expected * SURPRISE) / plain;
            self.balance -= cost;
            self.credit -= cost;
        }
        let drafting = (drafting_ms / plain).min(SURPRISE);
        self.credit -= drafting;
        costs.saw_pass(n_rows, pass_ms);
        if let Some((name, n, propose_ms)) = draft {
            self.balance -= drafting;
            costs.saw_draft(name, n, propose_ms);
        }
    }

    /// Takes note of the tokens that a pass gave, which had a draft to check if `is_drafted`. `asked` is who was
    /// asked for one, how many of its tokens were tested, and how many accepted.
    pub(super) fn saw_tokens(
        &mut self,
        n_tokens: usize,
        is_drafted: bool,
        asked: Option<(Choice, usize, usize)>,
    ) {
        let mut gain = ALLOWANCE * n_tokens as f64;
        if let Some((choice, n_tested, n_accepted)) = asked {
            self.acceptance[choice.drafter].saw(choice.class, n_tested, n_accepted);
        }
        if is_drafted {
            gain += n_tokens as f64;
            self.balance += n_tokens as f64;
        }
        self.credit = (self.credit + gain).min(MOST_CREDIT);
    }
}
