//! From logits to an answer.
//!
//! Position in the flow: `prefill` -> **`decode`** -> detokenize. [`generate`] runs the loop,
//! a [`Sampler`] picks each token, the stop rules end it. A [`Speculator`] proposes tokens that one
//! pass of the model checks together. Nothing here knows which backend runs the model.

mod acceptance;
mod auto;
mod clock;
mod costs;
mod draft;
mod generate;
mod ngram;
mod outcome;
mod pace;
mod paced;
mod report;
mod sampler;
mod sentence;
mod speculator;
mod suffixes;
mod trained;

#[cfg(test)]
mod auto_tests;
#[cfg(test)]
mod deadline_tests;
#[cfg(test)]
mod lossless;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod scripted;

pub use auto::Learned;
pub use clock::{Clock, WallClock};
pub use costs::{Costs, DraftCost};
pub use draft::{Accepted, Draft, Drafter, MAX_DRAFT, Outlook};
pub use generate::{Generated, Limits, Stop, TokenRoom, generate, generate_in};
pub use ngram::Ngram;
pub use pace::{Deadline, Pace, Pass};
pub use paced::Paced;
pub use report::{NEAR_TIE, NearTie, Position, Refused, Report, Totals};
pub use sampler::{Sampler, Sampling};
pub use sentence::SentenceEnd;
pub use speculator::{Speculator, Strategy};
pub use trained::{LEAST_PROBABILITY, Trained};
