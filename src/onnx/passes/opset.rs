//! Declare an opset that parsers know.
//!
//! Exporters name the newest opset that they know, and most of its operators mean what they meant
//! before: later versions only add element types. Where that holds for every node, the file is one
//! of the older opset, too.

use super::types::Refused;
use crate::error::{Error, Result};
use crate::onnx::OnnxModel;
use crate::onnx::graph::Names;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};

/// Newest opset whose changes are known here.
const NEWEST_OPSET: i64 = 25;

/// Oldest opset that parsers still take.
const OLDEST_OPSET: i64 = 9;

/// Operators that opset 21 to 25 added, or gave another meaning.
const CHANGED: [&str; 6] = [
    "Attention",
    "GroupNormalization",
    "RMSNormalization",
    "RotaryEmbedding",
    "Swish",
    "TensorScatter",
];

/// Attributes that opset 21 to 25 added.
const NEW_ATTRIBUTES: [&str; 4] = ["block_size", "output_dtype", "precision", "round_mode"];

/// The opset that has Q/DQ in blocks, and integers of four bits.
pub const BLOCKS_OPSET: i64 = 21;

/// True if a graph has Q/DQ in blocks.
pub fn has_blocks(graph: &GraphProto) -> bool {
    let in_blocks = |node: &NodeProto| {
        let q_dq = matches!(node.op().as_str(), "QuantizeLinear" | "DequantizeLinear");
        q_dq && node
            .attr("block_size")
            .and_then(|a| a.i)
            .is_some_and(|n| n != 0)
    };
    graph.node.iter().any(in_blocks)
}

/// Declares opset `newest` where the file says a later one; older files stay as they are. A graph
/// [with blocks](has_blocks) is of opset 21 at least, the first that has them.
///
/// # Errors
/// [`Error::Unsupported`] naming all nodes that mean something else in the older opset;
/// [`Error::Malformed`] for a file without opset, or of one that is not known.
pub fn declare_opset(model: &mut OnnxModel, newest: i64) -> Result<()> {
    let path = model.path();
    let opset = model
        .opset("")
        .ok_or_else(|| Error::malformed(path, "says no opset"))?;
    if !(OLDEST_OPSET..=NEWEST_OPSET).contains(&opset) {
        return Err(Error::malformed(
            path,
            format!("opset {opset}, supported are {OLDEST_OPSET} to {NEWEST_OPSET}"),
        ));
    }
    let blocks = has_blocks(model.graph());
    let newest = if blocks {
        newest.max(BLOCKS_OPSET)
    } else {
        newest
    };
    if opset <= newest {
        return Ok(());
    }
    let mut refused = Refused::default();
    let default_domain = |node: &&NodeProto| matches!(node.domain.as_str(), "" | "ai.onnx");
    for node in model.graph().node.iter().filter(default_domain) {
        let mut attributes = node.attribute.iter();
        let changed = CHANGED.contains(&node.op_type.as_str())
            || attributes.any(|a| {
                let known = a.name == "block_size" && newest >= BLOCKS_OPSET;
                NEW_ATTRIBUTES.contains(&a.name.as_str()) && !known
            });
        if changed {
            refused.add(node, &format!("means something else in opset {newest}"));
        }
    }
    refused.into_result()?;
    model.set_opset("", Some(newest));
    Ok(())
}

/// Oldest opset that [`raise_opset`] starts from: before it, what axes mean was an attribute of
/// many operators, and Softmax another function.
const OLDEST_RAISED: i64 = 13;

/// Reductions whose axes became an input in opset 18 (that of ReduceSum did before).
const REDUCTIONS: [&str; 9] = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
];

/// Makes a file of opset 13 to 18 one of opset 19, the first whose Q/DQ operators take FP16
/// scales, and one [with blocks](has_blocks) one of opset 21; later ones stay as they are.
///
/// # Errors
/// [`Error::Malformed`] for older files; [`Error::Unsupported`] naming all nodes that mean
/// something else since.
pub fn raise_opset(model: &mut OnnxModel) -> Result<()> {
    let blocks = has_blocks(model.graph());
    let raised = if blocks { BLOCKS_OPSET } else { 19 };
    let opset = model.opset("").unwrap_or(0);
    if opset >= raised {
        return Ok(());
    }
    if opset < OLDEST_RAISED {
        return Err(Error::malformed(
            model.path(),
            format!(
                "opset {opset}, quantization needs {OLDEST_RAISED} or later: export the model again"
            ),
        ));
    }
    let graph = model.graph_mut();
    let mut names = Names::of(graph);
    let (mut refused, mut made) = (Refused::default(), Vec::new());
    for node in &mut graph.node {
        match node.op_type.as_str() {
            _ if !matches!(node.domain.as_str(), "" | "ai.onnx") => {}
            // Its default of how coordinates are taken changed in opset 16.
            "RoiAlign" if opset < 16 => {
                refused.add(node, &format!("means something else in opset {raised}"));
            }
            // Names of its modes changed in opset 20; groups became another thing in 21.
            "GridSample" | "GroupNormalization" if blocks => {
                refused.add(node, &format!("means something else in opset {raised}"));
            }
            op if REDUCTIONS.contains(&op) && opset < 18 => {
                let axes = node.attribute.iter().position(|a| a.name == "axes");
                if let Some(axes) = axes.map(|index| node.attribute.remove(index).ints) {
                    let name = names.fresh(&format!("{}/axes", node.label()));
                    made.push(TensorProto::from_i64(&name, &[axes.len() as i64], &axes));
                    node.input.truncate(1);
                    node.input.push(name);
                }
            }
            "Split" if opset < 18 && node.input.get(1).is_none_or(String::is_empty) => {
                node.set_int("num_outputs", node.output.len() as i64);
            }
            _ => {}
        }
    }
    refused.into_result()?;
    graph.initializer.append(&mut made);
    model.set_opset("", Some(raised));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{model, value};
    use super::*;
    use crate::onnx::DataType::F32;

    fn with(node: NodeProto, opset: Option<i64>) -> OnnxModel {
        let mut model = model(
            vec![value("x", F32)],
            vec![],
            vec![node],
            vec![value("y", F32)],
        );
        model.set_opset("", opset);
        model
    }

    #[test]
    fn declare_opset_lowers_what_means_the_same() {
        for (opset, expected) in [(21, 20), (25, 20), (20, 20), (17, 17)] {
            let mut model = with(NodeProto::new("Relu", &["x"], &["y"]), Some(opset));
            declare_opset(&mut model, 20).expect("pass");
            assert_eq!(model.opset(""), Some(expected));
        }
    }

    #[test]
    fn declare_opset_refuses_what_does_not() {
        let quantize = NodeProto::new("QuantizeLinear", &["x", "x"], &["y"]);
        for node in [
            NodeProto::new("GroupNormalization", &["x"], &["y"]),
            quantize.with_int("output_dtype", 3),
        ] {
            let error = declare_opset(&mut with(node.clone(), Some(21)), 20).expect_err("changed");
            assert!(matches!(&error, Error::Unsupported { op, .. } if *op == node.op_type));
            assert!(declare_opset(&mut with(node, Some(20)), 20).is_ok());
        }
        for opset in [None, Some(8), Some(26), Some(-1)] {
            let mut model = with(NodeProto::new("Relu", &["x"], &["y"]), opset);
            let error = declare_opset(&mut model, 20).expect_err("opset");
            assert!(matches!(error, Error::Malformed { .. }), "{error}");
        }
    }

    #[test]
    fn graphs_with_blocks_are_of_the_opset_that_has_them() {
        let blocks = || {
            let node = NodeProto::new("DequantizeLinear", &["x", "x"], &["y"]);
            node.with_int("block_size", 32)
        };
        for (opset, expected) in [(23, 21), (21, 21), (17, 17)] {
            let mut model = with(blocks(), Some(opset));
            declare_opset(&mut model, 20).expect("pass");
            assert_eq!(model.opset(""), Some(expected));
            raise_opset(&mut model).expect("raised");
            assert_eq!(model.opset(""), Some(21));
        }
        let mut model = with(blocks(), Some(17));
        let grid = NodeProto::new("GridSample", &["x", "x"], &["g"]);
        model.graph_mut().node.push(grid);
        let error = raise_opset(&mut model).expect_err("changed").to_string();
        assert!(error.contains("GridSample"), "{error}");
    }

    #[test]
    fn raise_opset_gives_reductions_and_splits_their_new_form() {
        let nodes = vec![
            NodeProto::new("ReduceMean", &["x"], &["m"]).with_ints("axes", &[-1]),
            NodeProto::new("ReduceSum", &["x", "axes"], &["s"]),
            NodeProto::new("Split", &["x"], &["y", "z"]).with_int("axis", 1),
        ];
        let outputs = vec![value("y", F32), value("m", F32)];
        let mut raised = model(vec![value("x", F32)], vec![], nodes, outputs);
        raise_opset(&mut raised).expect("pass");
        assert_eq!(raised.opset(""), Some(19));
        let graph = raised.graph();
        let mean = &graph.node[0];
        assert!(mean.attr("axes").is_none());
        let axes = graph.initializer(&mean.input[1]).expect("axes");
        assert_eq!(axes.to_i64(raised.path()).expect("integers"), [-1]);
        assert_eq!(graph.node[1].input, ["x", "axes"]);
        assert_eq!(graph.node[2].attr("num_outputs").and_then(|a| a.i), Some(2));
        let before = raised.graph().clone();
        raise_opset(&mut raised).expect("nothing to do");
        assert_eq!(*raised.graph(), before);
    }

    #[test]
    fn raise_opset_of_an_old_file_or_a_changed_operator_is_refused() {
        let roi = vec![NodeProto::new("RoiAlign", &["x", "x", "x"], &["y"])];
        for (opset, expected) in [(11, "opset 11"), (13, "RoiAlign")] {
            let outputs = vec![value("y", F32)];
            let mut old = model(vec![value("x", F32)], vec![], roi.clone(), outputs);
            old.set_opset("", Some(opset));
            let error = raise_opset(&mut old).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
