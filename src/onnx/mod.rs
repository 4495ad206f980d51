//! ONNX graphs: read, rewrite, write.
//!
//! Position in the flow: model folder -> **`onnx`** -> `quantize` | `cpu` | `trt`.
//!
//! A file is mapped, and its weights stay slices of that mapping until somebody needs the
//! numbers: loading a 2 GB decoder touches its structure only. Passes ([`passes`]) rewrite the
//! graph in place; nothing here knows TensorRT, CUDA or the CPU engine.

mod dtype;
mod file;
mod flow;
mod graph;
mod map;
pub mod passes;
pub mod proto;
mod tensor;
mod wire;

pub use dtype::DataType;
pub use file::{Cancel, Location, OnnxModel, Source};
pub(crate) use graph::Names;
pub use graph::{Dim, ValueType};
pub use map::Mapping;
pub(crate) use tensor::CHUNK;
