//! The three graphs of a model and how each is prepared.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::accepted;
use super::shapes::{self, Capacity};
use crate::backend::contract;
use crate::bundle::Precision;
use crate::error::Result;
use crate::model::{Model, ModelConfig};
use crate::onnx::passes::{self, Fp16Options, LowerOptions};
use crate::onnx::{DataType, OnnxModel};

/// The components in the order in which they are built.
pub const COMPONENTS: [ComponentKind; 3] = [
    ComponentKind::Vision,
    ComponentKind::Embed,
    ComponentKind::Decoder,
];

/// One of the three graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ComponentKind {
    /// Pixels to visual tokens.
    Vision,
    /// Token ids to rows.
    Embed,
    /// Rows to logits.
    Decoder,
}

impl ComponentKind {
    /// Name in manifests and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Embed => "embed",
            Self::Decoder => "decoder",
        }
    }

    /// Its file in a model folder.
    pub fn source(self, model: &Model) -> &Path {
        match self {
            Self::Vision => &model.files.vision,
            Self::Embed => &model.files.embed,
            Self::Decoder => &model.files.decoder,
        }
    }

    fn check(self, graph: &OnnxModel, config: &ModelConfig) -> Result<()> {
        match self {
            Self::Vision => contract::check_vision(graph, config),
            Self::Embed => contract::check_embed(graph, config),
            Self::Decoder => contract::check_decoder(graph, config),
        }
    }
}

/// What runs a prepared graph, as far as the graph has to differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runner {
    /// The CPU engine: any shape and operator, computes in FP32 whatever the weights are.
    Cpu,
    /// TensorRT: fixed shapes where nothing varies, inputs and outputs in the graph's precision.
    TensorRt,
}

/// Reads a component, checks it, and prepares it for a runner.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io) or [`Error::Malformed`](crate::Error::Malformed) if the file
/// cannot be read, [`Error::Shape`](crate::Error::Shape) if its tensors are not the family's,
/// [`Error::Unsupported`](crate::Error::Unsupported) if it has operators that TensorRT does not
/// take, [`Error::Cancelled`](crate::Error::Cancelled) soon after `cancel` is set.
pub fn prepare(
    kind: ComponentKind,
    model: &Model,
    runner: Runner,
    precision: Precision,
    capacity: &Capacity,
    cancel: &Arc<AtomicBool>,
) -> Result<OnnxModel> {
    let mut graph = OnnxModel::load(kind.source(model))?;
    graph.cancel_with(cancel.clone());
    kind.check(&graph, &model.config)?;
    if kind == ComponentKind::Decoder {
        passes::select_logit_rows(&mut graph)?;
    }
    match (runner, precision) {
        (Runner::Cpu, Precision::Fp16) => {
            passes::store_weights_fp16(&mut graph)?;
        }
        (Runner::Cpu, _) => {}
        (Runner::TensorRt, precision) => {
            let dims = shapes::fixed_dims(kind, &graph, &model.config, capacity)?;
            let dims: Vec<(&str, usize)> =
                dims.iter().map(|(name, n)| (name.as_str(), *n)).collect();
            if kind == ComponentKind::Decoder {
                cut_for_fixed_cache(&mut graph, &model.config, precision)?;
            }
            if precision == Precision::Fp16 {
                passes::prepare_fp16(&mut graph, &dims, &Fp16Options::default())?;
            } else {
                passes::prepare_fp32(&mut graph, &dims)?;
            }
            accepted::check(&graph)?;
        }
    }
    Ok(graph)
}

/// Makes a decoder whose cache is a block of fixed capacity that the runtime owns: it returns the
/// new rows, and repeats no keys.
fn cut_for_fixed_cache(
    graph: &mut OnnxModel,
    config: &ModelConfig,
    precision: Precision,
) -> Result<()> {
    let family = config.family;
    let weights = match precision {
        Precision::Fp16 => DataType::F16,
        _ => DataType::F32,
    };
    let weights = Some(weights);
    passes::lower(graph, &LowerOptions { weights })?;
    passes::return_new_rows(graph, family.past_prefix, family.present_prefix)?;
    let n_grouped = passes::group_queries(graph, config.n_heads, config.n_kv_heads)?;
    tracing::debug!(graph = %graph.path().display(), n_grouped, "cut for a fixed cache");
    Ok(())
}
