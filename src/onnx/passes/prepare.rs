//! The order of passes between a hub graph and TensorRT's parser.

use super::casts::drop_casts;
use super::{
    Fp16Options, Fp16Report, LowerOptions, LowerReport, clamp_mask_fill, declare_opset,
    keep_all_tiles, lift_constants, lower_contrib, raise_opset, scale_query, set_dims, sort_nodes,
    to_fp16, to_fp32,
};
use crate::error::Result;
use crate::onnx::{DataType, OnnxModel};

/// Newest opset that the oldest parser we build for, that of TensorRT 10.3, knows.
const PARSED_OPSET: i64 = 20;

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
    simplify(model, dims, DataType::F16)?;
    let report = to_fp16(model, options)?;
    tracing::debug!(graph = %model.path().display(), ?report, "made FP16");
    Ok(report)
}

/// Makes a hub graph, stored in FP32 or FP16, into one that TensorRT builds as FP32.
///
/// # Errors
/// As [`prepare_fp16`].
pub fn prepare_fp32(model: &mut OnnxModel, dims: &[(&str, usize)]) -> Result<()> {
    simplify(model, dims, DataType::F32)?;
    to_fp32(model)
}

/// Makes a hub graph into the form that is quantized: that of [`prepare_fp32`], with the same
/// names, but weights stay as they are stored.
///
/// Types of floats are not consistent then: [`to_fp16`] or [`to_fp32`] comes after.
///
/// # Errors
/// As [`prepare_fp16`].
pub fn prepare_plain(model: &mut OnnxModel, dims: &[(&str, usize)]) -> Result<()> {
    simplify(model, dims, DataType::F32)?;
    sort_nodes(model)?;
    lift_constants(model)?;
    drop_casts(model)?;
    raise_opset(model)
}

/// Makes a hub graph into one of operators of the ONNX standard only, in the types that the file
/// computes in, without its filter of padded tiles.
///
/// # Errors
/// As [`prepare_fp16`].
pub fn lower(model: &mut OnnxModel, options: &LowerOptions) -> Result<LowerReport> {
    sort_nodes(model)?;
    lift_constants(model)?;
    let n_filters = keep_all_tiles(model)?;
    let report = lower_contrib(model, options)?;
    declare_opset(model, PARSED_OPSET)?;
    tracing::debug!(graph = %model.path().display(), n_filters, ?report, "lowered");
    Ok(report)
}

/// The passes that both precisions need; weights that have to be dequantized become `weights`.
fn simplify(model: &mut OnnxModel, dims: &[(&str, usize)], weights: DataType) -> Result<()> {
    let cancel = model.cancel();
    set_dims(model, dims)?;
    let weights = Some(weights);
    lower(
        model,
        &LowerOptions {
            weights,
            ..LowerOptions::default()
        },
    )?;
    cancel.check()?;
    let n_fills = clamp_mask_fill(model)?;
    let n_scales = scale_query(model)?;
    cancel.check()?;
    tracing::debug!(graph = %model.path().display(), n_fills, n_scales, "simplified");
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::check_types;
    use super::super::testing::{cast, model, scalar, value};
    use super::*;
    use crate::onnx::DataType::{Bool, F16, F32, I64};
    use crate::onnx::proto::{NodeProto, TensorProto};

    const OPS: [&str; 37] = [
        "Add",
        "Mul",
        "Div",
        "Sigmoid",
        "Softmax",
        "MatMul",
        "Cast",
        "Identity",
        "Where",
        "Concat",
        "Gather",
        "Transpose",
        "Shape",
        "Equal",
        "ReduceMean",
        "Constant",
        "ConstantOfShape",
        "Range",
        "LayerNormalization",
        "TopK",
        "Clip",
        "Resize",
        "If",
        "GroupQueryAttention",
        "NonZero",
        "GatherND",
        "SimplifiedLayerNormalization",
        "com.microsoft.GroupQueryAttention",
        "com.microsoft.RotaryEmbedding",
        "com.microsoft.MultiHeadAttention",
        "com.microsoft.SkipSimplifiedLayerNormalization",
        "com.microsoft.SkipLayerNormalization",
        "com.microsoft.MatMulNBits",
        "com.microsoft.GatherBlockQuantized",
        "com.microsoft.FusedMatMul",
        "com.microsoft.BiasGelu",
        "com.microsoft.QuickGelu",
    ];
    /// Attributes that contrib operators read.
    const ATTRIBUTES: [&str; 10] = [
        "num_heads",
        "kv_num_heads",
        "do_rotary",
        "interleaved",
        "rotary_embedding_dim",
        "N",
        "K",
        "bits",
        "block_size",
        "transB",
    ];
    /// Values that are there from the start.
    const GIVEN: [&str; 7] = ["x", "h", "n", "b", "w", "big", ""];

    /// A graph of nodes `(operator, inputs, outputs)`.
    fn graph(nodes: Vec<(&str, Vec<String>, Vec<String>)>) -> OnnxModel {
        let output = nodes
            .iter()
            .rev()
            .find_map(|(_, _, outputs)| outputs.first())
            .map_or("x", String::as_str)
            .to_owned();
        let nodes = nodes.into_iter().map(|(op, inputs, outputs)| {
            let (domain, op) = op.rsplit_once('.').unwrap_or(("", op));
            let mut node = NodeProto {
                input: inputs,
                output: outputs,
                domain: domain.to_owned(),
                ..NodeProto::new(op, &[], &[])
            };
            if op == "Cast" {
                node.attribute = cast("", "", F16).attribute;
            }
            node
        });
        let mut declared = value(&output, F32);
        declared.r#type = None;
        model(
            vec![
                value("x", F32),
                value("h", F16),
                value("n", I64),
                value("b", Bool),
            ],
            vec![
                scalar("w", 0.5),
                TensorProto::from_f32("big", &[2], &[f32::MIN, f32::NAN]),
            ],
            nodes.collect(),
            vec![declared],
        )
    }

    proptest! {
        #[test]
        fn prepare_of_any_graph_never_panics(
            nodes in prop::collection::vec(
                (
                    prop::sample::select(OPS.to_vec()),
                    prop::collection::vec(0usize..14, 0..9),
                    prop::collection::vec(6usize..14, 0..4),
                ),
                1..10,
            ),
            attributes in prop::collection::vec(
                (0usize..10, prop::sample::select(ATTRIBUTES.to_vec()), prop_oneof![-1i64..9, any::<i64>()]),
                0..12,
            ),
        ) {
            let name = |&i: &usize| GIVEN.get(i).map_or_else(|| format!("v{i}"), |n| (*n).to_owned());
            let nodes = nodes.iter().map(|(op, inputs, outputs)| {
                (*op, inputs.iter().map(name).collect(), outputs.iter().map(name).collect())
            });
            let mut hostile = graph(nodes.collect());
            for (node, name, value) in attributes {
                if let Some(node) = hostile.graph_mut().node.get_mut(node) {
                    node.set_int(name, value);
                }
            }
            let _ = prepare_fp16(&mut hostile.clone(), &[], &Fp16Options::default());
            let _ = prepare_fp32(&mut hostile.clone(), &[]);
        }

        /// Nodes read floats that stand before them: every such graph has a typed form.
        #[test]
        fn prepare_of_a_float_graph_gives_consistent_types(
            nodes in prop::collection::vec(
                (
                    prop::sample::select(vec![
                        "Add", "Mul", "MatMul", "Softmax", "Sqrt", "Sigmoid", "Transpose", "Cast",
                        "Identity", "Concat", "ReduceMean",
                    ]),
                    any::<prop::sample::Index>(),
                    any::<prop::sample::Index>(),
                ),
                1..16,
            ),
            io in prop::sample::select(vec![F16, F32]),
        ) {
            let mut values: Vec<String> = vec!["x".to_owned(), "w".to_owned(), "big".to_owned()];
            let mut made = Vec::new();
            for (i, (op, a, b)) in nodes.iter().enumerate() {
                let output = format!("v{i}");
                let mut inputs = vec![a.get(&values).clone()];
                if ["Add", "Mul", "MatMul", "Concat"].contains(op) {
                    inputs.push(b.get(&values).clone());
                }
                made.push((*op, inputs, vec![output.clone()]));
                // A cast to FP16 would mix types in the file itself.
                if *op != "Cast" {
                    values.push(output);
                }
            }
            let constant = made.last().is_some_and(|(op, inputs, _)| {
                ["Cast", "Identity"].contains(op) && inputs[0] != "x"
            });
            let mut model = graph(made);
            let options = Fp16Options { io, ..Fp16Options::default() };
            let report = prepare_fp16(&mut model, &[], &options);
            prop_assert!(report.is_ok() || constant, "{:?}", report);
            if report.is_ok() {
                let types = check_types(&model);
                prop_assert!(types.is_ok(), "{types:?}");
                prop_assert_eq!(types.ok().and_then(|t| t.get(&model.graph().output[0].name)), Some(io));
            }
        }
    }
}
