//! Cut a graph where its large products are: what is between them stays with the engine.
//!
//! ```text
//! piece 0 ─► products ─► piece 1 ─► products ─► ... ─► outputs
//! ```
//!
//! A node stands in the first piece in which everything that it reads is known. Constants, and
//! what is computed from them alone, are no border: each piece has those that it reads.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::linear::Linear;
use super::load::{can_stay, release};
use super::take::{Found, find};
use crate::error::Result;
use crate::onnx::passes::sort_nodes;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{DataType, Names, OnnxModel, ValueType};

/// Graphs whose products have fewer weights are left whole: their matrices stay in a core's cache,
/// and every cut costs some microseconds a run.
const MIN_WEIGHTS: usize = 8 << 20;

/// Smaller matrices are left to the engine: another cut costs more than it gains.
const MIN_ELEMENTS: usize = 1 << 14;

/// A product between two pieces.
pub(super) struct Product {
    /// What is multiplied.
    pub(super) x: String,
    /// The result.
    pub(super) y: String,
    pub(super) linear: Linear,
}

/// A part of a graph, and the products that are computed behind it.
pub(super) struct Part {
    /// The part as a graph of its own, `None` if it has no nodes.
    pub(super) model: Option<OnnxModel>,
    /// Values that come from outside.
    pub(super) reads: Vec<String>,
    /// Values that later parts, products or the caller need.
    pub(super) makes: Vec<String>,
    pub(super) products: Vec<Product>,
}

/// Cuts a graph at its large products with constant matrices; `None` if that is not worth it.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if nodes read each other in a circle, those of
/// reading a scale.
pub(super) fn split(model: &OnnxModel) -> Result<Option<Vec<Part>>> {
    split_at(model, MIN_ELEMENTS, MIN_WEIGHTS)
}

/// As [`split`], at matrices of at least `min_elements`, if all of them have `min_weights`.
pub(super) fn split_at(
    model: &OnnxModel,
    min_elements: usize,
    min_weights: usize,
) -> Result<Option<Vec<Part>>> {
    let mut model = model.clone();
    sort_nodes(&mut model)?;
    let found = worth(&model, min_elements, min_weights)?;
    if found.is_empty() {
        return Ok(None);
    }
    let graph = model.graph();
    let inputs: HashSet<String> = graph.inputs().into_iter().map(|i| i.name).collect();
    let constant = graph.constant_values().into_iter();
    let constant: HashSet<String> = constant.map(str::to_owned).collect();
    let graph = std::mem::take(model.graph_mut());
    let cut = Cut::new(graph, found, constant, inputs);
    Ok(Some(cut.parts(&model)))
}

/// The products that a graph is cut at; none if that is not worth it.
fn worth(model: &OnnxModel, min_elements: usize, min_weights: usize) -> Result<Vec<Found>> {
    let mut found = find(model)?;
    found.retain(|f| f.dims[0] * f.dims[1] >= min_elements);
    let n_weights: usize = found.iter().map(|f| f.dims[0] * f.dims[1]).sum();
    let graph = model.graph();
    let constant = graph.constant_values();
    let inputs: HashSet<String> = graph.inputs().into_iter().map(|i| i.name).collect();
    let is_odd =
        |o: &ValueInfoProto| constant.contains(o.name.as_str()) || inputs.contains(&o.name);
    if n_weights < min_weights || graph.output.iter().any(is_odd) {
        found.clear();
    }
    Ok(found)
}

/// Bytes of a graph's weights as the engine holds them: matrices of large products and packed ones
/// as they are stored, everything else in FP32.
///
/// # Errors
/// Those of reading a scale.
pub fn weight_bytes(model: &OnnxModel) -> Result<u64> {
    weight_bytes_at(model, MIN_ELEMENTS, MIN_WEIGHTS)
}

/// As [`weight_bytes`], when [`split_at`] cuts the graph.
pub(super) fn weight_bytes_at(
    model: &OnnxModel,
    min_elements: usize,
    min_weights: usize,
) -> Result<u64> {
    let taken = worth(model, min_elements, min_weights)?;
    let taken: HashSet<*const u8> = taken.iter().map(|f| f.raw.as_ptr()).collect();
    let held = |tensor: &TensorProto| match &tensor.raw_data {
        Some(raw) if taken.contains(&raw.as_ptr()) => raw.len() as u64,
        Some(raw) if tensor.dtype().ok() == Some(DataType::U8) => raw.len() as u64,
        _ => tensor.elements().saturating_mul(4),
    };
    let each = model.graph().initializer.iter().map(held);
    Ok(each.fold(0, u64::saturating_add))
}

/// A graph without its products, its nodes in pieces.
struct Cut {
    /// What is left of the graph: types, initializers, outputs.
    rest: GraphProto,
    constant: HashSet<String>,
    /// Nodes that make constants, in order.
    makers: Vec<NodeProto>,
    pieces: Vec<Vec<NodeProto>>,
    /// Products behind each piece.
    products: Vec<Vec<(String, String, Found)>>,
    /// The piece that each value is there from on.
    since: HashMap<String, usize>,
}

impl Cut {
    fn new(
        mut graph: GraphProto,
        found: Vec<Found>,
        constant: HashSet<String>,
        inputs: HashSet<String>,
    ) -> Self {
        let mut names = Names::of(&graph);
        let mut found: HashMap<usize, Found> = found.into_iter().map(|f| (f.node, f)).collect();
        let nodes = std::mem::take(&mut graph.node);
        let is_used = used(&nodes, &found, &graph);
        let mut cut = Self {
            rest: graph,
            constant,
            makers: Vec::new(),
            pieces: vec![Vec::new()],
            products: vec![Vec::new()],
            since: inputs.into_iter().map(|name| (name, 0)).collect(),
        };
        for (index, (node, is_used)) in nodes.into_iter().zip(is_used).enumerate() {
            if !is_used {
                continue;
            }
            let Some(mut product) = found.remove(&index) else {
                cut.place(node);
                continue;
            };
            let behind = cut.since.get(&product.x).copied().unwrap_or(0);
            let y = node.output[0].clone();
            let result = match &product.bias {
                Some(_) => names.fresh(&format!("{y}_product")),
                None => y.clone(),
            };
            if cut.pieces.len() == behind + 1 {
                cut.pieces.push(Vec::new());
                cut.products.push(Vec::new());
            }
            cut.since.insert(result.clone(), behind + 1);
            if let Some(bias) = product.bias.take() {
                cut.place(NodeProto::new("Add", &[&result, &bias], &[&y]));
            }
            cut.products[behind].push((product.x.clone(), result, product));
        }
        cut
    }

    /// Puts a node into the first piece where all that it reads is there.
    fn place(&mut self, node: NodeProto) {
        let outputs = || node.output.iter().filter(|name| !name.is_empty());
        if outputs().all(|name| self.constant.contains(name)) {
            self.makers.push(node);
            return;
        }
        let mut piece = 0;
        node.each_read(&mut |name| {
            piece = piece.max(self.since.get(name).copied().unwrap_or(0));
        });
        for name in outputs() {
            self.since.insert(name.clone(), piece);
        }
        self.pieces[piece].push(node);
    }

    fn parts(self, shell: &OnnxModel) -> Vec<Part> {
        let n = self.pieces.len();
        let returned: HashSet<&str> = self.rest.output.iter().map(|o| o.name.as_str()).collect();
        // The last piece that reads each value; a product counts for the piece behind it.
        let mut last_read: HashMap<String, usize> = HashMap::new();
        for (index, nodes) in self.pieces.iter().enumerate() {
            for node in nodes {
                node.each_read(&mut |name| {
                    last_read.insert(name.to_owned(), index);
                });
            }
        }
        for (index, products) in self.products.iter().enumerate() {
            for (x, _, _) in products {
                let last = last_read.entry(x.clone()).or_default();
                *last = (*last).max(index + 1);
            }
        }
        let types = types(&self.rest);
        let kept = self.makers.iter().chain(self.pieces.iter().flatten());
        let mut read = HashSet::new();
        for node in kept {
            node.each_read(&mut |name| {
                read.insert(name.to_owned());
            });
        }
        let left = self
            .rest
            .initializer
            .iter()
            .filter(|t| read.contains(&t.name));
        let shared: Vec<TensorProto> = left.map(aligned).collect();
        let mut products = self.products.into_iter();
        let mut parts = Vec::with_capacity(n);
        for (index, nodes) in self.pieces.iter().enumerate() {
            let own: HashSet<&str> = nodes
                .iter()
                .flat_map(|n| &n.output)
                .map(String::as_str)
                .collect();
            let (mut reads, mut seen) = (Vec::new(), HashSet::new());
            for node in nodes {
                node.each_read(&mut |name| {
                    let is_outside = self.since.contains_key(name) && !own.contains(name);
                    if is_outside && seen.insert(name.to_owned()) {
                        reads.push(name.to_owned());
                    }
                });
            }
            let is_needed = |name: &&String| {
                returned.contains(name.as_str())
                    || last_read.get(*name).is_some_and(|&last| last > index)
            };
            let makes: Vec<String> = nodes
                .iter()
                .flat_map(|n| &n.output)
                .filter(is_needed)
                .cloned()
                .collect();
            let model = (!makes.is_empty()).then(|| {
                let value = |name: &String| {
                    let plain = || ValueInfoProto {
                        name: name.clone(),
                        ..ValueInfoProto::default()
                    };
                    types.get(name).cloned().unwrap_or_else(plain)
                };
                let mut part = shell.clone();
                *part.graph_mut() = GraphProto {
                    name: self.rest.name.clone(),
                    node: self.makers.iter().chain(nodes).cloned().collect(),
                    initializer: shared.clone(),
                    input: reads.iter().map(value).collect(),
                    output: makes.iter().map(value).collect(),
                    value_info: self.rest.value_info.clone(),
                    ..GraphProto::default()
                };
                part.graph_mut().remove_unused();
                part
            });
            let products = products.next().unwrap_or_default().into_iter();
            let products = products
                .map(|(x, y, found)| {
                    let linear = Linear::new(found.matrix(), found.activations);
                    release(shell, &found.raw);
                    Product { x, y, linear }
                })
                .collect();
            parts.push(Part {
                model,
                reads,
                makes,
                products,
            });
        }
        parts
    }
}

/// Whether each node has a part in the outputs, when products read their rows as they were before
/// they were rounded, and matrices not at all.
fn used(nodes: &[NodeProto], found: &HashMap<usize, Found>, graph: &GraphProto) -> Vec<bool> {
    let mut needed: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    let mut is_used = vec![false; nodes.len()];
    for (index, node) in nodes.iter().enumerate().rev() {
        if !node.output.iter().any(|name| needed.contains(name)) {
            continue;
        }
        is_used[index] = true;
        match found.get(&index) {
            Some(product) => {
                needed.insert(product.x.clone());
                needed.extend(product.bias.clone());
            }
            None => node.each_read(&mut |name| {
                needed.insert(name.to_owned());
            }),
        }
    }
    is_used
}

/// What the file says of its values.
fn types(graph: &GraphProto) -> HashMap<String, ValueInfoProto> {
    let stated = graph
        .value_info
        .iter()
        .chain(&graph.input)
        .chain(&graph.output);
    let mut types: HashMap<String, ValueInfoProto> = stated
        .map(|info| (info.name.clone(), info.clone()))
        .collect();
    // Whatever is half precision in the file is single in the engine.
    for info in types.values_mut() {
        let mut known = ValueType::from(&*info);
        if known.dtype == Some(DataType::F16) {
            known.dtype = Some(DataType::F32);
            *info = ValueInfoProto::from(&known);
        }
    }
    types
}

/// An initializer that the engine can read in place: else it is copied, once for all pieces.
fn aligned(tensor: &TensorProto) -> TensorProto {
    let mut tensor = tensor.clone();
    let dtype = tensor.dtype().ok();
    if let Some(raw) = tensor.raw_data.take_if(|raw| !can_stay(dtype, raw)) {
        let mut words = vec![0u32; raw.len().div_ceil(4)];
        bytemuck::cast_slice_mut::<u32, u8>(&mut words)[..raw.len()].copy_from_slice(&raw);
        tensor.raw_data = Some(Bytes::from_owner(Words(words)).slice(..raw.len()));
    }
    tensor
}

/// Bytes at an address that is a multiple of four.
struct Words(Vec<u32>);

impl AsRef<[u8]> for Words {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
