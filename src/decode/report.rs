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
        }
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
