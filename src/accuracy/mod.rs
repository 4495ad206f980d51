//! Whether a quantized model still says what the model said, and which layers are to blame.
//!
//! Position in the flow: scales + items -> **`accuracy`** -> what a build keeps out of integers.
//!
//! Integers are simulated: the graphs have Q/DQ around what is quantized, and the CPU engine computes
//! them in FP32, which is what an engine with integer kernels computes but for the order of its
//! sums.

mod deviation;
mod gate;
mod layers;
mod margins;
mod plot;
mod recorded;
mod reports;
mod search;
mod sensitivity;
mod subject;
#[cfg(test)]
mod testing;

pub use deviation::{Deviation, Measures, WORST_DB};
pub use gate::{GateOptions, GateReport, GateStep, Proof, prove};
pub use plot::plot;
pub use sensitivity::{LayerError, SCORED_TOKENS, Sensitivity, Steps, default_items, sensitivity};
pub use subject::{Choice, Subject};
