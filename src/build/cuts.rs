//! What a build changes in a decoder because the user asks for it.

use crate::backend::contract;
use crate::bundle::Precision;
use crate::error::Result;
use crate::model::{DraftKind, DraftSpec, Model, ModelConfig};
use crate::onnx::OnnxModel;
use crate::onnx::passes::{self, NEW_PREFIX, Tap};

/// Changes of a decoder that are off by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Inner values that become outputs.
    pub taps: Vec<Tap>,
    /// Largest part of the LM head's weight in an engine, in bytes.
    pub head_bytes: Option<u64>,
}

impl Cuts {
    /// Adds the taps to a lowered decoder that returns its whole cache.
    pub(super) fn tap(&self, graph: &mut OnnxModel, config: &ModelConfig) -> Result<()> {
        passes::add_taps(graph, &self.taps, &contract::tap_names(config))
    }

    /// Adds the taps to a lowered decoder that returns new rows of its cache and becomes a plan, from which no
    /// tap can be cut later: with what the model's draft reads, if it has one.
    pub(super) fn tap_plan(&self, graph: &mut OnnxModel, model: &Model) -> Result<()> {
        let mut taps = self.taps.clone();
        let is_drafted = DraftSpec::read(&model.dir, DraftKind::Head)?.is_some();
        if is_drafted && !taps.contains(&Tap::Hidden) {
            taps.push(Tap::Hidden);
        }
        let mut names = contract::tap_names(&model.config);
        names.present = NEW_PREFIX;
        passes::add_taps(graph, &taps, &names)
    }

    /// Splits the LM head, if asked to; `precision` is that of the engine.
    pub(super) fn split(&self, graph: &mut OnnxModel, precision: Precision) -> Result<()> {
        let Some(bytes) = self.head_bytes else {
            return Ok(());
        };
        let bits = match precision {
            Precision::Fp32 => 32,
            Precision::Fp16 => 16,
            Precision::Int8 | Precision::Int8Weights => 8,
            Precision::Int4Weights => 4,
        };
        let n_parts = passes::split_lm_head(graph, bytes.saturating_mul(8) / bits)?;
        tracing::debug!(graph = %graph.path().display(), n_parts, "split the LM head");
        Ok(())
    }
}
