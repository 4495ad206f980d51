//! One graph, ready to run.

use std::collections::HashMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rten::{Model, NodeId, RunOptions, Value, ValueOrView};

use super::load::{Loaded, load};
use super::observe::{Observer, Watch, prepare};
use crate::error::{Error, Result};
use crate::huge_pages::Hold;
use crate::onnx::OnnxModel;

/// A loaded graph with named inputs and outputs.
pub struct Session {
    name: String,
    loaded: Loaded,
    inputs: HashMap<String, NodeId>,
    outputs: HashMap<String, NodeId>,
    watch: Option<Watch>,
    scales_by_its_rows: bool,
}

/// Operators that find one scale for all elements of their input.
const DYNAMIC: [&str; 2] = ["DynamicQuantizeLinear", "DynamicQuantizeMatMul"];

impl Session {
    /// Loads a graph that passes may have rewritten.
    ///
    /// # Errors
    /// [`Error::Cpu`] if the engine refuses the graph.
    pub fn load(model: &OnnxModel) -> Result<Self> {
        Self::new(model, true)
    }

    /// Loads a graph of which every value is computed as it says: no node is fused with another.
    pub(super) fn load_plain(model: &OnnxModel) -> Result<Self> {
        Self::new(model, false)
    }

    /// Loads a graph so that `observer` sees the values named in `taps` in every run; nodes stand
    /// in topological order.
    ///
    /// # Errors
    /// As [`Session::load`].
    pub fn load_observed(
        mut model: OnnxModel,
        taps: &[String],
        observer: Box<dyn Observer>,
    ) -> Result<Self> {
        let prepared = prepare(model.graph_mut(), taps);
        // An optimizer may fold and fuse what is to be seen.
        let mut session = Self::load_plain(&model)?;
        let mut ids = session.inputs.clone();
        ids.extend(session.outputs.iter().map(|(name, id)| (name.clone(), *id)));
        session.watch = Some(Watch::new(prepared, &ids, observer));
        Ok(session)
    }

    /// True if somebody looks at the values inside.
    pub fn is_observed(&self) -> bool {
        self.watch.is_some()
    }

    /// True if rows of an input are quantized with one scale, and so depend on each other.
    pub fn scales_by_its_rows(&self) -> bool {
        self.scales_by_its_rows
    }

    fn new(model: &OnnxModel, optimize: bool) -> Result<Self> {
        let loaded = load(model, optimize)?;
        let engine = loaded.model();
        let by_name = |ids: &[NodeId]| -> HashMap<String, NodeId> {
            ids.iter()
                .filter_map(|&id| Some((engine.node_info(id)?.name()?.to_owned(), id)))
                .collect()
        };
        Ok(Self {
            name: model.path().display().to_string(),
            inputs: by_name(engine.input_ids()),
            outputs: by_name(engine.output_ids()),
            scales_by_its_rows: model
                .graph()
                .node
                .iter()
                .any(|node| DYNAMIC.contains(&node.op_type.as_str())),
            loaded,
            watch: None,
        })
    }

    /// Loads a graph from disk as it stands.
    ///
    /// # Errors
    /// As [`OnnxModel::load`] and [`Session::load`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::load(&OnnxModel::load(path)?)
    }

    /// True if the graph has an input of this name.
    pub fn has_input(&self, name: &str) -> bool {
        self.inputs.contains_key(name)
    }

    /// Handle of an input.
    ///
    /// # Errors
    /// [`Error::Shape`] if the graph has no such input.
    pub fn input(&self, name: &str) -> Result<NodeId> {
        self.find(&self.inputs, name, "input")
    }

    /// Handle of an output.
    ///
    /// # Errors
    /// [`Error::Shape`] if the graph has no such output.
    pub fn output(&self, name: &str) -> Result<NodeId> {
        self.find(&self.outputs, name, "output")
    }

    fn find(&self, ids: &HashMap<String, NodeId>, name: &str, kind: &str) -> Result<NodeId> {
        ids.get(name).copied().ok_or_else(|| {
            let mut names: Vec<&str> = ids.keys().map(String::as_str).collect();
            names.sort_unstable();
            Error::Shape {
                name: name.to_owned(),
                expected: format!("an {kind} of {}", self.name),
                actual: format!("{kind}s {}", names.join(", ")),
            }
        })
    }

    /// Runs the graph. Owned inputs (KV caches with spare capacity) are updated in place.
    ///
    /// # Errors
    /// [`Error::Cpu`] naming the graph and, from the engine, the node; those of the observer.
    pub fn run(
        &self,
        inputs: Vec<(NodeId, ValueOrView<'_>)>,
        outputs: &[NodeId],
    ) -> Result<Vec<Value>> {
        let run = |model: &Model,
                   inputs: Vec<(NodeId, ValueOrView<'_>)>,
                   outputs: &[NodeId],
                   options: Option<RunOptions>| {
            guard(&self.name, || model.run(inputs, outputs, options))
        };
        match &self.watch {
            Some(watch) => watch.run(self.loaded.model(), inputs, outputs, run),
            None => run(self.loaded.model(), inputs, outputs, None),
        }
    }
}

/// Who asks for memory, in the message about too much of it.
pub(super) fn label(name: &str) -> String {
    format!("CPU engine, {name}")
}

/// Runs a call into the engine; its errors and its panics become [`Error::Cpu`]. Memory beyond
/// what the machine had left when the newest graph was loaded is refused meanwhile.
pub(super) fn guard<T, E: Display>(name: &str, call: impl FnOnce() -> Result<T, E>) -> Result<T> {
    let failed = |message: String| Error::Cpu {
        graph: name.to_owned(),
        message,
    };
    let _hold = Hold::new(&label(name));
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(e)) => Err(failed(e.to_string())),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            Err(failed(format!("internal error: {text}")))
        }
    }
}
