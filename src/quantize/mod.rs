//! Precision decisions: from observed ranges to integer weights, scales and Q/DQ nodes.
//!
//! Position in the flow: `onnx` -> **`quantize`** -> `build`. Nothing here runs a model; what runs
//! it to observe its tensors is `calibrate`, and what this module needs from there are [`Ranges`].
//!
//! The order for one component:
//!
//! | step | what |
//! |------|------|
//! | [`prepare_plain`](crate::onnx::passes::prepare_plain) | the lowered graph, with the names that ranges are kept by |
//! | [`simplify_for_int8`] | factors of channels move into convolutions |
//! | [`quantize`] | [`plan`] decides for each node, then Q/DQ are written: the canonical form |
//! | [`to_fp16`](crate::onnx::passes::to_fp16), [`to_fp32`](crate::onnx::passes::to_fp32) | the rest gets its type |
//!
//! The canonical form (opset 19 or 20): `x -> QuantizeLinear -> DequantizeLinear -> op` with a
//! scalar scale and an int8 zero point of 0, one pair for all quantized readers of `x`; weights are
//! int8 initializers behind `DequantizeLinear` with a scale per channel and zero points of 0, along
//! axis 1 of `[d, n]` (`MatMul`, `Gemm`) and axis 0 of convolutions. Linear operators keep the rank
//! of their activations. Embedding tables are `DequantizeLinear` (axis 0) -> `Gather`.

mod apply;
mod blocks;
mod groups;
mod histogram;
mod insert;
mod maps;
mod method;
mod options;
mod plan;
mod ranges;
mod rows;
mod scales;
mod smooth;
mod weights;

pub use apply::{KeptNode, QuantizeReport, plan, quantize, quantize_embedding, simplify_for_int8};
pub use blocks::{BLOCK_SIZES, BlockCodes, block_for, quantize_blocks};
pub use histogram::{Histogram, N_BINS};
pub use method::Distribution;
pub use options::{Pattern, QuantizeOptions, Scheme};
pub use plan::{Action, Activation, Decision, Kept, Plan, Weight};
pub use ranges::{GraphRanges, Method, Ranges, TensorRange};
pub(crate) use scales::write_atomically;
pub use scales::{GraphScales, ModelName, Scales, TensorScale, graph_digest};
pub use smooth::{USUAL_ALPHA, balance};
pub use weights::{MIN_SCALE, Q_MAX, code, scale_for};
