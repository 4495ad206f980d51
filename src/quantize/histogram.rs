//! Counts of absolute values, for tensors that are seen once and forgotten.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Bins of a histogram.
pub const N_BINS: usize = 4096;

/// Ranges are not narrower than `2^MIN_EXPONENT`: below lie values that FP16 does not have.
const MIN_EXPONENT: i32 = -64;

/// Elements that are looked at twice while they are in the cache.
const CHUNK: usize = 4096;

/// How often absolute values lie in each of [`N_BINS`] equal bins between 0 and a power of two.
///
/// The range is the smallest power of two above all values seen. When a larger one comes, the
/// range doubles and neighbouring bins are added, which is exact: bin edges are powers of two
/// apart, so that a histogram depends on the values alone, not on their order, and adding two
/// histograms gives that of all their values. Exact zeros, which any scale represents, are
/// counted apart, as are NaN and infinities.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The range is `0..2^exponent`.
    exponent: i32,
    /// Empty, or [`N_BINS`] counts.
    bins: Vec<u64>,
    n_zeros: u64,
    n_values: u64,
    n_nan: u64,
    n_infinite: u64,
    min: f32,
    max: f32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            exponent: MIN_EXPONENT,
            bins: Vec::new(),
            n_zeros: 0,
            n_values: 0,
            n_nan: 0,
            n_infinite: 0,
            min: f32::INFINITY,
            max: f32::NEG_INFINITY,
        }
    }
}

impl Histogram {
    /// Adds values.
    pub fn add(&mut self, values: &[f32]) {
        // Neighbouring values often fall into one bin: two tables, so that an increment does
        // not wait for the one before.
        let mut tables = [[0u32; N_BINS]; 2];
        // No counter overflows before it is added to the total.
        for part in values.chunks(1 << 30) {
            for chunk in part.chunks(CHUNK) {
                self.add_chunk(chunk, &mut tables);
            }
            self.flush(&mut tables);
        }
    }

    fn add_chunk(&mut self, chunk: &[f32], tables: &mut [[u32; N_BINS]; 2]) {
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        let (mut n_zeros, mut n_finite) = (0u32, 0u32);
        for &x in chunk {
            min = if x < min { x } else { min };
            max = if x > max { x } else { max };
            n_zeros += u32::from(x == 0.0);
            n_finite += u32::from(x.abs() < f32::INFINITY);
        }
        if n_finite as usize != chunk.len() {
            // Rare, and the end of a calibration: one by one.
            let finite: Vec<f32> = chunk.iter().copied().filter(|x| x.is_finite()).collect();
            let n_nan = chunk.iter().filter(|x| x.is_nan()).count() as u64;
            self.n_nan += n_nan;
            self.n_infinite += chunk.len() as u64 - finite.len() as u64 - n_nan;
            self.n_values += chunk.len() as u64 - finite.len() as u64;
            if !finite.is_empty() {
                self.add_chunk(&finite, tables);
            }
            return;
        }
        self.n_values += chunk.len() as u64;
        self.n_zeros += u64::from(n_zeros);
        self.min = self.min.min(min);
        self.max = self.max.max(max);
        let exponent = exponent_above(max.max(-min));
        if exponent > self.exponent {
            self.flush(tables);
            self.widen(exponent);
        }
        let scale = exp2(BINS_EXPONENT - self.exponent);
        let [even, odd] = tables;
        let mut pairs = chunk.chunks_exact(2);
        for pair in &mut pairs {
            even[bin(pair[0], scale)] += 1;
            odd[bin(pair[1], scale)] += 1;
        }
        for &x in pairs.remainder() {
            even[bin(x, scale)] += 1;
        }
        // Zeros went into the first bin of whichever table.
        self.ensure_bins();
        self.bins[0] = self.bins[0].wrapping_sub(u64::from(n_zeros));
    }

    fn ensure_bins(&mut self) {
        if self.bins.is_empty() {
            self.bins = vec![0; N_BINS];
        }
    }

    /// Adds the counters of a call to the totals.
    fn flush(&mut self, tables: &mut [[u32; N_BINS]; 2]) {
        self.ensure_bins();
        for table in tables {
            for (total, count) in self.bins.iter_mut().zip(table.iter_mut()) {
                *total = total.wrapping_add(u64::from(std::mem::take(count)));
            }
        }
    }

    /// Makes the range `0..2^exponent`.
    fn widen(&mut self, exponent: i32) {
        let shift = (exponent - self.exponent).clamp(0, i32::BITS as i32 - 1) as u32;
        self.exponent = self.exponent.max(exponent);
        if shift == 0 || self.bins.is_empty() {
            return;
        }
        for i in 0..N_BINS {
            let count = std::mem::take(&mut self.bins[i]);
            let wide = &mut self.bins[i >> shift];
            *wide = wide.wrapping_add(count);
        }
    }

    /// Adds all that `other` has seen.
    pub fn merge(&mut self, other: &Self) {
        let mut other = other.clone();
        let exponent = self.exponent.max(other.exponent);
        self.widen(exponent);
        other.widen(exponent);
        if !other.bins.is_empty() {
            self.ensure_bins();
        }
        for (total, count) in self.bins.iter_mut().zip(&other.bins) {
            *total = total.saturating_add(*count);
        }
        self.n_zeros = self.n_zeros.saturating_add(other.n_zeros);
        self.n_values = self.n_values.saturating_add(other.n_values);
        self.n_nan += other.n_nan;
        self.n_infinite += other.n_infinite;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }

    /// Number of values, zeros and those that are not finite included.
    pub fn n_values(&self) -> u64 {
        self.n_values
    }

    /// Number of exact zeros.
    pub fn n_zeros(&self) -> u64 {
        self.n_zeros
    }

    /// Number of values that are not a number.
    pub fn n_nan(&self) -> u64 {
        self.n_nan
    }

    /// Number of infinities.
    pub fn n_infinite(&self) -> u64 {
        self.n_infinite
    }

    /// Smallest finite value; 0 if there is none.
    pub fn min(&self) -> f32 {
        if self.min <= self.max { self.min } else { 0.0 }
    }

    /// Largest finite value; 0 if there is none.
    pub fn max(&self) -> f32 {
        if self.min <= self.max { self.max } else { 0.0 }
    }

    /// Largest absolute value.
    pub fn abs_max(&self) -> f32 {
        self.max().max(-self.min())
    }

    /// Width of a bin.
    pub fn bin_width(&self) -> f64 {
        f64::from(exp2(self.exponent - BINS_EXPONENT))
    }

    /// Counts of the bins, zeros not included; empty if nothing was added.
    pub fn bins(&self) -> &[u64] {
        &self.bins
    }
}

/// `N_BINS` is two to this power.
const BINS_EXPONENT: i32 = N_BINS.trailing_zeros() as i32;

fn bin(x: f32, scale: f32) -> usize {
    // The range is above every value, so that this is below `N_BINS`; the mask spares a check.
    (x.abs() * scale) as usize & (N_BINS - 1)
}

/// The smallest exponent, within limits, whose power of two is above `x`, which is finite and
/// not negative.
fn exponent_above(x: f32) -> i32 {
    // The biased exponent of 1.0 is 127, and 2^1 is above it. A zero may have a sign.
    let biased = (x.abs().to_bits() >> 23) as i32;
    (biased - 126).max(MIN_EXPONENT)
}

/// Two to a power that a normal f32 has.
fn exp2(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127).clamp(1, 254) as u32) << 23)
}

/// How a histogram is written down: floats as bits, so that they come back exactly, and bins
/// from the first to the last that is not empty.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    exponent: i32,
    first: usize,
    bins: Vec<u64>,
    zeros: u64,
    values: u64,
    min: u32,
    max: u32,
}

impl Serialize for Histogram {
    fn serialize<S: serde::Serializer>(
        &self,
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        let full = |&n: &u64| n > 0;
        let first = self.bins.iter().position(full).unwrap_or(0);
        let end = self.bins.iter().rposition(full).map_or(0, |last| last + 1);
        Stored {
            exponent: self.exponent,
            first,
            bins: self.bins[first..end.max(first)].to_vec(),
            zeros: self.n_zeros,
            values: self.n_values,
            min: self.min.to_bits(),
            max: self.max.to_bits(),
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: serde::Deserializer<'de>>(
        deserializer: D,
    ) -> std::result::Result<Self, D::Error> {
        let stored = Stored::deserialize(deserializer)?;
        Self::try_from(stored).map_err(serde::de::Error::custom)
    }
}

impl TryFrom<Stored> for Histogram {
    type Error = Error;

    fn try_from(stored: Stored) -> Result<Self> {
        let (min, max) = (f32::from_bits(stored.min), f32::from_bits(stored.max));
        let n_counted = stored
            .bins
            .iter()
            .try_fold(stored.zeros, |n, &b| n.checked_add(b));
        let fits = stored
            .first
            .checked_add(stored.bins.len())
            .is_some_and(|n| n <= N_BINS);
        let is_sound = fits
            && n_counted == Some(stored.values)
            && (MIN_EXPONENT..=128).contains(&stored.exponent)
            && !min.is_nan()
            && !max.is_nan()
            && (stored.values == 0 || (min <= max && min.is_finite() && max.is_finite()))
            && (stored.values == 0 || exponent_above(max.max(-min)) <= stored.exponent);
        if !is_sound {
            return Err(Error::malformed(
                "histogram",
                "its numbers contradict each other",
            ));
        }
        let mut bins = Vec::new();
        if stored.values > 0 {
            bins = vec![0; N_BINS];
            bins[stored.first..][..stored.bins.len()].copy_from_slice(&stored.bins);
        }
        Ok(Self {
            exponent: stored.exponent,
            bins,
            n_zeros: stored.zeros,
            n_values: stored.values,
            n_nan: 0,
            n_infinite: 0,
            min,
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(values);
        histogram
    }

    #[test]
    fn histogram_counts_what_lies_in_each_bin() {
        let histogram = of(&[0.0, -0.0, 0.5, -0.5, 3.0, 1e-9, -3.9999]);
        assert_eq!(histogram.bin_width(), 4.0 / 4096.0);
        assert_eq!((histogram.n_values(), histogram.n_zeros()), (7, 2));
        assert_eq!((histogram.min(), histogram.max()), (-3.9999, 3.0));
        let bins = histogram.bins();
        let full: Vec<_> = (0..N_BINS)
            .filter(|&i| bins[i] > 0)
            .map(|i| (i, bins[i]))
            .collect();
        assert_eq!(full, [(0, 1), (512, 2), (3072, 1), (4095, 1)]);
    }

    #[test]
    fn histogram_of_nothing_zeros_extremes_and_powers_of_two() {
        assert_eq!((of(&[]).abs_max(), of(&[]).n_values()), (0.0, 0));
        let zeros = of(&[0.0; 5]);
        assert_eq!(
            (zeros.abs_max(), zeros.n_zeros(), zeros.bins()[0]),
            (0.0, 5, 0)
        );
        assert_eq!(of(&[-0.0; 3]), of(&[0.0; 3]));
        let extreme = of(&[f32::MAX, f32::MIN_POSITIVE, 1e-45]);
        assert_eq!(
            (extreme.abs_max(), extreme.bins()[0], extreme.bins()[4095]),
            (f32::MAX, 2, 1)
        );
        // A power of two is the first value above its range, not the last one in it.
        let power = of(&[1.0]);
        assert_eq!((power.bin_width(), power.bins()[2048]), (2.0 / 4096.0, 1));
    }

    #[test]
    fn histogram_counts_what_is_not_finite_and_keeps_the_rest() {
        let histogram = of(&[1.0, f32::NAN, f32::INFINITY, -2.0, f32::NEG_INFINITY]);
        assert_eq!((histogram.n_nan(), histogram.n_infinite()), (1, 2));
        assert_eq!(
            (histogram.n_values(), histogram.min(), histogram.max()),
            (5, -2.0, 1.0)
        );
        assert_eq!(histogram.bins().iter().sum::<u64>(), 2);
    }

    #[test]
    fn stored_histogram_that_contradicts_itself_is_refused() {
        let good = serde_json::to_value(of(&[1.0, 2.0, 0.0])).expect("json");
        assert!(serde_json::from_value::<Histogram>(good.clone()).is_ok());
        for (key, value) in [
            ("exponent", 200.into()),
            ("exponent", 1.into()),
            ("first", 4096.into()),
            ("first", u64::MAX.into()),
            ("zeros", u64::MAX.into()),
            ("values", 4.into()),
            ("min", f32::NAN.to_bits().into()),
            ("max", f32::INFINITY.to_bits().into()),
            ("more", serde_json::Value::from(1)),
        ] {
            let mut bad = good.clone();
            bad[key] = value;
            assert!(serde_json::from_value::<Histogram>(bad).is_err(), "{key}");
        }
    }

    fn any_finite() -> impl Strategy<Value = f32> {
        prop_oneof![
            any::<f32>().prop_filter("finite", |x| x.is_finite()),
            -10.0f32..10.0,
            Just(0.0f32)
        ]
    }

    proptest! {
        #[test]
        fn histogram_does_not_depend_on_order_or_on_how_values_are_split(
            values in prop::collection::vec(any_finite(), 0..300),
            at in any::<prop::sample::Index>(),
        ) {
            let whole = of(&values);
            let reversed: Vec<f32> = values.iter().rev().copied().collect();
            prop_assert_eq!(&of(&reversed), &whole);
            let (a, b) = values.split_at(at.index(values.len() + 1));
            let mut merged = of(b);
            merged.merge(&of(a));
            if !values.is_empty() {
                prop_assert_eq!(&merged, &whole);
            }
            let counted = whole.bins().iter().sum::<u64>() + whole.n_zeros();
            prop_assert_eq!(counted, values.len() as u64);
            let text = serde_json::to_string(&whole).expect("json");
            let back: Histogram = serde_json::from_str(&text).expect("read");
            if !values.is_empty() {
                prop_assert_eq!(back, whole);
            }
        }
    }
}
