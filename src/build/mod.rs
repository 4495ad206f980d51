//! From a model folder to a bundle: the order of a build.
//!
//! ```text
//! model folder ─► read, check ─► fix shapes, cut, cast ─► engine (TensorRT | CPU graph) ─► bundle
//! ```
//!
//! Graphs are prepared here, one component after the other, and each plan is built in a child
//! process, so that peak memory is that of the largest component and a crash of TensorRT is an
//! error like any other. Everything is written into a temporary folder, which becomes the bundle
//! in one rename at the end.
//!
//! What cannot be built here is finished elsewhere: a portable bundle holds the graphs that the
//! builder reads, and [`finish()`] makes plans of them on the machine that they are for.

mod accepted;
mod component;
mod cuts;
mod engines;
mod finish;
mod graphs;
mod kernels;
mod order;
#[cfg_attr(not(feature = "tensorrt"), path = "no_plans.rs")]
mod plans;
mod quantization;
mod shapes;

pub use component::{COMPONENTS, ComponentKind, Numerics, Prepared, Runner, prepare};
pub use cuts::Cuts;
pub use engines::EngineReport;
pub use finish::{FinishOptions, finish};
pub use order::{BuildOptions, BuildOutcome, Builder, Event, TargetArg, build, resolve_targets};
#[cfg(feature = "tensorrt")]
pub use plans::WORKER_COMMAND;
pub use quantization::{LeftOut, Nodes, Proven, Quantization};
pub use shapes::{Capacity, fixed_dims, profiles};
