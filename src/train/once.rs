//! Frames that are looked at once, however many questions there are about them.

use crate::backend::{Backend, CpuBackend};
use crate::error::Result;
use crate::preprocess::PixelValues;

/// The newest frame, with the number of its visual rows.
#[derive(Default)]
pub(super) struct Newest(Option<(PixelValues, usize)>);

impl Newest {
    /// Encodes a frame, unless it is the newest one.
    ///
    /// # Errors
    /// Those of the backend.
    pub fn encode(&mut self, backend: &mut CpuBackend, image: &PixelValues) -> Result<usize> {
        if let Some((known, n)) = &self.0
            && known.pixels.data() == image.pixels.data()
            && known.grid == image.grid
        {
            return Ok(*n);
        }
        let n = backend.encode(image)?;
        self.0 = Some((image.clone(), n));
        Ok(n)
    }
}
