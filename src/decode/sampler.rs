//! Picking a token from logits.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::error::{Error, Result};

/// How tokens are drawn; the default is greedy.
///
/// Order of operations as in `transformers` 5 (`generation/logits_process.py`): repetition
/// penalty, temperature, top-k, top-p.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 means greedy.
    pub temperature: f32,
    /// Only this many most likely tokens can be drawn; 0 means all.
    pub top_k: usize,
    /// Only the smallest set of most likely tokens with at least this probability can be drawn.
    pub top_p: f32,
    /// Logits of tokens that occurred are divided (if positive) or multiplied by it; 1 means off.
    pub repetition_penalty: f32,
    /// Seed of the generator: equal seeds give equal answers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the option.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            (
                "temperature",
                self.temperature >= 0.0 && self.temperature.is_finite(),
                "at least 0",
            ),
            (
                "top-p",
                self.top_p > 0.0 && self.top_p <= 1.0,
                "above 0 and at most 1",
            ),
            (
                "repetition-penalty",
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "above 0",
            ),
        ];
        match checks.into_iter().find(|(_, ok, _)| !ok) {
            Some((name, _, range)) => Err(Error::Argument {
                name,
                reason: format!("must be a number {range}"),
            }),
            None => Ok(()),
        }
    }
}

/// Picks tokens; holds the random generator and scratch space of one answer.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    logits: Vec<f32>,
    /// Ids that can be drawn, most likely first.
    order: Vec<u32>,
    /// Their weights, which need not sum to 1.
    weights: Vec<f64>,
    /// Probability of each id that the draft does not account for.
    residual: Vec<f64>,
}

impl Sampler {
    /// Makes a sampler.
    ///
    /// # Errors
    /// [`Error::Argument`] if a value is outside its range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.validate()?;
        Ok(Self {
            sampling,
            rng: ChaCha8Rng::seed_from_u64(sampling.seed),
            logits: Vec::new(),
            order: Vec::new(),
            weights: Vec::new(),
            residual: Vec::new(),
        })
    }

    /// Whether it takes the largest logit as it is, whatever came before.
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0 && self.sampling.repetition_penalty == 1.0
    }

    /// Picks the next token; `history` is prompt and answer so far, for the repetition penalty.
    ///
    /// Greedy ties go to the lowest id, as in PyTorch on the CPU.
    ///
    /// # Errors
    /// [`Error::Logits`] if a logit is NaN, or none is above minus infinity; the step is the
    /// caller's, here 0.
    pub fn pick(&mut self, logits: &[f32], history: &[u32]) -> Result<u32> {
        if let Some(id) = self.prepare(logits, history)? {
            return Ok(id);
        }
        let mass = self.candidates();
        let left = self.uniform() * mass;
        Ok(draw(&self.order, &self.weights, left))
    }

    /// Picks the next token where `id` was drawn from `drawn_from`, probabilities by id. The draft
    /// is accepted if its own id is returned.
    ///
    /// What is returned is distributed as what [`pick`](Self::pick) returns, whatever the draft: it
    /// is accepted with probability `min(1, p / q)`, else the token comes from `max(0, p - q)`. A
    /// draft that was chosen and not drawn needs none of this: [`pick`](Self::pick) is the same rule
    /// for a `q` of 1, and draws the very tokens that it would draw without drafts.
    ///
    /// Source: speculative sampling, arXiv 2211.17192, theorem 1.
    ///
    /// # Errors
    /// As [`pick`](Self::pick).
    pub fn pick_drafted(
        &mut self,
        logits: &[f32],
        history: &[u32],
        id: u32,
        drawn_from: &[(u32, f32)],
    ) -> Result<u32> {
        if let Some(id) = self.prepare(logits, history)? {
            return Ok(id);
        }
        let mass = self.candidates();
        self.residual.clear();
        self.residual.resize(logits.len(), 0.0);
        for (&id, &weight) in self.order.iter().zip(&self.weights) {
            self.residual[id as usize] = weight / mass;
        }
        let p = self.residual.get(id as usize).copied().unwrap_or(0.0);
        let mut q = 0.0;
        // Rounded probabilities do not quite sum to 1, but the id was drawn as if they did.
        let sum: f64 = drawn_from.iter().map(|(_, q)| f64::from(*q)).sum();
        for &(other, probability) in drawn_from {
            let probability = f64::from(probability) / sum;
            if other == id {
                q += probability;
            }
            if let Some(left) = self.residual.get_mut(other as usize) {
                *left -= probability;
            }
        }
        if self.uniform() * q < p {
            return Ok(id);
        }
        let rest = |id: &u32| self.residual[*id as usize].max(0.0);
        let mut total: f64 = self.order.iter().map(rest).sum();
        if total > 0.0 {
            self.weights.clear();
            self.weights.extend(self.order.iter().map(rest));
        } else {
            // Both distributions agree up to rounding: what is left is as p.
            total = mass;
        }
        let left = self.uniform() * total;
        Ok(draw(&self.order, &self.weights, left))
    }

    /// By how much the greedy choice `id` was ahead of the next one; `None` if tokens are drawn.
    /// `logits` are those of the newest pick.
    pub fn margin(&self, logits: &[f32], id: u32) -> Option<f32> {
        if self.sampling.temperature > 0.0 {
            return None;
        }
        let logits = match self.sampling.repetition_penalty {
            1.0 => logits,
            _ => &self.logits,
        };
        let (before, from) = logits.split_at_checked(id as usize)?;
        let (&best, after) = from.split_first()?;
        Some(best - largest(before).max(largest(after)))
    }

    /// Checks the logits and applies the penalty; returns the token if none has to be drawn.
    fn prepare(&mut self, logits: &[f32], history: &[u32]) -> Result<Option<u32>> {
        check(logits)?;
        if self.is_greedy() {
            return Ok(Some(argmax(logits)));
        }
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.penalize(history);
        Ok((self.sampling.temperature == 0.0).then(|| argmax(&self.logits)))
    }

    /// A number from 0 to below 1.
    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn penalize(&mut self, history: &[u32]) {
        let penalty = self.sampling.repetition_penalty;
        if penalty == 1.0 {
            return;
        }
        self.order.clear();
        self.order.extend_from_slice(history);
        self.order.sort_unstable();
        self.order.dedup();
        for &id in &self.order {
            if let Some(logit) = self.logits.get_mut(id as usize) {
                *logit = if *logit < 0.0 {
                    *logit * penalty
                } else {
                    *logit / penalty
                };
            }
        }
    }

    /// Finds the ids that can be drawn and their weights; returns the weights' sum.
    fn candidates(&mut self) -> f64 {
        let Self {
            sampling,
            logits,
            order,
            weights,
            ..
        } = self;
        order.clear();
        order.extend(0..logits.len() as u32);
        let descending = |a: &u32, b: &u32| {
            let (x, y) = (logits[*a as usize], logits[*b as usize]);
            y.total_cmp(&x).then(a.cmp(b))
        };
        let keep = match sampling.top_k {
            0 => order.len(),
            k => k.min(order.len()),
        };
        if keep < order.len() {
            order.select_nth_unstable_by(keep, descending);
            order.truncate(keep);
        }
        order.sort_unstable_by(descending);
        weights.clear();
        let max = order.first().map_or(0.0, |&id| logits[id as usize]);
        if max.is_infinite() {
            order.truncate(1);
            weights.push(1.0);
            return 1.0;
        }
        let weight =
            |id: &u32| f64::from((logits[*id as usize] - max) / sampling.temperature).exp();
        weights.extend(order.iter().map(weight));
        let total: f64 = weights.iter().sum();
        let mut mass = 0.0;
        let nucleus = weights.iter().position(|weight| {
            mass += weight;
            mass >= f64::from(sampling.top_p) * total
        });
        let n = nucleus.map_or(order.len(), |last| last + 1);
        order.truncate(n);
        weights.truncate(n);
        mass
    }
}

/// The id at which the sum of weights passes `left`.
fn draw(ids: &[u32], weights: &[f64], mut left: f64) -> u32 {
    let mut newest = 0;
    for (&id, &weight) in ids.iter().zip(weights) {
        left -= weight;
        if weight > 0.0 {
            newest = id;
        }
        if left < 0.0 {
            break;
        }
    }
    // By rounding the sum may not be reached: the last id that can be drawn is meant.
    newest
}

/// The largest element, minus infinity for none.
fn largest(logits: &[f32]) -> f32 {
    let mut max = f32::NEG_INFINITY;
    for &logit in logits {
        if logit > max {
            max = logit;
        }
    }
    max
}

/// Refuses logits that a broken model gives: what would be picked from them means nothing.
fn check(logits: &[f32]) -> Result<()> {
    let mut usable = false;
    let mut nan = false;
    for logit in logits {
        nan |= logit.is_nan();
        usable |= *logit > f32::NEG_INFINITY;
    }
    match (nan, usable) {
        (true, _) => Err(Error::Logits {
            what: "NaN",
            step: 0,
        }),
        (false, false) => Err(Error::Logits {
            what: "no logit above minus infinity",
            step: 0,
        }),
        (false, true) => Ok(()),
    }
}

/// Index of the largest element, the lowest among equals.
fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    let mut max = f32::NEG_INFINITY;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > max {
            (best, max) = (id, logit);
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picks(sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).expect("valid");
        let pick = |_| sampler.pick(logits, &[]).expect("numbers");
        (0..n).map(pick).collect()
    }

    #[test]
    fn greedy_with_ties_takes_the_lowest_id() {
        let logits = [f32::NEG_INFINITY, 1.0, 3.0, 3.0, f32::NEG_INFINITY];
        assert_eq!(picks(Sampling::default(), &logits, 1), [2]);
    }

    #[test]
    fn logits_without_a_largest_number_are_refused() {
        let drawn = Sampling {
            temperature: 1.0,
            repetition_penalty: 1.5,
            ..Sampling::default()
        };
        for sampling in [Sampling::default(), drawn] {
            let mut sampler = Sampler::new(sampling).expect("valid");
            for (logits, what) in [
                ([f32::NAN; 3], "NaN"),
                ([0.0, f32::NAN, 1.0], "NaN"),
                ([f32::NEG_INFINITY; 3], "no logit"),
            ] {
                let e = sampler.pick(&logits, &[1]).expect_err("refused");
                assert!(e.to_string().contains(what), "{e}");
            }
            assert_eq!(sampler.pick(&[0.0, f32::INFINITY], &[]).expect("one"), 1);
        }
    }

    #[test]
    fn draw_with_one_candidate_left_is_greedy() {
        let logits = [0.0, 2.0, 1.0];
        for (top_k, top_p) in [(1, 1.0), (0, 0.01)] {
            let sampling = Sampling {
                temperature: 5.0,
                top_k,
                top_p,
                ..Sampling::default()
            };
            assert_eq!(picks(sampling, &logits, 50), [1; 50]);
        }
    }

    #[test]
    fn draw_follows_the_softmax_and_the_seed() {
        let sampling = Sampling {
            temperature: 2.0,
            seed: 7,
            ..Sampling::default()
        };
        let logits = [0.0, 2.0 * 3f32.ln()]; // probabilities 1/4 and 3/4
        let first = picks(sampling, &logits, 4000);
        let share = first.iter().filter(|&&id| id == 1).count() as f64 / 4000.0;
        // Standard error 0.0068: four of them.
        assert!((share - 0.75).abs() < 0.028, "{share}");
        assert_eq!(first, picks(sampling, &logits, 4000));
        assert_ne!(
            first,
            picks(
                Sampling {
                    seed: 8,
                    ..sampling
                },
                &logits,
                4000
            )
        );
    }

    #[test]
    fn repetition_penalty_lowers_positive_and_negative_logits() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            ..Sampling::default()
        };
        let mut sampler = Sampler::new(sampling).expect("valid");
        for (logits, history) in [([1.5, 2.0], &[1, 1, 9][..]), ([-1.5, -1.0], &[1])] {
            assert_eq!(sampler.pick(&logits, history).expect("numbers"), 0);
        }
    }

    #[test]
    fn values_outside_their_range_are_refused() {
        let default = Sampling::default();
        for sampling in [
            Sampling {
                temperature: -1.0,
                ..default
            },
            Sampling {
                temperature: f32::NAN,
                ..default
            },
            Sampling {
                top_p: 0.0,
                ..default
            },
            Sampling {
                top_p: 1.5,
                ..default
            },
            Sampling {
                repetition_penalty: 0.0,
                ..default
            },
        ] {
            assert!(matches!(
                Sampler::new(sampling),
                Err(Error::Argument { .. })
            ));
        }
    }
}
