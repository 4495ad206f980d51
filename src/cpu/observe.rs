//! Looking at values inside a graph while it runs, a few at a time.
//!
//! All observed values of a large graph at once would be many times its weights. So the graph is
//! run in segments: each gets the values that cross its border, and what was observed in it is
//! forgotten before the next one starts. Nothing is computed twice.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rten::{Model, NodeId, RunOptions, ThreadPool, Value, ValueOrView};
use rten_tensor::prelude::*;

use super::cut::{Cut, cut, expose};
use crate::error::{Error, Result};
use crate::onnx::proto::GraphProto;

/// Most observed values that are in memory at one time.
pub const MAX_ALIVE: usize = 4;

/// A value inside a graph, in memory until the observer returns.
pub struct Observed<'a> {
    /// Which one: index into the names that were asked for.
    pub tap: usize,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// All elements, last axis innermost.
    pub data: Cow<'a, [f32]>,
}

/// Sees values of a graph while it runs.
pub trait Observer: Send {
    /// Looks at values that were just computed; those that are not f32 are not shown.
    ///
    /// # Errors
    /// Whatever should end the run.
    fn observe(&mut self, values: &[Observed<'_>]) -> Result<()>;

    /// Whether the next run is to use one thread. The engine's product of one row with a matrix
    /// rounds differently with every number of threads; its other operators do not.
    fn is_sequential(&self) -> bool {
        false
    }
}

/// A graph prepared for an observer, its segments still by name.
pub(super) struct Prepared {
    cuts: Vec<Cut>,
    input_taps: Vec<(usize, String)>,
}

/// Cuts `graph` and makes every value that crosses a border, or is observed, an output of it.
pub(super) fn prepare(graph: &mut GraphProto, taps: &[String]) -> Prepared {
    let cuts = cut(graph, taps, MAX_ALIVE);
    let input_taps = graph
        .inputs()
        .into_iter()
        .filter_map(|input| {
            let index = taps.iter().position(|tap| *tap == input.name)?;
            Some((index, input.name))
        })
        .collect();
    expose(graph, cuts.iter().flat_map(Cut::asked));
    Prepared { cuts, input_taps }
}

struct Segment {
    reads: Vec<NodeId>,
    makes: Vec<NodeId>,
    taps: Vec<(usize, NodeId)>,
    /// Values that nobody reads after this segment.
    done: HashSet<NodeId>,
}

/// The segments of a loaded graph, and who looks at it.
pub(super) struct Watch {
    segments: Vec<Segment>,
    input_taps: Vec<(usize, NodeId)>,
    observer: Mutex<Box<dyn Observer>>,
    one_thread: Arc<ThreadPool>,
}

impl Watch {
    /// `ids` gives the engine's handle of each input and output.
    pub(super) fn new(
        prepared: Prepared,
        ids: &HashMap<String, NodeId>,
        observer: Box<dyn Observer>,
    ) -> Self {
        let all = |names: Vec<&String>| -> Vec<NodeId> {
            let known = names.into_iter().filter_map(|name| ids.get(name));
            known.copied().collect()
        };
        let tap = |(index, name): &(usize, String)| Some((*index, *ids.get(name)?));
        let mut segments: Vec<Segment> = prepared
            .cuts
            .iter()
            .map(|cut| Segment {
                reads: all(cut.reads.iter().collect()),
                makes: all(cut.asked()),
                taps: cut.taps.iter().filter_map(tap).collect(),
                done: HashSet::new(),
            })
            .collect();
        let mut needed = HashSet::new();
        for segment in segments.iter_mut().rev() {
            let used = segment.reads.iter().chain(&segment.makes);
            segment.done = used.filter(|&&id| needed.insert(id)).copied().collect();
        }
        Self {
            segments,
            input_taps: prepared.input_taps.iter().filter_map(tap).collect(),
            observer: Mutex::new(observer),
            one_thread: Arc::new(ThreadPool::with_num_threads(1)),
        }
    }

    /// Runs the graph segment by segment; `run` calls the engine.
    pub(super) fn run(
        &self,
        model: &Model,
        inputs: Vec<(NodeId, ValueOrView<'_>)>,
        outputs: &[NodeId],
        run: impl Fn(
            &Model,
            Vec<(NodeId, ValueOrView<'_>)>,
            &[NodeId],
            Option<RunOptions>,
        ) -> Result<Vec<Value>>,
    ) -> Result<Vec<Value>> {
        let one_thread =
            || RunOptions::default().with_thread_pool(Some(Arc::clone(&self.one_thread)));
        let is_sequential = self.observer().is_sequential();
        let mut values: HashMap<NodeId, ValueOrView<'_>> = inputs.into_iter().collect();
        self.observe(&self.input_taps, &values)?;
        for (index, segment) in self.segments.iter().enumerate() {
            let makes: Vec<NodeId> = segment
                .makes
                .iter()
                .copied()
                .filter(|id| !values.contains_key(id))
                .collect();
            let is_kept =
                |id: &NodeId| outputs.contains(id) || segment.taps.iter().any(|(_, tap)| tap == id);
            // What is read for the last time is given away, so that caches grow in place.
            let mut reads = Vec::with_capacity(segment.reads.len());
            for id in segment.reads.iter().filter(|id| segment.done.contains(id)) {
                if !is_kept(id)
                    && let Some(value) = values.remove(id)
                {
                    reads.push((*id, value));
                }
            }
            let given: HashSet<NodeId> = reads.iter().map(|(id, _)| *id).collect();
            for id in segment.reads.iter().filter(|id| !given.contains(id)) {
                if let Some(value) = values.get(id) {
                    reads.push((*id, value.as_view().into()));
                }
            }
            if !makes.is_empty() {
                // Logits are asked for one row, and decide how an answer goes on.
                let alone = is_sequential || index + 1 == self.segments.len();
                let made = run(model, reads, &makes, alone.then(one_thread))?;
                for (id, value) in makes.iter().zip(made) {
                    values.insert(*id, value.into());
                }
            }
            self.observe(&segment.taps, &values)?;
            values.retain(|id, _| !segment.done.contains(id) || outputs.contains(id));
        }
        let taken = outputs.iter().map(|id| {
            let value = values.remove(id).map(ValueOrView::into_owned);
            value.ok_or_else(|| Error::Cpu {
                graph: "observed graph".to_owned(),
                message: "an output was not computed".to_owned(),
            })
        });
        taken.collect()
    }

    fn observe(
        &self,
        taps: &[(usize, NodeId)],
        values: &HashMap<NodeId, ValueOrView<'_>>,
    ) -> Result<()> {
        let tensors: Vec<_> = taps
            .iter()
            .filter_map(|(tap, id)| Some((*tap, values.get(id)?.as_view())))
            .collect();
        let mut observed = Vec::with_capacity(tensors.len());
        for (tap, view) in tensors {
            let Ok(view) = rten_tensor::TensorView::<f32>::try_from(view) else {
                continue;
            };
            observed.push(Observed {
                tap,
                shape: view.shape().to_vec(),
                data: view.to_slice(),
            });
        }
        if observed.is_empty() {
            return Ok(());
        }
        self.observer().observe(&observed)
    }

    fn observer(&self) -> MutexGuard<'_, Box<dyn Observer>> {
        self.observer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
