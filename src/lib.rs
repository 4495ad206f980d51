//! Small vision-language models, from public ONNX files to answers about camera frames.
//!
//! Modules stand in the order in which data flows; a module uses those above it in the house,
//! never those below (`docs/architecture.md`).

pub mod accuracy;
pub mod backend;
pub mod bench;
pub mod build;
pub mod bundle;
pub mod calibrate;
pub mod capi;
#[cfg(feature = "cli")]
pub mod cli;
pub mod corrections;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod decode;
pub mod digest;
pub mod error;
pub mod eval;
pub mod host;
#[cfg(feature = "cli")]
pub mod hub;
pub mod huge_pages;
pub mod items;
pub mod limits;
pub mod model;
pub mod onnx;
pub mod pipeline;
pub mod preprocess;
pub mod prune;
pub mod quantize;
pub mod quick;
mod read;
mod svg;
mod sync;
pub mod tensor;
pub mod text;
#[cfg(feature = "train")]
pub mod train;
#[cfg(feature = "tensorrt")]
pub mod trt;
pub mod watch;

pub use error::{Error, Result};
