//! Observing a model's values on the user's own pictures and questions.
//!
//! Position in the flow: model folder + items -> **`calibrate`** -> scales -> `quantize`.
//!
//! The lowered FP32 graphs answer each item on the CPU engine, as a run does: the picture goes
//! through the vision tower, the prompt through the decoder, and then the answer's tokens one by
//! one, so that the decoder is seen with the shapes of prefill and of decoding. Every observed value
//! goes into a histogram and is forgotten ([`MAX_ALIVE`](crate::cpu::MAX_ALIVE) at a time).
//!
//! - Prefill and decode have the same weight in a range, however many rows each has: an answer's
//!   token comes out of a decode pass, and a few hundred prompt rows would outvote it.
//! - Histograms are counts, and every value is counted by one thread: the same bytes come out for
//!   any number of threads.
//! - After each item everything is written to a file beside the output, from which the same
//!   command continues after an interruption.

mod diagnose;
mod finish;
mod graphs;
mod order;
mod record;
mod sample;
mod state;
mod taps;

pub use order::{CalibrateOptions, CalibrateOutcome, DEFAULT_TOKENS, Progress, calibrate};
pub use record::Cancel;
pub use sample::{DEFAULT_SAMPLES, sample_set};
pub use taps::{Candidate, candidates};
