//! What the oldest parser that we build for takes: that of TensorRT 10.3, in JetPack 6.
//!
//! Source: the support matrix of onnx-tensorrt, `docs/operators.md` on its branch `10.1-GA` (commit
//! 96e7811), which covers opset 9 to 20, the newest before 10.3 that was at hand: parsers have not
//! been known to lose operators between minor versions, but no parser of 10.3 has run on this list.
//! Opset 21 is taken for blocks of Q/DQ alone: `QuantDequantLinearHelper` of that branch's
//! `onnxOpImporters.cpp` imports INT4 with scales of the weight's rank since 10.0 (`docs/Changelog.md`),
//! without zero points, the last dimension even; TensorRT-RTX 1.7 builds blocks of 16 to 256.
//! Left out are operators with subgraphs or state, `NonZero` (rows would depend on values, and
//! TensorRT-RTX refuses it), random ones, and what our own type rules do not know.

use crate::error::{Error, Result};
use crate::onnx::passes::{BLOCKS_OPSET, check_operators, has_blocks};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, OnnxModel};

/// Opsets that the parser takes.
const OPSETS: std::ops::RangeInclusive<i64> = 9..=20;

/// Operators with several outputs that it takes; of others it takes the first output only.
const SEVERAL_OUTPUTS: [&str; 2] = ["Split", "TopK"];

const OPERATORS: [&str; 127] = [
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "MeanVarianceNormalization",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "QuantizeLinear",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "ReverseSequence",
    "Round",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// Checks a prepared graph before a parser sees it.
///
/// # Errors
/// [`Error::Unsupported`] naming all nodes that the parser does not take, [`Error::Malformed`] if
/// the graph is of another opset.
pub(super) fn check(graph: &OnnxModel) -> Result<()> {
    let opset = graph.opset("").unwrap_or(0);
    let blocks = opset == BLOCKS_OPSET && has_blocks(graph.graph());
    if !OPSETS.contains(&opset) && !blocks {
        let (first, last) = (OPSETS.start(), OPSETS.end());
        return Err(Error::malformed(
            graph.path(),
            format!("opset {opset}, TensorRT 10.3 parses {first} to {last}"),
        ));
    }
    check_operators(graph, &OPERATORS, &SEVERAL_OUTPUTS)?;
    check_zero_points(graph)
}

/// Refuses Q/DQ that are not symmetric: TensorRT's integers have no zero points.
fn check_zero_points(graph: &OnnxModel) -> Result<()> {
    let constants = graph.graph().constants();
    let is_symmetric = |node: &&NodeProto| match node.input.get(2).filter(|name| !name.is_empty()) {
        // Without one, QuantizeLinear makes unsigned integers.
        None => node.op_type == "DequantizeLinear",
        Some(name) => constants.get(name.as_str()).is_some_and(|zero| {
            let signed = matches!(zero.dtype(), Ok(DataType::I8 | DataType::I4));
            let stored = zero.raw_data.as_ref();
            signed && stored.is_some_and(|raw| raw.iter().all(|&byte| byte == 0))
        }),
    };
    let nodes = graph.graph().node.iter();
    let of_integers = nodes
        .filter(|node| ["QuantizeLinear", "DequantizeLinear"].contains(&node.op_type.as_str()));
    let asymmetric: Vec<&str> = of_integers
        .filter(|node| !is_symmetric(node))
        .map(NodeProto::label)
        .collect();
    if asymmetric.is_empty() {
        return Ok(());
    }
    const NAMED: usize = 20;
    let named = &asymmetric[..asymmetric.len().min(NAMED)];
    Err(Error::Unsupported {
        node: named.join("`, `"),
        op: "QuantizeLinear, DequantizeLinear".to_owned(),
        reason: format!(
            "{} nodes have zero points that are not int8 zeros, which TensorRT does not take; build from FP32 or FP16 files",
            asymmetric.len()
        ),
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::onnx::proto::{GraphProto, ModelProto, TensorProto, ValueInfoProto};

    #[test]
    fn operators_are_sorted_and_none_is_listed_twice() {
        assert!(OPERATORS.is_sorted_by(|a, b| a < b), "{OPERATORS:?}");
        assert!(SEVERAL_OUTPUTS.iter().all(|op| OPERATORS.contains(op)));
    }

    #[test]
    fn zero_points_other_than_int8_zeros_are_refused_by_name() {
        let node = |op: &str, zero: &str, output: &str| {
            let inputs: &[&str] = if zero.is_empty() {
                &["x", "s"]
            } else {
                &["x", "s", zero]
            };
            NodeProto::new(op, inputs, &[output])
        };
        let nodes = vec![
            node("QuantizeLinear", "zero", "a"),
            node("DequantizeLinear", "", "b"),
            node("QuantizeLinear", "", "without"),
            node("QuantizeLinear", "unsigned", "c"),
            node("DequantizeLinear", "shifted", "d"),
            node("DequantizeLinear", "computed", "e"),
        ];
        let output = ValueInfoProto {
            name: "a".to_owned(),
            ..ValueInfoProto::default()
        };
        let proto = ModelProto {
            graph: Some(GraphProto {
                node: nodes,
                initializer: vec![
                    TensorProto::from_raw("zero", DataType::I8, &[], vec![0u8]),
                    TensorProto::from_raw("unsigned", DataType::U8, &[], vec![0u8]),
                    TensorProto::from_raw("shifted", DataType::I8, &[], vec![3u8]),
                ],
                output: vec![output],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        let bytes = proto.encode_to_vec().into();
        let model = OnnxModel::parse(std::path::Path::new("t.onnx"), bytes).expect("parse");
        let error = check_zero_points(&model).expect_err("refused").to_string();
        for name in ["without", "c/", "d/", "e/", "4 nodes"] {
            assert!(error.contains(name), "{name}: {error}");
        }
        assert!(!error.contains("a/") && !error.contains("b/"), "{error}");
    }
}
