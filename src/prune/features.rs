//! Rows of floats.

use crate::error::{Error, Result};

/// Sums that are kept apart, so that the compiler adds several at once.
const LANES: usize = 16;

/// Name of the tensor, for errors.
const NAME: &str = "image_features";

/// Visual rows, `[n, d]` f32.
#[derive(Debug, Clone, Copy)]
pub struct Features<'a> {
    data: &'a [f32],
    d: usize,
}

impl<'a> Features<'a> {
    /// Wraps row-major rows of width `d`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no row, or a part of one.
    pub fn new(data: &'a [f32], d: usize) -> Result<Self> {
        if d == 0 || data.is_empty() || !data.len().is_multiple_of(d) {
            return Err(Error::Shape {
                name: NAME.to_owned(),
                expected: format!("[n, {d}], at least one row"),
                actual: format!("{} numbers", data.len()),
            });
        }
        Ok(Self { data, d })
    }

    /// Number of rows.
    pub fn n(&self) -> usize {
        self.data.len() / self.d
    }

    /// Width of a row.
    pub fn d(&self) -> usize {
        self.d
    }

    /// All rows, one behind the other.
    pub fn data(&self) -> &'a [f32] {
        self.data
    }

    /// One row, `[d]`.
    ///
    /// # Panics
    /// If `index` is not below [`n`](Self::n).
    pub fn row(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.d..][..self.d]
    }

    /// Euclidean norm of each row, `[n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the first row with a NaN, an infinity or numbers whose squares are.
    pub fn norms(&self) -> Result<Vec<f32>> {
        let rows = self.data.chunks_exact(self.d);
        let norms: Vec<f32> = rows.map(|row| dot(row, row).sqrt()).collect();
        check_finite(NAME, &norms)?;
        Ok(norms)
    }

    /// Refuses sums over rows that are not finite: so is a number of that row.
    pub(super) fn check_sums(&self, sums: &[f32]) -> Result<()> {
        check_finite(NAME, sums)
    }

    /// Cosine of each row with `other`, `[n]`; 0 where either is zero. `norms` are those of the rows.
    pub(super) fn cosines(&self, norms: &[f32], other: &[f32], norm: f32) -> Vec<f32> {
        let rows = self.data.chunks_exact(self.d).zip(norms);
        rows.map(|(row, &own)| cosine(dot(row, other), own, norm))
            .collect()
    }
}

/// A cosine from a product and two norms; 0 where either is 0.
pub(super) fn cosine(product: f32, a: f32, b: f32) -> f32 {
    match a * b {
        0.0 => 0.0,
        norms => product / norms,
    }
}

/// Sum of products.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a.remainder().iter().zip(b.remainder());
    let rest: f32 = rest.map(|(x, y)| x * y).sum();
    for (a, b) in a.zip(b) {
        for ((sum, x), y) in sums.iter_mut().zip(a).zip(b) {
            *sum += x * y;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Refuses numbers that nothing can be compared with.
pub(super) fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(row) => Err(Error::Shape {
            name: name.to_owned(),
            expected: "finite numbers".to_owned(),
            actual: format!("{} in row {row}", values[row]),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dot_of_any_length_is_the_sum_of_products() {
        for n in [0usize, 1, 15, 16, 17, 31, 33, 100] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..n).map(|i| (i % 3) as f32 - 1.0).collect();
            let expected: f32 = (0..n).map(|i| i as f32 * ((i % 3) as f32 - 1.0)).sum();
            assert_eq!(dot(&a, &b), expected, "{n}");
        }
    }

    #[test]
    fn features_without_whole_rows_are_refused() {
        assert_eq!(Features::new(&[1.0; 6], 3).expect("rows").n(), 2);
        for (n, d) in [(0, 3), (5, 3), (3, 0)] {
            let error = Features::new(&vec![1.0; n], d).expect_err("refused");
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }
}
