//! A layer of a small net.

use crate::error::Result;
use crate::model::TrainedFile;

/// A matrix `[inputs, outputs]` and what is added behind it.
#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub matrix: Vec<f32>,
    pub bias: Vec<f32>,
}

impl Layer {
    /// Takes `<name>` and `<name>.bias` out of a file. Sizes that are `None` may be any above 0.
    ///
    /// # Errors
    /// [`Error::Malformed`](crate::Error::Malformed) naming file and tensor.
    pub fn take(
        file: &mut TrainedFile,
        name: &str,
        inputs: usize,
        outputs: Option<usize>,
    ) -> Result<Self> {
        let matrix = file.take(name, &[Some(inputs), outputs])?;
        let bias = file.take(&format!("{name}.bias"), &[Some(matrix.shape[1])])?;
        Ok(Self {
            matrix: matrix.data,
            bias: bias.data,
        })
    }

    /// Number of outputs.
    pub fn n(&self) -> usize {
        self.bias.len()
    }

    /// `x matrix + bias`; `x` is as wide as the layer has inputs.
    pub fn apply(&self, x: &[f32]) -> Vec<f32> {
        let mut out = self.bias.clone();
        for (x, row) in x.iter().zip(self.matrix.chunks_exact(out.len())) {
            for (out, w) in out.iter_mut().zip(row) {
                *out += x * w;
            }
        }
        out
    }
}

/// What is below 0 becomes 0.
pub(super) fn relu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = x.max(0.0));
}
