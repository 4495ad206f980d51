//! Runs the frozen target over items and writes what a draft can learn from.
//!
//! | tensor of a record | shape | what |
//! |--------------------|-------|------|
//! | `ids`      | `[prompt + answer]` u32 | the prompt as the decoder got it, then the target's answer |
//! | `n_prompt` | `[1]` u32               | |
//! | `rows`     | `[rows, d]` f16         | the tapped value: of all rows that were fed, or of the answer's alone |
//! | `top_ids`  | `[answer, k]` u32       | the most likely ids from which each token of the answer was chosen |
//! | `top_p`    | `[answer, k]` f32       | their probabilities among all ids |
//! | `weights`  | `[answer]` f32          | how much each token of the answer counts; 1 where this is missing |

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{Device, Tensor};
use half::f16;

use super::corrected::weights;
use super::failed;
use super::once::Newest;
use super::shards::{Record, Shards};
use crate::backend::{Backend, CpuBackend, Logits, Prefill};
use crate::corrections::Correction;
use crate::error::{Error, Result};
use crate::items::Item;
use crate::model::{DraftKind, Model};
use crate::pipeline::{Ask, Pipeline};
use crate::preprocess::{Frame, PixelValues};
use crate::sync::lock;

/// Ids of each distribution that are kept.
pub(super) const TOP: usize = 16;

/// What was collected.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// Items whose picture could not be read.
    pub skipped: Vec<PathBuf>,
    /// Items that an earlier, interrupted run did.
    pub resumed: usize,
}

/// What one answer left.
#[derive(Default)]
struct Recording {
    prompt: Vec<u32>,
    rows: Vec<f32>,
    top_ids: Vec<u32>,
    top_p: Vec<f32>,
}

/// A backend that notes what passes through it.
struct Noting {
    inner: CpuBackend,
    /// Whether rows of prompts are wanted, too.
    prompt_rows: bool,
    /// Questions about the same frame need no second look.
    newest: Newest,
    recording: Arc<Mutex<Recording>>,
}

impl Noting {
    fn note(&self, logits: &Logits) {
        let mut recording = lock(&self.recording);
        recording.rows.extend_from_slice(self.inner.tapped());
        note_top(&mut recording, logits.last_row());
    }
}

fn note_top(recording: &mut Recording, logits: &[f32]) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - most).exp()).sum();
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_logit = |&a: &u32, &b: &u32| {
        let (a_logit, b_logit) = (logits[a as usize], logits[b as usize]);
        b_logit.total_cmp(&a_logit).then(a.cmp(&b))
    };
    let k = TOP.min(order.len());
    order.select_nth_unstable_by(k - 1, by_logit);
    order[..k].sort_by(by_logit);
    for at in 0..TOP {
        // A vocabulary of fewer ids is filled up with the last one, which has its probability already.
        let id = order[at.min(k - 1)];
        let p = f64::from(logits[id as usize] - most).exp() / sum;
        recording.top_ids.push(id);
        recording.top_p.push(if at < k { p as f32 } else { 0.0 });
    }
}

impl Backend for Noting {
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
        *lock(&self.recording) = Recording::default();
        let logits = self.inner.prefill(prompt)?;
        self.note(&logits);
        let mut recording = lock(&self.recording);
        recording.prompt = prompt.ids.to_vec();
        if !self.prompt_rows {
            recording.rows.clear();
        }
        drop(recording);
        Ok(logits)
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        let logits = self.inner.step(ids, position)?;
        self.note(&logits);
        Ok(logits)
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        self.inner.rollback(n_rows)
    }
}

/// How to collect.
pub(super) struct Collecting<'a> {
    /// What is asked, corrected answers first.
    pub items: &'a [Item],
    /// What was refused in these.
    pub corrections: &'a [&'a Correction],
    /// Whose drafts they have to be.
    pub kind: DraftKind,
    pub prompt_rows: bool,
    pub max_tokens: Option<usize>,
    pub cancel: &'a dyn Fn() -> bool,
}

/// Asks the model, as `backend` runs it, every item that has no record yet, and adds the records. An item
/// whose picture cannot be read has an empty one.
///
/// # Errors
/// [`Error::Cancelled`] after a stop, with what is written kept; those of the model.
pub(super) fn collect(
    model: &Model,
    backend: CpuBackend,
    shards: &mut Shards,
    collecting: &Collecting<'_>,
    on_item: &mut dyn FnMut(usize),
) -> Result<Collected> {
    let recording = Arc::new(Mutex::new(Recording::default()));
    let backend = Noting {
        inner: backend,
        prompt_rows: collecting.prompt_rows,
        newest: Newest::default(),
        recording: Arc::clone(&recording),
    };
    let variant = model.files.variant.clone();
    let mut pipeline = Pipeline::with_backend(model.clone(), variant, "cpu", Box::new(backend))?;
    let ask = Ask {
        max_tokens: collecting.max_tokens,
        ..Ask::default()
    };
    let mut collected = Collected {
        resumed: shards.len(),
        ..Collected::default()
    };
    on_item(shards.len());
    for (index, item) in collecting.items.iter().enumerate().skip(collected.resumed) {
        if (collecting.cancel)() {
            shards.flush()?;
            return Err(Error::Cancelled);
        }
        let frame = match Frame::load(&item.image) {
            Ok(frame) => frame,
            Err(error) => {
                tracing::warn!("skipped: {error}");
                collected.skipped.push(item.image.clone());
                shards.push(Record::new())?;
                continue;
            }
        };
        let answer = pipeline.ask(&frame, &item.prompt, &ask, &mut |_| {});
        let answer = answer.map_err(|error| match error {
            Error::Prompt { reason } => Error::Prompt {
                reason: format!("{}: {reason}", item.origin),
            },
            other => other,
        })?;
        let recording = std::mem::take(&mut *lock(&recording));
        let mut record = record(recording, &answer.token_ids, model.config.d_model)?;
        if let Some(correction) = collecting.corrections.get(index) {
            let weights = weights(correction, &answer.token_ids, collecting.kind);
            let weights = Tensor::new(weights, &Device::Cpu).map_err(failed)?;
            record.insert("weights".to_owned(), weights);
        }
        shards.push(record)?;
        on_item(shards.len());
    }
    shards.flush()?;
    Ok(collected)
}

fn record(recording: Recording, answer: &[u32], d: usize) -> Result<Record> {
    let Recording {
        prompt,
        rows,
        top_ids,
        top_p,
    } = recording;
    let n_prompt = prompt.len() as u32;
    let ids = [prompt.as_slice(), answer].concat();
    let n_answer = answer.len();
    let rows: Vec<f16> = rows.into_iter().map(f16::from_f32).collect();
    let n_rows = rows.len() / d;
    let make = || -> candle_core::Result<Record> {
        let cpu = &Device::Cpu;
        let n_ids = ids.len();
        Ok(Record::from([
            ("ids".to_owned(), Tensor::from_vec(ids, n_ids, cpu)?),
            ("n_prompt".to_owned(), Tensor::new(&[n_prompt], cpu)?),
            ("rows".to_owned(), Tensor::from_vec(rows, (n_rows, d), cpu)?),
            (
                "top_ids".to_owned(),
                Tensor::from_vec(top_ids, (n_answer, TOP), cpu)?,
            ),
            (
                "top_p".to_owned(),
                Tensor::from_vec(top_p, (n_answer, TOP), cpu)?,
            ),
        ]))
    };
    make().map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn most_likely_ids_come_first_with_their_share_of_all() {
        let mut logits = vec![0.0; 100];
        (logits[7], logits[3], logits[4]) = (9.0, 8.0, 8.0);
        let mut recording = Recording::default();
        note_top(&mut recording, &logits);
        assert_eq!(recording.top_ids[..4], [7, 3, 4, 0]);
        let sum = 9f64.exp() + 2.0 * 8f64.exp() + 97.0;
        assert!((f64::from(recording.top_p[0]) - 9f64.exp() / sum).abs() < 1e-6);
        let mut few = Recording::default();
        note_top(&mut few, &[0.0, 0.0]);
        assert_eq!(
            (few.top_ids.len(), few.top_p.iter().sum::<f32>()),
            (TOP, 1.0)
        );
    }
}
