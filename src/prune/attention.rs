//! `attention`: what the question looks at.

use super::policy::{Inputs, Kept, Needs, Policy};
use super::top::top_k;
use crate::error::Result;

/// Keeps the rows that the question's tokens attend to most, in the model itself.
///
/// The attention is that of FastV (arXiv 2403.06764), taken before the language model's main pass
/// instead of within it; the backend, which has the model, says of which layers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attention;

impl Policy for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn needs(&self) -> Needs {
        Needs {
            saliency: true,
            ..Needs::default()
        }
    }

    fn select(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept> {
        let scores = inputs.saliency.unwrap_or_default().to_vec();
        Ok(Kept {
            indices: top_k(&scores, keep),
            scores,
            merge: None,
        })
    }
}
