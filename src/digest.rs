//! SHA-256 of files, streamed: what bundles and downloads are verified with.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::sync::lock;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Most threads that hash: more only wait for the disk.
const THREADS: usize = 4;

/// A file's name, size and digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// Name, relative to its folder, `/` between its parts.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

/// Computes size and SHA-256 of a regular file; `progress` is told the bytes of each chunk read.
/// The result's `path` is the file's own name.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Malformed`] if it is no regular file.
pub fn sha256_file(path: &Path, mut progress: impl FnMut(u64)) -> Result<FileDigest> {
    // Opening a pipe would wait for a writer, so that the kind is asked for first.
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    let mut file = File::open(path).map_err(Error::io(path))?;
    let mut hasher = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES.min(meta.len().max(1) as usize)];
    let mut bytes = 0;
    loop {
        let n = match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(Error::io(path)(e)),
        };
        hasher.update(&chunk[..n]);
        bytes += n as u64;
        progress(n as u64);
    }
    let name = path.file_name().unwrap_or(path.as_os_str());
    Ok(FileDigest {
        path: name.to_string_lossy().into_owned(),
        bytes,
        sha256: hex(&hasher.finalize()),
    })
}

/// SHA-256 of bytes in memory, in hexadecimal.
pub(crate) fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// True for 64 lower-case hexadecimal digits.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Digests of the files `names` under `dir`, in that order, computed on several cores.
pub(crate) fn sha256_all(
    dir: &Path,
    names: &[&str],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<FileDigest>> {
    let queue = Mutex::new(names.iter().enumerate());
    let results: Mutex<Vec<Option<FileDigest>>> = Mutex::new(vec![None; names.len()]);
    let failure = Mutex::new(None);
    let stop = AtomicBool::new(false);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let Some((index, name)) = lock(&queue).next() else {
                return;
            };
            match sha256_file(&dir.join(name), progress) {
                Ok(mut digest) => {
                    digest.path = (*name).to_owned();
                    lock(&results)[index] = Some(digest);
                }
                Err(error) => {
                    lock(&failure).get_or_insert(error);
                    stop.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 1..cores.min(THREADS).min(names.len()) {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = lock(&failure).take() {
        return Err(error);
    }
    let results = std::mem::take(&mut *lock(&results));
    Ok(results.into_iter().flatten().collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a `String` cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST's example for the message `abc` (FIPS 180-2, appendix B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    /// NIST's example for a million times `a` (appendix B.3).
    const MILLION_A: &str = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";

    #[test]
    fn digests_of_published_messages_are_right() {
        let dir = tempfile::tempdir().expect("temp dir");
        std::fs::write(dir.path().join("abc"), "abc").expect("write");
        std::fs::write(dir.path().join("a"), vec![b'a'; 1_000_000]).expect("write");
        let mut seen = 0;
        let abc = sha256_file(&dir.path().join("abc"), |n| seen += n).expect("digest");
        assert_eq!(
            (abc.path.as_str(), abc.bytes, abc.sha256.as_str()),
            ("abc", 3, ABC)
        );
        assert_eq!(seen, 3);
        let total = std::sync::atomic::AtomicU64::new(0);
        let add = |n| {
            total.fetch_add(n, Ordering::Relaxed);
        };
        let all = sha256_all(dir.path(), &["a", "abc", "a"], &add).expect("digests");
        let digests: Vec<&str> = all.iter().map(|d| d.sha256.as_str()).collect();
        assert_eq!(digests, [MILLION_A, ABC, MILLION_A]);
        assert_eq!(total.into_inner(), 2_000_003);
    }

    #[test]
    fn digest_of_missing_file_or_directory_is_a_typed_error() {
        let dir = tempfile::tempdir().expect("temp dir");
        let missing = sha256_all(dir.path(), &["none"], &|_| {}).expect_err("missing");
        assert!(matches!(&missing, Error::Io { path, .. } if path.ends_with("none")));
        let folder = sha256_file(dir.path(), |_| {}).expect_err("folder");
        assert!(matches!(folder, Error::Malformed { .. }));
    }
}
