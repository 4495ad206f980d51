//! How drafts fared.

use serde::Serialize;

/// Name of no drafter.
const OFF: &str = "off";

/// A greedy choice that hung by less may fall otherwise in a pass of another number of rows: the
/// rounding of FP32 logits on the CPU, with a factor of ten to spare.
pub const NEAR_TIE: f32 = 1e-4;

/// What speculative decoding did for one answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The drafter that proposed most; `off` if none did.
    pub draft: &'static str,
    /// Passes of the decoder after the prefill.
    pub steps: usize,
    /// Draft tokens that were proposed.
    pub proposed: usize,
    /// Draft tokens that stand in the answer.
    pub accepted: usize,
    /// The same by place in the draft, the first token of a draft first.
    pub by_position: Vec<Position>,
    /// Tokens of the answer after the first, for each pass; `None` without a pass.
    pub tokens_per_pass: Option<f64>,
    /// Share of the time after the first token that drafters took, 0 to 1.
    pub drafter_share: f64,
    /// Greedy choices in passes of several rows that hung by less than [`NEAR_TIE`].
    pub near_ties: Vec<NearTie>,
    /// Why drafting was switched off for the rest of the answer, if it was.
    pub switched_off: Option<String>,
    /// Draft tokens that were refused first in their drafts.
    #[serde(skip)]
    pub refused: Vec<Refused>,
}

/// A draft token that the target refused, and its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Name of the drafter.
    pub drafter: &'static str,
    /// Place in the answer, from 0.
    pub index: usize,
    /// What was proposed.
    pub drafted: u32,
    /// What the target took instead.
    pub chosen: u32,
}

/// Drafts at one place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Position {
    /// Draft tokens that were proposed.
    pub proposed: usize,
    /// Draft tokens that stand in the answer.
    pub accepted: usize,
}

/// A choice between two tokens that were almost equally likely.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct NearTie {
    /// Place in the answer, from 0.
    pub index: usize,
    /// Logit of the chosen token less that of the next one.
    pub margin: f32,
}

impl Default for Report {
    fn default() -> Self {
        Self {
            draft: OFF,
            steps: 0,
            proposed: 0,
            accepted: 0,
            by_position: Vec::new(),
            tokens_per_pass: None,
            drafter_share: 0.0,
            near_ties: Vec::new(),
            switched_off: None,
            refused: Vec::new(),
        }
    }
}

/// How drafts fared in many answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// Passes of the decoder after the prefills.
    pub steps: usize,
    /// Draft tokens that were proposed.
    pub proposed: usize,
    /// Draft tokens that stand in the answers.
    pub accepted: usize,
    /// The same by place in the draft, the first token of a draft first.
    pub by_position: Vec<Position>,
    /// Tokens of the answers after their first ones, for each pass; `None` without a pass.
    pub tokens_per_pass: Option<f64>,
    /// Mean share of the time after the first token that drafters took, of answers with a pass, 0 to 1.
    pub drafter_share: f64,
    /// Near ties of all answers.
    pub near_ties: usize,
    /// Answers in which drafting was switched off.
    pub switched_off: usize,
}

impl Totals {
    /// Adds up the reports of answers.
    pub fn of<'a>(reports: impl Iterator<Item = &'a Report>) -> Self {
        let mut totals = Self::default();
        let (mut tokens, mut shares, mut n_drafted) = (0.0, 0.0, 0);
        for report in reports {
            totals.steps += report.steps;
            totals.proposed += report.proposed;
            totals.accepted += report.accepted;
            totals.near_ties += report.near_ties.len();
            totals.switched_off += usize::from(report.switched_off.is_some());
            tokens += report.tokens_per_pass.unwrap_or(0.0) * report.steps as f64;
            shares += report.drafter_share;
            n_drafted += usize::from(report.steps > 0);
            let n = totals.by_position.len().max(report.by_position.len());
            totals.by_position.resize(n, Position::default());
            for (sum, position) in totals.by_position.iter_mut().zip(&report.by_position) {
                sum.proposed += position.proposed;
                sum.accepted += position.accepted;
            }
        }
        totals.drafter_share = shares / n_drafted.max(1) as f64;
        totals.tokens_per_pass = (totals.steps > 0).then(|| tokens / totals.steps as f64);
        totals
    }
}

impl Report {
    /// Counts one draft of `proposed` tokens.
    pub(super) fn count(&mut self, proposed: usize, accepted: usize) {
        self.proposed += proposed;
        self.accepted += accepted;
        if self.by_position.len() < proposed {
            self.by_position.resize(proposed, Position::default());
        }
        for (at, position) in self.by_position[..proposed].iter_mut().enumerate() {
            position.proposed += 1;
            position.accepted += usize::from(at < accepted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_add_up_answers_with_drafts_of_different_lengths() {
        let mut long = Report::default();
        long.count(3, 2);
        long.count(3, 0);
        (long.steps, long.tokens_per_pass) = (4, Some(1.5));
        let mut short = Report::default();
        short.count(1, 1);
        (short.steps, short.tokens_per_pass) = (1, Some(2.0));
        (long.drafter_share, short.drafter_share) = (0.2, 0.4);
        short.switched_off = Some("a reason".to_owned());
        let totals = Totals::of([&short, &long, &Report::default()].into_iter());
        let at = |proposed, accepted| Position { proposed, accepted };
        assert_eq!(totals.by_position, [at(3, 2), at(2, 1), at(2, 0)]);
        assert_eq!((totals.proposed, totals.accepted), (7, 3));
        assert_eq!((totals.steps, totals.tokens_per_pass), (5, Some(1.6)));
        assert_eq!((totals.near_ties, totals.switched_off), (0, 1));
        assert!((totals.drafter_share - 0.3).abs() < 1e-9);
        assert_eq!(Totals::of([].into_iter()).tokens_per_pass, None);
    }
}
