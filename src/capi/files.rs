//! A model whose files lie in memory of the caller.

use std::fs;
use std::path::{Component, Path};

use tempfile::{Builder, TempDir};

use super::status::Failure;
use crate::error::Error;

/// Where folders are that no disk has.
const SHARED_MEMORY: &str = "/dev/shm";

/// Most files of a model.
pub(super) const MOST_FILES: usize = 4096;

/// Name of the argument, for errors.
const NAME: &str = "files";

/// A file by its path below the model's folder.
pub(super) struct NamedBytes<'a> {
    pub(super) path: &'a str,
    pub(super) bytes: &'a [u8],
}

/// Writes the files into a folder of their own, in shared memory where the system has it. The folder goes with what
/// is returned.
pub(super) fn write(files: &[NamedBytes<'_>]) -> Result<TempDir, Failure> {
    let mut builder = Builder::new();
    builder.prefix("trtvlm-");
    let base = Path::new(SHARED_MEMORY);
    let folder = match base.is_dir() {
        true => builder.tempdir_in(base),
        false => builder.tempdir(),
    };
    let folder = folder.map_err(Error::io(base))?;
    for file in files {
        let relative = Path::new(file.path);
        let mut parts = relative.components();
        if file.path.is_empty() || !parts.all(|part| matches!(part, Component::Normal(_))) {
            let reason = format!("`{}` is no path of a file below a folder", file.path);
            return Err(Failure::argument(NAME, reason));
        }
        let path = folder.path().join(relative);
        if path.exists() {
            return Err(Failure::argument(
                NAME,
                format!("`{}` stands twice", file.path),
            ));
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(Error::io(parent))?;
        }
        fs::write(&path, file.bytes).map_err(Error::io(&path))?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capi::Status;

    fn files<'a>(paths: &[&'a str]) -> Vec<NamedBytes<'a>> {
        let file = |&path: &&'a str| NamedBytes { path, bytes: b"x" };
        paths.iter().map(file).collect()
    }

    #[test]
    fn files_lie_in_a_folder_that_goes_with_its_owner() {
        let folder = write(&files(&["manifest.json", "engines/a/b.onnx"])).expect("folder");
        let path = folder.path().to_owned();
        let read = fs::read(path.join("engines/a/b.onnx")).expect("file");
        assert_eq!(read, b"x");
        drop(folder);
        assert!(!path.exists());
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        for paths in [
            &["/etc/passwd"][..],
            &["../up"],
            &["a/../../up"],
            &[""],
            &["."],
            &["twice", "./twice"],
            &["twice", "twice"],
        ] {
            let failure = write(&files(paths)).expect_err("refused");
            assert_eq!(failure.status, Status::Argument, "{paths:?}");
            assert!(failure.message.starts_with("files: `"), "{failure:?}");
        }
    }

    #[test]
    fn file_where_a_folder_should_be_is_an_error_of_the_system() {
        let failure = write(&files(&["a", "a/b"])).expect_err("refused");
        assert_eq!(failure.status, Status::Io, "{failure:?}");
    }
}
