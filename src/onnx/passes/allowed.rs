//! Refuse what a parser does not take, before it sees it.
//!
//! Parsers differ in what they take, and some die of what they do not. The list of operators is
//! the caller's; this is the check, the last of all passes.

use super::types::Refused;
use crate::error::Result;
use crate::onnx::OnnxModel;

/// Checks that every node has one of the operators `allowed`, of the default domain, and returns
/// more than one value only if it is one of `several`.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) naming all nodes that have not.
pub fn check_operators(model: &OnnxModel, allowed: &[&str], several: &[&str]) -> Result<()> {
    let mut refused = Refused::default();
    for node in &model.graph().node {
        let op = node.op();
        let n_outputs = node.output.iter().filter(|name| !name.is_empty()).count();
        if !allowed.contains(&op.as_str()) {
            refused.add(node, "not an operator that the parser takes");
        } else if n_outputs > 1 && !several.contains(&op.as_str()) {
            refused.add(node, "more than one output");
        }
    }
    refused.into_result()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{model, value};
    use super::*;
    use crate::onnx::DataType::F32;
    use crate::onnx::proto::NodeProto;

    #[test]
    fn check_operators_names_all_that_are_not_allowed() {
        let mut foreign = NodeProto::new("Relu", &["x"], &["a"]);
        foreign.domain = "vendor".to_owned();
        let model = model(
            vec![value("x", F32)],
            vec![],
            vec![
                foreign,
                NodeProto::new("Wobble", &["x"], &["b"]),
                NodeProto::new("Split", &["x"], &["c", "d"]),
                NodeProto::new("TopK", &["x"], &["e", "f"]),
                NodeProto::new("Relu", &["x"], &["y", ""]),
            ],
            vec![value("y", F32)],
        );
        let allowed = ["Relu", "Split", "TopK"];
        let error = check_operators(&model, &allowed, &["Split"]).expect_err("refused");
        let error = error.to_string();
        for part in [
            "a/Relu",
            "b/Wobble",
            "e/TopK",
            "vendor.Relu",
            "more than one output",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(
            !error.contains("c/Split") && !error.contains("y/Relu"),
            "{error}"
        );
        assert!(check_operators(&model, &["Relu"], &[]).is_err());
    }
}
