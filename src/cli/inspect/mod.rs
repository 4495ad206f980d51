//! `trtvlm inspect`: what a model folder, ONNX file, bundle or plan holds.

mod args;
mod bundle;
mod folder;
mod onnx;
mod plan;
mod tensors;

pub use args::Args;
