//! Draft models: what a trained drafter runs, wherever its data lives.
//!
//! A model of reduced vocabulary guesses what follows a token. It runs beside the target, which
//! leaves it what both share: hidden states, rows of the KV cache.
//!
//! | graph `drafts/head.onnx`       | shape                               |
//! |--------------------------------|-------------------------------------|
//! | in `inputs_embeds`             | `[1, n, d]` f32, embedding of the token that follows each row |
//! | in `hidden_states`             | `[1, n, d]` f32, what the LM head reads in each row |
//! | in `past_key_values.0.key`, `.value` | `[1, heads, past, head_dim]` f32 |
//! | out `logits`                   | `[1, 1, vocabulary]` f32, of the last row |
//! | out `hidden`                   | `[1, 1, d]` f32, its guess of the hidden state that comes next |
//! | out `present.0.key`, `.value`  | `[1, heads, past + n, head_dim]` f32 |
//!
//! | graph `drafts/early-exit.onnx` | shape                               |
//! |--------------------------------|-------------------------------------|
//! | in `hidden_states`             | `[1, n, d]` f32, what the exit layer hands on |
//! | out `logits`                   | `[1, 1, vocabulary]` f32, of the last row |

use super::Prefill;
use crate::error::Result;

/// Input with embeddings of tokens.
pub const DRAFT_EMBEDS: &str = "inputs_embeds";
/// Input with hidden states of the target.
pub const DRAFT_HIDDEN_IN: &str = "hidden_states";
/// Output with the guess of the next hidden state.
pub const DRAFT_HIDDEN_OUT: &str = "hidden";
/// Output with the logits of the last row.
pub const DRAFT_LOGITS: &str = "logits";
/// The cache, in: keys, values.
pub const DRAFT_PAST: [&str; 2] = ["past_key_values.0.key", "past_key_values.0.value"];
/// The cache, out: keys, values.
pub const DRAFT_PRESENT: [&str; 2] = ["present.0.key", "present.0.value"];

/// A model that guesses what the target says next.
///
/// Calls come in the order `begin`, then `take` and any number of `guess` by turns; the first
/// `take` after the target's prefill.
pub trait DraftModel: Send {
    /// Name, as in `--draft`.
    fn name(&self) -> &'static str;

    /// The token id of each logit.
    fn vocabulary(&self) -> &[u32];

    /// Share of the tokens it proposed that the target accepted when it was trained, 0 to 1.
    fn acceptance(&self) -> f64;

    /// Starts a sequence with the prompt that the target begins with.
    fn begin(&mut self, prompt: &Prefill<'_>);

    /// Forgets its guesses and takes tokens that the target chose, each with the hidden state `[d]` f32 from
    /// which it did; returns the logits of what follows the last one, `[vocabulary]`.
    ///
    /// # Errors
    /// [`Error::Cpu`](crate::Error::Cpu) from the engine; [`Error::Shape`](crate::Error::Shape) if
    /// the target has left no hidden states.
    fn take(&mut self, ids: &[u32], hidden: &[f32]) -> Result<Vec<f32>>;

    /// Takes a token that it guessed itself; returns the logits of what follows.
    ///
    /// # Errors
    /// As [`DraftModel::take`].
    fn guess(&mut self, id: u32) -> Result<Vec<f32>>;
}
