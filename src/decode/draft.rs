//! What a drafter is: something that guesses the next tokens, for the target to check.

use crate::backend::Prefill;
use crate::error::{Error, Result};

/// Most tokens of one draft: a longer one costs more rows than it can be expected to win.
pub const MAX_DRAFT: usize = 8;

/// Furthest that the probabilities of a draft may be from a sum of 1.
const SUM_TOLERANCE: f64 = 1e-3;

/// Tokens that a drafter proposes, first one first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Draft {
    /// The ids.
    pub ids: Vec<u32>,
    /// For ids that were drawn at random: the distribution of each, probabilities by id, which sum
    /// to 1. Empty for ids that were chosen.
    pub drawn_from: Vec<Vec<(u32, f32)>>,
}

impl Draft {
    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.ids.clear();
        self.drawn_from.clear();
    }

    /// Says what makes a draft unfit to be checked by a target with `n_vocab` ids.
    pub(super) fn fault(&self, n_vocab: usize) -> Option<String> {
        if let Some(id) = self.ids.iter().find(|&&id| id as usize >= n_vocab) {
            return Some(format!("it proposed id {id}, the model has {n_vocab}"));
        }
        if self.drawn_from.is_empty() {
            return None;
        }
        if self.drawn_from.len() != self.ids.len() {
            let n = self.drawn_from.len();
            return Some(format!("{n} distributions for {} ids", self.ids.len()));
        }
        let unfit = |(&id, distribution): (&u32, &Vec<(u32, f32)>)| {
            let mut sum = 0.0;
            let mut has_id = false;
            for &(other, probability) in distribution {
                // Written so that a NaN is unfit, too.
                if !(0.0..=1.0).contains(&probability) || other as usize >= n_vocab {
                    return true;
                }
                has_id |= other == id && probability > 0.0;
                sum += f64::from(probability);
            }
            !has_id || (sum - 1.0).abs() > SUM_TOLERANCE
        };
        let mut pairs = self.ids.iter().zip(&self.drawn_from);
        let unfit = pairs.any(unfit);
        unfit.then(|| "its probabilities are none (NaN, or not summing to 1)".to_owned())
    }
}

/// Tokens that the target has chosen.
#[derive(Debug, Clone, Copy)]
pub struct Accepted<'a> {
    /// The ids, in order: accepted drafts, then the target's own.
    pub ids: &'a [u32],
    /// `[ids, d_model]` f32: for each id the hidden state from which the target chose it, where
    /// the backend keeps hidden states.
    pub hidden: Option<&'a [f32]>,
}

/// What a drafter could propose now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// Most tokens that it can propose.
    pub n: usize,
    /// How sure it is, below [`CLASSES`](Self::CLASSES): drafts of one class fare alike. A drafter
    /// that cannot tell always says 0.
    pub class: usize,
}

impl Outlook {
    /// Number of classes.
    pub const CLASSES: usize = 8;
}

/// Guesses the next tokens of an answer.
///
/// The target decides: a drafter can make an answer slower, never another one. Calls come in the
/// order `begin`, `accept` (after the prefill and after each pass), `outlook` and perhaps `propose`
/// before each pass, `end`. After an error a drafter is not asked again until the next `begin`.
///
/// A drafter that runs layers of the target is made by the backend, which holds what both share,
/// and finds in `accept` the rows that stay.
pub trait Drafter: Send {
    /// Name, as in `--draft`.
    fn name(&self) -> &'static str;

    /// Share of its tokens that is likely to be accepted, from 0 to 1, where that is known before it was ever
    /// asked.
    fn known_acceptance(&self) -> Option<f64> {
        None
    }

    /// Starts an answer; what `accept` told of the one before may be forgotten.
    ///
    /// # Errors
    /// Any; drafting is then off for this answer.
    fn begin(&mut self, prompt: &Prefill<'_>) -> Result<()>;

    /// Takes note of tokens of the answer.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    fn accept(&mut self, tokens: Accepted<'_>) -> Result<()>;

    /// Says at next to no cost what could be proposed now, if anything.
    fn outlook(&mut self) -> Option<Outlook>;

    /// Writes at most `n` tokens that may follow into `draft`, which is empty.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); [`Error::Logits`] if a draft model returned NaN.
    fn propose(&mut self, n: usize, draft: &mut Draft) -> Result<()>;

    /// Ends the answer, which a drafter may remember for later ones.
    fn end(&mut self);

    /// Forgets earlier answers.
    fn forget(&mut self) {}
}

/// Why drafting was switched off, for people.
pub(super) fn fault_of(error: &Error) -> String {
    match error {
        Error::Logits { what, .. } => format!("its model returned {what}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draft_that_no_target_can_check_is_unfit() {
        let drawn = |ids: &[u32], drawn_from: &[&[(u32, f32)]]| Draft {
            ids: ids.to_vec(),
            drawn_from: drawn_from.iter().map(|d| d.to_vec()).collect(),
        };
        let half: &[(u32, f32)] = &[(1, 0.5), (2, 0.5)];
        for fit in [
            drawn(&[], &[]),
            drawn(&[9, 0], &[]),
            drawn(&[1, 2], &[half, half]),
            drawn(&[3], &[&[(3, 1.0)]]),
        ] {
            assert_eq!(fit.fault(10), None, "{fit:?}");
        }
        for (unfit, why) in [
            (drawn(&[1, 10], &[]), "id 10"),
            (drawn(&[u32::MAX], &[]), "id 4294967295"),
            (drawn(&[1, 2], &[half]), "1 distributions for 2"),
            (drawn(&[3], &[half]), "probabilities"),
            (drawn(&[1], &[&[(1, 0.0), (2, 1.0)]]), "probabilities"),
            (drawn(&[1], &[&[(1, 0.5)]]), "probabilities"),
            (drawn(&[1], &[&[(1, f32::NAN)]]), "probabilities"),
            (drawn(&[1], &[&[(1, -0.5), (2, 1.5)]]), "probabilities"),
            (drawn(&[1], &[&[(1, 0.5), (10, 0.5)]]), "probabilities"),
        ] {
            let fault = unfit.fault(10).expect("unfit");
            assert!(fault.contains(why), "{unfit:?}: {fault}");
        }
    }
}
