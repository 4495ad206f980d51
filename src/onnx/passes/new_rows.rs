//! Return new rows of the KV cache only.
//!
//! A hub decoder takes the cache and returns it with the new rows behind it: every step copies
//! everything. With a cache of fixed capacity that the runtime owns, the decoder returns what is
//! new, and the runtime appends it; taking a rejected draft back is moving an offset.
//!
//! | tensor                     | before                         | after |
//! |----------------------------|--------------------------------|-------|
//! | `past_key_values.N.key`    | `[batch, kv_heads, past, d]`   | the same; `past` is the capacity, unused slots are masked |
//! | `attention_mask`           | `[batch, past + rows]`         | the same: slots in use, then the new rows |
//! | `present.N.key`            | `[batch, kv_heads, past + rows, d]` | gone |
//! | `new.N.key`                | -                              | `[batch, kv_heads, rows, d]` |
//!
//! What attends to the cache is not changed: it reads all slots, and the mask says which count.
//! Slots that are masked may hold anything finite.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::onnx::OnnxModel;
use crate::onnx::proto::{GraphProto, NodeProto, ValueInfoProto};
use crate::onnx::{Dim, ValueType};

/// Prefix of the names of outputs that hold new rows, as `present` is of those that hold all.
pub const NEW_PREFIX: &str = "new";

/// Axis of KV tensors that grows.
const ROW_AXIS: i64 = 2;

/// Operators that hand a value on as it is.
const VIEWS: [&str; 2] = ["Identity", "Cast"];

/// Replaces each output `{present}.N.key|value` by `new.N.key|value`, the rows that are appended
/// to the input `{past}.N.key|value`. Returns how many; none if they are replaced
/// already.
///
/// # Errors
/// [`Error::Unsupported`] naming the output that is not an input with rows behind it.
pub fn return_new_rows(model: &mut OnnxModel, past: &str, present: &str) -> Result<usize> {
    let path = model.path().display().to_string();
    let graph = model.graph();
    let mut rows = HashMap::new();
    for output in &graph.output {
        let Some(rest) = output
            .name
            .strip_prefix(present)
            .filter(|rest| rest.starts_with('.'))
        else {
            continue;
        };
        let past = format!("{past}{rest}");
        let found = appended(graph, &output.name, &past).ok_or_else(|| Error::Unsupported {
            node: output.name.clone(),
            op: "KV cache".to_owned(),
            reason: format!("{path}: not `{past}` with new rows behind it"),
        })?;
        rows.insert(
            output.name.clone(),
            (found.to_owned(), format!("{NEW_PREFIX}{rest}")),
        );
    }
    let graph = model.graph_mut();
    for output in &mut graph.output {
        let Some((_, name)) = rows.get(&output.name) else {
            continue;
        };
        let mut value = ValueType::from(&*output);
        value.name.clone_from(name);
        if let Some(dim) = value
            .dims
            .as_mut()
            .and_then(|d| d.get_mut(ROW_AXIS as usize))
        {
            *dim = Dim::Unknown;
        }
        *output = ValueInfoProto::from(&value);
    }
    let n_outputs = rows.len();
    let mut names: Vec<_> = rows.into_values().collect();
    names.sort();
    for (value, name) in names {
        graph
            .node
            .push(NodeProto::new("Identity", &[&value], &[&name]));
    }
    Ok(n_outputs)
}

/// The rows that `present` has behind `past`.
fn appended<'a>(graph: &'a GraphProto, present: &str, past: &str) -> Option<&'a str> {
    let producers = graph.producers();
    let made_by = |value: &str| producers.get(value).map(|&index| &graph.node[index]);
    let is_view = |node: &NodeProto| {
        let trivial = node.op_type == "Concat" && node.input.len() == 1;
        trivial || VIEWS.contains(&node.op_type.as_str())
    };
    let mut value = present;
    let append = loop {
        let node = made_by(value)?;
        if node.op_type == "Concat" && node.input.len() == 2 {
            break node;
        }
        if !is_view(node) {
            return None;
        }
        value = &node.input[0];
    };
    let axis = append.attr("axis").and_then(|a| a.i)?;
    let mut old = append.input[0].as_str();
    while let Some(node) = made_by(old).filter(|node| is_view(node)) {
        old = &node.input[0];
    }
    let appends = (axis == ROW_AXIS || axis == ROW_AXIS - 4) && old == past;
    appends.then(|| append.input[1].as_str())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{maker, model, ops, shaped};
    use super::*;
    use crate::onnx::DataType::F32;

    fn kv(name: &str, rows: &str) -> ValueInfoProto {
        let dims = [
            Dim::Fixed(1),
            Dim::Fixed(2),
            Dim::Named(rows.to_owned()),
            Dim::Fixed(4),
        ];
        shaped(name, F32, &dims)
    }

    fn decoder(axis: i64, wrapped: bool) -> OnnxModel {
        let past = if wrapped { "again" } else { "past.0.key" };
        model(
            vec![kv("past.0.key", "past"), kv("x", "rows")],
            vec![],
            vec![
                NodeProto::new("Concat", &["past.0.key"], &["again"]).with_int("axis", -2),
                NodeProto::new("Neg", &["x"], &["k"]),
                NodeProto::new("Concat", &[past, "k"], &["present.0.key"]).with_int("axis", axis),
                NodeProto::new("Softmax", &["present.0.key"], &["y"]),
            ],
            vec![kv("y", "total"), kv("present.0.key", "total")],
        )
    }

    #[test]
    fn return_new_rows_replaces_the_output_and_leaves_what_reads_the_cache() {
        for (axis, wrapped) in [(2, false), (-2, true)] {
            let mut model = decoder(axis, wrapped);
            let n = return_new_rows(&mut model, "past", "present").expect("pass");
            assert_eq!(n, 1);
            let names: Vec<_> = model
                .graph()
                .outputs()
                .into_iter()
                .map(|o| o.name)
                .collect();
            assert_eq!(names, ["y", "new.0.key"]);
            assert_eq!(maker(&model, "new.0.key").input, ["k"]);
            assert_eq!(maker(&model, "y").input, ["present.0.key"]);
            assert_eq!(ops(&model).last(), Some(&"Identity"));
            let again = return_new_rows(&mut model, "past", "present").expect("again");
            assert_eq!(again, 0);
        }
    }

    #[test]
    fn return_new_rows_of_an_output_that_is_no_cache_is_refused() {
        let mut other_axis = decoder(1, false);
        let error = return_new_rows(&mut other_axis, "past", "present").expect_err("axis");
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        let mut other_past = decoder(2, false);
        let error = return_new_rows(&mut other_past, "cache", "present").expect_err("input");
        assert!(error.to_string().contains("cache.0.key"), "{error}");
    }
}
