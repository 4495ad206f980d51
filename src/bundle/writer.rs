//! Writing a bundle: all of it, or nothing.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::TempDir;

use super::layout::{MANIFEST, MANIFEST_DIGEST, check_name, list};
use super::manifest::{Manifest, SCHEMA_VERSION};
use super::reader::Bundle;
use super::swap::{Lock, check_replaceable, clean_up, install, make_temp, parent};
use crate::digest::{sha256_all, sha256_bytes};
use crate::error::{Error, Result};
use crate::limits;
use crate::sync::lock;

/// Two builds of one process must not take each other's directory for a dead one's before it is
/// locked.
static CREATING: Mutex<()> = Mutex::new(());

/// A bundle that is being written, in a temporary directory beside its final place.
///
/// Dropped without [`BundleWriter::finish`], it leaves nothing behind.
#[derive(Debug)]
pub struct BundleWriter {
    out: PathBuf,
    force: bool,
    temp: TempDir,
    _lock: Option<Lock>,
    /// Declared after `temp`, so that it is dropped after it.
    made: MadeFolders,
}

/// Folders that were made for an output, outermost first; they go when nothing came of it.
#[derive(Debug)]
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// Makes `folder` and those above it that are missing.
    fn create(folder: &Path) -> Result<Self> {
        let missing = folder.ancestors().take_while(|above| {
            !above.as_os_str().is_empty() && fs::symlink_metadata(above).is_err()
        });
        let mut made: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
        made.reverse();
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(Self(made))
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // One that somebody else uses by now is not empty, and stays.
            if fs::remove_dir(folder).is_err() {
                break;
            }
        }
    }
}

impl BundleWriter {
    /// Begins a bundle that will stand at `out`; the folders above it are made, and removed again
    /// if no bundle comes of it.
    ///
    /// What killed builds of the same output have left is removed. An empty directory may stand
    /// at `out`; with `force` a bundle may, which stays as it is until the new one is complete.
    ///
    /// # Errors
    /// [`Error::Exists`] if something stands there, [`Error::Malformed`] if with `force`
    /// something stands there that is not a bundle, [`Error::Argument`] if `out` names no
    /// directory, [`Error::Io`].
    pub fn create(out: &Path, force: bool) -> Result<Self> {
        let _creating = lock(&CREATING);
        let parent = parent(out);
        let made = MadeFolders::create(parent)?;
        clean_up(out)?;
        check_replaceable(out, force)?;
        let (temp, lock) = make_temp(out)?;
        Ok(Self {
            out: out.to_path_buf(),
            force,
            temp,
            _lock: lock,
            made,
        })
    }

    /// The directory to write files into.
    pub fn path(&self) -> &Path {
        self.temp.path()
    }

    /// The path under which to write the file `name`; its folder is made.
    ///
    /// # Errors
    /// [`Error::Malformed`] if a bundle cannot have a file of this name, [`Error::Io`].
    pub fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        check_name(name).map_err(|reason| {
            Error::malformed(
                &path,
                format!("cannot be part of a bundle: of its name: {reason}"),
            )
        })?;
        let folder = path.parent().unwrap_or(self.path());
        fs::create_dir_all(folder).map_err(Error::io(folder))?;
        Ok(path)
    }

    /// Writes a file.
    ///
    /// # Errors
    /// As [`BundleWriter::file`].
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let path = self.file(name)?;
        fs::write(&path, bytes).map_err(Error::io(&path))
    }

    /// Copies a file, or what a link points to.
    ///
    /// # Errors
    /// As [`BundleWriter::file`]; [`Error::Malformed`] if `from` is no regular file; an
    /// [`Error::Io`] names the side that failed.
    pub fn copy(&self, from: &Path, name: &str) -> Result<()> {
        let path = self.file(name)?;
        // Opening a pipe would wait for a writer.
        if !fs::metadata(from).map_err(Error::io(from))?.is_file() {
            return Err(Error::malformed(from, "not a regular file"));
        }
        let mut source = File::open(from).map_err(Error::io(from))?;
        let mut target = File::create(&path).map_err(Error::io(&path))?;
        let copied = std::io::copy(&mut source, &mut target);
        copied.map(drop).map_err(Error::io(&path))
    }

    /// Completes the bundle: digests every file into `manifest.files`, writes the manifest, makes
    /// all of it durable, and puts it in its place at once.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] if the manifest is not consistent with the files;
    /// [`Error::Exists`] or [`Error::Malformed`] if something came to stand at `out` meanwhile.
    /// Nothing is left behind, and what stood at `out` is as it was.
    pub fn finish(mut self, mut manifest: Manifest) -> Result<Bundle> {
        let dir = self.path();
        let names = list(dir)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        manifest.schema_version = SCHEMA_VERSION;
        manifest.files = sha256_all(dir, &names, &|_| {})?;
        let path = self.out.join(MANIFEST);
        manifest
            .check()
            .map_err(|reason| Error::malformed(&path, reason))?;
        let mut json = serde_json::to_vec_pretty(&manifest)
            .map_err(|e| Error::malformed(&path, e.to_string()))?;
        json.push(b'\n');
        if json.len() as u64 > limits::MANIFEST_BYTES {
            return Err(Error::TooLarge {
                what: format!("{} (bytes)", path.display()),
                actual: json.len() as u64,
                limit: limits::MANIFEST_BYTES,
            });
        }
        let digest = sha256_bytes(&json);
        for (name, bytes) in [
            (MANIFEST, json.as_slice()),
            (
                MANIFEST_DIGEST,
                format!("{digest}  {MANIFEST}\n").as_bytes(),
            ),
        ] {
            let path = dir.join(name);
            let written = File::create(&path).and_then(|mut file| file.write_all(bytes));
            written.map_err(Error::io(&path))?;
        }
        sync(dir, &names)?;
        install(dir, &self.out, self.force)?;
        self.made.0.clear();
        let parent = parent(&self.out);
        sync_one(parent)?;
        let dir = fs::canonicalize(&self.out).map_err(Error::io(&self.out))?;
        // What `temp` names now is the bundle that was replaced, if any: it goes with `self`.
        Ok(Bundle::trusted(dir, manifest, digest))
    }
}

/// Makes the files and folders of a bundle durable.
fn sync(dir: &Path, names: &[&str]) -> Result<()> {
    let mut folders: Vec<&Path> = vec![Path::new("")];
    for name in names.iter().copied().chain([MANIFEST, MANIFEST_DIGEST]) {
        sync_one(&dir.join(name))?;
        folders.extend(Path::new(name).ancestors().skip(1));
    }
    folders.sort_unstable();
    folders.dedup();
    folders
        .iter()
        .try_for_each(|folder| sync_one(&dir.join(folder)))
}

fn sync_one(path: &Path) -> Result<()> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(Error::io(path))
}
