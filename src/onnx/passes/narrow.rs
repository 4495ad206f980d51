//! Constants in another float type.

use std::path::Path;

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::Result;
use crate::onnx::proto::TensorProto;
use crate::onnx::{CHUNK, DataType};

/// A constant in FP16, and what rounding did to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Narrowed {
    /// The constant.
    pub(super) tensor: TensorProto,
    /// Elements that were not zero and are now.
    pub(super) n_flushed: u64,
}

/// Number of elements beyond ±65504, which FP16 cannot hold; NaN counts, too.
pub(super) fn count_beyond_f16(tensor: &TensorProto, path: &Path) -> Result<u64> {
    if tensor.dtype()? == DataType::F16 {
        return Ok(0);
    }
    let beyond = |v: &&f32| v.is_nan() || v.abs() > f16::MAX.to_f32();
    let mut n_beyond = 0;
    tensor.each_f32_chunk(path, |chunk| {
        n_beyond += chunk.iter().filter(beyond).count() as u64;
    })?;
    Ok(n_beyond)
}

/// Rounds a constant to FP16, to nearest, ties to even.
pub(super) fn to_half(tensor: &TensorProto, path: &Path) -> Result<Narrowed> {
    let mut raw = Vec::with_capacity(tensor.len(path)? as usize * 2);
    let mut n_flushed = 0;
    tensor.each_f32_chunk(path, |chunk| {
        let mut halves = [f16::ZERO; CHUNK];
        let halves = &mut halves[..chunk.len()];
        halves.convert_from_f32_slice(chunk);
        let flushed = |(v, h): &(&f32, &f16)| **v != 0.0 && h.to_bits() & 0x7fff == 0;
        n_flushed += chunk.iter().zip(&*halves).filter(flushed).count() as u64;
        for half in halves {
            raw.extend_from_slice(&half.to_le_bytes());
        }
    })?;
    Ok(Narrowed {
        tensor: TensorProto::from_raw(&tensor.name, DataType::F16, &tensor.dims, raw),
        n_flushed,
    })
}

/// Widens a constant to FP32.
pub(super) fn to_single(tensor: &TensorProto, path: &Path) -> Result<TensorProto> {
    let mut raw = Vec::with_capacity(tensor.len(path)? as usize * 4);
    tensor.each_f32_chunk(path, |chunk| {
        for value in chunk {
            raw.extend_from_slice(&value.to_le_bytes());
        }
    })?;
    Ok(TensorProto::from_raw(
        &tensor.name,
        DataType::F32,
        &tensor.dims,
        raw,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_half_rounds_to_even_and_counts_what_is_lost() {
        let path = Path::new("t");
        let values = [1.0, 2049.0, 2051.0, 1e-8, -1e-8, 0.0, 6e-8, -65504.0];
        let tensor = TensorProto::from_f32("w", &[8], &values);
        assert_eq!(count_beyond_f16(&tensor, path).expect("count"), 0);
        let half = to_half(&tensor, path).expect("half");
        assert_eq!(half.n_flushed, 2);
        let back = half.tensor.to_f32(path).expect("floats");
        assert_eq!(back[..3], [1.0, 2048.0, 2052.0]);
        assert_eq!(back[3..6], [0.0, 0.0, 0.0]);
        assert!(back[6] > 0.0);
        assert_eq!(back[7], -65504.0);
    }

    #[test]
    fn count_beyond_f16_finds_what_rounds_to_infinity() {
        let path = Path::new("t");
        let values = [65504.0, 65505.0, -1e6, f32::INFINITY, f32::NAN, 0.0];
        let tensor = TensorProto::from_f32("w", &[6], &values);
        assert_eq!(count_beyond_f16(&tensor, path).expect("count"), 4);
    }

    #[test]
    fn to_single_of_half_is_exact_across_chunks() {
        let path = Path::new("t");
        let n = CHUNK + 3;
        let values: Vec<f32> = (0..n).map(|i| i as f32 / 64.0).collect();
        let tensor = TensorProto::from_f32("w", &[n as i64], &values);
        let half = to_half(&tensor, path).expect("half").tensor;
        let single = to_single(&half, path).expect("single");
        assert_eq!(single.dtype().expect("type"), DataType::F32);
        let expected = half.to_f32(path).expect("floats");
        assert_eq!(single.to_f32(path).expect("floats"), expected);
    }
}
