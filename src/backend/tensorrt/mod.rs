//! The backend that runs a bundle's plans on a GPU.
//!
//! ```text
//! pixels ─► vision ─► rows of the frame ─┐
//! ids ─► prompt_rows (table) ────────────┴─► prefill ─► kv_append ─► verify ─┐
//!                 ┌──────────────────────────────────────────────────────────┘
//!                 └─► step_inputs (table) ─► decoder ─► kv_append ─► verify ─┐
//!                 ▲                                                          │
//!                 └──────────────────────────────────────────────────────────┘
//! ```
//!
//! Everything is ordered by one stream, and stays on the device: a pass of greedy decoding reads the tokens
//! that it took, 120 bytes, and a drawn one its logits; with a draft model, which runs on the CPU, the hidden states
//! of these tokens, too, and once those of the prompt. What runs twice with the same shapes is captured as
//! a CUDA graph and replayed. All device memory is allocated by [`TensorRtBackend::open`].

mod arena;
mod decoder;
mod floats;
mod pruning;
mod replay;
mod table;
mod vision;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arena::Arena;
use decoder::{Decoder, Parts};
use floats::Floats;
use pruning::Pruning;
use vision::Vision;

use super::ask_policy::ask_policy;
use super::cpu_draft::{Head, Shared};
use super::{Backend, Chosen, DraftModel, Logits, Prefill, Prune};
use crate::bundle::{Bundle, Engine as Builder, EngineSet, Flavour, MANIFEST, Part, Target};
use crate::cpu::Embedding;
use crate::cuda::Device;
use crate::cuda::kernels::{Kernels, THERE};
use crate::error::{Error, Result};
use crate::limits;
use crate::model::{DraftKind, DraftSpec, ModelConfig, graph_path};
use crate::onnx::OnnxModel;
use crate::preprocess::PixelValues;
use crate::prune::{Features, Kept, Needs};
use crate::read::read_file;
use crate::sync::lock;
use crate::trt::{self, Engine, Runtime};

/// Largest cubin.
const CUBIN_BYTES: u64 = 16 << 20;

/// Vision tower and decoder of one bundle on one GPU, with one sequence.
pub struct TensorRtBackend {
    // Dropped in this order: what uses the device before the device.
    vision: Vision,
    decoder: Decoder,
    embedding: Arc<Embedding>,
    d_model: usize,
    /// Rows of the newest frame.
    n_features: usize,
    /// The newest prompt as ids and visual rows.
    source: Vec<i32>,
    feature_floats: Floats,
    pruning: Pruning,
    /// What a draft model finds.
    left: Shared,
    /// Whether one reads along in this sequence.
    is_drafted: bool,
    /// Hidden states of the rows that the newest pass took tokens from, `[rows, d_model]`.
    hidden: Vec<f32>,
    memory: Vec<Part>,
    engine: String,
    device: Device,
}

impl TensorRtBackend {
    /// Loads a bundle's plans for the first GPU, with everything that a run needs.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a driver, a GPU or the TensorRT that built the plans;
    /// [`Error::Mismatch`] if the bundle has plans for other GPUs; [`Error::OutOfMemory`]; [`Error::Shape`] if
    /// the plans are not the family's; [`Error::Engine`] and [`Error::Cuda`] from the libraries.
    pub fn open(bundle: &Bundle, config: &ModelConfig) -> Result<Self> {
        let device = Device::open(0)?;
        let manifest = bundle.manifest();
        let set = engine_set(bundle, &device)?;
        let runtime = Runtime::find(flavour_of(&set.engine), &set.engine.version)?;
        let mut arena = Arena::new(&device);
        let file = |name: &str| component_file(bundle, set, name);
        let plan = |name: &str, arena: &mut Arena<'_>| -> Result<Engine> {
            let path = file(name)?;
            arena.watch(&format!("{name} plan"), || runtime.engine(&path, &device))
        };
        let capacity = manifest.kv_capacity as usize;
        let vision_plan = plan("vision", &mut arena)?;
        let decoder_plan = plan("decoder", &mut arena)?;
        let kernels = Kernels::load(&device, &cubin(bundle, set, &device)?)?;
        let embedding = OnnxModel::load(&file("embed")?)?;
        let embedding = Embedding::load(&embedding, config.vocab, config.d_model)?;

        let mut vision = Vision::new(&vision_plan, config, most_tiles(set, config), &mut arena)?;
        let float = decoder_plan
            .tensor(config.family.inputs_embeds)
            .map_or(Ok(vision.float), floats::float_of)?;
        if float != vision.float {
            return Err(Error::Shape {
                name: config.family.image_features.to_owned(),
                expected: format!("{float:?}, as the decoder takes them"),
                actual: format!("{:?}", vision.float),
            });
        }
        let table = table::upload(
            &embedding,
            config.vocab,
            config.d_model,
            float,
            &device,
            &mut arena,
        )?;
        let parts = Parts {
            engine: &decoder_plan,
            config,
            kernels,
            table,
            capacity,
            draft_tokens: manifest.draft_tokens as usize,
        };
        let mut decoder = Decoder::new(parts, &mut arena)?;
        let mut scratch = 0;
        for plan in [&vision_plan, &decoder_plan] {
            for profile in 0..plan.profiles().len() {
                scratch = scratch.max(plan.scratch_bytes(profile)?);
            }
        }
        let scratch = arena.alloc("scratch", &[scratch as usize])?;
        vision.set_scratch(&scratch)?;
        decoder.set_scratch(&device, &scratch)?;
        let pruning = Pruning::new(vision.most_rows, &mut arena)?;
        let memory = arena.into_parts();
        for part in &memory {
            tracing::info!("device memory: {}, {} bytes", part.name, part.bytes);
        }
        let mut backend = Self {
            feature_floats: Floats::new(float, vision.most_rows * config.d_model),
            vision,
            decoder,
            embedding: Arc::new(embedding),
            left: Shared::default(),
            is_drafted: false,
            hidden: Vec::new(),
            d_model: config.d_model,
            n_features: 0,
            source: Vec::with_capacity(capacity),
            pruning,
            memory,
            engine: runtime.name(),
            device,
        };
        backend.warm_up(config)?;
        Ok(backend)
    }

    /// What it holds in the device's memory.
    pub fn memory(&self) -> &[Part] {
        &self.memory
    }

    /// The library that runs the plans, with its version.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Loads a draft of the bundle in `dir`, which runs on the CPU engine beside the plans and reads their hidden states.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for an early exit, whose layers are not in the plans, or plans without hidden
    /// states; those of the draft's graph.
    pub fn draft(&self, dir: &Path, spec: DraftSpec) -> Result<Box<dyn DraftModel>> {
        let unavailable = |reason: &str| Error::Unavailable {
            what: format!("`{}` beside plans", spec.kind.name()),
            reason: reason.to_owned(),
        };
        if spec.kind != DraftKind::Head {
            return Err(unavailable(
                "the first layers of a decoder are no plan of their own",
            ));
        }
        if !self.decoder.gives_hidden() {
            let reason = "the decoder's plan does not give hidden states: build the bundle again";
            return Err(unavailable(reason));
        }
        let graph = OnnxModel::load(&graph_path(dir, spec.kind))?;
        let (embedding, left) = (Arc::clone(&self.embedding), Arc::clone(&self.left));
        Ok(Box::new(Head::new(&graph, spec, embedding, left)?))
    }

    /// Runs passes of every size, until each is a graph.
    fn warm_up(&mut self, config: &ModelConfig) -> Result<()> {
        /// Once as it is, once to capture, once from the graph.
        const RUNS: usize = 3;
        for _ in 0..RUNS {
            self.decoder.prefill(
                &self.device,
                &[0],
                &[0],
                (&self.vision.features, self.vision.most_rows),
            )?;
            for rows in 1..=self.decoder.most_rows() {
                self.decoder.rollback(1)?;
                self.decoder.pass(&self.device, &vec![0; rows], 1)?;
            }
        }
        self.decoder.rollback(0)?;
        tracing::debug!(family = config.family.name, "warmed up");
        self.device.synchronize()
    }

    /// Notes the rows that a prompt is made of.
    fn set_source(&mut self, prompt: &Prefill<'_>) -> Result<()> {
        let slots = prompt.ids.iter().filter(|&&id| id == prompt.image_token);
        let n_slots = slots.count();
        let known = prompt.visual.iter().all(|&row| row < self.n_features);
        if n_slots != prompt.visual.len() || prompt.ids.len() != prompt.positions.len() || !known {
            return Err(Error::Shape {
                name: "prompt".to_owned(),
                expected: format!(
                    "{n_slots} visual rows of {}, and {} positions",
                    self.n_features,
                    prompt.ids.len()
                ),
                actual: format!("{} and {}", prompt.visual.len(), prompt.positions.len()),
            });
        }
        let mut visual = prompt.visual.iter();
        let is_there = self.pruning.has_placed(prompt);
        self.source.clear();
        self.source
            .extend(prompt.ids.iter().map(|&id| match id == prompt.image_token {
                true if is_there => THERE,
                true => visual.next().map_or(0, |&row| -1 - row as i32),
                false => id as i32,
            }));
        Ok(())
    }

    fn read_prompt(&mut self, prompt: &Prefill<'_>) -> Result<()> {
        self.set_source(prompt)?;
        self.pruning.forget();
        let visual = (&self.vision.features, self.vision.most_rows);
        self.decoder
            .prefill(&self.device, &self.source, prompt.positions, visual)?;
        let mut left = lock(&self.left);
        self.is_drafted = std::mem::take(&mut left.wants_hidden) && self.decoder.gives_hidden();
        if self.is_drafted {
            left.hidden.resize(self.source.len() * self.d_model, 0.0);
            self.decoder.read_hidden(&self.device, &mut left.hidden)?;
            let last = left.hidden.len() - self.d_model;
            self.hidden.clear();
            self.hidden.extend_from_slice(&left.hidden[last..]);
        }
        Ok(())
    }

    /// Reads the hidden states of `n` rows of the newest pass, if a draft model reads along.
    fn read_hidden(&mut self, n: usize) -> Result<()> {
        if !self.is_drafted {
            return Ok(());
        }
        self.hidden.resize(n * self.d_model, 0.0);
        self.decoder.read_hidden(&self.device, &mut self.hidden)
    }

    fn chosen(&self, taken: &decoder::Taken) -> Chosen {
        Chosen {
            n_vocab: self.decoder.n_vocab(),
            ids: taken.ids[..taken.n].to_vec(),
        }
    }
}

impl Backend for TensorRtBackend {
    fn encode(&mut self, image: &PixelValues) -> Result<usize> {
        self.pruning.forget();
        self.n_features = self.vision.encode(&self.device, image)?;
        // Whoever times passes times this one, not what comes after it.
        self.device.synchronize()?;
        Ok(self.n_features)
    }

    fn prepare_prune(&mut self, needs: Needs) -> Result<()> {
        if needs.saliency {
            return Err(Error::Unavailable {
                what: "attention of the question".to_owned(),
                reason: "the plans of a bundle do not give it".to_owned(),
            });
        }
        Ok(())
    }

    fn prune(&mut self, request: &Prune<'_>) -> Result<Kept> {
        let d = self.d_model;
        let rows = (&self.vision.features, self.vision.float);
        let (device, decoder) = (&self.device, &self.decoder);
        let kept = (self.pruning).run(device, decoder, rows, self.n_features, request)?;
        if let Some(kept) = kept {
            return Ok(kept);
        }
        let mut features = Vec::new();
        match request.policy.needs().features {
            true => self.visual_rows(&mut features)?,
            false => features.resize(self.n_features * d, 0.0),
        }
        let mut rows = Vec::with_capacity(request.candidates.len() * d);
        for &row in request.candidates {
            let row = features.get(row * d..(row + 1) * d);
            rows.extend_from_slice(row.ok_or_else(|| Error::Shape {
                name: "image_features".to_owned(),
                expected: format!("rows below {}", self.n_features),
                actual: format!("{:?}", request.candidates),
            })?);
        }
        let features = Features::new(&rows, d)?;
        let (kept, merged) = ask_policy(request, features, &self.embedding, None)?;
        if let Some(merged) = merged {
            for (&index, row) in kept.indices.iter().zip(merged.chunks_exact(d)) {
                let at = request.candidates[index] * d;
                self.feature_floats
                    .upload(&self.device, &self.vision.features, at, row)?;
            }
        }
        Ok(kept)
    }

    fn visual_rows(&mut self, rows: &mut Vec<f32>) -> Result<()> {
        rows.clear();
        rows.resize(self.n_features * self.d_model, 0.0);
        self.feature_floats
            .download(&self.device, &self.vision.features, rows)
    }

    fn takes_positions(&self) -> bool {
        self.decoder.takes_positions()
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        self.read_prompt(prompt)?;
        let logits = self.decoder.prompt_logits(&self.device)?;
        Ok(Logits::new(self.decoder.n_vocab(), logits))
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        self.pruning.forget();
        self.decoder.pass(&self.device, ids, position)?;
        let logits = self.decoder.logits(&self.device, ids.len())?;
        self.read_hidden(ids.len())?;
        Ok(Logits::new(self.decoder.n_vocab(), logits))
    }

    fn prefill_greedily(&mut self, prompt: &Prefill<'_>) -> Result<Option<Chosen>> {
        self.read_prompt(prompt)?;
        let taken = self.decoder.prompt_taken(&self.device)?;
        Ok(Some(self.chosen(&taken)))
    }

    fn step_greedily(&mut self, ids: &[u32], position: u32) -> Result<Option<Chosen>> {
        self.pruning.forget();
        self.decoder.pass(&self.device, ids, position)?;
        let taken = self.decoder.pass_taken(&self.device)?;
        self.read_hidden(taken.n)?;
        Ok(Some(self.chosen(&taken)))
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        self.decoder.rollback(n_rows)
    }

    fn hidden(&self) -> Option<&[f32]> {
        self.is_drafted.then_some(self.hidden.as_slice())
    }
}

/// The plans for a device.
fn engine_set<'a>(bundle: &'a Bundle, device: &Device) -> Result<&'a EngineSet> {
    let target = Target::Sm(device.sm());
    let manifest = bundle.manifest();
    let set = manifest.engine_set(target).ok_or_else(|| {
        let targets = manifest.engines.iter().map(|set| set.target.to_string());
        Error::Mismatch {
            path: bundle.dir().join(MANIFEST),
            what: "target",
            expected: format!("{target}, which {} is", device.name()),
            actual: targets.collect::<Vec<_>>().join(", "),
        }
    })?;
    if set.is_portable() {
        return Err(Error::Unavailable {
            what: format!("plans for {target} in {}", bundle.dir().display()),
            reason: "it holds graphs: `trtvlm build` of this bundle makes plans of them here"
                .to_owned(),
        });
    }
    Ok(set)
}

fn flavour_of(engine: &Builder) -> trt::Flavour {
    match engine.flavour {
        Flavour::TensorRtRtx => trt::Flavour::Rtx,
        _ => trt::Flavour::Enterprise,
    }
}

fn component_file(bundle: &Bundle, set: &EngineSet, name: &str) -> Result<PathBuf> {
    let component = set.component(name);
    component
        .and_then(|component| bundle.file(&component.file))
        .ok_or_else(|| {
            let reason = format!("its manifest names no {name} for {}", set.target);
            Error::malformed(bundle.dir(), reason)
        })
}

/// The kernels of a bundle for a device, if its driver takes them.
fn cubin(bundle: &Bundle, set: &EngineSet, device: &Device) -> Result<Vec<u8>> {
    let kernels = set.kernels.as_ref();
    let found = kernels.and_then(|kernels| Some((kernels, bundle.file(&kernels.file)?)));
    let (kernels, path) = found.ok_or_else(|| Error::Unavailable {
        what: format!("kernels for {} in {}", set.target, bundle.dir().display()),
        reason: "it was built without NVRTC: build it again where `trtvlm doctor` finds one"
            .to_owned(),
    })?;
    let (major, minor) = device.driver_version();
    let compiled = kernels.nvrtc.split('.').next().and_then(|n| n.parse().ok());
    if compiled.is_none_or(|compiled: u32| compiled > major) {
        return Err(Error::Mismatch {
            path,
            what: "CUDA version",
            expected: format!(
                "{major}.{minor} or older, as the driver of {} takes",
                device.name()
            ),
            actual: kernels.nvrtc.clone(),
        });
    }
    read_file(&path, CUBIN_BYTES)
}

/// Most pictures of a frame that a set was built for.
fn most_tiles(set: &EngineSet, config: &ModelConfig) -> usize {
    let vision = set.component("vision");
    let pixels = vision
        .and_then(|vision| vision.profiles.first())
        .and_then(|profile| {
            let name = config.family.pixel_values;
            profile.inputs.iter().find(|input| input.name == name)
        });
    let most = pixels.and_then(|pixels| pixels.max.get(1).copied());
    most.map_or(1, |most| most as usize).clamp(1, limits::TILES)
}
