//! What was seen of each observed value, by what the graph ran for.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::taps::Channels;
use crate::cpu::{Observed, Observer};
use crate::error::{Error, Result};
use crate::quantize::Histogram;
use crate::sync::lock;

/// Says whether to stop.
pub type Cancel = Arc<dyn Fn() -> bool + Send + Sync>;

/// What a graph runs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// One picture, or one tile of it.
    Image,
    /// A prompt.
    Prefill,
    /// One token of an answer.
    Decode,
}

impl Phase {
    /// Name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// What was seen of one value.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// All its elements.
    pub histogram: Histogram,
    /// Bits of the largest absolute value of each channel, where they are wanted.
    channels: Vec<u32>,
}

impl Seen {
    /// Largest absolute value of each channel; empty if they were not wanted.
    pub fn channel_amax(&self) -> impl Iterator<Item = f32> {
        self.channels.iter().map(|&bits| f32::from_bits(bits))
    }

    fn add(&mut self, value: &Observed<'_>, channels: Channels) {
        self.histogram.add(&value.data);
        let (n_channels, inner) = match (channels, &value.shape[..]) {
            (Channels::Rows, [.., n]) => (*n, 1),
            (Channels::Maps, [_, n, h, w]) => (*n, h * w),
            _ => return,
        };
        if n_channels * inner == 0 {
            return;
        }
        self.channels.resize(self.channels.len().max(n_channels), 0);
        for values in value.data.chunks_exact(n_channels * inner) {
            for (most, values) in self.channels.iter_mut().zip(values.chunks_exact(inner)) {
                // The bits of floats that are not negative are in the order of the floats.
                let bits = values.iter().map(|x| x.abs().to_bits());
                *most = bits.fold(*most, u32::max);
            }
        }
    }

    /// True if everything that `next` adds is possible.
    fn is_sound(&self) -> bool {
        self.channel_amax().all(f32::is_finite)
    }
}

/// What was seen of one graph.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// How often it ran.
    pub passes: BTreeMap<Phase, u64>,
    /// Each observed value, in the order of their names' list.
    pub seen: BTreeMap<Phase, Vec<Seen>>,
}

impl Record {
    /// True if it is of a graph with `n` observed values.
    pub fn is_of(&self, n: usize) -> bool {
        let mut all = self.seen.values();
        all.all(|seen| seen.len() == n && seen.iter().all(Seen::is_sound))
    }
}

/// A value that is not a number, or infinite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotFinite {
    /// The graph.
    pub component: &'static str,
    /// The value.
    pub name: String,
}

/// What the sessions and their owner share.
#[derive(Debug)]
pub struct Shared {
    phase: Mutex<Phase>,
    fault: Mutex<Option<NotFinite>>,
}

impl Shared {
    /// Before the first pass.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            phase: Mutex::new(Phase::Image),
            fault: Mutex::new(None),
        })
    }

    /// Says what the next passes are for.
    pub fn set_phase(&self, phase: Phase) {
        *lock(&self.phase) = phase;
    }

    /// The value that ended a pass, if one did.
    pub fn fault(&self) -> Option<NotFinite> {
        lock(&self.fault).clone()
    }
}

/// Records what a graph computes.
pub struct Recorder {
    /// The graph.
    pub component: &'static str,
    /// Names of the observed values.
    pub names: Vec<String>,
    /// For each: which of its channels are wanted.
    pub channels: Vec<Channels>,
    /// Where it is recorded.
    pub record: Arc<Mutex<Record>>,
    /// What all recorders share.
    pub shared: Arc<Shared>,
    /// Asked before each look.
    pub cancel: Cancel,
}

impl Observer for Recorder {
    fn is_sequential(&self) -> bool {
        *lock(&self.shared.phase) == Phase::Decode
    }

    fn observe(&mut self, values: &[Observed<'_>]) -> Result<()> {
        if (self.cancel)() {
            return Err(Error::Cancelled);
        }
        let phase = *lock(&self.shared.phase);
        let mut record = lock(&self.record);
        let seen = record.seen.entry(phase).or_default();
        seen.resize_with(self.names.len(), Seen::default);

        // Each value is looked at by one thread: what is recorded does not depend on how many
        // there are.
        let mut jobs: Vec<_> = Vec::with_capacity(values.len());
        for value in values {
            jobs.push(Mutex::new((std::mem::take(&mut seen[value.tap]), value)));
        }
        parallel(jobs.len(), &|i| {
            let (seen, value) = &mut *lock(&jobs[i]);
            seen.add(value, self.channels[value.tap]);
        });
        for job in jobs {
            let (done, value) = job.into_inner().unwrap_or_else(PoisonError::into_inner);
            let bad = done.histogram.n_nan() + done.histogram.n_infinite() > 0;
            seen[value.tap] = done;
            if bad {
                let name = self.names[value.tap].clone();
                let fault = NotFinite {
                    component: self.component,
                    name: name.clone(),
                };
                lock(&self.shared.fault).get_or_insert(fault);
                return Err(Error::Cpu {
                    graph: self.component.to_owned(),
                    message: format!("`{name}` is not finite"),
                });
            }
        }
        Ok(())
    }
}

/// Calls `work` with every number below `n`, from several threads.
pub fn parallel(n: usize, work: &(dyn Fn(usize) + Sync)) {
    let next = AtomicUsize::new(0);
    let run = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return;
            }
            work(i);
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 1..cores.min(n) {
            scope.spawn(run);
        }
        run();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_of_maps_and_of_rows_are_apart() {
        let data: Vec<f32> = (0..16)
            .map(|i| if i % 2 == 0 { -i as f32 } else { 0.5 })
            .collect();
        let seen = |shape: &[usize], channels: Channels| {
            let value = Observed {
                tap: 0,
                shape: shape.to_vec(),
                data: data.as_slice().into(),
            };
            let mut seen = Seen::default();
            seen.add(&value, channels);
            assert_eq!(seen.histogram.n_values(), 16);
            seen.channel_amax().collect::<Vec<f32>>()
        };
        assert_eq!(seen(&[2, 2, 2, 2], Channels::Maps), [10.0, 14.0]);
        assert_eq!(seen(&[2, 2, 2, 2], Channels::Rows), [14.0, 0.5]);
        assert_eq!(seen(&[4, 4], Channels::Rows), [12.0, 0.5, 14.0, 0.5]);
        // Rows are no maps, and nothing has no channels.
        assert!(seen(&[4, 4], Channels::Maps).is_empty());
        assert!(seen(&[4, 4], Channels::None).is_empty());
        assert!(seen(&[], Channels::Rows).is_empty());
    }
}
