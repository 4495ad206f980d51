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

    /// Counts of operators, most frequent first; operators of other domains with their domain.
    pub fn op_counts(&self) -> Vec<(String, usize)> {
        let mut counts: HashMap<String, usize> = HashMap::new();
        for node in &self.node {
            *counts.entry(node.op()).or_default() += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        counts
    }

    /// A name, beginning with `stem`, that no value of the graph has.
    pub fn fresh_name(&self, stem: &str) -> String {
        let taken: HashSet<&str> = self
            .node
            .iter()
            .flat_map(|node| node.output.iter().map(String::as_str))
            .chain(self.input.iter().map(|v| v.name.as_str()))
            .chain(self.initializer.iter().map(|t| t.name.as_str()))
            .collect();
        let mut name = stem.to_owned();
        let mut n = 0usize;
        while taken.contains(name.as_str()) {
            n += 1;
            name = format!("{stem}_{n}");
        }
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
}
