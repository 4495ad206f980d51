//! How far values are from what they should be.

use serde::{Deserialize, Serialize};

/// The ratio of what is no signal at all, or not finite.
pub const WORST_DB: f64 = -200.0;

/// Sums over pairs of values, from which the measures come.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Deviation {
    reference: f64,
    other: f64,
    product: f64,
    error: f64,
}

/// The measures, rounded to what is the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measures {
    /// Signal-to-quantization-noise ratio in dB: `10 log10(Σ r² / Σ (r - x)²)`, from [`WORST_DB`] on;
    /// `None` if nothing differs.
    pub sqnr_db: Option<f64>,
    /// Cosine of the angle between both; 1 if one is zero and nothing differs.
    pub cosine: f64,
}

impl Deviation {
    /// Takes note of some values; where the lengths differ, what is missing counts as 0.
    pub fn add(&mut self, reference: &[f32], other: &[f32]) {
        let n = reference.len().max(other.len());
        let at = |values: &[f32], i: usize| values.get(i).copied().map_or(0.0, f64::from);
        for i in 0..n {
            let (r, x) = (at(reference, i), at(other, i));
            self.reference += r * r;
            self.other += x * x;
            self.product += r * x;
            self.error += (r - x) * (r - x);
        }
    }

    /// What came of all values.
    pub fn measures(&self) -> Measures {
        // NaN is an error, too.
        let differs = self.error != 0.0;
        let sqnr = differs.then(|| {
            let db = 10.0 * (self.reference / self.error).log10();
            // `max` takes the number of a number and NaN.
            db.max(WORST_DB)
        });
        let lengths = (self.reference * self.other).sqrt();
        let cosine = match lengths.is_normal() {
            true => self.product / lengths,
            false if !differs => 1.0,
            false => 0.0,
        };
        Measures {
            sqnr_db: sqnr.map(|db| rounded(db, 100.0)),
            cosine: rounded(cosine, 1e6),
        }
    }
}

impl Measures {
    /// For an order in which the worst is first: what differs nowhere is last.
    pub fn badness(&self) -> f64 {
        self.sqnr_db.map_or(f64::NEG_INFINITY, |db| -db)
    }
}

fn rounded(value: f64, steps: f64) -> f64 {
    (value * steps).round() / steps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(reference: &[f32], other: &[f32]) -> Measures {
        let mut deviation = Deviation::default();
        deviation.add(reference, other);
        deviation.measures()
    }

    #[test]
    fn measures_are_those_of_their_formulas() {
        // Error 1 in 100: 20 dB. At right angles: cosine 0, error twice the signal.
        let close = of(&[10.0, 0.0], &[10.0, 1.0]);
        assert_eq!(close.sqnr_db, Some(20.0));
        assert_eq!(close.cosine, 0.995_037);
        let across = of(&[3.0, 0.0], &[0.0, 3.0]);
        assert_eq!((across.sqnr_db, across.cosine), (Some(-3.01), 0.0));
        assert_eq!(of(&[1.0, 2.0], &[1.0, 2.0]).sqnr_db, None);
        assert_eq!(of(&[0.0], &[0.0]).cosine, 1.0);
        assert_eq!(of(&[0.0], &[1.0]).cosine, 0.0);
        assert_eq!(of(&[1.0, 2.0], &[1.0]), of(&[1.0, 2.0], &[1.0, 0.0]));
        let mut pooled = Deviation::default();
        pooled.add(&[10.0], &[10.0]);
        pooled.add(&[0.0], &[1.0]);
        assert_eq!(pooled.measures(), close);
    }

    #[test]
    fn what_is_no_number_is_worst_and_what_differs_nowhere_best() {
        for other in [f32::NAN, f32::INFINITY] {
            let bad = of(&[1.0, 1.0], &[1.0, other]);
            assert_eq!((bad.sqnr_db, bad.cosine), (Some(WORST_DB), 0.0), "{other}");
        }
        assert_eq!(of(&[0.0], &[1.0]).sqnr_db, Some(WORST_DB));
        let badness = |sqnr_db| {
            let cosine = 0.0;
            Measures { sqnr_db, cosine }.badness()
        };
        let order = [None, Some(40.0), Some(3.0), Some(-2.0), Some(WORST_DB)];
        assert!(order.map(badness).is_sorted());
    }
}
