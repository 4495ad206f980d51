//! TensorRT: from a lowered ONNX graph to a plan, and what a plan holds.
//!
//! | step     | here                | where it runs |
//! |----------|---------------------|---------------|
//! | discover | [`discover`]        | loads libraries, calls no object of theirs |
//! | build    | [`build_in_child`]  | a child process, whose entry is [`child::run`] |
//! | describe | [`describe_plan`]   | this process, after the CUDA driver has answered |
//! | run      | [`Runtime`], [`Engine`], [`Execution`] | this process, on the stream of a [`Device`](crate::cuda::Device) |
//!
//! Terms: a *flavour* is TensorRT-RTX, TensorRT itself or its lean runtime; an *ABI* is a flavour
//! and a major version, for which this program holds its own copy of the C++ shim; a *plan* is
//! TensorRT's serialised engine.
//!
//! Libraries are opened at run time, from `TENSORRT_LIB_DIR`, the loader's path and the folder
//! of `make sdk`, by absolute path: no `LD_LIBRARY_PATH` is needed. Parsers crash on graphs that
//! they do not expect, so nothing is parsed in the caller's process. Precision is decided in
//! the graph; networks are strongly typed and nothing here changes a type.

#[cfg(test)]
mod abi_tests;
mod builder;
pub mod child;
mod elf;
mod error;
mod events;
mod ffi;
mod flavour;
mod library;
mod memory;
mod parent;
mod plan;
mod progress;
mod runtime;
mod search;
#[cfg(test)]
mod side_by_side_tests;
mod spec;
mod wire;

pub use builder::refused_by_all;
pub use flavour::{Flavour, Version, headers};
pub use library::{LibraryInfo, discover};
pub use memory::planned_bytes;
pub use parent::build_in_child;
pub use plan::{PlanDesc, describe_plan};
pub use progress::{Fraction, Progress};
pub use runtime::{Engine, Execution, Runtime, element_bytes};
pub use spec::{BuildReport, BuildSpec, DType, DimRange, IoMode, Profile, Sm, TensorDesc};
