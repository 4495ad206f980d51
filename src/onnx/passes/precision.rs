//! Decide which operators of an FP16 graph compute in FP32.
//!
//! Every operator has a rule ([`super::ops`]); on top of the rules, in this order:
//!
//! | what                                                     | computed in | why |
//! |----------------------------------------------------------|-------------|-----|
//! | values made of shapes, positions, masks and constants    | FP32 | positions beyond 2048 and bucket borders are not FP16 numbers |
//! | nodes that the caller names                              | FP32 | measured sensitivity |
//! | nodes with a constant beyond ±65504                      | FP32 | it would become infinite |
//! | squares and cubes (`x · x`, then what is made of it)     | FP32 | norms and tanh-GELU overflow from 256 and 40 on |
//! | nodes that read or make a value seen beyond ±65504 / 4   | FP32 | on other pictures it would become infinite |
//! | `silu(gate) · up`, unless seen within ±65504 / 4         | FP32 | a product of two activations has the range of neither |
//! | masks and factors between a product and an FP32 Softmax  | FP32 | one cast, after the product |
//! | moves of FP32 values that only FP16 operators read       | FP16 | one cast, before the move |
//! | dequantized values that only FP32 operators read         | FP32 | no cast between the two |
//!
//! Tables of constants that are looked up (embeddings) are FP16.

use std::collections::{HashMap, HashSet};

use super::Fp16Options;
use super::ops::{Op, Rule, operator};
use super::types::{Refused, Types, group_inputs};
use crate::error::Result;
use crate::onnx::DataType;
use crate::onnx::proto::{GraphProto, NodeProto};

/// Precision of each node, by index; `None` for nodes whose operands are not floats.
pub(super) type Plan = Vec<Option<Precision>>;

/// A precision that a node computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Precision {
    Half,
    Single,
}

impl Precision {
    pub(super) fn dtype(self) -> DataType {
        match self {
            Self::Half => DataType::F16,
            Self::Single => DataType::F32,
        }
    }
}

/// What a float value is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A constant itself, stored as floats or as integers with their scales.
    Constant,
    /// Shapes, integers, booleans and constants.
    Exact,
    /// Float inputs, products, looked-up rows.
    Activation,
}

use Precision::{Half, Single};

/// The largest FP16 number, over the factor by which other pictures may exceed what was seen.
const SAFE: f32 = 65504.0 / 4.0;

/// Decides the precision of every node.
///
/// `beyond` counts a constant's elements that FP16 cannot hold.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) names all nodes that have to be lowered
/// before.
pub(super) fn plan(
    graph: &GraphProto,
    types: &Types,
    options: &Fp16Options,
    beyond: &mut impl FnMut(&str) -> Result<u64>,
) -> Result<Plan> {
    let mut planner = Planner::new(graph, types, options)?;
    planner.forward(beyond)?;
    planner.promote_scores();
    planner.demote_moves();
    planner.promote_dequantized();
    Ok(planner.plan)
}

/// The plan in which everything is FP32.
pub(super) fn all_single(graph: &GraphProto, types: &Types) -> Plan {
    let nodes = graph.node.iter();
    let float = |node: &NodeProto| operator(node).is_some_and(|op| has_floats(node, op, types));
    nodes.map(|node| float(node).then_some(Single)).collect()
}

/// True if the operands of the node that share a type, or what it makes, are floats.
fn has_floats(node: &NodeProto, op: Op, types: &Types) -> bool {
    match group_inputs(node, op.group).next() {
        Some((_, name)) => types.is_float(name),
        None => op.rule == Rule::Make && node.output.iter().any(|name| types.is_float(name)),
    }
}

struct Planner<'a> {
    graph: &'a GraphProto,
    options: &'a Fp16Options,
    ops: Vec<Option<Op>>,
    consumers: HashMap<&'a str, Vec<usize>>,
    producers: HashMap<&'a str, usize>,
    outputs: HashSet<&'a str>,
    origins: HashMap<&'a str, Origin>,
    /// Nodes that a rule or the caller wants in FP32, whatever reads them.
    pinned: HashSet<usize>,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(graph: &'a GraphProto, types: &'a Types, options: &'a Fp16Options) -> Result<Self> {
        let mut refused = Refused::default();
        let mut ops = Vec::with_capacity(graph.node.len());
        for node in &graph.node {
            let op = operator(node);
            if op.is_some_and(|op| op.rule == Rule::Lower) {
                refused.add(node, "to be lowered before the precision is set");
            }
            ops.push(op.filter(|&op| has_floats(node, op, types)));
        }
        refused.into_result()?;
        let constants = graph.initializer.iter().map(|t| t.name.as_str());
        let mut origins: HashMap<&str, Origin> =
            constants.map(|name| (name, Origin::Constant)).collect();
        for input in &graph.input {
            origins
                .entry(input.name.as_str())
                .or_insert(Origin::Activation);
        }
        origins.retain(|name, _| types.is_float(name));
        Ok(Self {
            graph,
            options,
            ops,
            consumers: graph.consumers(),
            producers: graph.producers(),
            outputs: graph.output.iter().map(|o| o.name.as_str()).collect(),
            origins,
            pinned: HashSet::new(),
            plan: vec![None; graph.node.len()],
        })
    }

    fn forward(&mut self, beyond: &mut impl FnMut(&str) -> Result<u64>) -> Result<()> {
        let keep: HashSet<&str> = self.options.keep.iter().map(String::as_str).collect();
        for index in 0..self.graph.node.len() {
            let node = &self.graph.node[index];
            let Some(op) = self.ops[index] else { continue };
            let origin = self.origin_of(node, op);
            for name in &node.output {
                self.origins.insert(name, origin);
            }
            let mut pinned = keep.contains(node.label()) || self.is_gating_sigmoid(index);
            for (_, name) in group_inputs(node, op.group) {
                if self.origins.get(name) == Some(&Origin::Constant) && beyond(name)? > 0 {
                    pinned = true;
                }
                pinned |= self.is_safe(name) == Some(false);
            }
            let makes = node.output.iter();
            pinned |= makes
                .into_iter()
                .any(|name| self.is_safe(name) == Some(false));
            if pinned {
                self.pinned.insert(index);
            }
            let single = pinned || origin == Origin::Exact || self.wants_single(node, op);
            self.plan[index] = Some(if single { Single } else { Half });
        }
        Ok(())
    }

    fn origin_of(&self, node: &NodeProto, op: Op) -> Origin {
        let origin = |name: &str| self.origins.get(name).copied();
        if node.op_type == "DequantizeLinear" {
            // The scale says nothing of what the integers are.
            let made = |codes: &String| self.producers.contains_key(codes.as_str());
            return match node.input.first().is_some_and(made) {
                true => Origin::Activation,
                false => Origin::Constant,
            };
        }
        let mut group = group_inputs(node, op.group).map(|(_, name)| origin(name));
        let looks_up = node.op_type.starts_with("Gather");
        if looks_up && group.next() == Some(Some(Origin::Constant)) {
            return Origin::Activation;
        }
        if group_inputs(node, op.group).any(|(_, n)| origin(n) == Some(Origin::Activation)) {
            Origin::Activation
        } else {
            Origin::Exact
        }
    }

    fn wants_single(&self, node: &NodeProto, op: Op) -> bool {
        match op.rule {
            Rule::Half | Rule::Free | Rule::Lower | Rule::Make => false,
            Rule::Single if node.op_type.ends_with("Softmax") => {
                self.options.softmax == DataType::F32
            }
            Rule::Single => true,
            Rule::Pointwise | Rule::Move => {
                let square = node.op_type == "Mul" && node.input.first() == node.input.get(1);
                let compares_exact = is_comparison(node)
                    && node
                        .input
                        .iter()
                        .any(|name| self.origins.get(name.as_str()) == Some(&Origin::Exact));
                square || compares_exact || self.reads_single(node, op)
            }
        }
    }

    /// True if an activation that the node reads was computed in FP32.
    fn reads_single(&self, node: &NodeProto, op: Op) -> bool {
        group_inputs(node, op.group).any(|(_, name)| {
            self.origins.get(name) == Some(&Origin::Activation)
                && self
                    .producers
                    .get(name)
                    .is_some_and(|&producer| self.plan[producer] == Some(Single))
        })
    }

    /// True for the Sigmoid of `silu(gate) · up`.
    fn is_gating_sigmoid(&self, index: usize) -> bool {
        let node = &self.graph.node[index];
        if node.op_type != "Sigmoid" {
            return false;
        }
        let (gate, sigmoid) = (&node.input[0], &node.output[0]);
        let muls = |name: &str| {
            let readers = self.consumers.get(name).into_iter().flatten();
            readers
                .map(|&reader| &self.graph.node[reader])
                .filter(|node| node.op_type == "Mul")
        };
        muls(sigmoid)
            .filter(|mul| mul.input.contains(gate))
            .flat_map(|silu| muls(&silu.output[0]))
            // The other factor must be an activation: constants are weights or scales.
            .any(|product| {
                let is_constant =
                    |name: &String| self.origins.get(name.as_str()) == Some(&Origin::Constant);
                !product.input.iter().any(is_constant)
                    && self.is_safe(&product.output[0]) != Some(true)
            })
    }

    /// Whether FP16 holds a value with room to spare, if it was seen.
    fn is_safe(&self, value: &str) -> Option<bool> {
        // What is no number is in no range.
        self.options.seen.get(value).map(|seen| *seen <= SAFE)
    }

    /// Takes pointwise nodes whose results go into FP32 Softmax only to FP32, too.
    fn promote_scores(&mut self) {
        let mut promoted: HashSet<usize> = HashSet::new();
        for index in (0..self.graph.node.len()).rev() {
            let node = &self.graph.node[index];
            let pointwise = self.ops[index].is_some_and(|op| op.rule == Rule::Pointwise);
            if !pointwise || self.plan[index] != Some(Half) || is_comparison(node) {
                continue;
            }
            let name = node.output[0].as_str();
            let readers = self.consumers.get(name).map_or(&[][..], Vec::as_slice);
            let scores = !readers.is_empty()
                && !self.outputs.contains(name)
                && readers.iter().all(|&reader| {
                    self.plan[reader] == Some(Single)
                        && (self.graph.node[reader].op_type.ends_with("Softmax")
                            || promoted.contains(&reader))
                });
            if scores {
                self.plan[index] = Some(Single);
                promoted.insert(index);
            }
        }
    }

    /// Takes moves of FP32 values that only FP16 operators read to FP16.
    fn demote_moves(&mut self) {
        for index in (0..self.graph.node.len()).rev() {
            let node = &self.graph.node[index];
            let moves =
                self.ops[index].is_some_and(|op| matches!(op.rule, Rule::Move | Rule::Make));
            if !moves || self.plan[index] != Some(Single) || self.pinned.contains(&index) {
                continue;
            }
            let mut wanted = node
                .output
                .iter()
                .any(|o| self.outputs.contains(o.as_str()));
            let mut single = false;
            for name in &node.output {
                for &reader in self.consumers.get(name.as_str()).into_iter().flatten() {
                    match self.demand(reader, name) {
                        Some(Half) => wanted = true,
                        Some(Single) => single = true,
                        None => {}
                    }
                }
            }
            if wanted && !single {
                self.plan[index] = Some(Half);
            }
        }
    }

    /// Takes dequantization whose results only FP32 operators read to FP32.
    fn promote_dequantized(&mut self) {
        for index in 0..self.graph.node.len() {
            let node = &self.graph.node[index];
            if node.op_type != "DequantizeLinear" || self.plan[index] != Some(Half) {
                continue;
            }
            let name = node.output[0].as_str();
            let readers = self.consumers.get(name).map_or(&[][..], Vec::as_slice);
            let demands = |&reader: &usize| self.demand(reader, name) == Some(Single);
            if !readers.is_empty() && readers.iter().all(demands) {
                self.plan[index] = Some(Single);
            }
        }
    }

    /// The precision in which node `reader` wants `value`, `None` if it takes any.
    fn demand(&self, reader: usize, value: &str) -> Option<Precision> {
        let node = &self.graph.node[reader];
        if matches!(node.op_type.as_str(), "Shape" | "Size") {
            return None;
        }
        let read = |op: Op| group_inputs(node, op.group).any(|(_, name)| name == value);
        match self.ops[reader].filter(|&op| read(op)) {
            Some(_) => self.plan[reader],
            // Conversions to integers and the like see the exact value.
            None => Some(Single),
        }
    }
}

fn is_comparison(node: &NodeProto) -> bool {
    matches!(
        node.op_type.as_str(),
        "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual"
    )
}
