//! From a histogram to the largest absolute value that is to be represented.
//!
//! All four methods look for the best symmetric range of signed 8-bit integers, 127 steps on
//! either side of zero.
//!
//! | method     | definition |
//! |------------|------------|
//! | max        | the largest absolute value |
//! | percentile | the share of all values, zeros included, that lies inside |
//! | MSE        | the least mean squared difference between values and their quantized form |
//! | entropy    | the least Kullback-Leibler divergence, over 128 levels of absolute values |
//!
//! Sources: Szymon Migacz, "8-bit Inference with TensorRT", GTC 2017 (entropy), and
//! `pytorch_quantization/calib/histogram.py` of NVIDIA's pytorch-quantization 2.1 (all four), with
//! these differences: exact zeros are left out of the histogram (there, the first bin is
//! overwritten with the second), and there are 4096 bins up to a power of two (there, 2048 up to
//! the largest value of the first batch). onnxruntime's `HistogramCollector` 1.31 differs more: its
//! entropy works on signed values, so that its 128 quantized bins are 64 on a side; it rounds the
//! bins of a level down and gives the rest to the last level, and truncates the expanded
//! distribution to integers.

use super::histogram::Histogram;
use super::ranges::Method;

/// Levels of absolute values that 8 bits have.
const N_LEVELS: usize = 128;

/// Largest quantized value.
const Q_MAX: f64 = 127.0;

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Entropy, Self::Percentile, Self::Mse, Self::Max];

    /// Name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Entropy => "entropy",
            Self::Percentile => "percentile",
            Self::Mse => "mse",
            Self::Max => "max",
        }
    }
}

/// Shares of absolute values in equal bins, from one or more histograms.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Weight of each bin, up to the last that is not empty.
    bins: Vec<f64>,
    width: f64,
    zeros: f64,
    abs_max: f32,
}

impl Distribution {
    /// Joins histograms so that each has the same total weight, however many values it has.
    ///
    /// Those without values are passed over; of a single one the weights are its counts.
    pub fn new(parts: &[&Histogram]) -> Self {
        let parts: Vec<_> = parts.iter().filter(|part| part.n_values() > 0).collect();
        let mut all = Histogram::default();
        for part in &parts {
            all.merge(part);
        }
        let n_bins = all.bins().iter().rposition(|&n| n > 0).map_or(0, |i| i + 1);
        let (mut bins, mut zeros) = (vec![0.0; n_bins], 0.0);
        for part in &parts {
            let weight = match parts.len() {
                1 => 1.0,
                _ => 1.0 / part.n_values() as f64,
            };
            // Both ranges are powers of two: whole bins fall into whole bins.
            let ratio = (all.bin_width() / part.bin_width()) as usize;
            for (i, &n) in part.bins().iter().enumerate().filter(|(_, n)| **n > 0) {
                bins[i / ratio.max(1)] += n as f64 * weight;
            }
            zeros += part.n_zeros() as f64 * weight;
        }
        Self {
            bins,
            width: all.bin_width(),
            zeros,
            abs_max: all.abs_max(),
        }
    }

    /// Largest absolute value.
    pub fn abs_max(&self) -> f32 {
        self.abs_max
    }

    /// The range that a method chooses; `percentile` is a share in percent.
    ///
    /// It is 0 only if all values are 0, and never above [`abs_max`](Self::abs_max).
    pub fn amax(&self, method: Method, percentile: f64) -> f32 {
        let n_bins = match method {
            Method::Max => None,
            Method::Percentile => self.percentile(percentile),
            Method::Mse => self.least(|n| self.squared_error(n)),
            Method::Entropy => self.entropy(),
        };
        n_bins.map_or(self.abs_max, |n| self.edge(n) as f32)
    }

    /// Upper edge of bin `n - 1`, or the largest value if that is less.
    fn edge(&self, n: usize) -> f64 {
        (n as f64 * self.width).min(f64::from(self.abs_max))
    }

    /// The fewest bins that hold a share of all values; `None` if zeros alone do.
    fn percentile(&self, percentile: f64) -> Option<usize> {
        let total = self.zeros + self.bins.iter().sum::<f64>();
        let wanted = total * percentile / 100.0;
        if self.zeros >= wanted {
            return None;
        }
        let mut inside = self.zeros;
        let found = self.bins.iter().position(|weight| {
            inside += weight;
            inside >= wanted
        });
        found.map(|i| i + 1)
    }

    /// The number of bins with the least cost; the larger one of equals. Ranges of fewer bins
    /// than levels are not tried: the histogram does not resolve them.
    fn least(&self, cost: impl Fn(usize) -> f64) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for n in N_LEVELS..=self.bins.len() {
            let cost = cost(n);
            if best.is_none_or(|(_, least)| cost <= least) {
                best = Some((n, cost));
            }
        }
        best.map(|(n, _)| n)
    }

    /// Sum of squared differences if the range is the first `n` bins; a bin stands for its middle.
    fn squared_error(&self, n: usize) -> f64 {
        let amax = self.edge(n);
        let scale = amax / Q_MAX;
        let inverse = 1.0 / scale;
        let error = |(i, weight): (usize, &f64)| {
            let x = (i as f64 + 0.5) * self.width;
            // Not negative: truncation rounds half up.
            let q = (x * inverse + 0.5) as u32 as f64;
            let off = q.min(Q_MAX) * scale - x;
            off * off * weight
        };
        self.bins.iter().enumerate().map(error).sum()
    }

    /// The number of bins whose 128-level form is closest to the distribution.
    ///
    /// With the first `n` bins, the reference P has all that lies beyond in its last bin. Q
    /// spreads the weight of each level evenly over those of its bins that are not empty. A
    /// candidate whose last bin is empty while something lies beyond has infinite divergence.
    fn entropy(&self) -> Option<usize> {
        let x_log_x = |x: f64| if x > 0.0 { x * x.ln() } else { 0.0 };
        // Sums over the bins before each: of weights, of weight * ln(weight), of bins that are
        // not empty.
        let mut sums = Vec::with_capacity(self.bins.len() + 1);
        sums.push((0.0, 0.0, 0u32));
        let (mut weight, mut logs, mut full) = (0.0, 0.0, 0);
        for &w in &self.bins {
            weight += w;
            logs += x_log_x(w);
            full += u32::from(w > 0.0);
            sums.push((weight, logs, full));
        }
        let total = weight;
        self.least(|n| {
            let (inside, _, _) = sums[n];
            let beyond = (total - inside).max(0.0);
            let last = self.bins[n - 1];
            if last == 0.0 {
                return f64::INFINITY;
            }
            let (mut cross, mut last_level) = (0.0, 0.0);
            for level in 0..N_LEVELS {
                let start = (level * n).div_ceil(N_LEVELS);
                let end = ((level + 1) * n).div_ceil(N_LEVELS);
                let weight = sums[end].0 - sums[start].0;
                let full = sums[end].2 - sums[start].2;
                if full > 0 {
                    let mean = (weight / f64::from(full)).ln();
                    cross += weight * mean;
                    last_level = mean;
                }
            }
            let own = sums[n - 1].1 + x_log_x(last + beyond);
            (own - cross - beyond * last_level) / total + (inside / total).ln()
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        cases: BTreeMap<String, Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        abs_max: f32,
        zeros: u64,
        bin_width: f64,
        bins: Vec<u64>,
        entropy_bins: usize,
        mse_bins: usize,
        percentile_bins: BTreeMap<String, usize>,
        raw_mse: f64,
        raw_percentile: f64,
        ort_entropy_bins: usize,
        ort_percentile: f64,
    }

    /// The data of `tests/golden/quantize/make.py`.
    fn values(case: &str) -> Vec<f32> {
        let mut state = case.len() as u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / f64::from(1 << 24)
        };
        let value = |i: usize| {
            if case == "uniform" {
                return (draw() * 2.0 - 1.0) as f32;
            }
            if case == "heavy" {
                return ((draw() - 0.5) / (draw() + 1.0 / 1024.0)) as f32;
            }
            let gauss = (0..12).map(|_| draw()).fold(0.0, |sum, u| sum + u) - 6.0;
            (match case {
                "relu" => gauss.max(0.0),
                "outliers" if i.is_multiple_of(997) => gauss * 64.0,
                "tiny" => gauss * 1e-6,
                _ => gauss,
            }) as f32
        };
        (0..200_000).map(value).collect()
    }

    fn golden() -> BTreeMap<String, Case> {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/quantize");
        let text = std::fs::read_to_string(format!("{dir}/ranges.json")).expect("golden");
        let golden: Golden = serde_json::from_str(&text).expect("golden");
        assert_eq!(golden.cases.len(), 6);
        golden.cases
    }

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(values);
        histogram
    }

    /// Mean squared difference between values and their form in 127 steps up to `amax`.
    fn squared_error(values: &[f32], amax: f32) -> f64 {
        let scale = f64::from(amax) / Q_MAX;
        let error = |&x: &f32| {
            let x = f64::from(x.abs());
            ((x / scale).round().min(Q_MAX) * scale - x).powi(2)
        };
        values.iter().map(error).sum::<f64>() / values.len() as f64
    }

    #[test]
    fn ranges_are_those_of_an_independent_program() {
        for (name, case) in golden() {
            let values = values(&name);
            let histogram = of(&values);
            assert_eq!(histogram.abs_max(), case.abs_max, "{name}");
            assert_eq!(histogram.n_zeros(), case.zeros, "{name}");
            assert_eq!(histogram.bin_width(), case.bin_width, "{name}");
            assert_eq!(histogram.bins()[..8], case.bins, "{name}");
            let distribution = Distribution::new(&[&histogram]);
            let edge = |n: usize| distribution.edge(n) as f32;
            let amax = |method| distribution.amax(method, 99.9);
            assert_eq!(amax(Method::Max), case.abs_max, "{name}");
            assert_eq!(amax(Method::Entropy), edge(case.entropy_bins), "{name}");
            assert_eq!(amax(Method::Mse), edge(case.mse_bins), "{name}");
            for (percentile, &n) in &case.percentile_bins {
                let percentile: f64 = percentile.parse().expect("number");
                let found = distribution.amax(Method::Percentile, percentile);
                assert_eq!(found, edge(n), "{name} {percentile}");
            }
        }
    }

    /// What a histogram cannot resolve is a bin, at most a 2048th of the largest value.
    #[test]
    fn ranges_of_a_histogram_are_near_those_of_the_values_themselves() {
        for (name, case) in golden() {
            let values = values(&name);
            let distribution = Distribution::new(&[&of(&values)]);
            let amax = |method| distribution.amax(method, 99.9);
            let percentile = f64::from(amax(Method::Percentile));
            let off = (percentile - case.raw_percentile).abs();
            assert!(off <= case.bin_width, "{name}: {off}");
            let error = squared_error(&values, amax(Method::Mse));
            // Of the widest data all but the outliers lie in a few bins.
            assert!(
                error <= case.raw_mse * 1.02,
                "{name}: {error} {}",
                case.raw_mse
            );
        }
    }

    /// onnxruntime's entropy differs as the module's documentation says: most where nearly all
    /// values lie in fewer bins than there are levels.
    #[test]
    fn ranges_are_near_those_of_onnxruntime() {
        for (name, case) in golden() {
            let off = (case.raw_percentile - case.ort_percentile).abs();
            assert!(off <= 2.0 * case.bin_width, "{name}: {off}");
            let (own, other) = (case.entropy_bins as f64, case.ort_entropy_bins as f64);
            let ratio = own / other;
            let tolerance = if name == "heavy" { 5.0 } else { 1.25 };
            assert!(
                ratio < tolerance && ratio > 1.0 / tolerance,
                "{name}: {ratio}"
            );
        }
    }

    #[test]
    fn range_of_zeros_is_zero_and_of_few_values_the_largest() {
        for method in Method::ALL {
            let amax = |values: &[f32]| Distribution::new(&[&of(values)]).amax(method, 99.99);
            assert_eq!(amax(&[]), 0.0);
            assert_eq!(amax(&[0.0; 100]), 0.0);
            assert_eq!(amax(&[-3.0; 100]), 3.0, "{method:?}");
            assert_eq!(amax(&[f32::MAX]), f32::MAX, "{method:?}");
        }
        // More zeros than the percentile leaves out: what is not zero still has a range.
        let mut sparse = vec![0.0; 100_000];
        sparse[7] = 2.0;
        let amax = Distribution::new(&[&of(&sparse)]).amax(Method::Percentile, 99.99);
        assert_eq!(amax, 2.0);
    }

    #[test]
    fn parts_have_equal_weight_whatever_their_size() {
        let many = of(&[1.0; 9_000]);
        let few = of(&[100.0; 10]);
        let both = Distribution::new(&[&many, &few]);
        assert_eq!(both.bins.iter().sum::<f64>(), 2.0);
        assert_eq!(both.amax(Method::Percentile, 99.0), 100.0);
        assert!(Distribution::new(&[&many]).amax(Method::Percentile, 99.0) <= 1.0);
        assert_eq!(
            Distribution::new(&[&many, &of(&[])]),
            Distribution::new(&[&many])
        );
    }
}
