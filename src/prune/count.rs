//! How many tokens stay.

use crate::error::{Error, Result};

/// Shares of all tokens that counts are rounded up to, so that the decoder sees few lengths of
/// prompts. Below the first one counts are powers of two.
pub const SHARES: [f64; 14] = [
    0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0,
];

/// What rounding errors may make of a share that is meant exactly.
const EPSILON: f64 = 1e-9;

/// The share of visual tokens that stays: above 0, at most 1.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Keep(f64);

impl Keep {
    /// All of them.
    pub const ALL: Self = Self(1.0);

    /// Checks a share.
    ///
    /// # Errors
    /// [`Error::Argument`] if it is not above 0 and at most 1.
    pub fn new(share: f64) -> Result<Self> {
        if share > 0.0 && share <= 1.0 {
            return Ok(Self(share));
        }
        Err(Error::Argument {
            name: "keep",
            reason: format!("{share}, expected a share above 0 and at most 1, such as 0.1"),
        })
    }

    /// The share.
    pub fn share(self) -> f64 {
        self.0
    }

    /// How many of `n` tokens stay, of `total` that the vision tower made: at least one, and at
    /// least the share of `n`, rounded up to the next of a few counts.
    pub fn count(self, n: usize, total: usize) -> usize {
        let part = |n: usize, share: f64| (n as f64 * share - EPSILON).ceil().max(1.0) as usize;
        let wanted = part(n, self.0);
        let smallest = part(total, SHARES[0]);
        let bucket = match wanted < smallest {
            true => wanted.next_power_of_two().min(smallest),
            false => {
                let counts = SHARES.iter().map(|&share| part(total, share));
                counts
                    .into_iter()
                    .find(|&count| count >= wanted)
                    .unwrap_or(n)
            }
        };
        bucket.min(n)
    }

    /// True if less than one of `n` tokens was asked for.
    pub fn is_below_one(self, n: usize) -> bool {
        (n as f64) * self.0 < 1.0
    }
}

impl Default for Keep {
    fn default() -> Self {
        Self::ALL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_outside_its_range_is_refused() {
        for share in [
            0.0,
            -0.1,
            1.0001,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
        ] {
            let error = Keep::new(share).expect_err("refused");
            assert!(
                matches!(error, Error::Argument { name: "keep", .. }),
                "{error}"
            );
        }
        for share in [f64::MIN_POSITIVE, 0.1, 1.0] {
            assert_eq!(Keep::new(share).expect("share").share(), share);
        }
    }

    #[test]
    fn counts_are_of_few_buckets_and_never_below_one() {
        let count = |share: f64, n, total| Keep::new(share).expect("share").count(n, total);
        let cases = [
            // 256 tokens: the shares that people ask for are taken as they are.
            (1.0, 256, 256, 256),
            (0.7, 256, 256, 180),
            (0.5, 256, 256, 128),
            (0.25, 256, 256, 64),
            (0.1, 256, 256, 26),
            (0.05, 256, 256, 13),
            // Others are rounded up.
            (0.42, 256, 256, 128),
            (0.11, 256, 256, 39),
            (0.03, 256, 256, 8),
            (0.02, 256, 256, 8),
            (0.001, 256, 256, 1),
            (1e-300, 256, 256, 1),
            // Of 144 tokens that see the frame.
            (0.5, 144, 256, 77),
            (1.0, 144, 256, 144),
            (0.99, 144, 256, 144),
            (0.1, 1, 1, 1),
        ];
        for (share, n, total, expected) in cases {
            assert_eq!(
                count(share, n, total),
                expected,
                "{share} of {n} of {total}"
            );
        }
        let mut counts: Vec<usize> = (1..=1000)
            .map(|i| count(f64::from(i) / 1000.0, 1088, 1088))
            .collect();
        counts.dedup();
        assert!(counts.len() <= SHARES.len() + 7, "{counts:?}");
        assert!(counts.is_sorted());
    }
}
