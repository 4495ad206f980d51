//! Weights that are trained, and the optimizer.

use std::collections::{BTreeMap, HashMap};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::failed;
use crate::error::{Error, Result};
use crate::model::TrainedTensor;

/// Decay of the mean of gradients.
const BETA1: f64 = 0.9;
/// Decay of the mean of their squares.
const BETA2: f64 = 0.98;
const EPSILON: f64 = 1e-8;
/// Share of a weight that each step takes away, times the learning rate.
const WEIGHT_DECAY: f64 = 0.01;
/// Largest norm of all gradients together.
const MOST_NORM: f64 = 1.0;

/// Weights by name, with the moments of AdamW (arXiv 1711.05101).
pub struct Params {
    random: ChaCha8Rng,
    weights: BTreeMap<String, Weight>,
    n_steps: usize,
}

struct Weight {
    var: Var,
    mean: Tensor,
    square: Tensor,
}

/// The learning rate of each step: rising over the first twentieth, then a falling cosine.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    /// Largest rate.
    pub rate: f64,
    /// Steps in all.
    pub n_steps: usize,
}

impl Schedule {
    /// The rate of a step, counted from 0.
    pub fn at(&self, step: usize) -> f64 {
        let (step, n) = (step as f64 + 1.0, self.n_steps.max(1) as f64);
        let rise = n / 20.0;
        let fall = ((step - rise) / (n - rise).max(1.0)).clamp(0.0, 1.0);
        let least = 0.05;
        let cosine = 0.5 + 0.5 * (std::f64::consts::PI * fall).cos();
        self.rate * (step / rise).min(1.0) * (least + (1.0 - least) * cosine)
    }
}

impl Params {
    /// No weights yet; those that come depend on the seed and the order in which they are asked for.
    pub fn new(seed: u64) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            weights: BTreeMap::new(),
            n_steps: 0,
        }
    }

    /// Adds a matrix `[rows, cols]` of normally distributed weights, for products of unit scale, times `gain`.
    ///
    /// # Errors
    /// If memory is not there.
    pub fn add_matrix(&mut self, name: &str, rows: usize, cols: usize, gain: f64) -> Result<()> {
        let scale = gain / (rows as f64).sqrt();
        let mut unit = || (self.random.next_u32() as f64 + 0.5) / (f64::from(u32::MAX) + 1.0);
        let values: Vec<f32> = (0..rows * cols)
            .map(|_| {
                // Box and Muller.
                let radius = (-2.0 * unit().ln()).sqrt();
                (scale * radius * (2.0 * std::f64::consts::PI * unit()).cos()) as f32
            })
            .collect();
        let tensor = Tensor::from_vec(values, (rows, cols), &Device::Cpu).map_err(failed)?;
        let weight = Weight {
            mean: tensor.zeros_like().map_err(failed)?,
            square: tensor.zeros_like().map_err(failed)?,
            var: Var::from_tensor(&tensor).map_err(failed)?,
        };
        self.weights.insert(name.to_owned(), weight);
        Ok(())
    }

    /// A weight.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is none of that name.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        let found = self.weights.get(name).map(|weight| weight.var.as_tensor());
        found.ok_or_else(|| Error::Shape {
            name: name.to_owned(),
            expected: "a weight".to_owned(),
            actual: "none".to_owned(),
        })
    }

    /// Number of numbers.
    pub fn n_elements(&self) -> usize {
        let weights = self.weights.values();
        weights.map(|weight| weight.var.elem_count()).sum()
    }

    /// Takes a step against the gradients.
    ///
    /// # Errors
    /// [`Error::Cpu`] if a gradient is NaN or infinite.
    pub fn step(&mut self, grads: &GradStore, rate: f64) -> Result<()> {
        let mut norm = 0f64;
        for weight in self.weights.values() {
            if let Some(grad) = grads.get(weight.var.as_tensor()) {
                let square = grad.sqr().and_then(|g| g.sum_all()?.to_scalar::<f32>());
                norm += f64::from(square.map_err(failed)?);
            }
        }
        let norm = norm.sqrt();
        if !norm.is_finite() {
            return Err(Error::Cpu {
                graph: "training".to_owned(),
                message: format!("the gradient is {norm} at step {}", self.n_steps),
            });
        }
        let scale = (MOST_NORM / norm.max(1e-12)).min(1.0);
        self.n_steps += 1;
        let n = self.n_steps as i32;
        let (c1, c2) = (1.0 - BETA1.powi(n), 1.0 - BETA2.powi(n));
        for weight in self.weights.values_mut() {
            if let Some(grad) = grads.get(weight.var.as_tensor()) {
                let step = || -> candle_core::Result<(Tensor, Tensor, Tensor)> {
                    let grad = (grad.detach() * scale)?;
                    let mean = ((&weight.mean * BETA1)? + (&grad * (1.0 - BETA1))?)?;
                    let square = ((&weight.square * BETA2)? + (grad.sqr()? * (1.0 - BETA2))?)?;
                    let root = ((&square / c2)?.sqrt()? + EPSILON)?;
                    let update = ((&mean / c1)? / root)?;
                    let kept = (weight.var.as_tensor() * (1.0 - rate * WEIGHT_DECAY))?;
                    Ok(((kept - (update * rate)?)?.detach(), mean, square))
                };
                let (value, mean, square) = step().map_err(failed)?;
                weight.var.set(&value).map_err(failed)?;
                (weight.mean, weight.square) = (mean, square);
            }
        }
        Ok(())
    }

    /// Steps taken.
    pub fn n_steps(&self) -> usize {
        self.n_steps
    }

    /// The weights alone.
    ///
    /// # Errors
    /// If memory is not there.
    pub fn values(&self) -> Result<HashMap<String, Tensor>> {
        let copy = |(name, weight): (&String, &Weight)| {
            let copy = weight.var.as_tensor().copy().map_err(failed)?;
            Ok((name.clone(), copy.detach()))
        };
        self.weights.iter().map(copy).collect()
    }

    /// The weights as a trained file has them, each times what `scale_of` says of its name; what is called `*.bias` is a
    /// vector there.
    ///
    /// # Errors
    /// If memory is not there.
    pub(super) fn tensors(
        &self,
        scale_of: &dyn Fn(&str) -> f64,
    ) -> Result<BTreeMap<String, TrainedTensor>> {
        let tensor = |(name, value): (String, Tensor)| {
            let scaled = (&value * scale_of(&name)).and_then(|value| value.flatten_all());
            let data = scaled.and_then(|value| value.to_vec1::<f32>());
            let data = data.map_err(failed)?;
            let shape = match name.ends_with(".bias") {
                true => vec![data.len()],
                false => value.dims().to_vec(),
            };
            Ok((name, TrainedTensor { shape, data }))
        };
        self.values()?.into_iter().map(tensor).collect()
    }

    /// Puts weights in the place of these.
    ///
    /// # Errors
    /// [`Error::Shape`] if one is missing or of another shape.
    pub fn set_values(&mut self, values: &HashMap<String, Tensor>) -> Result<()> {
        for (name, weight) in &self.weights {
            let value = find(values, name, weight.var.as_tensor())?;
            weight.var.set(&value.detach()).map_err(failed)?;
        }
        Ok(())
    }

    /// Everything that the next step depends on.
    pub(super) fn save(&self, into: &mut HashMap<String, Tensor>) -> Result<()> {
        for (name, value) in self.values()? {
            into.insert(format!("weight/{name}"), value);
        }
        for (name, weight) in &self.weights {
            into.insert(format!("mean/{name}"), weight.mean.clone());
            into.insert(format!("square/{name}"), weight.square.clone());
        }
        Ok(())
    }

    /// Goes on from what [`save`](Self::save) wrote after `n_steps`.
    pub(super) fn restore(&mut self, from: &HashMap<String, Tensor>, n_steps: usize) -> Result<()> {
        for (name, weight) in &mut self.weights {
            let like = weight.var.as_tensor().clone();
            let part = |part: &str| find(from, &format!("{part}/{name}"), &like);
            weight.var.set(&part("weight")?.detach()).map_err(failed)?;
            weight.mean = part("mean")?.clone();
            weight.square = part("square")?.clone();
        }
        self.n_steps = n_steps;
        Ok(())
    }
}

fn find<'a>(from: &'a HashMap<String, Tensor>, name: &str, like: &Tensor) -> Result<&'a Tensor> {
    let found = from.get(name);
    found
        .filter(|value| value.dims() == like.dims() && value.dtype() == like.dtype())
        .ok_or_else(|| Error::Shape {
            name: name.to_owned(),
            expected: format!("{:?} {:?}", like.dtype(), like.dims()),
            actual: found.map_or("none".to_owned(), |value| {
                format!("{:?} {:?}", value.dtype(), value.dims())
            }),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps towards a matrix that is known.
    fn run(params: &mut Params, n_steps: usize) -> f32 {
        let target = Tensor::new(&[[1f32, -2.0], [3.0, 0.5]], &Device::Cpu).expect("target");
        let mut last = f32::NAN;
        for _ in 0..n_steps {
            let off = (params.get("w").expect("w") - &target).expect("shape");
            let loss = off.sqr().and_then(|s| s.sum_all()).expect("loss");
            last = loss.to_scalar().expect("scalar");
            params
                .step(&loss.backward().expect("gradient"), 0.05)
                .expect("step");
        }
        last
    }

    #[test]
    fn steps_lead_to_the_least_loss_and_go_on_where_they_were() {
        let new = || {
            let mut params = Params::new(3);
            params.add_matrix("w", 2, 2, 1.0).expect("matrix");
            params
        };
        let mut whole = new();
        run(&mut whole, 150);
        let mut saved = HashMap::new();
        whole.save(&mut saved).expect("copies");
        let end = run(&mut whole, 50);
        assert!(end < 1e-2, "{end}");
        let mut resumed = new();
        resumed.restore(&saved, 150).expect("same shapes");
        assert_eq!(run(&mut resumed, 50), end);
        saved.remove("mean/w");
        assert!(matches!(new().restore(&saved, 1), Err(Error::Shape { .. })));
    }

    #[test]
    fn schedule_rises_then_falls_to_a_twentieth() {
        let schedule = Schedule {
            rate: 1.0,
            n_steps: 200,
        };
        assert!(schedule.at(0) < 0.2 && schedule.at(9) > 0.99);
        assert!((schedule.at(199) - 0.05).abs() < 1e-6);
        assert!((10..199).all(|n| schedule.at(n + 1) < schedule.at(n)));
    }
}
