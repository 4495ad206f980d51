//! Small nets that were trained for a model and stand in its folder, or in a bundle, as one safetensors file each.
//!
//! | file | what | shapes |
//! |------|------|--------|
//! | `pruner.safetensors` | which visual tokens a question needs | `prune::Learned` |
//! | `router.safetensors` | what kind of question it is | `prune::Router` |
//! | `quick.safetensors` | what the frame alone tells, without the language model | `quick::Probe` |
//!
//! Tensors are f32 or f16. The file's metadata has one entry, `trtvlm`: a [`TrainedSpec`] as JSON, which says what
//! the net belongs to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::drafts::{DECODER, TargetFile, check_fingerprint};
use super::{Model, ModelConfig};
use crate::digest::{is_sha256, sha256_bytes, sha256_file};
use crate::limits;
use crate::read::read_file;
use crate::{Error, Result};

/// Form of the metadata.
const FORMAT: u32 = 1;

/// Its key.
const KEY: &str = "trtvlm";

/// What a trained file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TrainedKind {
    /// Chooses visual tokens.
    Pruner,
    /// Reads the question.
    Router,
    /// Reads the frame, and answers.
    Quick,
}

impl TrainedKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Pruner, Self::Router, Self::Quick];

    /// Name of its file in a model folder or bundle.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::Pruner => "pruner.safetensors",
            Self::Router => "router.safetensors",
            Self::Quick => "quick.safetensors",
        }
    }
}

/// What a trained net belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainedSpec {
    /// Form of this entry.
    pub format: u32,
    /// What the net is.
    pub kind: TrainedKind,
    /// The graph that it was trained on, in each variant that stood in the folder then: the vision tower for
    /// [`TrainedKind::Quick`], the decoder for the others.
    pub targets: Vec<TargetFile>,
    /// SHA-256 of the model's `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// Width of the target.
    pub d_model: usize,
    /// What the net's user has to know beside its tensors.
    #[serde(default)]
    pub settings: serde_json::Value,
    /// How it was trained, for people.
    pub training: serde_json::Value,
}

impl TrainedSpec {
    /// The form that this version writes.
    pub const FORMAT: u32 = FORMAT;
}

/// A tensor of a trained file.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainedTensor {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers, row by row, finite.
    pub data: Vec<f32>,
}

/// A trained file that was read and is whole.
#[derive(Debug, Clone)]
pub struct TrainedFile {
    path: PathBuf,
    spec: TrainedSpec,
    tensors: BTreeMap<String, TrainedTensor>,
    sha256: String,
}

impl TrainedFile {
    /// The file of one kind in `dir`, a model folder or bundle; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Malformed`] naming the file; [`Error::TooLarge`] above
    /// [`limits::TRAINED_FILE_BYTES`].
    pub fn read(dir: &Path, kind: TrainedKind) -> Result<Option<Self>> {
        let path = dir.join(kind.file_name());
        // A link to nothing is damage, not absence.
        if std::fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        let bytes = read_file(&path, limits::TRAINED_FILE_BYTES)?;
        Self::parse(path, kind, &bytes).map(Some)
    }

    /// Reads bytes that stand for `path`.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming `path`.
    pub fn parse(path: PathBuf, kind: TrainedKind, bytes: &[u8]) -> Result<Self> {
        let bad = |reason: String| Error::malformed(&path, reason);
        let (_, metadata) = SafeTensors::read_metadata(bytes)
            .map_err(|e| bad(format!("no safetensors file: {e}")))?;
        let told = metadata.metadata().as_ref().and_then(|all| all.get(KEY));
        let told = told.ok_or_else(|| bad(format!("its metadata has no entry `{KEY}`")))?;
        let spec: TrainedSpec = serde_json::from_str(told)
            .map_err(|e| bad(format!("its metadata describe no trained net: {e}")))?;
        if spec.format != FORMAT {
            let reason = format!("format {}, this version reads {FORMAT}", spec.format);
            return Err(bad(reason));
        }
        if spec.kind != kind {
            return Err(bad(format!("holds a {:?}", spec.kind).to_lowercase()));
        }
        let fingerprints = spec.targets.iter().map(|target| &target.fingerprint);
        if !fingerprints
            .chain([&spec.tokenizer_sha256])
            .all(|d| is_sha256(d))
        {
            return Err(bad("one of its digests is none".to_owned()));
        }
        let file = SafeTensors::deserialize(bytes)
            .map_err(|e| bad(format!("no safetensors file: {e}")))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let data = numbers(&view)
                .ok_or_else(|| bad(format!("tensor `{name}`: no finite f32 or f16 numbers")))?;
            let shape = view.shape().to_vec();
            tensors.insert(name.to_owned(), TrainedTensor { shape, data });
        }
        let sha256 = sha256_bytes(bytes);
        Ok(Self {
            path,
            spec,
            tensors,
            sha256,
        })
    }

    /// Where it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it belongs to.
    pub fn spec(&self) -> &TrainedSpec {
        &self.spec
    }

    /// Digest of the whole file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Takes a tensor out. Sizes of `shape` that are `None` may be any above 0.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming file and tensor if it is not there or of another shape.
    pub fn take(&mut self, name: &str, shape: &[Option<usize>]) -> Result<TrainedTensor> {
        let found = self.tensors.remove(name);
        let fits = |tensor: &TrainedTensor| {
            let sizes = tensor.shape.iter().zip(shape);
            tensor.shape.len() == shape.len()
                && sizes
                    .into_iter()
                    .all(|(&n, &wanted)| n > 0 && wanted.is_none_or(|w| w == n))
        };
        let told = found
            .as_ref()
            .map_or("none".to_owned(), |tensor| format!("{:?}", tensor.shape));
        found.filter(fits).ok_or_else(|| {
            let sizes = shape
                .iter()
                .map(|n| n.map_or("n".to_owned(), |n| n.to_string()));
            let sizes: Vec<String> = sizes.collect();
            let expected = sizes.join(", ");
            let reason = format!("tensor `{name}`: expected [{expected}], got {told}");
            Error::malformed(&self.path, reason)
        })
    }

    /// Refuses a net for another vocabulary or width.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming both sides.
    pub fn check_words(&self, dir: &Path, config: &ModelConfig) -> Result<()> {
        let mismatch = |what, expected: String, actual: String| {
            Err(Error::Mismatch {
                path: self.path.clone(),
                what,
                expected,
                actual,
            })
        };
        if self.spec.d_model != config.d_model {
            let (ours, its) = (config.d_model.to_string(), self.spec.d_model.to_string());
            return mismatch("the width of its target", ours, its);
        }
        let tokenizer = sha256_file(&dir.join("tokenizer.json"), |_| {})?.sha256;
        if tokenizer != self.spec.tokenizer_sha256 {
            let its = self.spec.tokenizer_sha256.clone();
            return mismatch("the tokenizer it was trained for", tokenizer, its);
        }
        Ok(())
    }

    /// Refuses a net of other weights than those of `model`, a folder.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with the fingerprints of both; those of reading the graph.
    pub fn check_target(&self, model: &Model) -> Result<()> {
        let (what, graph) = match self.spec.kind {
            TrainedKind::Quick => (
                "the fingerprint of the vision tower it was trained on",
                &model.files.vision,
            ),
            TrainedKind::Pruner | TrainedKind::Router => (DECODER, &model.files.decoder),
        };
        check_fingerprint(&self.spec.targets, &self.path, what, graph)
    }
}

/// The bytes of a trained file; the same tensors give the same bytes.
///
/// # Errors
/// [`Error::Malformed`] naming `path` if a tensor's shape is not that of its numbers.
pub fn trained_bytes(
    path: &Path,
    spec: &TrainedSpec,
    tensors: &BTreeMap<String, TrainedTensor>,
) -> Result<Vec<u8>> {
    let bad = |reason: String| Error::malformed(path, reason);
    let told = serde_json::to_string(spec).map_err(|e| bad(e.to_string()))?;
    let mut views = Vec::new();
    for (name, tensor) in tensors {
        let bytes: &[u8] = bytemuck::cast_slice(&tensor.data);
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
        views.push((name.clone(), view.map_err(|e| bad(format!("{name}: {e}")))?));
    }
    let metadata = [(KEY.to_owned(), told)].into();
    safetensors::serialize(views, Some(metadata)).map_err(|e| bad(e.to_string()))
}

/// Little-endian numbers as f32; `None` for another type, or one that is not finite.
fn numbers(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    let data: Vec<f32> = match view.dtype() {
        Dtype::F32 => {
            let (numbers, _) = bytes.as_chunks::<4>();
            numbers.iter().map(|&b| f32::from_le_bytes(b)).collect()
        }
        Dtype::F16 => {
            let (numbers, _) = bytes.as_chunks::<2>();
            let wide = |&b: &[u8; 2]| half::f16::from_le_bytes(b).to_f32();
            numbers.iter().map(wide).collect()
        }
        _ => return None,
    };
    data.iter().all(|x| x.is_finite()).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> serde_json::Value {
        let digest = "0".repeat(64);
        serde_json::json!({
            "format": 1, "kind": "pruner", "tokenizer_sha256": digest,
            "targets": [{"file": "decoder.onnx", "fingerprint": digest}],
            "d_model": 2, "settings": {}, "training": {},
        })
    }

    fn file(told: &serde_json::Value, data: Vec<f32>) -> Vec<u8> {
        let shape = vec![data.len() / 2, 2];
        let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::F32, shape, &bytes).expect("view");
        let metadata = [(KEY.to_owned(), told.to_string())].into();
        safetensors::serialize([("w", view)], Some(metadata)).expect("file")
    }

    fn parse(bytes: &[u8]) -> Result<TrainedFile> {
        TrainedFile::parse("p".into(), TrainedKind::Pruner, bytes)
    }

    #[test]
    fn tensors_come_back_as_written_and_of_the_shape_that_is_asked_for() {
        let tensor = TrainedTensor {
            shape: vec![3, 2],
            data: vec![1.0, -2.0, 0.5, 0.0, 3.0, 4.0],
        };
        let spec: TrainedSpec = serde_json::from_value(spec()).expect("spec");
        let tensors = BTreeMap::from([("w".to_owned(), tensor.clone())]);
        let bytes = trained_bytes(Path::new("p"), &spec, &tensors).expect("bytes");
        assert_eq!(
            bytes,
            trained_bytes(Path::new("p"), &spec, &tensors).expect("again")
        );
        let mut file = parse(&bytes).expect("file");
        assert_eq!(file.spec(), &spec);
        assert_eq!(file.take("w", &[None, Some(2)]).expect("tensor"), tensor);
        for (name, shape) in [
            ("w", vec![Some(3), Some(3)]),
            ("w", vec![None]),
            ("v", vec![None]),
        ] {
            let mut file = parse(&bytes).expect("file");
            let error = file.take(name, &shape).expect_err("refused").to_string();
            assert!(
                error.starts_with(&format!("p: tensor `{name}`: expected")),
                "{error}"
            );
        }
    }

    #[test]
    fn file_that_is_cut_hostile_or_of_something_else_is_refused() {
        let good = file(&spec(), vec![1.0; 6]);
        parse(&good).expect("good");
        for n in 0..good.len() {
            let error = parse(&good[..n]).expect_err("cut");
            assert!(matches!(error, Error::Malformed { .. }), "{n}: {error}");
        }
        for (key, value) in [
            ("format", 2.into()),
            ("kind", "router".into()),
            ("kind", "cook".into()),
            ("targets", 1.into()),
            ("tokenizer_sha256", "abc".into()),
            ("d_model", (-1).into()),
            ("surplus", 1.into()),
        ] {
            let mut told = spec();
            told[key] = value;
            let error = parse(&file(&told, vec![1.0; 6])).expect_err(key);
            assert!(matches!(error, Error::Malformed { .. }), "{key}: {error}");
        }
        for number in [f32::NAN, f32::INFINITY] {
            parse(&file(&spec(), vec![1.0, number])).expect_err("no number");
        }
        // A header that promises more than there is, and one of absurd length.
        let mut long = good.clone();
        long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        parse(&long).expect_err("a header of 16 EiB");
        let huge =
            br#"{"w":{"dtype":"F32","shape":[4294967295,4294967295,4],"data_offsets":[0,8]}}"#;
        let mut bytes = (huge.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(huge);
        bytes.extend_from_slice(&[0; 8]);
        parse(&bytes).expect_err("a shape that overflows");
        let plain = TensorView::new(Dtype::F32, vec![1], &[0; 4]).expect("view");
        let plain = safetensors::serialize([("w", plain)], None).expect("file");
        assert!(
            parse(&plain)
                .expect_err("nothing told")
                .to_string()
                .contains("trtvlm")
        );
    }

    #[test]
    fn half_precision_is_read_and_other_types_are_refused() {
        let of = |dtype, bytes: &[u8]| {
            let view = TensorView::new(dtype, vec![1, 2], bytes).expect("view");
            let metadata = [(KEY.to_owned(), spec().to_string())].into();
            parse(&safetensors::serialize([("w", view)], Some(metadata)).expect("file"))
        };
        let mut halves = of(Dtype::F16, &[0x00, 0x3c, 0x00, 0xc0]).expect("halves");
        assert_eq!(
            halves.take("w", &[Some(1), Some(2)]).expect("w").data,
            [1.0, -2.0]
        );
        of(Dtype::I32, &[0; 8]).expect_err("integers");
    }
}
