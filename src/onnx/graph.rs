//! Questions that passes ask of a graph, and the edits that they share.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::dtype::DataType;
use super::proto::{
    AttributeProto, DimensionProto, GraphProto, NodeProto, ProtoDim, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto, attribute_type,
};

/// One dimension of a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Fixed(usize),
    /// A name: equal names are equal sizes.
    Named(String),
    /// Not stated.
    Unknown,
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Named(name) => f.write_str(name),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// Name, element type and shape of a graph input, output or inner value, as far as the file
/// states them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueType {
    /// Name of the value.
    pub name: String,
    /// Element type.
    pub dtype: Option<DataType>,
    /// Dimensions, outermost first; `None` if not even the rank is stated.
    pub dims: Option<Vec<Dim>>,
}

impl ValueType {
    /// The number at `axis`, if the file states one.
    pub fn fixed(&self, axis: usize) -> Option<usize> {
        match self.dims.as_ref()?.get(axis)? {
            Dim::Fixed(n) => Some(*n),
            _ => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.dtype {
            Some(dtype) => write!(f, "{dtype} ")?,
            None => f.write_str("? ")?,
        }
        match &self.dims {
            Some(dims) => {
                let dims: Vec<String> = dims.iter().map(Dim::to_string).collect();
                write!(f, "[{}]", dims.join(", "))
            }
            None => f.write_str("[..]"),
        }
    }
}

impl From<&ValueInfoProto> for ValueType {
    fn from(info: &ValueInfoProto) -> Self {
        let tensor = info.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
        let dim = |d: &DimensionProto| match &d.value {
            Some(ProtoDim::Value(n)) => usize::try_from(*n).map_or(Dim::Unknown, Dim::Fixed),
            Some(ProtoDim::Param(name)) if !name.is_empty() => Dim::Named(name.clone()),
            _ => Dim::Unknown,
        };
        Self {
            name: info.name.clone(),
            dtype: tensor
                .and_then(|t| t.elem_type)
                .and_then(DataType::from_code),
            dims: tensor
                .and_then(|t| t.shape.as_ref())
                .map(|shape| shape.dim.iter().map(dim).collect()),
        }
    }
}

impl From<&ValueType> for ValueInfoProto {
    fn from(value: &ValueType) -> Self {
        let dim = |d: &Dim| DimensionProto {
            value: match d {
                Dim::Fixed(n) => Some(ProtoDim::Value(*n as i64)),
                Dim::Named(name) => Some(ProtoDim::Param(name.clone())),
                Dim::Unknown => None,
            },
            denotation: String::new(),
        };
        Self {
            name: value.name.clone(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type: value.dtype.map(|dtype| dtype as i32),
                    shape: value.dims.as_ref().map(|dims| TensorShapeProto {
                        dim: dims.iter().map(dim).collect(),
                    }),
                }),
                denotation: String::new(),
            }),
            doc_string: String::new(),
        }
    }
}

impl GraphProto {
    /// Inputs that a caller has to give: initializers listed as inputs are left out.
    pub fn inputs(&self) -> Vec<ValueType> {
        let constants: HashSet<&str> = self.initializer.iter().map(|t| t.name.as_str()).collect();
        self.input
            .iter()
            .filter(|value| !constants.contains(value.name.as_str()))
            .map(ValueType::from)
            .collect()
    }

    /// Outputs.
    pub fn outputs(&self) -> Vec<ValueType> {
        self.output.iter().map(ValueType::from).collect()
    }

    /// Index of the node that makes each value.
    pub fn producers(&self) -> HashMap<&str, usize> {
        let mut producers = HashMap::new();
        for (index, node) in self.node.iter().enumerate() {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                producers.insert(name.as_str(), index);
            }
        }
        producers
    }

    /// The initializer with this name.
    pub fn initializer(&self, name: &str) -> Option<&TensorProto> {
        self.initializer.iter().find(|t| t.name == name)
    }

    /// True if a node of the graph or of a subgraph reads `value`, or the graph returns it.
    pub fn is_used(&self, value: &str) -> bool {
        self.output.iter().any(|o| o.name == value)
            || self.node.iter().any(|node| {
                node.input.iter().any(|i| i == value)
                    || node.subgraphs().any(|graph| graph.is_used(value))
            })
    }

    /// Counts of operators, those of subgraphs too, most frequent first; operators of other domains with their
    /// domain.
    pub fn op_counts(&self) -> Vec<(String, usize)> {
        let mut counts = HashMap::new();
        self.count_ops(&mut counts);
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counts
    }

    fn count_ops(&self, counts: &mut HashMap<String, usize>) {
        for node in &self.node {
            *counts.entry(node.op()).or_default() += 1;
            for subgraph in node.subgraphs() {
                subgraph.count_ops(counts);
            }
        }
    }

    /// Indices of the nodes that read each value, ascending; subgraphs count for their node.
    pub fn consumers(&self) -> HashMap<&str, Vec<usize>> {
        let mut consumers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in self.node.iter().enumerate() {
            node.each_read(&mut |name| {
                let readers = consumers.entry(name).or_default();
                if readers.last() != Some(&index) {
                    readers.push(index);
                }
            });
        }
        consumers
    }

    /// Names of the constants: initializers, whether or not they are listed as inputs, too.
    pub fn constants(&self) -> HashMap<&str, &TensorProto> {
        let constants = self.initializer.iter();
        constants.map(|t| (t.name.as_str(), t)).collect()
    }

    /// Makes every reader of a value in `names` read the value it maps to.
    ///
    /// Neither the nodes that make values nor the graph's outputs are renamed; names that map to
    /// names in the map are followed to the end.
    pub fn redirect(&mut self, names: &HashMap<String, String>) {
        for input in self.node.iter_mut().flat_map(|node| &mut node.input) {
            while let Some(name) = names.get(input.as_str()) {
                input.clone_from(name);
            }
        }
    }

    /// Removes nodes whose outputs nobody reads, then constants and value types that are left
    /// over.
    pub fn remove_unused(&mut self) {
        let mut used: HashSet<String> = self.output.iter().map(|o| o.name.clone()).collect();
        let mut keep = vec![false; self.node.len()];
        for (index, node) in self.node.iter().enumerate().rev() {
            if node.output.iter().any(|name| used.contains(name)) {
                keep[index] = true;
                node.each_read(&mut |name| {
                    used.insert(name.to_owned());
                });
            }
        }
        let mut keep = keep.into_iter();
        self.node.retain(|_| keep.next().unwrap_or(true));
        self.initializer.retain(|t| used.contains(&t.name));
        self.value_info.retain(|info| used.contains(&info.name));
    }

    /// A name, beginning with `stem`, that no value of the graph has.
    pub fn fresh_name(&self, stem: &str) -> String {
        Names::of(self).fresh(stem)
    }
}

/// The names that a graph uses: makes new ones, each once.
#[derive(Debug, Clone, Default)]
pub struct Names(HashSet<String>);

impl Names {
    /// Names of all values of `graph`.
    pub fn of(graph: &GraphProto) -> Self {
        let names = graph
            .node
            .iter()
            .flat_map(|node| &node.output)
            .chain(graph.input.iter().map(|v| &v.name))
            .chain(graph.initializer.iter().map(|t| &t.name));
        Self(names.cloned().collect())
    }

    /// A name, beginning with `stem`, that was not taken before; now it is.
    pub fn fresh(&mut self, stem: &str) -> String {
        let mut name = stem.to_owned();
        let mut n = 0usize;
        while self.0.contains(&name) {
            n += 1;
            name = format!("{stem}_{n}");
        }
        self.0.insert(name.clone());
        name
    }
}

impl NodeProto {
    /// Makes a node of the default domain; its name is that of its first output.
    pub fn new(op_type: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self {
            name: format!("{}/{op_type}", outputs.first().unwrap_or(&"")),
            op_type: op_type.to_owned(),
            input: owned(inputs),
            output: owned(outputs),
            ..Self::default()
        }
    }

    /// Adds an integer attribute.
    pub fn with_int(mut self, name: &str, value: i64) -> Self {
        self.attribute.push(AttributeProto {
            name: name.to_owned(),
            i: Some(value),
            r#type: Some(attribute_type::INT),
            ..AttributeProto::default()
        });
        self
    }

    /// Adds an attribute of integers.
    pub fn with_ints(mut self, name: &str, values: &[i64]) -> Self {
        self.attribute.push(AttributeProto {
            name: name.to_owned(),
            ints: values.to_vec(),
            r#type: Some(attribute_type::INTS),
            ..AttributeProto::default()
        });
        self
    }

    /// Adds a float attribute.
    pub fn with_float(mut self, name: &str, value: f32) -> Self {
        self.attribute.push(AttributeProto {
            name: name.to_owned(),
            f: Some(value),
            r#type: Some(attribute_type::FLOAT),
            ..AttributeProto::default()
        });
        self
    }

    /// The operator, with its domain unless that is the default one.
    pub fn op(&self) -> String {
        match self.domain.as_str() {
            "" | "ai.onnx" => self.op_type.clone(),
            domain => format!("{domain}.{}", self.op_type),
        }
    }

    /// The attribute with this name.
    pub fn attr(&self, name: &str) -> Option<&AttributeProto> {
        self.attribute.iter().find(|a| a.name == name)
    }

    /// The name for messages: the node's own, else that of its first output.
    pub fn label(&self) -> &str {
        match self.name.as_str() {
            "" => self.output.first().map_or("", String::as_str),
            name => name,
        }
    }

    /// Sets an integer attribute, whether or not the node has it.
    pub fn set_int(&mut self, name: &str, value: i64) {
        match self.attribute.iter_mut().find(|a| a.name == name) {
            Some(attribute) => attribute.i = Some(value),
            None => *self = std::mem::take(self).with_int(name, value),
        }
    }

    /// Sets a tensor attribute, whether or not the node has it.
    pub fn set_tensor(&mut self, name: &str, tensor: TensorProto) {
        match self.attribute.iter_mut().find(|a| a.name == name) {
            Some(attribute) => attribute.t = Some(tensor),
            None => self.attribute.push(AttributeProto {
                name: name.to_owned(),
                t: Some(tensor),
                r#type: Some(attribute_type::TENSOR),
                ..AttributeProto::default()
            }),
        }
    }

    /// Calls `f` on every value that the node or one of its subgraphs reads.
    pub fn each_read<'a>(&'a self, f: &mut impl FnMut(&'a str)) {
        for name in self.input.iter().filter(|name| !name.is_empty()) {
            f(name);
        }
        let mut graphs: Vec<&GraphProto> = self.subgraphs().collect();
        while let Some(graph) = graphs.pop() {
            for output in &graph.output {
                f(&output.name);
            }
            for node in &graph.node {
                node.input.iter().for_each(|name| f(name));
                graphs.extend(node.subgraphs());
            }
        }
    }

    /// Graphs in the attributes of control-flow nodes.
    pub fn subgraphs(&self) -> impl Iterator<Item = &GraphProto> {
        self.attribute
            .iter()
            .flat_map(|a| a.g.iter().chain(&a.graphs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_type_survives_a_round_trip() {
        let value = ValueType {
            name: "x".to_owned(),
            dtype: Some(DataType::F16),
            dims: Some(vec![
                Dim::Fixed(1),
                Dim::Named("sequence".to_owned()),
                Dim::Unknown,
            ]),
        };
        assert_eq!(ValueType::from(&ValueInfoProto::from(&value)), value);
        assert_eq!(value.to_string(), "f16 [1, sequence, ?]");
    }

    #[test]
    fn fresh_name_avoids_every_kind_of_value() {
        let graph = GraphProto {
            node: vec![NodeProto::new("Relu", &["x"], &["rows"])],
            initializer: vec![TensorProto::from_i64("rows_1", &[1], &[0])],
            ..GraphProto::default()
        };
        assert_eq!(graph.fresh_name("rows"), "rows_2");
        assert_eq!(graph.fresh_name("other"), "other");
    }

    #[test]
    fn remove_unused_keeps_what_an_output_needs() {
        let value = |name: &str| ValueInfoProto {
            name: name.to_owned(),
            ..ValueInfoProto::default()
        };
        let mut graph = GraphProto {
            node: vec![
                NodeProto::new("Add", &["x", "w"], &["a"]),
                NodeProto::new("Neg", &["a"], &["dead"]),
                NodeProto::new("Add", &["dead", "v"], &["dead_too"]),
                NodeProto::new("Relu", &["a"], &["y"]),
            ],
            initializer: vec![
                TensorProto::from_i64("w", &[1], &[0]),
                TensorProto::from_i64("v", &[1], &[0]),
            ],
            output: vec![value("y")],
            value_info: vec![value("a"), value("dead")],
            ..GraphProto::default()
        };
        graph.remove_unused();
        let ops: Vec<_> = graph.node.iter().map(|n| n.op_type.as_str()).collect();
        assert_eq!(ops, ["Add", "Relu"]);
        assert_eq!(graph.initializer.len(), 1);
        assert_eq!(graph.value_info, [value("a")]);
    }

    #[test]
    fn consumers_count_subgraphs_for_their_node() {
        let inner = GraphProto {
            node: vec![NodeProto::new("Neg", &["outer"], &["z"])],
            ..GraphProto::default()
        };
        let mut branch = NodeProto::new("If", &["cond"], &["y"]);
        branch.attribute.push(AttributeProto {
            name: "then_branch".to_owned(),
            g: Some(inner),
            ..AttributeProto::default()
        });
        let graph = GraphProto {
            node: vec![NodeProto::new("Relu", &["outer"], &["w"]), branch],
            ..GraphProto::default()
        };
        assert_eq!(graph.consumers()["outer"], [0, 1]);
    }
}
