//! Lowering every node of a graph, once.

use std::collections::BTreeMap;

use super::super::ops::{Rule, operator};
use super::super::types::{Refused, Types};
use super::attrs::{required, result};
use super::causal;
use super::dims::Dims;
use super::emit::{Emitter, names_read};
use super::{gelu, gqa, linear, mha, norm, rotary};
use crate::error::{Error, Result};
use crate::onnx::graph::Names;
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, OnnxModel};

/// Oldest opset whose operators the lowered forms are written in.
const OLDEST_OPSET: i64 = 13;

/// How to lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LowerOptions {
    /// Type in which dequantized weights are stored: F16 or F32; by default that of the operator
    /// they belong to. Where the two differ, a cast stands between them, until
    /// [`to_fp16`](crate::onnx::passes::to_fp16) or [`to_fp32`](crate::onnx::passes::to_fp32)
    /// takes it away.
    pub weights: Option<DataType>,
    /// What becomes of packed weights of 4 bits.
    pub packed: PackedWeights,
}

/// What becomes of packed weights of 4 bits.
///
/// Blocks are signed codes without zero points behind `DequantizeLinear`, which need
/// [opset 21](crate::onnx::passes::raise_opset). A weight of which they cannot say the same becomes floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PackedWeights {
    /// Floats.
    #[default]
    Floats,
    /// Blocks, with the scales as they are: some packers make negative ones.
    Blocks,
    /// Blocks, if all scales are positive, as some engines demand.
    PositiveBlocks,
}

/// What [`lower_contrib`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LowerReport {
    /// Operators that were lowered, with their numbers.
    pub lowered: BTreeMap<String, usize>,
    /// Values `[b, 1, rows, total]` that are added to the scores of grouped-query attention: one
    /// for all layers that share a sequence.
    pub masks: Vec<String>,
    /// Values `[b, rows]` that the rotary embedding inside grouped-query attention looks up.
    pub positions: Vec<String>,
}

/// A function that emits the lowered form of a node, or says why not.
type Lower = fn(&mut Emitter<'_>, &NodeProto) -> Result<(), String>;

/// Replaces contrib operators, and newer ones of the standard that stand for them, by operators of
/// opset 13 to 20. Names of inputs, outputs and of the values between nodes stay.
///
/// Nodes must be sorted, and constants lifted. Nodes and constants that nothing needs any more
/// are removed; so is the import of the contrib domain.
///
/// # Errors
/// [`Error::Unsupported`] naming all nodes with unknown operators, or else all nodes that have no
/// lowering or a form that is not lowered; [`Error::Malformed`] if the graph does not hang
/// together. The graph is then half rewritten, and of no use.
pub fn lower_contrib(model: &mut OnnxModel, options: &LowerOptions) -> Result<LowerReport> {
    let types = Types::infer(model)?;
    if !model.graph().node.iter().any(is_lowered) {
        return Ok(LowerReport::default());
    }
    if let Some(opset) = model.opset("").filter(|&opset| opset < OLDEST_OPSET) {
        return Err(Error::malformed(
            model.path(),
            format!("opset {opset} is older than {OLDEST_OPSET}, which lowering writes"),
        ));
    }
    let dims = Dims::infer(model);
    let names = Names::of(model.graph());
    let read = names_read(model.graph());
    let nodes = std::mem::take(&mut model.graph_mut().node);
    let mut emitter = Emitter::new(model, &types, &dims, names, &read, *options);
    let mut report = LowerReport::default();
    let mut refused = Refused::default();
    for node in nodes {
        if !is_lowered(&node) {
            emitter.push(node);
            continue;
        }
        emitter.begin(&node);
        let lowered = match lowering(&node) {
            Some(lower) => lower(&mut emitter, &node),
            None => Err("has no lowering".to_owned()),
        };
        match lowered {
            Ok(()) => *report.lowered.entry(node.op()).or_default() += 1,
            Err(reason) => refused.add(&node, &reason),
        }
    }
    refused.into_result()?;
    report.masks = emitter.shared(causal::MASK);
    report.positions = emitter.shared(causal::POSITIONS);
    let (nodes, mut constants) = emitter.finish();
    let graph = model.graph_mut();
    graph.node = nodes;
    graph.initializer.append(&mut constants);
    graph.remove_unused();
    if graph.node.iter().all(|node| node.domain != CONTRIB) {
        model.set_opset(CONTRIB, None);
    }
    Ok(report)
}

const CONTRIB: &str = "com.microsoft";

/// True for operators that a lowered graph does not have.
fn is_lowered(node: &NodeProto) -> bool {
    operator(node).is_some_and(|op| op.rule == Rule::Lower) || lowering(node).is_some()
}

fn lowering(node: &NodeProto) -> Option<Lower> {
    let contrib = match node.domain.as_str() {
        "" | "ai.onnx" => false,
        CONTRIB => true,
        _ => return None,
    };
    Some(match (contrib, node.op_type.as_str()) {
        (true, "GroupQueryAttention") => gqa::gqa,
        (true, "MultiHeadAttention") => mha::mha,
        (true, "RotaryEmbedding") => rotary::rotary,
        (true, "MatMulNBits") => linear::matmul_n_bits,
        (true, "GatherBlockQuantized") => linear::gather_blocks,
        (true, "FusedMatMul") => linear::fused_matmul,
        (true, "SkipSimplifiedLayerNormalization") => norm::skip_simplified,
        (true, "SkipLayerNormalization") => norm::skip_layer,
        (_, "SimplifiedLayerNormalization") | (false, "RMSNormalization") => norm::simplified,
        (_, "Gelu") => gelu::gelu,
        (true, "BiasGelu") => gelu::bias_gelu,
        (true, "FastGelu") => gelu::fast_gelu,
        (true, "QuickGelu") => gelu::quick_gelu,
        (false, "CastLike") => cast_like,
        _ => return None,
    })
}

/// Lowers `CastLike` to a cast to the type that its second operand has.
fn cast_like(e: &mut Emitter<'_>, node: &NodeProto) -> Result<(), String> {
    let like = required(node, 1, "second operand")?;
    let dtype = e.types.get(like);
    let dtype = dtype.ok_or_else(|| format!("type of `{like}` is not known"))?;
    e.cast_to(required(node, 0, "operand")?, result(node)?, dtype);
    Ok(())
}
