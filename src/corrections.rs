//! Drafts that a model refused, with what it said instead: collected while it answers, learned from in training.
//!
//! A file has one JSON object a line, one for each answer in which something was refused:
//!
//! | key            | what |
//! |----------------|------|
//! | `image`        | absolute path of the picture |
//! | `image_sha256` | digest of its file: a picture that was replaced teaches nothing |
//! | `prompt`       | the question |
//! | `token_ids`    | the answer, which is the model's own |
//! | `refused`      | `[{"drafter": name, "index": place in the answer, "drafted": id, "chosen": id}, ..]` |
//! | `decoder`      | fingerprint of the decoder that the drafts were trained on |
//!
//! Source: learning from what verification refused, after arXiv 2510.22641.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::limits;
use crate::read::read_file;

/// A token that a drafter proposed, and the model's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Name of the drafter.
    pub drafter: String,
    /// Place in the answer, from 0.
    pub index: usize,
    /// What was proposed.
    pub drafted: u32,
    /// What the model said.
    pub chosen: u32,
}

/// An answer in which drafts were refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Correction {
    /// The picture.
    pub image: PathBuf,
    /// SHA-256 of its file.
    pub image_sha256: String,
    /// The question.
    pub prompt: String,
    /// Ids of the answer.
    pub token_ids: Vec<u32>,
    /// What was refused, in the order of the answer.
    pub refused: Vec<Refused>,
    /// Fingerprint of the decoder that the drafts were trained on.
    pub decoder: String,
}

/// Reads all corrections of a file, which are those of a decoder with one of these fingerprints.
///
/// # Errors
/// [`Error::Io`]; [`Error::TooLarge`] above [`limits::CORRECTIONS_BYTES`]; [`Error::Malformed`] naming the
/// line; [`Error::Mismatch`] with both fingerprints if they were collected with another model.
pub fn read_corrections(path: &Path, decoders: &[String]) -> Result<Vec<Correction>> {
    let bytes = read_file(path, limits::CORRECTIONS_BYTES)?;
    let lines = bytes.split(|&b| b == b'\n').zip(1..);
    let lines = lines.filter(|(line, _)| !line.trim_ascii().is_empty());
    lines
        .map(|(line, number)| {
            let correction = parse(path, number, line)?;
            check_decoder(path, &correction, decoders)?;
            Ok(correction)
        })
        .collect()
}

fn parse(path: &Path, number: usize, line: &[u8]) -> Result<Correction> {
    let bad = |reason: String| Error::malformed(path, format!("line {number}: {reason}"));
    let correction: Correction = serde_json::from_slice(line).map_err(|e| bad(e.to_string()))?;
    if !correction.image.is_absolute() {
        return Err(bad("image is not an absolute path".to_owned()));
    }
    let ids = &correction.token_ids;
    let fits = |r: &Refused| ids.get(r.index) == Some(&r.chosen) && r.drafted != r.chosen;
    if !correction.refused.iter().all(fits) {
        let reason = "what the model said instead of a draft does not stand in its answer";
        return Err(bad(reason.to_owned()));
    }
    Ok(correction)
}

fn check_decoder(path: &Path, correction: &Correction, decoders: &[String]) -> Result<()> {
    if decoders.contains(&correction.decoder) {
        return Ok(());
    }
    Err(Error::Mismatch {
        path: path.to_path_buf(),
        what: "the decoder whose drafts were refused",
        expected: decoders.join(" or "),
        actual: correction.decoder.clone(),
    })
}

/// A file that corrections are added to.
///
/// Several processes may add to one file: a line is written as a whole under a lock, or not at all.
#[derive(Debug)]
pub struct Collector {
    path: PathBuf,
    file: File,
    most_bytes: u64,
    /// Answers that did not fit.
    n_lost: usize,
}

impl Collector {
    /// Opens a file of corrections of a decoder, or makes it.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written; [`Error::Malformed`] if it is something else, and
    /// [`Error::Mismatch`] with both fingerprints if it was collected with another model: it then stays as it is.
    pub fn open(path: &Path, decoder: &str) -> Result<Self> {
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(Error::io(path))?;
        let mut collector = Self {
            path: path.to_path_buf(),
            file,
            most_bytes: limits::CORRECTIONS_BYTES,
            n_lost: 0,
        };
        if !collector.meta()?.is_file() {
            return Err(Error::malformed(path, "not a regular file"));
        }
        collector.locked(|collector| collector.check_first_line(decoder))?;
        Ok(collector)
    }

    /// Adds a correction, unless the file would become larger than [`limits::CORRECTIONS_BYTES`]; the first that
    /// does not fit is told.
    ///
    /// # Errors
    /// [`Error::Io`], after which the file is as it was.
    pub fn add(&mut self, correction: &Correction) -> Result<()> {
        let mut line = serde_json::to_vec(correction)
            .map_err(|e| Error::malformed(&correction.image, e.to_string()))?;
        line.push(b'\n');
        self.locked(|collector| collector.append(&line))
    }

    /// Answers that did not fit any more.
    pub fn n_lost(&self) -> usize {
        self.n_lost
    }

    fn append(&mut self, line: &[u8]) -> Result<()> {
        let before = self.end_of_last_line()?;
        let n = line.len() as u64;
        if n > limits::ITEM_LINE_BYTES || before + n > self.most_bytes {
            if self.n_lost == 0 {
                tracing::warn!(
                    "{}: a line of {n} bytes does not fit, of {} bytes in all",
                    self.path.display(),
                    self.most_bytes
                );
            }
            self.n_lost += 1;
            return Ok(());
        }
        let written = self.file.write_all(line);
        if written.is_err() {
            // What a full disk took of the line is no correction.
            self.file.set_len(before).map_err(Error::io(&self.path))?;
        }
        written.map_err(Error::io(&self.path))
    }

    /// Where the last whole line ends; what a process that was killed left behind it is cut off.
    fn end_of_last_line(&mut self) -> Result<u64> {
        let mut end = self.meta()?.len();
        let mut block = [0; 512];
        let len = end;
        while end > 0 {
            let n = block.len().min(end as usize);
            self.read_at(end - n as u64, &mut block[..n])?;
            if let Some(at) = block[..n].iter().rposition(|&b| b == b'\n') {
                end = end - n as u64 + at as u64 + 1;
                break;
            }
            end -= n as u64;
        }
        if end < len {
            self.file.set_len(end).map_err(Error::io(&self.path))?;
        }
        Ok(end)
    }

    fn check_first_line(&mut self, decoder: &str) -> Result<()> {
        let n = self.meta()?.len().min(limits::ITEM_LINE_BYTES) as usize;
        let mut head = vec![0; n];
        self.read_at(0, &mut head)?;
        let first = head.split(|&b| b == b'\n').next().unwrap_or(&[]);
        if first.len() == n {
            // Empty, or nothing but a line that was cut off: nobody can tell that it was ours.
            return match n {
                0 => Ok(()),
                _ => Err(Error::malformed(&self.path, "its first line has no end")),
            };
        }
        let correction = parse(&self.path, 1, first)?;
        check_decoder(&self.path, &correction, &[decoder.to_owned()])
    }

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<()> {
        let read = self.file.seek(SeekFrom::Start(at));
        let read = read.and_then(|_| self.file.read_exact(out));
        read.map_err(Error::io(&self.path))
    }

    fn meta(&self) -> Result<std::fs::Metadata> {
        self.file.metadata().map_err(Error::io(&self.path))
    }

    /// Does something that no other process does meanwhile.
    fn locked(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.file.lock().map_err(Error::io(&self.path))?;
        let done = act(self);
        let unlocked = self.file.unlock().map_err(Error::io(&self.path));
        done.and(unlocked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn correction(n: u32) -> Correction {
        Correction {
            image: PathBuf::from("/pictures/1.png"),
            image_sha256: "0".repeat(64),
            prompt: "where is the boat".to_owned(),
            token_ids: vec![5, n, 9],
            refused: vec![Refused {
                drafter: "head".to_owned(),
                index: 1,
                drafted: n + 1,
                chosen: n,
            }],
            decoder: "a".repeat(64),
        }
    }

    fn decoders() -> Vec<String> {
        vec!["b".repeat(64), "a".repeat(64)]
    }

    #[test]
    fn corrections_of_several_collectors_come_back_in_order() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("refused.jsonl");
        let mut first = Collector::open(&path, &"a".repeat(64)).expect("new");
        assert_eq!(read_corrections(&path, &decoders()).expect("none").len(), 0);
        first.add(&correction(1)).expect("add");
        let mut second = Collector::open(&path, &"a".repeat(64)).expect("there");
        second.add(&correction(2)).expect("add");
        first.add(&correction(3)).expect("add");
        let read = read_corrections(&path, &decoders()).expect("read");
        assert_eq!(read, [1, 2, 3].map(correction));
    }

    #[test]
    fn line_that_was_cut_off_is_forgotten_with_the_next_one() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("refused.jsonl");
        let mut collector = Collector::open(&path, &"a".repeat(64)).expect("new");
        collector.add(&correction(1)).expect("add");
        let mut text = std::fs::read(&path).expect("read");
        text.extend([b'{'; 2000]);
        std::fs::write(&path, &text).expect("write");
        assert!(read_corrections(&path, &decoders()).is_err());
        let mut collector = Collector::open(&path, &"a".repeat(64)).expect("there");
        collector.add(&correction(2)).expect("add");
        let read = read_corrections(&path, &decoders()).expect("read");
        assert_eq!(read, [1, 2].map(correction));
    }

    #[test]
    fn file_that_is_full_takes_no_more_and_counts_what_it_did_not_take() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("refused.jsonl");
        let mut collector = Collector::open(&path, &"a".repeat(64)).expect("new");
        collector.add(&correction(1)).expect("add");
        let size = std::fs::metadata(&path).expect("meta").len();
        collector.most_bytes = 2 * size;
        for n in 2..5 {
            collector.add(&correction(n)).expect("no error");
        }
        let mut endless = correction(2);
        endless.prompt = "why ".repeat(limits::ITEM_LINE_BYTES as usize / 4);
        collector.add(&endless).expect("no error");
        assert_eq!(collector.n_lost(), 3);
        assert_eq!(std::fs::metadata(&path).expect("meta").len(), 2 * size);
    }

    #[test]
    fn file_of_something_else_is_refused_and_stays_as_it_is() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("refused.jsonl");
        let own = |n| serde_json::to_string(&correction(n)).expect("JSON");
        let other = own(1).replace(&"a".repeat(64), &"c".repeat(64));
        let relative = own(1).replace("/pictures", "pictures");
        let strange = own(1).replace("\"chosen\":1", "\"chosen\":7");
        let far = own(1).replace("\"index\":1", "\"index\":90");
        for (text, reason) in [
            (format!("{other}\n"), "c".repeat(64)),
            (format!("{relative}\n"), "absolute".to_owned()),
            (format!("{strange}\n"), "does not stand".to_owned()),
            (format!("{far}\n"), "does not stand".to_owned()),
            ("a letter\n".to_owned(), "line 1".to_owned()),
            ("a word".to_owned(), "no end".to_owned()),
        ] {
            std::fs::write(&path, &text).expect("write");
            let error = Collector::open(&path, &"a".repeat(64)).expect_err(&text);
            assert!(error.to_string().contains(&reason), "{error}");
            let read = read_corrections(&path, &decoders());
            assert!(read.is_err(), "{text}");
            assert_eq!(std::fs::read_to_string(&path).expect("read"), text);
        }
        let error = Collector::open(dir.path(), "a").expect_err("a folder");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        let error = Collector::open(&dir.path().join("no/file"), "a").expect_err("no folder");
        assert!(matches!(error, Error::Io { .. }), "{error}");
        let error = Collector::open(Path::new("/dev/full"), "a").expect_err("a device");
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }
}
