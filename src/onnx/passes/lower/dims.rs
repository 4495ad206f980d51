//! Ranks and last dimensions, as far as a graph tells.
//!
//! Contrib operators take operands of several ranks, and some sizes stand nowhere but in the
//! shapes of weights. This is no shape inference: what is not plain stays unknown.

use std::collections::HashMap;

use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::{OnnxModel, ValueType};

/// Largest rank that is followed.
const MAX_RANK: usize = 8;

/// Rank and last dimension of values.
#[derive(Debug, Clone, Default)]
pub(super) struct Dims {
    ranks: HashMap<String, usize>,
    last: HashMap<String, usize>,
}

impl Dims {
    /// Follows the nodes of a sorted graph.
    pub(super) fn infer(model: &OnnxModel) -> Self {
        let graph = model.graph();
        let mut dims = Self::default();
        for tensor in &graph.initializer {
            let last = tensor.dims.last().and_then(|&d| usize::try_from(d).ok());
            dims.set(&tensor.name, Some(tensor.dims.len()), last);
        }
        let infos = graph.input.iter().chain(&graph.value_info);
        for value in infos.chain(&graph.output).map(ValueType::from) {
            let rank = value.dims.as_ref().map(Vec::len);
            let last = rank
                .and_then(|rank| rank.checked_sub(1))
                .and_then(|axis| value.fixed(axis));
            dims.set(&value.name, rank, last);
        }
        let constants = graph.constants();
        for node in &graph.node {
            dims.follow(node, &constants, model);
        }
        dims
    }

    /// Number of dimensions.
    pub(super) fn rank(&self, value: &str) -> Option<usize> {
        self.ranks.get(value).copied()
    }

    /// Size of the last dimension.
    pub(super) fn last(&self, value: &str) -> Option<usize> {
        self.last.get(value).copied()
    }

    fn set(&mut self, value: &str, rank: Option<usize>, last: Option<usize>) {
        if value.is_empty() {
            return;
        }
        if let Some(rank) = rank.filter(|&rank| rank <= MAX_RANK) {
            self.ranks.entry(value.to_owned()).or_insert(rank);
        }
        if let Some(last) = last {
            self.last.entry(value.to_owned()).or_insert(last);
        }
    }

    fn follow(
        &mut self,
        node: &NodeProto,
        constants: &HashMap<&str, &TensorProto>,
        model: &OnnxModel,
    ) {
        let operand = |index: usize| node.input.get(index).map_or("", String::as_str);
        let rank = |index: usize| self.rank(operand(index));
        let last = |index: usize| self.last(operand(index));
        let ints = |index: usize| {
            let tensor = constants.get(operand(index))?;
            tensor.to_i64(model.path()).ok()
        };
        let (rank, last) = match node.op_type.as_str() {
            // One operand, element by element or over the last dimension.
            "Cast"
            | "Identity"
            | "Relu"
            | "Sigmoid"
            | "Tanh"
            | "Erf"
            | "Neg"
            | "Sqrt"
            | "Abs"
            | "Exp"
            | "Softmax"
            | "LayerNormalization"
            | "SimplifiedLayerNormalization"
            | "RMSNormalization"
            | "RotaryEmbedding"
            | "Gelu"
            | "BiasGelu"
            | "FastGelu"
            | "QuickGelu"
            | "HardSwish"
            | "Clip"
            | "SkipSimplifiedLayerNormalization"
            | "SkipLayerNormalization" => (rank(0), last(0)),
            "Add" | "Sub" | "Mul" | "Div" | "Pow" | "Max" | "Min" => {
                let known = rank(0).zip(rank(1)).map(|(a, b)| a.max(b));
                let wide = |n: &usize| *n > 1;
                (known, last(0).filter(wide).or(last(1).filter(wide)))
            }
            "MatMul" => {
                let known = rank(0).zip(rank(1));
                let known = known.filter(|&(a, b)| a >= 2 && b >= 2);
                let last = last(1).filter(|_| rank(1).is_some_and(|rank| rank >= 2));
                (known.map(|(a, b)| a.max(b)), last)
            }
            "MatMulNBits" => {
                let n = node.attr("N").and_then(|a| usize::try_from(a.i?).ok());
                (rank(0), n)
            }
            "GroupQueryAttention" | "MultiHeadAttention" => (Some(3), None),
            "Transpose" => {
                let order = node.attr("perm").map(|a| a.ints.as_slice());
                let rank = order.map(<[i64]>::len).filter(|&n| n > 0).or(rank(0));
                let keeps = order.is_some_and(|o| o.last() == Some(&(o.len() as i64 - 1)));
                (rank, last(0).filter(|_| keeps))
            }
            "Reshape" => {
                let shape = ints(1);
                let last = shape.as_ref().and_then(|shape| shape.last()).copied();
                let last = last
                    .and_then(|d| usize::try_from(d).ok())
                    .filter(|&d| d > 0);
                (shape.map(|shape| shape.len()), last)
            }
            "Unsqueeze" => {
                let added = ints(1).map(|axes| axes.len());
                (rank(0).zip(added).map(|(rank, n)| rank + n), None)
            }
            "Squeeze" => {
                let removed = ints(1).map(|axes| axes.len());
                let rank = rank(0).zip(removed);
                (rank.and_then(|(rank, n)| rank.checked_sub(n)), None)
            }
            "Gather" => {
                let both = rank(0).zip(rank(1));
                let axis = node.attr("axis").and_then(|a| a.i).unwrap_or(0);
                let last = last(0).filter(|_| axis == 0 && rank(0).is_some_and(|r| r > 1));
                (both.and_then(|(a, b)| (a + b).checked_sub(1)), last)
            }
            "Concat" | "Slice" | "Expand" | "Split" | "Conv" => (rank(0), None),
            _ => (None, None),
        };
        let alike: &[usize] = match node.op_type.as_str() {
            "SkipSimplifiedLayerNormalization" | "SkipLayerNormalization" => &[0, 3],
            "Split" => &[0, 1, 2, 3, 4, 5, 6, 7],
            _ => &[0],
        };
        for name in alike.iter().filter_map(|&index| node.output.get(index)) {
            self.set(name, rank, last);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::{model, shaped};
    use super::*;
    use crate::onnx::{DataType::F32, Dim};

    #[test]
    fn dims_follow_projections_and_reshapes() {
        let rows = Dim::Named("rows".to_owned());
        let x = shaped("x", F32, &[Dim::Fixed(1), rows, Dim::Fixed(8)]);
        let nodes = vec![
            NodeProto::new("MatMul", &["x", "w"], &["q"]),
            NodeProto::new("Add", &["bias", "q"], &["b"]),
            NodeProto::new("Reshape", &["b", "shape"], &["r"]),
            NodeProto::new("Transpose", &["r"], &["t"]).with_ints("perm", &[0, 2, 1, 3]),
            NodeProto::new("Split", &["t"], &["s1", "s2"]),
            NodeProto::new("Wobble", &["t"], &["y"]),
        ];
        let constants = vec![
            TensorProto::from_f32("w", &[8, 12], &[0.0; 96]),
            TensorProto::from_f32("bias", &[12], &[0.0; 12]),
            TensorProto::from_i64("shape", &[4], &[0, 0, 3, 4]),
        ];
        let mut y = shaped("y", F32, &[]);
        y.r#type = None;
        let model = model(vec![x], constants, nodes, vec![y]);
        let dims = Dims::infer(&model);
        let of = |name: &str| (dims.rank(name), dims.last(name));
        assert_eq!(of("x"), (Some(3), Some(8)));
        assert_eq!(of("b"), (Some(3), Some(12)));
        assert_eq!(of("t"), (Some(4), Some(4)));
        assert_eq!(of("s2"), (Some(4), None));
        assert_eq!(of("y"), (None, None));
    }
}
