//! Opening a bundle: nobody reads a byte of it that was not verified.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::layout::{MANIFEST, MANIFEST_DIGEST, list};
use super::manifest::{EngineSet, Manifest};
use super::target::{Engine, Target};
use crate::digest::{is_sha256, sha256_all, sha256_bytes};
use crate::error::{Error, Result};
use crate::limits;
use crate::read::read_file;

/// Largest `manifest.sha256`, in bytes.
const DIGEST_FILE_BYTES: u64 = 256;

/// A verified bundle.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    digest: String,
}

impl Bundle {
    /// True if `dir` holds a manifest or its digest, that is, if it is to be opened as a bundle,
    /// whole or not.
    pub fn is_bundle(dir: &Path) -> bool {
        [MANIFEST, MANIFEST_DIGEST]
            .iter()
            .any(|name| fs::symlink_metadata(dir.join(name)).is_ok())
    }

    /// Opens a bundle and verifies every file of it.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for a wrong digest, size or schema version, naming both sides;
    /// [`Error::Malformed`] for a manifest that is not one, for files that are missing, not
    /// listed, or no regular files; [`Error::TooLarge`]; [`Error::Io`].
    pub fn open(dir: &Path) -> Result<Self> {
        Self::open_with(dir, |_, _| {})
    }

    /// As [`Bundle::open`]; `progress` is told the bytes of each chunk verified, and the bytes of
    /// all files. It is called from several threads.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn open_with(dir: &Path, progress: impl Fn(u64, u64) + Sync) -> Result<Self> {
        let dir = fs::canonicalize(dir).map_err(Error::io(dir))?;
        let (manifest, digest) = read_manifest(&dir)?;
        check_files(&dir, &manifest, &progress)?;
        Ok(Self {
            dir,
            manifest,
            digest,
        })
    }

    /// Reads the manifest of a bundle and checks its digest, but none of the files that it lists:
    /// for showing what a bundle says of itself, not for using it.
    ///
    /// # Errors
    /// As [`Bundle::open`].
    pub fn read_manifest(dir: &Path) -> Result<Manifest> {
        Ok(read_manifest(dir)?.0)
    }

    /// A bundle that was verified while it was written.
    pub(super) fn trusted(dir: PathBuf, manifest: Manifest, digest: String) -> Self {
        Self {
            dir,
            manifest,
            digest,
        }
    }

    /// The bundle's directory, without links.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the bundle says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// SHA-256 of the manifest, and so of everything: the bundle's identity.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The path of a file of the bundle, if the manifest lists it.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let listed = self.manifest.files.iter().any(|f| f.path == name);
        listed.then(|| self.dir.join(name))
    }

    /// The engines for `target`, if `engine`, which is what the machine has, can load them.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming what is asked for and what the bundle has.
    pub fn check_target(&self, target: Target, engine: &Engine) -> Result<&EngineSet> {
        let mismatch = |what, expected: String, actual: String| Error::Mismatch {
            path: self.dir.join(MANIFEST),
            what,
            expected,
            actual,
        };
        let sets = &self.manifest.engines;
        let set = self.manifest.engine_set(target).ok_or_else(|| {
            let targets: Vec<String> = sets.iter().map(|s| s.target.to_string()).collect();
            mismatch("target", target.to_string(), targets.join(", "))
        })?;
        if !set.engine.loads_in(engine) {
            return Err(mismatch(
                "engine",
                engine.to_string(),
                set.engine.to_string(),
            ));
        }
        Ok(set)
    }
}

/// Reads a file that is small if it is what it should be; in a bundle, a link is not.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let meta = fs::symlink_metadata(path).map_err(Error::io(path))?;
    if !meta.is_file() {
        return Err(Error::malformed(path, "not a regular file"));
    }
    read_file(path, limit)
}

fn read_manifest(dir: &Path) -> Result<(Manifest, String)> {
    let digest_path = dir.join(MANIFEST_DIGEST);
    let line = read_small(&digest_path, DIGEST_FILE_BYTES)?;
    let expected = std::str::from_utf8(&line)
        .ok()
        .and_then(|line| line.strip_suffix(&format!("  {MANIFEST}\n")))
        .filter(|digest| is_sha256(digest))
        .ok_or_else(|| {
            Error::malformed(
                &digest_path,
                format!("not `<sha256>  {MANIFEST}` on one line"),
            )
        })?;
    let path = dir.join(MANIFEST);
    let bytes = read_small(&path, limits::MANIFEST_BYTES)?;
    let actual = sha256_bytes(&bytes);
    if actual != expected {
        return Err(Error::Mismatch {
            path,
            what: "SHA-256",
            expected: expected.to_owned(),
            actual,
        });
    }
    Ok((Manifest::parse(&path, &bytes)?, actual))
}

/// Compares the files of a bundle with its manifest: names, then sizes, then digests.
fn check_files(
    dir: &Path,
    manifest: &Manifest,
    progress: &(impl Fn(u64, u64) + Sync),
) -> Result<()> {
    let mut listed: HashMap<&str, _> = manifest
        .files
        .iter()
        .map(|f| (f.path.as_str(), f))
        .collect();
    for name in list(dir)? {
        let path = dir.join(&name);
        let Some(file) = listed.remove(name.as_str()) else {
            return Err(Error::malformed(
                path,
                "not listed in the bundle's manifest",
            ));
        };
        let actual = fs::symlink_metadata(&path).map_err(Error::io(&path))?.len();
        if actual != file.bytes {
            return Err(Error::Mismatch {
                path,
                what: "size in bytes",
                expected: file.bytes.to_string(),
                actual: actual.to_string(),
            });
        }
    }
    if let Some(name) = listed.keys().min() {
        let path = dir.join(name);
        return Err(Error::malformed(
            path,
            "listed in the bundle's manifest, but not there",
        ));
    }
    let mut files: Vec<_> = manifest.files.iter().collect();
    // The largest first: cores end at about the same time.
    files.sort_by_key(|f| std::cmp::Reverse(f.bytes));
    let names: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
    let total = manifest.total_bytes();
    let digests = sha256_all(dir, &names, &|bytes| progress(bytes, total))?;
    for (file, digest) in files.iter().zip(digests) {
        if digest.sha256 != file.sha256 {
            return Err(Error::Mismatch {
                path: dir.join(&file.path),
                what: "SHA-256",
                expected: file.sha256.clone(),
                actual: digest.sha256,
            });
        }
    }
    Ok(())
}
