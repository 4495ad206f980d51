//! Weights as 8-bit integers with a scale per channel.
//!
//! | tensor | shape | dtype |
//! |--------|-------|-------|
//! | codes  | that of the weight | i8, -127 to 127 |
//! | scales | `[channels]` | f32, each a number that FP16 has, at least 2^-14 |
//!
//! `w ≈ code · scale`. The scale is `max |w| / 127`, rounded to FP16 before the weights are divided
//! by it, so that engines that compute in FP16 and in FP32 see the same weights; codes are rounded
//! half to even. Below 2^-14 FP16 has fewer digits, and some engines flush to zero.

use std::path::Path;

use half::f16;

use crate::error::{Error, Result};
use crate::onnx::proto::TensorProto;
use crate::onnx::{CHUNK, DataType};

/// Largest code.
pub const Q_MAX: f32 = 127.0;

/// The smallest scale: the smallest normal number of FP16.
pub const MIN_SCALE: f32 = 1.0 / 16384.0;

/// Columns of a weight that are transposed at a time.
const TILE: usize = 64;

/// The scale that represents values up to `amax`; `None` if FP16 has none.
pub fn scale_for(amax: f32) -> Option<f32> {
    let scale = f16::from_f32(amax / Q_MAX).to_f32();
    scale.is_finite().then_some(scale.max(MIN_SCALE))
}

/// The code of a value: to the nearest, ties to even.
pub fn code(value: f32, scale: f32) -> i8 {
    (value / scale).round_ties_even().clamp(-Q_MAX, Q_MAX) as i8
}

/// A quantized weight; its tensors have no names.
#[derive(Debug, Clone)]
pub struct Codes {
    /// The integers.
    pub codes: TensorProto,
    /// A scale for each channel.
    pub scales: TensorProto,
    /// Channels whose scale is [`MIN_SCALE`] though they have values that are not zero.
    pub n_clamped: usize,
}

/// Factors of the rows (axis 0) of a weight, and of the elements of a row (all other axes, flat);
/// `None` is all ones.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Factors {
    /// One a row.
    pub rows: Option<Vec<f32>>,
    /// One an element of a row.
    pub cols: Option<Vec<f32>>,
}

impl Factors {
    /// Multiplies the rows with further factors.
    pub(super) fn multiply_rows(&mut self, factors: &[f32]) {
        multiply(&mut self.rows, factors);
    }

    /// Multiplies the elements of each row with further factors.
    pub(super) fn multiply_cols(&mut self, factors: &[f32]) {
        multiply(&mut self.cols, factors);
    }
}

fn multiply(all: &mut Option<Vec<f32>>, factors: &[f32]) {
    match all {
        Some(all) => all.iter_mut().zip(factors).for_each(|(s, f)| *s *= f),
        None => *all = Some(factors.to_vec()),
    }
}

/// Quantizes a weight times `factors` with a scale for each index along `axis`: 0, or 1 of a
/// matrix.
///
/// # Errors
/// [`Error::Malformed`] naming a weight whose bytes do not fit its shape, or that has values that
/// are not finite or beyond what a scale of FP16 represents.
pub fn quantize_weight(
    weight: &TensorProto,
    axis: usize,
    factors: Option<&Factors>,
    path: &Path,
) -> Result<Codes> {
    let bad = |reason: &str| Error::malformed(path, format!("weight `{}` {reason}", weight.name));
    let n = weight.len(path)? as usize;
    let channels = match (axis, &weight.dims[..]) {
        (0, [rows, ..]) => *rows as usize,
        (1, [_, cols]) => *cols as usize,
        _ => return Err(bad("has no such axis")),
    };

    let mut amax = vec![0f32; channels];
    let mut n_read = 0;
    let mut finite = true;
    each_row(weight, factors, path, |row, col, values| {
        n_read += values.len();
        for value in values {
            finite &= value.is_finite();
        }
        if axis == 1 {
            for (most, value) in amax[col..].iter_mut().zip(values) {
                *most = most.max(value.abs());
            }
        } else {
            let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
            amax[row] = amax[row].max(most);
        }
    })?;
    if n_read != n {
        return Err(bad("has another number of elements than its shape"));
    }
    if !finite {
        return Err(bad("has values that are not finite"));
    }
    let scales: Option<Vec<f32>> = amax.iter().map(|&amax| scale_for(amax)).collect();
    let scales = scales.ok_or_else(|| bad("has values beyond the range of FP16 scales"))?;
    let clamped = |(amax, scale): &(&f32, &f32)| **amax > 0.0 && **scale == MIN_SCALE;
    let n_clamped = amax.iter().zip(&scales).filter(clamped).count();

    let mut codes = Vec::with_capacity(n);
    each_row(weight, factors, path, |row, col, values| {
        if axis == 1 {
            let scaled = values.iter().zip(&scales[col..]);
            codes.extend(scaled.map(|(&value, &scale)| code(value, scale) as u8));
        } else {
            let scale = scales[row];
            codes.extend(values.iter().map(|&value| code(value, scale) as u8));
        }
    })?;
    Ok(Codes {
        codes: TensorProto::from_raw("", DataType::I8, &weight.dims, codes),
        scales: TensorProto::from_f32("", &[channels as i64], &scales),
        n_clamped,
    })
}

/// Calls `f` with parts of rows, in order: index of the row (axis 0), where in the row the part
/// begins, its elements times the factors. Elements beyond the shape are left out.
pub(super) fn each_row(
    weight: &TensorProto,
    factors: Option<&Factors>,
    path: &Path,
    mut f: impl FnMut(usize, usize, &[f32]),
) -> Result<()> {
    let n_rows = weight.dims.first().map_or(0, |&dim| dim as usize);
    let n_cols = match n_rows {
        0 => return Ok(()),
        n => weight.len(path)? as usize / n,
    };
    if n_cols == 0 {
        return Ok(());
    }
    let mut scaled = [0f32; CHUNK];
    let (mut row, mut col) = (0, 0);
    weight.each_f32_chunk(path, |mut chunk| {
        while !chunk.is_empty() && row < n_rows {
            let n = chunk.len().min(n_cols - col);
            let (values, rest) = chunk.split_at(n);
            chunk = rest;
            match factors {
                None => f(row, col, values),
                Some(Factors { rows, cols }) => {
                    let scaled = &mut scaled[..n];
                    let of_row = rows.as_ref().map_or(1.0, |rows| rows[row]);
                    for (to, from) in scaled.iter_mut().zip(values) {
                        *to = from * of_row;
                    }
                    if let Some(cols) = cols {
                        for (to, factor) in scaled.iter_mut().zip(&cols[col..]) {
                            *to *= factor;
                        }
                    }
                    f(row, col, scaled);
                }
            }
            col += n;
            if col == n_cols {
                (row, col) = (row + 1, 0);
            }
        }
    })
}

/// A matrix times its factors, in FP32.
pub(super) fn scaled(weight: &TensorProto, factors: &Factors, path: &Path) -> Result<TensorProto> {
    let mut values = Vec::with_capacity(weight.len(path)? as usize);
    each_row(weight, Some(factors), path, |_, _, part| {
        values.extend_from_slice(part);
    })?;
    Ok(TensorProto::from_f32("", &weight.dims, &values))
}

/// The transpose of a matrix of 8-bit integers.
pub fn transpose(codes: &TensorProto) -> Option<TensorProto> {
    let [rows, cols] = codes.dims[..] else {
        return None;
    };
    let raw = codes.raw_data.as_ref()?;
    let (n_rows, n_cols) = (rows as usize, cols as usize);
    let mut out = vec![0u8; raw.len()];
    for first in (0..n_cols).step_by(TILE) {
        let n = TILE.min(n_cols - first);
        for (row, values) in raw.chunks_exact(n_cols).enumerate() {
            for (col, &value) in values[first..first + n].iter().enumerate() {
                out[(first + col) * n_rows + row] = value;
            }
        }
    }
    Some(TensorProto::from_raw(
        &codes.name,
        DataType::I8,
        &[cols, rows],
        out,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed(tensor: &TensorProto) -> Vec<i8> {
        let raw = tensor.raw_data.as_ref().expect("raw");
        raw.iter().map(|&byte| byte as i8).collect()
    }

    fn quantize(dims: &[i64], values: &[f32], axis: usize) -> (Vec<i8>, Vec<f32>) {
        let weight = TensorProto::from_f32("w", dims, values);
        let made = quantize_weight(&weight, axis, None, Path::new("t")).expect("quantize");
        assert_eq!(made.codes.dims, dims);
        let scales = made.scales.to_f32(Path::new("t")).expect("floats");
        (signed(&made.codes), scales)
    }

    #[test]
    fn scale_is_a_positive_fp16_number() {
        assert_eq!(scale_for(0.0), Some(MIN_SCALE));
        assert_eq!(scale_for(1e-9), Some(MIN_SCALE));
        assert_eq!(scale_for(127.0), Some(1.0));
        let scale = scale_for(1.0).expect("scale");
        assert_eq!(scale, f16::from_f32(1.0 / 127.0).to_f32());
        assert_eq!(scale_for(1e9), None);
    }

    #[test]
    fn code_rounds_half_to_even_and_saturates() {
        let codes = [0.5f32, 1.5, 2.5, -0.5, -1.5, 126.9, 500.0, -500.0].map(|v| code(v, 1.0));
        assert_eq!(codes, [0, 2, 2, 0, -2, 127, 127, -127]);
    }

    #[test]
    fn channels_are_those_of_the_axis() {
        // Each column (axis 1), and each row (axis 0), has a largest value of its own.
        let values = [127.0, 2.54, -63.5, -254.0, 1.27, 0.0];
        let (codes, scales) = quantize(&[2, 3], &values, 1);
        assert_eq!(codes[0..1], [64]);
        assert_eq!(codes[3], -127);
        assert_eq!(scales[0], 2.0);
        assert_eq!(scales[2], 0.5);
        assert_eq!((codes[2], codes[5]), (-127, 0));
        let (codes, scales) = quantize(&[2, 3], &values, 0);
        assert_eq!(scales, [1.0, 2.0]);
        assert_eq!(codes, [127, 3, -64, -127, 1, 0]);
    }

    #[test]
    fn weights_longer_than_a_chunk_keep_their_channels() {
        let (rows, cols) = (3usize, 5000usize);
        let value = |row: usize, col: usize| ((row * 7 + col * 3) % 11) as f32 - 5.0;
        let values: Vec<f32> = (0..rows * cols)
            .map(|i| value(i / cols, i % cols))
            .collect();
        for axis in [0, 1] {
            let (codes, scales) = quantize(&[rows as i64, cols as i64], &values, axis);
            for (i, &found) in codes.iter().enumerate() {
                let channel = if axis == 0 { i / cols } else { i % cols };
                assert_eq!(found, code(values[i], scales[channel]), "{axis} {i}");
            }
        }
        let four: Vec<f32> = values[..3 * 4 * 100].to_vec();
        let (_, scales) = quantize(&[3, 4, 10, 10], &four, 0);
        for (channel, scale) in scales.iter().enumerate() {
            let of_channel = &four[channel * 400..(channel + 1) * 400];
            let amax = of_channel.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert_eq!(Some(*scale), scale_for(amax));
        }
    }

    #[test]
    fn factors_are_multiplied_before_ranges_are_taken() {
        let weight = TensorProto::from_f32("w", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let factors = Factors {
            rows: Some(vec![2.0, -1.0]),
            cols: Some(vec![1.0, 10.0, 0.5]),
        };
        let path = Path::new("t");
        let expected = [2.0, 40.0, 3.0, -4.0, -50.0, -3.0];
        let product = scaled(&weight, &factors, path).expect("scaled");
        assert_eq!(product.to_f32(path).expect("floats"), expected);
        for axis in [0, 1] {
            let folded = quantize_weight(&weight, axis, Some(&factors), path).expect("codes");
            let apart = quantize_weight(&product, axis, None, path).expect("codes");
            assert_eq!(folded.codes, apart.codes);
            assert_eq!(folded.scales, apart.scales);
        }
    }

    #[test]
    fn weights_that_are_not_finite_too_large_or_cut_short_are_refused() {
        for values in [[1.0, f32::NAN], [f32::INFINITY, 1.0], [1e9, 1.0]] {
            let weight = TensorProto::from_f32("bad_one", &[1, 2], &values);
            let error = quantize_weight(&weight, 1, None, Path::new("t")).expect_err("refused");
            assert!(error.to_string().contains("bad_one"), "{error}");
        }
        let mut short = TensorProto::from_f32("short", &[1, 2], &[1.0, 2.0]);
        short.dims = vec![2, 2];
        assert!(quantize_weight(&short, 1, None, Path::new("t")).is_err());
        assert!(quantize_weight(&short, 2, None, Path::new("t")).is_err());
    }

    #[test]
    fn transpose_moves_every_element() {
        let (rows, cols) = (70usize, 130usize);
        let raw: Vec<u8> = (0..rows * cols).map(|i| (i % 251) as u8).collect();
        let dims = [rows as i64, cols as i64];
        let codes = TensorProto::from_raw("w", DataType::I8, &dims, raw.clone());
        let turned = transpose(&codes).expect("matrix");
        assert_eq!(turned.dims, [cols as i64, rows as i64]);
        let bytes = turned.raw_data.as_ref().expect("raw");
        for row in 0..rows {
            for col in 0..cols {
                assert_eq!(bytes[col * rows + row], raw[row * cols + col]);
            }
        }
    }
}
