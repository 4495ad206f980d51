//! The net of a pruner, and what it learns.

use candle_core::{DType, Tensor};

use super::super::failed;
use super::super::fit::Trainee;
use super::super::net::{ratio, wrap};
use super::super::params::Params;
use super::super::shards::{Record, part};
use crate::error::Result;
use crate::prune::Keep;

/// Share of the tokens by which the net is judged.
const JUDGED: f64 = 0.1;

/// A net, without its weights: see `prune::Learned`.
pub(super) struct Net {
    pub d: usize,
    /// Width of the projections.
    pub p: usize,
    /// Width of the hidden layer for the question.
    pub h: usize,
    /// Width of the hidden layer of the MLP.
    pub m: usize,
    /// What makes of the rows and the embeddings numbers of unit scale.
    pub feature_scale: f64,
    pub question_scale: f64,
}

/// The layers: name, inputs, outputs, whether something is added behind it.
pub(super) type Layers = [(&'static str, usize, usize, bool); 5];

impl Net {
    pub(super) fn layers(&self) -> Layers {
        [
            ("visual", self.d, self.p, false),
            ("question", self.d, self.h, true),
            ("condition", self.h, self.p, true),
            ("mlp", 3 * self.p, self.m, true),
            ("score", self.m, 1, true),
        ]
    }

    /// Adds the weights.
    pub(super) fn init(&self, params: &mut Params) -> Result<()> {
        for (name, inputs, outputs, is_biased) in self.layers() {
            params.add_matrix(name, inputs, outputs, 1.0)?;
            if is_biased {
                params.add_matrix(&format!("{name}.bias"), 1, outputs, 0.0)?;
            }
        }
        Ok(())
    }

    /// Logits of importance, `[k, n]`.
    fn forward(&self, params: &Params, record: &Record) -> Result<Tensor> {
        let (features, questions) = (part(record, "features")?, part(record, "questions")?);
        let apply = |x: &Tensor, name: &str| -> candle_core::Result<Tensor> {
            let matrix = params.get(name).map_err(wrap)?;
            let bias = params.get(&format!("{name}.bias")).map_err(wrap)?;
            x.matmul(matrix)?.broadcast_add(bias)
        };
        let run = || -> candle_core::Result<Tensor> {
            let features = (features.to_dtype(DType::F32)? * self.feature_scale)?;
            let z = features.matmul(params.get("visual").map_err(wrap)?)?;
            let q = apply(&(questions * self.question_scale)?, "question")?.relu()?;
            let c = apply(&q, "condition")?;
            let (k, n) = (c.dim(0)?, z.dim(0)?);
            let shape = (k, n, self.p);
            let z = z.unsqueeze(0)?.broadcast_as(shape)?;
            let c = c.unsqueeze(1)?.broadcast_as(shape)?;
            let all = Tensor::cat(&[&z, &c, &(&z * &c)?], 2)?;
            let all = all.reshape((k * n, 3 * self.p))?;
            let score = apply(&apply(&all, "mlp")?.relu()?, "score")?;
            score.reshape((k, n))
        };
        run().map_err(failed)
    }
}

impl Trainee for Net {
    fn loss(&self, params: &Params, record: &Record) -> Result<Option<Tensor>> {
        if record.is_empty() {
            return Ok(None);
        }
        let logits = self.forward(params, record)?;
        let targets = part(record, "targets")?;
        // Cross entropy of a share: softplus(x) - y x, in the form that does not overflow.
        let run = || -> candle_core::Result<Tensor> {
            let softplus = (logits.relu()? + (logits.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
            (softplus - (&logits * targets)?)?.mean_all()
        };
        run().map(Some).map_err(failed)
    }

    /// For each question the attention that the tokens get which the net would keep, and the most that so many can get.
    fn judge(&self, params: &Params, record: &Record) -> Result<Vec<f64>> {
        if record.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.forward(params, record)?;
        let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().map_err(failed);
        let (logits, targets) = (rows(&logits)?, rows(part(record, "targets")?)?);
        let (mut got, mut most) = (0f64, 0f64);
        for (logits, targets) in logits.iter().zip(&targets) {
            let keep = Keep::new(JUDGED)?.count(targets.len(), targets.len());
            let sum = |by: &[f32]| -> f64 {
                let mut order: Vec<usize> = (0..by.len()).collect();
                order.sort_by(|&a, &b| by[b].total_cmp(&by[a]).then(a.cmp(&b)));
                order[..keep]
                    .iter()
                    .map(|&i| f64::from(targets[i]).powi(2))
                    .sum()
            };
            got += sum(logits);
            most += sum(targets);
        }
        Ok(vec![got, most])
    }

    fn score(&self, sums: &[f64]) -> f64 {
        ratio(sums, 0, 1)
    }
}
