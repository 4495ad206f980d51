//! From what was seen to scales.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use super::graphs::Observable;
use super::record::{Phase, Record, Seen, parallel};
use super::taps::Channels;
use crate::quantize::{Distribution, GraphScales, Method, TensorScale};
use crate::sync::lock;

/// The ranges of all candidates of a graph, and those of them that never change.
pub fn finish(graph: &Observable, percentile: f64) -> (GraphScales, Vec<String>) {
    let record = lock(&graph.record).clone();
    let scales: Vec<Mutex<Option<TensorScale>>> =
        graph.names.iter().map(|_| Mutex::default()).collect();
    parallel(scales.len(), &|i| {
        let seen: Vec<&Seen> = record
            .seen
            .values()
            .filter_map(|seen| seen.get(i))
            .collect();
        *lock(&scales[i]) = scale(&seen, percentile);
    });
    let index: HashMap<&String, usize> = (graph.names.iter().enumerate())
        .map(|(i, n)| (n, i))
        .collect();
    let (mut tensors, mut constant) = (BTreeMap::new(), Vec::new());
    for candidate in &graph.candidates {
        let found = index.get(&candidate.observed);
        let Some(mut scale) = found.and_then(|&i| lock(&scales[i]).clone()) else {
            continue;
        };
        if candidate.channels == Channels::None {
            scale.channel_amax.clear();
        }
        if scale.min == scale.max {
            constant.push(candidate.name.clone());
        }
        tensors.insert(candidate.name.clone(), scale);
    }
    let scales = GraphScales {
        source_sha256: graph.source_sha256.clone(),
        passes: passes(&record),
        tensors,
    };
    (scales, constant)
}

fn passes(record: &Record) -> BTreeMap<String, u64> {
    let named = |(phase, n): (&Phase, &u64)| (phase.name().to_owned(), *n);
    record.passes.iter().map(named).collect()
}

/// The ranges of one value, from what was seen of it in each phase; `None` if it was never seen.
fn scale(seen: &[&Seen], percentile: f64) -> Option<TensorScale> {
    let histograms: Vec<_> = seen.iter().map(|seen| &seen.histogram).collect();
    let values: u64 = histograms.iter().map(|h| h.n_values()).sum();
    if values == 0 {
        return None;
    }
    let filled = histograms.iter().filter(|h| h.n_values() > 0);
    let (min, max) = filled.fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), h| {
        (min.min(h.min()), max.max(h.max()))
    });
    let mut channel_amax: Vec<f32> = Vec::new();
    for seen in seen {
        for (i, amax) in seen.channel_amax().enumerate() {
            match channel_amax.get_mut(i) {
                Some(most) => *most = most.max(amax),
                None => channel_amax.push(amax),
            }
        }
    }
    let distribution = Distribution::new(&histograms);
    let amax = |method: Method| {
        let amax = distribution.amax(method, percentile);
        (method.name().to_owned(), amax)
    };
    Some(TensorScale {
        amax: Method::ALL.into_iter().map(amax).collect(),
        // A zero of the other sign would make a difference in the file only.
        min: min + 0.0,
        max: max + 0.0,
        values,
        zeros: histograms.iter().map(|h| h.n_zeros()).sum(),
        channel_amax,
    })
}
