//! Rows of channels that products with stored matrices read, and what makes them.

use std::collections::{HashMap, HashSet};

use super::groups::{Group, Layout, Reader, Source};
use crate::onnx::DataType;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};

/// The groups of a graph, each tensor once.
pub(super) fn find(graph: &GraphProto) -> Vec<Group> {
    let search = Search {
        graph,
        constants: graph.constants(),
        consumers: graph.consumers(),
        producers: graph.producers(),
        outputs: graph.output.iter().map(|o| o.name.as_str()).collect(),
    };
    let mut seen = HashSet::new();
    let mut groups = Vec::new();
    for node in &graph.node {
        if let Some((tensor, _)) = search.linear(node)
            && seen.insert(tensor)
            && let Some(group) = search.group(tensor)
        {
            groups.push(group);
        }
    }
    groups
}

struct Search<'a> {
    graph: &'a GraphProto,
    constants: HashMap<&'a str, &'a TensorProto>,
    consumers: HashMap<&'a str, Vec<usize>>,
    producers: HashMap<&'a str, usize>,
    outputs: HashSet<&'a str>,
}

impl<'a> Search<'a> {
    /// The activation and the weight of a `MatMul` whose weight nothing else reads.
    fn linear(&self, node: &'a NodeProto) -> Option<(&'a str, &'a TensorProto)> {
        let [activation, weight] = &node.input[..] else {
            return None;
        };
        let weight = self.constants.get(weight.as_str())?;
        let float = is_float(weight);
        let plain = node.op_type == "MatMul" && node.domain.is_empty();
        let fits = plain && float && weight.dims.len() == 2 && weight.raw_data.is_some();
        let own = self.consumers.get(weight.name.as_str()).map_or(0, Vec::len) == 1;
        (fits && own && !self.constants.contains_key(activation.as_str()))
            .then_some((activation, weight))
    }

    fn group(&self, tensor: &'a str) -> Option<Group> {
        if self.outputs.contains(tensor) {
            return None;
        }
        let mut weights = Vec::new();
        for &reader in self.consumers.get(tensor)? {
            let (read, weight) = self.linear(&self.graph.node[reader])?;
            (read == tensor).then_some(())?;
            weights.push(weight);
        }
        let channels = usize::try_from(weights.first()?.dims[0]).ok()?;
        let reader = |weight: &&TensorProto| Reader {
            weight: weight.name.clone(),
            layout: Layout::Rows,
        };
        Some(Group {
            tensors: vec![tensor.to_owned()],
            channels,
            inner_dims: 0,
            readers: weights.iter().map(reader).collect(),
            sources: vec![self.source(tensor, channels)?],
        })
    }

    fn source(&self, tensor: &'a str, channels: usize) -> Option<Source> {
        let index = *self.producers.get(tensor)?;
        let node = &self.graph.node[index];
        let vectors = |inputs: &[usize]| {
            let vector = |&input: &usize| self.is_vector(node.input.get(input)?, channels);
            let inputs: Vec<usize> = inputs
                .iter()
                .copied()
                .filter(|input| vector(input).is_some())
                .collect();
            (!inputs.is_empty()).then_some(Source::Vectors {
                node: index,
                inputs,
            })
        };
        match node.op_type.as_str() {
            // Rows of a three-dimensional value; its last axis are the channels.
            "Gather" if (0..2).contains(&node.attr("axis").and_then(|a| a.i).unwrap_or(0)) => {
                let from = node.input.first()?;
                self.read_once(from).then(|| self.source(from, channels))?
            }
            "LayerNormalization" if node.attr("axis").is_none_or(|a| a.i == Some(-1)) => {
                let found = vectors(&[1, 2])?;
                let n_constant = node.input.iter().skip(1).filter(|n| !n.is_empty()).count();
                matches!(&found, Source::Vectors { inputs, .. } if inputs.len() == n_constant)
                    .then_some(found)
            }
            "Mul" => match vectors(&[0, 1]) {
                Some(Source::Vectors { inputs, .. }) if inputs.len() > 1 => None,
                Some(found) => Some(found),
                // The last factor is the one that is not behind an activation function.
                None => (node.input.iter().rev())
                    .find_map(|name| self.columns(name, channels))
                    .or_else(|| node.input.iter().find_map(|name| self.product(name, index))),
            },
            _ => None,
        }
    }

    /// The product with a single number that makes a value, which node `reader` alone reads, or that
    /// node itself.
    fn product(&self, value: &'a str, reader: usize) -> Option<Source> {
        let single = |node: usize| {
            let node_at = &self.graph.node[node];
            let is_single = |&input: &usize| {
                let constant = self.constants.get(node_at.input[input].as_str());
                constant.is_some_and(|c| is_float(c) && matches!(c.dims[..], [] | [1]))
            };
            let input = (0..node_at.input.len()).find(is_single)?;
            (node_at.op_type == "Mul").then(|| Source::Vectors {
                node,
                inputs: vec![input],
            })
        };
        single(reader).or_else(|| {
            let maker = *self.producers.get(value)?;
            self.read_once(value).then(|| single(maker))?
        })
    }

    /// The stored weight that makes a value, with its bias.
    fn columns(&self, value: &'a str, channels: usize) -> Option<Source> {
        if !self.read_once(value) {
            return None;
        }
        let index = *self.producers.get(value)?;
        let node = &self.graph.node[index];
        if node.op_type == "Add" {
            let at = (0..2).find(|&i| {
                let name = node.input.get(i);
                name.is_some_and(|name| self.is_vector(name, channels).is_some())
            })?;
            let product = node.input.get(1 - at)?;
            return match self.columns(product, channels)? {
                Source::Weight {
                    weight, bias: None, ..
                } => Some(Source::Weight {
                    weight,
                    filters: false,
                    bias: Some((index, at)),
                }),
                _ => None,
            };
        }
        let (_, weight) = self.linear(node)?;
        (weight.dims[1] == channels as i64).then(|| Source::Weight {
            weight: weight.name.clone(),
            filters: false,
            bias: None,
        })
    }

    fn read_once(&self, value: &str) -> bool {
        self.consumers.get(value).map_or(0, Vec::len) == 1 && !self.outputs.contains(value)
    }

    /// A stored vector with an element for each channel.
    fn is_vector(&self, name: &str, channels: usize) -> Option<()> {
        let tensor = self.constants.get(name)?;
        let float = is_float(tensor);
        let n: i64 = tensor.dims.iter().product();
        let fits = tensor.dims.last() == Some(&(channels as i64)) && n == channels as i64;
        (float && fits).then_some(())
    }
}

fn is_float(tensor: &TensorProto) -> bool {
    matches!(tensor.dtype(), Ok(DataType::F32 | DataType::F16))
}
