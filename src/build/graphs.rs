//! Graphs for TensorRT's builder, that of this machine or of another.
//!
//! A portable bundle holds them with their profiles, and no plans: what runs models on a GPU that
//! this machine's TensorRT does not build for is built there, from these very bytes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::component::{COMPONENTS, ComponentKind, Prepared, Runner, prepare};
use super::engines::{ENGINES, EngineReport, check_cancel, component, part, size_with_data};
use super::kernels;
use super::order::{BuildOptions, Event};
use super::shapes::{Capacity, profiles};
use crate::bundle::{
    BundleWriter, Component, Engine, EngineSet, Part, Precision, Target, sha256_file,
};
use crate::error::{Error, Result};
use crate::model::{Model, ModelConfig};
use crate::quantize::QuantizeReport;

/// SMs that NVIDIA's GPUs have: a portable bundle for another one would find no machine.
const KNOWN_SMS: [u16; 12] = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121];

/// A graph that was saved for the builder.
pub(super) struct SavedGraph {
    /// Its inputs, outputs, profiles and digests; the file is not set.
    pub(super) component: Component,
    pub(super) kind: ComponentKind,
    pub(super) onnx: PathBuf,
    pub(super) weight_bytes: u64,
    /// What became integers.
    pub(super) quantized: Option<QuantizeReport>,
    opset: i64,
}

impl SavedGraph {
    /// A component of a portable set.
    #[cfg(feature = "tensorrt")]
    pub(super) fn of_bundle(bundle: &crate::bundle::Bundle, component: &Component) -> Result<Self> {
        let kind = ComponentKind::of_name(&component.name);
        let file = bundle.file(&component.file);
        let (Some(kind), Some(onnx)) = (kind, file) else {
            let reason = format!("its manifest has a component `{}`", component.name);
            return Err(Error::malformed(bundle.dir(), reason));
        };
        let weight_bytes = component.graph.iter().map(|file| file.bytes);
        Ok(Self {
            component: component.clone(),
            kind,
            onnx,
            weight_bytes: weight_bytes.fold(0, u64::saturating_add),
            quantized: None,
            opset: 0,
        })
    }
}

/// Prepares a component for TensorRT and saves it in `dir`.
pub(super) fn save_graph(
    kind: ComponentKind,
    model: &Model,
    sm: u16,
    capacity: &Capacity,
    options: &BuildOptions<'_>,
    dir: &Path,
    read: &mut BTreeSet<PathBuf>,
) -> Result<SavedGraph> {
    let Prepared { graph, report } = prepare(
        kind,
        model,
        Runner::TensorRt,
        options.numerics(),
        &options.cuts,
        capacity,
        &options.cancel,
    )?;
    read.extend(graph.sources().iter().map(|source| source.path.clone()));
    let mut component = component(kind, String::new(), &graph);
    component.profiles = profiles(kind, &graph, &model.config, capacity)?;
    // The name stands in the graph, with its weights: it is the same in every bundle.
    let onnx = dir.join(graph_name(kind, sm));
    graph.save(&onnx)?;
    component.graph.push(sha256_file(&onnx, |_| {})?);
    let data = dir.join(format!("{}.data", graph_name(kind, sm)));
    if data.exists() {
        component.graph.push(sha256_file(&data, |_| {})?);
    }
    Ok(SavedGraph {
        component,
        kind,
        onnx,
        weight_bytes: graph.weight_bytes(),
        quantized: report,
        opset: graph.opset("").unwrap_or(0),
    })
}

pub(super) fn graph_name(kind: ComponentKind, sm: u16) -> String {
    format!("{}.{}.onnx", kind.name(), Target::Sm(sm))
}

/// Writes the graphs from which another machine builds plans for one SM; the files that they came
/// from are added to `read`.
///
/// # Errors
/// [`Error::Argument`] for an SM that no GPU has, and those of preparing.
pub(super) fn portable(
    model: &Model,
    sm: u16,
    capacity: &Capacity,
    options: &BuildOptions<'_>,
    writer: &BundleWriter,
    read: &mut BTreeSet<PathBuf>,
    on_event: &mut dyn FnMut(&Event),
) -> Result<(EngineSet, Vec<EngineReport>)> {
    let target = Target::Sm(sm);
    if !KNOWN_SMS.contains(&sm) {
        let known: Vec<String> = KNOWN_SMS.iter().map(|sm| format!("sm{sm}")).collect();
        return Err(Error::Argument {
            name: "target",
            reason: format!("{target} is none of {}", known.join(", ")),
        });
    }
    let (mut components, mut reports, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    let mut opset = 0;
    for kind in COMPONENTS {
        check_cancel(&options.cancel)?;
        on_event(&Event::Start {
            target,
            component: kind.name(),
        });
        let start = Instant::now();
        let file = format!("{ENGINES}/{}", graph_name(kind, sm));
        let path = writer.file(&file)?;
        let dir = path.parent().unwrap_or(writer.path());
        let mut graph = save_graph(kind, model, sm, capacity, options, dir, read)?;
        opset = opset.max(graph.opset);
        graph.component.file.clone_from(&file);
        let name = graph.kind.name();
        memory.push(part(&format!("{name} graph"), graph.weight_bytes));
        components.push(graph.component);
        reports.push(EngineReport {
            target: target.to_string(),
            component: name,
            file,
            bytes: size_with_data(&graph.onnx)?,
            seconds: start.elapsed().as_secs_f64(),
            peak_memory_bytes: 0,
            quantized: graph.quantized,
        });
        on_event(&Event::Done);
    }
    memory.push(kv_cache(capacity, &model.config, options.precision));
    let set = EngineSet {
        target,
        engine: Engine::graphs(opset),
        components,
        memory,
        kernels: kernels::compile(sm, writer)?,
    };
    Ok((set, reports))
}

/// The KV cache that TensorRT's engines of a precision have.
pub(super) fn kv_cache(capacity: &Capacity, config: &ModelConfig, precision: Precision) -> Part {
    let element_bytes = if precision == Precision::Fp32 { 4 } else { 2 };
    part(KV_CACHE, capacity.kv_bytes(config, element_bytes))
}

/// Its name in memory plans.
pub(super) const KV_CACHE: &str = "kv cache";
