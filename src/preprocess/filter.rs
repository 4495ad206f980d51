//! Resampling filters and their fixed-point weights.
//!
//! The weights are those of Pillow's `Resample.c` (`precompute_coeffs`,
//! `normalize_coeffs_8bpc`): computed in f64, normalised to a sum of one, rounded to 22
//! fractional bits. Any other precision or rounding changes one pixel in a few hundred.

use std::f64::consts::PI;
use std::ops::Range;

/// Fractional bits of a weight: 8 bits are the pixel, 2 bits are room for overshoot.
pub(super) const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A resampling filter, numbered as in PIL and in `preprocessor_config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// The filter with PIL's number `code`.
    pub(super) fn from_code(code: u64) -> Option<Self> {
        Some(match code {
            0 => Self::Nearest,
            1 => Self::Lanczos,
            2 => Self::Bilinear,
            3 => Self::Bicubic,
            4 => Self::Box,
            5 => Self::Hamming,
            _ => return None,
        })
    }

    /// Half the width of the filter, in input pixels at scale one.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box if x > -0.5 && x <= 0.5 => 1.0,
            Self::Box => 0.0,
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Hamming => hamming(x.abs()),
            Self::Bicubic => bicubic(x.abs()),
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * PI;
    x.sin() / x
}

fn hamming(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    if x >= 1.0 {
        return 0.0;
    }
    let x = x * PI;
    // Single precision in Pillow, and seen in the last bit of some weights.
    x.sin() / x * (f64::from(0.54f32) + f64::from(0.46f32) * x.cos())
}

/// Keys' cubic with a = -1/2.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Where each output position of one axis takes its value from.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    /// Length of the axis that is read.
    in_len: usize,
    /// Length of the whole axis that it becomes, of which the window is a part.
    out_len: usize,
    /// First input position and number of weights, per output position.
    spans: Vec<(u32, u32)>,
    /// Weights with [`PRECISION_BITS`] fractional bits, `stride` per output position.
    weights: Vec<i32>,
    stride: usize,
    /// Sum of the weights that fell outside the image, per output position; empty if none did.
    outside: Vec<i32>,
    copied_from: Option<usize>,
}

impl Axis {
    /// Resizes `in_len` positions to `out_len`, of which those in `window` are wanted.
    ///
    /// Lengths are positive and `window` lies in `0..out_len`.
    pub(super) fn new(filter: Filter, in_len: usize, out_len: usize, window: Range<usize>) -> Self {
        if in_len == out_len {
            return Self::copy(in_len, window);
        }
        if filter == Filter::Nearest {
            return Self::nearest(in_len, out_len, window);
        }
        let scale = in_len as f64 / out_len as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let stride = support.ceil() as usize * 2 + 1;
        let mut axis = Self {
            in_len,
            out_len,
            spans: Vec::with_capacity(window.len()),
            weights: vec![0; window.len() * stride],
            stride,
            outside: Vec::new(),
            copied_from: None,
        };
        let mut exact = vec![0f64; stride];
        for (i, out) in window.enumerate() {
            let center = (out as f64 + 0.5) * scale;
            // `as` truncates towards zero and saturates at zero, as both casts must.
            let first = (center - support + 0.5) as usize;
            let end = ((center + support + 0.5) as usize).min(in_len);
            let n = end.saturating_sub(first);
            let mut sum = 0.0;
            for (j, w) in exact[..n].iter_mut().enumerate() {
                *w = filter.weight(((j + first) as f64 - center + 0.5) * (1.0 / stretch));
                sum += *w;
            }
            axis.spans.push((first as u32, n as u32));
            for (fixed, w) in axis.weights[i * stride..].iter_mut().zip(&exact[..n]) {
                *fixed = to_fixed(if sum == 0.0 { *w } else { *w / sum });
            }
        }
        axis
    }

    fn copy(len: usize, window: Range<usize>) -> Self {
        Self {
            copied_from: Some(window.start),
            ..Self::single(len, len, window.map(|i| (i as u32, 1)).collect())
        }
    }

    /// PIL's nearest neighbour walks the input in steps of the scale, adding up rounding errors.
    fn nearest(in_len: usize, out_len: usize, window: Range<usize>) -> Self {
        let scale = in_len as f64 / out_len as f64;
        let mut at = scale * 0.5;
        let mut spans = Vec::with_capacity(window.len());
        for out in 0..window.end {
            if out >= window.start {
                spans.push(((at as usize).min(in_len - 1) as u32, 1));
            }
            at += scale;
        }
        Self::single(in_len, out_len, spans)
    }

    fn single(in_len: usize, out_len: usize, spans: Vec<(u32, u32)>) -> Self {
        Self {
            in_len,
            out_len,
            weights: vec![1 << PRECISION_BITS; spans.len()],
            spans,
            stride: 1,
            outside: Vec::new(),
            copied_from: None,
        }
    }

    /// Keeps the weights of the `len` positions from `offset` on, which are then counted from
    /// zero, and sums up the others.
    pub(super) fn within(mut self, offset: usize, len: usize) -> Self {
        if (offset, len) == (0, self.in_len) {
            return self;
        }
        self.copied_from = None;
        self.outside = vec![0; self.spans.len()];
        for (i, (first, n)) in self.spans.iter_mut().enumerate() {
            let (start, end) = (*first as usize, (*first + *n) as usize);
            let kept = start.clamp(offset, offset + len)..end.clamp(offset, offset + len);
            let weights = &mut self.weights[i * self.stride..][..end - start];
            let all: i32 = weights.iter().sum();
            weights.rotate_left(kept.start.saturating_sub(start).min(end - start));
            let inside: i32 = weights[..kept.len()].iter().sum();
            self.outside[i] = all - inside;
            (*first, *n) = ((kept.start - offset) as u32, kept.len() as u32);
        }
        self
    }

    /// Number of output positions.
    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    /// Length of the axis that was resized, before [`within`](Self::within).
    pub(super) fn in_len(&self) -> usize {
        self.in_len
    }

    /// Length of the whole axis that it becomes.
    pub(super) fn out_len(&self) -> usize {
        self.out_len
    }

    /// Most inputs of one output position, at least one.
    pub(super) fn max_taps(&self) -> usize {
        self.spans
            .iter()
            .map(|span| span.1)
            .max()
            .unwrap_or(0)
            .max(1) as usize
    }

    /// Inputs of output position `i`, and their weights.
    #[inline(always)]
    pub(super) fn taps(&self, i: usize) -> (usize, &[i32]) {
        let (first, n) = self.spans[i];
        let at = i * self.stride;
        (first as usize, &self.weights[at..at + n as usize])
    }

    /// Inputs of all output positions together.
    pub(super) fn used(&self) -> Range<usize> {
        let start = self.spans.first().map_or(0, |span| span.0);
        let end = self.spans.last().map_or(0, |span| span.0 + span.1);
        start as usize..end as usize
    }

    /// Sum of the weights of output position `i` that fall outside the image.
    #[inline(always)]
    pub(super) fn outside(&self, i: usize) -> i32 {
        self.outside.get(i).copied().unwrap_or(0)
    }

    /// The first input position, if the outputs are copies of consecutive inputs.
    pub(super) fn copied_from(&self) -> Option<usize> {
        self.copied_from
    }
}

/// Rounds half away from zero.
fn to_fixed(w: f64) -> i32 {
    let half = if w < 0.0 { -0.5 } else { 0.5 };
    (half + w * f64::from(1u32 << PRECISION_BITS)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axis_of_equal_lengths_copies() {
        for code in 0..6 {
            let filter = Filter::from_code(code).expect("a known code");
            let axis = Axis::new(filter, 9, 9, 2..7);
            assert_eq!(axis.copied_from(), Some(2));
            assert_eq!(axis.taps(0), (2, &[1 << PRECISION_BITS][..]));
        }
    }

    #[test]
    fn axis_weights_sum_to_one_within_rounding() {
        for code in 1..6 {
            let filter = Filter::from_code(code).expect("a known code");
            for (from, to) in [(1, 1000), (1000, 1), (7, 5), (1920, 1024), (5, 7)] {
                let axis = Axis::new(filter, from, to, 0..to);
                for i in 0..to {
                    let (first, w) = axis.taps(i);
                    assert!(!w.is_empty() && first + w.len() <= from);
                    let sum: i64 = w.iter().map(|&w| i64::from(w)).sum();
                    let off = (sum - (1 << PRECISION_BITS)).unsigned_abs() as usize;
                    assert!(off <= w.len(), "{filter:?} {from}->{to} at {i}: {sum}");
                }
            }
        }
    }

    #[test]
    fn axis_of_a_window_equals_that_part_of_the_whole() {
        for code in 0..6 {
            let filter = Filter::from_code(code).expect("a known code");
            let whole = Axis::new(filter, 100, 37, 0..37);
            let part = Axis::new(filter, 100, 37, 11..20);
            for i in 0..part.len() {
                assert_eq!(part.taps(i), whole.taps(i + 11));
            }
        }
    }

    #[test]
    fn filter_from_unknown_code_is_none() {
        assert_eq!(Filter::from_code(6), None);
        assert_eq!(Filter::from_code(u64::MAX), None);
    }
}
