//! Device memory with names, for the report of what a model holds.

use crate::bundle::Part;
use crate::cuda::{Device, Memory};
use crate::error::Result;

/// Allocates, and notes what for.
pub(super) struct Arena<'a> {
    device: &'a Device,
    parts: Vec<Part>,
}

impl<'a> Arena<'a> {
    pub fn new(device: &'a Device) -> Self {
        Self {
            device,
            parts: Vec::new(),
        }
    }

    /// Memory of the product of `sizes` bytes, zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`](crate::Error::OutOfMemory) naming `what`.
    pub fn alloc(&mut self, what: &str, sizes: &[usize]) -> Result<Memory> {
        let bytes = sizes.iter().fold(1usize, |n, &size| n.saturating_mul(size));
        let memory = self.device.alloc(what, bytes)?;
        self.note(what, memory.bytes() as u64);
        Ok(memory)
    }

    /// Notes memory that others allocate: what is free now beside what was free before.
    ///
    /// # Errors
    /// Those of the device and of `load`.
    pub fn watch<T>(&mut self, what: &str, load: impl FnOnce() -> Result<T>) -> Result<T> {
        let (before, _) = self.device.memory_info()?;
        let loaded = load()?;
        let (after, _) = self.device.memory_info()?;
        self.note(what, before.saturating_sub(after));
        Ok(loaded)
    }

    /// What was allocated.
    pub fn into_parts(self) -> Vec<Part> {
        self.parts
    }

    fn note(&mut self, name: &str, bytes: u64) {
        match self.parts.iter_mut().find(|part| part.name == name) {
            Some(part) => part.bytes += bytes,
            None => self.parts.push(Part {
                name: name.to_owned(),
                bytes,
            }),
        }
    }
}
