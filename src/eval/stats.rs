//! Means, percentiles and shares.

use serde::{Deserialize, Serialize};

/// Quantile of the normal distribution for an interval of 95 %.
const Z_95: f64 = 1.959_963_984_540_054;

/// How a list of measurements lies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spread {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of `values`, in any order; `None` if there are none.
    ///
    /// Percentiles between two measurements are interpolated linearly: type 7 of Hyndman and Fan,
    /// "Sample Quantiles in Statistical Packages" (1996), as `numpy.percentile` does by default.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        let max = *values.last()?;
        Some(Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: percentile(&values, 50.0),
            p95: percentile(&values, 95.0),
            p99: percentile(&values, 99.0),
            max,
        })
    }
}

/// A percentile of ascending `values`, of which there is at least one.
fn percentile(values: &[f64], percent: f64) -> f64 {
    let rank = percent / 100.0 * (values.len() - 1) as f64;
    let below = rank.floor() as usize;
    let above = (below + 1).min(values.len() - 1);
    values[below] + (values[above] - values[below]) * (rank - below as f64)
}

/// So many of so many.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Those for which something is true.
    pub hits: usize,
    /// All of them.
    pub of: usize,
    /// `hits / of`; 0 of none.
    pub share: f64,
    /// Interval of 95 % confidence, from 0 to 1.
    pub interval95: [f64; 2],
}

impl Share {
    /// `hits` of `of`, with Wilson's score interval (1927), which holds for small numbers and for
    /// shares near 0 and 1, too.
    pub fn new(hits: usize, of: usize) -> Self {
        if of == 0 {
            return Self {
                hits,
                of,
                share: 0.0,
                interval95: [0.0, 1.0],
            };
        }
        let (n, z2) = (of as f64, Z_95 * Z_95);
        let share = hits as f64 / n;
        let centre = share + z2 / (2.0 * n);
        let half = Z_95 * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
        let bound = |x: f64| (x / (1.0 + z2 / n)).clamp(0.0, 1.0);
        Self {
            hits,
            of,
            share,
            interval95: [bound(centre - half), bound(centre + half)],
        }
    }

    /// Of a list of yes and no.
    pub fn of(values: impl IntoIterator<Item = bool>) -> Self {
        let (mut hits, mut of) = (0, 0);
        for value in values {
            hits += usize::from(value);
            of += 1;
        }
        Self::new(hits, of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        spreads: Vec<(Vec<f64>, Spread)>,
        shares: Vec<Share>,
    }

    #[test]
    fn statistics_are_those_of_an_independent_program() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/golden/eval/statistics.json"))
                .expect("golden");
        let close = |a: f64, b: f64| (a - b).abs() <= 1e-12 * b.abs().max(1.0);
        for (values, expected) in &golden.spreads {
            let spread = Spread::of(values.iter().copied()).expect("values");
            for (ours, theirs) in [
                (spread.mean, expected.mean),
                (spread.p50, expected.p50),
                (spread.p95, expected.p95),
                (spread.p99, expected.p99),
                (spread.max, expected.max),
            ] {
                assert!(close(ours, theirs), "{ours} {theirs} of {values:?}");
            }
        }
        for expected in &golden.shares {
            let share = Share::new(expected.hits, expected.of);
            let pairs = [
                (share.share, expected.share),
                (share.interval95[0], expected.interval95[0]),
                (share.interval95[1], expected.interval95[1]),
            ];
            for (ours, theirs) in pairs {
                assert!(close(ours, theirs), "{share:?} {expected:?}");
            }
        }
        assert!(golden.spreads.len() >= 5 && golden.shares.len() >= 8);
    }

    #[test]
    fn statistics_of_nothing_claim_nothing() {
        assert_eq!(Spread::of([]), None);
        let none = Share::of([]);
        assert_eq!((none.hits, none.of, none.share), (0, 0, 0.0));
        assert_eq!(none.interval95, [0.0, 1.0]);
        assert_eq!(Share::of([true, false, true]), Share::new(2, 3));
    }
}
