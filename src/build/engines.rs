//! Making the engines of one target.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::component::{COMPONENTS, ComponentKind, Prepared, Runner, prepare};
use super::order::{BuildOptions, Event};
use super::shapes::Capacity;
use crate::bundle::{BundleWriter, Component, Engine, EngineSet, Part, Target, TensorInfo};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::onnx::{Dim, OnnxModel, ValueType};
use crate::quantize::QuantizeReport;

/// Folder of a bundle that holds its engines.
pub(super) const ENGINES: &str = "engines";

/// A component's graph for the CPU engine.
pub(super) fn cpu_file(kind: ComponentKind) -> String {
    format!("{ENGINES}/{}.onnx", kind.name())
}

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
    /// What became integers, for the report in the bundle.
    #[serde(skip)]
    pub quantized: Option<QuantizeReport>,
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
        let Prepared { graph, report } = prepare(
            kind,
            model,
            Runner::Cpu,
            options.numerics(),
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
            quantized: report,
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

pub(super) fn check_cancel(cancel: &AtomicBool) -> Result<()> {
    match cancel.load(Ordering::Relaxed) {
        true => Err(Error::Cancelled),
        false => Ok(()),
    }
}

pub(super) fn component(kind: ComponentKind, file: String, graph: &OnnxModel) -> Component {
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

pub(super) fn part(name: &str, bytes: u64) -> Part {
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
