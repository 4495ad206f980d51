//! Which values of a graph are observed.
//!
//! | read by | observed |
//! |---------|----------|
//! | `Conv`, `MatMul`, `Gemm` with a constant weight | the activation, and each of its channels |
//! | `MatMul` of two activations (attention) | both |
//! | `Add` of two activations (residual) | both; of feature maps each channel, too |
//!
//! Left out is what does not come from pixels, embeddings or the cache: position tables, masks,
//! and the sums of rotary embeddings, which are no residuals.

use std::collections::{HashMap, HashSet};

use crate::onnx::proto::{GraphProto, NodeProto};

/// A value that quantization may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// The value that is observed for it: itself, or one with the same elements in another
    /// arrangement.
    pub observed: String,
    /// Which of its channels are wanted.
    pub channels: Channels,
}

/// The channels of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channels {
    /// None are wanted.
    None,
    /// Those of feature maps `[n, channels, h, w]`; values of less dimensions have none.
    Maps,
    /// Those of rows, the last axis.
    Rows,
}

/// The candidates of a graph whose nodes stand in topological order, in that order.
pub fn candidates(graph: &GraphProto) -> Vec<Candidate> {
    let flow = Flow {
        graph,
        constant: graph.constant_values(),
        data: graph.data_values(),
        producers: graph.producers(),
    };
    let mut found: Vec<Candidate> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    for node in &graph.node {
        for (name, channels) in flow.read_by(node) {
            if let Some(&known) = index.get(name) {
                found[known].channels = found[known].channels.max(channels);
                continue;
            }
            index.insert(name.to_owned(), found.len());
            found.push(Candidate {
                name: name.to_owned(),
                observed: graph.view_root(&flow.producers, name).to_owned(),
                channels,
            });
        }
    }
    for candidate in &mut found {
        if candidate.channels == Channels::None {
            continue;
        }
        // Another arrangement has other channels.
        candidate.observed.clone_from(&candidate.name);
    }
    found
}

/// Names of the values to observe, each once.
pub fn observed(candidates: &[Candidate]) -> Vec<String> {
    let mut seen = HashSet::new();
    let names = candidates.iter().map(|c| &c.observed);
    names.filter(|name| seen.insert(*name)).cloned().collect()
}

struct Flow<'a> {
    graph: &'a GraphProto,
    constant: HashSet<&'a str>,
    data: HashSet<&'a str>,
    producers: HashMap<&'a str, usize>,
}

impl<'a> Flow<'a> {
    /// The candidates among a node's inputs, and which channels of theirs are wanted.
    fn read_by(&self, node: &'a NodeProto) -> Vec<(&'a str, Channels)> {
        use Channels::{Maps, None as No, Rows};
        let [Some(a), Some(b)] = [0, 1].map(|i| node.input.get(i).map(String::as_str)) else {
            return Vec::new();
        };
        let of_interest = |name: &str| self.data.contains(name);
        let both = [a, b].map(|name| (name, self.constant.contains(name)));
        let mut wanted = match (node.op_type.as_str(), both) {
            ("Conv", [_, (_, true)]) => vec![(a, Maps)],
            ("MatMul" | "Gemm", [(_, false), (_, true)]) => vec![(a, Rows)],
            ("MatMul" | "Gemm", [(_, true), (_, false)]) => vec![(b, No)],
            ("MatMul", [(_, false), (_, false)]) => vec![(a, No), (b, No)],
            ("Add", [(_, false), (_, false)]) if self.is_residual(a, b) => {
                vec![(a, Maps), (b, Maps)]
            }
            _ => Vec::new(),
        };
        wanted.retain(|(name, _)| of_interest(name));
        wanted
    }

    /// True if both sides are data, and neither was multiplied with a table of positions.
    fn is_residual(&self, a: &str, b: &str) -> bool {
        let is_turned = |name: &str| {
            let made = self
                .producers
                .get(name)
                .map(|&index| &self.graph.node[index]);
            made.is_some_and(|node| {
                let is_table = |input: &String| {
                    !self.data.contains(input.as_str()) && !self.constant.contains(input.as_str())
                };
                node.op_type == "Mul" && node.input.iter().any(is_table)
            })
        };
        let is_data = |name: &str| self.data.contains(name);
        [a, b]
            .into_iter()
            .all(|name| is_data(name) && !is_turned(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{TensorProto, ValueInfoProto};
    use crate::onnx::{DataType, ValueType};

    fn value(name: &str, dtype: DataType) -> ValueInfoProto {
        ValueInfoProto::from(&ValueType {
            name: name.to_owned(),
            dtype: Some(dtype),
            dims: None,
        })
    }

    /// One attention head with rotary embedding and mask, its residual, and a convolution.
    fn graph() -> GraphProto {
        let node = |op: &str, inputs: &[&str], output: &str| NodeProto::new(op, inputs, &[output]);
        GraphProto {
            node: vec![
                node("Cast", &["position_ids"], "p"),
                node("MatMul", &["p", "freqs"], "angles"),
                node("Cos", &["angles"], "cos"),
                node("Add", &["mask", "mask"], "m"),
                node("MatMul", &["x", "w"], "q"),
                node("MatMul", &["x", "w"], "k"),
                node("Mul", &["q", "cos"], "q1"),
                node("Mul", &["q", "cos"], "q2"),
                node("Add", &["q1", "q2"], "turned"),
                node("Reshape", &["k", "shape"], "k2"),
                node("Transpose", &["k2"], "k3"),
                node("MatMul", &["turned", "k3"], "s"),
                node("Add", &["s", "m"], "masked"),
                node("Softmax", &["masked"], "probs"),
                node("MatMul", &["probs", "k2"], "o"),
                node("Reshape", &["o", "shape"], "o2"),
                node("MatMul", &["o2", "w"], "attended"),
                node("Add", &["attended", "bias"], "biased"),
                node("Add", &["x", "biased"], "r"),
                node("Conv", &["r", "w"], "y"),
                node("Gemm", &["w", "y"], "z"),
            ],
            initializer: ["w", "freqs", "shape", "bias"]
                .map(|name| TensorProto::from_f32(name, &[1], &[1.0]))
                .to_vec(),
            input: vec![
                value("x", DataType::F32),
                value("position_ids", DataType::I64),
                value("mask", DataType::I64),
            ],
            output: vec![value("z", DataType::F32)],
            ..GraphProto::default()
        }
    }

    #[test]
    fn candidates_are_what_linear_operators_attention_and_residuals_read() {
        use Channels::{Maps, None as No, Rows};
        let found = candidates(&graph());
        let found: Vec<_> = found
            .iter()
            .map(|c| (c.name.as_str(), c.observed.as_str(), c.channels))
            .collect();
        let expected = [
            ("x", "x", Rows),
            ("turned", "turned", No),
            ("k3", "k", No),
            ("probs", "probs", No),
            ("k2", "k", No),
            ("o2", "o2", Rows),
            ("biased", "biased", Maps),
            ("r", "r", Maps),
            ("y", "y", No),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn observed_values_are_named_once() {
        let names = observed(&candidates(&graph()));
        assert_eq!(
            names,
            ["x", "turned", "k", "probs", "o2", "biased", "r", "y"]
        );
    }
}
