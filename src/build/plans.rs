//! Plans: TensorRT's engines, each built in a child process from a graph that is saved for it. The embedding
//! table stays a graph: nothing is computed there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::component::{COMPONENTS, ComponentKind};
use super::engines::{ENGINES, EngineReport, check_cancel, part};
use super::graphs::{KV_CACHE, SavedGraph, graph_name, kv_cache, save_graph};
use super::kernels;
use super::order::{BuildOptions, Builder, Event};
use super::shapes::Capacity;
use crate::bundle::{
    Bundle, BundleWriter, Component, Engine, EngineSet, Flavour, Part, Profile, ProfileInput,
    Target, TensorInfo,
};
use crate::error::{Error, Result};
use crate::huge_pages;
use crate::model::Model;
use crate::trt;

/// Hidden subcommand of the worker process that builds one plan.
pub const WORKER_COMMAND: &str = "build-plan";

/// Builds TensorRT plans for one SM; the files that they came from are added to `read`.
pub(super) fn tensorrt(
    model: &Model,
    sm: u16,
    capacity: &Capacity,
    options: &BuildOptions<'_>,
    writer: &BundleWriter,
    read: &mut BTreeSet<PathBuf>,
    on_event: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    let mut plans = Plans::new(sm, options.builder(), writer);
    for kind in COMPONENTS {
        plans.begin(kind, on_event)?;
        let start = Instant::now();
        let work = Work::create(writer)?;
        let graph = save_graph(kind, model, sm, capacity, options, &work.path, read)?;
        plans.add(graph, start, on_event)?;
    }
    plans.finish(kv_cache(capacity, &model.config, options.precision))
}

/// Builds TensorRT plans from the graphs of a portable bundle.
pub(super) fn from_graphs(
    bundle: &Bundle,
    set: &EngineSet,
    sm: u16,
    builder: Builder<'_>,
    writer: &BundleWriter,
    on_event: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    let mut plans = Plans::new(sm, builder, writer);
    for component in &set.components {
        let graph = SavedGraph::of_bundle(bundle, component)?;
        plans.begin(graph.kind, on_event)?;
        plans.add(graph, Instant::now(), on_event)?;
    }
    let cache = set.memory.iter().find(|part| part.name == KV_CACHE);
    plans.finish(cache.cloned().unwrap_or_else(|| part(KV_CACHE, 0)))
}

/// Whether a TensorRT of this machine builds plans for an SM; `Some` says what those that are
/// here build for. Without any that builds at all the answer is `None`: building says what is
/// missing.
pub(super) fn refused_by_all(sm: u16) -> Option<String> {
    trt::refused_by_all(trt::Sm::Sm(u32::from(sm)))
}

/// The plans of one target, as far as they are built.
struct Plans<'a> {
    sm: u16,
    builder: Builder<'a>,
    writer: &'a BundleWriter,
    components: Vec<Component>,
    memory: Vec<Part>,
    reports: Vec<EngineReport>,
    engine: Option<Engine>,
}

impl<'a> Plans<'a> {
    fn new(sm: u16, builder: Builder<'a>, writer: &'a BundleWriter) -> Self {
        Self {
            sm,
            builder,
            writer,
            components: Vec::new(),
            memory: Vec::new(),
            reports: Vec::new(),
            engine: None,
        }
    }

    fn begin(&self, kind: ComponentKind, on_event: &mut dyn FnMut(&Event)) -> Result<()> {
        check_cancel(self.builder.cancel)?;
        on_event(&Event::Start {
            target: Target::Sm(self.sm),
            component: kind.name(),
        });
        Ok(())
    }

    /// Makes of the next graph, which was begun at `start`, what runs.
    fn add(
        &mut self,
        mut graph: SavedGraph,
        start: Instant,
        on_event: &mut dyn FnMut(&Event),
    ) -> Result<()> {
        let (kind, quantized) = (graph.kind, graph.quantized.take());
        let made = match kind {
            ComponentKind::Embed => self.keep(graph)?,
            ComponentKind::Vision | ComponentKind::Decoder => self.build(graph, on_event)?,
        };
        self.memory.push(made.memory);
        self.reports.push(EngineReport {
            target: Target::Sm(self.sm).to_string(),
            component: kind.name(),
            file: made.component.file.clone(),
            bytes: made.bytes,
            seconds: start.elapsed().as_secs_f64(),
            peak_memory_bytes: made.peak_memory_bytes,
            quantized,
        });
        self.components.push(made.component);
        on_event(&Event::Done);
        Ok(())
    }

    /// Takes the graph as it is: the table in it is all that a kernel of ours needs.
    fn keep(&self, graph: SavedGraph) -> Result<Made> {
        let mut component = graph.component;
        component.profiles.clear();
        component.file = format!("{ENGINES}/{}", graph_name(graph.kind, self.sm));
        // Weights lie beside a graph, under the name that it knows them by.
        for file in &component.graph {
            let from = graph.onnx.with_file_name(&file.path);
            self.writer
                .copy(&from, &format!("{ENGINES}/{}", file.path))?;
        }
        Ok(Made {
            bytes: component.graph.iter().map(|file| file.bytes).sum(),
            component,
            memory: part("embedding table", graph.weight_bytes),
            peak_memory_bytes: 0,
        })
    }

    /// Builds a plan in a child process.
    fn build(&mut self, graph: SavedGraph, on_event: &mut dyn FnMut(&Event)) -> Result<Made> {
        let target = Target::Sm(self.sm);
        let name = graph.kind.name();
        let mut component = graph.component;
        component.file = format!("{ENGINES}/{name}.{target}.plan");
        let plan = self.writer.file(&component.file)?;
        let mut spec = trt::BuildSpec::new(graph.onnx, plan, trt::Sm::Sm(u32::from(self.sm)));
        spec.profiles = component.profiles.iter().map(trt_profile).collect();
        spec.workspace_bytes = self.builder.workspace_bytes;
        spec.timing_cache = self.builder.timing_cache.map(Path::to_path_buf);
        spec.weight_bytes = Some(graph.weight_bytes);
        let mut fraction = trt::Fraction::default();
        huge_pages::give_back();
        let report = trt::build_in_child(
            &spec,
            self.builder.worker,
            &[WORKER_COMMAND],
            &mut |progress| {
                on_event(&Event::Progress {
                    fraction: fraction.update(progress),
                    phase: match progress {
                        trt::Progress::PhaseStart { phase, .. } => Some(phase.clone()),
                        _ => None,
                    },
                });
            },
            self.builder.cancel,
        )?;
        component.inputs = tensors(&report.io, trt::IoMode::Input);
        component.outputs = tensors(&report.io, trt::IoMode::Output);
        self.engine = Some(Engine {
            flavour: match report.flavour {
                trt::Flavour::Rtx => Flavour::TensorRtRtx,
                _ => Flavour::TensorRt,
            },
            version: report.version.to_string(),
        });
        Ok(Made {
            component,
            memory: part(&format!("{name} plan"), report.plan_bytes),
            bytes: report.plan_bytes,
            peak_memory_bytes: report.peak_rss_bytes,
        })
    }

    fn finish(mut self, cache: Part) -> Result<(EngineSet, Vec<EngineReport>)> {
        self.memory.push(cache);
        let engine = self.engine.ok_or_else(|| Error::Unavailable {
            what: "TensorRT".to_owned(),
            reason: "no component was built".to_owned(),
        })?;
        let set = EngineSet {
            target: Target::Sm(self.sm),
            engine,
            components: self.components,
            memory: self.memory,
            kernels: kernels::compile(self.sm, self.writer)?,
        };
        Ok((set, self.reports))
    }
}

/// What became of a graph.
struct Made {
    component: Component,
    /// What it holds in the device's memory.
    memory: Part,
    bytes: u64,
    peak_memory_bytes: u64,
}

/// A folder for what the builder reads, inside the unfinished bundle so that whatever removes
/// that removes this.
struct Work {
    path: PathBuf,
}

impl Work {
    fn create(writer: &BundleWriter) -> Result<Self> {
        let path = writer.path().join("work");
        std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        Ok(Self { path })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!("{}: {e}", self.path.display());
        }
    }
}

fn trt_profile(profile: &Profile) -> trt::Profile {
    let signed = |shape: &[u64]| shape.iter().map(|&n| n as i64).collect();
    let range = |input: &ProfileInput| trt::DimRange {
        input: input.name.clone(),
        min: signed(&input.min),
        opt: signed(&input.opt),
        max: signed(&input.max),
    };
    trt::Profile {
        dims: profile.inputs.iter().map(range).collect(),
    }
}

fn tensors(io: &[trt::TensorDesc], mode: trt::IoMode) -> Vec<TensorInfo> {
    let extent = |&n: &i64| u64::try_from(n).map_or_else(|_| "?".to_owned(), |n| n.to_string());
    io.iter()
        .filter(|tensor| tensor.mode == mode)
        .map(|t| TensorInfo::new(&t.name, &t.dtype, t.shape.iter().map(extent)))
        .collect()
}
