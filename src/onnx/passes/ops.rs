//! What the passes know of each operator: how its element types hang together, and in which
//! precision an FP16 graph computes it.
//!
//! | rule        | operators                                                   | computed in |
//! |-------------|-------------------------------------------------------------|-------------|
//! | [`Half`]    | matrix products, convolutions, small-window pooling, Resize, DequantizeLinear | FP16 |
//! | [`Single`]  | reductions, Softmax, norms, and functions that leave the range or the resolution of FP16: Exp, Log, Pow, Sqrt, Reciprocal, Sin, Cos … | FP32 |
//! | [`Pointwise`] | the other functions of single elements                    | FP32 if an operand was computed in FP32, else FP16 |
//! | [`Move`]    | what only moves elements                                    | as what it moves, or FP16 if only FP16 operators read it |
//! | [`Make`]    | tensors made from shapes                                    | FP32, or FP16 if only FP16 operators read it |
//! | [`Free`]    | reads floats of any type, writes none                       | - |
//! | [`Lower`]   | contrib and integer operators                               | refused: they are lowered before |
//!
//! [`Half`]: Rule::Half
//! [`Single`]: Rule::Single
//! [`Pointwise`]: Rule::Pointwise
//! [`Move`]: Rule::Move
//! [`Make`]: Rule::Make
//! [`Free`]: Rule::Free
//! [`Lower`]: Rule::Lower

use crate::onnx::DataType;
use crate::onnx::proto::NodeProto;

/// In which precision an FP16 graph computes an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    Half,
    Single,
    Pointwise,
    Move,
    Make,
    Free,
    Lower,
}

/// Which inputs of a node have one element type in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// All of them.
    All,
    /// Those with these indices.
    At(&'static [usize]),
}

impl Group {
    pub(super) fn contains(self, index: usize) -> bool {
        match self {
            Self::All => true,
            Self::At(indices) => indices.contains(&index),
        }
    }
}

/// Element types of a node's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// All have the type of the first input of the group.
    Group,
    /// The first has the group's type, all others have this one.
    GroupThen(DataType),
    /// Always these, in this order.
    Fixed(&'static [DataType]),
    /// The type of the input with this index.
    Input(usize),
    /// The type whose code is this attribute.
    Attribute(&'static str),
    /// The type of the attribute that holds the value; FP32 if there is none.
    Value,
    /// The type of the zero point (input 2); `u8` if there is none.
    ZeroPoint,
}

/// An operator.
#[derive(Debug, Clone, Copy)]
pub(super) struct Op {
    pub(super) group: Group,
    pub(super) output: Output,
    pub(super) rule: Rule,
}

const NONE: Group = Group::At(&[]);
const FIRST: Group = Group::At(&[0]);

/// What is known of the operator of `node`, `None` if it is not one of ours.
pub(super) fn operator(node: &NodeProto) -> Option<Op> {
    match node.domain.as_str() {
        "" | "ai.onnx" => standard(&node.op_type),
        "com.microsoft" => contrib(&node.op_type),
        _ => None,
    }
}

fn standard(op_type: &str) -> Option<Op> {
    use DataType::{Bool, F32, I32, I64, U8};
    let op = |group, output, rule| Op {
        group,
        output,
        rule,
    };
    let same = |group, rule| op(group, Output::Group, rule);
    Some(match op_type {
        // Products. Accumulation in FP32 is the engine's business.
        "MatMul" | "Gemm" | "Einsum" | "Conv" | "ConvTranspose" => same(Group::All, Rule::Half),
        "AveragePool" => same(FIRST, Rule::Half),
        "Resize" | "GridSample" => same(FIRST, Rule::Half),

        "Softmax" | "LogSoftmax" => same(FIRST, Rule::Single),
        "LayerNormalization" => op(Group::All, Output::GroupThen(F32), Rule::Single),
        "RMSNormalization"
        | "SimplifiedLayerNormalization"
        | "BatchNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "LpNormalization"
        | "MeanVarianceNormalization"
        | "LRN" => same(Group::All, Rule::Single),
        "ReduceMean" | "ReduceSum" | "ReduceProd" | "ReduceSumSquare" | "ReduceL1" | "ReduceL2"
        | "ReduceLogSum" | "ReduceLogSumExp" | "GlobalAveragePool" | "GlobalLpPool" | "LpPool"
        | "CumSum" => same(FIRST, Rule::Single),
        "Exp" | "Log" | "Sqrt" | "Reciprocal" | "Sin" | "Cos" | "Tan" | "Asin" | "Acos"
        | "Atan" | "Sinh" | "Cosh" | "Asinh" | "Acosh" | "Atanh" | "Softplus" | "Mish" => {
            same(FIRST, Rule::Single)
        }
        "Pow" | "Range" => same(Group::All, Rule::Single),

        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Min" | "Max" | "Sum" | "Mean" | "PRelu"
        | "Clip" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "And" | "Or" | "Xor" => {
            same(Group::All, Rule::Pointwise)
        }
        "Where" => same(Group::At(&[1, 2]), Rule::Pointwise),
        "Abs" | "Ceil" | "Floor" | "Round" | "Neg" | "Sign" | "Relu" | "LeakyRelu" | "Elu"
        | "Selu" | "Celu" | "Gelu" | "HardSigmoid" | "HardSwish" | "Sigmoid" | "Swish"
        | "Softsign" | "Tanh" | "ThresholdedRelu" | "Erf" | "Not" | "BitwiseNot" => {
            same(FIRST, Rule::Pointwise)
        }
        "ReduceMax" | "ReduceMin" | "GlobalMaxPool" => same(FIRST, Rule::Pointwise),
        "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" => {
            op(Group::All, Output::Fixed(&[Bool]), Rule::Pointwise)
        }

        "Identity" | "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Slice" | "Expand"
        | "Tile" | "Flatten" | "Split" | "Gather" | "GatherElements" | "GatherND"
        | "DepthToSpace" | "SpaceToDepth" | "ReverseSequence" | "Compress" | "Trilu"
        | "CenterCropPad" => same(FIRST, Rule::Move),
        "MaxPool" | "TopK" => op(FIRST, Output::GroupThen(I64), Rule::Move),
        "Dropout" => op(FIRST, Output::GroupThen(Bool), Rule::Move),
        "Concat" => same(Group::All, Rule::Move),
        "Pad" | "ScatterElements" | "ScatterND" | "Scatter" => same(Group::At(&[0, 2]), Rule::Move),
        "OneHot" => op(Group::At(&[2]), Output::Input(2), Rule::Move),

        "Constant" | "ConstantOfShape" => op(NONE, Output::Value, Rule::Make),
        "Cast" => op(NONE, Output::Attribute("to"), Rule::Make),

        "CastLike" => op(NONE, Output::Input(1), Rule::Lower),
        "Shape" | "Size" | "NonZero" | "ArgMax" | "ArgMin" => {
            op(NONE, Output::Fixed(&[I64]), Rule::Free)
        }
        "IsNaN" | "IsInf" => op(NONE, Output::Fixed(&[Bool]), Rule::Free),

        // Values are quantized in the type that they are computed in, and come back in the type of
        // the scale.
        "QuantizeLinear" => op(Group::At(&[0, 1]), Output::ZeroPoint, Rule::Pointwise),
        "DequantizeLinear" => op(Group::At(&[1]), Output::Input(1), Rule::Half),
        "DynamicQuantizeLinear" => op(FIRST, Output::Fixed(&[U8, F32, U8]), Rule::Lower),
        "MatMulInteger" | "ConvInteger" => op(NONE, Output::Fixed(&[I32]), Rule::Lower),
        "Attention" => same(Group::At(&[0, 1, 2, 4, 5]), Rule::Lower),
        "RotaryEmbedding" => same(Group::At(&[0, 1, 2]), Rule::Lower),
        _ => return None,
    })
}

fn contrib(op_type: &str) -> Option<Op> {
    if op_type == "GatherBlockQuantized" {
        return Some(Op {
            group: Group::At(&[2]),
            output: Output::Input(2),
            rule: Rule::Lower,
        });
    }
    let group = match op_type {
        "MultiHeadAttention" => Group::At(&[0, 1, 2, 3, 5]),
        "GroupQueryAttention" => Group::At(&[0, 1, 2, 3, 4, 7, 8]),
        "RotaryEmbedding" => Group::At(&[0, 2, 3]),
        "MatMulNBits" => Group::At(&[0, 2, 5]),
        "SimplifiedLayerNormalization"
        | "SkipSimplifiedLayerNormalization"
        | "SkipLayerNormalization"
        | "FusedMatMul"
        | "FastGelu"
        | "BiasGelu"
        | "Gelu"
        | "QuickGelu" => Group::All,
        _ => return None,
    };
    Some(Op {
        group,
        output: Output::Group,
        rule: Rule::Lower,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operator_is_known_in_its_own_domain_only() {
        let mut node = NodeProto::new("GroupQueryAttention", &["q"], &["y"]);
        assert!(operator(&node).is_none());
        node.domain = "com.microsoft".to_owned();
        assert_eq!(operator(&node).map(|op| op.rule), Some(Rule::Lower));
        node.domain = "vendor".to_owned();
        assert!(operator(&node).is_none());
        node.domain = "ai.onnx".to_owned();
        node.op_type = "MatMul".to_owned();
        assert_eq!(operator(&node).map(|op| op.rule), Some(Rule::Half));
    }
}
