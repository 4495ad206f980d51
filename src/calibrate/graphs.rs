//! The graphs that are observed, and the backend that runs them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use super::record::{Cancel, Phase, Record, Recorder, Shared};
use super::taps::{Candidate, Channels, candidates, observed};
use crate::backend::{Backend, CpuBackend, Logits, Prefill, contract};
use crate::cpu::{Observer, Session};
use crate::error::Result;
use crate::model::Model;
use crate::onnx::OnnxModel;
use crate::onnx::passes::{place_rows, prepare_fp32, select_logit_rows, sort_nodes};
use crate::pipeline::Pipeline;
use crate::preprocess::PixelValues;
use crate::quantize::graph_digest;
use crate::sync::lock;

/// The components that are observed, by their names in files.
pub const VISION: &str = "vision";
/// The other one.
pub const DECODER: &str = "decoder";

/// A component as it is observed.
pub struct Observable {
    /// Its name.
    pub component: &'static str,
    /// Digest of its files.
    pub source_sha256: String,
    /// What quantization may ask for.
    pub candidates: Vec<Candidate>,
    /// Names of the values to observe.
    pub names: Vec<String>,
    /// What was seen, in the order of the names.
    pub record: Arc<Mutex<Record>>,
}

impl Observable {
    /// Takes stock of one component.
    pub fn new(component: &'static str, model: &Model) -> Result<(Self, OnnxModel)> {
        let graph = lowered(component, model)?;
        let candidates = candidates(graph.graph());
        let observable = Self {
            component,
            source_sha256: graph_digest(&graph)?,
            names: observed(&candidates),
            candidates,
            record: Arc::default(),
        };
        Ok((observable, graph))
    }

    /// What records its values.
    pub fn recorder(&self, shared: &Arc<Shared>, cancel: &Cancel) -> Box<dyn Observer> {
        let wants = |name: &String| {
            let of_name = self.candidates.iter().filter(|c| c.observed == *name);
            of_name.map(|c| c.channels).max().unwrap_or(Channels::None)
        };
        Box::new(Recorder {
            component: self.component,
            channels: self.names.iter().map(wants).collect(),
            names: self.names.clone(),
            record: Arc::clone(&self.record),
            shared: Arc::clone(shared),
            cancel: Arc::clone(cancel),
        })
    }
}

/// Reads, checks and lowers a component: the graph whose names are the keys of scales.
pub fn lowered(component: &str, model: &Model) -> Result<OnnxModel> {
    let load = |path: &Path| OnnxModel::load(path);
    let mut graph;
    if component == VISION {
        graph = load(&model.files.vision)?;
        contract::check_vision(&graph, &model.config)?;
    } else {
        graph = load(&model.files.decoder)?;
        contract::check_decoder(&graph, &model.config)?;
        select_logit_rows(&mut graph)?;
        let family = model.config.family;
        place_rows(&mut graph, family.position_ids, family.inputs_embeds);
    }
    prepare_fp32(&mut graph, &[])?;
    sort_nodes(&mut graph)?;
    Ok(graph)
}

/// A graph with the names of the values to look at and who looks; without names it just runs.
pub type Watched = (OnnxModel, Option<(Vec<String>, Box<dyn Observer>)>);

/// A pipeline that runs these graphs; `records` count its passes.
pub fn open(
    model: &Model,
    vision: Watched,
    decoder: Watched,
    shared: &Arc<Shared>,
    records: [Arc<Mutex<Record>>; 2],
) -> Result<Pipeline> {
    let session = |(graph, watch): Watched| match watch {
        Some((names, observer)) => Session::load_observed(graph, &names, observer),
        None => Session::load(&graph),
    };
    let [vision_record, decoder_record] = records;
    let backend = Phased {
        inner: CpuBackend::new(model, session(vision)?, session(decoder)?)?,
        shared: Arc::clone(shared),
        vision: vision_record,
        decoder: decoder_record,
    };
    Pipeline::with_backend(model.clone(), "fp32".to_owned(), "cpu", Box::new(backend))
}

/// Tells the recorders what a pass is for.
struct Phased {
    inner: CpuBackend,
    shared: Arc<Shared>,
    vision: Arc<Mutex<Record>>,
    decoder: Arc<Mutex<Record>>,
}

impl Phased {
    fn begin(&self, phase: Phase, n: usize) {
        self.shared.set_phase(phase);
        let record = match phase {
            Phase::Image => &self.vision,
            Phase::Prefill | Phase::Decode => &self.decoder,
        };
        *lock(record).passes.entry(phase).or_default() += n as u64;
    }
}

impl Backend for Phased {
    fn encode(&mut self, image: &PixelValues) -> Result<usize> {
        let n_tiles = image.pixels.shape().first().copied().unwrap_or(0);
        self.begin(Phase::Image, n_tiles);
        self.inner.encode(image)
    }

    fn takes_positions(&self) -> bool {
        self.inner.takes_positions()
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        self.begin(Phase::Prefill, 1);
        self.inner.prefill(prompt)
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        self.begin(Phase::Decode, 1);
        self.inner.step(ids, position)
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        self.inner.rollback(n_rows)
    }
}
