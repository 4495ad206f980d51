//! Precision decisions: from observed ranges to integer weights, scales and Q/DQ nodes.
//!
//! Position in the flow: `onnx` -> **`quantize`** -> `build`. Nothing here runs a model; what runs
//! it to observe its tensors is `calibrate`, and what this module needs from there are [`Ranges`].

mod histogram;
mod method;
mod ranges;
mod scales;

pub use histogram::{Histogram, N_BINS};
pub use method::Distribution;
pub use ranges::{GraphRanges, Method, Ranges, TensorRange};
pub(crate) use scales::write_atomically;
pub use scales::{GraphScales, ModelName, Scales, TensorScale, graph_digest};
