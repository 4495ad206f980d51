//! Asking a question about a frame.

use std::ops::ControlFlow;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::answer::{Answer, Timings, VisualTokens};
use super::open::Pipeline;
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
        let limits = Limits {
            eos: &self.config.eos,
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
        let kept = match self.backend.takes_positions() {
            true => kept_tokens(&image, total),
            false => (0..total).collect(),
        };
        let (ids, positions) = drop_slots(&prompt.ids, self.config.image_token_id, &kept, total)?;
        timings.prune = ms(prune.elapsed());

        let prefill = Prefill {
            ids: &ids,
            positions: &positions,
            visual: &kept,
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
            visual_tokens: VisualTokens {
                total,
                kept: kept.len(),
                indices: kept,
                pruner: None,
            },
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

/// Visual tokens that see at least one pixel of the frame: padding is dropped before prefill.
///
/// Every picture of a frame has a square grid of tokens; where `total` says otherwise all stay.
fn kept_tokens(image: &PixelValues, total: usize) -> Vec<usize> {
    let (pictures, size) = (image.pixels.shape()[0].max(1), image.side());
    let per_picture = total / pictures;
    let side = per_picture.isqrt();
    let is_grid = side > 0 && side * side * pictures == total && size.is_multiple_of(side);
    if !is_grid {
        return (0..total).collect();
    }
    let cell = size / side;
    let sees = |&token: &usize| {
        let [x0, y0, x1, y1] = image.content_of(token / per_picture);
        let place = token % per_picture;
        let (x, y) = (place % side * cell, place / side * cell);
        x < x1 && x + cell > x0 && y < y1 && y + cell > y0
    };
    (0..total).filter(sees).collect()
}

/// Ids and positions without the slots of visual tokens that were dropped.
fn drop_slots(
    ids: &[u32],
    image_token: u32,
    kept: &[usize],
    total: usize,
) -> Result<(Vec<u32>, Vec<u32>)> {
    let slots = ids.iter().filter(|&&id| id == image_token).count();
    if slots != total {
        return Err(Error::Shape {
            name: "image_features".to_owned(),
            expected: format!("{slots} visual tokens, as the prompt has slots"),
            actual: total.to_string(),
        });
    }
    let mut slot = 0;
    let mut kept = kept.iter().peekable();
    let stays = |&(_, id): &(u32, u32)| {
        if id != image_token {
            return true;
        }
        slot += 1;
        kept.next_if(|&&token| token == slot - 1).is_some()
    };
    let (positions, ids) = (0u32..).zip(ids.iter().copied()).filter(stays).unzip();
    Ok((ids, positions))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Tensor;

    fn image(pictures: usize, grid: Option<(usize, usize)>, content: [usize; 4]) -> PixelValues {
        let data = vec![0.0; pictures * 192];
        PixelValues {
            pixels: Tensor::new("pixels", [pictures, 3, 8, 8], data).expect("shape"),
            mask: grid
                .map(|_| Tensor::new("mask", [pictures, 8, 8], vec![1; 64 * pictures]))
                .transpose()
                .expect("shape"),
            grid,
            content,
            notes: Default::default(),
        }
    }

    #[test]
    fn kept_tokens_see_at_least_one_pixel_of_the_frame() {
        let cases: [([usize; 4], &[usize]); 3] = [
            (
                [0, 0, 8, 8],
                &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
            ),
            ([0, 2, 8, 5], &[4, 5, 6, 7, 8, 9, 10, 11]),
            ([3, 0, 4, 8], &[1, 5, 9, 13]),
        ];
        for (content, kept) in cases {
            assert_eq!(
                kept_tokens(&image(1, None, content), 16),
                kept,
                "{content:?}"
            );
        }
    }

    /// Two by two tiles of 8 x 8 pixels and the whole frame, four tokens each.
    #[test]
    fn kept_tokens_of_tiles_are_those_of_each_tile() {
        let cases: [([usize; 4], &[usize]); 3] = [
            (
                [0, 0, 16, 16],
                &[
                    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                ],
            ),
            // Rows 5 to 9: the lower half of the upper tiles, the upper half of the lower ones.
            ([0, 5, 16, 10], &[2, 3, 6, 7, 8, 9, 12, 13, 16, 17, 18, 19]),
            // All of it in the tile at top left.
            ([1, 1, 4, 4], &[0, 16]),
        ];
        for (content, kept) in cases {
            let image = image(5, Some((2, 2)), content);
            assert_eq!(kept_tokens(&image, 20), kept, "{content:?}");
            // A tower that left a picture out, or has other tokens: nobody knows which is which.
            for total in [16, 15, 0] {
                assert_eq!(kept_tokens(&image, total).len(), total);
            }
        }
    }

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

    #[test]
    fn drop_slots_keeps_original_positions() {
        let (ids, positions) = drop_slots(&[5, 9, 9, 9, 6], 9, &[1], 3).expect("slots");
        assert_eq!(
            (ids.as_slice(), positions.as_slice()),
            ([5, 9, 6].as_slice(), [0, 2, 4].as_slice())
        );
        assert!(matches!(
            drop_slots(&[5, 9], 9, &[0], 2),
            Err(Error::Shape { .. })
        ));
    }
}
