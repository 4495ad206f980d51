//! From a lowered graph and observed ranges to a quantized graph.

use serde::Serialize;

use super::insert::{insert, insert_tables};
use super::options::{QuantizeOptions, Scheme};
use super::plan::{Action, Kept, Plan, decide};
use super::ranges::GraphRanges;
use super::smooth::{Smoothed, multiply, smooth};
use crate::error::{Error, Result};
use crate::onnx::OnnxModel;
use crate::onnx::passes::{fold_scales, raise_opset, sort_nodes};

/// What was quantized, and what was not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuantizeReport {
    /// What became integers.
    pub scheme: Scheme,
    /// Nodes that compute with quantized operands.
    pub quantized: Vec<String>,
    /// Those of them that read floats: their weights alone are integers.
    pub weights_only: Vec<String>,
    /// Nodes that were left, with their operators and the reasons.
    pub kept: Vec<KeptNode>,
    /// Activations with Q/DQ.
    pub n_tensors: usize,
    /// Weights stored as integers.
    pub n_weights: usize,
    /// Channels of weights that are smaller than FP16 scales resolve.
    pub n_clamped: usize,
    /// Activations whose outliers were moved into weights.
    pub smoothed: Vec<String>,
    /// Bytes of all weights before.
    pub bytes_before: u64,
    /// Bytes of all weights after.
    pub bytes_after: u64,
}

/// A node that was left as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptNode {
    /// Its label.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// Why.
    pub reason: Kept,
}

/// The changes of a graph that quantization makes before it decides: they keep what is computed,
/// and the names of what was observed.
///
/// # Errors
/// Those of the passes.
pub fn simplify_for_int8(model: &mut OnnxModel) -> Result<()> {
    fold_scales(model)?;
    sort_nodes(model)
}

/// Decides what would be quantized; `model` is as [`quantize`] wants it.
///
/// # Errors
/// As [`quantize`].
pub fn plan(
    model: &OnnxModel,
    ranges: Option<&GraphRanges>,
    options: &QuantizeOptions,
) -> Result<Plan> {
    let (plan, missing) = decide(model.graph(), ranges, options);
    if missing.is_empty() {
        return Ok(plan);
    }
    const NAMED: usize = 10;
    let n_missing = missing.len();
    let mut named: Vec<String> = missing
        .into_iter()
        .take(NAMED)
        .map(|(node, tensor)| format!("`{tensor}` (read by `{node}`)"))
        .collect();
    if n_missing > NAMED {
        named.push(format!("and {} more", n_missing - NAMED));
    }
    let reason = format!("the scales have no range of {}", named.join(", "));
    Err(Error::malformed(model.path(), reason))
}

/// Quantizes a graph as [`prepare_plain`](crate::onnx::passes::prepare_plain) and
/// [`simplify_for_int8`] leave it; `ranges` are those of its component.
///
/// The result has explicit Q/DQ in FP32; [`to_fp16`](crate::onnx::passes::to_fp16) makes the rest
/// of it FP16, [`to_fp32`](crate::onnx::passes::to_fp32) what the CPU runs.
///
/// # Errors
/// [`Error::Malformed`] naming every tensor whose range is needed and missing, or a weight that is
/// not finite; [`Error::Cancelled`].
pub fn quantize(
    model: &mut OnnxModel,
    ranges: Option<&GraphRanges>,
    options: &QuantizeOptions,
) -> Result<QuantizeReport> {
    let bytes_before = model.weight_bytes();
    let (plan, smoothed) = match ranges {
        Some(ranges) if options.scheme == Scheme::Int8 => {
            let smoothed = match options.smooth {
                Some(alpha) => smooth(model, ranges, alpha)?,
                None => Smoothed::default(),
            };
            let mut ranges = ranges.clone();
            for (name, amax) in &smoothed.amax {
                if let Some(range) = ranges.tensors.get_mut(name) {
                    range.amax = *amax;
                }
            }
            (plan(model, Some(&ranges), options)?, smoothed)
        }
        _ => (plan(model, ranges, options)?, Smoothed::default()),
    };
    let mut factors = smoothed.factors;
    let inserted = insert(model, &plan, &mut factors)?;
    multiply(model, &factors)?;
    // Blocks are of a later opset than other Q/DQ.
    raise_opset(model)?;
    let kept = plan.decisions.iter().filter_map(|d| match d.action {
        Action::Keep(reason) => Some(KeptNode {
            node: d.node.clone(),
            op: d.op.clone(),
            reason,
        }),
        Action::Quantize { .. } => None,
    });
    let report = QuantizeReport {
        scheme: options.scheme,
        quantized: plan.quantized().map(str::to_owned).collect(),
        weights_only: plan.weights_only().map(str::to_owned).collect(),
        kept: kept.collect(),
        n_tensors: inserted.n_tensors,
        n_weights: inserted.n_weights,
        n_clamped: inserted.n_clamped,
        smoothed: smoothed.amax.into_keys().collect(),
        bytes_before,
        bytes_after: model.weight_bytes(),
    };
    tracing::debug!(
        graph = %model.path().display(),
        quantized = report.quantized.len(),
        kept = report.kept.len(),
        "quantized"
    );
    Ok(report)
}

/// Stores the embedding table of a graph as 8-bit integers with a scale per row.
///
/// Returns the number of tables, 0 if the graph looks up nothing that is stored as floats.
///
/// # Errors
/// [`Error::Malformed`] naming a table that is not finite.
pub fn quantize_embedding(model: &mut OnnxModel) -> Result<usize> {
    insert_tables(model).map(|inserted| inserted.n_weights)
}
