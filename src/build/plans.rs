//! Plans: TensorRT's engines, each built in a child process from a graph that is saved for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::component::COMPONENTS;
use super::engines::{ENGINES, EngineReport, check_cancel, part};
use super::graphs::{SavedGraph, save_graph};
use super::order::{BuildOptions, Event};
use super::shapes::Capacity;
use crate::bundle::{
    BundleWriter, Component, Engine, EngineSet, Flavour, Precision, Profile, ProfileInput, Target,
    TensorInfo,
};
use crate::error::{Error, Result};
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
    let target = Target::Sm(sm);
    let (mut components, mut reports, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let mut engine = None;
    for kind in COMPONENTS {
        check_cancel(&options.cancel)?;
        on_event(&Event::Start {
            target,
            component: kind.name(),
        });
        let start = Instant::now();
        let work = Work::create(writer)?;
        let graph = save_graph(kind, model, sm, capacity, options, &work.path, read)?;
        let mut plan = build_plan(graph, sm, options, writer, on_event)?;
        plan.report.seconds = start.elapsed().as_secs_f64();
        memory.push(part(&format!("{} plan", kind.name()), plan.report.bytes));
        reports.push(plan.report);
        components.push(plan.component);
        engine = Some(plan.engine);
        on_event(&Event::Done);
    }
    let element_bytes = if options.precision == Precision::Fp32 {
        4
    } else {
        2
    };
    memory.push(part(
        "kv cache",
        capacity.kv_bytes(&model.config, element_bytes),
    ));
    let engine = engine.ok_or_else(|| Error::Unavailable {
        what: "TensorRT".to_owned(),
        reason: "no component was built".to_owned(),
    })?;
    Ok((
        EngineSet {
            target,
            engine,
            components,
            memory,
        },
        reports,
    ))
}

/// A plan that was built.
struct Plan {
    component: Component,
    engine: Engine,
    report: EngineReport,
}

/// Builds the plan of a saved graph in a child process.
fn build_plan(
    graph: SavedGraph,
    sm: u16,
    options: &BuildOptions<'_>,
    writer: &BundleWriter,
    on_event: &mut dyn FnMut(&Event),
) -> Result<Plan> {
    let start = Instant::now();
    let target = Target::Sm(sm);
    let mut component = graph.component;
    component.file = format!("{ENGINES}/{}.{target}.plan", graph.kind.name());
    let plan = writer.file(&component.file)?;
    let mut spec = trt::BuildSpec::new(graph.onnx, plan, trt::Sm::Sm(u32::from(sm)));
    spec.profiles = component.profiles.iter().map(trt_profile).collect();
    spec.workspace_bytes = options.workspace_bytes;
    spec.timing_cache = options.timing_cache.map(Path::to_path_buf);
    spec.weight_bytes = Some(graph.weight_bytes);
    let mut fraction = trt::Fraction::default();
    let report = trt::build_in_child(
        &spec,
        options.worker,
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
        &options.cancel,
    )?;
    component.inputs = tensors(&report.io, trt::IoMode::Input);
    component.outputs = tensors(&report.io, trt::IoMode::Output);
    Ok(Plan {
        engine: Engine {
            flavour: match report.flavour {
                trt::Flavour::Rtx => Flavour::TensorRtRtx,
                _ => Flavour::TensorRt,
            },
            version: report.version.to_string(),
        },
        report: EngineReport {
            target: target.to_string(),
            component: graph.kind.name(),
            file: component.file.clone(),
            bytes: report.plan_bytes,
            seconds: start.elapsed().as_secs_f64(),
            peak_memory_bytes: report.peak_rss_bytes,
            quantized: graph.quantized,
        },
        component,
    })
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
