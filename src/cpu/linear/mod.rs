//! Products with the weight matrices of a model, at the speed of memory.
//!
//! Position in the flow: a [`Session`](super::Session) takes the large products with constant
//! matrices out of a graph and computes them here; the engine does the rest. What for: the
//! engine's own products read a matrix twice as long as memory takes for one row, pack it anew
//! for every few rows, and keep half-precision weights in single precision; its operators cannot
//! be added to.
//!
//! | weights | bytes an element | activations |
//! |---------|------------------|-------------|
//! | f32 | 4 | f32 |
//! | f16 | 2 | f32 |
//! | i8, a scale for each column | 1 | f32, or rounded to int8 with one scale |
//!
//! Weights are held once, arranged in panels of 32 columns. Integer products never saturate: with VNNI
//! instructions sums are exact, without they are sums of single precision. (The engine's own
//! integer products saturate at 16 bits where there is no VNNI.)

mod product;
mod tile;
mod weights;

pub(super) use product::Linear;
pub(super) use weights::{Activations, Elements, Matrix};

/// Name of the instructions that products are computed with on this machine.
pub fn instructions() -> &'static str {
    tile::Isa::detect().name
}
