//! The backend that runs everything on the CPU engine.

use std::sync::Arc;

use rten::NodeId;
use rten_tensor::TensorView;
use rten_tensor::prelude::*;

use super::ask_policy::ask_policy;
use super::contract;
use super::cpu_decoder::{Decoder, as_f32};
use super::cpu_draft::{EarlyExit, Head, Shared, copy_cache};
use super::saliency::{PRUNER_LAYERS, Saliency};
use super::{Backend, DraftModel, Logits, Prefill, Prune};
use crate::cpu::{Embedding, Session};
use crate::error::{Error, Result};
use crate::model::{DraftKind, DraftSpec, Model, ModelConfig, graph_path};
use crate::onnx::OnnxModel;
use crate::onnx::passes::{
    LOGIT_ROWS, Tap, add_taps, group_queries, pack_blocks, place_rows, select_logit_rows,
    sort_nodes,
};
use crate::preprocess::PixelValues;
use crate::prune::{Features, Kept, Needs};
use crate::sync::lock;

/// Rows of a step that room is made for: a token and the longest draft.
const MOST_STEP_ROWS: usize = 16;

/// Vision tower, embeddings and decoder of one model in memory, with one sequence.
pub struct CpuBackend {
    vision: Vision,
    embedding: Arc<Embedding>,
    decoder: Decoder,
    d_model: usize,
    /// Visual rows of the newest frame, `[n, d_model]`.
    features: Vec<f32>,
    /// The inner value whose rows are kept.
    tap: Option<Tap>,
    /// Rows that the newest pass gave logits for; the others stand before them.
    n_logit_rows: usize,
    /// What draft models find.
    left: Shared,
    /// Where the decoder can be read once more.
    model: Model,
    /// Loaded when a policy first needs it.
    saliency: Option<Saliency>,
    room: Room,
}

/// Memory that passes use again.
#[derive(Default)]
struct Room {
    rows: Vec<f32>,
    positions: Vec<i32>,
    logit_rows: Vec<i32>,
}

struct Vision {
    session: Session,
    pixels: NodeId,
    mask: Option<NodeId>,
    features: NodeId,
    tiled: bool,
    /// The mask of the newest image, as the engine takes it.
    mask_room: Vec<i32>,
}

impl CpuBackend {
    /// Loads the three graphs of a model folder or CPU bundle.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Malformed`] if a file cannot be read, [`Error::Shape`] if its
    /// tensors are not those of the family, [`Error::Cpu`] if the engine refuses it.
    pub fn load(model: &Model) -> Result<Self> {
        Self::load_tapped(model, None)
    }

    /// Loads the same, and keeps the rows of an inner value of the decoder in every pass:
    /// [`Tap::Hidden`] or [`Tap::Layer`].
    ///
    /// # Errors
    /// As [`CpuBackend::load`]; [`Error::Unsupported`] if the value is not found.
    pub fn load_tapped(model: &Model, tap: Option<Tap>) -> Result<Self> {
        let vision = OnnxModel::load(&model.files.vision)?;
        contract::check_vision(&vision, &model.config)?;
        let vision = Session::load(&vision)?;
        let mut decoder = prepared_decoder(model)?;
        if let Some(tap) = &tap {
            add_tap(&mut decoder, tap, &model.config)?;
        }
        let decoder = Session::load(&decoder)?;
        let mut backend = Self::new(model, vision, decoder)?;
        if let Some(tap) = tap {
            backend.decoder.keep_rows(&tapped_name(&tap))?;
            backend.tap = Some(tap);
        }
        Ok(backend)
    }

    /// Loads a model with its drafts: the backend then leaves them what they need.
    ///
    /// # Errors
    /// As [`CpuBackend::load_tapped`], and those of the drafts' graphs.
    pub fn load_with_drafts(
        model: &Model,
        drafts: Vec<DraftSpec>,
    ) -> Result<(Self, Vec<Box<dyn DraftModel>>)> {
        let reads_hidden = drafts.iter().any(|spec| spec.kind == DraftKind::Head);
        let backend = Self::load_tapped(model, reads_hidden.then_some(Tap::Hidden))?;
        let mut loaded: Vec<Box<dyn DraftModel>> = Vec::new();
        for spec in drafts {
            let graph = OnnxModel::load(&graph_path(&model.dir, spec.kind))?;
            let (embedding, left) = (Arc::clone(&backend.embedding), Arc::clone(&backend.left));
            loaded.push(match spec.exit_layer {
                None => Box::new(Head::new(&graph, spec, embedding, left)?),
                Some(layer) => {
                    let layers = first_layers(model, layer)?;
                    Box::new(EarlyExit::new(layers, &graph, spec, embedding, left)?)
                }
            });
        }
        Ok((backend, loaded))
    }

    /// Rows of the value that is kept, `[rows, d]` f32, of all rows of the newest pass.
    pub fn tapped(&self) -> &[f32] {
        &self.decoder.tapped
    }

    /// The token table.
    pub fn embedding(&self) -> &Arc<Embedding> {
        &self.embedding
    }

    /// Takes a vision tower and a decoder that were loaded already; the decoder has the input
    /// [`LOGIT_ROWS`]. The embeddings are those of the model.
    ///
    /// # Errors
    /// As [`CpuBackend::load`].
    pub fn new(model: &Model, vision: Session, decoder: Session) -> Result<Self> {
        let config = &model.config;
        let family = config.family;
        let optional = |name: &&str| vision.has_input(name);
        let vision = Vision {
            pixels: vision.input(family.pixel_values)?,
            mask: family
                .pixel_attention_mask
                .filter(optional)
                .map(|name| vision.input(name))
                .transpose()?,
            features: vision.output(family.image_features)?,
            tiled: family.tiled,
            mask_room: Vec::new(),
            session: vision,
        };
        let embed = OnnxModel::load(&model.files.embed)?;
        contract::check_embed(&embed, config)?;
        let embedding = Embedding::load(&embed, config.vocab, config.d_model)?;
        let kv_shape = [1, config.n_kv_heads, 0, config.head_dim];
        Ok(Self {
            vision,
            embedding: Arc::new(embedding),
            decoder: Decoder::new(decoder, family, family.logits, config.n_layers, kv_shape)?,
            d_model: config.d_model,
            features: Vec::new(),
            tap: None,
            n_logit_rows: 0,
            left: Shared::default(),
            model: model.clone(),
            saliency: None,
            room: Room::default(),
        })
    }

    /// Takes the embeddings of another graph of the same model.
    ///
    /// # Errors
    /// As [`CpuBackend::load`].
    pub fn with_embedding(mut self, embed: &OnnxModel, config: &ModelConfig) -> Result<Self> {
        contract::check_embed(embed, config)?;
        self.embedding = Arc::new(Embedding::load(embed, config.vocab, config.d_model)?);
        Ok(self)
    }

    /// Visual rows of the newest frame, `[n, d_model]`.
    pub fn features(&self) -> &[f32] {
        &self.features
    }

    fn copy_visual_row(&self, row: usize, out: &mut Vec<f32>) -> Result<()> {
        let start = row.saturating_mul(self.d_model);
        let features = self
            .features
            .get(start..start.saturating_add(self.d_model))
            .ok_or_else(|| Error::Shape {
                name: "image_features".to_owned(),
                expected: format!("a row below {}", self.features.len() / self.d_model),
                actual: row.to_string(),
            })?;
        out.extend_from_slice(features);
        Ok(())
    }

    /// Rows of the decoder's input, `[n, d_model]`: embeddings of ids, rows of the newest frame in
    /// the slots.
    ///
    /// # Errors
    /// [`Error::Shape`] if slots and rows disagree.
    pub fn prompt_rows(&self, prompt: &Prefill<'_>) -> Result<Vec<f32>> {
        let mut rows = Vec::new();
        self.write_prompt_rows(prompt, &mut rows)?;
        Ok(rows)
    }

    /// Writes them into `rows`.
    fn write_prompt_rows(&self, prompt: &Prefill<'_>, rows: &mut Vec<f32>) -> Result<()> {
        let slots = prompt
            .ids
            .iter()
            .filter(|&&id| id == prompt.image_token)
            .count();
        if slots != prompt.visual.len() || prompt.ids.len() != prompt.positions.len() {
            return Err(Error::Shape {
                name: "prompt".to_owned(),
                expected: format!("{slots} visual rows and {} positions", prompt.ids.len()),
                actual: format!("{} and {}", prompt.visual.len(), prompt.positions.len()),
            });
        }
        rows.clear();
        rows.reserve(prompt.ids.len() * self.d_model);
        let mut visual = prompt.visual.iter();
        for run in prompt
            .ids
            .chunk_by(|a, b| (*a == prompt.image_token) == (*b == prompt.image_token))
        {
            if run[0] == prompt.image_token {
                for &row in visual.by_ref().take(run.len()) {
                    self.copy_visual_row(row, rows)?;
                }
            } else {
                self.embedding.rows(run, rows)?;
            }
        }
        Ok(())
    }
}

/// What policies look at.
impl CpuBackend {
    /// The candidates' rows, one behind the other; where they are all rows nothing is copied.
    fn candidate_rows(&self, candidates: &[usize]) -> Result<std::borrow::Cow<'_, [f32]>> {
        if candidates.len() * self.d_model == self.features.len() {
            return Ok(self.features.as_slice().into());
        }
        let mut rows = Vec::with_capacity(candidates.len() * self.d_model);
        for &row in candidates {
            self.copy_visual_row(row, &mut rows)?;
        }
        Ok(rows.into())
    }

    /// How much the rows behind the last visual one attend to each visual row of a prompt.
    fn saliency(&self, prompt: &Prefill<'_>) -> Result<Vec<f32>> {
        let saliency = self.saliency.as_ref().ok_or_else(|| Error::Unavailable {
            what: "attention of the question".to_owned(),
            reason: "its layers were not made ready".to_owned(),
        })?;
        let is_visual = |&id: &u32| id == prompt.image_token;
        let behind = prompt.ids.iter().rposition(is_visual);
        let behind = behind.map_or(0, |last| last + 1);
        let from: Vec<i32> = (behind..prompt.ids.len()).map(|row| row as i32).collect();
        let rows = self.prompt_rows(prompt)?;
        let found = saliency.run(rows, prompt.positions, &from)?;
        let of_all = prompt.ids.iter().zip(found);
        Ok(of_all
            .filter(|(id, _)| is_visual(id))
            .map(|(_, attention)| attention)
            .collect())
    }
}

impl Backend for CpuBackend {
    fn encode(&mut self, image: &PixelValues) -> Result<usize> {
        self.features.clear();
        let n = image.pixels.shape().first().copied().unwrap_or(0).max(1);
        // Tiles do not see each other: one at a time where what is inside is to be looked at,
        // and may not be large.
        let at_a_time = if self.vision.session.is_observed() {
            1
        } else {
            n
        };
        for start in (0..n).step_by(at_a_time) {
            let features = self.vision.run(image, start, at_a_time, self.d_model)?;
            if self.features.is_empty() {
                self.features = features;
            } else {
                self.features.extend_from_slice(&features);
            }
        }
        Ok(self.features.len() / self.d_model)
    }

    fn prepare_prune(&mut self, needs: Needs) -> Result<()> {
        if needs.saliency && self.saliency.is_none() {
            self.saliency = Some(Saliency::load(&self.model, 0..PRUNER_LAYERS)?);
        }
        Ok(())
    }

    fn prune(&mut self, request: &Prune<'_>) -> Result<Kept> {
        let saliency = match request.policy.needs().saliency {
            true => Some(self.saliency(&request.prompt)?),
            false => None,
        };
        let rows = self.candidate_rows(request.candidates)?;
        let features = Features::new(&rows, self.d_model)?;
        let (kept, merged) = ask_policy(request, features, &self.embedding, saliency.as_deref())?;
        if let Some(merged) = merged {
            let d = self.d_model;
            for (&index, row) in kept.indices.iter().zip(merged.chunks_exact(d)) {
                let start = request.candidates[index] * d;
                self.features[start..start + d].copy_from_slice(row);
            }
        }
        Ok(kept)
    }

    fn visual_rows(&mut self, rows: &mut Vec<f32>) -> Result<()> {
        self.features.clone_into(rows);
        Ok(())
    }

    fn reserve(&mut self, n_rows: usize) {
        self.decoder.reserve(n_rows);
        self.room.rows.reserve(n_rows * self.d_model);
        self.room.positions.reserve(n_rows);
        self.room.logit_rows.reserve(MOST_STEP_ROWS);
    }

    fn takes_positions(&self) -> bool {
        self.decoder.position_ids.is_some()
    }

    fn rows_are_independent(&self) -> bool {
        !self.decoder.session.scales_by_its_rows()
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        let mut room = std::mem::take(&mut self.room);
        self.write_prompt_rows(prompt, &mut room.rows)?;
        let n = prompt.ids.len();
        self.decoder.reset(n + prompt.reserve);
        room.positions.clear();
        let positions = prompt.positions.iter().map(|&p| p as i32);
        room.positions.extend(positions);
        let last = [n as i32 - 1];
        let logits = self.decoder.run(&room.rows, &room.positions, &last)?;
        self.room = room;
        self.n_logit_rows = 1;
        let mut left = lock(&self.left);
        if std::mem::take(&mut left.wants_hidden) && self.tap == Some(Tap::Hidden) {
            self.decoder.tapped.clone_into(&mut left.hidden);
        }
        let n_tensors = 2 * left.n_layers;
        left.kv = copy_cache(&self.decoder.kv[..n_tensors], n, n)?;
        Ok(logits)
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        let Room {
            rows,
            positions,
            logit_rows,
        } = &mut self.room;
        rows.clear();
        self.embedding.rows(ids, rows)?;
        let n = ids.len() as i32;
        let first = position as i32;
        positions.clear();
        positions.extend(first..first + n);
        logit_rows.clear();
        logit_rows.extend(0..n);
        self.n_logit_rows = ids.len();
        self.decoder.run(rows, positions, logit_rows)
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        self.decoder.rollback(n_rows)
    }

    fn hidden(&self) -> Option<&[f32]> {
        if self.tap != Some(Tap::Hidden) {
            return None;
        }
        let rows = &self.decoder.tapped;
        let start = rows.len().checked_sub(self.n_logit_rows * self.d_model)?;
        Some(&rows[start..])
    }
}

/// The decoder of a model, checked; it gives logits of the rows that [`LOGIT_ROWS`] names, and takes
/// positions where it can.
pub(super) fn cut_decoder(model: &Model) -> Result<OnnxModel> {
    let config = &model.config;
    let mut decoder = OnnxModel::load(&model.files.decoder)?;
    contract::check_decoder(&decoder, config)?;
    let is_cut = decoder.graph().input.iter().any(|i| i.name == LOGIT_ROWS);
    if !is_cut {
        select_logit_rows(&mut decoder)?;
    }
    place_rows(
        &mut decoder,
        config.family.position_ids,
        config.family.inputs_embeds,
    );
    Ok(decoder)
}

/// The decoder of a model, as the engine takes it; nodes stand in topological order.
fn prepared_decoder(model: &Model) -> Result<OnnxModel> {
    let config = &model.config;
    let mut decoder = cut_decoder(model)?;
    pack_blocks(&mut decoder)?;
    // The engine packs keys anew for every head that shares them, and copies what is repeated.
    sort_nodes(&mut decoder)?;
    group_queries(&mut decoder, config.n_heads, config.n_kv_heads)?;
    Ok(decoder)
}

/// Adds the output of a tap, unless the graph was built with it.
fn add_tap(decoder: &mut OnnxModel, tap: &Tap, config: &ModelConfig) -> Result<()> {
    let name = tapped_name(tap);
    if decoder
        .graph()
        .output
        .iter()
        .any(|output| output.name == name)
    {
        return Ok(());
    }
    let names = contract::tap_names(config);
    add_taps(decoder, std::slice::from_ref(tap), &names)
}

/// Name of the output that a tap of rows adds.
fn tapped_name(tap: &Tap) -> String {
    tap.to_string().replace([':', '-'], "_")
}

/// The layers of a decoder up to `layer`, from 0, which return what that layer hands on.
fn first_layers(model: &Model, layer: usize) -> Result<Decoder> {
    let (config, family) = (&model.config, model.config.family);
    let tap = Tap::Layer(layer);
    let mut decoder = prepared_decoder(model)?;
    add_tap(&mut decoder, &tap, config)?;
    let output = tapped_name(&tap);
    let mut kept = vec![output.clone()];
    for layer in 0..=layer {
        kept.extend([family.present_key(layer), family.present_value(layer)]);
    }
    let graph = decoder.graph_mut();
    graph.output.retain(|output| kept.contains(&output.name));
    graph.remove_unused();
    let mut inputs = std::mem::take(&mut graph.input);
    inputs.retain(|input| graph.is_used(&input.name));
    graph.input = inputs;
    let kv_shape = [1, config.n_kv_heads, 0, config.head_dim];
    Decoder::new(
        Session::load(&decoder)?,
        family,
        &output,
        layer + 1,
        kv_shape,
    )
}

impl Vision {
    /// Visual rows of `n` of the image's tiles.
    fn run(
        &mut self,
        image: &PixelValues,
        start: usize,
        n: usize,
        d_model: usize,
    ) -> Result<Vec<f32>> {
        let side = image.side();
        // Tiled towers have a dimension more, of frames.
        let skipped = usize::from(!self.tiled);
        let size = 3 * side * side;
        let shape = [1, n, 3, side, side];
        let tiles = &image.pixels.data()[start * size..(start + n) * size];
        let pixels = TensorView::from_data(&shape[skipped..], tiles);
        let range = start * side * side..(start + n) * side * side;
        self.mask_room.clear();
        // A processor with `do_pad: false` makes none; the model then takes every pixel.
        match (&image.mask, self.mask) {
            (_, None) => {}
            (None, _) => self.mask_room.resize(range.len(), 1),
            (Some(mask), _) => {
                let mask = mask.data()[range].iter().map(|&m| i32::from(m));
                self.mask_room.extend(mask);
            }
        }
        let shape = [1, n, side, side];
        let mask = self.mask.map(|id| {
            let mask = TensorView::from_data(&shape[skipped..], self.mask_room.as_slice());
            (id, mask.into())
        });
        let inputs = [(self.pixels, pixels.into())].into_iter().chain(mask);
        let values = self.session.run_on(inputs, &[self.features])?;
        let features = as_f32("image_features", values.into_iter().next())?;
        if features.shape().last() != Some(&d_model) {
            return Err(Error::Shape {
                name: "image_features".to_owned(),
                expected: format!("[.., {d_model}] f32"),
                actual: format!("{:?}", features.shape()),
            });
        }
        Ok(features.into_data())
    }
}
