//! Lowering: contrib operators become operators of the ONNX standard.
//!
//! Position in the order of passes: after [`lift_constants`](super::lift_constants), before
//! everything that looks for masks, scales or precisions.
//!
//! | operator | becomes | file |
//! |----------|---------|------|
//! | `GroupQueryAttention`, with its rotary embedding and its cache | reshapes, two products, one mask for all layers | `gqa`, `causal`, `attention` |
//! | `RotaryEmbedding`, separate | two products with tables that are looked up once for all layers | `rotary` |
//! | `MultiHeadAttention` | the same attention, without mask and cache | `mha`, `attention` |
//! | `SkipSimplifiedLayerNormalization`, `SimplifiedLayerNormalization`, `SkipLayerNormalization`, `RMSNormalization` | sums, squares, a mean | `norm` |
//! | `Gelu`, `BiasGelu`, `FastGelu`, `QuickGelu` | Erf, Tanh, Sigmoid | `gelu` |
//! | `MatMulNBits`, `FusedMatMul` | MatMul, with the weight dequantized | `linear`, `n_bits` |
//! | `GatherBlockQuantized` | Gather, with the table dequantized | `linear`, `n_bits` |
//! | `CastLike` | Cast | `driver` |
//!
//! What each file emits is written in operators of opset 13 to 20, and computes FP16 graphs as
//! ONNX Runtime does: norms, activations and Softmax in FP32, between casts. Semantics are those
//! of ONNX Runtime 1.31 (`docs/ContribOperators.md` there); forms that are not lowered are refused
//! with the names of all their nodes.

mod attention;
mod attrs;
mod causal;
mod dims;
mod driver;
mod emit;
mod gelu;
mod gqa;
mod linear;
mod mha;
mod n_bits;
mod norm;
mod rotary;

pub use driver::{LowerOptions, LowerReport, PackedWeights, lower_contrib};
