//! What depends on what in a graph.

use std::collections::{HashMap, HashSet};

use super::dtype::DataType;
use super::graph::ValueType;
use super::proto::{GraphProto, ValueInfoProto};

/// Operators that arrange the elements of their first input anew, each as often as every other.
const VIEWS: [&str; 7] = [
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Expand",
];

/// Operators whose results say how large a value is, or how it compares, and not what it is.
const ASIDES: [&str; 8] = [
    "Shape",
    "Size",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "NonZero",
];

impl GraphProto {
    /// Values that no input of the graph has a part in: initializers, and what nodes make of
    /// them alone. Nodes must stand in topological order.
    pub fn constant_values(&self) -> HashSet<&str> {
        let mut constant: HashSet<&str> =
            self.initializer.iter().map(|t| t.name.as_str()).collect();
        for node in &self.node {
            let draws = node.op_type.starts_with("Random") || node.op_type == "Bernoulli";
            if draws || node.subgraphs().next().is_some() {
                continue;
            }
            let known = |name: &String| name.is_empty() || constant.contains(name.as_str());
            if node.input.iter().all(known) {
                constant.extend(node.output.iter().map(String::as_str));
            }
        }
        constant
    }

    /// Values in which the elements of one of `roots` have a part, the roots included; a mask that
    /// is made of their sizes or by comparing them is none. Nodes must stand in topological order.
    pub fn derived_from<'a>(&'a self, roots: &[&'a str]) -> HashSet<&'a str> {
        let mut derived: HashSet<&str> = roots.iter().copied().collect();
        for node in &self.node {
            if ASIDES.contains(&node.op_type.as_str()) {
                continue;
            }
            let mut reads = false;
            node.each_read(&mut |name| reads |= derived.contains(name));
            if reads {
                let outputs = node.output.iter().filter(|name| !name.is_empty());
                derived.extend(outputs.map(String::as_str));
            }
        }
        derived
    }

    /// Values in which pixels, embeddings or the cache have a part: those derived from the float
    /// inputs. Nodes must stand in topological order.
    pub fn data_values(&self) -> HashSet<&str> {
        let constants = self.constants();
        let is_float = |input: &&ValueInfoProto| {
            let dtype = ValueType::from(*input).dtype;
            matches!(dtype, Some(DataType::F32 | DataType::F16))
                && !constants.contains_key(input.name.as_str())
        };
        let floats = self.input.iter().filter(is_float);
        let floats: Vec<&str> = floats.map(|input| input.name.as_str()).collect();
        self.derived_from(&floats)
    }

    /// The value whose elements `name` has in another arrangement: its own name, unless nodes
    /// like `Reshape` and `Transpose` made it. `producers` are those of this graph.
    pub fn view_root<'a>(&'a self, producers: &HashMap<&str, usize>, name: &'a str) -> &'a str {
        let mut name = name;
        // A chain is no longer than the graph, even where nodes read each other in a circle.
        for _ in 0..self.node.len() {
            let Some(node) = producers.get(name).map(|&index| &self.node[index]) else {
                break;
            };
            match node.input.first() {
                Some(input) if VIEWS.contains(&node.op_type.as_str()) && !input.is_empty() => {
                    name = input;
                }
                _ => break,
            }
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::{NodeProto, TensorProto};
    use super::*;

    #[test]
    fn values_are_told_apart_by_what_they_depend_on() {
        let graph = GraphProto {
            node: vec![
                NodeProto::new("Neg", &["w"], &["minus_w"]),
                NodeProto::new("Cast", &["mask"], &["m"]),
                NodeProto::new("Mul", &["x", "minus_w"], &["y"]),
                NodeProto::new("Reshape", &["y", "w"], &["y2"]),
                NodeProto::new("Transpose", &["y2"], &["y3"]),
                NodeProto::new("Add", &["y3", "m"], &["z"]),
                NodeProto::new("Shape", &["z"], &["extent"]),
                NodeProto::new("ConstantOfShape", &["extent"], &["blank"]),
                NodeProto::new("Greater", &["z", "w"], &["is_more"]),
                NodeProto::new("Where", &["is_more", "w", "blank"], &["fill"]),
                NodeProto::new("RandomNormal", &[], &["noise"]),
            ],
            initializer: vec![TensorProto::from_i64("w", &[1], &[0])],
            ..GraphProto::default()
        };
        let constant = graph.constant_values();
        assert_eq!(constant, HashSet::from(["w", "minus_w"]));
        let derived = graph.derived_from(&["x"]);
        assert_eq!(derived, HashSet::from(["x", "y", "y2", "y3", "z"]));
        let producers = graph.producers();
        for (name, root) in [("y3", "y"), ("y", "y"), ("x", "x"), ("z", "z")] {
            assert_eq!(graph.view_root(&producers, name), root);
        }
    }

    #[test]
    fn view_root_of_a_circle_ends() {
        let graph = GraphProto {
            node: vec![
                NodeProto::new("Identity", &["a"], &["b"]),
                NodeProto::new("Identity", &["b"], &["a"]),
            ],
            ..GraphProto::default()
        };
        graph.view_root(&graph.producers(), "a");
    }
}
