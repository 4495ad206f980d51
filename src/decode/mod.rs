//! From logits to an answer.
//!
//! Position in the flow: `prefill` -> **`decode`** -> detokenize. [`generate`] runs the loop,
//! a [`Sampler`] picks each token, the stop rules end it. Nothing here knows which backend runs
//! the model.

mod generate;
mod sampler;
mod sentence;

pub use generate::{Generated, Limits, Stop, generate};
pub use sampler::{Sampler, Sampling};
pub use sentence::SentenceEnd;
