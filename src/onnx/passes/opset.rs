//! Declare an opset that parsers know.
//!
//! Exporters name the newest opset that they know, and most of its operators mean what they meant
//! before: later versions only add element types. Where that holds for every node, the file is one
//! of the older opset, too.

use super::types::Refused;
use crate::error::{Error, Result};
use crate::onnx::OnnxModel;
use crate::onnx::proto::NodeProto;

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

/// Declares opset `newest` where the file says a later one; older files stay as they are.
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
    if opset <= newest {
        return Ok(());
    }
    let mut refused = Refused::default();
    let default_domain = |node: &&NodeProto| matches!(node.domain.as_str(), "" | "ai.onnx");
    for node in model.graph().node.iter().filter(default_domain) {
        let mut attributes = node.attribute.iter();
        let changed = CHANGED.contains(&node.op_type.as_str())
            || attributes.any(|a| NEW_ATTRIBUTES.contains(&a.name.as_str()));
        if changed {
            refused.add(node, &format!("means something else in opset {newest}"));
        }
    }
    refused.into_result()?;
    model.set_opset("", Some(newest));
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
        let blocks = NodeProto::new("DequantizeLinear", &["x", "x"], &["y"]);
        for node in [
            NodeProto::new("GroupNormalization", &["x"], &["y"]),
            blocks.with_int("block_size", 32),
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
}
