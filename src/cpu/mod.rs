//! The CPU engine: ONNX graphs run by [`rten`].
//!
//! Position in the flow: `onnx` -> **`cpu`** -> `backend::cpu`. A [`Session`] is one graph with
//! named inputs and outputs; an [`Observer`] sees values inside it while it runs. An [`Embedding`]
//! is a token table that is read where it lies.
//!
//! Large products with constant matrices are not left to the engine: a session cuts its graph where
//! they are, and computes them in `linear`.

mod cut;
mod embedding;
mod linear;
mod load;
mod observe;
mod pieces;
mod session;
mod shape_rules;
mod sizes;
mod split;
mod stretches;
mod take;

pub use cut::{Cut, cut};
pub use embedding::{Embedding, Stored};
pub use linear::instructions;
pub use observe::{MAX_ALIVE, Observed, Observer};
pub use session::Session;
pub use split::weight_bytes;
pub use stretches::{Stretches, Values};

/// Version of the engine, as in `Cargo.toml`.
pub const ENGINE_VERSION: &str = "0.27.0";
