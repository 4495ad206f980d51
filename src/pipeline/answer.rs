//! What a question gives: the object that `run --json` prints.

use serde::Serialize;

use super::mode::ModeReport;
use crate::decode::{Report, Stop};
use crate::error::{Error, Result};
use crate::preprocess::{Frame, View};
use crate::prune::{Overlay, draw};

/// An answer with everything that a user may want to know of how it came about.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The answer, without special tokens.
    pub text: String,
    /// Ids of the answer, the closing one included; none of a quick answer, which nothing decoded.
    pub token_ids: Vec<u32>,
    /// Why the answer ended.
    pub stop: Stop,
    /// Who answered, and why.
    pub mode: ModeReport,
    /// Which backend ran the model.
    pub backend: &'static str,
    /// Precision of the weights, as in the variant's or bundle's name.
    pub precision: String,
    /// Tokens of the prompt that reached the decoder, visual ones included.
    pub prompt_tokens: usize,
    /// What became of the visual tokens.
    pub visual_tokens: VisualTokens,
    /// What speculative decoding did.
    pub speculation: Report,
    /// Time of each stage.
    pub timings_ms: Timings,
    /// Largest resident memory of the process so far, in bytes; 0 where the system does not tell.
    pub peak_memory_bytes: u64,
}

/// Visual tokens before and after dropping.
#[derive(Debug, Clone, Default, Serialize)]
pub struct VisualTokens {
    /// Tokens that the vision tower made.
    pub total: usize,
    /// Tokens that reached the decoder.
    pub kept: usize,
    /// Which ones, ascending.
    pub indices: Vec<usize>,
    /// The policy that chose them, if one did.
    pub pruner: Option<&'static str>,
    /// The policy's scores of all tokens, NaN for those in padding; empty if it has none. Of a quick answer: how
    /// likely an object's centre lies in each.
    #[serde(skip)]
    pub scores: Vec<f32>,
    /// Where the frame's pixels went; `None` if nothing was asked.
    #[serde(skip)]
    pub view: Option<View>,
}

impl Default for Answer {
    /// No answer yet.
    fn default() -> Self {
        Self {
            text: String::new(),
            token_ids: Vec::new(),
            stop: Stop::Length,
            mode: ModeReport::default(),
            backend: "",
            precision: String::new(),
            prompt_tokens: 0,
            visual_tokens: VisualTokens::default(),
            speculation: Report::default(),
            timings_ms: Timings::default(),
            peak_memory_bytes: 0,
        }
    }
}

impl VisualTokens {
    /// Empties it; what it has of memory stays.
    pub(super) fn reset(&mut self) {
        (self.total, self.kept) = (0, 0);
        self.indices.clear();
        self.scores.clear();
        self.pruner = None;
        self.view = None;
    }

    /// A picture of what stayed, as a PNG file: see [`draw`].
    ///
    /// # Errors
    /// [`Error::Image`] if the tokens are no grid, or the answer ended before there were any.
    pub fn overlay(&self, frame: &Frame) -> Result<Vec<u8>> {
        let view = self.view.as_ref().ok_or_else(|| Error::Image {
            name: frame.name().to_owned(),
            reason: "no overlay: the model has not seen it".to_owned(),
        })?;
        draw(&Overlay {
            frame,
            view,
            total: self.total,
            kept: &self.indices,
            scores: &self.scores,
        })
    }
}

/// Milliseconds of each stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    /// Resizing and normalizing the frame.
    pub preprocess: f64,
    /// The vision tower.
    pub vision: f64,
    /// Choosing visual tokens.
    pub prune: f64,
    /// The prompt, up to the first token.
    pub prefill: f64,
    /// All tokens after the first.
    pub decode: f64,
    /// From the call to the first token.
    pub ttft: f64,
    /// The whole call.
    pub total: f64,
}

impl Answer {
    /// Tokens per second after the first one; `None` if there was only one.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let steps = self.token_ids.len().checked_sub(1).filter(|&n| n > 0)?;
        Some(steps as f64 / (self.timings_ms.decode / 1e3))
    }
}
