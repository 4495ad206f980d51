//! One graph, ready to run.

use std::collections::HashMap;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rten::{Model, NodeId, RunOptions, Value, ValueOrView};

use super::load::{Loaded, hold, load};
use super::observe::{Observer, Watch, prepare};
use super::pieces::Pieces;
use super::split::{Part, split};
use crate::error::{Error, Result};
use crate::huge_pages::Hold;
use crate::onnx::{OnnxModel, ValueType};

/// A loaded graph with named inputs and outputs.
pub struct Session {
    name: String,
    engine: Engine,
    inputs: HashMap<String, NodeId>,
    outputs: HashMap<String, NodeId>,
    watch: Option<Watch>,
    scales_by_its_rows: bool,
}

/// Operators that find one scale for all elements of their input.
const DYNAMIC: [&str; 2] = ["DynamicQuantizeLinear", "DynamicQuantizeMatMul"];

enum Engine {
    Whole(Box<Loaded>),
    Pieces(Pieces),
}

impl Session {
    /// Loads a graph that passes may have rewritten. If it has products with large constant
    /// matrices, they are computed in `cpu/linear`, which keeps FP16 and int8 weights
    /// as they are.
    ///
    /// # Errors
    /// [`Error::Cpu`] if the engine refuses the graph.
    pub fn load(model: &OnnxModel) -> Result<Self> {
        super::sizes::check(model)?;
        let _hold = hold(model);
        match rten::thread_pool().run(|| split(model))? {
            Some(parts) => Self::of_parts(model, parts),
            None => Self::new(model, true),
        }
    }

    pub(super) fn of_parts(model: &OnnxModel, parts: Vec<Part>) -> Result<Self> {
        let pieces = Pieces::load(parts)?;
        let graph = model.graph();
        let by_name = |values: Vec<ValueType>| {
            let found = values.into_iter().filter_map(|value| {
                let id = pieces.find(&value.name)?;
                Some((value.name, id))
            });
            found.collect()
        };
        Ok(Self {
            name: model.path().display().to_string(),
            inputs: by_name(graph.inputs()),
            outputs: by_name(graph.outputs()),
            scales_by_its_rows: scales_by_its_rows(model),
            engine: Engine::Pieces(pieces),
            watch: None,
        })
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

    pub(super) fn new(model: &OnnxModel, optimize: bool) -> Result<Self> {
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
            scales_by_its_rows: scales_by_its_rows(model),
            engine: Engine::Whole(Box::new(loaded)),
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

    /// Runs the graph on inputs that no list holds yet: the engine wants one.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_on<'a>(
        &self,
        inputs: impl Iterator<Item = (NodeId, ValueOrView<'a>)>,
        outputs: &[NodeId],
    ) -> Result<Vec<Value>> {
        self.run(inputs.collect(), outputs)
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
        match (&self.engine, &self.watch) {
            (Engine::Whole(loaded), Some(watch)) => watch.run(loaded.model(), inputs, outputs, run),
            (Engine::Whole(loaded), None) => run(loaded.model(), inputs, outputs, None),
            // On the engine's threads from beginning to end, so that nobody waits for another's.
            (Engine::Pieces(pieces), _) => {
                rten::thread_pool().run(|| pieces.run(inputs, outputs, run))
            }
        }
    }
}

/// Who asks for memory, in the message about too much of it.
pub(super) fn label(name: &str) -> String {
    format!("CPU engine, {name}")
}

fn scales_by_its_rows(model: &OnnxModel) -> bool {
    let mut nodes = model.graph().node.iter();
    nodes.any(|node| DYNAMIC.contains(&node.op_type.as_str()))
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
