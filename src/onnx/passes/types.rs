//! Element types of all values of a graph.
//!
//! Files rarely state the types of inner values, and a strongly typed TensorRT network computes
//! with exactly the types of the graph: so they are inferred, forward over the nodes, from the
//! types of inputs and constants.

use std::collections::{BTreeSet, HashMap};

use super::ops::{Group, Op, Output, operator};
use crate::error::{Error, Result};
use crate::onnx::proto::NodeProto;
use crate::onnx::{DataType, OnnxModel};

/// The element type of every value of a graph.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Types(HashMap<String, DataType>);

impl Types {
    /// Infers the types of all values of the graph.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names every node whose operator is not known or has a subgraph;
    /// [`Error::Malformed`] if a node reads a value that no node before it makes, or a type is
    /// not stated where it has to be.
    pub fn infer(model: &OnnxModel) -> Result<Self> {
        let bad = |reason: String| Error::malformed(model.path(), reason);
        let graph = model.graph();
        let mut types = Self::default();
        for tensor in &graph.initializer {
            types.set(&tensor.name, tensor.dtype()?);
        }
        for input in graph.inputs() {
            let dtype = input
                .dtype
                .ok_or_else(|| bad(format!("input `{}` has no element type", input.name)))?;
            types.set(&input.name, dtype);
        }
        let mut refused = Refused::default();
        for node in &graph.node {
            let op = match operator(node) {
                _ if node.subgraphs().next().is_some() => {
                    refused.add(node, "subgraphs are not supported");
                    None
                }
                None => {
                    refused.add(node, "unknown operator");
                    None
                }
                op => op,
            };
            let Some(op) = op else {
                continue;
            };
            if refused.is_empty() {
                types
                    .add_outputs(node, op)
                    .map_err(|reason| bad(format!("node `{}`: {reason}", node.label())))?;
            }
        }
        refused.into_result()?;
        Ok(types)
    }

    /// The type of a value, `None` if the graph has none of that name.
    pub fn get(&self, name: &str) -> Option<DataType> {
        self.0.get(name).copied()
    }

    /// True if the value is one of floats.
    pub fn is_float(&self, name: &str) -> bool {
        self.get(name).is_some_and(DataType::is_float)
    }

    pub(super) fn set(&mut self, name: &str, dtype: DataType) {
        self.0.insert(name.to_owned(), dtype);
    }

    /// Adds the types of a node's outputs to those of its inputs.
    pub(super) fn add_outputs(&mut self, node: &NodeProto, op: Op) -> Result<(), String> {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            if !self.0.contains_key(name) {
                return Err(format!("reads `{name}`, which nothing before it makes"));
            }
        }
        if node.output.first().is_none_or(String::is_empty) {
            return Err("makes nothing".to_owned());
        }
        for (index, name) in node.output.iter().enumerate() {
            if self.0.contains_key(name) {
                return Err(format!("makes `{name}`, which exists"));
            }
            if !name.is_empty() {
                let dtype = self.output_type(node, op, index)?;
                self.0.insert(name.clone(), dtype);
            }
        }
        Ok(())
    }

    fn output_type(&self, node: &NodeProto, op: Op, index: usize) -> Result<DataType, String> {
        let input = |index: usize| {
            let name = node.input.get(index).filter(|name| !name.is_empty());
            name.and_then(|name| self.get(name))
        };
        let code = |name: &str| {
            let code = node.attr(name).and_then(|a| a.i).unwrap_or(0);
            DataType::from_code(i32::try_from(code).unwrap_or(0))
        };
        let found = match op.output {
            Output::GroupThen(dtype) if index > 0 => Some(dtype),
            Output::Group | Output::GroupThen(_) => {
                let mut group = group_inputs(node, op.group);
                group.next().and_then(|(_, name)| self.get(name))
            }
            Output::Fixed(dtypes) => dtypes.get(index).copied(),
            Output::Input(index) => input(index),
            Output::Attribute(name) => code(name),
            Output::Value => value_type(node),
            Output::ZeroPoint => input(2)
                .or_else(|| code("output_dtype"))
                .or(Some(DataType::U8)),
        };
        found.ok_or_else(|| format!("{} states no type of its output {index}", node.op()))
    }
}

/// Type of the tensor in a `Constant` or `ConstantOfShape`.
fn value_type(node: &NodeProto) -> Option<DataType> {
    let value = node.attribute.iter().find(|a| a.name.starts_with("value"));
    match value {
        None => Some(DataType::F32),
        Some(a) => match a.name.as_str() {
            "value" => a.t.as_ref()?.dtype().ok(),
            "value_float" | "value_floats" => Some(DataType::F32),
            "value_int" | "value_ints" => Some(DataType::I64),
            _ => Some(DataType::String),
        },
    }
}

/// Index and name of the inputs that share a type.
pub(super) fn group_inputs(node: &NodeProto, group: Group) -> impl Iterator<Item = (usize, &str)> {
    let inputs = node.input.iter().map(String::as_str).enumerate();
    inputs.filter(move |&(index, name)| !name.is_empty() && group.contains(index))
}

/// Infers all types and checks what a strongly typed network demands: the operands of every
/// operator have one type, and every output has the type that the graph declares.
///
/// # Errors
/// As [`Types::infer`], and [`Error::Unsupported`] naming every node that mixes types;
/// [`Error::Shape`] for an output of another type than declared.
pub fn check_types(model: &OnnxModel) -> Result<Types> {
    let types = Types::infer(model)?;
    let mut refused = Refused::default();
    for node in &model.graph().node {
        let Some(op) = operator(node) else { continue };
        let group: BTreeSet<String> = group_inputs(node, op.group)
            // An integer exponent is allowed.
            .filter(|&(index, name)| node.op_type != "Pow" || index == 0 || types.is_float(name))
            .filter_map(|(_, name)| types.get(name))
            .map(|dtype| dtype.to_string())
            .collect();
        if group.len() > 1 {
            let group: Vec<String> = group.into_iter().collect();
            refused.add(node, &format!("mixes {}", group.join(" and ")));
        }
    }
    refused.into_result()?;
    for output in model.graph().outputs() {
        let found = types.get(&output.name);
        if found.is_none() || (output.dtype.is_some() && output.dtype != found) {
            let text = |dtype: Option<DataType>| dtype.map_or("none".to_owned(), |d| d.to_string());
            return Err(Error::Shape {
                name: output.name,
                expected: text(output.dtype),
                actual: text(found),
            });
        }
    }
    Ok(types)
}

/// Nodes that cannot be handled, so that one error names them all.
#[derive(Debug, Default)]
pub(super) struct Refused {
    nodes: Vec<String>,
    ops: BTreeSet<String>,
    reasons: BTreeSet<String>,
}

impl Refused {
    /// Nodes that one error names; the others are counted.
    const NAMED: usize = 20;

    pub(super) fn add(&mut self, node: &NodeProto, reason: &str) {
        self.nodes.push(node.label().to_owned());
        self.ops.insert(node.op());
        self.reasons.insert(reason.to_owned());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub(super) fn into_result(mut self) -> Result<()> {
        if self.nodes.is_empty() {
            return Ok(());
        }
        let more = self.nodes.len().saturating_sub(Self::NAMED);
        self.nodes.truncate(Self::NAMED);
        let mut node = self.nodes.join("`, `");
        if more > 0 {
            node.push_str(&format!("` and {more} more, `…"));
        }
        let list = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(", ");
        Err(Error::Unsupported {
            node,
            op: list(self.ops),
            reason: list(self.reasons),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{cast, model, ops, scalar, value};
    use super::*;
    use crate::onnx::DataType::{Bool, F16, F32, I64, U8};
    use crate::onnx::proto::{AttributeProto, GraphProto, TensorProto};

    fn infer(node: NodeProto) -> Types {
        let inputs = vec![
            value("x", F32),
            value("h", F16),
            value("n", I64),
            value("b", Bool),
        ];
        let constants = vec![scalar("s", 1.0), TensorProto::from_i64("i", &[1], &[0])];
        let output = node.output[0].clone();
        let model = model(inputs, constants, vec![node], vec![value(&output, F32)]);
        Types::infer(&model).expect("types")
    }

    #[test]
    fn infer_follows_every_kind_of_output() {
        let node = NodeProto::new;
        let full = |tensor: Option<TensorProto>| {
            let mut full = node("ConstantOfShape", &["n"], &["y"]);
            if let Some(tensor) = tensor {
                full.set_tensor("value", tensor);
            }
            full
        };
        let cases = [
            (node("Add", &["x", "s"], &["y"]), F32),
            (node("Relu", &["h"], &["y"]), F16),
            (node("Shape", &["h"], &["y"]), I64),
            (node("Equal", &["x", "s"], &["y"]), Bool),
            (node("Where", &["b", "h", "h"], &["y"]), F16),
            (node("Gather", &["h", "n"], &["y"]), F16),
            (node("Range", &["n", "n", "n"], &["y"]), I64),
            (cast("b", "y", F16), F16),
            (full(None), F32),
            (full(Some(TensorProto::from_i64("", &[1], &[1]))), I64),
            (node("OneHot", &["n", "n", "h"], &["y"]), F16),
            (node("Clip", &["x", "", "s"], &["y"]), F32),
            (node("QuantizeLinear", &["x", "s"], &["y"]), U8),
            (node("DequantizeLinear", &["n", "s"], &["y"]), F32),
            (node("NonZero", &["b"], &["y"]), I64),
        ];
        for (node, expected) in cases {
            let op = node.op();
            assert_eq!(infer(node).get("y"), Some(expected), "{op}");
        }
        let types = infer(node("TopK", &["h", "i"], &["y", "indices"]));
        assert_eq!(
            (types.get("y"), types.get("indices")),
            (Some(F16), Some(I64))
        );
        let norm = node(
            "LayerNormalization",
            &["h", "h"],
            &["y", "mean", "deviation"],
        );
        let types = infer(norm);
        assert_eq!((types.get("y"), types.get("mean")), (Some(F16), Some(F32)));
    }

    #[test]
    fn infer_names_every_node_that_it_cannot_handle() {
        let mut branch = NodeProto::new("If", &["b"], &["c"]);
        branch.attribute.push(AttributeProto {
            name: "then_branch".to_owned(),
            g: Some(GraphProto::default()),
            ..AttributeProto::default()
        });
        let nodes = vec![
            NodeProto::new("Wobble", &["x"], &["a"]),
            NodeProto::new("Relu", &["a"], &["r"]),
            NodeProto::new("Warble", &["r"], &["y"]),
            branch,
        ];
        let model = model(
            vec![value("x", F32), value("b", Bool)],
            vec![],
            nodes,
            vec![value("y", F32)],
        );
        let error = Types::infer(&model).expect_err("unknown").to_string();
        for part in [
            "a/Wobble",
            "y/Warble",
            "c/If",
            "unknown operator",
            "subgraphs",
        ] {
            assert!(error.contains(part), "{error}");
        }
        assert!(!error.contains("Relu"), "{error}");
    }

    #[test]
    fn infer_of_nodes_that_do_not_hang_together_is_malformed() {
        let cases = [
            (NodeProto::new("Relu", &["ghost"], &["y"]), "ghost"),
            (NodeProto::new("Relu", &["x"], &["x"]), "exists"),
            (NodeProto::new("Relu", &["x"], &[]), "makes nothing"),
            (NodeProto::new("Relu", &[], &["y"]), "no type"),
            (NodeProto::new("Cast", &["x"], &["y"]), "no type"),
        ];
        for (node, expected) in cases {
            let inputs = vec![value("x", F32)];
            let model = model(inputs, vec![], vec![node], vec![value("y", F32)]);
            let error = Types::infer(&model).expect_err(expected);
            assert!(matches!(error, Error::Malformed { .. }), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn check_types_refuses_mixed_operands_and_wrong_outputs() {
        let mixed = |declared| {
            model(
                vec![value("x", F32), value("h", F16)],
                vec![],
                vec![
                    NodeProto::new("Add", &["x", "h"], &["a"]),
                    NodeProto::new("Mul", &["h", "x"], &["y"]),
                ],
                vec![value("y", declared)],
            )
        };
        let error = check_types(&mixed(F16)).expect_err("mixed").to_string();
        assert!(
            error.contains("a/Add") && error.contains("y/Mul"),
            "{error}"
        );
        assert!(error.contains("mixes f16 and f32"), "{error}");

        let wrong = model(
            vec![value("x", F32)],
            vec![],
            vec![NodeProto::new("Relu", &["x"], &["y"])],
            vec![value("y", F16)],
        );
        assert_eq!(ops(&wrong), ["Relu"]);
        assert!(matches!(check_types(&wrong), Err(Error::Shape { .. })));
    }
}
