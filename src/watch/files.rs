//! Image files, in the order of their names.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

use super::reader::{Next, Reader};
use crate::error::{Error, Result};
use crate::limits;
use crate::preprocess::Frame;

/// Reads one file after the other.
pub struct Files {
    left: VecDeque<PathBuf>,
}

impl Files {
    /// All files of a folder whose names match `pattern`, in which `*` stands for any letters and `?` for one.
    /// Files of folders inside are left out, and those whose names begin with a dot.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read, [`Error::Malformed`] if there is no such file in it,
    /// [`Error::TooLarge`] for more than [`limits::ITEMS`].
    pub fn open(folder: &Path, pattern: &str) -> Result<Self> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
            let entry = entry.map_err(Error::io(folder))?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let is_wanted = !name.starts_with('.') && matches(pattern.as_bytes(), name.as_bytes());
            if is_wanted && entry.path().is_file() {
                found.push(entry.path());
            }
            if found.len() > limits::ITEMS {
                return Err(Error::TooLarge {
                    what: format!("number of files in {}", folder.display()),
                    actual: found.len() as u64,
                    limit: limits::ITEMS as u64,
                });
            }
        }
        if found.is_empty() {
            return Err(Error::malformed(
                folder,
                format!("no file matches `{pattern}`"),
            ));
        }
        found.sort();
        Ok(Self { left: found.into() })
    }
}

impl Reader for Files {
    fn next(&mut self, frame: &mut Frame) -> Result<Next> {
        let Some(path) = self.left.pop_front() else {
            return Ok(Next::End);
        };
        Ok(match Frame::load(&path) {
            Ok(loaded) => {
                *frame = loaded;
                Next::Frame
            }
            Err(error) => Next::Broken(error.to_string()),
        })
    }
}

/// Whether a name matches a pattern: the way back is always the newest `*`.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_a_shell_does() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*.png", "a.png", true),
            ("*.png", "a.png.txt", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("frame-??.jpg", "frame-07.jpg", true),
            ("frame-??.jpg", "frame-7.jpg", false),
            ("", "a", false),
            ("**", "abc", true),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
        // Not exponential.
        assert!(!matches(
            "*a".repeat(200).as_bytes(),
            "a".repeat(199).as_bytes()
        ));
    }

    #[test]
    fn files_come_in_order_and_those_that_are_no_pictures_are_told() {
        let dir = tempfile::tempdir().expect("folder");
        for (name, bytes) in [
            ("b.pgm", &b"P5 1 1 255\n\x07"[..]),
            ("a.pgm", b"P5 1 1"),
            (".hidden", b""),
            ("c.txt", b""),
        ] {
            fs::write(dir.path().join(name), bytes).expect("write");
        }
        fs::create_dir(dir.path().join("d.pgm")).expect("folder");
        let mut files = Files::open(dir.path(), "*.pgm").expect("files");
        let mut frame = Frame::empty("none");
        let broken = files.next(&mut frame).expect("read");
        assert!(
            matches!(&broken, Next::Broken(why) if why.contains("a.pgm")),
            "{broken:?}"
        );
        assert_eq!(files.next(&mut frame).expect("read"), Next::Frame);
        assert_eq!(frame.rgb(), [7, 7, 7]);
        assert_eq!(files.next(&mut frame).expect("read"), Next::End);
        assert!(Files::open(dir.path(), "*.jpg").is_err());
        assert!(Files::open(&dir.path().join("none"), "*").is_err());
    }
}
