//! What calibration found out about the tensors of a model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How a range is chosen from a histogram of absolute values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Least Kullback-Leibler divergence between the distribution and its quantized form.
    Entropy,
    /// A fixed share of the values is inside.
    Percentile,
    /// Least squared error.
    Mse,
    /// The largest absolute value.
    Max,
}

/// Ranges of all graphs of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranges {
    /// How they were chosen.
    pub method: Method,
    /// Graphs by component: `vision`, `decoder`.
    pub graphs: BTreeMap<String, GraphRanges>,
}

/// Ranges of one graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphRanges {
    /// SHA-256 of the ONNX file that was observed.
    pub source_sha256: String,
    /// Tensors by their names in the lowered FP32 graph.
    pub tensors: BTreeMap<String, TensorRange>,
}

impl GraphRanges {
    /// The largest absolute value that was seen of each tensor, whatever a method cuts off.
    pub fn seen(&self) -> BTreeMap<String, f32> {
        let tensors = self.tensors.iter();
        tensors
            .map(|(name, range)| (name.clone(), range.max.max(-range.min)))
            .collect()
    }
}

/// Range of one tensor, symmetric around zero.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRange {
    /// Largest absolute value that is to be represented; above it values saturate.
    pub amax: f32,
    /// Smallest value seen.
    pub min: f32,
    /// Largest value seen.
    pub max: f32,
    /// Largest absolute value of each channel, for feature maps (axis 1) and for tensors that linear
    /// operators read (last axis); else empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channel_amax: Vec<f32>,
}
