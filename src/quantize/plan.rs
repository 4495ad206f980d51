//! Which nodes are quantized, and how.
//!
//! | node | quantized | left |
//! |------|-----------|------|
//! | `Conv` (depthwise, too) with a constant weight | input; weight along axis 0 | |
//! | `MatMul`, `Gemm` of data and a constant matrix, whatever the number of rows | input; weight `[d, n]` along axis 1 | `alpha`, `transA` |
//! | `Add` of what a quantized `Conv` returns and a residual | the residual | |
//! | `MatMul` of two activations (attention) | | both: their ranges change with each question, and FP16 attention kernels are fused |
//!
//! Data is what comes from pixels, embeddings or the cache; tables of positions and masks are none.
//! Of linear operators that the options name, the weight alone is. With [`Scheme::Int8Weights`] only the weights of `MatMul` and `Gemm` are quantized, with
//! [`Scheme::Int4Weights`] those that consist of whole blocks.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::Serialize;

use super::blocks::block_for;
use super::options::{QuantizeOptions, Scheme};
use super::ranges::GraphRanges;
use super::weights::scale_for;
use crate::onnx::DataType;
use crate::onnx::passes::{lm_head, whole_label};
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};

/// What happens to each node that could be quantized, in the order of the graph.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// One decision a node.
    pub decisions: Vec<Decision>,
}

/// What happens to one node.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Index of the node.
    pub index: usize,
    /// Its label.
    pub node: String,
    /// Its operator.
    pub op: String,
    /// What happens to it.
    pub action: Action,
}

/// Quantize, or keep for a reason.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Operands are quantized.
    Quantize {
        /// The activation, if the scheme quantizes any.
        activation: Option<Activation>,
        /// The weight, if there is one.
        weight: Option<Weight>,
    },
    /// The node computes in floats.
    Keep(Kept),
}

/// An activation to be quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct Activation {
    /// Which input of the node it is.
    pub input: usize,
    /// Its name.
    pub tensor: String,
    /// Its scale.
    pub scale: f32,
}

/// A weight to be quantized.
#[derive(Debug, Clone, PartialEq)]
pub struct Weight {
    /// Which input of the node it is.
    pub input: usize,
    /// Its name.
    pub tensor: String,
    /// The axis that has a scale for each index, in the weight as it is stored.
    pub axis: usize,
    /// Whether the codes are stored transposed (`transB` of a Gemm, which then goes).
    pub transpose: bool,
    /// Rows that share a scale, for codes of 4 bits.
    pub block: Option<usize>,
}

/// Why a node is not quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kept {
    /// The options name it, or do not.
    Excluded,
    /// It is the LM head, which the options leave out.
    LmHead,
    /// Both operands are activations.
    TwoActivations,
    /// Its input is a table of positions or a mask.
    NoData,
    /// Its weight is computed, not stored, or is not the second operand.
    WeightForm,
    /// Its weight does not consist of whole blocks.
    BlockForm,
    /// Its weight is stored as integers already.
    Integers,
    /// Its input was zero wherever it was observed: the range says nothing.
    ZeroRange,
    /// Its input has values beyond the range of FP16 scales.
    Range,
}

impl Plan {
    /// Labels of the nodes that are quantized.
    pub fn quantized(&self) -> impl Iterator<Item = &str> {
        let quantized = |d: &&Decision| matches!(d.action, Action::Quantize { .. });
        self.decisions
            .iter()
            .filter(quantized)
            .map(|d| d.node.as_str())
    }

    /// Labels of those of them whose activation stays a float.
    pub fn weights_only(&self) -> impl Iterator<Item = &str> {
        let reads_floats = |d: &&Decision| {
            let Action::Quantize { activation, .. } = &d.action else {
                return false;
            };
            activation.is_none()
        };
        self.decisions
            .iter()
            .filter(reads_floats)
            .map(|d| d.node.as_str())
    }
}

/// Decides for every node; nodes stand in topological order.
///
/// Returned beside the plan are the tensors whose range is needed and missing, by node.
pub(super) fn decide(
    graph: &GraphProto,
    ranges: Option<&GraphRanges>,
    options: &QuantizeOptions,
) -> (Plan, Vec<(String, String)>) {
    let mut planner = Planner::new(graph, ranges, options);
    let mut decisions = Vec::new();
    for (index, node) in graph.node.iter().enumerate() {
        if let Some(action) = planner.action(index, node) {
            if matches!(action, Action::Quantize { .. }) && node.op_type == "Conv" {
                planner.convolved.insert(node.output[0].as_str());
            }
            decisions.push(Decision {
                index,
                node: node.label().to_owned(),
                op: node.op(),
                action,
            });
        }
    }
    (Plan { decisions }, planner.missing)
}

struct Planner<'a> {
    ranges: Option<&'a GraphRanges>,
    options: &'a QuantizeOptions,
    constants: HashMap<&'a str, &'a TensorProto>,
    constant: HashSet<&'a str>,
    data: HashSet<&'a str>,
    /// Constants that are stored as integers.
    dequantized: HashSet<&'a str>,
    consumers: HashMap<&'a str, Vec<usize>>,
    outputs: BTreeSet<&'a str>,
    heads: BTreeSet<usize>,
    /// What quantized convolutions return.
    convolved: HashSet<&'a str>,
    missing: Vec<(String, String)>,
}

impl<'a> Planner<'a> {
    fn new(
        graph: &'a GraphProto,
        ranges: Option<&'a GraphRanges>,
        options: &'a QuantizeOptions,
    ) -> Self {
        let constant = graph.constant_values();
        let dequantized = graph.node.iter().filter(|node| {
            node.op_type == "DequantizeLinear" && constant.contains(node.output[0].as_str())
        });
        Self {
            ranges,
            options,
            constants: graph.constants(),
            dequantized: dequantized.map(|node| node.output[0].as_str()).collect(),
            constant,
            data: graph.data_values(),
            consumers: graph.consumers(),
            outputs: graph.output.iter().map(|o| o.name.as_str()).collect(),
            heads: heads(graph),
            convolved: HashSet::new(),
            missing: Vec::new(),
        }
    }

    /// What happens to a node; `None` if it is of no interest.
    fn action(&mut self, index: usize, node: &'a NodeProto) -> Option<Action> {
        if !matches!(node.domain.as_str(), "" | "ai.onnx") {
            return None;
        }
        let weights_only = self.options.scheme.is_of_weights();
        let (activation, weight) = match node.op_type.as_str() {
            "Conv" if !weights_only => match self.convolution(node) {
                Ok(operands) => operands,
                Err(kept) => return Some(Action::Keep(kept)),
            },
            "MatMul" | "Gemm" => match self.linear(node) {
                Ok(operands) => operands,
                Err(kept) => return Some(Action::Keep(kept)),
            },
            "Add" if !weights_only && self.options.residuals => (self.residual(node)?, None),
            _ => return None,
        };
        // Parts of the LM head are named by what they are parts of.
        let label = match self.heads.contains(&index) {
            true => whole_label(node.label()),
            false => node.label(),
        };
        if !self.options.admits(label, &node.op()) {
            return Some(Action::Keep(Kept::Excluded));
        }
        if !self.options.lm_head && self.heads.contains(&index) {
            return Some(Action::Keep(Kept::LmHead));
        }
        let mut quantized = None;
        let linear = weight.is_some() && node.op_type != "Conv";
        let reads_floats = linear && self.options.weights_only.contains(label);
        if !weights_only && !reads_floats {
            let tensor = node.input[activation].as_str();
            match self.scale(node, tensor) {
                Ok(scale) => {
                    quantized = Some(Activation {
                        input: activation,
                        tensor: tensor.to_owned(),
                        scale,
                    });
                }
                Err(kept) => return Some(Action::Keep(kept)),
            }
        }
        Some(Action::Quantize {
            activation: quantized,
            weight,
        })
    }

    fn convolution(&self, node: &NodeProto) -> Result<(usize, Option<Weight>), Kept> {
        let weight = self.stored(node, 1).ok_or(Kept::WeightForm)?;
        if weight.dims.len() < 3 {
            return Err(Kept::WeightForm);
        }
        self.check_data(node, 0)?;
        Ok((0, Some(of_node(node, 0, false))))
    }

    fn linear(&self, node: &NodeProto) -> Result<(usize, Option<Weight>), Kept> {
        let operands = [0, 1].map(|i| node.input.get(i).map_or("", String::as_str));
        if operands.iter().all(|name| !self.constant.contains(name)) {
            return Err(Kept::TwoActivations);
        }
        if self.dequantized.contains(operands[1]) {
            return Err(Kept::Integers);
        }
        let attr = |name: &str| node.attr(name).and_then(|a| a.i).unwrap_or(0) != 0;
        let alpha = node.attr("alpha").and_then(|a| a.f).unwrap_or(1.0);
        let weight = self.stored(node, 1).filter(|w| w.dims.len() == 2);
        if weight.is_none() || attr("transA") || alpha != 1.0 {
            return Err(Kept::WeightForm);
        }
        self.check_data(node, 0)?;
        let transposed = attr("transB");
        let mut made = of_node(node, usize::from(!transposed), transposed);
        if self.options.scheme == Scheme::Int4Weights {
            let dims = weight.map_or(&[][..], |weight| &weight.dims);
            let block = block_for(dims, self.options.block).filter(|_| !transposed);
            made.block = Some(block.ok_or(Kept::BlockForm)?);
        }
        Ok((0, Some(made)))
    }

    /// The operand of an Add that is not what a quantized convolution returns to it alone.
    fn residual(&self, node: &NodeProto) -> Option<usize> {
        let [a, b] = &node.input[..] else { return None };
        if a == b || [a, b].iter().any(|name| !self.data.contains(name.as_str())) {
            return None;
        }
        let fused = |name: &String| {
            self.convolved.contains(name.as_str())
                && self.consumers.get(name.as_str()).map_or(0, Vec::len) == 1
                && !self.outputs.contains(name.as_str())
        };
        match (fused(a), fused(b)) {
            // An engine computes the addition with the convolution that comes last.
            (_, true) => Some(0),
            (true, false) => Some(1),
            (false, false) => None,
        }
    }

    fn stored(&self, node: &NodeProto, input: usize) -> Option<&'a TensorProto> {
        let tensor = self.constants.get(node.input.get(input)?.as_str())?;
        let float = matches!(tensor.dtype(), Ok(DataType::F32 | DataType::F16));
        (float && tensor.raw_data.is_some()).then_some(*tensor)
    }

    fn check_data(&self, node: &NodeProto, input: usize) -> Result<(), Kept> {
        let name = node.input.get(input).map_or("", String::as_str);
        match self.data.contains(name) {
            true => Ok(()),
            false => Err(Kept::NoData),
        }
    }

    fn scale(&mut self, node: &NodeProto, tensor: &str) -> Result<f32, Kept> {
        let range = self.ranges.and_then(|ranges| ranges.tensors.get(tensor));
        let Some(range) = range else {
            let missing = (node.label().to_owned(), tensor.to_owned());
            self.missing.push(missing);
            return Err(Kept::ZeroRange);
        };
        if range.amax == 0.0 {
            return Err(Kept::ZeroRange);
        }
        scale_for(range.amax).ok_or(Kept::Range)
    }
}

fn of_node(node: &NodeProto, axis: usize, transpose: bool) -> Weight {
    Weight {
        input: 1,
        tensor: node.input[1].clone(),
        axis,
        transpose,
        block: None,
    }
}

/// Indices of the linear operators that the output `logits` comes from: one, or several if the
/// head was split.
fn heads(graph: &GraphProto) -> BTreeSet<usize> {
    let producers = graph.producers();
    let mut parts = vec!["logits"];
    if let Some(&index) = producers.get("logits")
        && graph.node[index].op_type == "Concat"
    {
        parts = graph.node[index].input.iter().map(String::as_str).collect();
    }
    parts
        .into_iter()
        .filter_map(|name| lm_head(graph, name))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::onnx::ValueType;
    use crate::onnx::proto::ValueInfoProto;
    use crate::quantize::TensorRange;

    fn value(name: &str, dtype: DataType) -> ValueInfoProto {
        ValueInfoProto::from(&ValueType {
            name: name.to_owned(),
            dtype: Some(dtype),
            dims: None,
        })
    }

    /// Two convolutions with a residual, a rotary table, an attention product, a Gemm and a head.
    fn graph() -> GraphProto {
        let node = |op: &str, inputs: &[&str], output: &str| NodeProto::new(op, inputs, &[output]);
        GraphProto {
            node: vec![
                node("Conv", &["x", "k"], "c1"),
                node("Conv", &["c1", "k"], "c2"),
                node("Add", &["c1", "c2"], "sum"),
                node("Cast", &["n"], "p"),
                node("MatMul", &["p", "w"], "angles"),
                node("MatMul", &["sum", "w"], "q"),
                node("MatMul", &["q", "q"], "scores"),
                node("Add", &["scores", "q"], "stream"),
                node("Gemm", &["stream", "w"], "g").with_int("transB", 1),
                node("MatMul", &["w", "g"], "left"),
                node("MatMul", &["left", "w"], "logits"),
            ],
            initializer: vec![
                TensorProto::from_f32("k", &[1, 1, 1, 1], &[1.0]),
                TensorProto::from_f32("w", &[1, 1], &[1.0]),
            ],
            input: vec![value("x", DataType::F32), value("n", DataType::I64)],
            output: vec![value("logits", DataType::F32)],
            ..GraphProto::default()
        }
    }

    fn ranges(of: &[(&str, f32)]) -> GraphRanges {
        let range = |&(name, amax): &(&str, f32)| {
            let range = TensorRange {
                amax,
                min: -amax,
                max: amax,
                channel_amax: Vec::new(),
            };
            (name.to_owned(), range)
        };
        GraphRanges {
            source_sha256: String::new(),
            tensors: of.iter().map(range).collect::<BTreeMap<_, _>>(),
        }
    }

    fn all() -> GraphRanges {
        ranges(&[
            ("x", 1.0),
            ("c1", 2.0),
            ("sum", 3.0),
            ("stream", 4.0),
            ("left", 0.0),
        ])
    }

    fn planned(options: &QuantizeOptions) -> Vec<(String, Action)> {
        let (plan, missing) = decide(&graph(), Some(&all()), options);
        assert!(missing.is_empty(), "{missing:?}");
        let of = |d: Decision| (d.node, d.action);
        plan.decisions.into_iter().map(of).collect()
    }

    #[test]
    fn plan_of_int8_decides_for_each_node() {
        let found = planned(&QuantizeOptions::new(Scheme::Int8));
        let short: Vec<String> = found
            .iter()
            .map(|(node, action)| match action {
                Action::Keep(kept) => format!("{node} {kept:?}"),
                Action::Quantize { activation, weight } => {
                    let activation = activation.as_ref().expect("an activation");
                    let axis = weight.as_ref().map(|w| (w.axis, w.transpose));
                    format!("{node} {} {axis:?}", activation.tensor)
                }
            })
            .collect();
        let expected = [
            "c1/Conv x Some((0, false))",
            "c2/Conv c1 Some((0, false))",
            "sum/Add c1 None",
            "angles/MatMul NoData",
            "q/MatMul sum Some((1, false))",
            "scores/MatMul TwoActivations",
            "g/Gemm stream Some((0, true))",
            "left/MatMul WeightForm",
            "logits/MatMul ZeroRange",
        ];
        assert_eq!(short, expected);
    }

    #[test]
    fn plan_of_weights_leaves_activations_and_convolutions() {
        let (plan, missing) = decide(&graph(), None, &QuantizeOptions::new(Scheme::Int8Weights));
        assert!(missing.is_empty());
        let found: Vec<_> = plan.quantized().collect();
        assert_eq!(found, ["q/MatMul", "g/Gemm", "logits/MatMul"]);
        let activations = plan.decisions.iter().filter(
            |d| matches!(&d.action, Action::Quantize { activation, .. } if activation.is_some()),
        );
        assert_eq!(activations.count(), 0);
    }

    #[test]
    fn linear_operators_that_are_named_read_floats_and_convolutions_are_not_concerned() {
        let mut options = QuantizeOptions::new(Scheme::Int8);
        let before = planned(&options);
        options.weights_only = ["c2/Conv", "q/MatMul", "sum/Add"].map(str::to_owned).into();
        let changed: Vec<_> = (planned(&options).into_iter())
            .zip(before)
            .filter(|(after, before)| after != before)
            .collect();
        let [((node, after), (_, before))] = &changed[..] else {
            panic!("{changed:?}");
        };
        assert_eq!(node, "q/MatMul");
        let Action::Quantize { weight, .. } = before.clone() else {
            panic!("{before:?}");
        };
        let activation = None;
        assert_eq!(*after, Action::Quantize { activation, weight });
    }

    #[test]
    fn options_leave_out_the_head_named_nodes_and_residuals() {
        let mut options = QuantizeOptions::new(Scheme::Int8Weights);
        options.lm_head = false;
        options.except = ["q/MatMul".to_owned()].into();
        let (plan, _) = decide(&graph(), None, &options);
        assert_eq!(plan.quantized().collect::<Vec<_>>(), ["g/Gemm"]);
        let mut options = QuantizeOptions::new(Scheme::Int8);
        options.residuals = false;
        assert!(planned(&options).iter().all(|(node, _)| node != "sum/Add"));
    }

    #[test]
    fn parts_of_the_head_are_left_out_by_the_name_of_the_head() {
        let product = |name: &str, output: &str| NodeProto {
            name: name.to_owned(),
            ..NodeProto::new("MatMul", &["x", "w"], &[output])
        };
        let split = GraphProto {
            node: vec![
                product("/other/part0", "o"),
                product("/head/part0", "a"),
                product("/head/part1", "b"),
                NodeProto::new("Concat", &["a", "b"], &["logits"]),
            ],
            output: vec![value("logits", DataType::F32), value("o", DataType::F32)],
            ..graph()
        };
        let mut options = QuantizeOptions::new(Scheme::Int8Weights);
        options.exclude = vec!["/head".parse().expect("pattern")];
        options.except = ["/other".to_owned()].into();
        let (plan, _) = decide(&split, None, &options);
        assert_eq!(plan.quantized().collect::<Vec<_>>(), ["/other/part0"]);
    }

    #[test]
    fn tensors_without_a_range_are_named() {
        let found = ranges(&[("x", 1.0)]);
        let options = QuantizeOptions::new(Scheme::Int8);
        let (_, missing) = decide(&graph(), Some(&found), &options);
        let nodes: Vec<_> = missing.iter().map(|(node, _)| node.as_str()).collect();
        assert_eq!(nodes, ["c2/Conv", "q/MatMul", "g/Gemm", "logits/MatMul"]);
    }
}
