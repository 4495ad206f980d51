//! Runs the frozen model over pictures with questions, and notes what answers look at.
//!
//! The answer is the one that the item has, so that one pass of the model is enough; without one it is the model's own.
//!
//! A record is a picture, so that its rows are stored once for all questions about it:
//!
//! | tensor | shape | what |
//! |--------|-------|------|
//! | `features`  | `[n, d]` f16 | visual rows that see the frame |
//! | `questions` | `[k, d]` f32 | mean embedding of each question's tokens |
//! | `targets`   | `[k, n]` f32 | attention of the rows from which each answer's tokens were chosen, mean over them, all heads and the middle half of the layers; as square roots, the greatest of each answer 1 |

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use half::f16;

use super::super::failed;
use super::super::once::Newest;
use super::super::shards::{Record, Shards};
use crate::backend::{Backend, CpuBackend, Logits, Prefill, Saliency};
use crate::cpu::Embedding;
use crate::error::{Error, Result};
use crate::items::Item;
use crate::model::Model;
use crate::pipeline::{Ask, Pipeline};
use crate::preprocess::{Frame, PixelValues};
use crate::sync::lock;

/// A prompt as the decoder got it.
#[derive(Default)]
struct Seen {
    ids: Vec<u32>,
    positions: Vec<u32>,
    /// Its rows, `[ids, d]`.
    rows: Vec<f32>,
    /// Whether the answer is known, so that the model need not find it.
    is_answered: bool,
}

/// A backend that notes the prompts that pass through it.
struct Watching {
    inner: CpuBackend,
    /// Questions about the same frame need no second look.
    newest: Newest,
    seen: Arc<Mutex<Seen>>,
    n_vocab: usize,
    eos: u32,
}

impl Backend for Watching {
    fn encode(&mut self, image: &PixelValues) -> Result<usize> {
        self.newest.encode(&mut self.inner, image)
    }

    fn takes_positions(&self) -> bool {
        self.inner.takes_positions()
    }

    fn rows_are_independent(&self) -> bool {
        self.inner.rows_are_independent()
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        let mut seen = lock(&self.seen);
        seen.ids = prompt.ids.to_vec();
        seen.positions = prompt.positions.to_vec();
        seen.rows = self.inner.prompt_rows(prompt)?;
        if seen.is_answered {
            let mut logits = vec![0.0; self.n_vocab];
            logits[self.eos as usize] = 1.0;
            return Ok(Logits::new(self.n_vocab, logits));
        }
        drop(seen);
        self.inner.prefill(prompt)
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        self.inner.step(ids, position)
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        self.inner.rollback(n_rows)
    }
}

/// How to collect.
pub(super) struct Collecting<'a> {
    /// Questions about one picture each.
    pub pictures: &'a [Vec<&'a Item>],
    pub max_tokens: Option<usize>,
    pub cancel: &'a dyn Fn() -> bool,
}

/// What was collected.
#[derive(Debug, Default)]
pub(super) struct Collected {
    /// Pictures that could not be read.
    pub skipped: Vec<PathBuf>,
    /// Pictures that an earlier, interrupted run did.
    pub resumed: usize,
}

/// Asks the model about every picture that has no record yet, and adds the records. A picture that cannot be read
/// has an empty one. `on_picture` is told how many are done.
///
/// # Errors
/// [`Error::Cancelled`] after a stop, with what is written kept; those of the model.
pub(super) fn collect(
    model: &Model,
    shards: &mut Shards,
    collecting: &Collecting<'_>,
    on_picture: &mut dyn FnMut(usize),
) -> Result<Collected> {
    let mut collected = Collected {
        resumed: shards.len(),
        ..Collected::default()
    };
    on_picture(shards.len());
    if shards.len() == collecting.pictures.len() {
        return Ok(collected);
    }
    let mut asking = Asking::new(model, collecting.max_tokens)?;
    for items in collecting.pictures.iter().skip(collected.resumed) {
        if (collecting.cancel)() {
            shards.flush()?;
            return Err(Error::Cancelled);
        }
        let image = &items[0].image;
        match Frame::load(image) {
            Ok(frame) => shards.push(asking.picture(&frame, items)?)?,
            Err(error) => {
                tracing::warn!("skipped: {error}");
                collected.skipped.push(image.clone());
                shards.push(Record::new())?;
            }
        }
        on_picture(shards.len());
    }
    shards.flush()?;
    Ok(collected)
}

/// The middle half of the layers. The first ones attend to what is striking, whatever was asked, and the last to what
/// comes next: on the demo model tokens that were chosen by these answer worse (`docs/pruning.md`).
fn middle(n_layers: usize) -> Range<usize> {
    let start = n_layers / 4;
    start..(n_layers - start).max(start + 1)
}

/// The model, and what looks at its attention.
struct Asking {
    pipeline: Pipeline,
    seen: Arc<Mutex<Seen>>,
    saliency: Saliency,
    embedding: Arc<Embedding>,
    d: usize,
    image_token: u32,
    eos: u32,
    max_tokens: Option<usize>,
}

impl Asking {
    fn new(model: &Model, max_tokens: Option<usize>) -> Result<Self> {
        let eos = model.config.eos.first().copied().unwrap_or_default();
        let inner = CpuBackend::load(model)?;
        let embedding = Arc::clone(inner.embedding());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let backend = Watching {
            inner,
            newest: Newest::default(),
            seen: Arc::clone(&seen),
            n_vocab: model.config.vocab,
            eos,
        };
        let variant = model.files.variant.clone();
        Ok(Self {
            pipeline: Pipeline::with_backend(model.clone(), variant, "cpu", Box::new(backend))?,
            seen,
            saliency: Saliency::load(model, middle(model.config.n_layers))?,
            embedding,
            d: model.config.d_model,
            image_token: model.config.image_token_id,
            eos,
            max_tokens,
        })
    }

    /// The record of a picture.
    fn picture(&mut self, frame: &Frame, items: &[&Item]) -> Result<Record> {
        let ask = Ask {
            max_tokens: self.max_tokens,
            ..Ask::default()
        };
        let (mut questions, mut targets, mut features) = (Vec::new(), Vec::new(), Vec::new());
        for item in items {
            let about = |error| match error {
                Error::Prompt { reason } => Error::Prompt {
                    reason: format!("{}: {reason}", item.origin),
                },
                other => other,
            };
            let known = self.known_answer(item)?;
            lock(&self.seen).is_answered = known.is_some();
            let answer = self.pipeline.ask(frame, &item.prompt, &ask, &mut |_| {});
            let answer = known.unwrap_or(answer.map_err(about)?.token_ids);
            let seen = std::mem::take(&mut *lock(&self.seen));
            let ids = self.pipeline.question_ids(&item.prompt)?;
            questions.extend(self.embedding.mean(&ids)?);
            features.clear();
            for (row, _) in self.visual(&seen, seen.rows.chunks_exact(self.d)) {
                features.extend(row.iter().copied().map(f16::from_f32));
            }
            targets.extend(self.looked_at(seen, &answer)?);
        }
        let (k, n) = (items.len(), features.len() / self.d);
        let make = || -> candle_core::Result<Record> {
            let cpu = &Device::Cpu;
            Ok(Record::from([
                (
                    "features".to_owned(),
                    Tensor::from_vec(features, (n, self.d), cpu)?,
                ),
                (
                    "questions".to_owned(),
                    Tensor::from_vec(questions, (k, self.d), cpu)?,
                ),
                (
                    "targets".to_owned(),
                    Tensor::from_vec(targets, (k, n), cpu)?,
                ),
            ]))
        };
        make().map_err(failed)
    }

    /// Ids of the answer that an item has, the closing one included.
    fn known_answer(&self, item: &Item) -> Result<Option<Vec<u32>>> {
        let Some(answer) = item
            .answer
            .as_deref()
            .filter(|answer| !answer.trim().is_empty())
        else {
            return Ok(None);
        };
        let mut ids = self.pipeline.question_ids(answer)?;
        ids.push(self.eos);
        ids.truncate(self.max_tokens.unwrap_or(usize::MAX));
        Ok(Some(ids))
    }

    /// Those of `values`, one for each id of the prompt, that stand in slots of visual tokens.
    fn visual<'a, T: 'a>(
        &self,
        seen: &'a Seen,
        values: impl Iterator<Item = T> + 'a,
    ) -> impl Iterator<Item = (T, &'a u32)> {
        let slot = self.image_token;
        values.zip(&seen.ids).filter(move |(_, id)| **id == slot)
    }

    /// What the rows look at from which the tokens of an answer were chosen, `[visual tokens]`, at most 1.
    fn looked_at(&self, mut seen: Seen, answer: &[u32]) -> Result<Vec<f32>> {
        let n_prompt = seen.ids.len();
        let fed = answer.split_last().map_or(answer, |(_, fed)| fed);
        self.embedding.rows(fed, &mut seen.rows)?;
        let next = seen.positions.last().map_or(0, |last| last + 1);
        seen.positions.extend((next..).take(fed.len()));
        let from: Vec<i32> = (n_prompt - 1..n_prompt + fed.len())
            .map(|row| row as i32)
            .collect();
        let rows = std::mem::take(&mut seen.rows);
        let attention = self.saliency.run(rows, &seen.positions, &from)?;
        let mut looked_at: Vec<f32> = self
            .visual(&seen, attention.into_iter())
            .map(|(attention, _)| attention)
            .collect();
        let most = looked_at.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
        looked_at.iter_mut().for_each(|x| *x = (*x / most).sqrt());
        Ok(looked_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middle_of_layers_is_half_of_them_and_never_none() {
        let cases = [(1, 0..1), (2, 0..2), (3, 0..3), (4, 1..3), (24, 6..18)];
        for (n, expected) in cases {
            assert_eq!(middle(n), expected, "{n}");
        }
    }
}
