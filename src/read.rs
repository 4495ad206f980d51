//! Reading whole files of bounded size.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a regular file of at most `limit` bytes.
///
/// Pipes, sockets, devices and folders are refused by what was opened, not by what the name stood
/// for a moment before, and without waiting for anybody at a pipe's other end.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is not a regular file,
/// [`Error::TooLarge`] before memory for it is asked for.
pub(crate) fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(Error::io(path))?;
    let meta = file.metadata().map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    let too_large = |actual| Error::TooLarge {
        what: format!("size in bytes of {}", path.display()),
        actual,
        limit,
    };
    if meta.len() > limit {
        return Err(too_large(meta.len()));
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    // The file may grow while it is read: one byte more than allowed proves it.
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::io(path))?;
    match bytes.len() as u64 {
        n if n > limit => Err(too_large(n)),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_at_the_limit_is_read_and_one_above_refused() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("file");
        std::fs::write(&path, b"12345").expect("write");
        assert_eq!(read_file(&path, 5).expect("fits"), b"12345");
        let e = read_file(&path, 4).expect_err("too large");
        assert!(matches!(e, Error::TooLarge { actual: 5, .. }), "{e}");
        assert!(e.to_string().contains(path.to_str().expect("UTF-8")));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let dir = tempfile::tempdir().expect("tempdir");
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)
            .expect("pipe");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).expect("link");
        for path in [&pipe, &link, dir.path(), Path::new("/dev/zero")] {
            let e = read_file(path, 10).expect_err("refused");
            assert!(matches!(e, Error::Malformed { .. }), "{e}");
            assert!(e.to_string().contains(path.to_str().expect("UTF-8")));
        }
    }
}
