//! Weights as 4-bit integers with a scale per block of a column.
//!
//! | tensor | shape | dtype |
//! |--------|-------|-------|
//! | codes  | `[d, n]`, that of the weight | i4, -8 to 7 |
//! | scales | `[d / block, n]` | f32, each a number that FP16 has, at least 2^-14 |
//!
//! `w ≈ code · scale`, symmetric: engines take no other zero point. A scale that lets the largest
//! weight of a block saturate can serve the others better, so that the one with the least squared
//! error is searched among [`SCALES`] of them; codes are rounded half to even.

use std::path::Path;

use half::f16;

use super::weights::MIN_SCALE;
use crate::error::{Error, Result};
use crate::onnx::DataType;
use crate::onnx::proto::TensorProto;

/// Smallest and largest code.
const CODES: (f32, f32) = (-8.0, 7.0);

/// Scales that are tried for a block.
const SCALES: usize = 16;

/// Largest and smallest scale that is tried, as the code that the block's largest weight would have.
const LARGEST_AS: (f32, f32) = (7.0, 10.75);

/// Blocks that engines have kernels for.
pub const BLOCK_SIZES: [usize; 5] = [16, 32, 64, 128, 256];

/// A weight in blocks; its tensors have no names.
#[derive(Debug, Clone)]
pub struct BlockCodes {
    /// The integers.
    pub codes: TensorProto,
    /// A scale for each block.
    pub scales: TensorProto,
    /// Blocks whose scale is [`MIN_SCALE`] though they have values that are not zero.
    pub n_clamped: usize,
}

/// The largest block, `block` at most, that divides the columns of a weight `[d, n]`; `None` if
/// none does, or rows of codes would not end at whole bytes.
pub fn block_for(dims: &[i64], block: usize) -> Option<usize> {
    let &[d, n] = dims else { return None };
    let d = usize::try_from(d).ok().filter(|&d| d > 0)?;
    let divides = |size: &usize| *size <= block && d.is_multiple_of(*size);
    let even = n > 0 && n % 2 == 0;
    BLOCK_SIZES.into_iter().rev().find(divides).filter(|_| even)
}

/// Quantizes a weight `[d, n]` with a scale for each `block` rows of a column; `block` divides `d`,
/// and `n` is even.
///
/// # Errors
/// [`Error::Malformed`] naming a weight whose bytes do not fit its shape or block, or that has
/// values that are not finite or beyond what a scale of FP16 represents.
pub fn quantize_blocks(weight: &TensorProto, block: usize, path: &Path) -> Result<BlockCodes> {
    let bad = |reason: &str| Error::malformed(path, format!("weight `{}` {reason}", weight.name));
    let len = weight.len(path)? as usize;
    if block_for(&weight.dims, block) != Some(block) {
        return Err(bad("does not consist of whole blocks"));
    }
    let n = weight.dims[1] as usize;
    let mut codes = Codes {
        rows: Vec::with_capacity(block * n),
        width: n,
        bytes: Vec::with_capacity(len / 2),
        scales: Vec::with_capacity(len / block),
        n_clamped: 0,
        is_finite: true,
    };
    weight.each_f32_chunk(path, |mut chunk| {
        while !chunk.is_empty() {
            let n_taken = chunk.len().min(block * n - codes.rows.len());
            codes.rows.extend_from_slice(&chunk[..n_taken]);
            chunk = &chunk[n_taken..];
            if codes.rows.len() == block * n {
                codes.take();
            }
        }
    })?;
    if codes.bytes.len() != len / 2 {
        return Err(bad("has too few elements for its shape"));
    }
    if !codes.is_finite {
        return Err(bad(
            "has values that are not finite, or beyond the range of FP16 scales",
        ));
    }
    let dims = [weight.dims[0] / block as i64, weight.dims[1]];
    Ok(BlockCodes {
        codes: TensorProto::from_raw("", DataType::I4, &weight.dims, codes.bytes),
        scales: TensorProto::from_f32("", &dims, &codes.scales),
        n_clamped: codes.n_clamped,
    })
}

/// Codes and scales, as far as they are made.
struct Codes {
    /// Rows that wait for their block to be whole.
    rows: Vec<f32>,
    width: usize,
    bytes: Vec<u8>,
    scales: Vec<f32>,
    n_clamped: usize,
    is_finite: bool,
}

impl Codes {
    /// Quantizes the rows of one block of every column.
    fn take(&mut self) {
        let n = self.width;
        let mut amax = vec![0f32; n];
        for row in self.rows.chunks_exact(n) {
            for (most, value) in amax.iter_mut().zip(row) {
                self.is_finite &= value.is_finite();
                *most = most.max(value.abs());
            }
        }
        let mut best = vec![(f32::INFINITY, MIN_SCALE); n];
        let (mut scales, mut errors) = (vec![0f32; n], vec![0f32; n]);
        for step in 0..SCALES {
            let share = step as f32 / (SCALES - 1) as f32;
            let code = LARGEST_AS.0 + share * (LARGEST_AS.1 - LARGEST_AS.0);
            for (scale, amax) in scales.iter_mut().zip(&amax) {
                *scale = f16::from_f32(amax / code).to_f32().max(MIN_SCALE);
            }
            errors.fill(0.0);
            for row in self.rows.chunks_exact(n) {
                for ((error, value), scale) in errors.iter_mut().zip(row).zip(&scales) {
                    let off = value - code_of(*value, *scale) * scale;
                    *error += off * off;
                }
            }
            for ((best, error), scale) in best.iter_mut().zip(&errors).zip(&scales) {
                if *error < best.0 {
                    *best = (*error, *scale);
                }
            }
        }
        for (scale, (amax, best)) in scales.iter_mut().zip(amax.iter().zip(&best)) {
            *scale = best.1;
            self.n_clamped += usize::from(*amax > 0.0 && *scale == MIN_SCALE);
            self.is_finite &= best.0.is_finite();
        }
        for row in self.rows.chunks_exact(n) {
            for (pair, scale) in row.chunks_exact(2).zip(scales.chunks_exact(2)) {
                let nibble = |i: usize| code_of(pair[i], scale[i]) as i8 as u8 & 0xf;
                self.bytes.push(nibble(0) | nibble(1) << 4);
            }
        }
        self.scales.extend_from_slice(&scales);
        self.rows.clear();
    }
}

/// The code of a value: to the nearest, ties to even.
fn code_of(value: f32, scale: f32) -> f32 {
    // Adding 1.5 · 2^23 leaves no room for a fraction: rounding without a call.
    const ROUND: f32 = 12_582_912.0;
    let code = (value / scale).clamp(CODES.0, CODES.1);
    (code + ROUND) - ROUND
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes and scales of a weight.
    fn quantize(dims: [i64; 2], values: &[f32], block: usize) -> (Vec<i8>, Vec<f32>) {
        let weight = TensorProto::from_f32("w", &dims, values);
        let made = quantize_blocks(&weight, block, Path::new("t")).expect("quantize");
        assert_eq!(made.codes.dims, dims);
        let raw = made.codes.raw_data.expect("raw");
        let nibble = |byte: u8| ((byte << 4) as i8) >> 4;
        let codes = raw.iter().flat_map(|&b| [nibble(b), (b as i8) >> 4]);
        (
            codes.collect(),
            made.scales.to_f32(Path::new("t")).expect("floats"),
        )
    }

    #[test]
    fn weights_that_codes_represent_are_kept_exactly() {
        // Two columns, two blocks of 16: each column of a block has a scale of its own.
        let scale = [[0.5f32, 2.0], [0.25, 1.0]];
        let code = |row: usize, col: usize| ((row * 3 + col * 5) % 15) as f32 - 7.0;
        let values: Vec<f32> = (0..64)
            .map(|i| code(i / 2, i % 2) * scale[i / 32][i % 2])
            .collect();
        let (codes, scales) = quantize([32, 2], &values, 16);
        assert_eq!(scales, scale.concat());
        for (i, value) in values.iter().enumerate() {
            assert_eq!(f32::from(codes[i]) * scale[i / 32][i % 2], *value, "{i}");
        }
    }

    #[test]
    fn scale_has_less_error_than_that_of_the_largest_weight() {
        // One outlier among values that a smaller scale represents better.
        let mut values: Vec<f32> = (0..64)
            .map(|i| ((i * 37) % 64) as f32 / 32.0 - 1.0)
            .collect();
        values[10] = 1.4;
        let error = |scale: f32, codes: &dyn Fn(usize) -> f32| -> f32 {
            let of = |(i, v): (usize, &f32)| (v - codes(i) * scale).powi(2);
            values.iter().enumerate().step_by(2).map(of).sum()
        };
        let (codes, scales) = quantize([32, 2], &values, 32);
        let found = error(scales[0], &|i| f32::from(codes[i]));
        let amax = values.iter().step_by(2).fold(0f32, |m, v| m.max(v.abs()));
        let plain = f16::from_f32(amax / 7.0).to_f32();
        let naive = error(plain, &|i| (values[i] / plain).round_ties_even());
        assert!(found < naive, "{found} {naive}");
        assert!(
            scales
                .iter()
                .all(|&s| f16::from_f32(s).to_f32() == s && s > 0.0)
        );
    }

    #[test]
    fn codes_round_half_to_even_and_saturate() {
        let found = [0.5f32, 1.5, 2.5, -0.5, -1.5, 6.5, 9.0, -9.0].map(|v| code_of(v, 1.0));
        assert_eq!(found, [0.0, 2.0, 2.0, 0.0, -2.0, 6.0, 7.0, -8.0]);
    }

    #[test]
    fn block_is_the_largest_that_divides_the_columns() {
        for (dims, block, expected) in [
            (&[96, 8][..], 128, Some(32)),
            (&[96, 8], 16, Some(16)),
            (&[896, 8], 128, Some(128)),
            (&[24, 8], 32, None),
            (&[32, 7], 32, None),
            (&[32], 32, None),
            (&[0, 8], 32, None),
        ] {
            assert_eq!(block_for(dims, block), expected, "{dims:?} {block}");
        }
    }

    #[test]
    fn weights_that_are_not_finite_or_cut_short_are_refused() {
        let mut values = vec![1.0f32; 32];
        values[3] = f32::NAN;
        let weight = TensorProto::from_f32("bad_one", &[16, 2], &values);
        let error = quantize_blocks(&weight, 16, Path::new("t")).expect_err("refused");
        assert!(error.to_string().contains("bad_one"), "{error}");
        let mut short = TensorProto::from_f32("short", &[16, 2], &[1.0; 32]);
        short.dims = vec![32, 2];
        assert!(quantize_blocks(&short, 16, Path::new("t")).is_err());
        assert!(quantize_blocks(&short, 64, Path::new("t")).is_err());
        let huge = TensorProto::from_f32("huge", &[16, 2], &[1e9; 32]);
        assert!(quantize_blocks(&huge, 16, Path::new("t")).is_err());
    }
}
