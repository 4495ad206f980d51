//! Host memory: what a build needs, and what the machine has.

use std::path::Path;

use crate::error::{Error, Result};
use crate::host::Memory;

/// What the smallest build takes: the libraries and the builder's own tables.
const BASE_BYTES: u64 = 256 << 20;

/// Bytes of host memory that a build of `weight_bytes` of ONNX needs at its peak: 3.3 times the
/// weights, as the builder was measured to take for a large FP32 decoder, and a base.
pub fn planned_bytes(weight_bytes: u64) -> u64 {
    (weight_bytes / 10)
        .saturating_mul(33)
        .saturating_add(BASE_BYTES)
}

/// Refuses a build that does not fit into the memory that is free now.
///
/// # Errors
/// [`Error::OutOfMemory`] with both figures.
pub(super) fn require(component: &str, weight_bytes: u64) -> Result<()> {
    let Some(memory) = Memory::read() else {
        return Ok(());
    };
    let group = memory.group_limit.unwrap_or(u64::MAX);
    require_of(component, weight_bytes, memory.available.min(group))
}

fn require_of(component: &str, weight_bytes: u64, available_bytes: u64) -> Result<()> {
    let needed_bytes = planned_bytes(weight_bytes);
    if needed_bytes <= available_bytes {
        return Ok(());
    }
    Err(Error::OutOfMemory {
        what: format!("building {component}"),
        needed_bytes,
        available_bytes,
    })
}

/// Bytes of an ONNX file and its external data: every file beside it whose name begins with its
/// own (`x.onnx`, `x.onnx_data`, `x.onnx.data`).
///
/// # Errors
/// [`Error::Io`] if the ONNX file cannot be looked at.
pub(super) fn onnx_bytes(onnx: &Path) -> Result<u64> {
    let own = std::fs::metadata(onnx).map_err(Error::io(onnx))?.len();
    let (Some(folder), Some(name)) = (onnx.parent(), onnx.file_name()) else {
        return Ok(own);
    };
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let beside = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let data = beside
        .filter(|entry| {
            let other = entry.file_name();
            other != name
                && other
                    .as_encoded_bytes()
                    .starts_with(name.as_encoded_bytes())
        })
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .map(|meta| meta.len());
    Ok(data.fold(own, u64::saturating_add))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn require_of_more_than_is_free_names_both_figures() {
        let needed = planned_bytes(1000);
        assert_eq!(needed - planned_bytes(0), 3300);
        assert!(require_of("decoder", 1000, needed).is_ok());
        let Err(Error::OutOfMemory {
            needed_bytes,
            available_bytes,
            ..
        }) = require_of("decoder", 1000, needed - 1)
        else {
            panic!("must be refused");
        };
        assert_eq!((needed_bytes, available_bytes), (needed, needed - 1));
        assert!(require_of("decoder", u64::MAX, u64::MAX - 1).is_err());
    }

    #[test]
    fn onnx_bytes_counts_external_data_beside_the_file() {
        let dir = tempfile::tempdir().expect("temp dir");
        for (name, n) in [("a.onnx", 10), ("a.onnx_data", 100), ("a_fp16.onnx", 1000)] {
            std::fs::write(dir.path().join(name), vec![0u8; n]).expect("write");
        }
        assert_eq!(onnx_bytes(&dir.path().join("a.onnx")).expect("size"), 110);
        assert!(matches!(
            onnx_bytes(&dir.path().join("b.onnx")),
            Err(Error::Io { .. })
        ));
    }
}
