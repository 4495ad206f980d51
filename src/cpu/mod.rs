//! The CPU engine: ONNX graphs run by [`rten`].
//!
//! Position in the flow: `onnx` -> **`cpu`** -> `backend::cpu`. A [`Session`] is one graph with
//! named inputs and outputs; an [`Observer`] sees values inside it while it runs. An [`Embedding`]
//! is a token table that is read where it lies.

mod cut;
mod embedding;
mod load;
mod observe;
mod session;
mod shape_rules;
mod sizes;
mod stretches;

pub use cut::{Cut, cut};
pub use embedding::Embedding;
pub use observe::{MAX_ALIVE, Observed, Observer};
pub use session::Session;
pub use stretches::{Stretches, Values};

/// Version of the engine, as in `Cargo.toml`.
pub const ENGINE_VERSION: &str = "0.27.0";
