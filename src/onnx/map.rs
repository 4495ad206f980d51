//! Files mapped into memory as shared byte buffers (an unsafe fence: see `tests/house.rs`).
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;

use crate::error::{Error, Result};

/// A whole file, mapped read-only; clones share the mapping.
#[derive(Debug, Clone)]
pub struct Mapping(Bytes);

impl Mapping {
    /// Maps a file.
    ///
    /// It must not be changed while its bytes are in use: replace model files by renaming a new
    /// file over them, never in place.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be opened or mapped, [`Error::Malformed`] if it is empty
    /// or not a regular file.
    pub fn open(path: &Path) -> Result<Self> {
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
        Ok(Self(Bytes::from_owner(map)))
    }

    /// The file's bytes; slices share the mapping.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Gives the memory of whole pages in `range` back; their bytes are read from the file again
    /// when somebody looks at them. For a reader that has copied them, and counts its memory.
    pub fn release(&self, range: Range<usize>) {
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let end = range.end.min(self.0.len()) / PAGE_BYTES * PAGE_BYTES;
        if start >= end {
            return;
        }
        let first = self.0[start..end].as_ptr().cast_mut();
        // SAFETY: `first` is `end - start` bytes of a file's mapping, which begins on a page. It
        // was never written to, so that what comes back for it is what the file has: readers see
        // no change. A refusal is no harm, and is passed over.
        unsafe { libc::madvise(first.cast(), end - start, libc::MADV_DONTNEED) };
    }
}

/// No system that we know has larger pages by default.
const PAGE_BYTES: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn map_of_missing_empty_or_directory_is_a_typed_error() {
        let dir = tempfile::tempdir().expect("temp dir");
        let empty = dir.path().join("empty");
        std::fs::write(&empty, b"").expect("write");
        assert!(matches!(
            Mapping::open(&dir.path().join("none")),
            Err(Error::Io { .. })
        ));
        let malformed = |path| matches!(Mapping::open(path), Err(Error::Malformed { .. }));
        assert!(malformed(&empty));
        assert!(malformed(dir.path()));
    }

    #[test]
    fn mapping_after_release_has_the_same_bytes() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("weights");
        let contents: Vec<u8> = (0..5 * PAGE_BYTES + 7).map(|i| (i / 3) as u8).collect();
        std::fs::write(&path, &contents).expect("write");
        let mapping = Mapping::open(&path).expect("map");
        for range in [
            0..contents.len(),
            1..PAGE_BYTES,
            9..2 * PAGE_BYTES,
            3..usize::MAX,
        ] {
            assert!(mapping.bytes() == &contents);
            mapping.release(range);
        }
        assert!(mapping.bytes() == &contents);
    }
}
