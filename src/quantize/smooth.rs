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
//! | `Conv` | its filters and their bias |
//! | `Mul` of a map and a constant, also as an operand of a gate (both forms of GELU) | the constant |
//! | `Add` of two maps | what makes each: they have the same factors |
//!
//! through a `Gather` of rows, too. `s = max|x|^α / max|W|^(1-α)`, per channel. The range of a divided
//! tensor is that of its largest channel, whatever method chose ranges: what the others cut off has
//! gone. For maps α is half way between the α of rows and 1: the weight of a depthwise convolution has
//! a scale for each channel anyway, and loses nothing.
//!
//! Source: Xiao et al., "SmoothQuant", arXiv 2211.10438, equation 4, and its α of 0.5. There the
//! products of gated units are not smoothed. Convolutions: Nagel et al., arXiv 1906.04721, whose ranges
//! of activations are guessed from weights and here observed.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::groups::{Group, Layout, Source, groups};
use super::ranges::GraphRanges;
use super::rows;
use super::weights::{Factors, each_row, scaled};
use crate::error::Result;
use crate::onnx::proto::TensorProto;
use crate::onnx::{Names, OnnxModel};

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
    for group in groups(model.graph()) {
        cancel.check()?;
        let Some(amax) = observed(&group, ranges) else {
            continue;
        };
        let of_weights = reader_amax(&model.graph().constants(), &group, &path)?;
        let alpha = match group.inner_dims {
            0 => alpha,
            _ => (1.0 + alpha) / 2.0,
        };
        let largest = |channel: usize| amax.values().fold(0f32, |most, of| most.max(of[channel]));
        let all: Vec<f32> = (0..group.channels).map(largest).collect();
        let factors = factors(&all, &of_weights, alpha);
        for (tensor, amax) in amax {
            let divided = amax.iter().zip(&factors).map(|(amax, s)| amax / s);
            let most = divided.fold(0f32, f32::max);
            smoothed.amax.insert(tensor.to_owned(), most);
        }
        apply(model, &group, &factors, &mut smoothed.factors, &path)?;
    }
    Ok(smoothed)
}

/// Largest absolute values of the channels of a group's tensors; `None` if any of them has none, so
/// that its range then would not be known. Values that have no range are nowhere quantized.
fn observed<'a>(group: &'a Group, ranges: &'a GraphRanges) -> Option<BTreeMap<&'a str, &'a [f32]>> {
    let mut amax = BTreeMap::new();
    for tensor in &group.tensors {
        if let Some(range) = ranges.tensors.get(tensor) {
            let fits = range.channel_amax.len() == group.channels;
            amax.insert(tensor.as_str(), fits.then_some(&range.channel_amax[..])?);
        }
    }
    (!amax.is_empty()).then_some(amax)
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
/// Ranges that were observed before are changed to what they are then, and forgotten where that is
/// not known.
///
/// # Errors
/// [`Error::Malformed`](crate::Error::Malformed) if a weight's bytes do not fit its shape.
pub fn balance(model: &mut OnnxModel, mut ranges: Option<&mut GraphRanges>) -> Result<usize> {
    let path = model.path().to_path_buf();
    let cancel = model.cancel();
    let mut of_weights = HashMap::new();
    for group in rows::find(model.graph()) {
        cancel.check()?;
        let [Source::Weight { weight, .. }] = &group.sources[..] else {
            continue;
        };
        let constants = model.graph().constants();
        let mut made = vec![0f32; group.channels];
        each_row(constants[weight.as_str()], None, &path, |_, col, values| {
            for (most, value) in made[col..].iter_mut().zip(values) {
                *most = most.max(value.abs());
            }
        })?;
        let read = reader_amax(&constants, &group, &path)?;
        let mut factors = factors(&made, &read, 0.5);
        let far = |s: &f32| *s > BALANCED || *s < 1.0 / BALANCED;
        if !factors.iter().any(far) {
            continue;
        }
        for s in &mut factors {
            *s = if far(s) { s.log2().round().exp2() } else { 1.0 };
        }
        for tensor in &group.tensors {
            if let Some(ranges) = ranges.as_deref_mut() {
                divide_range(ranges, tensor, &factors);
            }
        }
        apply(model, &group, &factors, &mut of_weights, &path)?;
    }
    let n_changed = of_weights
        .values()
        .filter(|f: &&Factors| f.cols.is_some())
        .count();
    multiply(model, &of_weights)?;
    Ok(n_changed)
}

/// Makes the range of a tensor that of its channels divided by `factors`.
fn divide_range(ranges: &mut GraphRanges, tensor: &str, factors: &[f32]) {
    let Some(mut range) = ranges.tensors.remove(tensor) else {
        return;
    };
    if range.channel_amax.len() != factors.len() {
        return;
    }
    for (amax, s) in range.channel_amax.iter_mut().zip(factors) {
        *amax /= s;
    }
    let most = range.channel_amax.iter().copied().fold(0f32, f32::max);
    (range.amax, range.min, range.max) = (most, -most, most);
    ranges.tensors.insert(tensor.to_owned(), range);
}

/// Largest absolute value of the weights that meet each channel.
fn reader_amax(
    constants: &HashMap<&str, &TensorProto>,
    group: &Group,
    path: &Path,
) -> Result<Vec<f32>> {
    let mut amax = vec![0f32; group.channels];
    for reader in &group.readers {
        let weight = constants[reader.weight.as_str()];
        each_row(weight, None, path, |row, col, values| {
            for (i, value) in values.iter().enumerate() {
                let most = &mut amax[reader.layout.channel(row, col + i)];
                *most = most.max(value.abs());
            }
        })?;
    }
    Ok(amax)
}

/// Divides what makes the tensors of a group, and notes the factors of the weights that read them.
fn apply(
    model: &mut OnnxModel,
    group: &Group,
    factors: &[f32],
    of_weights: &mut HashMap<String, Factors>,
    path: &Path,
) -> Result<()> {
    for reader in &group.readers {
        let entry = of_weights.entry(reader.weight.clone()).or_default();
        match reader.layout {
            Layout::Rows => entry.multiply_rows(factors),
            Layout::Columns { inner } => entry.multiply_cols(&repeated(factors, inner)),
            Layout::Depthwise { outputs } => entry.multiply_rows(&repeated(factors, outputs)),
        }
    }
    let inverse: Vec<f32> = factors.iter().map(|s| 1.0 / s).collect();
    for source in &group.sources {
        divide(model, source, group.inner_dims, &inverse, of_weights, path)?;
    }
    Ok(())
}

/// Each element `n` times.
fn repeated(factors: &[f32], n: usize) -> Vec<f32> {
    let each = factors.iter().flat_map(|&s| std::iter::repeat_n(s, n));
    each.collect()
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

/// Multiplies what makes a tensor with `inverse`, the channels of which have `inner_dims` dimensions
/// behind them.
fn divide(
    model: &mut OnnxModel,
    source: &Source,
    inner_dims: usize,
    inverse: &[f32],
    factors: &mut HashMap<String, Factors>,
    path: &Path,
) -> Result<()> {
    let graph = model.graph_mut();
    let mut multiply = |node: usize, input: usize| -> Result<()> {
        let name = graph.node[node].input[input].clone();
        let constant = graph.constants()[name.as_str()];
        let values = constant.to_f32(path)?;
        let (values, dims) = match values[..] {
            [single] if inverse.len() > 1 => {
                let mut dims = vec![1; inner_dims + 1];
                dims[0] = inverse.len() as i64;
                (inverse.iter().map(|s| single * s).collect(), dims)
            }
            _ => {
                let products = values.iter().zip(inverse).map(|(v, s)| v * s);
                (products.collect::<Vec<f32>>(), constant.dims.clone())
            }
        };
        // Others may read the same constant.
        let fresh = Names::of(graph).fresh(&format!("{name}/smoothed"));
        let made = TensorProto::from_f32(&fresh, &dims, &values);
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
        Source::Weight {
            weight,
            filters,
            bias,
        } => {
            if let Some((node, input)) = *bias {
                multiply(node, input)?;
            }
            let entry = factors.entry(weight.clone()).or_default();
            match filters {
                true => entry.multiply_rows(inverse),
                false => entry.multiply_cols(inverse),
            }
        }
    }
    Ok(())
}
