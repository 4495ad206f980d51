//! The drafts that a model folder or a bundle holds: what was trained for it, and for which model.
//!
//! | file | what |
//! |------|------|
//! | `drafts/<kind>.json` | this description |
//! | `drafts/<kind>.onnx` | the graph, see `backend::draft` |
//!
//! A draft belongs to the weights that it was trained on. Their files are too large to be read whole at
//! every start, so they are told apart by a [`fingerprint`].

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Model, ModelConfig};
use crate::digest::{is_sha256, sha256_bytes, sha256_file};
use crate::limits;
use crate::read::read_file;
use crate::{Error, Result};

/// Folder of the drafts in a model folder or bundle.
pub const DRAFTS_FOLDER: &str = "drafts";

/// Form of the description.
const FORMAT: u32 = 1;

/// Places of a file that its fingerprint looks at, and bytes of each.
const SAMPLES: u64 = 64;
const SAMPLE_BYTES: u64 = 4096;

/// Suffixes of the files in which the weights of an ONNX file may be.
const DATA_SUFFIXES: [&str; 3] = ["", "_data", ".data"];

/// What a trained draft is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DraftKind {
    /// One transformer layer on the hidden state of the target and the embedding of its token.
    Head,
    /// The first layers of the target with a small head.
    EarlyExit,
}

impl DraftKind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Head, Self::EarlyExit];

    /// Name, as in `--draft` and in names of files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::EarlyExit => "early-exit",
        }
    }
}

impl fmt::Display for DraftKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A decoder file that a draft fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetFile {
    /// Its name in the `onnx` folder.
    pub file: String,
    /// Its [`fingerprint`].
    pub fingerprint: String,
}

/// The contents of `drafts/<kind>.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DraftSpec {
    /// Form of this file.
    pub format: u32,
    /// What the draft is.
    pub kind: DraftKind,
    /// The decoder that it was trained on, in each variant that stood in the folder then.
    pub targets: Vec<TargetFile>,
    /// SHA-256 of the model's `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// SHA-256 of the graph.
    pub graph_sha256: String,
    /// Width of the target.
    pub d_model: usize,
    /// Last layer of the target that the draft runs, from 0; only of [`DraftKind::EarlyExit`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_layer: Option<usize>,
    /// The token id of each logit, ascending.
    pub vocabulary: Vec<u32>,
    /// Share of the tokens it proposed that the target accepted on held-out items, 0 to 1.
    pub acceptance: f64,
    /// How it was trained, for people.
    pub training: serde_json::Value,
}

impl DraftSpec {
    /// The form that this version writes.
    pub const FORMAT: u32 = FORMAT;

    /// The description of one kind in `dir`, a model folder or bundle; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Malformed`] naming the file; [`Error::TooLarge`] above the limits.
    pub fn read(dir: &Path, kind: DraftKind) -> Result<Option<Self>> {
        let path = spec_path(dir, kind);
        // A link to nothing is damage, not absence.
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let bytes = read_file(&path, limits::TEXT_FILE_BYTES)?;
        let spec: Self = serde_json::from_slice(&bytes)
            .map_err(|e| Error::malformed(&path, format!("no description of a draft: {e}")))?;
        let bad = |reason: String| Err(Error::malformed(&path, reason));
        if spec.format != FORMAT {
            return bad(format!(
                "format {}, this version reads {FORMAT}",
                spec.format
            ));
        }
        if spec.kind != kind {
            return bad(format!("describes a draft of kind {}", spec.kind));
        }
        if (spec.kind == DraftKind::EarlyExit) != spec.exit_layer.is_some() {
            return bad("exit_layer belongs to early-exit, and to nothing else".to_owned());
        }
        let n = spec.vocabulary.len();
        if n == 0 || !spec.vocabulary.is_sorted_by(|a, b| a < b) {
            return bad(format!(
                "its vocabulary ({n} ids) is empty or not ascending"
            ));
        }
        if !(0.0..=1.0).contains(&spec.acceptance) {
            return bad(format!("acceptance {}, from 0 to 1", spec.acceptance));
        }
        let digests = [&spec.tokenizer_sha256, &spec.graph_sha256];
        let fingerprints = spec.targets.iter().map(|target| &target.fingerprint);
        if !digests
            .into_iter()
            .chain(fingerprints)
            .all(|d| is_sha256(d))
        {
            return bad("one of its digests is none".to_owned());
        }
        Ok(Some(spec))
    }

    /// Refuses a draft of another vocabulary, or whose graph is not the one described.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming both sides.
    pub fn check_words(&self, dir: &Path, config: &ModelConfig) -> Result<()> {
        let path = spec_path(dir, self.kind);
        let mismatch = |what, expected: String, actual: String| {
            Err(Error::Mismatch {
                path: path.clone(),
                what,
                expected,
                actual,
            })
        };
        let tokenizer = sha256_file(&dir.join("tokenizer.json"), |_| {})?.sha256;
        if tokenizer != self.tokenizer_sha256 {
            let actual = self.tokenizer_sha256.clone();
            return mismatch("the tokenizer it was trained for", tokenizer, actual);
        }
        if self.d_model != config.d_model {
            let (ours, its) = (config.d_model.to_string(), self.d_model.to_string());
            return mismatch("the width of its target", ours, its);
        }
        if let Some(&id) = self
            .vocabulary
            .last()
            .filter(|&&id| id as usize >= config.vocab)
        {
            let ours = format!("below {}", config.vocab);
            return mismatch("an id of its vocabulary", ours, id.to_string());
        }
        if let Some(layer) = self
            .exit_layer
            .filter(|&layer| layer + 1 >= config.n_layers)
        {
            let ours = format!("below {}", config.n_layers.saturating_sub(1));
            return mismatch("its exit layer", ours, layer.to_string());
        }
        let graph = graph_path(dir, self.kind);
        let digest = sha256_file(&graph, |_| {})?.sha256;
        if digest != self.graph_sha256 {
            return Err(Error::Mismatch {
                path: graph,
                what: "its digest",
                expected: self.graph_sha256.clone(),
                actual: digest,
            });
        }
        Ok(())
    }

    /// Refuses a draft of other weights than those of `model`, a folder.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the fingerprints of both; those of reading the decoder.
    pub fn check_target(&self, model: &Model) -> Result<()> {
        let path = spec_path(&model.dir, self.kind);
        check_fingerprint(&self.targets, &path, DECODER, &model.files.decoder)
    }
}

/// What a decoder is compared by.
pub(super) const DECODER: &str = "the fingerprint of the decoder it was trained on";

/// Refuses `path`, which was trained for `targets`, if `graph` is none of them; `what` names the comparison.
///
/// # Errors
/// [`Error::Mismatch`] with the fingerprints of both; those of reading the graph.
pub(super) fn check_fingerprint(
    targets: &[TargetFile],
    path: &Path,
    what: &'static str,
    graph: &Path,
) -> Result<()> {
    let ours = fingerprint(graph)?;
    if targets.iter().any(|target| target.fingerprint == ours) {
        return Ok(());
    }
    let its: Vec<&str> = (targets.iter())
        .map(|target| target.fingerprint.as_str())
        .collect();
    Err(Error::Mismatch {
        path: path.to_path_buf(),
        what,
        expected: format!("{ours} ({})", graph.display()),
        actual: its.join(" or "),
    })
}

/// The file with the description of a draft.
pub fn spec_path(dir: &Path, kind: DraftKind) -> PathBuf {
    dir.join(DRAFTS_FOLDER).join(format!("{kind}.json"))
}

/// The file with the graph of a draft.
pub fn graph_path(dir: &Path, kind: DraftKind) -> PathBuf {
    dir.join(DRAFTS_FOLDER).join(format!("{kind}.onnx"))
}

/// Tells files of weights apart without reading all of them: a digest of the sizes of the ONNX file and of
/// the files of weights beside it, and of 64 blocks of 4 KiB of each, evenly spread. Training changes
/// every weight, so that another training of the same model differs in each block.
///
/// # Errors
/// [`Error::Io`] naming the file.
pub fn fingerprint(onnx: &Path) -> Result<String> {
    let mut told = Vec::new();
    for suffix in DATA_SUFFIXES {
        let mut name = onnx.as_os_str().to_owned();
        name.push(suffix);
        let path = PathBuf::from(name);
        if !suffix.is_empty() && !path.is_file() {
            continue;
        }
        let file = File::open(&path).map_err(Error::io(&path))?;
        let size = file.metadata().map_err(Error::io(&path))?.len();
        told.extend_from_slice(&size.to_le_bytes());
        let mut block = vec![0; SAMPLE_BYTES.min(size) as usize];
        let last = size - block.len() as u64;
        for sample in 0..SAMPLES {
            let at = u128::from(last) * u128::from(sample) / u128::from(SAMPLES - 1);
            let read = file.read_exact_at(&mut block, at as u64);
            read.map_err(Error::io(&path))?;
            told.extend_from_slice(&block);
        }
    }
    Ok(sha256_bytes(&told))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> serde_json::Value {
        let digest = "0".repeat(64);
        serde_json::json!({
            "format": 1, "kind": "head", "tokenizer_sha256": digest, "graph_sha256": digest,
            "targets": [{"file": "decoder.onnx", "fingerprint": digest}],
            "d_model": 8, "vocabulary": [1, 5], "acceptance": 0.5, "training": {},
        })
    }

    fn read(value: &serde_json::Value) -> Result<Option<DraftSpec>> {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join(DRAFTS_FOLDER)).expect("dir");
        let text = serde_json::to_vec(value).expect("JSON");
        std::fs::write(spec_path(dir.path(), DraftKind::Head), text).expect("write");
        DraftSpec::read(dir.path(), DraftKind::Head)
    }

    #[test]
    fn description_that_cannot_be_one_is_refused() {
        let good = read(&spec()).expect("good").expect("there");
        assert_eq!((good.kind, good.vocabulary.len()), (DraftKind::Head, 2));
        for (key, value) in [
            ("format", 2.into()),
            ("kind", "early-exit".into()),
            ("vocabulary", serde_json::json!([])),
            ("vocabulary", serde_json::json!([5, 1])),
            ("vocabulary", serde_json::json!([-1])),
            ("exit_layer", 0.into()),
            ("graph_sha256", "abc".into()),
            ("d_model", "wide".into()),
            ("acceptance", 1.5.into()),
            ("surplus", 1.into()),
        ] {
            let mut bad = spec();
            bad[key] = value;
            assert!(matches!(read(&bad), Err(Error::Malformed { .. })), "{key}");
        }
        let nothing = tempfile::tempdir().expect("dir");
        let none = DraftSpec::read(nothing.path(), DraftKind::Head);
        assert_eq!(none.expect("no error"), None);
    }

    #[test]
    fn fingerprint_changes_with_weights_and_with_files_beside() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("a.onnx");
        let mut bytes: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
        std::fs::write(&path, &bytes).expect("write");
        let first = fingerprint(&path).expect("read");
        assert_eq!(fingerprint(&path).expect("read"), first);
        bytes.iter_mut().for_each(|b| *b ^= 1);
        std::fs::write(&path, &bytes).expect("write");
        let other = fingerprint(&path).expect("read");
        assert_ne!(other, first);
        std::fs::write(dir.path().join("a.onnx_data"), b"few").expect("write");
        assert_ne!(fingerprint(&path).expect("read"), other);
        for small in [&b""[..], b"abc"] {
            std::fs::write(&path, small).expect("write");
            fingerprint(&path).expect("small files have one, too");
        }
    }
}
