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

use crate::error::{Error, Result};
use crate::onnx::proto::{GraphProto, ValueInfoProto};

/// Most observed values that are in memory at one time.
pub const MAX_ALIVE: usize = 4;

/// A value inside a graph, in memory until the observer returns.
pub struct Observed<'a> {
    /// Which one: index into the names that were asked for.
    pub tap: usize,
    /// Size of the last axis, 1 for a scalar.
    pub n_channels: usize,
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

/// Where a graph is cut, by names.
#[derive(Debug, PartialEq)]
struct Cut {
    /// Values that come from outside the segment, inputs of the graph included.
    reads: Vec<String>,
    /// Values that later segments, the observer or the caller need.
    makes: Vec<String>,
    /// Observed values: index and name.
    taps: Vec<(usize, String)>,
}

/// Cuts a graph whose nodes stand in topological order into segments with at most `max_taps`
/// observed values each, where few values cross the border.
fn cut(graph: &GraphProto, taps: &[String], max_taps: usize) -> Vec<Cut> {
    let n_nodes = graph.node.len();
    let constant = graph.constant_values();
    let producers = graph.producers();
    let last_read: HashMap<&str, usize> = graph
        .consumers()
        .into_iter()
        .filter_map(|(name, readers)| Some((name, *readers.last()?)))
        .collect();
    let crosses = |name: &str, border: usize| {
        !constant.contains(name)
            && producers.get(name).is_some_and(|&made| made < border)
            && last_read.get(name).is_some_and(|&read| read >= border)
    };

    let mut n_crossing = vec![0isize; n_nodes + 2];
    for (name, &made) in &producers {
        if let Some(&read) = last_read.get(name).filter(|_| !constant.contains(name)) {
            n_crossing[made + 1] += 1;
            n_crossing[read + 1] -= 1;
        }
    }
    for border in 1..n_crossing.len() {
        n_crossing[border] += n_crossing[border - 1];
    }
    let mut tapped: Vec<usize> = taps
        .iter()
        .filter_map(|tap| producers.get(tap.as_str()).copied())
        .collect();
    tapped.sort_unstable();
    let mut borders = vec![0];
    let mut first = 0;
    while tapped.len() - first > max_taps {
        let limit = tapped[first + max_taps];
        let earliest = (tapped[first] + 1).min(limit.max(1));
        let border = (earliest..=limit).rev().min_by_key(|&b| n_crossing[b]);
        let border = border.unwrap_or(limit).max(tapped[first] + 1);
        borders.push(border);
        first += tapped[first..].partition_point(|&made| made < border);
    }
    borders.push(n_nodes);

    let returned: HashSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let inputs: HashSet<String> = graph.inputs().into_iter().map(|i| i.name).collect();
    let segment = |border: &[usize]| {
        let [start, end] = [border[0], border[1]];
        let mut reads = Vec::new();
        let mut seen = HashSet::new();
        let mut read = |name: &str| {
            if (inputs.contains(name) || crosses(name, start)) && seen.insert(name.to_owned()) {
                reads.push(name.to_owned());
            }
        };
        for node in &graph.node[start..end] {
            node.each_read(&mut read);
        }
        let taps: Vec<(usize, String)> = taps
            .iter()
            .enumerate()
            .filter(|(_, tap)| {
                let made = producers.get(tap.as_str());
                made.is_some_and(|made| (start..end).contains(made))
            })
            .map(|(index, tap)| (index, tap.clone()))
            .collect();
        let mut makes: Vec<String> = graph.node[start..end]
            .iter()
            .flat_map(|node| &node.output)
            .filter(|name| returned.contains(name.as_str()) || crosses(name, end))
            .cloned()
            .collect();
        makes.extend(taps.iter().map(|(_, name)| name.clone()));
        Cut { reads, makes, taps }
    };
    borders.windows(2).map(segment).collect()
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
    let mut returned: HashSet<String> = graph.output.iter().map(|o| o.name.clone()).collect();
    for name in cuts.iter().flat_map(|cut| &cut.makes) {
        if returned.insert(name.clone()) {
            graph.output.push(ValueInfoProto {
                name: name.clone(),
                ..ValueInfoProto::default()
            });
        }
    }
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
        let all = |names: &[String]| {
            let mut seen = HashSet::new();
            let ids = names.iter().filter_map(|name| ids.get(name).copied());
            ids.filter(|&id| seen.insert(id)).collect::<Vec<_>>()
        };
        let tap = |(index, name): &(usize, String)| Some((*index, *ids.get(name)?));
        let mut segments: Vec<Segment> = prepared
            .cuts
            .iter()
            .map(|cut| Segment {
                reads: all(&cut.reads),
                makes: all(&cut.makes),
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
                n_channels: view.shape().last().copied().unwrap_or(1),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::DataType::F32;
    use crate::onnx::ValueType;
    use crate::onnx::proto::{NodeProto, TensorProto};

    fn value(name: &str) -> ValueInfoProto {
        ValueInfoProto::from(&ValueType {
            name: name.to_owned(),
            dtype: Some(F32),
            dims: None,
        })
    }

    /// A residual chain of three blocks: r1 = x + f(x), r2 = r1 + f(r1), y = r2 + f(r2).
    fn chain() -> GraphProto {
        let mut node = Vec::new();
        for (i, o) in [("x", "r1"), ("r1", "r2"), ("r2", "y")] {
            let [h, g] = [format!("{i}.h"), format!("{i}.g")];
            node.push(NodeProto::new("MatMul", &[i, "w"], &[&h]));
            node.push(NodeProto::new("Relu", &[&h], &[&g]));
            node.push(NodeProto::new("Add", &[i, &g], &[o]));
        }
        GraphProto {
            node,
            initializer: vec![TensorProto::from_f32("w", &[2, 2], &[1.0; 4])],
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        }
    }

    #[test]
    fn graph_is_cut_where_one_value_crosses() {
        let graph = chain();
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        let taps = names(&["x", "x.g", "r1", "r1.g", "r2", "r2.g"]);
        let cuts = cut(&graph, &taps, 2);
        let crossing: Vec<_> = cuts.iter().map(|cut| cut.reads.clone()).collect();
        assert_eq!(crossing, [names(&["x"]), names(&["r1"]), names(&["r2"])]);
        assert_eq!(cuts[0].taps, [(1, "x.g".to_owned()), (2, "r1".to_owned())]);
        assert_eq!(cuts[2].makes, names(&["y", "r2.g"]));
        let tapped: usize = cuts.iter().map(|cut| cut.taps.len()).sum();
        assert_eq!(tapped, 5, "an input is no node's value");
    }

    #[test]
    fn graph_with_many_taps_at_one_node_is_cut_all_the_same() {
        let graph = GraphProto {
            node: vec![
                NodeProto::new("Split", &["x"], &["a", "b", "c"]),
                NodeProto::new("Sum", &["a", "b", "c"], &["y"]),
            ],
            input: vec![value("x")],
            output: vec![value("y")],
            ..GraphProto::default()
        };
        let taps = ["a", "b", "c", "y"].map(str::to_owned);
        let cuts = cut(&graph, &taps, 1);
        assert_eq!(cuts.iter().map(|cut| cut.taps.len()).sum::<usize>(), 4);
        assert_eq!(
            cuts.last().expect("segment").makes.last().expect("made"),
            "y"
        );
    }
}
