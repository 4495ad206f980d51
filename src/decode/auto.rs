//! Drafting only while it pays.
//!
//! All is reckoned in plain steps: a pass of one row costs 1 and gives one token. A pass that checks
//! a draft costs what its rows and the draft cost, and gives the tokens that can be expected of
//! drafts of its class. The best rate wins; 1, that of no draft, is among them. What a drafter does once
//! for each prompt is spread over what is left of the answer, which is taken to be as long as others.
//!
//! What can be expected has to be learned, and a pass whose draft is refused is a loss. So a draft is
//! asked for only where all that it can lose is covered by *credit*. Credit starts at nothing, grows with every
//! token by [`ALLOWANCE`] and with what drafts have won, and shrinks with what they have lost: at no moment have drafts lost
//! more than that share of what was answered. It does not grow much beyond what one draft can lose, so
//! that drafts which turn bad lose little of what they won before.

use serde::{Deserialize, Serialize};

use super::acceptance::Acceptance;
use super::costs::{Costs, RunningCosts};
use super::draft::{MAX_DRAFT, Outlook};

/// Share of plain decoding's time that may be lost on trials.
const ALLOWANCE: f64 = 0.015;

/// Most credit, in plain steps, beyond what the dearest drafter does once for a prompt.
const MOST_CREDIT: f64 = 3.0;

/// Largest credit that a file may claim.
const MOST_CLAIMED: f64 = 1e4;

/// Rate, in tokens for each plain step, below which a draft is not worth its while.
const LEAST_RATE: f64 = 1.02;

/// Most by which a pass may cost more or less than expected in the accounts: a machine that was busy
/// for a moment was no fault of the draft.
const SURPRISE: f64 = 3.0;

/// Tokens of an answer where none was seen yet.
const ANSWER_TOKENS: f64 = 16.0;

/// By how much an answer moves what is expected of the next one's length.
const ANSWER_RATE: f64 = 0.1;

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

/// A draft that was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Made {
    /// Index of the drafter.
    pub drafter: usize,
    /// Its name.
    pub name: &'static str,
    /// Tokens that it was asked for.
    pub asked: usize,
    /// Tokens that it proposed.
    pub proposed: usize,
    /// Milliseconds that it took.
    pub ms: f64,
}

/// What a session has learned, for another one to begin with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Learned {
    /// What drafts may lose, in plain steps.
    credit: f64,
    /// Tokens of an answer.
    answer_tokens: f64,
    /// What became of drafts, by drafter.
    acceptance: Vec<(String, Acceptance)>,
}

impl Learned {
    /// False for what no session learns; a file may say anything.
    pub fn is_valid(&self) -> bool {
        let mut of_drafters = self.acceptance.iter();
        self.credit.abs() <= MOST_CLAIMED
            && (0.0..=MOST_CLAIMED).contains(&self.answer_tokens)
            && of_drafters.all(|(_, acceptance)| acceptance.is_valid())
    }
}

/// What a session knows: costs, acceptance, credit.
#[derive(Debug, Default)]
pub(super) struct Auto {
    costs: Option<RunningCosts>,
    acceptance: Vec<Acceptance>,
    /// Drafters that were asked in this answer.
    has_begun: Vec<bool>,
    credit: f64,
    /// Rows of the prompt at hand.
    n_prompt: usize,
    /// Tokens of the answer at hand.
    n_tokens: usize,
    /// Tokens that are expected of an answer, once one was seen.
    answer_tokens: Option<f64>,
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

    /// What was learned of these drafters, the names in their order.
    pub(super) fn learned(&self, names: &[&'static str]) -> Learned {
        let of = names.iter().zip(&self.acceptance);
        Learned {
            credit: self.credit,
            answer_tokens: self.answer_tokens.unwrap_or(ANSWER_TOKENS),
            acceptance: of
                .map(|(name, acceptance)| ((*name).to_owned(), acceptance.clone()))
                .collect(),
        }
    }

    /// Goes on from what another session has learned of drafters of these names.
    pub(super) fn set_learned(&mut self, learned: Learned, names: &[&'static str]) {
        self.credit = learned.credit;
        self.answer_tokens = Some(learned.answer_tokens);
        for (name, acceptance) in learned.acceptance {
            if let Some(at) = names.iter().position(|own| *own == name) {
                self.acceptance[at].go_on_from(acceptance);
            }
        }
    }

    /// Starts an answer to a prompt of `n_prompt` rows.
    pub(super) fn begin(&mut self, n_prompt: usize) {
        self.n_prompt = n_prompt;
        self.n_tokens = 0;
        self.has_begun.clear();
        self.has_begun.resize(self.acceptance.len(), false);
    }

    /// Ends an answer, which was drafted or could have been.
    pub(super) fn end(&mut self) {
        let seen = self.n_tokens as f64;
        let expected = self.answer_tokens.get_or_insert(seen);
        *expected += ANSWER_RATE * (seen - *expected);
    }

    /// Plain steps that this answer is expected to take yet.
    fn left(&self) -> f64 {
        let expected = self.answer_tokens.unwrap_or(ANSWER_TOKENS);
        // One that is longer than others already may be any longer.
        let left = (expected - self.n_tokens as f64).max(expected / 4.0);
        left.max(1.0)
    }

    /// The draft with the best rate, of at most `n_max` tokens; `None` if no draft is better.
    pub(super) fn choose(&mut self, candidates: &[Candidate], n_max: usize) -> Option<Choice> {
        let costs = self.costs.as_ref()?;
        let left = self.left();
        let mut best = (LEAST_RATE, None);
        for candidate in candidates {
            let Candidate {
                drafter, outlook, ..
            } = *candidate;
            let expected = self.acceptance[drafter].expected_tokens(outlook.class);
            let token = costs.token(candidate.name);
            let once = match self.has_begun[drafter] {
                true => 0.0,
                false => costs.start(candidate.name, self.n_prompt),
            };
            for n in 1..=n_max.min(outlook.n).min(MAX_DRAFT) {
                let cost = costs.pass(n + 1) + token * n as f64;
                let rate = left / (left * cost / expected[n - 1] + once);
                // At worst a pass gives one token.
                let is_covered = once + cost - 1.0 <= self.credit;
                if rate > best.0 && is_covered {
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
    /// it, the draft that was `made` included.
    pub(super) fn saw_pass(
        &mut self,
        n_rows: usize,
        pass_ms: f64,
        drafting_ms: f64,
        made: Option<Made>,
    ) {
        let Some(costs) = &mut self.costs else {
            return;
        };
        let plain = costs.plain_ms();
        let expected = costs.pass_ms(n_rows);
        if n_rows > 1 {
            // Tokens are added when it is known how many there are.
            self.credit -= pass_ms.clamp(expected / SURPRISE, expected * SURPRISE) / plain;
        }
        let mut expected_ms = plain;
        if let Some(made) = made {
            let has_begun = self.has_begun.get_mut(made.drafter);
            let has_begun = has_begun.is_some_and(|begun| std::mem::replace(begun, true));
            let once = match has_begun {
                true => 0.0,
                false => costs.start(made.name, self.n_prompt),
            };
            expected_ms += plain * (once + costs.token(made.name) * made.asked as f64);
            match has_begun {
                true => costs.saw_draft(made.name, made.proposed, made.ms),
                false => costs.saw_start(made.name, self.n_prompt, made.proposed, made.ms),
            }
        }
        self.credit -= drafting_ms.min(expected_ms * SURPRISE) / plain;
        costs.saw_pass(n_rows, pass_ms);
    }

    /// Takes note of the tokens that a pass gave, which had a draft to check if `is_drafted`. `asked` is who was
    /// asked for one, how many of its tokens were tested, and how many accepted.
    pub(super) fn saw_tokens(
        &mut self,
        n_tokens: usize,
        is_drafted: bool,
        asked: Option<(Choice, usize, usize)>,
    ) {
        // The first token of an answer comes from its prompt.
        let n_steps = n_tokens - usize::from(self.n_tokens == 0).min(n_tokens);
        self.n_tokens += n_tokens;
        let mut gain = ALLOWANCE * n_steps as f64;
        if let Some((choice, n_tested, n_accepted)) = asked {
            self.acceptance[choice.drafter].saw(choice.class, n_tested, n_accepted);
        }
        if is_drafted {
            gain += n_tokens as f64;
        }
        let starts = self
            .costs
            .as_ref()
            .map(|costs| costs.dearest_start(self.n_prompt));
        let most = MOST_CREDIT + starts.unwrap_or(0.0);
        self.credit = (self.credit + gain).min(most);
    }
}
