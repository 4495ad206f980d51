//! Files mapped into memory as shared byte buffers (an unsafe fence: see `tests/house.rs`).
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a whole file read-only; clones and slices of the result share the mapping.
///
/// The file must not be changed while the bytes are in use: replace model files by renaming a
/// new file over them, never in place.
///
/// # Errors
/// [`Error::Io`] if the file cannot be opened or mapped, [`Error::Malformed`] if it is empty or
/// not a regular file.
pub fn map(path: &Path) -> Result<Bytes> {
    // Looked at before it is opened: opening a pipe waits for a writer.
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    if meta.len() == 0 {
        return Err(Error::malformed(path, "the file is empty"));
    }
    // SAFETY: the mapping is private and read-only, and `Bytes` gives out `&[u8]` only. What
    // remains is that another process may change the file meanwhile; that is the documented
    // rule of this function, as it is of every mapping reader.
    let map = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    Ok(Bytes::from_owner(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_of_missing_empty_or_directory_is_a_typed_error() {
        let dir = tempfile::tempdir().expect("temp dir");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").expect("write");
        assert!(matches!(
            map(&dir.path().join("none")),
            Err(Error::Io { .. })
        ));
        assert!(matches!(map(&empty), Err(Error::Malformed { .. })));
        assert!(matches!(map(dir.path()), Err(Error::Malformed { .. })));
    }
}
