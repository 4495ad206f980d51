//! Epochs over shards.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::failed;
use super::params::{Params, Schedule};
use super::shards::{Record, Shards, load, save};
use crate::error::{Error, Result};

/// Name of the tensor that holds the state of a checkpoint as JSON.
const STATE: &str = "state";

/// What is trained.
pub trait Trainee {
    /// The loss of one example, a scalar; `None` if there is nothing to learn from it.
    ///
    /// # Errors
    /// Any; training ends.
    fn loss(&self, params: &Params, record: &Record) -> Result<Option<Tensor>>;

    /// Sums, over held-out examples, from which [`score`](Self::score) is made.
    ///
    /// # Errors
    /// Any; training ends.
    fn judge(&self, params: &Params, record: &Record) -> Result<Vec<f64>>;

    /// What is to be as large as possible.
    fn score(&self, sums: &[f64]) -> f64;
}

/// How to train.
pub struct FitOptions<'a> {
    /// Most epochs.
    pub epochs: usize,
    /// Examples of a step.
    pub batch: usize,
    /// Largest learning rate.
    pub rate: f64,
    /// Epochs without a better score after which training ends.
    pub patience: usize,
    /// Decides the order of examples.
    pub seed: u64,
    /// True for examples, by index, that are judged and never learned from.
    pub held_out: &'a dyn Fn(usize) -> bool,
    /// The state is kept here after each epoch.
    pub checkpoint: &'a Path,
    /// Says what the state belongs to; another one is refused.
    pub key: &'a str,
    /// Says whether to stop.
    pub cancel: &'a dyn Fn() -> bool,
}

/// What came of an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Epoch {
    /// Mean loss of its examples.
    pub loss: f64,
    /// Sums over held-out examples.
    pub sums: Vec<f64>,
    /// Their score.
    pub score: f64,
}

/// How far training is.
#[derive(Debug)]
pub enum Event<'a> {
    /// Examples of this epoch that are done, judged ones included, of all.
    Example {
        /// The epoch, from 0.
        epoch: usize,
        /// Examples that are done.
        done: usize,
        /// All examples.
        total: usize,
    },
    /// An epoch is done.
    Epoch {
        /// The epoch, from 0.
        epoch: usize,
        /// What came of it.
        result: &'a Epoch,
        /// Whether no other was better.
        is_best: bool,
    },
}

#[derive(Serialize, Deserialize)]
struct State {
    key: String,
    n_steps: usize,
    best: usize,
    epochs: Vec<Epoch>,
}

/// Trains until nothing gets better; the weights are then those of the best epoch, whose index comes
/// with what came of all.
///
/// # Errors
/// [`Error::Cancelled`] after a stop, with the state of the newest whole epoch kept;
/// [`Error::Mismatch`] if the state there belongs to something else; those of the trainee.
pub fn fit(
    params: &mut Params,
    net: &dyn Trainee,
    shards: &Shards,
    options: &FitOptions<'_>,
    on_event: &mut dyn FnMut(&Event<'_>),
) -> Result<(usize, Vec<Epoch>)> {
    let n_train = (0..shards.len())
        .filter(|&i| !(options.held_out)(i))
        .count();
    let per_epoch = n_train.div_ceil(options.batch.max(1));
    let schedule = Schedule {
        rate: options.rate,
        n_steps: per_epoch * options.epochs,
    };
    let mut best_values = params.values()?;
    let (mut best, mut epochs) = (0, Vec::new());
    if options.checkpoint.exists() {
        let saved = load(options.checkpoint)?;
        let state = state(&saved, options)?;
        params.restore(&saved, state.n_steps)?;
        best_values = best_values
            .keys()
            .filter_map(|name| Some((name.clone(), saved.get(&format!("best/{name}"))?.clone())))
            .collect();
        (best, epochs) = (state.best, state.epochs);
    }
    while epochs.len() < options.epochs && epochs.len() - best <= options.patience {
        let epoch = epochs.len();
        let result = one_epoch(params, net, shards, options, &schedule, epoch, on_event)?;
        let is_best = epochs
            .iter()
            .all(|before: &Epoch| result.score > before.score);
        if is_best {
            best = epoch;
            best_values = params.values()?;
        }
        on_event(&Event::Epoch {
            epoch,
            result: &result,
            is_best,
        });
        epochs.push(result);
        let state = State {
            key: options.key.to_owned(),
            n_steps: params.n_steps(),
            best,
            epochs: epochs.clone(),
        };
        keep(params, &best_values, &state, options.checkpoint)?;
    }
    params.set_values(&best_values)?;
    Ok((best, epochs))
}

fn one_epoch(
    params: &mut Params,
    net: &dyn Trainee,
    shards: &Shards,
    options: &FitOptions<'_>,
    schedule: &Schedule,
    epoch: usize,
    on_event: &mut dyn FnMut(&Event<'_>),
) -> Result<Epoch> {
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    random.set_stream(epoch as u64 + 1);
    let total = shards.len();
    let (mut done, mut sum, mut n_losses) = (0, 0f64, 0usize);
    let mut tick = |done: usize| -> Result<()> {
        if (options.cancel)() {
            return Err(Error::Cancelled);
        }
        on_event(&Event::Example { epoch, done, total });
        Ok(())
    };
    let mut files: Vec<usize> = (0..shards.n_files()).collect();
    shuffle(&mut files, &mut random);
    for &file in &files {
        let mut records = shards.read(file)?;
        records.retain(|(index, _)| !(options.held_out)(*index));
        shuffle(&mut records, &mut random);
        for batch in records.chunks(options.batch.max(1)) {
            let mut losses = Vec::new();
            for (_, record) in batch {
                losses.extend(net.loss(params, record)?);
            }
            done += batch.len();
            tick(done)?;
            if losses.is_empty() {
                continue;
            }
            let mean = Tensor::stack(&losses, 0).and_then(|losses| losses.mean_all());
            let mean = mean.map_err(failed)?;
            let value = f64::from(mean.to_scalar::<f32>().map_err(failed)?);
            (sum, n_losses) = (sum + value * losses.len() as f64, n_losses + losses.len());
            let grads = mean.backward().map_err(failed)?;
            params.step(&grads, schedule.at(params.n_steps()))?;
        }
    }
    let mut sums: Vec<f64> = Vec::new();
    for file in 0..shards.n_files() {
        for (index, record) in shards.read(file)? {
            if !(options.held_out)(index) {
                continue;
            }
            let judged = net.judge(params, &record)?;
            sums.resize(sums.len().max(judged.len()), 0.0);
            for (sum, value) in sums.iter_mut().zip(judged) {
                *sum += value;
            }
            done += 1;
            tick(done)?;
        }
    }
    Ok(Epoch {
        loss: sum / n_losses.max(1) as f64,
        score: net.score(&sums),
        sums,
    })
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], random: &mut ChaCha8Rng) {
    for at in (1..items.len()).rev() {
        items.swap(at, (random.next_u64() % (at as u64 + 1)) as usize);
    }
}

fn keep(params: &Params, best: &HashMap<String, Tensor>, state: &State, path: &Path) -> Result<()> {
    let mut tensors = HashMap::new();
    params.save(&mut tensors)?;
    for (name, value) in best {
        tensors.insert(format!("best/{name}"), value.clone());
    }
    let json = serde_json::to_vec(state).map_err(|e| Error::io(path)(e.into()))?;
    let n = json.len();
    let json = Tensor::from_vec(json, n, &Device::Cpu).map_err(failed)?;
    tensors.insert(STATE.to_owned(), json);
    save(&tensors, path)
}

fn state(saved: &HashMap<String, Tensor>, options: &FitOptions<'_>) -> Result<State> {
    let path = options.checkpoint;
    let json = saved.get(STATE).and_then(|json| json.to_vec1::<u8>().ok());
    let state: Option<State> = json.and_then(|json| serde_json::from_slice(&json).ok());
    let state = state.filter(|state| state.best <= state.epochs.len());
    let state = state.ok_or_else(|| Error::malformed(path, "no state of a training"))?;
    if state.key != options.key {
        return Err(Error::Mismatch {
            path: path.to_path_buf(),
            what: "the training it belongs to",
            expected: options.key.to_owned(),
            actual: state.key,
        });
    }
    Ok(state)
}
