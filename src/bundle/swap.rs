//! Putting a finished directory in its place, at once.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, test_kill_process};

use super::layout::{MANIFEST, MANIFEST_DIGEST, list};
use super::manifest::Manifest;
use super::reader::read_small;
use crate::error::{Error, Result};
use crate::limits;

/// What stands where the output shall be.
#[derive(Debug)]
pub(super) enum Occupant {
    /// Nothing, or an empty directory.
    Nothing,
    /// A bundle, whole or damaged, and nothing else.
    Bundle,
    /// Something that is not ours to delete.
    Other {
        /// What it is.
        reason: String,
    },
}

/// Looks at the place of the output.
pub(super) fn occupant(out: &Path) -> Result<Occupant> {
    let other = |reason: &str| {
        Ok(Occupant::Other {
            reason: reason.to_owned(),
        })
    };
    let kind = match fs::symlink_metadata(out) {
        Ok(meta) => meta.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        Err(e) => return Err(Error::io(out)(e)),
    };
    if kind.is_symlink() {
        return other("it is a symbolic link");
    }
    if !kind.is_dir() {
        return other("it is not a directory");
    }
    if fs::read_dir(out).map_err(Error::io(out))?.next().is_none() {
        return Ok(Occupant::Nothing);
    }
    let read = |name: &str| read_small(&out.join(name), limits::MANIFEST_BYTES);
    let (Ok(manifest), Ok(digest)) = (read(MANIFEST), read(MANIFEST_DIGEST)) else {
        return other("it is not a bundle");
    };
    match Manifest::parse(out, &manifest) {
        Ok(manifest) => {
            let listed = |name: &String| manifest.files.iter().any(|f| f.path == *name);
            match list(out) {
                Ok(found) => match found.iter().find(|name| !listed(name)) {
                    Some(name) => other(&format!("`{name}` in it is not part of the bundle")),
                    None => Ok(Occupant::Bundle),
                },
                Err(error) => other(&error.to_string()),
            }
        }
        // Of another version or damaged: still a bundle if the digest file says so.
        Err(_) if digest.trim_ascii_end().ends_with(MANIFEST.as_bytes()) => Ok(Occupant::Bundle),
        Err(_) => other("it is not a bundle"),
    }
}

/// Renames the finished directory `temp` to `out`. With `force` a bundle that stands there ends
/// up under the name `temp`.
///
/// # Errors
/// [`Error::Exists`] or [`Error::Malformed`] if `out` may not be replaced, [`Error::Io`].
pub(super) fn install(temp: &Path, out: &Path, force: bool) -> Result<()> {
    check_replaceable(out, force)?;
    match fs::rename(temp, out) {
        Ok(()) => return Ok(()),
        // A directory with something in it stands there.
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
            ) => {}
        Err(e) => return Err(Error::io(out)(e)),
    }
    if !force {
        return Err(Error::Exists {
            path: out.to_path_buf(),
        });
    }
    if exchange(temp, out).is_ok() {
        return Ok(());
    }
    rename_aside(temp, out)
}

/// Refuses outputs that may not be replaced.
pub(super) fn check_replaceable(out: &Path, force: bool) -> Result<()> {
    match occupant(out)? {
        Occupant::Nothing => Ok(()),
        Occupant::Bundle if force => Ok(()),
        Occupant::Other { reason } if force => Err(Error::malformed(
            out,
            format!("not replaced, also not with --force: {reason}"),
        )),
        _ => Err(Error::Exists {
            path: out.to_path_buf(),
        }),
    }
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
fn exchange(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// For file systems that cannot exchange: between the two renames the old bundle stands under a
/// name that [`clean_up`] gives back.
fn rename_aside(temp: &Path, out: &Path) -> Result<()> {
    let aside = with_tag(temp, out, OLD)?;
    fs::rename(out, &aside).map_err(Error::io(out))?;
    if let Err(e) = fs::rename(temp, out) {
        let _ = fs::rename(&aside, out);
        return Err(Error::io(out)(e));
    }
    fs::rename(&aside, temp).map_err(Error::io(temp))
}

/// Marks a directory that is being written.
const TEMP: &str = "tmp";

/// Marks a bundle that is being replaced.
const OLD: &str = "old";

/// `.<name>.<tag>-`, the beginning of the names of temporary directories.
fn prefix(out: &Path, tag: &str) -> Result<OsString> {
    let name = out.file_name().ok_or_else(|| Error::Argument {
        name: "out",
        reason: format!("`{}` does not name a directory", out.display()),
    })?;
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(format!(".{tag}-"));
    Ok(prefix)
}

/// The name of the temporary directory `temp` with another tag.
fn with_tag(temp: &Path, out: &Path, tag: &str) -> Result<PathBuf> {
    let mut name = prefix(out, tag)?;
    name.push(
        temp.file_name()
            .and_then(|n| suffix(n, out, TEMP))
            .unwrap_or_default(),
    );
    Ok(temp.with_file_name(name))
}

/// What follows the prefix in a temporary directory's name: `<pid>-<random>`.
fn suffix(name: &OsStr, out: &Path, tag: &str) -> Option<String> {
    let prefix = prefix(out, tag).ok()?;
    let rest = name
        .as_encoded_bytes()
        .strip_prefix(prefix.as_encoded_bytes())?;
    String::from_utf8(rest.to_vec()).ok()
}

/// Holds the lock of a directory.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Lock {
    /// Takes the lock; `None` on file systems without locks, an error if somebody holds it.
    fn take(directory: &Path) -> Result<Option<Self>, TryLockError> {
        let file = File::open(directory).map_err(TryLockError::Error)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(file))),
            Err(TryLockError::Error(_)) => Ok(None),
            Err(held) => Err(held),
        }
    }
}

impl Drop for Lock {
    /// Closing alone would leave the lock to a process that another thread is starting, until it
    /// has become its program.
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Makes and locks a temporary directory beside `out`; it is removed when dropped.
pub(super) fn make_temp(out: &Path) -> Result<(tempfile::TempDir, Option<Lock>)> {
    use std::os::unix::fs::PermissionsExt;
    let parent = parent(out);
    let mut prefix = prefix(out, TEMP)?;
    prefix.push(format!("{}-", std::process::id()));
    let temp = tempfile::Builder::new()
        .prefix(&prefix)
        .permissions(fs::Permissions::from_mode(0o777))
        .tempdir_in(parent)
        .map_err(Error::io(out))?;
    // The lock dies with the process, and its number may be given to another one. A file system
    // without locks leaves us with the number.
    let lock = Lock::take(temp.path()).ok().flatten();
    Ok((temp, lock))
}

/// The directory that holds `out`.
pub(super) fn parent(out: &Path) -> &Path {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Removes what killed builds of `out` have left, and gives back a bundle that one of them was
/// about to replace.
pub(super) fn clean_up(out: &Path) -> Result<()> {
    let parent = parent(out);
    for entry in fs::read_dir(parent).map_err(Error::io(parent))? {
        let entry = entry.map_err(Error::io(parent))?;
        let path = entry.path();
        let is_left =
            |tag| suffix(&entry.file_name(), out, tag).is_some_and(|s| is_dead(&s, &path));
        if is_left(OLD) && !out.exists() {
            tracing::warn!(
                "{}: restored, a build that was replacing it was killed",
                out.display()
            );
            fs::rename(&path, out).map_err(Error::io(out))?;
        } else if is_left(TEMP) || is_left(OLD) {
            tracing::info!("{}: left by a killed build, removed", path.display());
            if let Err(e) = fs::remove_dir_all(&path) {
                tracing::warn!(
                    "{}: left by a killed build, not removed: {e}",
                    path.display()
                );
            }
        }
    }
    Ok(())
}

/// True if the build that made a temporary directory is no more.
fn is_dead(suffix: &str, path: &Path) -> bool {
    let Some((pid, _)) = suffix.split_once('-') else {
        return false;
    };
    let Some(pid) = pid.parse().ok().and_then(Pid::from_raw) else {
        return false;
    };
    let ours = pid.as_raw_nonzero().get() as u32 == std::process::id();
    let runs = !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH));
    let locked = matches!(Lock::take(path), Err(TryLockError::WouldBlock));
    // In a container a killed build may have had the number that we have.
    !locked && (ours || !runs)
}
