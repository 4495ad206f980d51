//! Put nodes into topological order.
//!
//! ONNX demands it, and some converters do not keep to it: FP16 converters append the casts of
//! inputs behind the nodes that read them. Every later pass goes over nodes in order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::{Error, Result};
use crate::onnx::OnnxModel;

/// Sorts nodes so that each stands behind those whose values it reads; nodes that do already
/// stay where they are.
///
/// # Errors
/// [`Error::Malformed`] if nodes read each other's values in a circle.
pub fn sort_nodes(model: &mut OnnxModel) -> Result<()> {
    let graph = model.graph();
    let producers = graph.producers();
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    let mut n_waiting = vec![0usize; graph.node.len()];
    for (name, consumers) in graph.consumers() {
        let Some(&producer) = producers.get(name) else {
            continue;
        };
        for reader in consumers {
            readers[producer].push(reader);
            n_waiting[reader] += 1;
        }
    }
    let mut ready: BinaryHeap<Reverse<usize>> = (0..n_waiting.len())
        .filter(|&index| n_waiting[index] == 0)
        .map(Reverse)
        .collect();
    let mut order = Vec::with_capacity(n_waiting.len());
    while let Some(Reverse(index)) = ready.pop() {
        order.push(index);
        for &reader in &readers[index] {
            n_waiting[reader] -= 1;
            if n_waiting[reader] == 0 {
                ready.push(Reverse(reader));
            }
        }
    }
    if let Some(index) = n_waiting.iter().position(|&n| n > 0) {
        let node = graph.node[index].label();
        return Err(Error::malformed(
            model.path(),
            format!("node `{node}` reads values that depend on its own"),
        ));
    }
    let graph = model.graph_mut();
    let mut nodes: Vec<_> = std::mem::take(&mut graph.node)
        .into_iter()
        .map(Some)
        .collect();
    graph.node = order.iter().filter_map(|&i| nodes[i].take()).collect();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{model, ops, value};
    use super::*;
    use crate::onnx::DataType::F32;
    use crate::onnx::proto::NodeProto;

    #[test]
    fn sort_nodes_moves_late_producers_only() {
        let mut model = model(
            vec![value("x", F32)],
            vec![],
            vec![
                NodeProto::new("Add", &["a", "b"], &["y"]),
                NodeProto::new("Relu", &["x"], &["b"]),
                NodeProto::new("Neg", &["x"], &["z"]),
                NodeProto::new("Abs", &["b"], &["a"]),
            ],
            vec![value("y", F32), value("z", F32)],
        );
        sort_nodes(&mut model).expect("pass");
        assert_eq!(ops(&model), ["Relu", "Neg", "Abs", "Add"]);
        sort_nodes(&mut model).expect("again");
        assert_eq!(ops(&model), ["Relu", "Neg", "Abs", "Add"]);
    }

    #[test]
    fn sort_nodes_in_a_circle_is_refused() {
        let mut model = model(
            vec![value("x", F32)],
            vec![],
            vec![
                NodeProto::new("Add", &["x", "b"], &["a"]),
                NodeProto::new("Relu", &["a"], &["b"]),
            ],
            vec![value("a", F32)],
        );
        let error = sort_nodes(&mut model).expect_err("circle").to_string();
        assert!(error.contains("depend on its own"), "{error}");
    }
}
