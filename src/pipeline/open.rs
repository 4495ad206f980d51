//! Opening a model.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use super::draft_costs::DraftCosts;
use super::nets::Nets;
use super::prune::Chooser;
use super::room::Room;
#[cfg(feature = "tensorrt")]
use crate::backend::TensorRtBackend;
use crate::backend::{Backend, CpuBackend, DraftModel};
use crate::bundle::{Bundle, Engine, EngineSet, MANIFEST, Target};
use crate::cpu::ENGINE_VERSION;
use crate::decode::{Drafter, Learned, MAX_DRAFT, Ngram, Pace, Speculator, Trained};
use crate::digest::sha256_bytes;
use crate::error::{Error, Result};
use crate::limits;
use crate::model::{DraftKind, DraftSpec, Model, ModelConfig, ModelFiles};
use crate::preprocess::Processor;
use crate::read::read_file;
use crate::text::{Text, TextStream};

/// Newest opset of graphs for any runtime that `build` writes.
const NEWEST_OPSET: i64 = 21;

/// A model in memory, ready for questions.
///
/// One pipeline answers one question at a time; open several for several threads.
pub struct Pipeline {
    pub(super) config: ModelConfig,
    pub(super) processor: Processor,
    pub(super) text: Text,
    pub(super) backend: Box<dyn Backend>,
    pub(super) warned_of_crop: bool,
    pub(super) speculator: Speculator,
    /// How long passes take here.
    pub(super) pace: Arc<Pace>,
    /// Ids that close an answer.
    pub(super) eos: Arc<[u32]>,
    pub(super) stream: TextStream,
    /// Who chose visual tokens last.
    pub(super) chooser: Option<Chooser>,
    /// Memory for the next answer.
    pub(super) room: Room,
    /// Where costs of drafts are kept, if the model and the user's cache are known.
    pub(super) draft_costs: Option<DraftCosts>,
    /// Fingerprint of the decoder that its trained drafts were trained on, if it has any.
    drafted_decoder: Option<String>,
    /// What earlier sessions have learned of drafts, as this one found it.
    pub(super) learned_before: Option<Learned>,
    /// Drafts that the model holds and that are not for it, with the reason.
    pub(super) refused_drafts: Vec<(DraftKind, String)>,
    pub(super) nets: Nets,
    backend_name: &'static str,
    precision: String,
}

/// Which engine runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// Plans that a GPU of this machine takes, else graphs on the CPU.
    #[default]
    Auto,
    /// The CPU engine.
    Cpu,
    /// TensorRT.
    TensorRt,
}

/// What a path holds.
pub enum Source {
    /// A model folder in the hub's layout, with the chosen files.
    Folder(Model),
    /// A bundle whose files were verified.
    Bundle(Bundle),
}

impl Source {
    /// Reads the description of a model folder or bundle; `variant` chooses files of a folder.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`] or [`Error::Mismatch`] naming the file.
    pub fn read(path: &Path, variant: Option<&str>) -> Result<Self> {
        if !Bundle::is_bundle(path) {
            return Ok(Self::Folder(Model::load(path, variant)?));
        }
        if variant.is_some() {
            return Err(Error::Argument {
                name: "variant",
                reason: format!("{} is a bundle, which has one", path.display()),
            });
        }
        Ok(Self::Bundle(Bundle::open(path)?))
    }
}

impl Pipeline {
    /// Opens a model folder or a bundle on the engine that it is for.
    ///
    /// # Errors
    /// As [`Pipeline::open_on`].
    pub fn open(path: &Path, variant: Option<&str>) -> Result<Self> {
        Self::open_on(path, variant, Choice::Auto)
    }

    /// Opens the same without what was trained to draft for it: less memory, and no pass keeps anything for a drafter.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_undrafted(path: &Path, variant: Option<&str>) -> Result<Self> {
        Self::open_with(path, variant, Choice::Auto, false)
    }

    /// Opens a model folder or a bundle on the chosen engine.
    ///
    /// # Errors
    /// As [`Source::read`]; [`Error::Unavailable`] if it has nothing for that engine, or the machine has
    /// none; [`Error::Mismatch`] if its plans are for another GPU; [`Error::Shape`], [`Error::Cpu`] or
    /// [`Error::Engine`] if graphs or plans are not the family's.
    pub fn open_on(path: &Path, variant: Option<&str>, choice: Choice) -> Result<Self> {
        Self::open_with(path, variant, choice, true)
    }

    fn open_with(
        path: &Path,
        variant: Option<&str>,
        choice: Choice,
        drafted: bool,
    ) -> Result<Self> {
        let source = Source::read(path, variant)?;
        let has_graphs = match &source {
            Source::Folder(_) => true,
            Source::Bundle(bundle) => has_graphs(bundle),
        };
        let on_gpu = match (choice, &source) {
            (Choice::Cpu, _) | (Choice::Auto, Source::Folder(_)) => None,
            (Choice::TensorRt, Source::Folder(model)) => {
                return Err(Error::Unavailable {
                    what: format!("TensorRT plans in {}", model.dir.display()),
                    reason: "a model folder has none: `trtvlm build` makes a bundle that does"
                        .to_owned(),
                });
            }
            (Choice::Auto, Source::Bundle(bundle)) if !has_plans(bundle) => None,
            (_, Source::Bundle(bundle)) => Some(Self::open_tensorrt(bundle, drafted)),
        };
        match on_gpu {
            Some(Err(error)) if choice == Choice::Auto && has_graphs => {
                tracing::info!("on the CPU engine, since not on a GPU: {error}");
                Self::open_cpu(source, drafted)
            }
            Some(Err(error @ Error::Unavailable { .. })) if choice == Choice::Auto => {
                Err(nothing_runs(&source, &error))
            }
            Some(opened) => opened,
            None => Self::open_cpu(source, drafted),
        }
    }

    /// Opens the plans of a bundle.
    #[cfg(feature = "tensorrt")]
    fn open_tensorrt(bundle: &Bundle, drafted: bool) -> Result<Self> {
        let manifest = bundle.manifest();
        let mut config = ModelConfig::load(bundle.dir())?;
        manifest.check_config(&bundle.dir().join(MANIFEST), &config)?;
        let backend = TensorRtBackend::open(bundle, &config)?;
        let engine = backend.engine().to_owned();
        config.max_positions = config.max_positions.min(manifest.max_context as usize);
        let precision = manifest.precision.to_string();
        let mut drafts = match drafted {
            true => Drafts::find(bundle.dir(), &config, |_| Ok(())),
            false => Drafts::default(),
        };
        let drafted_decoder = drafts.decoder();
        let models = drafts.load_beside(&backend, bundle.dir());
        let mut pipeline = Self::of_parts(
            bundle.dir(),
            config,
            precision,
            "tensorrt",
            Box::new(backend),
        )?;
        pipeline.drafted_decoder = drafted_decoder.filter(|_| !models.is_empty());
        pipeline.add_drafters(models);
        pipeline.speculator.limit(manifest.draft_tokens as usize);
        pipeline.refused_drafts = drafts.refused;
        // The build has compared them with the weights.
        pipeline.nets = Nets::find(bundle.dir(), &pipeline.config, |_| Ok(()));
        pipeline.draft_costs = DraftCosts::of(bundle.digest(), &engine);
        Ok(pipeline)
    }

    #[cfg(not(feature = "tensorrt"))]
    fn open_tensorrt(_: &Bundle, _: bool) -> Result<Self> {
        Err(Error::Unavailable {
            what: "the TensorRT backend".to_owned(),
            reason: "this program was built without the feature `tensorrt`".to_owned(),
        })
    }

    fn open_cpu(source: Source, drafted: bool) -> Result<Self> {
        let find = |model: &Model, check: &dyn Fn(&DraftSpec) -> Result<()>| match drafted {
            true => Drafts::find(&model.dir, &model.config, check),
            false => Drafts::default(),
        };
        let mut most_drafts = MAX_DRAFT;
        let (model, precision, identity, mut drafts, nets) = match source {
            Source::Folder(model) => {
                let variant = model.files.variant.clone();
                // A file of weights that came later must not make the model useless.
                let drafts = find(&model, &|spec| spec.check_target(&model));
                let nets = Nets::find(&model.dir, &model.config, |file| file.check_target(&model));
                let identity = folder_identity(&model, &drafts.fit)?;
                (model, variant, identity, drafts, nets)
            }
            Source::Bundle(bundle) => {
                let (model, precision) = cpu_model(&bundle)?;
                most_drafts = bundle.manifest().draft_tokens as usize;
                // The build has compared them with the weights.
                let drafts = find(&model, &|_| Ok(()));
                let nets = Nets::find(&model.dir, &model.config, |_| Ok(()));
                let identity = bundle.digest().to_owned();
                (model, precision, identity, drafts, nets)
            }
        };
        let drafted_decoder = drafts.decoder();
        let (backend, models) = drafts.load(&model)?;
        let mut pipeline = Self::with_backend(model, precision, "cpu", Box::new(backend))?;
        pipeline.drafted_decoder = drafted_decoder.filter(|_| !models.is_empty());
        pipeline.add_drafters(models);
        pipeline.speculator.limit(most_drafts);
        pipeline.refused_drafts = drafts.refused;
        pipeline.nets = nets;
        let engine = format!("cpu {ENGINE_VERSION}");
        pipeline.draft_costs = DraftCosts::of(&identity, &engine);
        Ok(pipeline)
    }

    /// Reads what a model folder has beside its graphs, which `backend` runs.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Malformed`] naming the file.
    pub fn with_backend(
        model: Model,
        precision: String,
        backend_name: &'static str,
        backend: Box<dyn Backend>,
    ) -> Result<Self> {
        Self::of_parts(&model.dir, model.config, precision, backend_name, backend)
    }

    fn of_parts(
        dir: &Path,
        config: ModelConfig,
        precision: String,
        backend_name: &'static str,
        backend: Box<dyn Backend>,
    ) -> Result<Self> {
        let text = Text::load(dir, &config)?;
        Ok(Self {
            processor: Processor::load(dir)?,
            stream: text.stream(),
            text,
            backend,
            warned_of_crop: false,
            speculator: Speculator::new(vec![Box::new(Ngram::new())]),
            pace: Arc::new(Pace::default()),
            eos: config.eos.as_slice().into(),
            chooser: None,
            room: Room::default(),
            draft_costs: None,
            drafted_decoder: None,
            learned_before: None,
            refused_drafts: Vec::new(),
            nets: Nets::default(),
            backend_name,
            precision,
            config,
        })
    }

    /// Lets trained drafts propose, too.
    fn add_drafters(&mut self, models: Vec<Box<dyn DraftModel>>) {
        let mut drafters: Vec<Box<dyn Drafter>> = vec![Box::new(Ngram::new())];
        for model in models {
            drafters.push(Box::new(Trained::new(model, &self.config.eos)));
        }
        self.speculator = Speculator::new(drafters);
    }

    /// What is known of the model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Side of the images that frames become, in pixels.
    pub fn side(&self) -> usize {
        self.processor.side()
    }

    /// Name of the backend that answers.
    pub fn backend_name(&self) -> &'static str {
        self.backend_name
    }

    /// Precision of the weights.
    pub fn precision(&self) -> &str {
        &self.precision
    }

    /// Fingerprint of the decoder that the trained drafts at hand were trained on; `None` without any.
    pub fn drafted_decoder(&self) -> Option<&str> {
        self.drafted_decoder.as_deref()
    }
}

/// The trained drafts of a model.
#[derive(Default)]
struct Drafts {
    fit: Vec<DraftSpec>,
    refused: Vec<(DraftKind, String)>,
}

impl Drafts {
    /// Reads and checks them, with one check more.
    fn find(dir: &Path, config: &ModelConfig, check: impl Fn(&DraftSpec) -> Result<()>) -> Self {
        let mut drafts = Self::default();
        for kind in DraftKind::ALL {
            let checked = DraftSpec::read(dir, kind).and_then(|spec| {
                if let Some(spec) = &spec {
                    spec.check_words(dir, config)?;
                    check(spec)?;
                }
                Ok(spec)
            });
            match checked {
                Ok(spec) => drafts.fit.extend(spec),
                Err(error) => {
                    tracing::warn!("{error}; nothing is drafted with it");
                    drafts.refused.push((kind, error.to_string()));
                }
            }
        }
        drafts
    }

    /// Fingerprint of the decoder that they were trained on.
    fn decoder(&self) -> Option<String> {
        let target = self.fit.first()?.targets.first()?;
        Some(target.fingerprint.clone())
    }

    /// Loads those that can run beside plans.
    #[cfg(feature = "tensorrt")]
    fn load_beside(&mut self, backend: &TensorRtBackend, dir: &Path) -> Vec<Box<dyn DraftModel>> {
        let mut models = Vec::new();
        for spec in std::mem::take(&mut self.fit) {
            let kind = spec.kind;
            match backend.draft(dir, spec) {
                Ok(model) => models.push(model),
                Err(error) => {
                    tracing::info!("{error}; nothing is drafted with it");
                    self.refused.push((kind, error.to_string()));
                }
            }
        }
        models
    }

    /// Loads the model with them; without them, if its graph does not give what they need.
    fn load(&mut self, model: &Model) -> Result<(CpuBackend, Vec<Box<dyn DraftModel>>)> {
        let fit = std::mem::take(&mut self.fit);
        let kinds: Vec<DraftKind> = fit.iter().map(|spec| spec.kind).collect();
        match CpuBackend::load_with_drafts(model, fit) {
            Err(error) if !kinds.is_empty() => {
                let backend = CpuBackend::load(model)?;
                tracing::warn!("{error}; nothing is drafted with what was trained for the model");
                let refused = kinds.into_iter().map(|kind| (kind, error.to_string()));
                self.refused.extend(refused);
                Ok((backend, Vec::new()))
            }
            loaded => loaded,
        }
    }
}

/// Engine sets whose graphs the CPU engine runs, the one that was written for it first.
const GRAPH_TARGETS: [Target; 2] = [Target::Cpu, Target::Onnx];

/// Whether a bundle has graphs for the CPU engine.
fn has_graphs(bundle: &Bundle) -> bool {
    let has = |&target: &Target| bundle.manifest().engine_set(target).is_some();
    GRAPH_TARGETS.iter().any(has)
}

/// Why nothing of a bundle without graphs runs on this machine: its plans do not, for the reason of `error`.
fn nothing_runs(source: &Source, error: &Error) -> Error {
    let (what, targets) = match source {
        Source::Folder(model) => (model.dir.display(), String::new()),
        Source::Bundle(bundle) => (bundle.dir().display(), targets_of(bundle)),
    };
    Error::Unavailable {
        what: format!("an engine for {what}"),
        reason: format!(
            "it was built for {targets}, and {error}; for the CPU build with `--target cpu`, or run the model folder"
        ),
    }
}

/// The targets of a bundle, for people.
fn targets_of(bundle: &Bundle) -> String {
    let sets = bundle.manifest().engines.iter();
    let targets: Vec<String> = sets.map(|set| set.target.to_string()).collect();
    targets.join(", ")
}

/// Whether a bundle has plans for any GPU.
fn has_plans(bundle: &Bundle) -> bool {
    let plans = |set: &EngineSet| matches!(set.target, Target::Sm(_)) && !set.is_portable();
    bundle.manifest().engines.iter().any(plans)
}

/// The graphs of a bundle that the CPU engine runs, described as if they were a model folder:
/// those that were written for it, else those for any runtime.
fn cpu_model(bundle: &Bundle) -> Result<(Model, String)> {
    let manifest = bundle.manifest();
    let mut targets = GRAPH_TARGETS.into_iter();
    let Some(target) = targets.find(|&target| manifest.engine_set(target).is_some()) else {
        let targets = targets_of(bundle);
        return Err(Error::Unavailable {
            what: format!("an engine for the CPU in {}", bundle.dir().display()),
            reason: match manifest.engines.iter().any(EngineSet::is_portable) {
                true => format!(
                    "it holds graphs for {targets}: `trtvlm build` on that machine makes engines of them"
                ),
                false => format!(
                    "it was built for {targets}; build with `--target cpu` or run the model folder"
                ),
            },
        });
    };
    let engine = match target {
        Target::Cpu => Engine::cpu(ENGINE_VERSION),
        _ => Engine::graphs(NEWEST_OPSET),
    };
    let set = bundle.check_target(target, &engine)?;
    let config = ModelConfig::load(bundle.dir())?;
    manifest.check_config(&bundle.dir().join(MANIFEST), &config)?;
    let file = |name: &str| {
        let component = set.component(name);
        component.and_then(|c| bundle.file(&c.file)).ok_or_else(|| {
            Error::malformed(
                bundle.dir(),
                format!("its manifest names no {name} graph for the CPU"),
            )
        })
    };
    let model = Model {
        config,
        files: ModelFiles {
            variant: manifest.model.variant.clone(),
            vision: file("vision")?,
            embed: file("embed")?,
            decoder: file("decoder")?,
        },
        dir: bundle.dir().to_path_buf(),
    };
    Ok((model, manifest.precision.to_string()))
}

/// Bytes of a graph that tell it from others of the same size.
const IDENTITY_BYTES: u64 = 64 << 10;

/// What tells a model folder from others, without reading all of its weights: what passes cost
/// depends on shapes and kernels, which the configuration, the variant and the beginning and size of the decoder
/// decide, and what drafts cost on their graphs.
fn folder_identity(model: &Model, drafts: &[DraftSpec]) -> Result<String> {
    let path = model.dir.join("config.json");
    let mut told = read_file(&path, limits::TEXT_FILE_BYTES)?;
    told.extend_from_slice(model.files.variant.as_bytes());
    for draft in drafts {
        told.extend_from_slice(draft.graph_sha256.as_bytes());
    }
    let decoder = &model.files.decoder;
    let file = File::open(decoder).map_err(Error::io(decoder))?;
    let size = file.metadata().map_err(Error::io(decoder))?.len();
    told.extend_from_slice(&size.to_le_bytes());
    let read = file.take(IDENTITY_BYTES).read_to_end(&mut told);
    read.map_err(Error::io(decoder))?;
    Ok(sha256_bytes(&told))
}
