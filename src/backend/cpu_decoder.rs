//! A decoder on the CPU engine, with its KV cache.

use rten::{NodeId, Value, ValueOrView};
use rten_tensor::prelude::*;
use rten_tensor::{Tensor, TensorView};

use super::Logits;
use super::cpu_draft::copy_cache;
use crate::cpu::Session;
use crate::error::{Error, Result};
use crate::model::FamilySpec;
use crate::onnx::passes::LOGIT_ROWS;

/// Axis of KV tensors `[1, kv_heads, rows, head_dim]` that grows.
pub(super) const ROW_AXIS: usize = 2;

/// The graph, its inputs and outputs, and one sequence.
pub(super) struct Decoder {
    pub(super) session: Session,
    embeds: NodeId,
    attention_mask: Option<NodeId>,
    pub(super) position_ids: Option<NodeId>,
    logit_rows: Option<NodeId>,
    past: Vec<NodeId>,
    /// What is asked for, `logits` or what a layer hands on; then the new KV tensors in the order of `past`, then
    /// the value whose rows are kept, if there is one.
    outputs: Vec<NodeId>,
    /// That value's rows in the newest pass, `[rows, d]`.
    pub(super) tapped: Vec<f32>,
    kv_shape: [usize; 4],
    pub(super) kv: Vec<Value>,
    n_rows: usize,
    /// Rows that the cache has room for, at least.
    least_capacity: usize,
    /// Ones, at least as many as there are rows.
    ones: Vec<i32>,
}

impl Decoder {
    pub(super) fn new(
        session: Session,
        family: &FamilySpec,
        output: &str,
        n_layers: usize,
        kv_shape: [usize; 4],
    ) -> Result<Self> {
        let optional = |name: &str| {
            let present = session.has_input(name);
            present.then(|| session.input(name)).transpose()
        };
        let (mut past, mut outputs) = (Vec::new(), vec![session.output(output)?]);
        for layer in 0..n_layers {
            past.push(session.input(&family.past_key(layer))?);
            past.push(session.input(&family.past_value(layer))?);
            outputs.push(session.output(&family.present_key(layer))?);
            outputs.push(session.output(&family.present_value(layer))?);
        }
        Ok(Self {
            embeds: session.input(family.inputs_embeds)?,
            attention_mask: optional(family.attention_mask)?,
            position_ids: optional(family.position_ids)?,
            logit_rows: optional(LOGIT_ROWS)?,
            past,
            outputs,
            tapped: Vec::new(),
            kv_shape,
            kv: Vec::new(),
            n_rows: 0,
            least_capacity: 0,
            ones: Vec::new(),
            session,
        })
    }

    /// Keeps the rows of one more output in every pass.
    pub(super) fn keep_rows(&mut self, output: &str) -> Result<()> {
        self.outputs.push(self.session.output(output)?);
        Ok(())
    }

    /// Layers whose cache it has.
    pub(super) fn n_layers(&self) -> usize {
        self.past.len() / 2
    }

    /// Gives the KV cache room for `n_rows` rows, now and later.
    pub(super) fn reserve(&mut self, n_rows: usize) {
        self.least_capacity = n_rows;
        self.ones.resize(self.ones.len().max(n_rows), 1);
        self.reset(n_rows);
    }

    /// Empties the KV cache and gives it room for `capacity` rows.
    pub(super) fn reset(&mut self, capacity: usize) {
        let capacity = capacity.max(self.least_capacity);
        let has_room = |value: &Value| match value {
            Value::FloatTensor(cache) => cache.has_capacity(ROW_AXIS, capacity),
            _ => false,
        };
        roll_back(&mut self.kv, 0);
        if self.kv.len() != self.past.len() || !self.kv.iter().all(has_room) {
            self.kv = new_cache(self.past.len(), self.kv_shape, capacity);
        }
        self.n_rows = 0;
    }

    /// Takes the first `n_rows` rows of another decoder's cache, and has room for `capacity`.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not there.
    pub(super) fn start_from(
        &mut self,
        kv: &[Value],
        n_rows: usize,
        capacity: usize,
    ) -> Result<()> {
        let kv = kv.get(..self.past.len()).unwrap_or(&[]);
        self.kv = copy_cache(kv, n_rows, capacity)?;
        self.n_rows = n_rows;
        Ok(())
    }

    /// Adds rows `[n, d]` at `positions`; returns what is asked for of `logit_rows`, of all rows where the
    /// graph has no choice.
    pub(super) fn run(
        &mut self,
        rows: &[f32],
        positions: &[i32],
        logit_rows: &[i32],
    ) -> Result<Logits> {
        let n = positions.len();
        let total = self.n_rows + n;
        let rows = TensorView::from_data(&[1, n, rows.len() / n.max(1)], rows);
        self.ones.resize(self.ones.len().max(total), 1);
        let mask = TensorView::from_data(&[1, total], &self.ones[..total]);
        let positions = TensorView::from_data(&[1, n], positions);
        let wanted = TensorView::from_data(&[logit_rows.len()], logit_rows);
        let given: [Option<(NodeId, ValueOrView<'_>)>; 4] = [
            Some((self.embeds, rows.into())),
            self.logit_rows.map(|id| (id, wanted.into())),
            self.attention_mask.map(|id| (id, mask.into())),
            self.position_ids.map(|id| (id, positions.into())),
        ];
        // Owned caches with spare capacity are appended to in place.
        let kv = self.kv.drain(..).map(ValueOrView::Value);
        let past = self.past.iter().copied().zip(kv);
        let inputs = given.into_iter().flatten().chain(past);
        let mut values = self.session.run_on(inputs, &self.outputs)?.into_iter();
        let logits = as_f32("logits", values.next())?;
        self.kv.extend(values.by_ref().take(self.past.len()));
        self.n_rows = total;
        if let Some(rows) = values.next() {
            self.tapped = as_f32("tapped rows", Some(rows))?.into_data();
        }
        match logits.shape().last() {
            Some(&n_vocab) if n_vocab > 0 && logits.len() == n_vocab * logit_rows.len() => {
                Ok(Logits::new(n_vocab, logits.into_data()))
            }
            _ => Err(Error::Shape {
                name: "logits".to_owned(),
                expected: format!("[1, {}, vocab] f32", logit_rows.len()),
                actual: format!("{:?}", logits.shape()),
            }),
        }
    }

    /// Forgets all rows but the first `n_rows`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are fewer.
    pub(super) fn rollback(&mut self, n_rows: usize) -> Result<()> {
        if n_rows > self.n_rows {
            return Err(Error::Shape {
                name: "KV cache".to_owned(),
                expected: format!("at least {n_rows} rows"),
                actual: self.n_rows.to_string(),
            });
        }
        roll_back(&mut self.kv, n_rows);
        self.n_rows = n_rows;
        Ok(())
    }
}

/// `n` empty tensors of a cache with room for `capacity` rows.
pub(super) fn new_cache(n: usize, mut shape: [usize; 4], capacity: usize) -> Vec<Value> {
    shape[ROW_AXIS] = capacity;
    let mut kv = Vec::new();
    kv.resize_with(n, || Tensor::<f32>::with_capacity(&shape, ROW_AXIS).into());
    kv
}

/// Forgets all rows of a cache but the first `n_rows`.
pub(super) fn roll_back(kv: &mut [Value], n_rows: usize) {
    for value in kv {
        if let Value::FloatTensor(cache) = value {
            cache.clip_dim(ROW_AXIS, 0..n_rows);
        }
    }
}

pub(super) fn into_f32(name: &str, value: Option<Value>) -> Result<(Vec<usize>, Vec<f32>)> {
    let tensor = as_f32(name, value)?;
    Ok((tensor.shape().to_vec(), tensor.into_data()))
}

pub(super) fn as_f32(name: &str, value: Option<Value>) -> Result<Tensor<f32>> {
    let tensor = value.and_then(Value::into_tensor::<f32>);
    tensor.ok_or_else(|| Error::Shape {
        name: name.to_owned(),
        expected: "f32".to_owned(),
        actual: "another type".to_owned(),
    })
}
