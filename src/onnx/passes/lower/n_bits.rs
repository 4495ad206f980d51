//! Weights quantized in blocks, as `MatMulNBits` and `GatherBlockQuantized` store them.
//!
//! | tensor | shape | |
//! |--------|-------|-|
//! | codes  | `[rows, ⌈cols / block⌉ · block]`, 4 or 8 bits each, low bits first | unsigned, or signed (i4) |
//! | scales | `[rows, ⌈cols / block⌉]` | f32, f16 |
//! | zero points | as the scales | codes, floats, or the middle of the range if left out |
//!
//! `w = (code - zero) · scale`, computed in FP32 and rounded once. [`Blocks`] is what a pass that
//! writes block Q/DQ would start from, too: codes, scales and zero points as they are.

use std::path::Path;

use bytes::Bytes;
use half::f16;

use super::driver::PackedWeights;
use crate::limits;
use crate::onnx::DataType;
use crate::onnx::proto::TensorProto;

/// Rows that are transposed at a time: a cache line of FP32.
const TILE: usize = 16;

/// A matrix of codes with a scale for each block of a row.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    rows: usize,
    cols: usize,
    bits: usize,
    block: usize,
    signed: bool,
    codes: Bytes,
    /// Bytes between rows of `codes`.
    stride: usize,
    scales: Vec<f32>,
    zeros: Zeros,
}

/// Zero points.
#[derive(Debug, Clone)]
enum Zeros {
    /// One for all blocks.
    Same(f32),
    /// One code for each block, `stride` codes a row.
    Codes { codes: Bytes, stride: usize },
    /// One float for each block.
    Floats(Vec<f32>),
}

/// Sizes of a matrix of codes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) bits: usize,
    pub(super) block: usize,
    /// Columns that are stored; a last block may be longer than what is left of a row.
    pub(super) stored: usize,
}

impl Sizes {
    /// Checks the sizes that a node says.
    pub(super) fn new(rows: usize, cols: usize, bits: i64, block: i64) -> Result<Self, String> {
        let bits = usize::try_from(bits)
            .ok()
            .filter(|bits| [4, 8].contains(bits));
        let bits = bits.ok_or("codes of 4 and 8 bits only are supported")?;
        let block = usize::try_from(block).ok();
        let block = block.filter(|&n| n.is_power_of_two() && (16..=1 << 16).contains(&n));
        let block = block.ok_or("its block size is no power of two from 16 on")?;
        let stored = cols.next_multiple_of(block);
        let elements = (rows as u64).saturating_mul(stored as u64);
        if rows == 0 || cols == 0 || elements > limits::TENSOR_ELEMENTS {
            return Err(format!("a weight of {rows} x {cols} is not supported"));
        }
        Ok(Self {
            rows,
            cols,
            bits,
            block,
            stored,
        })
    }

    fn blocks(&self) -> usize {
        self.cols.div_ceil(self.block)
    }
}

impl Blocks {
    /// Puts a matrix together, with the shapes of its parts checked.
    pub(super) fn new(
        sizes: Sizes,
        codes: &TensorProto,
        scales: &TensorProto,
        zeros: Option<&TensorProto>,
        path: &Path,
    ) -> Result<Self, String> {
        let text = |error: crate::Error| error.to_string();
        let dtype = codes.dtype().map_err(text)?;
        let signed = match dtype {
            DataType::U8 => false,
            DataType::U4 if sizes.bits == 4 => false,
            DataType::I4 if sizes.bits == 4 => true,
            other => return Err(format!("codes of type {other} are not supported")),
        };
        let raw = |tensor: &TensorProto, n_codes: usize| {
            let bytes = (n_codes * sizes.bits).div_ceil(8);
            let raw = tensor.raw_data.clone().filter(|raw| raw.len() == bytes);
            let found = tensor.raw_len();
            raw.ok_or_else(|| format!("`{}` has {found} bytes, not {bytes}", tensor.name))
        };
        let stride = sizes.stored * sizes.bits / 8;
        if !(sizes.stored * sizes.bits).is_multiple_of(8) {
            return Err("rows do not end at whole bytes".to_owned());
        }
        let n_blocks = sizes.rows * sizes.blocks();
        let floats = |tensor: &TensorProto| {
            let values = tensor.to_f32(path).map_err(text)?;
            match values.len() == n_blocks {
                true => Ok(values),
                false => Err(format!(
                    "`{}` has {} elements, not {n_blocks}",
                    tensor.name,
                    values.len()
                )),
            }
        };
        let zeros = match zeros {
            // Types of 4 bits count from 0.
            None if dtype != DataType::U8 => Zeros::Same(0.0),
            None => Zeros::Same((1u32 << (sizes.bits - 1)) as f32),
            Some(zeros) => match zeros.dtype().map_err(text)? {
                DataType::U8 if dtype == DataType::U8 => {
                    // Each row begins at a whole byte.
                    let stride = (sizes.blocks() * sizes.bits).next_multiple_of(8) / sizes.bits;
                    Zeros::Codes {
                        codes: raw(zeros, sizes.rows * stride)?,
                        stride,
                    }
                }
                other if other == dtype => Zeros::Codes {
                    codes: raw(zeros, n_blocks)?,
                    stride: sizes.blocks(),
                },
                other if other.is_float() => Zeros::Floats(floats(zeros)?),
                other => return Err(format!("zero points of type {other} are not supported")),
            },
        };
        Ok(Self {
            rows: sizes.rows,
            cols: sizes.cols,
            bits: sizes.bits,
            block: sizes.block,
            signed,
            codes: raw(codes, sizes.rows * sizes.stored)?,
            stride,
            scales: floats(scales)?,
            zeros,
        })
    }

    /// The matrix `[rows, cols]` in type `wanted`, or in FP32 if FP16 might not hold it.
    pub(super) fn dequantize(&self, wanted: DataType) -> TensorProto {
        let mut row = vec![0f32; self.cols];
        let mut bytes = Writer::new(self.dtype_for(wanted), self.rows * self.cols);
        for index in 0..self.rows {
            self.row(index, &mut row);
            bytes.put(&row, index * self.cols);
        }
        bytes.tensor(&[self.rows as i64, self.cols as i64])
    }

    /// As [`Blocks::dequantize`], but `[cols, rows]`: the second operand of a MatMul.
    pub(super) fn dequantize_transposed(&self, wanted: DataType) -> TensorProto {
        let mut tile = vec![0f32; TILE * self.cols];
        let mut bytes = Writer::new(self.dtype_for(wanted), self.rows * self.cols);
        for first in (0..self.rows).step_by(TILE) {
            let n = TILE.min(self.rows - first);
            for (index, row) in tile.chunks_exact_mut(self.cols).take(n).enumerate() {
                self.row(first + index, row);
            }
            for col in 0..self.cols {
                let mut column = [0f32; TILE];
                for (index, value) in column.iter_mut().enumerate().take(n) {
                    *value = tile[index * self.cols + col];
                }
                bytes.put(&column[..n], col * self.rows + first);
            }
        }
        bytes.tensor(&[self.cols as i64, self.rows as i64])
    }

    /// Codes `[cols, rows]` of four signed bits and scales `[cols / block, rows]` of type `wanted`,
    /// which say the same without zero points; `None` if there are none that do, or the form has no
    /// place for them: blocks that are not whole, scales that `packed` does not take or beyond FP16, rows
    /// in odd number.
    pub(super) fn signed_transposed(
        &self,
        wanted: DataType,
        packed: PackedWeights,
    ) -> Option<(TensorProto, TensorProto)> {
        let middle = if self.signed { 0.0 } else { 8.0 };
        let n_blocks = self.cols / self.block;
        let is_middle = match &self.zeros {
            Zeros::Same(zero) => *zero == middle,
            Zeros::Floats(zeros) => zeros.iter().all(|zero| *zero == middle),
            Zeros::Codes { codes, stride } => (0..self.rows).all(|row| {
                let mut blocks = 0..n_blocks;
                blocks.all(|block| self.code(codes, row * stride + block) == middle)
            }),
        };
        let whole = self.cols.is_multiple_of(self.block) && self.rows.is_multiple_of(2);
        let positive = packed == PackedWeights::PositiveBlocks;
        let holds = |scale: &f32| scale.abs() <= f16::MAX.to_f32() && (*scale > 0.0 || !positive);
        if self.bits != 4 || !is_middle || !whole || !self.scales.iter().all(holds) {
            return None;
        }
        // Flipping the sign bit takes 8 from an unsigned code.
        let flip = if self.signed { 0 } else { 0x88 };
        let mut codes = vec![0u8; self.rows * self.cols / 2];
        for (pair, rows) in self.codes.chunks_exact(2 * self.stride).enumerate() {
            let (first, second) = rows.split_at(self.stride);
            for (index, (a, b)) in first.iter().zip(second).take(self.cols / 2).enumerate() {
                let (a, b) = (a ^ flip, b ^ flip);
                let at = 2 * index * (self.rows / 2) + pair;
                codes[at] = (a & 0xf) | (b << 4);
                codes[at + self.rows / 2] = (a >> 4) | (b & 0xf0);
            }
        }
        let mut scales = Writer::new(wanted, self.scales.len());
        let mut row = vec![0f32; self.rows];
        for block in 0..n_blocks {
            for (index, scale) in row.iter_mut().enumerate() {
                *scale = self.scales[index * n_blocks + block];
            }
            scales.put(&row, block * self.rows);
        }
        let (cols, rows) = (self.cols as i64, self.rows as i64);
        Some((
            TensorProto::from_raw("", DataType::I4, &[cols, rows], codes),
            scales.tensor(&[n_blocks as i64, rows]),
        ))
    }

    /// Writes one row.
    fn row(&self, index: usize, out: &mut [f32]) {
        let codes = &self.codes[index * self.stride..(index + 1) * self.stride];
        let n_blocks = self.cols.div_ceil(self.block);
        for (block, out) in out.chunks_mut(self.block).enumerate() {
            let scale = self.scales[index * n_blocks + block];
            let zero = match &self.zeros {
                Zeros::Same(zero) => *zero,
                Zeros::Codes { codes, stride } => self.code(codes, index * stride + block),
                Zeros::Floats(zeros) => zeros[index * n_blocks + block],
            };
            for (offset, value) in out.iter_mut().enumerate() {
                let code = self.code(codes, block * self.block + offset);
                *value = (code - zero) * scale;
            }
        }
    }

    /// The code with this index.
    fn code(&self, codes: &[u8], index: usize) -> f32 {
        if self.bits == 8 {
            return f32::from(codes[index]);
        }
        let nibble = (codes[index / 2] >> (4 * (index % 2))) & 0xf;
        match self.signed {
            true => f32::from(((nibble << 4) as i8) >> 4),
            false => f32::from(nibble),
        }
    }

    fn dtype_for(&self, wanted: DataType) -> DataType {
        let largest = |values: &[f32]| values.iter().fold(0f32, |max, v| max.max(v.abs()));
        let zero = match &self.zeros {
            Zeros::Same(zero) => *zero,
            Zeros::Codes { .. } => 255.0,
            Zeros::Floats(zeros) => largest(zeros),
        };
        let bound = largest(&self.scales) * (255.0 + zero);
        match wanted == DataType::F16 && bound <= f16::MAX.to_f32() {
            true => DataType::F16,
            false => DataType::F32,
        }
    }
}

/// Elements of a tensor that is filled in pieces.
struct Writer {
    dtype: DataType,
    bytes: Vec<u8>,
}

impl Writer {
    fn new(dtype: DataType, len: usize) -> Self {
        let size = (dtype.bits() / 8) as usize;
        Self {
            dtype,
            bytes: vec![0; len * size],
        }
    }

    fn put(&mut self, values: &[f32], at: usize) {
        if self.dtype == DataType::F16 {
            let out = self.bytes[2 * at..].chunks_exact_mut(2);
            for (out, value) in out.zip(values) {
                out.copy_from_slice(&f16::from_f32(*value).to_le_bytes());
            }
        } else {
            let out = self.bytes[4 * at..].chunks_exact_mut(4);
            for (out, value) in out.zip(values) {
                out.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    fn tensor(self, dims: &[i64]) -> TensorProto {
        TensorProto::from_raw("", self.dtype, dims, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codes(dtype: DataType, bytes: &[u8]) -> TensorProto {
        TensorProto::from_raw("codes", dtype, &[bytes.len() as i64], bytes.to_vec())
    }

    fn scales(values: &[f32]) -> TensorProto {
        TensorProto::from_f32("scales", &[values.len() as i64], values)
    }

    fn values(blocks: &Blocks, transposed: bool) -> Vec<f32> {
        let tensor = match transposed {
            true => blocks.dequantize_transposed(DataType::F32),
            false => blocks.dequantize(DataType::F32),
        };
        tensor.to_f32(Path::new("t")).expect("floats")
    }

    #[test]
    fn blocks_of_four_bits_take_the_low_half_first() {
        // Two rows of 17 columns, in two blocks of 16 each.
        let bytes: Vec<u8> = (0..32).map(|i| (i * 37 + 5) as u8).collect();
        let sizes = Sizes::new(2, 17, 4, 16).expect("sizes");
        let scale = [0.5, 2.0, -1.0, 0.25];
        let path = Path::new("t");
        let blocks = Blocks::new(
            sizes,
            &codes(DataType::U8, &bytes),
            &scales(&scale),
            None,
            path,
        );
        let blocks = blocks.expect("blocks");
        let all = values(&blocks, false);
        assert_eq!(all.len(), 34);
        let code = |row: usize, col: usize| {
            let byte = bytes[row * 16 + col / 2];
            f32::from(byte >> (4 * (col % 2)) & 15)
        };
        for row in 0..2 {
            for col in 0..17 {
                let expected = (code(row, col) - 8.0) * scale[row * 2 + col / 16];
                assert_eq!(all[row * 17 + col], expected, "{row} {col}");
            }
        }
        let transposed = values(&blocks, true);
        for row in 0..2 {
            for col in 0..17 {
                assert_eq!(transposed[col * 2 + row], all[row * 17 + col]);
            }
        }
    }

    #[test]
    fn zero_points_are_codes_floats_or_the_middle() {
        let bytes: Vec<u8> = (0..16).collect();
        let sizes = Sizes::new(1, 16, 8, 16).expect("sizes");
        let data = codes(DataType::U8, &bytes);
        let one = scales(&[1.0]);
        let path = Path::new("t");
        let first = |zeros: Option<&TensorProto>| {
            let blocks = Blocks::new(sizes, &data, &one, zeros, path).expect("blocks");
            values(&blocks, false)[0]
        };
        assert_eq!(first(None), -128.0);
        assert_eq!(first(Some(&codes(DataType::U8, &[3]))), -3.0);
        assert_eq!(first(Some(&scales(&[0.5]))), -0.5);

        // Signed codes count from 0, and their zero points are packed without gaps.
        let sizes = Sizes::new(3, 16, 4, 16).expect("sizes");
        let data = codes(DataType::I4, &[0xf8; 24]);
        let three = scales(&[1.0, 1.0, 2.0]);
        let zeros = codes(DataType::I4, &[0x21, 0x0f]);
        let plain = Blocks::new(sizes, &data, &three, None, path).expect("blocks");
        assert_eq!(values(&plain, false)[..2], [-8.0, -1.0]);
        let shifted = Blocks::new(sizes, &data, &three, Some(&zeros), path).expect("blocks");
        let shifted = values(&shifted, false);
        assert_eq!([shifted[0], shifted[16], shifted[32]], [-9.0, -10.0, -14.0]);
    }

    #[test]
    fn signed_codes_say_what_unsigned_ones_say_around_their_middle() {
        let bytes: Vec<u8> = (0..32).map(|i| (i * 37 + 5) as u8).collect();
        let path = Path::new("t");
        let sizes = Sizes::new(2, 32, 4, 16).expect("sizes");
        let data = codes(DataType::U8, &bytes);
        let scale = scales(&[0.5, 2.0, 1.0, 0.25]);
        let make = |zeros: Option<&TensorProto>| Blocks::new(sizes, &data, &scale, zeros, path);
        let blocks = make(None).expect("blocks");
        let (signed, columns) = blocks
            .signed_transposed(DataType::F32, PackedWeights::PositiveBlocks)
            .expect("symmetric");
        assert_eq!(
            (&signed.dims[..], &columns.dims[..]),
            (&[32, 2][..], &[2, 2][..])
        );
        let columns = columns.to_f32(path).expect("floats");
        let expected = values(&blocks, true);
        for (byte, pair) in signed
            .raw_data
            .expect("raw")
            .iter()
            .zip(expected.chunks(2))
            .enumerate()
            .map(|(row, (byte, pair))| ((row, *byte), pair))
        {
            let (row, byte) = byte;
            for (col, value) in pair.iter().enumerate() {
                let nibble = byte >> (4 * col) & 0xf;
                let code = f32::from(((nibble << 4) as i8) >> 4);
                assert_eq!(code * columns[row / 16 * 2 + col], *value, "{row} {col}");
            }
        }
        // Zero points in the middle change nothing, others cannot be said so.
        let middle = codes(DataType::U8, &[0x88, 0x88]);
        let blocks = make(Some(&middle)).expect("blocks");
        assert!(
            blocks
                .signed_transposed(DataType::F32, PackedWeights::PositiveBlocks)
                .is_some()
        );
        // Negative scales are not for every engine.
        let mixed = scales(&[0.5, 2.0, 1.0, -0.25]);
        let blocks = Blocks::new(sizes, &data, &mixed, None, path).expect("blocks");
        for (packed, is_some) in [
            (PackedWeights::Blocks, true),
            (PackedWeights::PositiveBlocks, false),
        ] {
            assert_eq!(
                blocks.signed_transposed(DataType::F32, packed).is_some(),
                is_some
            );
        }
        let other = codes(DataType::U8, &[0x88, 0x78]);
        let blocks = make(Some(&other)).expect("blocks");
        assert!(
            blocks
                .signed_transposed(DataType::F32, PackedWeights::PositiveBlocks)
                .is_none()
        );
    }

    #[test]
    fn weights_beyond_fp16_stay_fp32() {
        let sizes = Sizes::new(1, 16, 4, 16).expect("sizes");
        let data = codes(DataType::U8, &[0; 8]);
        for (scale, expected) in [(1.0, DataType::F16), (1e5, DataType::F32)] {
            let blocks = Blocks::new(sizes, &data, &scales(&[scale]), None, Path::new("t"));
            let tensor = blocks.expect("blocks").dequantize(DataType::F16);
            assert_eq!(tensor.dtype().expect("type"), expected);
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let path = Path::new("t");
        assert!(Sizes::new(2, 16, 3, 16).is_err() && Sizes::new(2, 16, 4, 24).is_err());
        assert!(Sizes::new(0, 16, 4, 16).is_err() && Sizes::new(1 << 40, 1 << 40, 4, 16).is_err());
        let sizes = Sizes::new(2, 16, 4, 16).expect("sizes");
        let data = codes(DataType::U8, &[0; 16]);
        let two = scales(&[1.0, 1.0]);
        let short = codes(DataType::U8, &[0; 15]);
        assert!(Blocks::new(sizes, &data, &two, None, path).is_ok());
        assert!(Blocks::new(sizes, &short, &two, None, path).is_err());
        assert!(Blocks::new(sizes, &data, &scales(&[1.0]), None, path).is_err());
        assert!(Blocks::new(sizes, &data, &two, Some(&scales(&[1.0])), path).is_err());
        assert!(Blocks::new(sizes, &two, &two, None, path).is_err());
    }
}
