//! Questions to token ids, token ids to text.
//!
//! Position in the pipeline: question -> **`text`** -> prefill; decode -> **`text`** -> answer.
//!
//! | step | what | where |
//! |------|------|-------|
//! | template | one user message, images first, through the model's chat template | `template` |
//! | slots | every image becomes as many image tokens as the tower gives | `slot` |
//! | encode | the template's special tokens are ids, the question's look-alikes are text | `vocabulary` |
//! | stream | ids to bytes to complete UTF-8 | `stream` |
//!
//! The template never sees the question: it is rendered with a mark in the question's place. What
//! stands around that mark is split at its special tokens; the text between the last special
//! token before the mark and the first one after it is joined with the question and encoded *as
//! one piece*, with special tokens disabled. So merges and white space across the seam come out
//! as if the whole prompt had been encoded at once, and no question can produce a special id.
//!
//! Only byte-level BPE vocabularies are supported. `clean_up_tokenization_spaces` is not: text is
//! what the bytes say.

mod check;
mod clock;
mod meter;
mod prompt;
mod sandbox;
mod slot;
mod stream;
mod surroundings;
mod template;
mod vocabulary;

pub use prompt::{Prompt, PromptRoom, Text};
pub use slot::ImageSlot;
pub use stream::TextStream;
