//! Scale queries, not scores.
//!
//! `softmax((q kᵀ) · s)` becomes `softmax((q · s) kᵀ)`: the same in real numbers. In FP16 the
//! unscaled product overflows for large heads, and the scaled query is smaller than the scores
//! (`[rows, d]` instead of `[rows, total]`). In FP32 results differ by rounding only, and not at
//! all where `s` is a power of two.

use std::collections::HashSet;

use crate::error::Result;
use crate::onnx::OnnxModel;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};

/// Operators that stand between scaled scores and their Softmax.
const MASKING: [&str; 8] = [
    "Add", "Cast", "Clip", "Identity", "Max", "Min", "Sub", "Where",
];

/// Moves constant factors of attention scores to the query. Returns how many were moved.
///
/// A factor is moved if it is one number, the product that it scales is read by nothing else, and
/// neither of the product's operands is a weight. The scaled scores keep their name.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if a factor's bytes do not fit its shape.
pub fn scale_query(model: &mut OnnxModel) -> Result<usize> {
    let path = model.path().to_path_buf();
    let graph = model.graph();
    let moves = find(graph);
    let n_moved = moves.len();
    let graph = model.graph_mut();
    let mut dropped = HashSet::new();
    let mut scaled_queries = Vec::new();
    for Move {
        scale,
        product,
        factor,
    } in moves
    {
        // A factor of shape [1, 1, 1, 1] would give the query four dimensions.
        let value = match graph.initializer(&factor) {
            Some(tensor) if !tensor.dims.is_empty() => {
                tensor.len(&path)?;
                let name = graph.fresh_name(&format!("{factor}_scalar"));
                let scalar = TensorProto {
                    name: name.clone(),
                    dims: Vec::new(),
                    ..tensor.clone()
                };
                graph.initializer.push(scalar);
                name
            }
            _ => factor,
        };
        let query = graph.node[product].input[0].clone();
        let scaled = graph.fresh_name(&format!("{query}_scaled"));
        let op = graph.node[scale].op_type.clone();
        let scores = graph.node[scale].output[0].clone();
        graph.node[product].input[0].clone_from(&scaled);
        graph.node[product].output[0] = scores;
        scaled_queries.push((product, NodeProto::new(&op, &[&query, &value], &[&scaled])));
        dropped.insert(scale);
    }
    insert_and_drop(graph, scaled_queries, &dropped);
    if n_moved > 0 {
        graph.remove_unused();
    }
    Ok(n_moved)
}

/// A scale that can be moved.
struct Move {
    /// The Mul or Div.
    scale: usize,
    /// The MatMul that it scales.
    product: usize,
    /// The constant factor.
    factor: String,
}

/// Finds scaled products above a Softmax, through [`MASKING`] only.
fn find(graph: &GraphProto) -> Vec<Move> {
    let producers = graph.producers();
    let consumers = graph.consumers();
    let constants = graph.constants();
    let outputs: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let mut moves = Vec::new();
    let softmax = graph.node.iter().filter(|node| node.op_type == "Softmax");
    let mut stack: Vec<&str> = softmax
        .filter_map(|node| node.input.first())
        .map(String::as_str)
        .collect();
    let mut seen = HashSet::new();
    while let Some(value) = stack.pop() {
        let Some(&index) = producers.get(value).filter(|&&index| seen.insert(index)) else {
            continue;
        };
        let node = &graph.node[index];
        match node.op_type.as_str() {
            "Mul" | "Div" if node.input.len() == 2 => {
                let constant = |i: usize| constants.get(node.input[i].as_str());
                let (scores, factor) = match (constant(0), constant(1)) {
                    (None, Some(factor)) => (&node.input[0], factor),
                    (Some(factor), None) if node.op_type == "Mul" => (&node.input[1], factor),
                    _ => continue,
                };
                let product = producers.get(scores.as_str()).copied();
                let product = product.filter(|&product| {
                    let node = &graph.node[product];
                    let of_activations = node
                        .input
                        .iter()
                        .all(|input| !constants.contains_key(input.as_str()));
                    let used_once = consumers.get(scores.as_str()).map_or(0, Vec::len) == 1
                        && !outputs.contains(scores.as_str());
                    node.op_type == "MatMul"
                        && node.input.len() == 2
                        && node.output.len() == 1
                        && of_activations
                        && used_once
                });
                if let Some(product) = product
                    && factor.dims.iter().all(|&dim| dim == 1)
                {
                    moves.push(Move {
                        scale: index,
                        product,
                        factor: factor.name.clone(),
                    });
                }
            }
            op if MASKING.contains(&op) => stack.extend(node.input.iter().map(String::as_str)),
            _ => {}
        }
    }
    moves
}

/// Inserts each node before the one whose index stands with it, then drops `dropped`.
fn insert_and_drop(
    graph: &mut GraphProto,
    mut insert: Vec<(usize, NodeProto)>,
    dropped: &HashSet<usize>,
) {
    insert.sort_by_key(|(before, _)| *before);
    let mut insert = insert.into_iter().peekable();
    let nodes = std::mem::take(&mut graph.node);
    for (index, node) in nodes.into_iter().enumerate() {
        while let Some((_, new)) = insert.next_if(|(before, _)| *before == index) {
            graph.node.push(new);
        }
        if !dropped.contains(&index) {
            graph.node.push(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{maker, model, ops, scalar, value};
    use super::*;
    use crate::onnx::DataType::F32;

    fn attention(scale: NodeProto, factor: TensorProto) -> OnnxModel {
        model(
            vec![value("q", F32), value("k", F32), value("mask", F32)],
            vec![factor],
            vec![
                NodeProto::new("MatMul", &["q", "k"], &["raw"]),
                scale,
                NodeProto::new("Add", &["scores", "mask"], &["masked"]),
                NodeProto::new("Softmax", &["masked"], &["y"]),
            ],
            vec![value("y", F32)],
        )
    }

    #[test]
    fn scale_query_moves_the_factor_before_the_product() {
        for (scale, factor) in [
            (
                NodeProto::new("Mul", &["raw", "s"], &["scores"]),
                scalar("s", 0.125),
            ),
            (
                NodeProto::new("Mul", &["s", "raw"], &["scores"]),
                TensorProto::from_f32("s", &[1, 1, 1, 1], &[0.125]),
            ),
            (
                NodeProto::new("Div", &["raw", "s"], &["scores"]),
                scalar("s", 8.0),
            ),
        ] {
            let op = scale.op_type.clone();
            let mut model = attention(scale, factor);
            assert_eq!(scale_query(&mut model).expect("pass"), 1, "{op}");
            assert_eq!(ops(&model), [op.as_str(), "MatMul", "Add", "Softmax"]);
            let product = maker(&model, "scores");
            assert_eq!(product.op_type, "MatMul");
            let scaled = maker(&model, &product.input[0]);
            assert_eq!(scaled.input[0], "q");
            let factor = model.graph().initializer(&scaled.input[1]).expect("factor");
            assert!(factor.dims.is_empty());
            assert_eq!(model.graph().initializer.len(), 1);
            assert_eq!(scale_query(&mut model).expect("again"), 0);
        }
    }

    #[test]
    fn scale_query_leaves_factors_that_are_not_one_number_or_are_read_twice() {
        let mul = || NodeProto::new("Mul", &["raw", "s"], &["scores"]);
        let mut per_head = attention(mul(), TensorProto::from_f32("s", &[2, 1], &[0.5, 0.25]));
        assert_eq!(scale_query(&mut per_head).expect("pass"), 0);
        let mut shared = attention(mul(), scalar("s", 0.5));
        shared.graph_mut().output.push(value("raw", F32));
        assert_eq!(scale_query(&mut shared).expect("pass"), 0);
        let divided = NodeProto::new("Div", &["s", "raw"], &["scores"]);
        let mut divided = attention(divided, scalar("s", 0.5));
        assert_eq!(scale_query(&mut divided).expect("pass"), 0);
    }
}
