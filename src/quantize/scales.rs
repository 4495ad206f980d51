//! The file that calibration writes and quantization reads.
//!
//! It holds the range that each method chooses for each tensor, so that the method can be
//! changed without another calibration. Tensors are known by their names in the lowered FP32
//! graph, before dimensions are fixed, and graphs by the digest of the files they came from.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ranges::{GraphRanges, Method, Ranges, TensorRange};
use crate::digest::{is_sha256, sha256_bytes, sha256_file};
use crate::error::{Error, Result};
use crate::limits;
use crate::onnx::OnnxModel;

/// What the file says it is.
const FORMAT: &str = "trtvlm-scales";

/// Version of the format; another one is refused.
const VERSION: u32 = 1;

/// Ranges of a model by every method, and what they were found with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scales {
    format: String,
    version: u32,
    /// Program that wrote the file.
    pub created_by: String,
    /// The model.
    pub model: ModelName,
    /// Method that is used where none is asked for.
    pub method: Method,
    /// Share of the values, in percent, that the percentile method keeps inside.
    pub percentile: f64,
    /// Pictures that were observed.
    pub items: usize,
    /// Pictures that could not be read.
    pub skipped: usize,
    /// Most tokens of each answer.
    pub max_tokens: usize,
    /// Graphs by component: `vision`, `decoder`.
    pub graphs: BTreeMap<String, GraphScales>,
}

/// What a model is called.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelName {
    /// Its name.
    pub name: String,
    /// Its family.
    pub family: String,
    /// Which of its files were read.
    pub variant: String,
}

/// Ranges of one graph.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GraphScales {
    /// Digest of the files that were observed, as [`graph_digest`] makes it.
    pub source_sha256: String,
    /// How often the graph ran, by what for: `image`, or `prefill` and `decode`, each of which
    /// has the same weight in the ranges.
    pub passes: BTreeMap<String, u64>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorScale>,
}

/// Ranges of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorScale {
    /// Largest absolute value to be represented, by method.
    pub amax: BTreeMap<String, f32>,
    /// Smallest value.
    pub min: f32,
    /// Largest value.
    pub max: f32,
    /// Number of values.
    pub values: u64,
    /// How many of them are exact zeros.
    pub zeros: u64,
    /// Largest absolute value of each channel, of feature maps (axis 1) and of what linear operators
    /// read (last axis).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub channel_amax: Vec<f32>,
}

impl Scales {
    /// An empty file's worth, to be filled.
    pub fn new(model: ModelName, method: Method, percentile: f64) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            created_by: format!("trtvlm {}", env!("CARGO_PKG_VERSION")),
            model,
            method,
            percentile,
            items: 0,
            skipped: 0,
            max_tokens: 0,
            graphs: BTreeMap::new(),
        }
    }

    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::TooLarge`]; [`Error::Mismatch`] for another version,
    /// [`Error::Malformed`] for anything that this program does not write.
    pub fn load(path: &Path) -> Result<Self> {
        let limit = limits::SCALES_BYTES;
        let meta = std::fs::metadata(path).map_err(Error::io(path))?;
        if !meta.is_file() {
            return Err(Error::malformed(path, "not a regular file"));
        }
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
            .map_err(Error::io(path))?;
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge {
                what: format!("size in bytes of {}", path.display()),
                actual: meta.len().max(limit + 1),
                limit,
            });
        }
        Self::parse(path, &bytes)
    }

    /// Reads a file's bytes; `path` is what errors call them.
    ///
    /// # Errors
    /// As [`Scales::load`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Header {
            format: String,
            version: u32,
        }
        let not_scales = |e: serde_json::Error| {
            Error::malformed(path, format!("not a file of scales, or damaged: {e}"))
        };
        let header: Header = serde_json::from_slice(bytes).map_err(not_scales)?;
        if header.format != FORMAT {
            let reason = format!("its format is `{}`, not `{FORMAT}`", header.format);
            return Err(Error::malformed(path, reason));
        }
        if header.version != VERSION {
            return Err(Error::Mismatch {
                path: path.to_path_buf(),
                what: "version of the format",
                expected: VERSION.to_string(),
                actual: header.version.to_string(),
            });
        }
        let scales: Self = serde_json::from_slice(bytes).map_err(not_scales)?;
        scales.check(path)?;
        Ok(scales)
    }

    fn check(&self, path: &Path) -> Result<()> {
        for (component, graph) in &self.graphs {
            if !is_sha256(&graph.source_sha256) {
                let reason = format!("the digest of `{component}` is not a SHA-256");
                return Err(Error::malformed(path, reason));
            }
            for (name, tensor) in &graph.tensors {
                if let Some(reason) = tensor.fault() {
                    let reason = format!("{component}, tensor `{name}`: {reason}");
                    return Err(Error::malformed(path, reason));
                }
            }
        }
        Ok(())
    }

    /// Writes the file under a temporary name beside `path` and renames it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomically(path, &self.to_json()?)
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`Error::Malformed`] if a number has no form in JSON.
    pub fn to_json(&self) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|e| Error::malformed("scales", format!("cannot be written: {e}")))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Refuses a file that was made with another graph than `model`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] naming both; [`Error::Malformed`] if there is no such component.
    pub fn check_graph(&self, path: &Path, component: &str, model: &OnnxModel) -> Result<()> {
        let graph = self.graphs.get(component).ok_or_else(|| {
            Error::malformed(
                path,
                format!("has no scales of the component `{component}`"),
            )
        })?;
        let digest = graph_digest(model)?;
        if graph.source_sha256 == digest {
            return Ok(());
        }
        Err(Error::Mismatch {
            path: path.to_path_buf(),
            what: "digest of the graph that was calibrated",
            expected: format!("{digest} ({})", model.path().display()),
            actual: format!(
                "{} ({component} of {}, {})",
                graph.source_sha256, self.model.name, self.model.variant
            ),
        })
    }

    /// The ranges that a method chose.
    ///
    /// # Errors
    /// [`Error::Argument`] if the file has none of it.
    pub fn ranges(&self, method: Method) -> Result<Ranges> {
        let range = |(name, tensor): (&String, &TensorScale)| {
            let amax = tensor
                .amax
                .get(method.name())
                .ok_or_else(|| Error::Argument {
                    name: "calibration-method",
                    reason: format!("the scales have no `{}` for tensor `{name}`", method.name()),
                })?;
            let range = TensorRange {
                amax: *amax,
                min: tensor.min,
                max: tensor.max,
                channel_amax: tensor.channel_amax.clone(),
            };
            Ok((name.clone(), range))
        };
        let graph = |(component, graph): (&String, &GraphScales)| {
            let ranges = GraphRanges {
                source_sha256: graph.source_sha256.clone(),
                tensors: graph.tensors.iter().map(range).collect::<Result<_>>()?,
            };
            Ok((component.clone(), ranges))
        };
        Ok(Ranges {
            method,
            graphs: self.graphs.iter().map(graph).collect::<Result<_>>()?,
        })
    }
}

impl TensorScale {
    /// What is wrong with it.
    fn fault(&self) -> Option<String> {
        let is_range = |x: &f32| x.is_finite() && *x >= 0.0;
        let bad = |what: &str| Some(what.to_owned());
        if !(self.min.is_finite() && self.max.is_finite() && self.min <= self.max) {
            return bad("its smallest and largest values are no range");
        }
        if self.amax.is_empty() || !self.amax.values().all(is_range) {
            return bad("a range is negative, not finite or missing");
        }
        if let Some(other) = (self.amax.keys()).find(|k| Method::ALL.iter().all(|m| m.name() != *k))
        {
            return Some(format!("`{other}` is no method"));
        }
        if !self.channel_amax.iter().all(is_range) {
            return bad("a channel's range is negative or not finite");
        }
        (self.zeros > self.values).then(|| "it has more zeros than values".to_owned())
    }
}

/// Digest of an ONNX file; with external data that of the list of all files' digests.
///
/// # Errors
/// [`Error::Io`].
pub fn graph_digest(model: &OnnxModel) -> Result<String> {
    let mut lines = Vec::new();
    for source in model.sources() {
        let digest = sha256_file(&source.path, |_| {})?;
        lines.push((digest.sha256, digest.path));
    }
    match lines.as_slice() {
        [(digest, _)] => Ok(digest.clone()),
        _ => {
            // As `sha256sum` writes them.
            let lines = lines
                .iter()
                .map(|(digest, name)| format!("{digest}  {name}\n"));
            Ok(sha256_bytes(lines.collect::<String>().as_bytes()))
        }
    }
}

/// Writes a file under a temporary name beside `path` and renames it.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".trtvlm-")
        .tempfile_in(folder)
        .map_err(Error::io(path))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(Error::io(path))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Temporary files are private; results are for everybody.
        let all = std::fs::Permissions::from_mode(0o644);
        file.as_file()
            .set_permissions(all)
            .map_err(Error::io(path))?;
    }
    file.persist(path)
        .map_err(|e| Error::io(path)(e.error))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scales() -> Scales {
        let name = |text: &str| text.to_owned();
        let model = ModelName {
            name: name("m"),
            family: name("f"),
            variant: name("fp32"),
        };
        let mut scales = Scales::new(model, Method::Mse, 99.99);
        let amax = Method::ALL.iter().zip([0.5, 0.25, 0.125, 1.0]);
        let tensor = TensorScale {
            amax: amax.map(|(m, a)| (name(m.name()), a)).collect(),
            min: -1.0,
            max: 0.1,
            values: 10,
            zeros: 2,
            channel_amax: vec![1.0, 0.1],
        };
        let graph = GraphScales {
            source_sha256: "0".repeat(64),
            passes: BTreeMap::from([(name("image"), 3)]),
            tensors: BTreeMap::from([(name("x"), tensor)]),
        };
        scales.graphs.insert(name("vision"), graph);
        scales
    }

    #[test]
    fn scales_come_back_as_they_were_written_and_give_each_method() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("scales.json");
        scales().save(&path).expect("save");
        let back = Scales::load(&path).expect("load");
        assert_eq!(back, scales());
        let amax = |method| back.ranges(method).expect("ranges").graphs["vision"].tensors["x"].amax;
        assert_eq!(Method::ALL.map(amax), [0.5, 0.25, 0.125, 1.0]);
        let names: Vec<_> = std::fs::read_dir(dir.path()).expect("list").collect();
        assert_eq!(names.len(), 1, "a temporary file was left");
    }

    #[test]
    fn scales_that_are_none_are_refused() {
        let good = serde_json::to_value(scales()).expect("json");
        let tensor = "/graphs/vision/tensors/x";
        for (pointer, value) in [
            ("/format", serde_json::json!("other")),
            ("/version", 2.into()),
            ("/method", "guess".into()),
            ("/graphs/vision/source_sha256", "abc".into()),
            (&format!("{tensor}/min"), 5.into()),
            (&format!("{tensor}/max"), serde_json::Value::Null),
            (&format!("{tensor}/amax/max"), (-1).into()),
            (&format!("{tensor}/amax"), serde_json::json!({"guess": 1.0})),
            (&format!("{tensor}/amax"), serde_json::json!({})),
            (&format!("{tensor}/channel_amax/0"), serde_json::json!(1e39)),
            (&format!("{tensor}/zeros"), 11.into()),
            (tensor, serde_json::json!({"more": 1})),
        ] {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).expect(pointer) = value;
            let error = Scales::parse(Path::new("s.json"), bad.to_string().as_bytes());
            let error = error.expect_err(pointer);
            assert!(error.to_string().contains("s.json"), "{pointer}: {error}");
        }
        for bytes in [&b""[..], b"[]", b"{\"format\": ", b"\xff"] {
            assert!(Scales::parse(Path::new("s.json"), bytes).is_err());
        }
    }
}
