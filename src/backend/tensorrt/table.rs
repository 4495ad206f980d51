//! The embedding table on the device.

use super::arena::Arena;
use crate::cpu::Embedding;
use crate::cuda::Device;
use crate::cuda::kernels::{Float, Table};
use crate::error::Result;
use crate::onnx::DataType;

/// Rows that are made at a time where the table is not stored as one.
const ROWS: usize = 1024;

/// Copies the table of `vocab` rows of `d` elements to the device: as it is stored where its kernels know
/// that, else as floats of the decoder's width.
///
/// # Errors
/// Those of the device and of the embedding graph.
pub(super) fn upload(
    embedding: &Embedding,
    vocab: usize,
    d: usize,
    float: Float,
    device: &Device,
    arena: &mut Arena<'_>,
) -> Result<Table> {
    const NAME: &str = "embedding table";
    if let Some(stored) = embedding.stored() {
        let kernels_know = match stored.dtype {
            DataType::I8 => Some(Float::F16),
            DataType::F16 => Some(Float::F16),
            // Decoders of halves take no rows of a table that is twice as wide.
            DataType::F32 => (float == Float::F32).then_some(Float::F32),
            _ => None,
        };
        if let Some(width) = kernels_know {
            let rows = arena.alloc(NAME, &[stored.rows.len()])?;
            device.upload(&rows, 0, stored.rows)?;
            let scales = match stored.scales {
                [] => None,
                scales => {
                    let memory = arena.alloc(NAME, &[scales.len(), 4])?;
                    device.upload(&memory, 0, bytemuck::cast_slice(scales))?;
                    Some(memory)
                }
            };
            return Ok(Table {
                rows,
                float: width,
                scales,
                vocab,
                d,
            });
        }
    }
    let memory = arena.alloc(NAME, &[vocab, d, float.bytes()])?;
    let mut floats = super::floats::Floats::new(float, ROWS * d);
    let mut rows = Vec::with_capacity(ROWS * d);
    for first in (0..vocab).step_by(ROWS) {
        let ids: Vec<u32> = (first..vocab.min(first + ROWS))
            .map(|id| id as u32)
            .collect();
        rows.clear();
        embedding.rows(&ids, &mut rows)?;
        floats.upload(device, &memory, first * d, &rows)?;
    }
    Ok(Table {
        rows: memory,
        float,
        scales: None,
        vocab,
        d,
    })
}
