//! Refuse graphs that make tensors of absurd sizes, before the engine is asked to.
//!
//! The engine evaluates whatever depends on constants only while it loads a graph, so that a
//! `ConstantOfShape` of 2^40 elements ends the process before anybody could refuse it. Here the
//! graph is walked once: shapes, and the small constants that shapes are computed from, are
//! followed as far as they are known, and a node whose output has more elements than
//! [`limits::CPU_TENSOR_ELEMENTS`] by its known dimensions alone is refused.
//!
//! What depends on the inputs of a run cannot be known here: for that there is
//! [`huge_pages::Hold`](crate::huge_pages::Hold).

use std::collections::HashMap;
use std::path::Path;

use super::shape_rules::output;
use crate::error::{Error, Result};
use crate::limits;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::onnx::{Dim, OnnxModel, ValueType};

/// Constants of at most so many elements are followed: shapes, pads, scales, sizes.
pub(super) const FOLLOWED: usize = 32;

/// Operators whose number of rounds the graph's values decide.
const LOOPS: [&str; 2] = ["Loop", "Scan"];

/// What is known of a value.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Known {
    /// Dimensions, as far as they are known; `None` if not even the rank is.
    pub dims: Option<Vec<Option<u64>>>,
    /// Elements of a small constant in row-major order, as far as they are known.
    pub elements: Option<Vec<Option<f64>>>,
}

impl Known {
    /// A value of which the shape is known.
    pub(super) fn of_dims(dims: Vec<Option<u64>>) -> Self {
        Self {
            dims: (dims.len() <= FOLLOWED).then_some(dims),
            elements: None,
        }
    }

    /// A list of numbers.
    pub(super) fn list(elements: Vec<Option<f64>>) -> Self {
        Self {
            dims: Some(vec![Some(elements.len() as u64)]),
            elements: (elements.len() <= FOLLOWED).then_some(elements),
        }
    }

    /// A number.
    pub(super) fn scalar(element: Option<f64>) -> Self {
        Self {
            dims: Some(Vec::new()),
            elements: Some(vec![element]),
        }
    }

    /// Number of elements, with dimensions that are not known taken as 1.
    fn least_elements(&self) -> u64 {
        let dims = self.dims.iter().flatten().flatten();
        // A zero anywhere makes the tensor empty, whatever comes before it.
        if dims.clone().any(|&n| n == 0) {
            return 0;
        }
        dims.fold(1, |product, &n| product.saturating_mul(n))
    }
}

/// What is known of the values of a graph and of those around it.
pub(super) struct Scope<'a> {
    outer: Option<&'a Scope<'a>>,
    known: HashMap<&'a str, Known>,
}

impl Scope<'_> {
    /// What is known of the value `name`.
    pub(super) fn get(&self, name: &str) -> Option<&Known> {
        let outer = || self.outer.and_then(|outer| outer.get(name));
        self.known.get(name).or_else(outer)
    }
}

/// Walks a graph.
///
/// # Errors
/// [`Error::TooLarge`] naming file and node if a node's output is above the limit by its known
/// dimensions, [`Error::Unsupported`] for operators that repeat a subgraph.
pub(super) fn check(model: &OnnxModel) -> Result<()> {
    walk(model.graph(), None, model.path())
}

fn walk(graph: &GraphProto, outer: Option<&Scope<'_>>, path: &Path) -> Result<()> {
    let mut scope = Scope {
        outer,
        known: HashMap::with_capacity(graph.node.len()),
    };
    for input in &graph.input {
        scope.known.insert(&input.name, of_input(input));
    }
    for tensor in &graph.initializer {
        scope.known.insert(&tensor.name, of_tensor(tensor, path));
    }
    for node in &graph.node {
        if LOOPS.contains(&node.op_type.as_str()) {
            return Err(Error::Unsupported {
                node: node.label().to_owned(),
                op: node.op(),
                reason: format!("the CPU engine runs no loops; in {}", path.display()),
            });
        }
        for subgraph in node.subgraphs() {
            walk(subgraph, Some(&scope), path)?;
        }
        let outputs = outputs(node, &scope, path)?;
        for (name, known) in node.output.iter().zip(outputs) {
            scope.known.insert(name, known);
        }
    }
    Ok(())
}

/// What is known of a node's outputs, none of them above the limit.
fn outputs(node: &NodeProto, scope: &Scope<'_>, path: &Path) -> Result<Vec<Known>> {
    let outputs = match constant(node, path) {
        Some(known) => vec![known],
        None => output(node, scope),
    };
    let most = outputs.iter().map(Known::least_elements).max();
    match most.filter(|&n| n > limits::CPU_TENSOR_ELEMENTS) {
        None => Ok(outputs),
        Some(actual) => Err(Error::TooLarge {
            what: format!(
                "{}: what node `{}` ({}) makes (elements)",
                path.display(),
                node.label(),
                node.op()
            ),
            actual,
            limit: limits::CPU_TENSOR_ELEMENTS,
        }),
    }
}

/// The value of a `Constant` node.
fn constant(node: &NodeProto, path: &Path) -> Option<Known> {
    if node.op_type != "Constant" {
        return None;
    }
    let attribute = node.attribute.first()?;
    Some(match attribute.name.as_str() {
        "value" => of_tensor(attribute.t.as_ref()?, path),
        "value_int" => Known::scalar(attribute.i.map(|n| n as f64)),
        "value_float" => Known::scalar(attribute.f.map(f64::from)),
        "value_ints" => Known::list(attribute.ints.iter().map(|&n| Some(n as f64)).collect()),
        "value_floats" => Known::list(attribute.floats.iter().map(|&n| Some(n.into())).collect()),
        _ => return None,
    })
}

fn of_input(input: &ValueInfoProto) -> Known {
    let dims = ValueType::from(input).dims;
    let size = |dim: &Dim| match dim {
        Dim::Fixed(n) => Some(*n as u64),
        Dim::Named(_) | Dim::Unknown => None,
    };
    dims.map_or_else(Known::default, |dims| {
        Known::of_dims(dims.iter().map(size).collect())
    })
}

fn of_tensor(tensor: &TensorProto, path: &Path) -> Known {
    let dims = tensor.dims.iter().map(|&n| u64::try_from(n).ok());
    let mut known = Known::of_dims(dims.collect());
    if tensor.len(path).is_ok_and(|len| len <= FOLLOWED as u64) {
        let ints = tensor
            .to_i64(path)
            .map(|v| v.into_iter().map(|n| n as f64).collect());
        let floats = || {
            tensor
                .to_f32(path)
                .map(|v| v.into_iter().map(f64::from).collect())
        };
        let elements: Result<Vec<f64>> = ints.or_else(|_| floats());
        known.elements = elements.ok().map(|v| v.into_iter().map(Some).collect());
    }
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{AttributeProto, ModelProto};

    /// A graph of `nodes` with the input `x`, `[1, n, 4]`, and the constants `c0`, `c1`, ...
    fn graph(nodes: Vec<NodeProto>, constants: &[&[i64]]) -> GraphProto {
        let x = ValueType {
            name: "x".to_owned(),
            dtype: None,
            dims: Some(vec![
                Dim::Fixed(1),
                Dim::Named("n".to_owned()),
                Dim::Fixed(4),
            ]),
        };
        let constant = |(i, list): (usize, &&[i64])| {
            TensorProto::from_i64(&format!("c{i}"), &[list.len() as i64], list)
        };
        let last = nodes.last().and_then(|node| node.output.first()).cloned();
        GraphProto {
            node: nodes,
            initializer: constants.iter().enumerate().map(constant).collect(),
            input: vec![ValueInfoProto::from(&x)],
            output: vec![ValueInfoProto {
                name: last.unwrap_or_default(),
                ..ValueInfoProto::default()
            }],
            ..GraphProto::default()
        }
    }

    fn check_of(graph: GraphProto) -> Result<()> {
        use prost::Message;
        let proto = ModelProto {
            graph: Some(graph),
            ..ModelProto::default()
        };
        let model = OnnxModel::parse(Path::new("m.onnx"), proto.encode_to_vec().into());
        check(&model.expect("parse"))
    }

    fn ints(mut node: NodeProto, name: &str, ints: &[i64]) -> NodeProto {
        node.attribute.push(AttributeProto {
            name: name.to_owned(),
            ints: ints.to_vec(),
            ..AttributeProto::default()
        });
        node
    }

    const M: i64 = 1 << 20;

    #[test]
    fn nodes_that_make_absurd_tensors_are_refused_by_name() {
        let node = NodeProto::new;
        let cases = [
            (
                vec![node("ConstantOfShape", &["c0"], &["y"])],
                vec![vec![M, M]],
            ),
            (
                vec![node("Expand", &["x", "c0"], &["y"])],
                vec![vec![M, 1, M]],
            ),
            (
                vec![node("Range", &["c0", "c1", "c2"], &["y"])],
                vec![vec![0], vec![1 << 40], vec![1]],
            ),
            (
                vec![
                    node("ConstantOfShape", &["c0"], &["a"]),
                    node("Tile", &["a", "c1"], &["y"]),
                ],
                vec![vec![4, 4], vec![M, M]],
            ),
            (
                vec![
                    node("ConstantOfShape", &["c0"], &["a"]),
                    node("Pad", &["a", "c1"], &["y"]),
                ],
                vec![vec![4, 4], vec![M, M, M, M]],
            ),
            (
                vec![
                    node("ConstantOfShape", &["c0"], &["a"]),
                    node("Resize", &["a", "", "", "c1"], &["y"]),
                ],
                vec![vec![1, 1, 4, 4], vec![1, 1, M, M]],
            ),
            // From the shape of the input, through arithmetic.
            (
                vec![
                    node("Shape", &["x"], &["s"]),
                    node("Gather", &["s", "c0"], &["d"]),
                    node("Mul", &["d", "c1"], &["m"]),
                    node("Concat", &["m", "m"], &["t"]).with_int("axis", 0),
                    node("ConstantOfShape", &["t"], &["y"]),
                ],
                vec![vec![2], vec![M]],
            ),
            // Rows times columns.
            (
                vec![
                    node("ConstantOfShape", &["c0"], &["a"]),
                    node("ConstantOfShape", &["c1"], &["b"]),
                    node("Add", &["a", "b"], &["y"]),
                ],
                vec![vec![M, 1], vec![1, M]],
            ),
            (
                vec![
                    node("ConstantOfShape", &["c0"], &["a"]),
                    node("ConstantOfShape", &["c1"], &["b"]),
                    node("MatMul", &["a", "b"], &["y"]),
                ],
                vec![vec![M, 1], vec![1, M]],
            ),
            (
                vec![
                    node("ConstantOfShape", &["c0"], &["a"]),
                    ints(node("Conv", &["a", "a"], &["y"]), "pads", &[M, M, M, M]),
                ],
                vec![vec![1, 1, 4, 4]],
            ),
            (
                vec![ints(node("RandomNormal", &[], &["y"]), "shape", &[M, M])],
                vec![],
            ),
            (
                vec![
                    node("ConstantOfShape", &["c0"], &["a"]),
                    node("OneHot", &["a", "c1", "c2"], &["y"]),
                ],
                vec![vec![1 << 20], vec![1 << 40], vec![0, 1]],
            ),
        ];
        for (nodes, constants) in cases {
            let op = nodes.last().map(|n| n.op_type.clone()).unwrap_or_default();
            let constants: Vec<&[i64]> = constants.iter().map(Vec::as_slice).collect();
            let refused = check_of(graph(nodes, &constants));
            let Err(Error::TooLarge { what, actual, .. }) = &refused else {
                panic!("{op}: {refused:?}");
            };
            assert!(what.contains("m.onnx") && what.contains(&op), "{what}");
            assert!(*actual > limits::CPU_TENSOR_ELEMENTS, "{op}");
        }
    }

    #[test]
    fn chain_that_doubles_is_refused() {
        let mut nodes = vec![NodeProto::new("ConstantOfShape", &["c0"], &["v0"])];
        for i in 0..40 {
            let (from, to) = (format!("v{i}"), format!("v{}", i + 1));
            let concat = NodeProto::new("Concat", &[&from, &from], &[&to]);
            nodes.push(concat.with_int("axis", 0));
        }
        assert!(matches!(
            check_of(graph(nodes, &[&[2]])),
            Err(Error::TooLarge { .. })
        ));
    }

    #[test]
    fn subgraphs_see_the_values_around_them_and_loops_are_refused() {
        let inner = GraphProto {
            node: vec![NodeProto::new("ConstantOfShape", &["c0"], &["z"])],
            ..GraphProto::default()
        };
        let with_body = |op: &str| {
            let mut node = NodeProto::new(op, &["x"], &["y"]);
            node.attribute.push(AttributeProto {
                name: "body".to_owned(),
                g: Some(inner.clone()),
                ..AttributeProto::default()
            });
            node
        };
        let refused = check_of(graph(vec![with_body("If")], &[&[M, M]]));
        assert!(
            matches!(refused, Err(Error::TooLarge { .. })),
            "{refused:?}"
        );
        let refused = check_of(graph(vec![with_body("Loop")], &[&[1]]));
        assert!(
            matches!(refused, Err(Error::Unsupported { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn what_depends_on_a_run_or_is_empty_is_let_through() {
        let node = NodeProto::new;
        let nodes = vec![
            node("Shape", &["x"], &["s"]),
            node("Gather", &["s", "c0"], &["d"]),
            node("Concat", &["d", "c1", "c1"], &["t"]).with_int("axis", 0),
            node("ConstantOfShape", &["c2"], &["e"]),
            node("Expand", &["x", "c3"], &["y"]),
        ];
        // `e` has no elements whatever its other sizes are.
        let constants: [&[i64]; 4] = [&[1], &[1 << 10], &[0, M, M], &[1, 1, 4]];
        assert!(check_of(graph(nodes, &constants)).is_ok());
    }
}
