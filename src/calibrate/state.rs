//! A calibration that is not finished, on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::record::Record;
use crate::error::{Error, Result};
use crate::limits;
use crate::quantize::write_atomically;

/// What the file says it is, with the version of its format.
const FORMAT: &str = "trtvlm-calibration-state-1";

/// What is written after each item.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    format: String,
    /// Digest of everything that the records depend on.
    pub key: String,
    /// Items that are done, skipped ones included.
    pub done: usize,
    /// Pictures that could not be read.
    pub skipped: Vec<PathBuf>,
    /// What was seen, by component.
    pub graphs: BTreeMap<String, Record>,
}

impl State {
    /// Nothing is done yet.
    pub fn new(key: String) -> Self {
        Self {
            format: FORMAT.to_owned(),
            key,
            done: 0,
            skipped: Vec::new(),
            graphs: BTreeMap::new(),
        }
    }

    /// Where the state of a calibration into `out` is.
    pub fn path(out: &Path) -> PathBuf {
        let mut path = out.as_os_str().to_owned();
        path.push(".partial");
        PathBuf::from(path)
    }

    /// Reads the state at `path` if it belongs to `key`; `None` if there is none, or another's.
    pub fn load(path: &Path, key: &str) -> Result<Option<Self>> {
        let limit = limits::CALIBRATION_STATE_BYTES;
        let meta = match std::fs::metadata(path) {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(path)(e)),
        };
        let not_ours = |reason: &str| {
            let reason = format!("{reason}: delete it to start over");
            Err(Error::malformed(path, reason))
        };
        if !meta.is_file() || meta.len() > limit {
            return not_ours("is not the state of a calibration");
        }
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(limit).read_to_end(&mut bytes))
            .map_err(Error::io(path))?;
        let state: Self = match serde_json::from_slice(&bytes) {
            Ok(state) => state,
            Err(e) => return not_ours(&format!("is not the state of a calibration ({e})")),
        };
        if state.format != FORMAT {
            return not_ours("is the state of another version's calibration");
        }
        if state.key != key {
            tracing::warn!(
                "{}: belongs to another model, other items or other options; starting over",
                path.display()
            );
            return Ok(None);
        }
        Ok(Some(state))
    }

    /// Writes the state.
    pub fn save(&self, path: &Path) -> Result<()> {
        let bytes = serde_json::to_vec(self)
            .map_err(|e| Error::malformed(path, format!("cannot be written: {e}")))?;
        write_atomically(path, &bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_of_another_key_is_passed_over_and_a_damaged_one_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = State::path(&dir.path().join("scales.json"));
        assert!(State::load(&path, "k").expect("none yet").is_none());
        let mut state = State::new("k".to_owned());
        state.done = 3;
        state.graphs.insert("vision".to_owned(), Record::default());
        state.save(&path).expect("save");
        assert_eq!(State::load(&path, "k").expect("load").expect("own").done, 3);
        assert!(State::load(&path, "other").expect("load").is_none());
        for bytes in [&b"{}"[..], b"", b"\xff", b"[1]"] {
            std::fs::write(&path, bytes).expect("write");
            let error = State::load(&path, "k").err().expect("damaged");
            assert!(error.to_string().contains("delete it"), "{error}");
        }
        std::fs::remove_file(&path).expect("remove");
        std::fs::create_dir(&path).expect("folder");
        assert!(State::load(&path, "k").is_err());
    }
}
