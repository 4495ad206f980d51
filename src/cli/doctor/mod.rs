//! `trtvlm doctor`: what this machine has, what is missing, and what to do about it.
//!
//! It reports and never fails because something is missing. No TensorRT object is made without a
//! CUDA driver: the lean runtime crashes then.

mod args;
mod gpu;
mod host;
mod item;

pub use args::Args;
