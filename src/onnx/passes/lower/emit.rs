//! Making the nodes that stand in for a contrib operator.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use half::f16;

use super::super::types::Types;
use super::dims::Dims;
use super::driver::LowerOptions;
use crate::onnx::graph::Names;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, OnnxModel};

/// Characters of a node's name that the names of its parts repeat: each node has dozens of parts,
/// and a name in a file can be as long as the file.
const LONGEST_SCOPE: usize = 256;

/// Collects the nodes and constants of the lowered graph.
///
/// Values inside the form of a node are named `<node>/<what>`, so that passes and reports find
/// `…/scores` of a layer by the name that the file gave the layer. Values that several nodes
/// share, such as the mask, are made where the first of them stands.
pub(super) struct Emitter<'a> {
    pub(super) types: &'a Types,
    pub(super) dims: &'a Dims,
    pub(super) path: &'a Path,
    pub(super) options: LowerOptions,
    constants: HashMap<&'a str, &'a TensorProto>,
    read: &'a HashSet<String>,
    opset: i64,
    names: Names,
    scope: String,
    shared: HashMap<String, String>,
    nodes: Vec<NodeProto>,
    made: Vec<TensorProto>,
}

impl<'a> Emitter<'a> {
    /// For a graph whose nodes were taken out; `names` and `read` are what those nodes use.
    pub(super) fn new(
        model: &'a OnnxModel,
        types: &'a Types,
        dims: &'a Dims,
        names: Names,
        read: &'a HashSet<String>,
        options: LowerOptions,
    ) -> Self {
        Self {
            types,
            dims,
            path: model.path(),
            options,
            constants: model.graph().constants(),
            read,
            opset: model.opset("").unwrap_or(1),
            names,
            scope: String::new(),
            shared: HashMap::new(),
            nodes: Vec::new(),
            made: Vec::new(),
        }
    }

    /// The nodes in topological order, and the constants that were made.
    pub(super) fn finish(self) -> (Vec<NodeProto>, Vec<TensorProto>) {
        (self.nodes, self.made)
    }

    /// Names the node that is lowered next.
    pub(super) fn begin(&mut self, node: &NodeProto) {
        self.scope = node.label().chars().take(LONGEST_SCOPE).collect();
    }

    /// Appends a node as it is.
    pub(super) fn push(&mut self, node: NodeProto) {
        self.nodes.push(node);
    }

    /// Appends an operator; returns the name of what it makes.
    pub(super) fn op(&mut self, op_type: &str, inputs: &[&str], what: &str) -> String {
        self.op_with(op_type, inputs, what, |node| node)
    }

    /// Appends an operator with attributes.
    pub(super) fn op_with(
        &mut self,
        op_type: &str,
        inputs: &[&str],
        what: &str,
        with: impl FnOnce(NodeProto) -> NodeProto,
    ) -> String {
        let name = self.value(what);
        self.nodes
            .push(with(NodeProto::new(op_type, inputs, &[&name])));
        name
    }

    /// A name for a value of the node that is lowered.
    pub(super) fn value(&mut self, what: &str) -> String {
        self.names.fresh(&format!("{}/{what}", self.scope))
    }

    /// Appends the operator that makes a value of the file.
    pub(super) fn op_to(&mut self, op_type: &str, inputs: &[&str], value: &str) {
        self.nodes.push(NodeProto::new(op_type, inputs, &[value]));
    }

    /// The constant of the file with this name.
    pub(super) fn constant(&self, name: &str) -> Option<&'a TensorProto> {
        self.constants.get(name).copied()
    }

    /// True if a node of the file reads `value`, or the graph returns it.
    pub(super) fn is_read(&self, value: &str) -> bool {
        self.read.contains(value)
    }

    /// Stores a constant under a name that begins with `stem`.
    pub(super) fn store(&mut self, stem: &str, tensor: TensorProto) -> String {
        let name = self.names.fresh(stem);
        self.made.push(TensorProto {
            name: name.clone(),
            ..tensor
        });
        name
    }

    /// A list of integers as a constant.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        let tensor = TensorProto::from_i64("", &[values.len() as i64], values);
        self.once(format!("ints {values:?}"), |e| {
            e.store("lowered/ints", tensor)
        })
    }

    /// One integer as a constant without dimensions.
    pub(super) fn int(&mut self, value: i64) -> String {
        let tensor = TensorProto::from_i64("", &[], &[value]);
        self.once(format!("int {value}"), |e| e.store("lowered/int", tensor))
    }

    /// One float of type `dtype` as a constant without dimensions.
    pub(super) fn float(&mut self, value: f32, dtype: DataType) -> String {
        let tensor = match dtype {
            DataType::F16 => {
                let bytes = f16::from_f32(value).to_le_bytes().to_vec();
                TensorProto::from_raw("", dtype, &[], bytes)
            }
            _ => TensorProto::from_f32("", &[], &[value]),
        };
        let key = format!("{dtype} {:08x}", value.to_bits());
        self.once(key, |e| e.store("lowered/float", tensor))
    }

    /// What `make` makes, made once for all nodes that ask for `key`.
    pub(super) fn once(&mut self, key: String, make: impl FnOnce(&mut Self) -> String) -> String {
        if let Some(name) = self.shared.get(&key) {
            return name.clone();
        }
        let name = make(self);
        self.shared.insert(key, name.clone());
        name
    }

    /// Values that were made once for keys that begin with the word `kind`, in order of names.
    pub(super) fn shared(&self, kind: &str) -> Vec<String> {
        let keys = self.shared.iter();
        let of_kind = keys.filter(|(key, _)| key.split(' ').next() == Some(kind));
        let mut names: Vec<String> = of_kind.map(|(_, name)| name.clone()).collect();
        names.sort();
        names
    }

    /// Makes values that several nodes share under the name `scope`.
    pub(super) fn in_scope<T>(&mut self, scope: &str, make: impl FnOnce(&mut Self) -> T) -> T {
        let outer = std::mem::replace(&mut self.scope, scope.to_owned());
        let made = make(self);
        self.scope = outer;
        made
    }

    /// Type of a float operand.
    pub(super) fn float_type(&self, value: &str) -> Result<DataType, String> {
        match self.types.get(value) {
            Some(dtype @ (DataType::F32 | DataType::F16)) => Ok(dtype),
            Some(other) => Err(format!("computes in {other}, expected f32 or f16")),
            None => Err(format!("type of `{value}` is not known")),
        }
    }

    /// The value in FP32.
    pub(super) fn widen(&mut self, value: &str, dtype: DataType) -> String {
        if dtype == DataType::F32 {
            return value.to_owned();
        }
        self.cast(value, DataType::F32)
    }

    /// The value cast to `dtype`.
    pub(super) fn cast(&mut self, value: &str, dtype: DataType) -> String {
        let what = format!("cast_{dtype}");
        self.op_with("Cast", &[value], &what, |node| {
            node.with_int("to", dtype as i64)
        })
    }

    /// Makes `to`, a value of the file of type `dtype`, with an operator that computes in FP32.
    pub(super) fn narrow_to(&mut self, op_type: &str, inputs: &[&str], to: &str, dtype: DataType) {
        if dtype == DataType::F32 {
            return self.op_to(op_type, inputs, to);
        }
        let wide = self.op(op_type, inputs, "result");
        self.cast_to(&wide, to, dtype);
    }

    /// Makes `to`, a value of the file, by a cast.
    pub(super) fn cast_to(&mut self, from: &str, to: &str, dtype: DataType) {
        let cast = NodeProto::new("Cast", &[from], &[to]);
        self.push(cast.with_int("to", dtype as i64));
    }

    /// The value with another shape; 0 keeps a dimension, -1 takes what is left.
    pub(super) fn reshape(&mut self, value: &str, shape: &[i64], what: &str) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[value, &shape], what)
    }

    /// The value with its dimensions in another order.
    pub(super) fn transpose(&mut self, value: &str, order: &[i64], what: &str) -> String {
        self.op_with("Transpose", &[value], what, |node| {
            node.with_ints("perm", order)
        })
    }

    /// The value with dimensions of one inserted.
    pub(super) fn unsqueeze(&mut self, value: &str, axes: &[i64], what: &str) -> String {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[value, &axes], what)
    }

    /// Values side by side along `axis`.
    pub(super) fn concat(&mut self, values: &[&str], axis: i64, what: &str) -> String {
        self.op_with("Concat", values, what, |node| node.with_int("axis", axis))
    }

    /// The value in parts of these sizes along `axis`.
    pub(super) fn split<const N: usize>(
        &mut self,
        value: &str,
        sizes: [usize; N],
        axis: i64,
        what: [&str; N],
    ) -> [String; N] {
        let sizes = self.ints(&sizes.map(|n| n as i64));
        let parts = what.map(|what| self.value(what));
        let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
        let split = NodeProto::new("Split", &[value, &sizes], &outputs);
        self.push(split.with_int("axis", axis));
        parts
    }

    /// The mean over the last dimension, which stays as 1.
    pub(super) fn mean_last(&mut self, value: &str) -> String {
        // The axes became an operand in opset 18.
        if self.opset >= 18 {
            let axes = self.ints(&[-1]);
            return self.op_with("ReduceMean", &[value, &axes], "mean", |node| {
                node.with_int("keepdims", 1)
            });
        }
        self.op_with("ReduceMean", &[value], "mean", |node| {
            node.with_ints("axes", &[-1]).with_int("keepdims", 1)
        })
    }

    /// Size of the dimension `axis` of a value, as an integer without dimensions.
    pub(super) fn size_of(&mut self, value: &str, axis: i64, what: &str) -> String {
        let shape = self.op("Shape", &[value], &format!("{what}_shape"));
        let axis = self.int(axis);
        self.op_with("Gather", &[&shape, &axis], what, |node| {
            node.with_int("axis", 0)
        })
    }

    /// 0, 1, 2 … below `end`, which is an integer without dimensions.
    pub(super) fn count_to(&mut self, end: &str, what: &str) -> String {
        let (zero, one) = (self.int(0), self.int(1));
        self.op("Range", &[&zero, end, &one], what)
    }
}

/// Names that nodes read or the graph returns.
pub(super) fn names_read(graph: &GraphProto) -> HashSet<String> {
    let read = graph.node.iter().flat_map(|node| &node.input);
    let returned = graph.output.iter().map(|output| &output.name);
    read.chain(returned).cloned().collect()
}
