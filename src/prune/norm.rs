//! `norm`: the length of a row.

use super::policy::{DeviceScore, Inputs, Kept, Needs, Policy};
use super::top::top_k;
use crate::error::Result;

/// Keeps the shortest rows: `score = -|x|`.
///
/// Towers store what concerns the whole picture in a few long rows, where the picture itself says
/// little ("Vision Transformers Need Registers", arXiv 2309.16588); on the demo model, too, the
/// shortest rows answer better than the longest (`docs/pruning.md`). A baseline: it does not know
/// the question.
#[derive(Debug, Clone, Copy, Default)]
pub struct Norm;

impl Policy for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn needs(&self) -> Needs {
        Needs {
            features: true,
            ..Needs::default()
        }
    }

    fn device_score(&self) -> Option<DeviceScore> {
        Some(DeviceScore::Shortness)
    }

    fn select(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept> {
        let norms = inputs.features.norms()?;
        let scores: Vec<f32> = norms.into_iter().map(|norm| -norm).collect();
        Ok(Kept {
            indices: top_k(&scores, keep),
            scores,
            merge: None,
        })
    }
}
