//! Memory that one answer leaves for the next.

use super::answer::Answer;
use super::ask::DEFAULT_MAX_TOKENS;
use super::open::Pipeline;
use super::prune::Selection;
use crate::decode::TokenRoom;
use crate::limits;
use crate::preprocess::PixelRoom;
use crate::text::PromptRoom;

/// Most bytes that room is made for in an answer: a vocabulary may have absurd tokens.
const ANSWER_BYTES: usize = 1 << 20;

/// What an answer needs on its way, and the answer itself.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) pixels: PixelRoom,
    pub(super) prompt: PromptRoom,
    pub(super) selection: Selection,
    pub(super) tokens: TokenRoom,
    /// Visual rows of the frame, for quick answers.
    pub(super) rows: Vec<f32>,
    pub(super) answer: Answer,
}

impl Pipeline {
    /// Makes room for answers of `max_tokens` (what the model says, if there is no number) to questions of up to
    /// `question` more tokens than that of the newest answer, about frames that are as large: within these
    /// nothing needs more memory later.
    pub fn make_room(&mut self, question: usize, max_tokens: Option<usize>) {
        let max_tokens = max_tokens
            .or(self.config.max_new_tokens)
            .unwrap_or(DEFAULT_MAX_TOKENS);
        let Room {
            prompt,
            selection,
            tokens,
            answer,
            ..
        } = &mut self.room;
        let n_visual = answer.visual_tokens.total;
        // What was pruned may stay next time.
        let n_prompt = answer.prompt_tokens + n_visual - answer.visual_tokens.kept + question;
        let n_rows = (n_prompt + max_tokens).min(self.config.max_positions);
        let longest = self.text.longest_token();
        prompt.reserve(n_prompt, limits::PROMPT_BYTES);
        selection.reserve(n_prompt, n_visual);
        tokens.reserve(n_rows);
        answer.token_ids.reserve(max_tokens.min(n_rows));
        answer.visual_tokens.indices.reserve(n_visual);
        let n_bytes = longest.saturating_mul(max_tokens.min(n_rows));
        answer.text.reserve(n_bytes.min(ANSWER_BYTES));
        self.stream.reserve(longest);
        self.backend.reserve(n_rows);
    }
}
