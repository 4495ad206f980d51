//! Reading and making constant tensors.

use std::path::Path;

use bytes::Bytes;
use half::f16;

use super::dtype::DataType;
use super::proto::TensorProto;
use crate::error::{Error, Result};
use crate::limits;

/// `TensorProto.data_location` of a tensor whose bytes are in another file.
pub(super) const EXTERNAL: i32 = 1;

/// Most elements that [`TensorProto::each_f32_chunk`] hands over at a time.
pub(crate) const CHUNK: usize = 4096;

impl TensorProto {
    /// Makes a tensor from little-endian elements.
    pub fn from_raw(name: &str, dtype: DataType, dims: &[i64], raw: impl Into<Bytes>) -> Self {
        Self {
            name: name.to_owned(),
            data_type: Some(dtype as i32),
            dims: dims.to_vec(),
            raw_data: Some(raw.into()),
            ..Self::default()
        }
    }

    /// Makes an INT64 tensor.
    pub fn from_i64(name: &str, dims: &[i64], values: &[i64]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::from_raw(name, DataType::I64, dims, raw)
    }

    /// Makes an FP32 tensor.
    pub fn from_f32(name: &str, dims: &[i64], values: &[f32]) -> Self {
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::from_raw(name, DataType::F32, dims, raw)
    }

    /// Element type.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the type's code is not one we know.
    pub fn dtype(&self) -> Result<DataType> {
        let code = self.data_type.unwrap_or(0);
        DataType::from_code(code).ok_or_else(|| Error::Unsupported {
            node: self.name.clone(),
            op: "initializer".to_owned(),
            reason: format!("unknown element type {code}"),
        })
    }

    /// Number of elements.
    ///
    /// # Errors
    /// [`Error::Malformed`] on negative dimensions, [`Error::TooLarge`] above
    /// [`limits::TENSOR_ELEMENTS`].
    pub fn len(&self, path: &Path) -> Result<u64> {
        let mut len = 1u64;
        for &dim in &self.dims {
            let dim = u64::try_from(dim).map_err(|_| {
                Error::malformed(path, format!("tensor `{}` has dimension {dim}", self.name))
            })?;
            len = len.saturating_mul(dim);
        }
        if len > limits::TENSOR_ELEMENTS {
            return Err(Error::TooLarge {
                what: format!("{}: tensor `{}` (elements)", path.display(), self.name),
                actual: len,
                limit: limits::TENSOR_ELEMENTS,
            });
        }
        Ok(len)
    }

    /// Bytes that hold the elements in this file, 0 if they stand in typed fields.
    pub fn raw_len(&self) -> usize {
        self.raw_data.as_ref().map_or(0, Bytes::len)
    }

    /// Elements that the dimensions say.
    pub fn elements(&self) -> u64 {
        let dims = self.dims.iter().map(|&d| d.max(0) as u64);
        dims.fold(1, u64::saturating_mul)
    }

    /// Elements of an FP32, FP16 or FP64 tensor, widened or narrowed to `f32`.
    pub fn to_f32(&self, path: &Path) -> Result<Vec<f32>> {
        let values = match (self.dtype()?, &self.raw_data) {
            (DataType::F32, Some(raw)) => raw
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect(),
            (DataType::F32, None) => self.float_data.clone(),
            (DataType::F16, Some(raw)) => raw
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect(),
            (DataType::F16, None) => self
                .int32_data
                .iter()
                .map(|&bits| f16::from_bits(bits as u16).to_f32())
                .collect(),
            (DataType::F64, Some(raw)) => raw
                .chunks_exact(8)
                .map(|b| {
                    f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32
                })
                .collect(),
            (DataType::F64, None) => self.double_data.iter().map(|&v| v as f32).collect(),
            (dtype, _) => return Err(self.wrong_type(dtype, "a float type")),
        };
        self.check_len(values, path)
    }

    /// Calls `f` on the elements of a float tensor, in order, at most [`CHUNK`] at a time: a weight
    /// may be as large as an embedding, and is never wanted twice in memory.
    ///
    /// # Errors
    /// As [`TensorProto::to_f32`].
    pub(crate) fn each_f32_chunk(&self, path: &Path, mut f: impl FnMut(&[f32])) -> Result<()> {
        let mut values = [0f32; CHUNK];
        match (self.dtype()?, &self.raw_data) {
            (DataType::F32, Some(raw)) => {
                for bytes in raw.chunks(CHUNK * 4) {
                    let n = bytes.len() / 4;
                    for (value, b) in values.iter_mut().zip(bytes.chunks_exact(4)) {
                        *value = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    }
                    f(&values[..n]);
                }
            }
            (DataType::F16, Some(raw)) => {
                for bytes in raw.chunks(CHUNK * 2) {
                    let n = bytes.len() / 2;
                    for (value, b) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                        *value = f16::from_le_bytes([b[0], b[1]]).to_f32();
                    }
                    f(&values[..n]);
                }
            }
            _ => self.to_f32(path)?.chunks(CHUNK).for_each(f),
        }
        Ok(())
    }

    /// Elements of an INT64 or INT32 tensor, widened to `i64`.
    pub fn to_i64(&self, path: &Path) -> Result<Vec<i64>> {
        let values = match (self.dtype()?, &self.raw_data) {
            (DataType::I64, Some(raw)) => raw
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
                .collect(),
            (DataType::I64, None) => self.int64_data.clone(),
            (DataType::I32, Some(raw)) => raw
                .chunks_exact(4)
                .map(|b| i64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
                .collect(),
            (DataType::I32, None) => self.int32_data.iter().map(|&v| i64::from(v)).collect(),
            (dtype, _) => return Err(self.wrong_type(dtype, "i64 or i32")),
        };
        self.check_len(values, path)
    }

    fn check_len<T>(&self, values: Vec<T>, path: &Path) -> Result<Vec<T>> {
        if values.len() as u64 == self.len(path)? {
            return Ok(values);
        }
        Err(Error::malformed(
            path,
            format!(
                "tensor `{}` has {} elements for shape {:?}",
                self.name,
                values.len(),
                self.dims
            ),
        ))
    }

    fn wrong_type(&self, dtype: DataType, expected: &str) -> Error {
        Error::Shape {
            name: self.name.clone(),
            expected: expected.to_owned(),
            actual: dtype.to_string(),
        }
    }

    /// Checks that the stored bytes fit the shape.
    pub(super) fn validate(&self, path: &Path) -> Result<()> {
        let len = self.len(path)?;
        let dtype = self.dtype()?;
        let Some(raw) = &self.raw_data else {
            let n_typed = self.float_data.len()
                + self.int32_data.len()
                + self.int64_data.len()
                + self.double_data.len()
                + self.uint64_data.len()
                + self.string_data.len();
            // Packed types hold several elements in one entry.
            if len > 0 && dtype.bits() >= 8 && n_typed as u64 != len {
                return Err(Error::malformed(
                    path,
                    format!(
                        "tensor `{}` has {n_typed} elements for shape {:?}",
                        self.name, self.dims
                    ),
                ));
            }
            return Ok(());
        };
        if dtype.bytes_for(len) != Some(raw.len() as u64) {
            return Err(Error::malformed(
                path,
                format!(
                    "tensor `{}` ({dtype} {:?}) has {} bytes",
                    self.name,
                    self.dims,
                    raw.len()
                ),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_each_storage_are_read() {
        let path = Path::new("t");
        let raw = TensorProto::from_f32("a", &[2], &[1.5, -2.0]);
        assert_eq!(raw.to_f32(path).expect("raw"), [1.5, -2.0]);
        let typed = TensorProto {
            data_type: Some(DataType::F16 as i32),
            dims: vec![1],
            int32_data: vec![i32::from(f16::from_f32(0.5).to_bits())],
            ..TensorProto::default()
        };
        assert_eq!(typed.to_f32(path).expect("typed"), [0.5]);
        let ints = TensorProto::from_i64("i", &[3], &[1, -1, 7]);
        assert_eq!(ints.to_i64(path).expect("ints"), [1, -1, 7]);
        assert!(ints.to_f32(path).is_err());
    }

    #[test]
    fn validate_with_bad_dimensions_or_bytes_is_refused() {
        let path = Path::new("t");
        let mut tensor = TensorProto::from_f32("a", &[2], &[1.0, 2.0]);
        assert!(tensor.validate(path).is_ok());
        for dims in [vec![3], vec![-2], vec![1 << 40, 1 << 40]] {
            tensor.dims = dims;
            assert!(tensor.validate(path).is_err(), "{:?}", tensor.dims);
        }
    }
}
