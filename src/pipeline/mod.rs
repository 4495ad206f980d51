//! From a frame and a question to an answer: the only place that names all stages.
//!
//! ```text
//! image ─► preprocess ─► vision ─► prune ─┐
//! question ─► text ───────────────────────┴─► prefill ─► decode ─► detokenize ─► answer
//! ```
//!
//! In quick mode templates make the answer from the rows of the vision tower, and no stage behind it runs.

mod answer;
mod ask;
mod draft_costs;
mod mode;
mod nets;
mod open;
mod prune;
mod room;

pub use crate::decode::{Report as Speculation, Strategy};
pub use answer::{Answer, Timings, VisualTokens};
pub use ask::{Ask, StopAt};
pub use mode::{Mode, ModeReport, Reason};
pub use open::{Choice, Pipeline, Source};
pub use prune::{Positions, Pruning};
