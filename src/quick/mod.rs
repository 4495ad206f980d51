//! Answers from a frame's visual rows alone, without the language model.
//!
//! Position in the flow: `vision` -> **`quick`** -> answer, instead of prune, prefill and decode. A linear probe says of
//! each visual row whether an object's centre lies in its cell of the frame, of which kind and colour it is, and of
//! all rows together what the ground is. Cells that touch become one object. Templates make a sentence of the objects, and a
//! calibration that was measured on held-out frames says how often such a sentence is right.
//!
//! | in | shape | what |
//! |----|-------|------|
//! | rows | `[n, d]` f32 | visual rows of a frame, of which the last picture's are read: that of the whole frame |
//! | question | text | one of the templates' forms, or none |
//!
//! | tensor of `quick.safetensors` | shape | what |
//! |--------|-------|------|
//! | `kind`   | `[d, 1 + kinds]` | logits of a row: no centre here, or one of a kind; behind it `kind.bias` |
//! | `colour` | `[d, colours]`   | logits of a row's object; behind it `colour.bias`; not there without colours |
//! | `ground` | `[d, grounds]`   | logits of the mean of all rows; behind it `ground.bias`; not there without grounds |
//!
//! The file's settings are [`QuickSettings`]: words, templates, threshold and calibration are data. What is not
//! supported: objects of which several have their centres in touching cells (they become one), and questions whose words are not
//! those of a template.

mod confidence;
mod grid;
mod merge;
mod probe;
mod question;
mod say;
mod scene;
#[cfg(test)]
mod testing;
mod words;

pub use confidence::{Calibration, Logistic, fit_logistic};
pub use grid::Grid;
pub use probe::{Probe, QuickSettings, Said};
pub use question::Question;
pub use say::say;
pub use scene::{Looked, Scene, Sure, Thing};
pub use words::{Answers, Form, KindWords, Words};
