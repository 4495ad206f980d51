//! The layers of a component, one a stretch of its graph.

use std::collections::BTreeSet;

use super::subject::{Choice, Subject};
use crate::build::{ComponentKind, LeftOut};
use crate::cpu::{Cut, Stretches, Values, cut};
use crate::error::Result;
use crate::onnx::OnnxModel;
use crate::onnx::proto::GraphProto;

/// Weights of a component from which on its nodes are judged in blocks.
const LARGE: u64 = 50_000_000;

/// Most blocks of a large component.
const BLOCKS: usize = 32;

/// One component, with and without integers, cut in the same places.
pub struct Layers {
    /// The component.
    pub kind: ComponentKind,
    /// The output that counts: visual tokens, or logits.
    pub output: String,
    /// Without integers.
    pub reference: Stretches,
    /// With all of them.
    pub quantized: Stretches,
    /// For each stretch, the layer in it, if one is.
    pub layers: Vec<Option<Layer>>,
}

/// What is quantized together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Name for people: the node, or the first and the last.
    pub name: String,
    /// Operators, each once.
    pub ops: BTreeSet<String>,
    /// Labels of its nodes.
    pub nodes: Vec<String>,
    /// Values at which its own error is measured.
    pub outputs: Vec<String>,
}

/// One layer, with and without integers.
pub struct Step<'a> {
    /// The layer.
    pub layer: &'a Layer,
    /// What it should have made.
    pub made: &'a Values,
    /// What it made.
    pub other: &'a Values,
    /// The component's output then.
    pub end: &'a [f32],
}

impl Layers {
    /// Reads and cuts a component.
    ///
    /// # Errors
    /// Those of reading, quantizing and the engine.
    pub fn load(subject: &Subject<'_>, kind: ComponentKind, output: &str) -> Result<Self> {
        let mut reference = subject.graph(kind, Choice::Nothing)?.graph;
        let quantized = subject.graph(kind, Choice::Except(&LeftOut::default()))?;
        let labels = quantized.report.map(|report| report.quantized);
        let mut quantized = quantized.graph;
        for graph in [&mut reference, &mut quantized] {
            keep_output(graph, output);
        }
        let nodes = nodes(reference.graph(), &labels.unwrap_or_default());
        let taps: Vec<String> = nodes.iter().map(|node| node.output.clone()).collect();
        let cuts = match is_large(&reference) {
            true => blocks(reference.graph(), &taps, BLOCKS),
            false => cut(reference.graph(), &taps, 1),
        };
        let layers = cuts.iter().map(|cut| layer(cut, &nodes)).collect();
        Ok(Self {
            kind,
            output: output.to_owned(),
            reference: Stretches::load(reference, cuts.clone())?,
            quantized: Stretches::load(quantized, cuts)?,
            layers,
        })
    }

    /// Number of layers.
    pub fn n_layers(&self) -> usize {
        self.layers.iter().flatten().count()
    }

    /// Runs the component once without integers, and for each layer once with integers in it alone.
    ///
    /// # Errors
    /// Those of the engine and of `visit`.
    pub fn walk(
        &self,
        mut values: Values,
        visit: &mut dyn FnMut(Step<'_>) -> Result<()>,
    ) -> Result<()> {
        for (index, layer) in self.layers.iter().enumerate() {
            let made = self.reference.run(index, &values)?;
            if let Some(layer) = layer {
                let other = self.quantized.run(index, &values)?;
                let end = self.reference.run_from(index + 1, &values, &other)?;
                visit(Step {
                    layer,
                    made: &made,
                    other: &other,
                    end: &floats(&end, &self.output),
                })?;
            }
            values.extend(made);
            self.reference.retain(index + 1, &mut values);
        }
        Ok(())
    }
}

/// True if a component's nodes are judged in blocks.
pub fn is_large(graph: &OnnxModel) -> bool {
    graph.weight_elements() >= LARGE
}

/// The output that counts, in one of both graphs.
pub fn whole(graph: &Stretches, output: &str, values: &Values) -> Result<Vec<f32>> {
    let end = graph.run_from(0, values, &Values::default())?;
    Ok(floats(&end, output))
}

fn floats(values: &Values, name: &str) -> Vec<f32> {
    values.f32(name).map_or_else(Vec::new, |(_, data)| data)
}

/// Drops every output but one, and what only they need.
fn keep_output(model: &mut OnnxModel, output: &str) {
    let graph = model.graph_mut();
    graph.output.retain(|o| o.name == output);
    graph.remove_unused();
}

struct Node {
    label: String,
    op: String,
    output: String,
}

/// Nodes by label, in the order of the graph.
fn nodes(graph: &GraphProto, labels: &[String]) -> Vec<Node> {
    let labels: BTreeSet<&str> = labels.iter().map(String::as_str).collect();
    let wanted = graph.node.iter().filter(|n| labels.contains(n.label()));
    let with_output = wanted.filter(|node| !node.output.is_empty());
    let node = with_output.map(|node| Node {
        label: node.label().to_owned(),
        op: node.op(),
        output: node.output[0].clone(),
    });
    node.collect()
}

/// At most `n` stretches, or as few as there can be.
fn blocks(graph: &GraphProto, taps: &[String], n: usize) -> Vec<Cut> {
    let mut most = taps.len().div_ceil(n).max(1);
    loop {
        let cuts = cut(graph, taps, most);
        if cuts.len() <= n || most >= taps.len() {
            return cuts;
        }
        most += 1;
    }
}

fn layer(cut: &Cut, nodes: &[Node]) -> Option<Layer> {
    let inside: Vec<&Node> = cut.taps.iter().map(|(index, _)| &nodes[*index]).collect();
    let (first, last) = (inside.first()?, inside.last()?);
    let alone = inside.len() == 1;
    Some(Layer {
        name: match alone {
            true => first.label.clone(),
            false => format!("{} … {}", first.label, last.label),
        },
        ops: inside.iter().map(|node| node.op.clone()).collect(),
        nodes: inside.iter().map(|node| node.label.clone()).collect(),
        // What a block hands on is its output; inside it values are nobody's business.
        outputs: match alone {
            true => vec![first.output.clone()],
            false => cut.makes.clone(),
        },
    })
}
