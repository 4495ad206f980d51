//! Keep the features of all picture tiles, in order.
//!
//! Exports of SmolVLM drop tiles that are padding, by looking for pixels that are not zero
//! (`NonZero`, then `GatherND`), so that the number of rows depends on the pixels: an engine
//! cannot plan that. The runtime knows which tiles are padding, and our processor makes none.
//!
//! **What the caller has to do then**: not give padded tiles. A tile that is given counts, even if
//! all of its pixels are zero, so the features of tile `i` are at index `i` whatever is in it.

use std::collections::HashMap;

use crate::error::Result;
use crate::onnx::OnnxModel;
use crate::onnx::proto::{GraphProto, NodeProto};

/// Longest way from a `NonZero` to what selects by it.
const MAX_STEPS: usize = 4;

/// Replaces selections of rows by where a vector is not zero with the rows themselves. Returns how
/// many selections were taken away.
///
/// # Errors
/// None today; the signature is that of all passes.
pub fn keep_all_tiles(model: &mut OnnxModel) -> Result<usize> {
    let graph = model.graph();
    let producers = graph.producers();
    let outputs: Vec<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let mut kept: HashMap<String, String> = HashMap::new();
    for node in &graph.node {
        let Some((rows, indices)) = selection(node) else {
            continue;
        };
        if from_non_zero(graph, &producers, indices) && !outputs.contains(&node.output[0].as_str())
        {
            kept.insert(node.output[0].clone(), rows.to_owned());
        }
    }
    let n_kept = kept.len();
    if n_kept > 0 {
        let graph = model.graph_mut();
        graph.redirect(&kept);
        graph.remove_unused();
    }
    Ok(n_kept)
}

/// The rows that a node selects from, and by what.
fn selection(node: &NodeProto) -> Option<(&str, &str)> {
    let of_rows = match node.op_type.as_str() {
        "GatherND" => node.attr("batch_dims").is_none_or(|a| a.i == Some(0)),
        "Gather" => node.attr("axis").is_some_and(|a| a.i == Some(0)),
        _ => false,
    };
    let operands = (node.input.first()?, node.input.get(1)?);
    (of_rows && node.output.len() == 1).then_some((operands.0, operands.1))
}

/// True if `value` is the indices of what is not zero, in another layout at most.
fn from_non_zero(graph: &GraphProto, producers: &HashMap<&str, usize>, value: &str) -> bool {
    let mut value = value;
    for _ in 0..MAX_STEPS {
        let Some(&index) = producers.get(value) else {
            return false;
        };
        let node = &graph.node[index];
        let layout = ["Transpose", "Squeeze", "Reshape", "Flatten", "Cast"];
        match node.op_type.as_str() {
            "NonZero" => return of_tiles(graph, producers, &node.input),
            op if layout.contains(&op) => {
                value = node.input.first().map_or("", String::as_str);
            }
            _ => return false,
        }
    }
    false
}

/// True if what is not zero are tiles with a pixel in them: a comparison of a sum over pixels.
fn of_tiles(graph: &GraphProto, producers: &HashMap<&str, usize>, flags: &[String]) -> bool {
    let maker = |value: &str| producers.get(value).map(|&index| &graph.node[index]);
    let flags = flags.first().and_then(|flags| maker(flags));
    let sum = flags.filter(|node| ["Greater", "Not", "Equal"].contains(&node.op_type.as_str()));
    let sum = sum.and_then(|node| maker(node.input.first()?));
    let reduces = |node: &NodeProto| {
        ["ReduceSum", "ReduceMax", "Equal", "ReduceMin"].contains(&node.op_type.as_str())
    };
    sum.is_some_and(reduces)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{maker, model, ops, scalar, value};
    use super::*;
    use crate::onnx::DataType::{F32, I64};
    use crate::onnx::proto::TensorProto;

    /// Selects tiles of `x`, as exports do.
    fn filter(select: NodeProto) -> OnnxModel {
        let nodes = vec![
            NodeProto::new("Equal", &["x", "zero"], &["is_zero"]),
            NodeProto::new("Not", &["is_zero"], &["is_pixel"]),
            NodeProto::new("ReduceSum", &["is_pixel", "axes"], &["n"]),
            NodeProto::new("Greater", &["n", "none"], &["is_tile"]),
            NodeProto::new("NonZero", &["is_tile"], &["where"]),
            NodeProto::new("Transpose", &["where"], &["indices"]),
            select,
            NodeProto::new("Relu", &["tiles"], &["y"]),
        ];
        let axes = TensorProto::from_i64("axes", &[1], &[1]);
        let none = TensorProto::from_i64("none", &[], &[0]);
        model(
            vec![value("x", F32), value("ids", I64)],
            vec![scalar("zero", 0.0), axes, none],
            nodes,
            vec![value("y", F32)],
        )
    }

    #[test]
    fn keep_all_tiles_takes_the_filter_away() {
        let gather = NodeProto::new("Gather", &["x", "indices"], &["tiles"]).with_int("axis", 0);
        for select in [
            NodeProto::new("GatherND", &["x", "indices"], &["tiles"]),
            gather,
        ] {
            let mut model = filter(select);
            assert_eq!(keep_all_tiles(&mut model).expect("pass"), 1);
            assert_eq!(ops(&model), ["Relu"]);
            assert_eq!(maker(&model, "y").input, ["x"]);
            assert_eq!(keep_all_tiles(&mut model).expect("again"), 0);
        }
    }

    #[test]
    fn keep_all_tiles_leaves_other_selections() {
        let columns = NodeProto::new("Gather", &["x", "indices"], &["tiles"]).with_int("axis", 1);
        let ids = NodeProto::new("GatherND", &["x", "ids"], &["tiles"]);
        for select in [columns, ids] {
            let mut model = filter(select);
            assert_eq!(keep_all_tiles(&mut model).expect("pass"), 0);
        }
    }
}
