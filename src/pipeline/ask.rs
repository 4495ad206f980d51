//! Asking a question about a frame.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::answer::{Answer, Timings};
use super::mode::{Encoded, Mode, ModeReport};
use super::open::Pipeline;
use super::prune::{Pruning, Seen};
use super::room::Room;
use crate::backend::{Backend, Prefill};
use crate::decode::{
    Limits, Paced, Pass, Report, Sampler, Sampling, SentenceEnd, Stop, Strategy, generate_in,
};
use crate::error::{Error, Result};
use crate::host::peak_resident_bytes;
use crate::preprocess::{Fit, Frame, PixelValues, Tiles};
use crate::text::ImageSlot;

/// Length of an answer where neither the caller nor the model says.
pub(super) const DEFAULT_MAX_TOKENS: usize = 64;

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
    /// Who answers: the language model, if not said otherwise.
    pub mode: Mode,
    /// Least confidence of a quick answer in [`Mode::Auto`], 0 to 1; if not said, what the model's file says.
    pub confidence: Option<f64>,
    /// How the answer is drafted: never, if not said otherwise.
    pub draft: Strategy,
    /// No pass of the model begins that would end after this instant, by the 99th percentile of what such passes have
    /// taken; nothing of the answer is lost that was there before.
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
    /// has no usable pixels, [`Error::Unavailable`] if the model cannot be pruned or drafted or has no quick answers as
    /// asked for, [`Error::NotQuick`] if [`Mode::Quick`] has no answer to the question, and those of the backend.
    pub fn ask(
        &mut self,
        frame: &Frame,
        question: &str,
        ask: &Ask<'_>,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<Answer> {
        let mut answer = self.answer(frame, question, ask, on_text)?.clone();
        answer.peak_memory_bytes = peak_resident_bytes();
        Ok(answer)
    }

    /// The same in memory that is used again for the next answer, for a camera: once frames of a size and answers of a
    /// length were there, nothing outside the engine, the tokenizer and drafters allocates. Peak memory is not read.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn answer(
        &mut self,
        frame: &Frame,
        question: &str,
        ask: &Ask<'_>,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<&Answer> {
        let mut room = std::mem::take(&mut self.room);
        let done = self.answer_in(&mut room, frame, question, ask, on_text);
        self.room = room;
        done?;
        Ok(&self.room.answer)
    }

    fn answer_in(
        &mut self,
        room: &mut Room,
        frame: &Frame,
        question: &str,
        ask: &Ask<'_>,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<()> {
        self.prepare(ask)?;
        let start = Instant::now();
        let Room {
            pixels,
            prompt,
            selection,
            tokens,
            rows,
            answer,
        } = room;
        self.reset(answer, ask.mode);
        let quick = self.quick_question(question, ask.mode, &mut answer.mode)?;
        let mut sampler = Sampler::new(ask.sampling)?;

        let image = self.processor.run_in(pixels, frame, ask.fit, ask.tiles)?;
        answer.timings_ms.preprocess = ms(start.elapsed());
        self.warn_of_crop(image);
        let slot = slot(image, self.config.family.tiled);
        let all_ids = self.text.write_ids(question, slot, prompt)?;
        if ask.mode != Mode::Quick {
            self.check_context(all_ids.len())?;
        }

        let max_tokens = ask
            .max_tokens
            .or(self.config.max_new_tokens)
            .unwrap_or(DEFAULT_MAX_TOKENS)
            .min(self.config.max_positions.saturating_sub(all_ids.len()));
        let (pace, eos) = (Arc::clone(&self.pace), Arc::clone(&self.eos));
        let limits = Limits {
            eos: &eos,
            max_tokens,
            deadline: ask.deadline.map(|at| pace.deadline(at)),
            cancel: ask.cancel,
        };
        if let Some(stop) = limits.refuses(Paced::vision(image)) {
            end(answer, stop, start);
            return Ok(());
        }

        let vision = Instant::now();
        let mut backend = Paced::new(self.backend.as_mut(), &self.pace);
        let total = backend.encode(image)?;
        answer.timings_ms.vision = ms(vision.elapsed());

        if let Some(quick) = quick {
            if let Some(stop) = limits.exceeded() {
                end(answer, stop, start);
                return Ok(());
            }
            let encoded = Encoded {
                frame,
                view: image.view(),
                total,
            };
            if self.quick_answer(quick, ask, &encoded, rows, answer, on_text)? {
                answer.timings_ms.ttft = ms(start.elapsed());
                let stop = answer.stop;
                end(answer, stop, start);
                return Ok(());
            }
        }
        if ask.pruning.drops()
            && let Some(stop) = limits.refuses(Pass::Prune)
        {
            end(answer, stop, start);
            return Ok(());
        }
        let prune = Instant::now();
        let seen = Seen {
            view: image.view(),
            total,
        };
        let visual = &mut answer.visual_tokens;
        self.prune(&ask.pruning, question, all_ids, seen, selection, visual)?;
        answer.timings_ms.prune = ms(prune.elapsed());

        let prefill = Prefill {
            ids: &selection.ids,
            positions: &selection.positions,
            visual: &answer.visual_tokens.indices,
            image_token: self.config.image_token_id,
            reserve: max_tokens,
        };
        answer.prompt_tokens = prefill.ids.len();
        let decoding = Instant::now();
        let mut ttft = 0.0;
        let text = &mut answer.text;
        let stream = &mut self.stream;
        stream.restart();
        tokens.ids = std::mem::take(&mut answer.token_ids);
        let done = generate_in(
            tokens,
            &mut Paced::new(self.backend.as_mut(), &self.pace),
            &prefill,
            &mut sampler,
            &limits,
            &mut self.speculator,
            &mut |id| {
                if ttft == 0.0 {
                    ttft = ms(start.elapsed());
                }
                let seen = text.len();
                stream.push_to(id, text)?;
                if text.len() == seen {
                    return Ok(ControlFlow::Continue(()));
                }
                if ask.stop_at == StopAt::Sentence
                    && let Some(end) = SentenceEnd::first(text)
                {
                    text.truncate(end);
                    on_text(text.get(seen..).unwrap_or(""));
                    return Ok(ControlFlow::Break(Stop::Sentence));
                }
                on_text(&text[seen..]);
                Ok(ControlFlow::Continue(()))
            },
        )?;
        if done.stop != Stop::Sentence {
            let seen = text.len();
            self.stream.finish_to(text);
            if text.len() > seen {
                on_text(&text[seen..]);
            }
        }
        if ask.stop_at == StopAt::Sentence
            && done.stop == Stop::Length
            && let Some(end) = SentenceEnd::last(text)
        {
            text.truncate(end);
        }
        if ttft == 0.0 && !done.ids.is_empty() {
            ttft = ms(decoding.duration_since(start) + done.prefill);
        }
        answer.timings_ms.ttft = ttft;
        answer.timings_ms.prefill = ms(done.prefill);
        answer.timings_ms.decode = ms(done.decode);
        answer.token_ids = done.ids;
        answer.speculation = done.speculation;
        end(answer, done.stop, start);
        Ok(())
    }

    /// What takes part in no answer's times.
    fn prepare(&mut self, ask: &Ask<'_>) -> Result<()> {
        if let Some(least) = ask.confidence.filter(|c| !(0.0..=1.0).contains(c)) {
            return Err(Error::Argument {
                name: "confidence",
                reason: format!("{least}, from 0 to 1"),
            });
        }
        if ask.mode == Mode::Quick {
            // Nothing is pruned, decoded or drafted.
            return Ok(());
        }
        if ask.pruning.drops() {
            self.prepare_prune(&ask.pruning)?;
        }
        self.prepare_drafts(ask)
    }

    /// Empties the answer before.
    fn reset(&self, answer: &mut Answer, mode: Mode) {
        answer.text.clear();
        answer.token_ids.clear();
        answer.mode = ModeReport {
            asked: mode,
            ..ModeReport::default()
        };
        answer.backend = self.backend_name();
        if answer.precision != self.precision() {
            self.precision().clone_into(&mut answer.precision);
        }
        answer.prompt_tokens = 0;
        answer.visual_tokens.reset();
        answer.speculation = Report::default();
        answer.timings_ms = Timings::default();
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

fn end(answer: &mut Answer, stop: Stop, start: Instant) {
    answer.stop = stop;
    answer.timings_ms.total = ms(start.elapsed());
}

pub(super) fn ms(duration: Duration) -> f64 {
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
