//! Rows times weights, over all threads of the engine's pool.

use rayon::prelude::*;

use super::tile::{DOT_DEPTH, DotTile, Isa, PANEL};
use super::weights::{Activations, Elements, Matrix, Panels, Widened};

/// Rows of weights that are multiplied with all rows of activations before the next ones are
/// read: so much of a panel stays in a core's cache.
const DEPTH_BLOCK: usize = 512;

/// Fewest panels of a task: less is not worth another thread.
const MIN_PANELS: usize = 2;

/// What is added to int8 activations, so that they are unsigned.
const OFFSET: i32 = 128;

/// A linear operator `y = x w`: its weights, and how to multiply with them.
///
/// | tensor | shape | dtype |
/// |--------|-------|-------|
/// | `x` | `[rows, depth]` | f32 |
/// | `w` | `[depth, n]` | f32, f16, or i8 with a scale for each column |
/// | `y` | `[rows, n]` | f32 |
///
/// A row of `y` is the same, to the bit, whichever rows stand beside it.
pub(in crate::cpu) struct Linear {
    depth: usize,
    n: usize,
    panels: Panels,
    /// Factor of each column, for integer weights; those of rounded activations are in it.
    scales: Vec<f32>,
    activations: Activations,
    isa: Isa,
}

/// Rounded activations, unsigned, rows padded to whole steps of the dot product.
struct Codes {
    rows: Vec<u8>,
    stride: usize,
}

impl Linear {
    /// Arranges weights for this machine.
    pub(in crate::cpu) fn new(matrix: Matrix<'_>, activations: Activations) -> Self {
        Self::with_isa(matrix, activations, Isa::detect())
    }

    fn with_isa(matrix: Matrix<'_>, activations: Activations, isa: Isa) -> Self {
        let step = match activations {
            Activations::Float => 1.0,
            Activations::Int8(scale) => scale,
        };
        let scales = match matrix.elements {
            Elements::I8(_, &[scale]) => vec![scale * step; matrix.n],
            Elements::I8(_, scales) => scales.iter().map(|scale| scale * step).collect(),
            _ => vec![step; if step == 1.0 { 0 } else { matrix.n }],
        };
        Self {
            depth: matrix.depth,
            n: matrix.n,
            panels: Panels::new(matrix, activations, isa),
            scales,
            activations,
            isa,
        }
    }

    /// Rows of the weight matrix: elements of a row of activations.
    pub(in crate::cpu) fn depth(&self) -> usize {
        self.depth
    }

    /// Columns of the weight matrix: elements of a row of results.
    pub(in crate::cpu) fn n(&self) -> usize {
        self.n
    }

    /// Multiplies rows of activations with the weights.
    ///
    /// # Panics
    /// If `x` is not whole rows of `depth` elements.
    pub(in crate::cpu) fn run(&self, x: &[f32]) -> Vec<f32> {
        assert!(x.len().is_multiple_of(self.depth));
        if x.is_empty() {
            return Vec::new();
        }
        match (&self.panels, self.activations) {
            (Panels::Dot(tile, codes, sums), Activations::Int8(scale)) => {
                self.run_dot(*tile, &self.unsigned(x, scale), codes, sums)
            }
            (panels, Activations::Int8(scale)) => {
                let rounded: Vec<f32> = x.par_iter().map(|&v| round(v, scale)).collect();
                self.run_widened(&rounded, panels)
            }
            (panels, Activations::Float) => self.run_widened(x, panels),
        }
    }

    fn run_widened(&self, x: &[f32], panels: &Panels) -> Vec<f32> {
        match panels {
            Panels::F32(w) => self.run_float(x, w),
            Panels::F16(w) => self.run_float(x, w),
            Panels::I8(w) => self.run_float(x, w),
            Panels::Dot(..) => unreachable!("made for rounded activations only"),
        }
    }

    fn run_float<W: Widened>(&self, x: &[f32], panels: &[W]) -> Vec<f32> {
        let tile = W::tile(&self.isa);
        let depth = self.depth;
        self.each_panel(x.len() / depth, |index, sums| {
            let panel = &panels[index * PANEL * depth..][..PANEL * depth];
            for start in (0..depth).step_by(DEPTH_BLOCK) {
                let size = DEPTH_BLOCK.min(depth - start);
                let block = &panel[start * PANEL..][..size * PANEL];
                for (i, sums) in sums.chunks_mut(tile.max_rows()).enumerate() {
                    let first = i * tile.max_rows() * depth + start;
                    tile.add(size, &x[first..], depth, block, sums);
                }
            }
            if !self.scales.is_empty() {
                let columns = index * PANEL..self.n.min(index * PANEL + PANEL);
                for row in sums {
                    for (sum, scale) in row.iter_mut().zip(&self.scales[columns.clone()]) {
                        *sum *= scale;
                    }
                }
            }
        })
    }

    fn run_dot(&self, tile: DotTile, x: &Codes, panels: &[i8], column_sums: &[i32]) -> Vec<f32> {
        let stride = x.stride;
        self.each_panel(x.rows.len() / stride, |index, out| {
            let panel = &panels[index * PANEL * stride..][..PANEL * stride];
            let columns = index * PANEL..self.n.min(index * PANEL + PANEL);
            let mut few = [[0i32; PANEL]; MAX_FEW];
            let mut many = Vec::new();
            let sums = match few.get_mut(..out.len()) {
                Some(sums) => sums,
                None => {
                    many.resize(out.len(), [0i32; PANEL]);
                    &mut many[..]
                }
            };
            dot_panel(tile, x, panel, sums);
            for (out, sums) in out.iter_mut().zip(sums) {
                for (i, column) in columns.clone().enumerate() {
                    let sum = sums[i] - OFFSET * column_sums[column];
                    out[i] = sum as f32 * self.scales[column];
                }
            }
        })
    }

    /// Computes each panel's columns of all rows, and puts them together.
    fn each_panel(
        &self,
        rows: usize,
        compute: impl Fn(usize, &mut [[f32; PANEL]]) + Sync,
    ) -> Vec<f32> {
        let n = self.n;
        let n_panels = n.div_ceil(PANEL);
        let mut sums = vec![[0.0; PANEL]; n_panels * rows];
        sums.par_chunks_mut(rows)
            .with_min_len(MIN_PANELS)
            .enumerate()
            .for_each(|(index, sums)| compute(index, sums));
        if rows == 1 {
            let mut y = sums.into_flattened();
            y.truncate(n);
            return y;
        }
        let mut y = vec![0.0; rows * n];
        y.par_chunks_mut(n).enumerate().for_each(|(row, out)| {
            for (index, out) in out.chunks_mut(PANEL).enumerate() {
                out.copy_from_slice(&sums[index * rows + row][..out.len()]);
            }
        });
        y
    }

    fn unsigned(&self, x: &[f32], scale: f32) -> Codes {
        let stride = self.depth.next_multiple_of(DOT_DEPTH);
        let mut rows = vec![0u8; x.len() / self.depth * stride];
        let code = |&v: &f32| (round(v, scale) as i32 + OFFSET) as u8;
        rows.par_chunks_mut(stride)
            .zip(x.par_chunks(self.depth))
            .for_each(|(out, row)| {
                for (out, v) in out.iter_mut().zip(row) {
                    *out = code(v);
                }
            });
        Codes { rows, stride }
    }
}

/// Rows whose sums need no block of memory.
const MAX_FEW: usize = 8;

fn dot_panel(tile: DotTile, x: &Codes, panel: &[i8], sums: &mut [[i32; PANEL]]) {
    let stride = x.stride;
    for start in (0..stride).step_by(DEPTH_BLOCK * DOT_DEPTH) {
        let size = (DEPTH_BLOCK * DOT_DEPTH).min(stride - start);
        let block = &panel[start * PANEL..][..size * PANEL];
        for (i, sums) in sums.chunks_mut(tile.max_rows()).enumerate() {
            let first = i * tile.max_rows() * stride + start;
            tile.add(size, &x.rows[first..], stride, block, sums);
        }
    }
}

/// Added and taken away again, it rounds a float below 2^22 to the nearest integer, ties to even.
const ROUNDER: f32 = 12_582_912.0;

/// The nearest int8 multiple of `scale`, ties to even: `QuantizeLinear` with a zero point of 0.
/// NaN, which it leaves open, is the smallest.
#[allow(clippy::manual_clamp)] // `clamp` would pass NaN on
fn round(v: f32, scale: f32) -> f32 {
    ((v / scale).max(-128.0).min(127.0) + ROUNDER) - ROUNDER
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    /// Numbers that look random, in -1..1.
    fn noise(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// A matrix as a file has it, and its elements in double precision, row by row.
    struct Case {
        raw: Vec<u8>,
        scales: Vec<f32>,
        values: Vec<f64>,
    }

    impl Case {
        fn new(kind: &str, depth: usize, n: usize, is_transposed: bool) -> Self {
            let noise = noise((depth * 31 + n) as u32, depth * n);
            let scales = match kind {
                "i8" => (0..n).map(|c| 0.01 + c as f32 / 1000.0).collect(),
                _ => Vec::new(),
            };
            let mut case = Self {
                raw: Vec::new(),
                values: vec![0.0; depth * n],
                scales,
            };
            for (index, v) in noise.into_iter().enumerate() {
                let (row, column) = match is_transposed {
                    true => (index % depth, index / depth),
                    false => (index / n, index % n),
                };
                let value = match kind {
                    "f32" => {
                        case.raw.extend(v.to_le_bytes());
                        f64::from(v)
                    }
                    "f16" => {
                        // Small ones too: they have another form in half precision.
                        let v = f16::from_f32(if index % 3 == 0 { v * 3e-5 } else { v });
                        case.raw.extend(v.to_le_bytes());
                        v.to_f64()
                    }
                    _ => {
                        let code = (v * 128.0).floor() as i8;
                        case.raw.push(code as u8);
                        f64::from(code) * f64::from(case.scales[column])
                    }
                };
                case.values[row * n + column] = value;
            }
            case
        }

        fn matrix(&self, kind: &str, depth: usize, n: usize, is_transposed: bool) -> Matrix<'_> {
            let elements = match kind {
                "f32" => Elements::F32(&self.raw),
                "f16" => Elements::F16(&self.raw),
                _ => Elements::I8(&self.raw, &self.scales),
            };
            Matrix {
                depth,
                n,
                elements,
                is_transposed,
            }
        }
    }

    const SHAPES: [(usize, usize); 6] =
        [(1, 1), (3, 31), (64, 32), (67, 33), (515, 70), (2051, 96)];

    const KINDS: [(&str, Activations); 4] = [
        ("f32", Activations::Float),
        ("f16", Activations::Float),
        ("i8", Activations::Float),
        ("i8", Activations::Int8(0.037)),
    ];

    /// What a product sees of an activation.
    fn seen(v: f32, activations: Activations) -> f64 {
        match activations {
            Activations::Float => f64::from(v),
            Activations::Int8(step) => {
                let code = (v / step).round_ties_even().clamp(-128.0, 127.0);
                f64::from(code) * f64::from(step)
            }
        }
    }

    #[test]
    fn product_of_every_kind_is_that_of_double_precision() {
        for isa in Isa::all() {
            for (kind, activations) in KINDS {
                for (index, (depth, n)) in SHAPES.into_iter().enumerate() {
                    let is_transposed = index % 2 == 1;
                    let case = Case::new(kind, depth, n, is_transposed);
                    let matrix = case.matrix(kind, depth, n, is_transposed);
                    let linear = Linear::with_isa(matrix, activations, isa);
                    let rows = 1 + index * 2;
                    // Beyond what int8 can hold, too.
                    let x: Vec<f32> = noise(7, rows * depth).iter().map(|v| v * 6.0).collect();
                    let y = linear.run(&x);
                    assert_eq!(y.len(), rows * n);
                    for (place, y) in y.into_iter().enumerate() {
                        let (row, column) = (place / n, place % n);
                        let terms = (0..depth).map(|k| {
                            seen(x[row * depth + k], activations) * case.values[k * n + column]
                        });
                        let (sum, size) = terms.fold((0.0, 0.0), |(s, a), t| (s + t, a + t.abs()));
                        // Sums of single precision are off by a few of their last digits.
                        assert!(
                            (f64::from(y) - sum).abs() <= size * 2e-6 + 1e-12,
                            "{}, {kind}, {activations:?}, {depth} x {n}, row {row}, column {column}: {y} is not {sum}",
                            isa.name
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn row_of_a_product_does_not_depend_on_its_neighbours() {
        const ROWS: usize = 19;
        let (depth, n) = (1100, 70);
        for isa in Isa::all() {
            for (kind, activations) in KINDS {
                let case = Case::new(kind, depth, n, false);
                let matrix = case.matrix(kind, depth, n, false);
                let linear = Linear::with_isa(matrix, activations, isa);
                let x = noise(3, ROWS * depth);
                let all = linear.run(&x);
                for rows in 1..ROWS {
                    for start in [0, ROWS - rows] {
                        let some = linear.run(&x[start * depth..][..rows * depth]);
                        let mut pairs = some.iter().zip(&all[start * n..]);
                        let same = pairs.all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{}, {kind}: {rows} rows from {start}", isa.name);
                    }
                }
            }
        }
    }

    #[test]
    fn integer_products_of_extremes_do_not_saturate() {
        let (depth, n) = (1024, 33);
        for isa in Isa::all() {
            for (code, x, seen) in [
                (-128i8, 200.0, 127.0),
                (-128, -200.0, -128.0),
                (127, 200.0, 127.0),
                (127, -200.0, -128.0),
            ] {
                let raw = vec![code as u8; depth * n];
                let matrix = Matrix {
                    depth,
                    n,
                    elements: Elements::I8(&raw, &[1.0]),
                    is_transposed: false,
                };
                let linear = Linear::with_isa(matrix, Activations::Int8(1.0), isa);
                let y = linear.run(&vec![x; depth]);
                let expected = seen * f32::from(code) * depth as f32;
                let name = isa.name;
                assert!(
                    y.iter().all(|&y| y == expected),
                    "{name}: {} is not {expected}",
                    y[0]
                );
            }
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_ties_to_even() {
        for (v, code) in [
            (0.5, 0.0),
            (1.5, 2.0),
            (2.5, 2.0),
            (-0.5, 0.0),
            (-1.5, -2.0),
            (126.5, 126.0),
            (127.4, 127.0),
            (1e9, 127.0),
            (-127.6, -128.0),
            (f32::NEG_INFINITY, -128.0),
            (f32::NAN, -128.0),
        ] {
            assert_eq!(round(v * 0.25, 0.25), code, "{v}");
        }
        for v in noise(11, 10_000).into_iter().map(|v| v * 130.0) {
            let code = v.round_ties_even().clamp(-128.0, 127.0);
            assert_eq!(round(v, 1.0), code, "{v}");
        }
    }

    #[test]
    fn product_of_no_rows_is_empty() {
        let raw = vec![0; 4 * 40];
        let matrix = Matrix {
            depth: 8,
            n: 5,
            elements: Elements::F32(&raw),
            is_transposed: false,
        };
        assert!(Linear::new(matrix, Activations::Float).run(&[]).is_empty());
    }
}
