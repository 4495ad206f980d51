//! Precision decisions: from observed ranges to integer weights, scales and Q/DQ nodes.
//!
//! Position in the flow: `onnx` -> **`quantize`** -> `build`. Nothing here runs a model; what runs
//! it to observe its tensors is `calibrate`, and what this module needs from there are [`Ranges`].

mod ranges;

pub use ranges::{GraphRanges, Method, Ranges, TensorRange};
