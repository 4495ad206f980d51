//! Graphs for TensorRT's builder, which are its input and nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::component::{ComponentKind, Prepared, Runner, prepare};
use super::engines::component;
use super::order::BuildOptions;
use super::shapes::{Capacity, profiles};
use crate::bundle::{Component, Target};
use crate::error::Result;
use crate::model::Model;
use crate::quantize::QuantizeReport;

/// A graph that was saved for the builder.
pub(super) struct SavedGraph {
    /// Its inputs, outputs and profiles; the file is not set.
    pub(super) component: Component,
    pub(super) kind: ComponentKind,
    pub(super) onnx: PathBuf,
    pub(super) weight_bytes: u64,
    /// What became integers.
    pub(super) quantized: Option<QuantizeReport>,
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
        capacity,
        &options.cancel,
    )?;
    read.extend(graph.sources().iter().map(|source| source.path.clone()));
    let mut component = component(kind, String::new(), &graph);
    component.profiles = profiles(kind, &graph, &model.config, capacity)?;
    let onnx = dir.join(format!("{}.{}.onnx", kind.name(), Target::Sm(sm)));
    graph.save(&onnx)?;
    Ok(SavedGraph {
        component,
        kind,
        onnx,
        weight_bytes: graph.weight_bytes(),
        quantized: report,
    })
}
