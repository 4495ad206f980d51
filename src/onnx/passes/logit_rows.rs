//! Compute logits only for rows that are asked for.
//!
//! | tensor       | shape                | dtype |
//! |--------------|----------------------|-------|
//! | `logit_rows` | `[rows]`             | i64   |
//! | `logits`     | `[batch, rows, vocab]` | as before |
//!
//! A prefill needs the last row alone; the LM head over all rows would be 28 % of the work of
//! FastVLM-0.5B and 182 MB of output at 300 rows. The rows are gathered before the LM head, so
//! that nothing is computed and thrown away.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::onnx::proto::{GraphProto, NodeProto, ValueInfoProto};
use crate::onnx::{DataType, Dim, OnnxModel, ValueType};

/// Name of the input that lists the rows.
pub const LOGIT_ROWS: &str = "logit_rows";

/// Operators that multiply rows of their first input with a weight.
const LINEAR: [&str; 4] = ["MatMul", "MatMulNBits", "MatMulInteger", "FusedMatMul"];

/// Operators that work on each element of a row, whatever the other rows are.
const ELEMENTWISE: [&str; 6] = ["Cast", "Identity", "Mul", "Div", "Add", "Sub"];

/// Adds the input `logit_rows` and gathers those rows before the LM head of `logits`.
///
/// Graphs that have the input already are left as they are.
///
/// # Errors
/// [`Error::Shape`] if the graph has no output `logits`, [`Error::Unsupported`] if no linear
/// operator is found above it.
pub fn select_logit_rows(model: &mut OnnxModel) -> Result<()> {
    let path = model.path().display().to_string();
    let graph = model.graph_mut();
    if graph.input.iter().any(|input| input.name == LOGIT_ROWS) {
        return Ok(());
    }
    if !graph.output.iter().any(|output| output.name == "logits") {
        return Err(Error::Shape {
            name: "logits".to_owned(),
            expected: format!("an output of {path}"),
            actual: "none".to_owned(),
        });
    }
    let head = lm_head(graph, "logits").ok_or_else(|| Error::Unsupported {
        node: "logits".to_owned(),
        op: "LM head".to_owned(),
        reason: format!("{path}: no linear operator found above `logits`"),
    })?;

    let hidden = graph.node[head].input[0].clone();
    let rows = graph.fresh_name("logit_hidden");
    let gather = NodeProto::new("Gather", &[&hidden, LOGIT_ROWS], &[&rows]).with_int("axis", 1);
    graph.node[head].input[0] = rows;
    graph.node.insert(head, gather);

    let rows = Dim::Named(LOGIT_ROWS.to_owned());
    graph.input.push(ValueInfoProto::from(&ValueType {
        name: LOGIT_ROWS.to_owned(),
        dtype: Some(DataType::I64),
        dims: Some(vec![rows.clone()]),
    }));
    for output in graph.output.iter_mut().filter(|o| o.name == "logits") {
        let mut value = ValueType::from(&*output);
        if let Some(dims) = value.dims.as_mut().filter(|dims| dims.len() == 3) {
            dims[1] = rows.clone();
        }
        *output = ValueInfoProto::from(&value);
    }
    // Inner values between the gather and `logits` had the sequence as a dimension.
    let changed = values_between(graph, head + 1);
    graph
        .value_info
        .retain(|info| !changed.contains(&info.name));
    Ok(())
}

/// Takes back what [`select_logit_rows`] did: all rows have logits again, as hubs publish decoders.
/// Graphs without the input are left as they are.
pub fn all_logit_rows(model: &mut OnnxModel) {
    let graph = model.graph_mut();
    let is_gather =
        |node: &NodeProto| node.op_type == "Gather" && node.input.iter().any(|i| i == LOGIT_ROWS);
    let Some(index) = graph.node.iter().position(is_gather) else {
        return;
    };
    let gather = graph.node.remove(index);
    graph.input.retain(|input| input.name != LOGIT_ROWS);
    let all = [(gather.output[0].clone(), gather.input[0].clone())];
    graph.redirect(&all.into());
    // Rows of logits are the rows of what went in.
    let embeds = graph.inputs().into_iter().find_map(|input| {
        let dims = input.dims.filter(|dims| dims.len() == 3)?;
        Some(dims[1].clone())
    });
    for output in &mut graph.output {
        let mut value = ValueType::from(&*output);
        let selected = Dim::Named(LOGIT_ROWS.to_owned());
        let dims = value.dims.iter_mut().flatten();
        for dim in dims.filter(|dim| **dim == selected) {
            *dim = embeds.clone().unwrap_or(Dim::Unknown);
        }
        *output = ValueInfoProto::from(&value);
    }
}

/// Index of the linear operator that `value` comes from, through elementwise operators only.
pub(crate) fn lm_head(graph: &GraphProto, value: &str) -> Option<usize> {
    const MAX_NODES: usize = 16;
    let producers = graph.producers();
    let (mut open, mut seen) = (vec![value], HashSet::new());
    while let Some(value) = open.pop() {
        let Some(&index) = producers.get(value) else {
            continue;
        };
        if !seen.insert(index) || seen.len() > MAX_NODES {
            continue;
        }
        let node = &graph.node[index];
        if LINEAR.contains(&node.op_type.as_str()) {
            return Some(index);
        }
        if ELEMENTWISE.contains(&node.op_type.as_str()) {
            // The first input is looked at first.
            open.extend(node.input.iter().rev().map(String::as_str));
        }
    }
    None
}

fn values_between(graph: &GraphProto, first: usize) -> Vec<String> {
    graph.node[first..]
        .iter()
        .flat_map(|node| node.output.iter().cloned())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use prost::Message;

    use super::*;
    use crate::onnx::proto::{ModelProto, TensorProto};

    fn model(nodes: Vec<NodeProto>) -> OnnxModel {
        let value = |name: &str| {
            ValueInfoProto::from(&ValueType {
                name: name.to_owned(),
                dtype: Some(DataType::F32),
                dims: Some(vec![
                    Dim::Fixed(1),
                    Dim::Named("sequence".to_owned()),
                    Dim::Fixed(2),
                ]),
            })
        };
        let proto = ModelProto {
            graph: Some(GraphProto {
                node: nodes,
                initializer: vec![TensorProto::from_f32("w", &[2, 2], &[0.0; 4])],
                input: vec![value("x")],
                output: vec![value("logits")],
                ..GraphProto::default()
            }),
            ..ModelProto::default()
        };
        OnnxModel::parse(Path::new("test.onnx"), Bytes::from(proto.encode_to_vec())).expect("parse")
    }

    #[test]
    fn select_logit_rows_gathers_before_the_linear_operator() {
        let mut model = model(vec![
            NodeProto::new("Relu", &["x"], &["hidden"]),
            NodeProto::new("MatMul", &["hidden", "w"], &["y"]),
            NodeProto::new("Cast", &["y"], &["logits"]),
        ]);
        select_logit_rows(&mut model).expect("pass");
        select_logit_rows(&mut model).expect("a second time changes nothing");
        let ops: Vec<_> = model
            .graph()
            .node
            .iter()
            .map(|n| n.op_type.as_str())
            .collect();
        assert_eq!(ops, ["Relu", "Gather", "MatMul", "Cast"]);
        assert_eq!(model.graph().node[1].input, ["hidden", LOGIT_ROWS]);
        assert_eq!(
            model.graph().node[2].input[0],
            model.graph().node[1].output[0]
        );
        assert_eq!(
            model.graph().outputs()[0].to_string(),
            "f32 [1, logit_rows, 2]"
        );
    }

    #[test]
    fn all_logit_rows_undoes_the_selection() {
        let mut model = model(vec![
            NodeProto::new("Relu", &["x"], &["hidden"]),
            NodeProto::new("MatMul", &["hidden", "w"], &["y"]),
            NodeProto::new("Cast", &["y"], &["logits"]),
        ]);
        let before = model.graph().clone();
        all_logit_rows(&mut model);
        assert_eq!(*model.graph(), before);
        select_logit_rows(&mut model).expect("pass");
        all_logit_rows(&mut model);
        assert_eq!(*model.graph(), before);
    }

    #[test]
    fn select_logit_rows_of_a_graph_that_fans_out_without_end_is_refused_at_once() {
        let mut nodes = vec![NodeProto::new("Add", &["x", "x"], &["v0"])];
        for level in 1..12 {
            let (input, output) = (format!("v{}", level - 1), format!("v{level}"));
            nodes.push(NodeProto::new("Add", &[input.as_str(); 64], &[&output]));
        }
        nodes.push(NodeProto::new("Identity", &["v11"], &["logits"]));
        let mut model = model(nodes);
        assert!(select_logit_rows(&mut model).is_err());
    }

    #[test]
    fn select_logit_rows_without_lm_head_is_refused() {
        let mut softmax = model(vec![NodeProto::new("Softmax", &["x"], &["logits"])]);
        assert!(matches!(
            select_logit_rows(&mut softmax),
            Err(Error::Unsupported { .. })
        ));
    }
}
