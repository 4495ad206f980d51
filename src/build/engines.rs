//! Making the engines of one target.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::component::{COMPONENTS, ComponentKind, Runner, prepare};
use super::order::{BuildOptions, Event};
use super::shapes::Capacity;
use crate::bundle::{BundleWriter, Component, Engine, EngineSet, Part, Target, TensorInfo};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::onnx::{Dim, OnnxModel, ValueType};

/// Folder of a bundle that holds its engines.
const ENGINES: &str = "engines";

/// A component's graph for the CPU engine.
pub(super) fn cpu_file(kind: ComponentKind) -> String {
    format!("{ENGINES}/{}.onnx", kind.name())
}

/// Hidden subcommand of the worker process that builds one plan.
pub const WORKER_COMMAND: &str = "build-plan";

/// What building one component took.
#[derive(Debug, Clone, Serialize)]
pub struct EngineReport {
    /// The target, as in the manifest.
    pub target: String,
    /// The component.
    pub component: &'static str,
    /// Its file in the bundle.
    pub file: String,
    /// Size of the file, with its weights.
    pub bytes: u64,
    /// Wall time.
    pub seconds: f64,
    /// Largest resident memory of the process that built it; 0 for graphs, which this process
    /// writes.
    pub peak_memory_bytes: u64,
}

/// Writes the graphs that the CPU engine runs as they are; the files that they came from are added
/// to `read`.
pub(super) fn cpu(
    model: &Model,
    capacity: &Capacity,
    options: &BuildOptions<'_>,
    writer: &BundleWriter,
    read: &mut BTreeSet<PathBuf>,
    on_event: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    let (mut components, mut reports, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for kind in COMPONENTS {
        check_cancel(&options.cancel)?;
        on_event(&Event::Start {
            target: Target::Cpu,
            component: kind.name(),
        });
        let start = Instant::now();
        let graph = prepare(
            kind,
            model,
            Runner::Cpu,
            options.precision,
            capacity,
            &options.cancel,
        )?;
        read.extend(graph.sources().iter().map(|source| source.path.clone()));
        let file = cpu_file(kind);
        let path = writer.file(&file)?;
        graph.save(&path)?;
        let bytes = size_with_data(&path)?;
        components.push(component(kind, file.clone(), &graph));
        if kind != ComponentKind::Embed {
            // Weights are held in FP32; the embedding table is read where it lies.
            let elements: u64 = graph.weight_elements();
            memory.push(part(&format!("{} weights", kind.name()), elements * 4));
        }
        reports.push(EngineReport {
            target: Target::Cpu.to_string(),
            component: kind.name(),
            file,
            bytes,
            seconds: start.elapsed().as_secs_f64(),
            peak_memory_bytes: 0,
        });
        on_event(&Event::Done);
    }
    memory.push(part("kv cache", capacity.kv_bytes(&model.config, 4)));
    let set = EngineSet {
        target: Target::Cpu,
        engine: Engine::cpu(crate::cpu::ENGINE_VERSION),
        components,
        memory,
    };
    Ok((set, reports))
}

/// Builds TensorRT plans for one SM; the files that they came from are added to `read`.
#[cfg(feature = "tensorrt")]
pub(super) fn tensorrt(
    model: &Model,
    sm: u16,
    capacity: &Capacity,
    options: &BuildOptions<'_>,
    writer: &BundleWriter,
    read: &mut BTreeSet<PathBuf>,
    on_event: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    use super::shapes::profiles;
    use crate::bundle::Flavour;
    use crate::trt;

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
        let graph = prepare(
            kind,
            model,
            Runner::TensorRt,
            options.precision,
            capacity,
            &options.cancel,
        )?;
        read.extend(graph.sources().iter().map(|source| source.path.clone()));
        let profiles = profiles(kind, &graph, &model.config, capacity)?;
        let weight_bytes = graph.weight_bytes();
        let work = Work::create(writer)?;
        let onnx = work.path.join(format!("{}.onnx", kind.name()));
        graph.save(&onnx)?;
        let mut made = component(
            kind,
            format!("{ENGINES}/{}.{target}.plan", kind.name()),
            &graph,
        );
        drop(graph);

        let plan = writer.file(&made.file)?;
        let mut spec = trt::BuildSpec::new(onnx, plan, trt::Sm::Sm(u32::from(sm)));
        spec.profiles = profiles.iter().map(trt_profile).collect();
        spec.workspace_bytes = options.workspace_bytes;
        spec.timing_cache = options.timing_cache.map(Path::to_path_buf);
        spec.weight_bytes = Some(weight_bytes);
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
        made.profiles = profiles;
        made.inputs = tensors(&report.io, trt::IoMode::Input);
        made.outputs = tensors(&report.io, trt::IoMode::Output);
        memory.push(part(&format!("{} plan", kind.name()), report.plan_bytes));
        reports.push(EngineReport {
            target: target.to_string(),
            component: kind.name(),
            file: made.file.clone(),
            bytes: report.plan_bytes,
            seconds: start.elapsed().as_secs_f64(),
            peak_memory_bytes: report.peak_rss_bytes,
        });
        components.push(made);
        engine = Some(Engine {
            flavour: match report.flavour {
                trt::Flavour::Rtx => Flavour::TensorRtRtx,
                _ => Flavour::TensorRt,
            },
            version: report.version.to_string(),
        });
        on_event(&Event::Done);
    }
    let element_bytes = if options.precision == crate::bundle::Precision::Fp32 {
        4
    } else {
        2
    };
    memory.push(part(
        "kv cache",
        capacity.kv_bytes(&model.config, element_bytes),
    ));
    let engine = engine.ok_or_else(|| unavailable("no component was built"))?;
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

/// Says that this binary has no TensorRT.
#[cfg(not(feature = "tensorrt"))]
pub(super) fn tensorrt(
    _: &Model,
    sm: u16,
    _: &Capacity,
    _: &BuildOptions<'_>,
    _: &BundleWriter,
    _: &mut BTreeSet<PathBuf>,
    _: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    Err(unavailable(&format!(
        "engines for sm{sm} need a binary built with `--features tensorrt` (see `make sdk`)"
    )))
}

fn unavailable(reason: &str) -> Error {
    Error::Unavailable {
        what: "TensorRT".to_owned(),
        reason: reason.to_owned(),
    }
}

pub(super) fn check_cancel(cancel: &AtomicBool) -> Result<()> {
    match cancel.load(Ordering::Relaxed) {
        true => Err(Error::Cancelled),
        false => Ok(()),
    }
}

fn component(kind: ComponentKind, file: String, graph: &OnnxModel) -> Component {
    let describe = |values: Vec<ValueType>| values.iter().map(tensor_info).collect();
    Component {
        name: kind.name().to_owned(),
        file,
        inputs: describe(graph.graph().inputs()),
        outputs: describe(graph.graph().outputs()),
        profiles: Vec::new(),
    }
}

fn tensor_info(value: &ValueType) -> TensorInfo {
    let dtype = value
        .dtype
        .map_or_else(|| "?".to_owned(), |dtype| dtype.to_string());
    let dims = value.dims.iter().flatten().map(Dim::to_string);
    TensorInfo::new(&value.name, dtype, dims)
}

fn part(name: &str, bytes: u64) -> Part {
    Part {
        name: name.to_owned(),
        bytes,
    }
}

/// Bytes of a graph and of the weights beside it.
fn size_with_data(path: &Path) -> Result<u64> {
    let mut data = path.as_os_str().to_owned();
    data.push(".data");
    let graph = std::fs::metadata(path).map_err(Error::io(path))?.len();
    Ok(graph + std::fs::metadata(PathBuf::from(data)).map_or(0, |meta| meta.len()))
}

/// A folder for what the builder reads, inside the unfinished bundle so that whatever removes
/// that removes this.
#[cfg(feature = "tensorrt")]
struct Work {
    path: PathBuf,
}

#[cfg(feature = "tensorrt")]
impl Work {
    fn create(writer: &BundleWriter) -> Result<Self> {
        let path = writer.path().join("work");
        std::fs::create_dir_all(&path).map_err(Error::io(&path))?;
        Ok(Self { path })
    }
}

#[cfg(feature = "tensorrt")]
impl Drop for Work {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!("{}: {e}", self.path.display());
        }
    }
}

#[cfg(feature = "tensorrt")]
fn trt_profile(profile: &crate::bundle::Profile) -> crate::trt::Profile {
    let signed = |shape: &[u64]| shape.iter().map(|&n| n as i64).collect();
    let range = |input: &crate::bundle::ProfileInput| crate::trt::DimRange {
        input: input.name.clone(),
        min: signed(&input.min),
        opt: signed(&input.opt),
        max: signed(&input.max),
    };
    crate::trt::Profile {
        dims: profile.inputs.iter().map(range).collect(),
    }
}

#[cfg(feature = "tensorrt")]
fn tensors(io: &[crate::trt::TensorDesc], mode: crate::trt::IoMode) -> Vec<TensorInfo> {
    let extent = |&n: &i64| u64::try_from(n).map_or_else(|_| "?".to_owned(), |n| n.to_string());
    io.iter()
        .filter(|tensor| tensor.mode == mode)
        .map(|t| TensorInfo::new(&t.name, &t.dtype, t.shape.iter().map(extent)))
        .collect()
}
