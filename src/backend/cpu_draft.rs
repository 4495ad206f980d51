//! Draft models on the CPU engine, beside a [`CpuBackend`](super::CpuBackend) or plans on a GPU.

use std::sync::{Arc, Mutex};

use rten::{NodeId, Value, ValueOrView};
use rten_tensor::Tensor;

use super::Prefill;
use super::cpu_decoder::{Decoder, ROW_AXIS, into_f32, new_cache, roll_back};
use super::draft::{
    DRAFT_EMBEDS, DRAFT_HIDDEN_IN, DRAFT_HIDDEN_OUT, DRAFT_LOGITS, DRAFT_PAST, DRAFT_PRESENT,
    DraftModel,
};
use crate::cpu::{Embedding, Session};
use crate::error::{Error, Result};
use crate::model::{DraftKind, DraftSpec};
use crate::onnx::OnnxModel;
use crate::sync::lock;

/// Rows of guesses that a cache has room for beyond those of the target.
const GUESSES: usize = 16;

/// What the target leaves to draft models in every prefill.
#[derive(Default)]
pub(super) struct Left {
    /// Whether somebody wants the hidden states of the next prompt.
    pub wants_hidden: bool,
    /// Hidden states of the prompt, `[rows, d]`; of no meaning if nobody wanted them.
    pub hidden: Vec<f32>,
    /// Layers whose cache is wanted.
    pub n_layers: usize,
    /// Cache of these layers: rows of the prompt, keys and values in turn.
    pub kv: Vec<Value>,
}

/// The same, shared.
pub(super) type Shared = Arc<Mutex<Left>>;

/// The prompt of the sequence at hand.
#[derive(Default)]
struct Prompt {
    ids: Vec<u32>,
    next_position: u32,
    reserve: usize,
}

impl Prompt {
    fn set(&mut self, prompt: &Prefill<'_>) {
        prompt.ids.clone_into(&mut self.ids);
        self.next_position = prompt.positions.last().map_or(0, |&last| last + 1);
        self.reserve = prompt.reserve;
    }
}

/// One transformer layer on hidden states and tokens, see [`super::draft`].
///
/// Row `t` of its cache is made of hidden state `t` of the target and token `t + 1`, after EAGLE
/// (arXiv 2401.15077); what it guesses itself takes the place of a hidden state in rows of guesses.
pub(super) struct Head {
    session: Session,
    inputs: [NodeId; 4],
    outputs: [NodeId; 4],
    vocabulary: Vec<u32>,
    acceptance: f64,
    embedding: Arc<Embedding>,
    d_model: usize,
    cache_shape: [usize; 4],
    shared: Shared,
    prompt: Prompt,
    kv: Vec<Value>,
    /// Rows of the cache that are made of what the target chose; none before the first `take`.
    n_rows: usize,
    /// Its guess of the hidden state after the newest row.
    next: Vec<f32>,
}

impl Head {
    pub(super) fn new(
        graph: &OnnxModel,
        spec: DraftSpec,
        embedding: Arc<Embedding>,
        shared: Shared,
    ) -> Result<Self> {
        let session = Session::load(graph)?;
        let [key_in, value_in] = DRAFT_PAST;
        let [key_out, value_out] = DRAFT_PRESENT;
        let [a, b, c, d] =
            [DRAFT_EMBEDS, DRAFT_HIDDEN_IN, key_in, value_in].map(|name| session.input(name));
        let [e, f, g, h] =
            [DRAFT_LOGITS, DRAFT_HIDDEN_OUT, key_out, value_out].map(|name| session.output(name));
        let inputs = graph.graph().inputs();
        let key = inputs.iter().find(|input| input.name == key_in);
        let fixed = |axis| key.and_then(|key| key.fixed(axis));
        let (Some(heads), Some(head_dim)) = (fixed(1), fixed(3)) else {
            return Err(Error::Shape {
                name: key_in.to_owned(),
                expected: format!("heads and their width in {}", graph.path().display()),
                actual: "none stated".to_owned(),
            });
        };
        Ok(Self {
            inputs: [a?, b?, c?, d?],
            outputs: [e?, f?, g?, h?],
            session,
            d_model: spec.d_model,
            vocabulary: spec.vocabulary,
            acceptance: spec.acceptance,
            embedding,
            cache_shape: [1, heads, 0, head_dim],
            shared,
            prompt: Prompt::default(),
            kv: Vec::new(),
            n_rows: 0,
            next: Vec::new(),
        })
    }

    /// Adds rows to the cache; returns the logits after the last one.
    fn run(&mut self, ids: &[u32], hidden: Vec<f32>) -> Result<Vec<f32>> {
        let (n, d) = (ids.len(), self.d_model);
        if hidden.len() != n * d || n == 0 {
            return Err(Error::Shape {
                name: DRAFT_HIDDEN_IN.to_owned(),
                expected: format!("[{n}, {d}] with at least one row"),
                actual: format!("{} elements", hidden.len()),
            });
        }
        let mut embeds = Vec::with_capacity(n * d);
        self.embedding.rows(ids, &mut embeds)?;
        let rows = [embeds, hidden].map(|rows| Tensor::from_data(&[1, n, d], rows));
        let mut inputs: Vec<(NodeId, ValueOrView<'_>)> = Vec::with_capacity(4);
        for (&id, rows) in self.inputs.iter().zip(rows) {
            inputs.push((id, rows.into()));
        }
        let kv = self.kv.drain(..).map(ValueOrView::Value);
        inputs.extend(self.inputs[2..].iter().copied().zip(kv));
        let mut values = self.session.run(inputs, &self.outputs)?.into_iter();
        let logits = logits(&self.vocabulary, values.next())?;
        self.next = into_f32(DRAFT_HIDDEN_OUT, values.next())?.1;
        self.kv.extend(values);
        Ok(logits)
    }
}

impl DraftModel for Head {
    fn name(&self) -> &'static str {
        DraftKind::Head.name()
    }

    fn vocabulary(&self) -> &[u32] {
        &self.vocabulary
    }

    fn acceptance(&self) -> f64 {
        self.acceptance
    }

    fn begin(&mut self, prompt: &Prefill<'_>) {
        self.prompt.set(prompt);
        self.n_rows = 0;
        lock(&self.shared).wants_hidden = true;
    }

    fn take(&mut self, ids: &[u32], hidden: &[f32]) -> Result<Vec<f32>> {
        let (mut all_ids, mut rows) = (Vec::new(), Vec::new());
        if self.n_rows == 0 {
            // The last row of the prompt comes with the first token.
            let n = self.prompt.ids.len().saturating_sub(1);
            all_ids.extend_from_slice(self.prompt.ids.get(1..).unwrap_or(&[]));
            let left = lock(&self.shared);
            rows.extend_from_slice(left.hidden.get(..n * self.d_model).unwrap_or(&[]));
            let capacity = n + self.prompt.reserve + GUESSES;
            self.kv = new_cache(2, self.cache_shape, capacity);
        } else {
            roll_back(&mut self.kv, self.n_rows);
        }
        all_ids.extend_from_slice(ids);
        rows.extend_from_slice(hidden);
        let logits = self.run(&all_ids, rows)?;
        self.n_rows += all_ids.len();
        Ok(logits)
    }

    fn guess(&mut self, id: u32) -> Result<Vec<f32>> {
        let hidden = std::mem::take(&mut self.next);
        self.run(&[id], hidden)
    }
}

/// The first layers of the target with a small head, see [`super::draft`].
pub(super) struct EarlyExit {
    layers: Decoder,
    session: Session,
    hidden: NodeId,
    logits: NodeId,
    vocabulary: Vec<u32>,
    acceptance: f64,
    embedding: Arc<Embedding>,
    shared: Shared,
    prompt: Prompt,
    /// Rows of the cache that are made of what the target chose; none before the first `take`.
    n_rows: usize,
    n_guesses: usize,
}

impl EarlyExit {
    /// Takes the first layers of a decoder, with what they hand on in the place of logits.
    pub(super) fn new(
        layers: Decoder,
        graph: &OnnxModel,
        spec: DraftSpec,
        embedding: Arc<Embedding>,
        shared: Shared,
    ) -> Result<Self> {
        let session = Session::load(graph)?;
        let mut left = lock(&shared);
        left.n_layers = left.n_layers.max(layers.n_layers());
        drop(left);
        Ok(Self {
            layers,
            hidden: session.input(DRAFT_HIDDEN_IN)?,
            logits: session.output(DRAFT_LOGITS)?,
            session,
            vocabulary: spec.vocabulary,
            acceptance: spec.acceptance,
            embedding,
            shared,
            prompt: Prompt::default(),
            n_rows: 0,
            n_guesses: 0,
        })
    }

    fn run(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        let mut rows = Vec::new();
        self.embedding.rows(ids, &mut rows)?;
        let answered = self.n_rows - self.prompt.ids.len() + self.n_guesses;
        let first = self.prompt.next_position as i32 + answered as i32;
        let n = ids.len() as i32;
        let all: Vec<i32> = (0..n).collect();
        let positions: Vec<i32> = (first..first + n).collect();
        let rows = self.layers.run(&rows, &positions, &all)?;
        let last = Tensor::from_data(&[1, 1, rows.n_vocab()], rows.last_row().to_vec());
        let values = self
            .session
            .run(vec![(self.hidden, last.into())], &[self.logits])?;
        logits(&self.vocabulary, values.into_iter().next())
    }
}

impl DraftModel for EarlyExit {
    fn name(&self) -> &'static str {
        DraftKind::EarlyExit.name()
    }

    fn vocabulary(&self) -> &[u32] {
        &self.vocabulary
    }

    fn acceptance(&self) -> f64 {
        self.acceptance
    }

    fn begin(&mut self, prompt: &Prefill<'_>) {
        self.prompt.set(prompt);
        (self.n_rows, self.n_guesses) = (0, 0);
    }

    fn take(&mut self, ids: &[u32], _: &[f32]) -> Result<Vec<f32>> {
        let n_prompt = self.prompt.ids.len();
        if self.n_rows == 0 {
            let left = lock(&self.shared);
            let capacity = n_prompt + self.prompt.reserve + GUESSES;
            self.layers.start_from(&left.kv, n_prompt, capacity)?;
            self.n_rows = n_prompt;
        }
        self.layers.rollback(self.n_rows)?;
        self.n_guesses = 0;
        let logits = self.run(ids)?;
        self.n_rows += ids.len();
        Ok(logits)
    }

    fn guess(&mut self, id: u32) -> Result<Vec<f32>> {
        let logits = self.run(&[id])?;
        self.n_guesses += 1;
        Ok(logits)
    }
}

fn logits(vocabulary: &[u32], value: Option<Value>) -> Result<Vec<f32>> {
    let (shape, logits) = into_f32(DRAFT_LOGITS, value)?;
    if logits.len() != vocabulary.len() {
        return Err(Error::Shape {
            name: DRAFT_LOGITS.to_owned(),
            expected: format!("[1, 1, {}] f32", vocabulary.len()),
            actual: format!("{shape:?}"),
        });
    }
    Ok(logits)
}

/// A copy of a cache's first rows, with room for more.
pub(super) fn copy_cache(kv: &[Value], n_rows: usize, capacity: usize) -> Result<Vec<Value>> {
    use rten_tensor::prelude::*;
    let unfit = |actual: String| Error::Shape {
        name: "KV cache".to_owned(),
        expected: format!("f32 with {n_rows} rows"),
        actual,
    };
    let copy = |value: &Value| {
        let Value::FloatTensor(cache) = value else {
            return Err(unfit("another type".to_owned()));
        };
        let mut shape = cache.shape().to_vec();
        if shape.len() != 4 || shape[ROW_AXIS] < n_rows {
            return Err(unfit(format!("{shape:?}")));
        }
        shape[ROW_AXIS] = capacity.max(n_rows);
        let mut copy = Tensor::<f32>::with_capacity(shape.as_slice(), ROW_AXIS);
        let rows = cache.slice((.., .., 0..n_rows));
        copy.append(ROW_AXIS, &rows)
            .map_err(|e| unfit(format!("{e:?}")))?;
        Ok(copy.into())
    };
    kv.iter().map(copy).collect()
}
