//! The probe, and what it learns.

use candle_core::{DType, Tensor};

use super::super::failed;
use super::super::fit::Trainee;
use super::super::net::{cross_entropy, ratio, wrap};
use super::super::params::Params;
use super::super::shards::{Record, part};
use crate::error::Result;

/// A probe, without its weights: see `quick::Probe`.
pub(super) struct Net {
    pub d: usize,
    pub n_kinds: usize,
    pub n_colours: usize,
    pub n_grounds: usize,
    /// What makes of the rows numbers of unit scale.
    pub scale: f64,
}

impl Net {
    /// Name and outputs of each layer that there is.
    pub(super) fn layers(&self) -> impl Iterator<Item = (&'static str, usize)> + use<> {
        let layers = [
            ("kind", 1 + self.n_kinds),
            ("colour", self.n_colours),
            ("ground", self.n_grounds),
        ];
        layers.into_iter().filter(|&(_, n)| n > 0)
    }

    /// Adds the weights.
    pub(super) fn init(&self, params: &mut Params) -> Result<()> {
        for (name, n) in self.layers() {
            params.add_matrix(name, self.d, n, 0.1)?;
            params.add_matrix(&format!("{name}.bias"), 1, n, 0.0)?;
        }
        Ok(())
    }

    /// Cross entropy of the cells, of the colours of objects, and of the ground, added.
    fn cost(&self, params: &Params, record: &Record) -> Result<Tensor> {
        let (features, kinds) = (part(record, "features")?, part(record, "kinds")?);
        let apply = |x: &Tensor, name: &str| -> candle_core::Result<Tensor> {
            let matrix = params.get(name).map_err(wrap)?;
            let bias = params.get(&format!("{name}.bias")).map_err(wrap)?;
            x.matmul(matrix)?.broadcast_add(bias)
        };
        let run = || -> candle_core::Result<Tensor> {
            let rows = (features.to_dtype(DType::F32)? * self.scale)?;
            let mut cost = cross_entropy(&apply(&rows, "kind")?, kinds)?;
            if let (Some(cells), Some(colours)) = (record.get("coloured"), record.get("colours")) {
                let rows = rows.index_select(cells, 0)?;
                cost = (cost + cross_entropy(&apply(&rows, "colour")?, colours)?)?;
            }
            if let Some(ground) = record.get("ground") {
                let mean = rows.mean_keepdim(0)?;
                cost = (cost + cross_entropy(&apply(&mean, "ground")?, ground)?)?;
            }
            Ok(cost)
        };
        run().map_err(failed)
    }
}

impl Trainee for Net {
    fn loss(&self, params: &Params, record: &Record) -> Result<Option<Tensor>> {
        match record.is_empty() {
            true => Ok(None),
            false => self.cost(params, record).map(Some),
        }
    }

    /// The same, and one for each picture.
    fn judge(&self, params: &Params, record: &Record) -> Result<Vec<f64>> {
        if record.is_empty() {
            return Ok(Vec::new());
        }
        let cost = self.cost(params, record)?;
        let cost = cost.to_scalar::<f32>().map_err(failed)?;
        Ok(vec![f64::from(cost), 1.0])
    }

    fn score(&self, sums: &[f64]) -> f64 {
        -ratio(sums, 0, 1)
    }
}
