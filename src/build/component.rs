//! The three graphs of a model and how each is prepared.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::accepted;
use super::cuts::Cuts;
use super::quantization::{Quantization, quantized_fp32};
use super::shapes::{self, Capacity};
use crate::backend::contract;
use crate::bundle::Precision;
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig};
use crate::onnx::passes::{self, Fp16Options, LowerOptions, PackedWeights};
use crate::onnx::{DataType, OnnxModel};
use crate::quantize::{GraphRanges, QuantizeReport, balance};

/// The components in the order in which they are built.
pub const COMPONENTS: [ComponentKind; 3] = [
    ComponentKind::Vision,
    ComponentKind::Embed,
    ComponentKind::Decoder,
];

/// One of the three graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

    /// The component with this name, as manifests have it.
    pub fn of_name(name: &str) -> Option<Self> {
        COMPONENTS.into_iter().find(|kind| kind.name() == name)
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
    /// Any runtime of the ONNX standard: inputs and outputs as hubs publish them, in FP32.
    Onnx,
}

/// How a graph computes.
#[derive(Debug, Clone, Copy)]
pub struct Numerics<'a> {
    /// Precision of weights and activations.
    pub precision: Precision,
    /// How integers come into it; needed by the precisions that have any. Of FP16 its ranges say what
    /// stays FP32.
    pub quantization: Option<&'a Quantization>,
}

impl Numerics<'_> {
    /// How integers come into the graphs, if the precision has any.
    pub(super) fn in_use(&self) -> Option<&Quantization> {
        let floats = matches!(self.precision, Precision::Fp32 | Precision::Fp16);
        self.quantization.filter(|_| !floats)
    }

    /// What was seen of a component's values, for a graph in FP16.
    fn seen(&self, kind: ComponentKind) -> Result<Option<GraphRanges>> {
        let observed = kind != ComponentKind::Embed && self.precision == Precision::Fp16;
        match self.quantization.filter(|_| observed) {
            Some(quantization) => Ok(quantization.ranges(kind)?.cloned()),
            None => Ok(None),
        }
    }

    /// How a component is quantized, if it is.
    fn integers(&self, kind: ComponentKind) -> Result<Option<&Quantization>> {
        if matches!(self.precision, Precision::Fp32 | Precision::Fp16) {
            return Ok(None);
        }
        let quantization = self.quantization.ok_or_else(|| Error::Argument {
            name: "precision",
            reason: format!("{} needs to be told what becomes integers", self.precision),
        })?;
        Ok(Some(quantization).filter(|quantization| quantization.concerns(kind)))
    }
}

/// A component that is ready to be built or run.
#[derive(Debug)]
pub struct Prepared {
    /// Its graph.
    pub graph: OnnxModel,
    /// What became integers, in the graphs that have linear operators.
    pub report: Option<QuantizeReport>,
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
    numerics: Numerics<'_>,
    cuts: &Cuts,
    capacity: &Capacity,
    cancel: &Arc<AtomicBool>,
) -> Result<Prepared> {
    let mut graph = OnnxModel::load(kind.source(model))?;
    graph.cancel_with(cancel.clone());
    kind.check(&graph, &model.config)?;
    if kind == ComponentKind::Decoder {
        passes::select_logit_rows(&mut graph)?;
        let family = model.config.family;
        passes::place_rows(&mut graph, family.position_ids, family.inputs_embeds);
    }
    let integers = numerics.integers(kind)?;
    if kind == ComponentKind::Decoder && runner != Runner::TensorRt && !cuts.taps.is_empty() {
        let options = lower_options(runner, numerics.precision, integers);
        passes::lower(&mut graph, &options)?;
        cuts.tap(&mut graph, &model.config)?;
    }
    let report = match (runner, integers) {
        (Runner::Cpu | Runner::Onnx, Some(quantization)) => {
            let report = quantized_fp32(kind, &mut graph, quantization)?;
            if runner == Runner::Cpu {
                passes::pack_blocks(&mut graph)?;
            }
            report
        }
        (Runner::Onnx, None) => {
            let seen = numerics.seen(kind)?;
            for_any_runtime(&mut graph, numerics.precision, seen)?;
            None
        }
        (Runner::Cpu, None) => {
            // What is not made of integers is stored in half the bytes, whatever the rest is.
            if numerics.precision != Precision::Fp32 {
                passes::store_weights_fp16(&mut graph)?;
            }
            None
        }
        (Runner::TensorRt, _) => for_tensorrt(kind, &mut graph, model, numerics, cuts, capacity)?,
    };
    if runner == Runner::Onnx {
        passes::all_logit_rows(&mut graph);
    }
    Ok(Prepared { graph, report })
}

/// Lowers a component and gives every float its type, but those of inputs and outputs.
fn for_any_runtime(
    graph: &mut OnnxModel,
    precision: Precision,
    mut seen: Option<GraphRanges>,
) -> Result<()> {
    if precision == Precision::Fp32 {
        return passes::prepare_fp32(graph, &[]);
    }
    passes::lower(graph, &lower_options(Runner::Onnx, precision, None))?;
    balance(graph, seen.as_mut())?;
    let options = Fp16Options {
        io: DataType::F32,
        ..fp16_options(seen)
    };
    passes::prepare_fp16(graph, &[], &options)?;
    Ok(())
}

/// FP16 where nothing says more, or what was seen of the graph's values.
fn fp16_options(seen: Option<GraphRanges>) -> Fp16Options {
    Fp16Options {
        seen: seen.map(|ranges| ranges.seen()).unwrap_or_default(),
        ..Fp16Options::default()
    }
}

/// Makes a component what TensorRT builds: sizes fixed, the decoder cut, every float typed.
fn for_tensorrt(
    kind: ComponentKind,
    graph: &mut OnnxModel,
    model: &Model,
    numerics: Numerics<'_>,
    cuts: &Cuts,
    capacity: &Capacity,
) -> Result<Option<QuantizeReport>> {
    let (precision, integers) = (numerics.precision, numerics.integers(kind)?);
    let dims = shapes::fixed_dims(kind, graph, &model.config, capacity)?;
    let dims: Vec<(&str, usize)> = dims.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    if kind == ComponentKind::Decoder {
        let options = lower_options(Runner::TensorRt, precision, integers);
        cut_for_fixed_cache(graph, &model.config, &options)?;
        cuts.tap_plan(graph, model)?;
    }
    let mut report = None;
    // Behind what may stand between the LM head and its weight, before that becomes integers.
    let split = |graph: &mut OnnxModel| match kind {
        ComponentKind::Decoder => cuts.split(graph, precision),
        _ => Ok(()),
    };
    if let Some(quantization) = integers {
        passes::prepare_plain(graph, &dims)?;
        split(graph)?;
        report = quantization.apply(kind, graph)?;
        passes::to_fp16(graph, &Fp16Options::default())?;
    } else if precision == Precision::Fp32 {
        passes::prepare_fp32(graph, &dims)?;
        split(graph)?;
    } else {
        let mut seen = numerics.seen(kind)?;
        if kind == ComponentKind::Decoder {
            balance(graph, seen.as_mut())?;
        }
        passes::prepare_fp16(graph, &dims, &fp16_options(seen))?;
        split(graph)?;
    }
    accepted::check(graph)?;
    Ok(report)
}

/// How packed weights are lowered. Integers are made of what the file has, not of its FP16
/// roundings.
fn lower_options(
    runner: Runner,
    precision: Precision,
    integers: Option<&Quantization>,
) -> LowerOptions {
    let weights = match (precision, integers) {
        (Precision::Fp32, _) | (_, Some(_)) => DataType::F32,
        _ => DataType::F16,
    };
    LowerOptions {
        weights: Some(weights),
        packed: match integers.is_some_and(Quantization::keeps_blocks) {
            true if runner == Runner::TensorRt => PackedWeights::PositiveBlocks,
            true => PackedWeights::Blocks,
            false => PackedWeights::Floats,
        },
    }
}

/// Makes a decoder whose cache is a block of fixed capacity that the runtime owns: it returns the
/// new rows, and repeats no keys.
fn cut_for_fixed_cache(
    graph: &mut OnnxModel,
    config: &ModelConfig,
    options: &LowerOptions,
) -> Result<()> {
    let family = config.family;
    passes::lower(graph, options)?;
    passes::return_new_rows(graph, family.past_prefix, family.present_prefix)?;
    let n_grouped = passes::group_queries(graph, config.n_heads, config.n_kv_heads)?;
    tracing::debug!(graph = %graph.path().display(), n_grouped, "cut for a fixed cache");
    Ok(())
}
