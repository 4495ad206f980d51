//! Making the engines of one target.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use super::component::{COMPONENTS, ComponentKind, Prepared, Runner, prepare};
use super::order::{BuildOptions, Event};
use super::shapes::Capacity;
use crate::bundle::{
    BundleWriter, Component, Engine, EngineSet, Part, Precision, Target, TensorInfo,
};
use crate::error::{Error, Result};
use crate::model::{Model, file_names};
use crate::onnx::{Dim, OnnxModel, ValueType};
use crate::quantize::QuantizeReport;

/// Folder of a bundle that holds its engines.
pub(super) const ENGINES: &str = "engines";

/// Folder of a model folder that holds its graphs.
const PUBLISHED: &str = "onnx";

/// A component's graph in a bundle: `engines/decoder.onnx` for the CPU engine, and for any runtime
/// the name under which a hub publishes it, `onnx/decoder_model_merged_fp16.onnx`.
pub(super) fn graph_file(target: Target, kind: ComponentKind, precision: Precision) -> String {
    match target {
        Target::Onnx => {
            let [vision, embed, decoder] = file_names(&precision.to_string());
            let name = match kind {
                ComponentKind::Vision => vision,
                ComponentKind::Embed => embed,
                ComponentKind::Decoder => decoder,
            };
            format!("{PUBLISHED}/{name}")
        }
        _ => format!("{ENGINES}/{}.onnx", kind.name()),
    }
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

/// Writes graphs that are run as they are: by the CPU engine, or by any runtime in the layout of
/// hubs. The files that they came from are added to `read`.
pub(super) fn graphs(
    target: Target,
    model: &Model,
    capacity: &Capacity,
    options: &BuildOptions<'_>,
    writer: &BundleWriter,
    read: &mut BTreeSet<PathBuf>,
    on_event: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    let is_cpu = target == Target::Cpu;
    let runner = if is_cpu { Runner::Cpu } else { Runner::Onnx };
    let (mut components, mut reports, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let mut opset = 0;
    for kind in COMPONENTS {
        check_cancel(&options.cancel)?;
        on_event(&Event::Start {
            target,
            component: kind.name(),
        });
        let start = Instant::now();
        let Prepared { graph, report } = prepare(
            kind,
            model,
            runner,
            options.numerics(),
            &options.cuts,
            capacity,
            &options.cancel,
        )?;
        read.extend(graph.sources().iter().map(|source| source.path.clone()));
        let file = graph_file(target, kind, options.precision);
        let path = writer.file(&file)?;
        if is_cpu {
            graph.save(&path)?;
        } else {
            graph.save_published(&path)?;
        }
        opset = opset.max(graph.opset("").unwrap_or(0));
        let bytes = size_with_data(&path)?;
        components.push(component(kind, file.clone(), &graph));
        // The CPU engine reads the embedding table where it lies.
        let weights = match is_cpu {
            true => crate::cpu::weight_bytes(&graph)?,
            false => graph.weight_bytes(),
        };
        if !is_cpu || kind != ComponentKind::Embed {
            memory.push(part(&format!("{} weights", kind.name()), weights));
        }
        reports.push(EngineReport {
            target: target.to_string(),
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
        target,
        engine: match is_cpu {
            true => Engine::cpu(crate::cpu::ENGINE_VERSION),
            false => Engine::graphs(opset),
        },
        components,
        memory,
        kernels: None,
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
        graph: Vec::new(),
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
pub(super) fn size_with_data(path: &Path) -> Result<u64> {
    let beside = |suffix: &str| {
        let mut data = path.as_os_str().to_owned();
        data.push(suffix);
        std::fs::metadata(PathBuf::from(data)).map_or(0, |meta| meta.len())
    };
    let graph = std::fs::metadata(path).map_err(Error::io(path))?.len();
    Ok(graph + beside(".data") + beside("_data"))
}
