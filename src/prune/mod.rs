//! Dropping visual tokens before the language model reads them.
//!
//! Position in the flow: `vision` -> **`prune`** -> `prefill`. A policy is plain Rust over rows of
//! floats; the backend, which has the rows, asks it, so that one that runs elsewhere can do the same
//! with a kernel.
//!
//! | in | shape | what |
//! |----|-------|------|
//! | features | `[n, d]` f32 | rows of the vision tower that see the frame, finite |
//! | places   | `[n]`        | picture, row and column of each |
//! | question | `[d]` f32    | mean embedding of the question's tokens, for policies that read it |
//! | saliency | `[n]` f32    | how much the question attends to each row, for policies that read it |
//!
//! | out | shape | what |
//! |-----|-------|------|
//! | indices | `[k]` | rows that stay, ascending, at least one |
//! | scores  | `[n]` f32 or empty | why: greater ones rather stay |
//! | merge   | `[n]` slot and weight | where rows are averaged: the slot among the kept that each row goes into |
//!
//! Ties fall to the lower index, so that the same rows give the same choice everywhere.

mod attention;
mod count;
mod diverse;
mod features;
mod grid;
mod layer;
mod learned;
mod norm;
mod overlay;
mod place;
mod policy;
mod pruner;
mod random;
mod similarity;
#[cfg(test)]
mod testing;
mod top;

pub use attention::Attention;
pub use count::{Keep, SHARES};
pub use diverse::Diverse;
pub use features::Features;
pub use grid::Grid;
pub(crate) use layer::Layer;
pub use learned::{Learned, LearnedSettings};
pub use norm::Norm;
pub use overlay::{Overlay, draw};
pub use place::{Place, places, write_places};
pub use policy::{DeviceScore, Inputs, Kept, Merge, Needs, Policy};
pub use pruner::Pruner;
pub use random::Random;
pub use similarity::Similarity;
