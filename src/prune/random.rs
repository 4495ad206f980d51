//! `random`: a baseline.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::policy::{Inputs, Kept, Needs, Policy};
use crate::error::Result;

/// Keeps rows drawn without replacement, every set of them equally likely.
///
/// What is drawn depends on the seed and on the rows, so that two frames do not lose the same
/// places, and one frame always loses the same.
#[derive(Debug, Clone, Copy, Default)]
pub struct Random {
    /// Where the draw begins.
    pub seed: u64,
}

impl Policy for Random {
    fn name(&self) -> &'static str {
        "random"
    }

    fn needs(&self) -> Needs {
        Needs {
            features: true,
            ..Needs::default()
        }
    }

    fn select(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept> {
        let n = inputs.features.n();
        // FNV-1a over the first number of each row.
        let mix = |hash: u64, row: usize| {
            let bits = u64::from(inputs.features.row(row)[0].to_bits());
            (hash ^ bits).wrapping_mul(0x100_0000_01b3)
        };
        let hash = (0..n).fold(0xcbf2_9ce4_8422_2325, mix);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ hash);
        let mut drawn: Vec<(u64, usize)> = (0..n).map(|row| (rng.next_u64(), row)).collect();
        drawn.sort_unstable();
        let mut indices: Vec<usize> = drawn.iter().take(keep).map(|(_, row)| *row).collect();
        indices.sort_unstable();
        Ok(Kept {
            indices,
            scores: Vec::new(),
            merge: None,
        })
    }
}
