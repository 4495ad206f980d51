//! Move outlying channels of activations into the weights that read them.
//!
//! One channel that is a hundred times larger than the others leaves them one or two steps of an
//! 8-bit range. Divided by a factor per channel, `x / s`, all channels have similar ranges, and the
//! weight behind takes the factor, `(x / s) · (s · W)`: the same product. The division costs nothing
//! where what makes `x` is linear in something that is stored:
//!
//! | `x` is made by | what is divided |
//! |----------------|-----------------|
//! | `Mul` of a normed value and a gain `[d]` | the gain |
//! | `LayerNormalization` | its scale and bias |
//! | `Mul` of two activations (`silu(gate) · up`), one of them a product with a stored weight | the columns of that weight, and its bias |
//!
//! through a `Gather` of rows, too. `s = max|x|^α / max|W|^(1-α)`, per channel. The range of a divided
//! tensor is that of its largest channel, whatever method chose ranges: what the others cut off has
//! gone.
//!
//! Source: Xiao et al., "SmoothQuant", arXiv 2211.10438, equation 4, and its α of 0.5. There the
//! products of gated units are not smoothed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::ranges::GraphRanges;
use super::weights::{Factors, each_row, scaled};
use crate::error::Result;
use crate::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::onnx::{DataType, Names, OnnxModel};

/// The usual α: as much moves to the weights as stays.
pub const USUAL_ALPHA: f32 = 0.5;

/// Factors above this and below its inverse are cut: they would leave FP16's range elsewhere.
const LARGEST: f32 = 4096.0;

/// What smoothing did.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Smoothed {
    /// Factors that weights have still to be multiplied with, by their names.
    pub(super) factors: HashMap<String, Factors>,
    /// New largest absolute values of tensors.
    pub(super) amax: BTreeMap<String, f32>,
}

/// Divides what makes activations and returns the factors of the weights; the caller multiplies
/// them when weights are quantized, or with [`multiply`].
pub(super) fn smooth(model: &mut OnnxModel, ranges: &GraphRanges, alpha: f32) -> Result<Smoothed> {
    let mut smoothed = Smoothed::default();
    let path = model.path().to_path_buf();
    let cancel = model.cancel();
    let groups = find(model.graph());
    for group in groups {
        cancel.check()?;
        let amax = ranges.tensors.get(&group.tensor).map(|r| &r.channel_amax);
        let Some(amax) = amax.filter(|amax| amax.len() == group.channels) else {
            continue;
        };
        let of_weights = row_amax(&model.graph().constants(), &group, &path)?;
        let factors = factors(amax, &of_weights, alpha);
        let most = amax.iter().zip(&factors).map(|(amax, s)| amax / s);
        let most = most.fold(0f32, f32::max);
        smoothed.amax.insert(group.tensor.clone(), most);
        apply(model, &group, factors, &mut smoothed.factors, &path)?;
    }
    Ok(smoothed)
}

/// Multiplies weights with the factors that are left in `factors`, in place of what reads them.
pub(super) fn multiply(model: &mut OnnxModel, factors: &HashMap<String, Factors>) -> Result<()> {
    let path = model.path().to_path_buf();
    let graph = model.graph_mut();
    for tensor in &mut graph.initializer {
        if let Some(factors) = factors.get(&tensor.name) {
            let product = scaled(tensor, factors, &path)?;
            *tensor = TensorProto {
                name: std::mem::take(&mut tensor.name),
                ..product
            };
        }
    }
    Ok(())
}

/// Channels of gated units are left as they are up to this factor.
const BALANCED: f32 = 8.0;

/// Evens out gated units whose channels are far larger than others because of their weights alone:
/// columns of `up` against rows of `down`, by powers of two, which change no result. FP16 would not
/// hold what some models keep in such channels. Returns how many units were changed.
///
/// Nothing has to be observed: the weights say enough (Nagel et al., "Data-Free Quantization
/// Through Weight Equalization and Bias Correction", arXiv 1906.04721, equation 11).
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if a weight's bytes do not fit its shape.
pub fn balance(model: &mut OnnxModel) -> Result<usize> {
    let path = model.path().to_path_buf();
    let cancel = model.cancel();
    let mut of_weights = HashMap::new();
    for group in find(model.graph()) {
        cancel.check()?;
        let Source::Columns { weight, .. } = &group.source else {
            continue;
        };
        let constants = model.graph().constants();
        let mut made = vec![0f32; group.channels];
        each_row(constants[weight.as_str()], None, &path, |_, col, values| {
            for (most, value) in made[col..].iter_mut().zip(values) {
                *most = most.max(value.abs());
            }
        })?;
        let read = row_amax(&constants, &group, &path)?;
        let mut factors = factors(&made, &read, 0.5);
        let far = |s: &f32| *s > BALANCED || *s < 1.0 / BALANCED;
        if !factors.iter().any(far) {
            continue;
        }
        for s in &mut factors {
            *s = if far(s) { s.log2().round().exp2() } else { 1.0 };
        }
        apply(model, &group, factors, &mut of_weights, &path)?;
    }
    let n_changed = of_weights
        .values()
        .filter(|f: &&Factors| f.cols.is_some())
        .count();
    multiply(model, &of_weights)?;
    Ok(n_changed)
}

/// Largest absolute value of each row of the weights that read a tensor.
fn row_amax(
    constants: &HashMap<&str, &TensorProto>,
    group: &Group,
    path: &Path,
) -> Result<Vec<f32>> {
    let mut amax = vec![0f32; group.channels];
    for weight in &group.weights {
        each_row(constants[weight.as_str()], None, path, |row, _, values| {
            let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
            amax[row] = amax[row].max(most);
        })?;
    }
    Ok(amax)
}

/// Divides what makes the tensor of a group, and notes the factors of the weights that read it.
fn apply(
    model: &mut OnnxModel,
    group: &Group,
    factors: Vec<f32>,
    of_weights: &mut HashMap<String, Factors>,
    path: &Path,
) -> Result<()> {
    let inverse: Vec<f32> = factors.iter().map(|s| 1.0 / s).collect();
    for weight in &group.weights {
        let entry = of_weights.entry(weight.clone()).or_default();
        entry.rows = Some(factors.clone());
    }
    divide(model, &group.source, inverse, of_weights, path)
}

/// A tensor that linear operators alone read, and what can be divided to divide it.
struct Group {
    tensor: String,
    channels: usize,
    /// Weights `[d, n]` of its readers.
    weights: Vec<String>,
    source: Source,
}

/// What makes a tensor.
enum Source {
    /// Constants `[d]` that node `node` reads at `inputs`.
    Vectors { node: usize, inputs: Vec<usize> },
    /// Columns of a weight, and a bias that node `node` reads at input `input`.
    Columns {
        weight: String,
        bias: Option<(usize, usize)>,
    },
}

fn find(graph: &GraphProto) -> Vec<Group> {
    let search = Search {
        graph,
        constants: graph.constants(),
        consumers: graph.consumers(),
        producers: graph.producers(),
        outputs: graph.output.iter().map(|o| o.name.as_str()).collect(),
    };
    let mut seen = HashSet::new();
    let mut groups = Vec::new();
    for node in &graph.node {
        if let Some((tensor, _)) = search.linear(node)
            && seen.insert(tensor)
            && let Some(group) = search.group(tensor)
        {
            groups.push(group);
        }
    }
    groups
}

struct Search<'a> {
    graph: &'a GraphProto,
    constants: HashMap<&'a str, &'a TensorProto>,
    consumers: HashMap<&'a str, Vec<usize>>,
    producers: HashMap<&'a str, usize>,
    outputs: HashSet<&'a str>,
}

impl<'a> Search<'a> {
    /// The activation and the weight of a `MatMul` whose weight nothing else reads.
    fn linear(&self, node: &'a NodeProto) -> Option<(&'a str, &'a TensorProto)> {
        let [activation, weight] = &node.input[..] else {
            return None;
        };
        let weight = self.constants.get(weight.as_str())?;
        let float = matches!(weight.dtype(), Ok(DataType::F32 | DataType::F16));
        let plain = node.op_type == "MatMul" && node.domain.is_empty();
        let fits = plain && float && weight.dims.len() == 2 && weight.raw_data.is_some();
        let own = self.consumers.get(weight.name.as_str()).map_or(0, Vec::len) == 1;
        (fits && own && !self.constants.contains_key(activation.as_str()))
            .then_some((activation, weight))
    }

    fn group(&self, tensor: &'a str) -> Option<Group> {
        if self.outputs.contains(tensor) {
            return None;
        }
        let mut weights = Vec::new();
        for &reader in self.consumers.get(tensor)? {
            let (read, weight) = self.linear(&self.graph.node[reader])?;
            (read == tensor).then_some(())?;
            weights.push(weight);
        }
        let channels = usize::try_from(weights.first()?.dims[0]).ok()?;
        Some(Group {
            tensor: tensor.to_owned(),
            channels,
            source: self.source(tensor, channels)?,
            weights: weights.iter().map(|w| w.name.clone()).collect(),
        })
    }

    fn source(&self, tensor: &'a str, channels: usize) -> Option<Source> {
        let index = *self.producers.get(tensor)?;
        let node = &self.graph.node[index];
        let vectors = |inputs: &[usize]| {
            let vector = |&input: &usize| self.is_vector(node.input.get(input)?, channels);
            let inputs: Vec<usize> = inputs
                .iter()
                .copied()
                .filter(|input| vector(input).is_some())
                .collect();
            (!inputs.is_empty()).then_some(Source::Vectors {
                node: index,
                inputs,
            })
        };
        match node.op_type.as_str() {
            // Rows of a three-dimensional value; its last axis are the channels.
            "Gather" if (0..2).contains(&node.attr("axis").and_then(|a| a.i).unwrap_or(0)) => {
                let from = node.input.first()?;
                self.read_once(from).then(|| self.source(from, channels))?
            }
            "LayerNormalization" if node.attr("axis").is_none_or(|a| a.i == Some(-1)) => {
                let found = vectors(&[1, 2])?;
                let n_constant = node.input.iter().skip(1).filter(|n| !n.is_empty()).count();
                matches!(&found, Source::Vectors { inputs, .. } if inputs.len() == n_constant)
                    .then_some(found)
            }
            "Mul" => match vectors(&[0, 1]) {
                Some(Source::Vectors { inputs, .. }) if inputs.len() > 1 => None,
                Some(found) => Some(found),
                // The last factor is the one that is not behind an activation function.
                None => (node.input.iter().rev()).find_map(|name| self.columns(name, channels)),
            },
            _ => None,
        }
    }

    /// The stored weight that makes a value, with its bias.
    fn columns(&self, value: &'a str, channels: usize) -> Option<Source> {
        if !self.read_once(value) {
            return None;
        }
        let index = *self.producers.get(value)?;
        let node = &self.graph.node[index];
        if node.op_type == "Add" {
            let at = (0..2).find(|&i| {
                let name = node.input.get(i);
                name.is_some_and(|name| self.is_vector(name, channels).is_some())
            })?;
            let product = node.input.get(1 - at)?;
            return match self.columns(product, channels)? {
                Source::Columns { weight, bias: None } => Some(Source::Columns {
                    weight,
                    bias: Some((index, at)),
                }),
                _ => None,
            };
        }
        let (_, weight) = self.linear(node)?;
        (weight.dims[1] == channels as i64).then(|| Source::Columns {
            weight: weight.name.clone(),
            bias: None,
        })
    }

    fn read_once(&self, value: &str) -> bool {
        self.consumers.get(value).map_or(0, Vec::len) == 1 && !self.outputs.contains(value)
    }

    /// A stored vector with an element for each channel.
    fn is_vector(&self, name: &str, channels: usize) -> Option<()> {
        let tensor = self.constants.get(name)?;
        let float = matches!(tensor.dtype(), Ok(DataType::F32 | DataType::F16));
        let n: i64 = tensor.dims.iter().product();
        let fits = tensor.dims.last() == Some(&(channels as i64)) && n == channels as i64;
        (float && fits).then_some(())
    }
}

/// The factors of all channels, of the largest absolute values of activations and weights.
fn factors(amax: &[f32], of_weights: &[f32], alpha: f32) -> Vec<f32> {
    let channels = amax.iter().zip(of_weights);
    let raw: Vec<Option<f32>> = channels
        .map(|(amax, weight)| {
            let s = amax.powf(alpha) / weight.powf(1.0 - alpha);
            (*amax > 0.0 && *weight > 0.0 && s.is_finite() && s > 0.0).then_some(s)
        })
        .collect();
    // A common factor changes nothing but the sizes of both sides: let it be as before.
    let logs: Vec<f64> = raw.iter().flatten().map(|s| f64::from(s.ln())).collect();
    let mean = (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp() as f32;
    raw.into_iter()
        .map(|s| s.map_or(1.0, |s| (s / mean).clamp(1.0 / LARGEST, LARGEST)))
        .collect()
}

/// Multiplies what makes a tensor with `inverse`.
fn divide(
    model: &mut OnnxModel,
    source: &Source,
    inverse: Vec<f32>,
    factors: &mut HashMap<String, Factors>,
    path: &Path,
) -> Result<()> {
    let graph = model.graph_mut();
    let mut multiply = |node: usize, input: usize| -> Result<()> {
        let name = graph.node[node].input[input].clone();
        let constant = graph.constants()[name.as_str()];
        let values = constant.to_f32(path)?;
        let values: Vec<f32> = values.iter().zip(&inverse).map(|(v, s)| v * s).collect();
        // Others may read the same constant.
        let fresh = Names::of(graph).fresh(&format!("{name}/smoothed"));
        let made = TensorProto::from_f32(&fresh, &constant.dims, &values);
        graph.initializer.push(made);
        graph.node[node].input[input] = fresh;
        Ok(())
    };
    match source {
        Source::Vectors { node, inputs } => {
            for &input in inputs {
                multiply(*node, input)?;
            }
        }
        Source::Columns { weight, bias } => {
            if let Some((node, input)) = *bias {
                multiply(node, input)?;
            }
            factors.entry(weight.clone()).or_default().cols = Some(inverse);
        }
    }
    Ok(())
}
