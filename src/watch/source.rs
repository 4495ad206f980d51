//! What a name of a source stands for.

use std::io::{BufReader, stdin};
use std::path::{Path, PathBuf};

use super::child::Ffmpeg;
use super::files::Files;
use super::raw::{Raw, RawSpec};
use super::reader::{Reader, detect};
use crate::error::{Error, Result};

/// What errors call the standard input.
const STDIN: &str = "standard input";

/// Bytes that are read from a pipe at once.
const PIPE_BYTES: usize = 256 << 10;

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Files of a folder whose names match a pattern.
    Files(PathBuf, String),
    /// A video file.
    Video(PathBuf),
    /// A V4L2 device.
    Camera(PathBuf),
    /// The standard input.
    Stdin,
}

impl Source {
    /// Tells sources apart by their names, and by what is there: `-`, `/dev/video0`, a folder, a pattern in the last part
    /// of a path, a video file.
    pub fn of(name: &Path) -> Self {
        if name == Path::new("-") {
            return Self::Stdin;
        }
        if name.is_dir() {
            return Self::Files(name.to_owned(), "*".to_owned());
        }
        if name.starts_with("/dev") {
            return Self::Camera(name.to_owned());
        }
        let last = name.file_name().unwrap_or_default().to_string_lossy();
        if !name.exists() && last.contains(['*', '?']) {
            let folder = name
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            let folder = folder.unwrap_or(Path::new("."));
            return Self::Files(folder.to_owned(), last.into_owned());
        }
        Self::Video(name.to_owned())
    }

    /// True if it gives frames as fast as they are wanted, so that none needs to be dropped.
    pub fn can_wait(&self) -> bool {
        matches!(self, Self::Files(..))
    }

    /// Opens it; `format` is that of raw frames on the standard input.
    ///
    /// # Errors
    /// [`Error::Argument`] for a format where none belongs; those of opening.
    pub fn open(&self, format: Option<RawSpec>) -> Result<Box<dyn Reader>> {
        if format.is_some() && *self != Self::Stdin {
            return Err(Error::Argument {
                name: "format",
                reason: "belongs to raw frames on the standard input, `--source -`".to_owned(),
            });
        }
        Ok(match self {
            Self::Files(folder, pattern) => Box::new(Files::open(folder, pattern)?),
            Self::Video(path) => Box::new(Ffmpeg::open(path, false)?),
            Self::Camera(path) => Box::new(Ffmpeg::open(path, true)?),
            Self::Stdin => {
                let input = Box::new(BufReader::with_capacity(PIPE_BYTES, stdin()));
                match format {
                    Some(spec) => Box::new(Raw::new(STDIN, input, spec)),
                    None => detect(STDIN, input)?,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_by_their_names() {
        let dir = tempfile::tempdir().expect("folder");
        let here = dir.path();
        std::fs::write(here.join("odd*name.mp4"), "").expect("write");
        for (name, expected) in [
            (PathBuf::from("-"), Source::Stdin),
            (here.to_owned(), Source::Files(here.to_owned(), "*".into())),
            (
                here.join("*.png"),
                Source::Files(here.to_owned(), "*.png".into()),
            ),
            ("a?.png".into(), Source::Files(".".into(), "a?.png".into())),
            ("/dev/video9".into(), Source::Camera("/dev/video9".into())),
            (
                here.join("odd*name.mp4"),
                Source::Video(here.join("odd*name.mp4")),
            ),
            (
                here.join("flight.mp4"),
                Source::Video(here.join("flight.mp4")),
            ),
        ] {
            assert_eq!(Source::of(&name), expected);
        }
        assert!(Source::of(here).can_wait() && !Source::Stdin.can_wait());
        let format = "rgb24:2x2".parse().expect("a format");
        assert!(matches!(
            Source::of(here).open(Some(format)),
            Err(Error::Argument { .. })
        ));
        assert!(matches!(
            Source::of(&here.join("none.mp4")).open(None),
            Err(Error::Io { .. })
        ));
    }
}
