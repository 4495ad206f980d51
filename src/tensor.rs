//! Dense row-major host tensors: the vocabulary that stages share.

use crate::error::{Error, Result};

/// A dense row-major tensor in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<T> {
    shape: Vec<usize>,
    data: Vec<T>,
}

impl<T> Tensor<T> {
    /// Wraps `data` as a tensor of `shape`, outermost dimension first.
    ///
    /// # Errors
    /// [`Error::Shape`] if the product of `shape` overflows or is not `data.len()`.
    pub fn new(name: &str, shape: impl Into<Vec<usize>>, data: Vec<T>) -> Result<Self> {
        let shape = shape.into();
        let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        if len != Some(data.len()) {
            return Err(Error::Shape {
                name: name.to_owned(),
                expected: format!("{shape:?}"),
                actual: format!("{} elements", data.len()),
            });
        }
        Ok(Self { shape, data })
    }

    /// Shape, outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// All elements in row-major order.
    pub fn data(&self) -> &[T] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_with_wrong_or_overflowing_shape_is_refused() {
        assert!(Tensor::new("x", [2, 3], vec![0u8; 6]).is_ok());
        assert!(Tensor::new("x", [2, 3], vec![0u8; 5]).is_err());
        assert!(Tensor::new("x", [usize::MAX, 2], vec![0u8; 2]).is_err());
    }
}
