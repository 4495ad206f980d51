//! Drafts of a model that was trained for the target.

use super::draft::{Accepted, Draft, Drafter, MAX_DRAFT, Outlook};
use crate::backend::{DraftModel, Prefill};
use crate::error::{Error, Result};

/// Least probability of a token that is proposed: what is less likely costs a row of the target, and the
/// drafts after it are of no use where it is refused.
pub const LEAST_PROBABILITY: f32 = 0.3;

/// Proposes what a [`DraftModel`] takes for most likely, token after token, until it is unsure or
/// the answer would end.
pub struct Trained {
    model: Box<dyn DraftModel>,
    /// Ids that end an answer: nothing is drafted after them.
    eos: Vec<u32>,
    /// Tokens that the target took since the model was asked last, and their hidden states: a model
    /// that nobody asks costs nothing.
    ids: Vec<u32>,
    hidden: Vec<f32>,
}

impl Trained {
    /// Drafts with `model` for a target whose answers end with one of `eos`.
    pub fn new(model: Box<dyn DraftModel>, eos: &[u32]) -> Self {
        Self {
            model,
            eos: eos.to_vec(),
            ids: Vec::new(),
            hidden: Vec::new(),
        }
    }

    /// The most likely id if it is likely enough.
    fn best(&self, logits: &[f32]) -> Result<Option<u32>> {
        let mut best = (f32::NEG_INFINITY, 0);
        for (at, &logit) in logits.iter().enumerate() {
            // Infinity as much as NaN: neither is a logit.
            if !logit.is_finite() {
                let what = "logits that are not numbers";
                return Err(Error::Logits { what, step: 0 });
            }
            if logit > best.0 {
                best = (logit, at);
            }
        }
        let sum: f32 = logits.iter().map(|logit| (logit - best.0).exp()).sum();
        let id = self.model.vocabulary().get(best.1).copied();
        Ok(id.filter(|_| sum * LEAST_PROBABILITY <= 1.0))
    }
}

impl Drafter for Trained {
    fn name(&self) -> &'static str {
        self.model.name()
    }

    fn known_acceptance(&self) -> Option<f64> {
        Some(self.model.acceptance())
    }

    fn begin(&mut self, prompt: &Prefill<'_>) -> Result<()> {
        self.ids.clear();
        self.hidden.clear();
        self.model.begin(prompt);
        Ok(())
    }

    fn accept(&mut self, tokens: Accepted<'_>) -> Result<()> {
        self.ids.extend_from_slice(tokens.ids);
        self.hidden.extend_from_slice(tokens.hidden.unwrap_or(&[]));
        Ok(())
    }

    fn outlook(&mut self) -> Option<Outlook> {
        let n = MAX_DRAFT;
        (!self.ids.is_empty()).then_some(Outlook { n, class: 0 })
    }

    fn propose(&mut self, n: usize, draft: &mut Draft) -> Result<()> {
        let mut logits = self.model.take(&self.ids, &self.hidden)?;
        self.ids.clear();
        self.hidden.clear();
        while let Some(id) = self.best(&logits)? {
            draft.ids.push(id);
            if draft.ids.len() >= n || self.eos.contains(&id) {
                break;
            }
            logits = self.model.guess(id)?;
        }
        Ok(())
    }

    fn end(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{Script, ScriptedDraft};
    use super::*;

    const SCRIPT: Script = Script {
        seed: 11,
        n_vocab: 40,
        order: 2,
        n_levels: 1000,
    };

    /// What is drafted after the first token of an answer.
    fn drafted(model: ScriptedDraft, eos: &[u32], n: usize) -> Result<Vec<u32>> {
        let mut trained = Trained::new(Box::new(model), eos);
        let prompt = Prefill {
            ids: &[4, 2],
            positions: &[0, 1],
            visual: &[],
            image_token: u32::MAX,
            reserve: 16,
        };
        let mut draft = Draft::default();
        trained.begin(&prompt)?;
        assert_eq!(trained.outlook(), None, "nothing was chosen yet");
        trained.accept(Accepted {
            ids: &[6],
            hidden: Some(&[2.0, 2.0]),
        })?;
        trained.propose(n, &mut draft)?;
        assert_eq!(
            trained.outlook(),
            None,
            "nothing is known of what came of it"
        );
        Ok(draft.ids)
    }

    fn all_ids(noise: f32) -> ScriptedDraft {
        let mut model = ScriptedDraft::new(SCRIPT, noise);
        model.vocabulary = (0..40).collect();
        model
    }

    #[test]
    fn draft_is_what_the_model_says_up_to_the_end_of_the_answer() {
        let mut ids = vec![4, 2, 6];
        for _ in 0..5 {
            ids.push(SCRIPT.next(&ids));
        }
        let expected = &ids[3..];
        assert_eq!(drafted(all_ids(0.0), &[], 5).expect("draft"), expected);
        assert_eq!(drafted(all_ids(0.0), &[], 1).expect("draft"), expected[..1]);
        let ended = drafted(all_ids(0.0), &[expected[2]], 5).expect("draft");
        assert_eq!(ended, expected[..3]);
    }

    #[test]
    fn draft_of_a_model_that_is_unsure_is_empty() {
        let mut model = all_ids(0.0);
        // Two logits, far from certainty.
        model.script.n_levels = 1;
        assert_eq!(drafted(model, &[], 5).expect("draft"), [0u32; 0]);
    }

    #[test]
    fn logits_that_are_not_numbers_are_an_error() {
        use super::super::scripted::Fault;
        let mut model = all_ids(0.0);
        model.fault = Some((1, Fault::NotANumber));
        let error = drafted(model, &[], 5).expect_err("NaN");
        assert!(matches!(error, Error::Logits { .. }), "{error}");
    }
}
