//! Feature maps that convolutions read, and what makes them.
//!
//! Maps that are added to each other (residuals) have to be divided by the same factors, so that they
//! are one group: everything that any of them is read by has to be a convolution with a stored
//! weight or another addition, and everything that makes one a convolution, an addition, or a
//! product with a constant.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::groups::{Group, Layout, Reader, Source};
use crate::onnx::DataType;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};

/// The groups of a graph, each map in one at most.
pub(super) fn find(graph: &GraphProto) -> Vec<Group> {
    let search = Search {
        graph,
        constants: graph.constants(),
        constant: graph.constant_values(),
        consumers: graph.consumers(),
        producers: graph.producers(),
        outputs: graph.output.iter().map(|o| o.name.as_str()).collect(),
    };
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for node in &graph.node {
        let Some(map) = node.input.first().filter(|_| node.op_type == "Conv") else {
            continue;
        };
        if !seen.contains(map.as_str()) {
            let mut maps = BTreeSet::new();
            groups.extend(search.group(map, &mut maps));
            seen.extend(maps);
        }
    }
    groups
}

struct Search<'a> {
    graph: &'a GraphProto,
    constants: HashMap<&'a str, &'a TensorProto>,
    constant: HashSet<&'a str>,
    consumers: HashMap<&'a str, Vec<usize>>,
    producers: HashMap<&'a str, usize>,
    outputs: HashSet<&'a str>,
}

impl<'a> Search<'a> {
    /// The group of a map, whose maps are added to `maps` also if there is none.
    fn group(&self, map: &'a str, maps: &mut BTreeSet<&'a str>) -> Option<Group> {
        let (mut readers, mut makers) = (Vec::new(), BTreeSet::new());
        let mut open = vec![map];
        let mut is_whole = true;
        while let Some(map) = open.pop() {
            if !maps.insert(map) {
                continue;
            }
            is_whole &= !self.outputs.contains(map);
            let read = self.consumers.get(map).map_or(&[][..], Vec::as_slice);
            for &index in read {
                let node = &self.graph.node[index];
                if let Some(maps) = self.sum(node) {
                    open.extend(maps);
                } else if let Some(reader) = self.reader(node, map) {
                    readers.push(reader);
                } else {
                    is_whole = false;
                }
            }
            match self.producers.get(map) {
                Some(&index) => match self.sum(&self.graph.node[index]) {
                    Some(maps) => open.extend(maps),
                    None => is_whole &= makers.insert(index),
                },
                None => is_whole = false,
            }
        }
        let channels = readers.first().filter(|_| is_whole)?.0;
        let sources: Option<Vec<Source>> = (makers.into_iter())
            .map(|index| self.source(index, channels))
            .collect();
        let same = readers.iter().all(|(of_reader, _)| *of_reader == channels);
        Some(Group {
            tensors: maps.iter().map(|&map| map.to_owned()).collect(),
            channels,
            inner_dims: 2,
            readers: readers.into_iter().map(|(_, reader)| reader).collect(),
            sources: sources.filter(|_| same)?,
        })
    }

    /// The three maps of an addition of two.
    fn sum(&self, node: &'a NodeProto) -> Option<[&'a str; 3]> {
        let [a, b] = &node.input[..] else { return None };
        let maps = [a, b, node.output.first()?].map(String::as_str);
        let computed = maps.iter().all(|map| !self.constant.contains(map));
        (node.op_type == "Add" && computed).then_some(maps)
    }

    /// How a convolution reads a map, and the number of the map's channels.
    fn reader(&self, node: &'a NodeProto, map: &str) -> Option<(usize, Reader)> {
        let (weight, groups) = self.convolution(node)?;
        let [n, of_group, ref kernel @ ..] = weight.dims[..] else {
            return None;
        };
        let layout = match (groups, of_group) {
            (1, _) => Layout::Columns {
                inner: usize::try_from(kernel.iter().product::<i64>()).ok()?,
            },
            (_, 1) => Layout::Depthwise {
                outputs: usize::try_from(n.checked_div(groups)?).ok()?,
            },
            _ => return None,
        };
        let channels = usize::try_from(groups.checked_mul(of_group)?).ok()?;
        let reader = Reader {
            weight: weight.name.clone(),
            layout,
        };
        (node.input[0] == map).then_some((channels, reader))
    }

    /// The stored weight of a convolution in two dimensions, which nothing else reads, and the number
    /// of its groups.
    fn convolution(&self, node: &'a NodeProto) -> Option<(&'a TensorProto, i64)> {
        let weight = self.stored(node, 1).filter(|w| w.dims.len() == 4)?;
        let own = self.consumers.get(weight.name.as_str())?.len() == 1;
        let plain = node.op_type == "Conv" && matches!(node.domain.as_str(), "" | "ai.onnx");
        let groups = node.attr("group").and_then(|a| a.i).unwrap_or(1);
        (plain && own && groups > 0).then_some((weight, groups))
    }

    /// What can be divided in place of what a node returns.
    fn source(&self, index: usize, channels: usize) -> Option<Source> {
        let node = &self.graph.node[index];
        match node.op_type.as_str() {
            "Conv" => {
                let (weight, _) = self.convolution(node)?;
                let bias = node.input.get(2).filter(|name| !name.is_empty());
                let is_bias = |bias: &TensorProto| bias.dims == [channels as i64];
                let fits = weight.dims[0] == channels as i64
                    && bias.is_none_or(|_| self.stored(node, 2).is_some_and(is_bias));
                fits.then(|| Source::Weight {
                    weight: weight.name.clone(),
                    filters: true,
                    bias: bias.map(|_| (index, 2)),
                })
            }
            "Mul" => {
                let own = self.factor(index, channels);
                // A gate: one of its operands may be a product with a constant.
                own.or_else(|| (node.input.iter()).find_map(|of| self.product(of, channels)))
            }
            _ => None,
        }
    }

    /// The product with a constant that makes a value which only one node reads.
    fn product(&self, value: &str, channels: usize) -> Option<Source> {
        let once = self.consumers.get(value).map_or(0, Vec::len) == 1;
        let index = *self.producers.get(value)?;
        (once && !self.outputs.contains(value)).then(|| self.factor(index, channels))?
    }

    /// The constant of a product: single, or `[…, channels, 1, 1]`.
    fn factor(&self, index: usize, channels: usize) -> Option<Source> {
        let node = &self.graph.node[index];
        let fits = |&input: &usize| {
            let constant = self.stored(node, input);
            constant.is_some_and(|c| is_of_channels(&c.dims, channels as i64))
        };
        let input = (0..node.input.len()).find(fits)?;
        (node.op_type == "Mul").then(|| Source::Vectors {
            node: index,
            inputs: vec![input],
        })
    }

    fn stored(&self, node: &NodeProto, input: usize) -> Option<&'a TensorProto> {
        let tensor = self.constants.get(node.input.get(input)?.as_str())?;
        let float = matches!(tensor.dtype(), Ok(DataType::F32 | DataType::F16));
        (float && tensor.raw_data.is_some()).then_some(*tensor)
    }
}

/// True for the dimensions of a single number, and of one for each channel of maps.
fn is_of_channels(dims: &[i64], channels: i64) -> bool {
    let single = dims.len() <= 3 && dims.iter().all(|&dim| dim == 1);
    let (leading, last) = dims.split_at(dims.len().saturating_sub(3));
    single || (last == [channels, 1, 1] && leading.iter().all(|&dim| dim == 1))
}
