//! The order of passes between a hub graph and TensorRT's parser.

use super::{
    Fp16Options, Fp16Report, clamp_mask_fill, lift_constants, scale_query, set_dims, sort_nodes,
    to_fp16, to_fp32,
};
use crate::error::Result;
use crate::onnx::OnnxModel;

/// Makes a hub graph into one that a strongly typed TensorRT network builds as FP16.
///
/// `dims` are the named dimensions to fix ([`set_dims`]). Graphs whose inputs or outputs are to
/// change ([`select_logit_rows`](super::select_logit_rows)) are changed before.
///
/// # Errors
/// Those of the passes; the graph is then half rewritten, and of no use.
pub fn prepare_fp16(
    model: &mut OnnxModel,
    dims: &[(&str, usize)],
    options: &Fp16Options,
) -> Result<Fp16Report> {
    simplify(model, dims)?;
    let report = to_fp16(model, options)?;
    tracing::debug!(graph = %model.path().display(), ?report, "made FP16");
    Ok(report)
}

/// Makes a hub graph, stored in FP32 or FP16, into one that TensorRT builds as FP32.
///
/// # Errors
/// As [`prepare_fp16`].
pub fn prepare_fp32(model: &mut OnnxModel, dims: &[(&str, usize)]) -> Result<()> {
    simplify(model, dims)?;
    to_fp32(model)
}

/// The passes that both precisions need: none of them depends on types.
fn simplify(model: &mut OnnxModel, dims: &[(&str, usize)]) -> Result<()> {
    set_dims(model, dims)?;
    sort_nodes(model)?;
    lift_constants(model)?;
    let n_fills = clamp_mask_fill(model)?;
    let n_scales = scale_query(model)?;
    tracing::debug!(graph = %model.path().display(), n_fills, n_scales, "simplified");
    Ok(())
}
