//! Dense row-major host tensors: the vocabulary that stages share.

use crate::error::{Error, Result};

/// A dense row-major tensor in host memory.
#[derive(Debug, Clone, PartialEq, Default)]
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

    /// Takes another shape and returns all elements, to be overwritten; memory that is there is used again.
    ///
    /// # Panics
    /// If the product of `shape` overflows: it is of our own making.
    pub fn reshape(&mut self, shape: &[usize]) -> &mut [T]
    where
        T: Copy + Default,
    {
        let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        self.data.resize(len.expect("a size"), T::default());
        self.shape.clear();
        self.shape.extend_from_slice(shape);
        &mut self.data
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
    fn reshape_uses_the_memory_that_is_there() {
        let mut tensor = Tensor::new("x", [2, 3], vec![1u8; 6]).expect("tensor");
        let before = tensor.data().as_ptr();
        assert_eq!(tensor.reshape(&[1, 4]).len(), 4);
        assert_eq!(
            (tensor.shape(), tensor.data().as_ptr()),
            (&[1, 4][..], before)
        );
    }

    #[test]
    fn new_with_wrong_or_overflowing_shape_is_refused() {
        assert!(Tensor::new("x", [2, 3], vec![0u8; 6]).is_ok());
        assert!(Tensor::new("x", [2, 3], vec![0u8; 5]).is_err());
        assert!(Tensor::new("x", [usize::MAX, 2], vec![0u8; 2]).is_err());
    }
}
