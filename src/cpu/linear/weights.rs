//! Weights of a linear operator, arranged for the tiles.

use rayon::prelude::*;

use super::tile::{DOT_DEPTH, DotTile, FloatTile, Isa, PANEL};

/// A weight matrix `[depth, n]` as a file has it: little-endian elements, rows one behind another.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) struct Matrix<'a> {
    /// Rows.
    pub(in crate::cpu) depth: usize,
    /// Columns.
    pub(in crate::cpu) n: usize,
    /// `depth * n` elements.
    pub(in crate::cpu) elements: Elements<'a>,
    /// True if the file has the columns one behind another, as `[n, depth]`.
    pub(in crate::cpu) is_transposed: bool,
}

/// Elements of a weight matrix.
#[derive(Debug, Clone, Copy)]
pub(in crate::cpu) enum Elements<'a> {
    /// Single precision.
    F32(&'a [u8]),
    /// Half precision.
    F16(&'a [u8]),
    /// Integers; the scales of the columns, `n` or one for all.
    I8(&'a [u8], &'a [f32]),
}

/// How a product's rows come in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::cpu) enum Activations {
    /// As they are.
    Float,
    /// Rounded to int8 multiples of this scale first, as `QuantizeLinear` does.
    Int8(f32),
}

/// Weights in panels of [`PANEL`] columns, the last one filled up with zeros.
pub(super) enum Panels {
    F32(Vec<f32>),
    F16(Vec<u16>),
    I8(Vec<i8>),
    /// Four rows of a column beside each other, the sum of each column, and who multiplies them.
    Dot(DotTile, Vec<i8>, Vec<i32>),
}

impl Panels {
    /// Arranges `matrix`; integers for [`Activations::Int8`] as the machine's dot products want
    /// them, if it has any.
    pub(super) fn new(matrix: Matrix<'_>, activations: Activations, isa: Isa) -> Self {
        let dot = isa.dot.filter(|_| activations != Activations::Float);
        match matrix.elements {
            Elements::F32(raw) => Self::F32(panels(matrix, raw, |b| f32::from_le_bytes(*b))),
            Elements::F16(raw) => Self::F16(panels(matrix, raw, |b| u16::from_le_bytes(*b))),
            Elements::I8(raw, _) => match dot {
                Some(tile) => {
                    let (codes, sums) = dot_panels(matrix, raw);
                    Self::Dot(tile, codes, sums)
                }
                None => Self::I8(panels(matrix, raw, |b: &[u8; 1]| b[0] as i8)),
            },
        }
    }
}

/// The elements of `matrix` in row `row` and `columns` columns from `first` on.
fn row_of<T: Copy>(
    matrix: Matrix<'_>,
    elements: &[T],
    row: usize,
    first: usize,
    columns: usize,
) -> impl Iterator<Item = T> {
    let (start, step) = match matrix.is_transposed {
        true => (first * matrix.depth + row, matrix.depth),
        false => (row * matrix.n + first, 1),
    };
    elements[start..]
        .iter()
        .step_by(step)
        .take(columns)
        .copied()
}

fn panels<const SIZE: usize, T: Copy + Default + Send>(
    matrix: Matrix<'_>,
    raw: &[u8],
    read: impl Fn(&[u8; SIZE]) -> T + Sync,
) -> Vec<T> {
    let Matrix { depth, n, .. } = matrix;
    let elements = raw.as_chunks::<SIZE>().0;
    let mut panels = vec![T::default(); n.div_ceil(PANEL) * PANEL * depth];
    panels
        .par_chunks_mut(PANEL * depth)
        .enumerate()
        .for_each(|(index, panel)| {
            let first = index * PANEL;
            let columns = PANEL.min(n - first);
            for (row, out) in panel.chunks_exact_mut(PANEL).enumerate() {
                let row = row_of(matrix, elements, row, first, columns);
                for (out, element) in out.iter_mut().zip(row) {
                    *out = read(&element);
                }
            }
        });
    panels
}

fn dot_panels(matrix: Matrix<'_>, raw: &[u8]) -> (Vec<i8>, Vec<i32>) {
    let Matrix { depth, n, .. } = matrix;
    let padded = depth.next_multiple_of(DOT_DEPTH);
    let n_padded = n.next_multiple_of(PANEL);
    let (mut codes, mut sums) = (vec![0; n_padded * padded], vec![0; n_padded]);
    codes
        .par_chunks_mut(PANEL * padded)
        .zip(sums.par_chunks_mut(PANEL))
        .enumerate()
        .for_each(|(index, (panel, sums))| {
            let first = index * PANEL;
            let columns = PANEL.min(n - first);
            for (step, out) in panel.chunks_exact_mut(PANEL * DOT_DEPTH).enumerate() {
                for row in step * DOT_DEPTH..(step * DOT_DEPTH + DOT_DEPTH).min(depth) {
                    let codes = row_of(matrix, raw, row, first, columns);
                    for (column, code) in codes.enumerate() {
                        out[column * DOT_DEPTH + row % DOT_DEPTH] = code as i8;
                        sums[column] += i32::from(code as i8);
                    }
                }
            }
        });
    (codes, sums)
}

/// The tile for a kind of float weights.
pub(super) trait Widened: Copy + Sync + 'static {
    fn tile(isa: &Isa) -> FloatTile<Self>;
}

impl Widened for f32 {
    fn tile(isa: &Isa) -> FloatTile<Self> {
        isa.f32
    }
}

impl Widened for u16 {
    fn tile(isa: &Isa) -> FloatTile<Self> {
        isa.f16
    }
}

impl Widened for i8 {
    fn tile(isa: &Isa) -> FloatTile<Self> {
        isa.i8
    }
}
