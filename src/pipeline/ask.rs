//! Asking a question about a frame.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::answer::{Answer, Timings, VisualTokens};
use super::open::Pipeline;
use super::prune::{Pruning, Seen};
use crate::backend::Prefill;
use crate::decode::{Limits, Report, Sampler, Sampling, SentenceEnd, Stop, Strategy, generate};
use crate::error::{Error, Result};
use crate::host::peak_resident_bytes;
use crate::preprocess::{Fit, Frame, PixelValues, Tiles};
use crate::text::ImageSlot;

/// Length of an answer where neither the caller nor the model says.
const DEFAULT_MAX_TOKENS: usize = 64;

/// When an answer is long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopAt {
    /// When the model closes it.
    #[default]
    Eos,
    /// At the end of its first complete sentence.
    Sentence,
}

/// How to ask; [`Ask::default`] is a greedy answer as long as the model says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ask<'a> {
    /// How a frame becomes a square.
    pub fit: Fit,
    /// Into how many tiles a frame may be split.
    pub tiles: Tiles,
    /// Most tokens of the answer, the closing one included.
    pub max_tokens: Option<usize>,
    /// When the answer is long enough.
    pub stop_at: StopAt,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Which visual tokens stay: all, if not said otherwise.
    pub pruning: Pruning,
    /// How the answer is drafted: never, if not said otherwise.
    pub draft: Strategy,
    /// No pass of the model starts after this instant.
    pub deadline: Option<Instant>,
    /// Set by another thread to stop before the next pass.
    pub cancel: Option<&'a AtomicBool>,
}

impl Pipeline {
    /// Answers `question` about `frame`; `on_text` sees the answer as it grows.
    ///
    /// The pieces given to `on_text` are whole characters; together they are [`Answer::text`],
    /// unless [`StopAt::Sentence`] trims an unfinished sentence from its end.
    ///
    /// # Errors
    /// [`Error::Prompt`] if the question is empty or does not fit the context,
    /// [`Error::Argument`] if a value of `ask` is outside its range, [`Error::Image`] if the frame
    /// has no usable pixels, [`Error::Unavailable`] if the model cannot be drafted as asked for, and
    /// those of the backend.
    pub fn ask(
        &mut self,
        frame: &Frame,
        question: &str,
        ask: &Ask<'_>,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        let policy = ask.pruning.policy();
        if let Some(policy) = &policy {
            self.backend.prepare_prune(policy.needs())?;
        }
        self.prepare_drafts(ask)?;
        let start = Instant::now();
        let mut timings = Timings::default();
        let mut sampler = Sampler::new(ask.sampling)?;

        let image = self.processor.run(frame, ask.fit, ask.tiles)?;
        timings.preprocess = ms(start.elapsed());
        self.warn_of_crop(&image);
        let prompt = self
            .text
            .prompt(question, &[slot(&image, self.config.family.tiled)])?;
        self.check_context(prompt.ids.len())?;

        let max_tokens = ask
            .max_tokens
            .or(self.config.max_new_tokens)
            .unwrap_or(DEFAULT_MAX_TOKENS)
            .min(self.config.max_positions - prompt.ids.len());
        let eos = self.config.eos.clone();
        let limits = Limits {
            eos: &eos,
            max_tokens,
            deadline: ask.deadline,
            cancel: ask.cancel,
        };
        if let Some(stop) = limits.exceeded() {
            timings.total = ms(start.elapsed());
            return Ok(self.unanswered(stop, timings));
        }

        let vision = Instant::now();
        let total = self.backend.encode(&image)?;
        timings.vision = ms(vision.elapsed());

        let prune = Instant::now();
        let seen = Seen {
            view: image.view(),
            total,
        };
        let (visual_tokens, ids, positions) =
            self.prune(&ask.pruning, policy.as_deref(), question, &prompt.ids, seen)?;
        timings.prune = ms(prune.elapsed());

        let prefill = Prefill {
            ids: &ids,
            positions: &positions,
            visual: &visual_tokens.indices,
            image_token: self.config.image_token_id,
            reserve: max_tokens,
        };
        let decoding = Instant::now();
        let mut stream = self.text.stream();
        let mut text = String::new();
        let done = generate(
            self.backend.as_mut(),
            &prefill,
            &mut sampler,
            &limits,
            &mut self.speculator,
            &mut |id| {
                if timings.ttft == 0.0 {
                    timings.ttft = ms(start.elapsed());
                }
                let Some(piece) = stream.push(id)? else {
                    return Ok(ControlFlow::Continue(()));
                };
                let seen = text.len();
                text.push_str(&piece);
                if ask.stop_at == StopAt::Sentence
                    && let Some(end) = SentenceEnd::first(&text)
                {
                    text.truncate(end);
                    on_text(text.get(seen..).unwrap_or(""));
                    return Ok(ControlFlow::Break(Stop::Sentence));
                }
                on_text(&piece);
                Ok(ControlFlow::Continue(()))
            },
        )?;
        timings.prefill = ms(done.prefill);
        timings.decode = ms(done.decode);
        if timings.ttft == 0.0 && !done.ids.is_empty() {
            timings.ttft = ms(decoding.duration_since(start) + done.prefill);
        }
        if done.stop != Stop::Sentence
            && let Some(rest) = stream.finish()
        {
            on_text(&rest);
            text.push_str(&rest);
        }
        if ask.stop_at == StopAt::Sentence
            && done.stop == Stop::Length
            && let Some(end) = SentenceEnd::last(&text)
        {
            text.truncate(end);
        }
        timings.total = ms(start.elapsed());
        Ok(Answer {
            text,
            token_ids: done.ids,
            stop: done.stop,
            backend: self.backend_name(),
            precision: self.precision().to_owned(),
            prompt_tokens: ids.len(),
            visual_tokens,
            speculation: done.speculation,
            timings_ms: timings,
            peak_memory_bytes: peak_resident_bytes(),
        })
    }

    /// An answer that ended before the model saw anything.
    fn unanswered(&self, stop: Stop, timings_ms: Timings) -> Answer {
        Answer {
            text: String::new(),
            token_ids: Vec::new(),
            stop,
            backend: self.backend_name(),
            precision: self.precision().to_owned(),
            prompt_tokens: 0,
            visual_tokens: VisualTokens::default(),
            speculation: Report::default(),
            timings_ms,
            peak_memory_bytes: peak_resident_bytes(),
        }
    }

    /// Says once that the model's configuration cuts frames.
    fn warn_of_crop(&mut self, image: &PixelValues) {
        let share = image.notes.cropped_share;
        if share > 0.0 && !self.warned_of_crop {
            self.warned_of_crop = true;
            tracing::warn!(
                "the model's preprocessor crops {:.0} % of the frame away; `--fit pad` or `--fit stretch` keep all of it",
                share * 100.0
            );
        }
    }

    fn check_context(&self, n_tokens: usize) -> Result<()> {
        let limit = self.config.max_positions;
        if n_tokens < limit {
            return Ok(());
        }
        Err(Error::Prompt {
            reason: format!(
                "{n_tokens} tokens with the image, the model has {limit} positions for prompt and answer"
            ),
        })
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn slot(image: &PixelValues, tiled: bool) -> ImageSlot {
    match image.grid {
        Some((rows, cols)) if tiled => ImageSlot::Tiled { rows, cols },
        _ => ImageSlot::Single,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn question_that_is_cancelled_or_late_reaches_no_pass_of_the_model() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut pipeline = Pipeline::open(&root.join("onnx/uav-tiny"), None).expect("model");
        let frame = Frame::load(&root.join("calibration/images/0024.png")).expect("frame");
        let cancelled = AtomicBool::new(true);
        let cases = [
            (Some(&cancelled), None, Stop::Cancelled),
            (None, Some(Instant::now()), Stop::Deadline),
        ];
        for (cancel, deadline, stop) in cases {
            let ask = Ask {
                cancel,
                deadline,
                ..Ask::default()
            };
            let answer = pipeline.ask(&frame, "describe the scene", &ask, &mut |_| {});
            let answer = answer.expect("no error");
            assert_eq!(answer.stop, stop);
            assert!(answer.token_ids.is_empty() && answer.text.is_empty());
            assert_eq!(
                (answer.timings_ms.vision, answer.visual_tokens.total),
                (0.0, 0)
            );
        }
    }
}
