//! Let the caller say at which position each new row stands.
//!
//! | tensor         | shape           | dtype |
//! |----------------|-----------------|-------|
//! | `position_ids` | `[batch, rows]` | i64   |
//!
//! A prompt whose visual tokens were dropped has gaps between its positions. Attention that turns
//! query and key itself (`com.microsoft.GroupQueryAttention` with `do_rotary`) counts rows by the
//! cache, and would move everything behind a gap; its tenth input says better. Published decoders
//! of this form lack `position_ids`, or have it and read it nowhere.

use crate::onnx::proto::{GraphProto, NodeProto, ValueInfoProto};
use crate::onnx::{DataType, Dim, OnnxModel, ValueType};

/// The input of the operator that has positions.
const POSITIONS: usize = 9;

/// Gives `position_ids` to every attention that would count by itself, as an input of the graph
/// with the first two dimensions of `inputs_embeds`. An input of that name that nothing reads goes,
/// so that whoever binds inputs sees that positions are no matter of this graph.
///
/// Attention inside a subgraph is left as it is.
pub fn place_rows(model: &mut OnnxModel, position_ids: &str, inputs_embeds: &str) {
    let graph = model.graph_mut();
    let mut counting: Vec<&mut NodeProto> = graph
        .node
        .iter_mut()
        .filter(|node| counts_by_itself(node))
        .collect();
    let n_placed = counting.len();
    for node in &mut counting {
        let n_inputs = node.input.len().max(POSITIONS + 1);
        node.input.resize(n_inputs, String::new());
        node.input[POSITIONS] = position_ids.to_owned();
    }
    let place = graph.input.iter().position(|i| i.name == position_ids);
    match place {
        None if n_placed > 0 => {
            let input = positions(graph, position_ids, inputs_embeds);
            graph.input.push(input);
        }
        Some(at) if !is_read(graph, position_ids) => {
            graph.input.remove(at);
        }
        _ => {}
    }
}

fn counts_by_itself(node: &NodeProto) -> bool {
    let turns = |node: &NodeProto| {
        let flag = node.attr("do_rotary").and_then(|flag| flag.i);
        flag.is_some_and(|flag| flag != 0)
    };
    node.op() == "com.microsoft.GroupQueryAttention"
        && node.input.get(POSITIONS).is_none_or(String::is_empty)
        && turns(node)
}

fn is_read(graph: &GraphProto, name: &str) -> bool {
    let mut found = graph.output.iter().any(|output| output.name == name);
    for node in &graph.node {
        node.each_read(&mut |read| found |= read == name);
    }
    found
}

fn positions(graph: &GraphProto, name: &str, inputs_embeds: &str) -> ValueInfoProto {
    let embeds = graph.inputs().into_iter().find(|i| i.name == inputs_embeds);
    let dims = embeds.and_then(|embeds| Some(embeds.dims?.get(..2)?.to_vec()));
    ValueInfoProto::from(&ValueType {
        name: name.to_owned(),
        dtype: Some(DataType::I64),
        dims: Some(dims.unwrap_or_else(|| vec![Dim::Unknown, Dim::Unknown])),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{model, shaped, value};
    use super::*;

    fn attention(inputs: &[&str], do_rotary: i64) -> NodeProto {
        let node = NodeProto::new("GroupQueryAttention", inputs, &["y"]);
        NodeProto {
            domain: "com.microsoft".to_owned(),
            ..node.with_int("do_rotary", do_rotary)
        }
    }

    /// The inputs of the graph, and those of its attention, after the pass.
    fn placed(node: NodeProto, has_positions: bool) -> (Vec<String>, Vec<String>) {
        let rows = Dim::Named("rows".to_owned());
        let dims = [Dim::Fixed(1), rows, Dim::Fixed(8)];
        let mut inputs = vec![shaped("x", DataType::F32, &dims)];
        if has_positions {
            inputs.push(shaped("at", DataType::I64, &dims[..2]));
        }
        let output = vec![value("y", DataType::F32)];
        let mut graph = model(inputs, Vec::new(), vec![node], output);
        place_rows(&mut graph, "at", "x");
        let inputs = graph.graph().inputs();
        let shown = inputs.iter().map(|input| format!("{} {input}", input.name));
        (shown.collect(), graph.graph().node[0].input.clone())
    }

    #[test]
    fn attention_that_counts_by_itself_is_told_its_positions() {
        let seven = ["q", "k", "v", "pk", "pv", "n", "total"];
        let nine = [&seven[..], &["cos", "sin"]].concat();
        let eleven = [&nine[..], &["", "bias"]].concat();
        for inputs in [nine.clone(), eleven.clone()] {
            for has_positions in [false, true] {
                let (graph, node) = placed(attention(&inputs, 1), has_positions);
                assert_eq!(node[POSITIONS], "at");
                assert_eq!(node[..POSITIONS], nine);
                assert_eq!(node.get(10).map(String::as_str), inputs.get(10).copied());
                assert_eq!(graph.len(), 2, "{graph:?}");
                assert!(graph[1].starts_with("at "), "{graph:?}");
                assert!(graph[1].ends_with("i64 [1, rows]"), "{graph:?}");
            }
        }
    }

    #[test]
    fn positions_that_nothing_reads_are_no_input() {
        let inputs = ["q", "k", "v", "pk", "pv", "n", "total"];
        let (graph, node) = placed(attention(&inputs, 0), true);
        assert_eq!((graph.len(), node.len()), (1, 7), "{graph:?}");
        let (graph, _) = placed(NodeProto::new("Add", &["x", "at"], &["y"]), true);
        assert_eq!(graph.len(), 2, "{graph:?}");
        let (graph, _) = placed(NodeProto::new("Neg", &["x"], &["y"]), false);
        assert_eq!(graph.len(), 1, "{graph:?}");
        // Told by the file already.
        let told = [&inputs[..], &["cos", "sin", "mine"]].concat();
        let (_, node) = placed(attention(&told, 1), false);
        assert_eq!(node[POSITIONS], "mine");
    }
}
