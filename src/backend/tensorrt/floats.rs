//! Floats on their way to the device and back.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::cuda::kernels::Float;
use crate::cuda::{Device, Memory};
use crate::error::{Error, Result};
use crate::trt::{DType, TensorDesc};

/// Width of a plan's tensor.
///
/// # Errors
/// [`Error::Shape`] if it has no floats of 16 or 32 bits.
pub(super) fn float_of(tensor: &TensorDesc) -> Result<Float> {
    match tensor.dtype {
        DType::F16 => Ok(Float::F16),
        DType::F32 => Ok(Float::F32),
        _ => Err(Error::Shape {
            name: tensor.name.clone(),
            expected: "f16 or f32".to_owned(),
            actual: tensor.dtype.to_string(),
        }),
    }
}

/// Room on the host through which floats of the device's width go.
pub(super) struct Floats {
    float: Float,
    halves: Vec<f16>,
}

impl Floats {
    /// Room for `n` elements at a time.
    pub fn new(float: Float, n: usize) -> Self {
        let halves = match float {
            Float::F16 => vec![f16::ZERO; n],
            Float::F32 => Vec::new(),
        };
        Self { float, halves }
    }

    /// Copies `values` to elements of `memory` from `at` on.
    ///
    /// # Errors
    /// Those of the device.
    pub fn upload(
        &mut self,
        device: &Device,
        memory: &Memory,
        at: usize,
        values: &[f32],
    ) -> Result<()> {
        let offset = at * self.float.bytes();
        match self.float {
            Float::F32 => device.upload(memory, offset, bytemuck::cast_slice(values)),
            Float::F16 => {
                self.reserve(values.len());
                let halves = &mut self.halves[..values.len()];
                halves.convert_from_f32_slice(values);
                device.upload(memory, offset, bytemuck::cast_slice(halves))
            }
        }
    }

    /// Copies the first elements of `memory` to `values`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn download(&mut self, device: &Device, memory: &Memory, values: &mut [f32]) -> Result<()> {
        match self.float {
            Float::F32 => device.download(memory, 0, bytemuck::cast_slice_mut(values)),
            Float::F16 => {
                self.reserve(values.len());
                let halves = &mut self.halves[..values.len()];
                device.download(memory, 0, bytemuck::cast_slice_mut(halves))?;
                halves.convert_to_f32_slice(values);
                Ok(())
            }
        }
    }

    fn reserve(&mut self, n: usize) {
        if self.halves.len() < n {
            self.halves.resize(n, f16::ZERO);
        }
    }
}
