//! What the graphs read when the reference answers an item.

use std::sync::{Arc, Mutex};

use crate::backend::{Backend, CpuBackend, Logits, Prefill};
use crate::cpu::Values;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::onnx::passes::LOGIT_ROWS;
use crate::preprocess::PixelValues;
use crate::sync::lock;

/// An item as the graphs see it: one picture, and all rows of prompt and answer.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    image: Option<PixelValues>,
    /// `[n, d_model]`.
    rows: Vec<f32>,
    positions: Vec<i32>,
    n_prompt: usize,
    /// Rows that are visual tokens: which row, and which token.
    visual: Vec<(usize, usize)>,
}

impl Recorded {
    /// What the vision tower reads, by name.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) if the recorded shapes are not consistent.
    pub fn vision_inputs(&self, config: &ModelConfig) -> Result<Values> {
        let mut values = Values::default();
        let Some(image) = &self.image else {
            return Ok(values);
        };
        let family = config.family;
        let leading = |shape: &[usize]| {
            let batch = family.tiled.then_some(1);
            batch
                .into_iter()
                .chain(shape.iter().copied())
                .collect::<Vec<_>>()
        };
        let pixels = &image.pixels;
        let shape = leading(pixels.shape());
        values.insert_f32(family.pixel_values, &shape, pixels.data().to_vec())?;
        if let Some(name) = family.pixel_attention_mask {
            let [n, _, h, w] = [0, 1, 2, 3].map(|i| pixels.shape()[i]);
            let mask = match &image.mask {
                Some(mask) => mask.data().iter().map(|&m| i32::from(m)).collect(),
                None => vec![1; n * h * w],
            };
            values.insert_i32(name, &leading(&[n, h, w]), mask)?;
        }
        Ok(values)
    }

    /// What the decoder reads to score every token of the answer at once, by name; with other
    /// `features` than were recorded, if there are any.
    ///
    /// # Errors
    /// As [`Recorded::vision_inputs`].
    pub fn decoder_inputs(&self, config: &ModelConfig, features: Option<&[f32]>) -> Result<Values> {
        let (n, d) = (self.positions.len(), config.d_model);
        let mut rows = self.rows.clone();
        for &(row, token) in features.map_or(&[][..], |_| &self.visual) {
            let from = features.and_then(|f| f.get(token * d..(token + 1) * d));
            if let (Some(from), Some(to)) = (from, rows.get_mut(row * d..(row + 1) * d)) {
                to.copy_from_slice(from);
            }
        }
        let family = config.family;
        let mut values = Values::default();
        values.insert_f32(family.inputs_embeds, &[1, n, d], rows)?;
        values.insert_i32(family.attention_mask, &[1, n], vec![1; n])?;
        values.insert_i32(family.position_ids, &[1, n], self.positions.clone())?;
        let asked = (self.n_prompt.saturating_sub(1)..n).map(|row| row as i32);
        let asked: Vec<i32> = asked.collect();
        values.insert_i32(LOGIT_ROWS, &[asked.len()], asked)?;
        let empty = [1, config.n_kv_heads, 0, config.head_dim];
        for layer in 0..config.n_layers {
            values.insert_f32(&family.past_key(layer), &empty, Vec::new())?;
            values.insert_f32(&family.past_value(layer), &empty, Vec::new())?;
        }
        Ok(values)
    }

    /// Tokens of the answer that are scored.
    pub fn n_scored(&self) -> usize {
        self.positions.len() + 1 - self.n_prompt.max(1)
    }
}

/// The reference, and what it was last asked.
pub struct Recorder {
    inner: CpuBackend,
    recorded: Arc<Mutex<Recorded>>,
    d_model: usize,
    image_token: u32,
}

impl Recorder {
    /// Records what `inner` is asked.
    pub fn new(inner: CpuBackend, config: &ModelConfig, recorded: Arc<Mutex<Recorded>>) -> Self {
        Self {
            inner,
            recorded,
            d_model: config.d_model,
            image_token: config.image_token_id,
        }
    }
}

impl Backend for Recorder {
    fn encode(&mut self, image: &PixelValues) -> Result<usize> {
        *lock(&self.recorded) = Recorded {
            image: Some(image.clone()),
            ..Recorded::default()
        };
        self.inner.encode(image)
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        let rows = self.inner.prompt_rows(prompt)?;
        let mut recorded = lock(&self.recorded);
        let slots = prompt.ids.iter().enumerate();
        let slots = slots.filter(|(_, id)| **id == prompt.image_token);
        recorded.visual = slots
            .map(|(row, _)| row)
            .zip(prompt.visual.iter().copied())
            .collect();
        recorded.n_prompt = prompt.ids.len();
        recorded.positions = prompt.positions.iter().map(|&p| p as i32).collect();
        recorded.rows = rows;
        drop(recorded);
        self.inner.prefill(prompt)
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        let positions: Vec<u32> = (position..).take(ids.len()).collect();
        let rows = self.inner.prompt_rows(&Prefill {
            ids,
            positions: &positions,
            visual: &[],
            image_token: self.image_token,
            reserve: 0,
        })?;
        let mut recorded = lock(&self.recorded);
        recorded.rows.extend(rows);
        recorded
            .positions
            .extend(positions.iter().map(|&p| p as i32));
        drop(recorded);
        self.inner.step(ids, position)
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        let mut recorded = lock(&self.recorded);
        recorded.positions.truncate(n_rows);
        recorded.rows.truncate(n_rows * self.d_model);
        drop(recorded);
        self.inner.rollback(n_rows)
    }
}
