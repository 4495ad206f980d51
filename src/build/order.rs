//! The order of a build.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;

use super::component::{ComponentKind, Numerics};
use super::cuts::Cuts;
use super::engines::{self, EngineReport};
use super::graphs;
use super::plans;
use super::quantization::Quantization;
use super::shapes::Capacity;
use crate::backend::{Backend, CpuBackend, Prefill};
use crate::bundle::{
    Buckets, Bundle, BundleWriter, FileDigest, Manifest, ModelInfo, Precision, SCHEMA_VERSION,
    Target,
};
use crate::digest::sha256_file;
use crate::error::{Error, Result};
use crate::model::{
    DraftKind, DraftSpec, Model, ModelConfig, ModelFiles, TrainedFile, TrainedKind, companions,
};
use crate::onnx::passes::Tap;
use crate::preprocess::Processor;
use crate::text::Text;

/// A target as the user names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetArg {
    /// This machine's GPU, else its CPU.
    Current,
    /// A fixed one.
    Fixed(Target),
}

/// What to build.
pub struct BuildOptions<'a> {
    /// Where the bundle goes.
    pub out: &'a Path,
    /// Replace a bundle that is there.
    pub force: bool,
    /// Targets, each once.
    pub targets: &'a [Target],
    /// Write graphs for the builder instead of plans, also where plans could be built.
    pub portable: bool,
    /// Precision of weights and activations.
    pub precision: Precision,
    /// How integers come into the graphs; needed by the precisions that have any.
    pub quantization: Option<&'a Quantization>,
    /// What changes in the decoder, off by default.
    pub cuts: Cuts,
    /// Positions of prompt and answer; by default the model's, at most 2048.
    pub max_context: Option<usize>,
    /// Draft tokens that one step can verify.
    pub draft_tokens: usize,
    /// Pictures of one frame (SmolVLM).
    pub max_tiles: usize,
    /// Limit of the memory that a GPU kernel may use beside its tensors.
    pub workspace_bytes: Option<u64>,
    /// File of kernel timings, read before and written after.
    pub timing_cache: Option<&'a Path>,
    /// The command line, for the manifest.
    pub command_line: Vec<String>,
    /// This program: it is started again to build each plan.
    pub worker: &'a Path,
    /// Set by another thread to stop.
    pub cancel: Arc<AtomicBool>,
}

impl<'a> BuildOptions<'a> {
    /// How the graphs compute.
    pub(super) fn numerics(&self) -> Numerics<'_> {
        Numerics {
            precision: self.precision,
            quantization: self.quantization,
        }
    }

    /// What of them concerns TensorRT's builder.
    pub fn builder(&'a self) -> Builder<'a> {
        Builder {
            workspace_bytes: self.workspace_bytes,
            timing_cache: self.timing_cache,
            worker: self.worker,
            cancel: &self.cancel,
        }
    }
}

/// Settings of TensorRT's builder.
#[derive(Debug, Clone, Copy)]
pub struct Builder<'a> {
    /// Limit of the memory that a GPU kernel may use beside its tensors.
    pub workspace_bytes: Option<u64>,
    /// File of kernel timings, read before and written after.
    pub timing_cache: Option<&'a Path>,
    /// This program: it is started again to build each plan.
    pub worker: &'a Path,
    /// Set by another thread to stop.
    pub cancel: &'a AtomicBool,
}

/// A step of a build.
#[derive(Debug, Clone)]
pub enum Event {
    /// A component begins.
    Start {
        /// Its target.
        target: Target,
        /// Its name.
        component: &'static str,
    },
    /// TensorRT is at work.
    Progress {
        /// How far it is, from 0 to 1.
        fraction: f32,
        /// Its own name for what it does, where it began something.
        phase: Option<String>,
    },
    /// Graphs that the CPU engine runs are loaded and tried.
    Check,
    /// The component, or the check, is done.
    Done,
    /// Graphs are written for a target, because its plans cannot be built here.
    Portable {
        /// The target.
        target: Target,
        /// What the TensorRT of this machine builds for.
        reason: String,
    },
}

/// What a build made.
#[derive(Debug, Clone, Serialize)]
pub struct BuildOutcome {
    /// The bundle.
    pub bundle: String,
    /// Digest of its manifest.
    pub manifest_sha256: String,
    /// Bytes of the whole bundle.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
    /// Each engine.
    pub engines: Vec<EngineReport>,
}

impl BuildOutcome {
    /// Sums up a bundle whose build began at `start`.
    pub(super) fn new(bundle: &Bundle, start: Instant, engines: Vec<EngineReport>) -> Self {
        Self {
            bundle: bundle.dir().display().to_string(),
            manifest_sha256: bundle.digest().to_owned(),
            bytes: bundle.manifest().total_bytes(),
            seconds: start.elapsed().as_secs_f64(),
            engines,
        }
    }
}

/// The targets that names stand for, each once.
///
/// # Errors
/// [`Error::Argument`] if there are none.
pub fn resolve_targets(names: &[TargetArg]) -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    for name in names {
        let target = match name {
            TargetArg::Fixed(target) => *target,
            TargetArg::Current => current_target(),
        };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    if targets.is_empty() {
        return Err(Error::Argument {
            name: "target",
            reason: "names no target".to_owned(),
        });
    }
    Ok(targets)
}

/// This machine's first GPU if this program can build for it, else its CPU.
fn current_target() -> Target {
    #[cfg(feature = "tensorrt")]
    if let Ok(driver) = crate::cuda::probe()
        && let Some(device) = driver.devices.first()
        && let Ok(sm) = u16::try_from(device.sm)
    {
        return Target::Sm(sm);
    }
    Target::Cpu
}

/// Builds a bundle from a model folder.
///
/// # Errors
/// [`Error::Exists`] if the output is there, [`Error::Cancelled`] after a stop, and those of
/// reading, preparing and building. Nothing is left behind.
pub fn build(
    model: &Model,
    options: &BuildOptions<'_>,
    on_event: &mut dyn FnMut(&Event),
) -> Result<BuildOutcome> {
    let start = Instant::now();
    let capacity = Capacity::new(
        &model.config,
        options.max_context,
        options.draft_tokens,
        options.max_tiles,
    )?;
    // What a run reads beside the graphs is checked before anything is built.
    Processor::load(&model.dir)?;
    Text::load(&model.dir, &model.config)?;
    let companions = companions(&model.dir)?;
    check_trained(model)?;
    let writer = BundleWriter::create(options.out, options.force)?;
    let (mut sets, mut reports) = (Vec::new(), Vec::new());
    let mut read: BTreeSet<PathBuf> = companions.iter().map(|(_, path)| path.clone()).collect();
    for &target in options.targets {
        let (set, mut made) = match target {
            Target::Sm(sm) if is_portable(sm, options, on_event) => {
                graphs::portable(model, sm, &capacity, options, &writer, &mut read, on_event)?
            }
            Target::Sm(sm) => {
                plans::tensorrt(model, sm, &capacity, options, &writer, &mut read, on_event)?
            }
            _ => engines::graphs(
                target, model, &capacity, options, &writer, &mut read, on_event,
            )?,
        };
        sets.push(set);
        reports.append(&mut made);
    }
    for (name, from) in &companions {
        writer.copy(from, name)?;
    }
    for &target in options.targets {
        if !matches!(target, Target::Sm(_)) {
            on_event(&Event::Check);
            check_graphs(target, model, options.precision, writer.path())?;
            on_event(&Event::Done);
        }
    }
    engines::check_cancel(&options.cancel)?;
    let quantization = match options.numerics().in_use() {
        Some(quantization) => Some(Box::new(quantization.write_reports(&reports, &writer)?)),
        None => {
            if let Some(quantization) = options.quantization {
                quantization.write_calibration(&writer)?;
            }
            None
        }
    };
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let manifest = Manifest {
        schema_version: SCHEMA_VERSION,
        created_by: created_by(),
        command_line: options.command_line.clone(),
        finished_from: None,
        taps: options.cuts.taps.iter().map(Tap::to_string).collect(),
        head_bytes: options.cuts.head_bytes,
        model: ModelInfo {
            family: model.config.family.name.to_owned(),
            name: model.config.name.clone(),
            variant: model.files.variant.clone(),
            sources: source_digests(model, &read)?,
        },
        precision: options.precision,
        quantization,
        kv_capacity: count(capacity.max_context),
        max_context: count(capacity.max_context),
        draft_tokens: count(capacity.draft_tokens),
        vocabulary: count(model.config.vocab),
        buckets: Buckets::default(),
        engines: sets,
        files: Vec::new(),
    };
    let bundle = writer.finish(manifest)?;
    Ok(BuildOutcome::new(&bundle, start, reports))
}

/// Refuses what was trained for another model: in the bundle nobody can tell any more.
fn check_trained(model: &Model) -> Result<()> {
    for kind in DraftKind::ALL {
        if let Some(spec) = DraftSpec::read(&model.dir, kind)? {
            spec.check_words(&model.dir, &model.config)?;
            spec.check_target(model)?;
        }
    }
    for kind in TrainedKind::ALL {
        if let Some(file) = TrainedFile::read(&model.dir, kind)? {
            file.check_words(&model.dir, &model.config)?;
            file.check_target(model)?;
        }
    }
    Ok(())
}

/// Program and version, for manifests.
pub(super) fn created_by() -> String {
    format!("trtvlm {}", env!("CARGO_PKG_VERSION"))
}

/// True if graphs are to be written for an SM and no plans: because the user says so, or because
/// no TensorRT of this machine builds for it, which is told.
fn is_portable(sm: u16, options: &BuildOptions<'_>, on_event: &mut dyn FnMut(&Event)) -> bool {
    if options.portable {
        return true;
    }
    let target = Target::Sm(sm);
    // A machine that cannot build for its own GPU lacks something, which building names.
    if target == current_target() {
        return false;
    }
    let Some(reason) = plans::refused_by_all(sm) else {
        return false;
    };
    on_event(&Event::Portable { target, reason });
    true
}

/// Loads graphs that were written, as a run will, and lets the decoder score one token.
fn check_graphs(target: Target, model: &Model, precision: Precision, dir: &Path) -> Result<()> {
    let graph = |kind: ComponentKind| dir.join(engines::graph_file(target, kind, precision));
    let written = Model {
        dir: dir.to_path_buf(),
        config: ModelConfig::load(dir)?,
        files: ModelFiles {
            variant: model.files.variant.clone(),
            vision: graph(ComponentKind::Vision),
            embed: graph(ComponentKind::Embed),
            decoder: graph(ComponentKind::Decoder),
        },
    };
    Processor::load(dir)?;
    Text::load(dir, &written.config)?;
    let mut backend = CpuBackend::load(&written)?;
    let image_token = written.config.image_token_id;
    backend.prefill(&Prefill {
        ids: &[u32::from(image_token == 0)],
        positions: &[0],
        visual: &[],
        image_token,
        reserve: 1,
    })?;
    Ok(())
}

/// Digests of the files that were read, with paths relative to the model folder.
fn source_digests(model: &Model, read: &BTreeSet<PathBuf>) -> Result<Vec<FileDigest>> {
    read.iter()
        .map(|path| {
            let mut digest = sha256_file(path, |_| {})?;
            let relative = path.strip_prefix(&model.dir).unwrap_or(path);
            digest.path = relative.display().to_string();
            Ok(digest)
        })
        .collect()
}
