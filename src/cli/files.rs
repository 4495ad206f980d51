//! Files that a command writes: all of one, or nothing.

use std::fs;
use std::io::Write;
use std::path::Path;

use tempfile::NamedTempFile;

use crate::error::{Error, Result};

/// The folder of a file.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Refuses a path at which no file can be written: the folder above is not there, or something other than
/// a file stands there.
///
/// # Errors
/// [`Error::Io`] or [`Error::Malformed`] naming it.
pub fn check_output(path: &Path) -> Result<()> {
    let folder = parent(path);
    if !fs::metadata(folder).map_err(Error::io(folder))?.is_dir() {
        return Err(Error::malformed(folder, "not a folder"));
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.is_file() => Err(Error::malformed(
            path,
            "not a regular file, and will not be replaced",
        )),
        _ => Ok(()),
    }
}

/// Writes a file under another name, and renames it when it is complete.
///
/// # Errors
/// [`Error::Io`] naming the file; what stood there is then as it was.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    check_output(path)?;
    let written = NamedTempFile::new_in(parent(path)).and_then(|mut file| {
        file.write_all(bytes)?;
        set_permissions(file.as_file())?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    });
    written.map_err(Error::io(path))
}

/// What `File::create` would give: temporary files are for their owner alone.
fn set_permissions(file: &fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_replaced_whole_and_nothing_else_is() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("a.png");
        for bytes in [b"first".as_slice(), b"second"] {
            write(&path, bytes).expect("written");
            assert_eq!(fs::read(&path).expect("read"), bytes);
        }
        assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 1);
        let folder = dir.path().join("b.png");
        fs::create_dir(&folder).expect("folder");
        for path in [folder, dir.path().join("none/c.png"), path.join("d.png")] {
            assert!(write(&path, b"x").is_err(), "{}", path.display());
        }
    }
}
