//! The manifest: everything about a bundle that a program or a person may ask.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::layout::{MANIFEST, MANIFEST_DIGEST, check_name};
use super::target::{Engine, Flavour, Target};
use crate::digest::{FileDigest, is_sha256};
use crate::error::{Error, Result};
use crate::limits;
use crate::model::ModelConfig;

/// Version of the manifest's form. A reader takes its own version only.
pub const SCHEMA_VERSION: u32 = 2;

/// The contents of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Form of this file: [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// Program and version that wrote the bundle.
    pub created_by: String,
    /// The command line that built it, program first.
    pub command_line: Vec<String>,
    /// The portable bundle whose graphs its plans were built from, if it was finished from one.
    pub finished_from: Option<Origin>,
    /// The model that it was built from.
    pub model: ModelInfo,
    /// Precision of weights and activations.
    pub precision: Precision,
    /// Inner values of the decoder that are outputs, as they were asked for.
    pub taps: Vec<String>,
    /// Largest part of the LM head's weight in bytes, if it was to be split.
    pub head_bytes: Option<u64>,
    /// What became integers, if anything did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Box<QuantizationInfo>>,
    /// Size of the KV cache in positions.
    pub kv_capacity: u32,
    /// Largest number of positions of a prompt with its answer.
    pub max_context: u32,
    /// Draft tokens that one step verifies, 0 without speculation.
    pub draft_tokens: u32,
    /// Number of tokens that the decoder scores.
    pub vocabulary: u32,
    /// Sizes that variable dimensions are rounded up to.
    pub buckets: Buckets,
    /// One set of engines for each target.
    pub engines: Vec<EngineSet>,
    /// Every file of the bundle but the manifest and its digest.
    pub files: Vec<FileDigest>,
}

/// The portable bundle that a bundle was finished from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// SHA-256 of its manifest.
    pub manifest_sha256: String,
    /// Program and version that wrote it.
    pub created_by: String,
    /// The command line that built it.
    pub command_line: Vec<String>,
}

/// The model folder that a bundle was built from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelInfo {
    /// Family: `fastvlm`, `smolvlm`.
    pub family: String,
    /// Name for people: the folder's or the repository's.
    pub name: String,
    /// Variant of the ONNX files: `fp32`, `fp16`, ...
    pub variant: String,
    /// Every file that was read, relative to the folder.
    pub sources: Vec<FileDigest>,
}

/// Precision of a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// 32-bit floating point.
    Fp32,
    /// 16-bit floating point, with norms and softmax in 32 bits.
    Fp16,
    /// 8-bit integer weights and activations.
    Int8,
    /// 8-bit integer weights.
    Int8Weights,
    /// 4-bit integer weights.
    Int4Weights,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Int8 => "int8",
            Self::Int8Weights => "int8-weights",
            Self::Int4Weights => "int4-weights",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        use Precision::*;
        let all = [Fp32, Fp16, Int8, Int8Weights, Int4Weights];
        all.into_iter()
            .find(|precision| precision.to_string() == text)
            .ok_or_else(|| Error::Argument {
                name: "precision",
                reason: format!("`{text}` is none of fp32, fp16, int8, int8-weights, int4-weights"),
            })
    }
}

/// What became integers in a build, and what is known of the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizationInfo {
    /// How ranges of activations were chosen; none if only weights are integers.
    pub method: Option<String>,
    /// Pictures on which ranges were observed.
    pub items: usize,
    /// What is quantized, by component.
    pub components: BTreeMap<String, QuantizedCounts>,
    /// Whether the LM head may be integers.
    pub lm_head: bool,
    /// Whether the embedding table is.
    pub embedding: bool,
    /// How well the quantized model agrees with the model itself, if that was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<AccuracyInfo>,
    /// Whether the speed of integers was measured against that of FP16: `unverified` where there
    /// was no GPU to measure on.
    pub speed: String,
}

/// What the accuracy gate measured; the layers stand in `reports/accuracy.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccuracyInfo {
    /// Answers, in percent, that were allowed to differ from the model's own.
    pub max_drop: f64,
    /// Pictures that were asked about.
    pub items: usize,
    /// Share of the answers that were the model's own with everything quantized.
    pub before: f64,
    /// The same with what is left out.
    pub after: f64,
    /// Share of the answers to other pictures that is expected to be the model's own then, by how far
    /// each token is from another one.
    pub expected: f64,
    /// Nodes that are left in FP16 for it.
    pub kept: Vec<String>,
    /// Nodes that read FP16 for it; their weights are integers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights_only: Vec<String>,
    /// How integers were computed.
    pub engine: String,
}

/// How much of a component is quantized; the nodes stand in `reports/quantization.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizedCounts {
    /// Operators with quantized operands.
    pub quantized: usize,
    /// Operators that could have been quantized and were not.
    pub kept: usize,
    /// Activations with Q/DQ.
    pub tensors: usize,
    /// Weights stored as integers.
    pub weights: usize,
}

/// Sizes that shapes are rounded up to, ascending, so that few shapes exist at run time. An empty
/// list means that any size runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Buckets {
    /// Rows of a prefill.
    pub prefill: Vec<u32>,
    /// Rows of a decoding step: one, or one and the drafts.
    pub step: Vec<u32>,
    /// Visual tokens kept.
    pub visual_tokens: Vec<u32>,
}

/// The engines of one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSet {
    /// The machine that they are for.
    pub target: Target,
    /// The library that made them, or that runs them.
    pub engine: Engine,
    /// `vision`, `embed`, `decoder`, by name.
    pub components: Vec<Component>,
    /// What a run will hold in memory.
    pub memory: Vec<Part>,
    /// CUDA kernels for the target, if it is a GPU and there was a compiler for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<KernelInfo>,
}

/// Compiled CUDA kernels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelInfo {
    /// The cubin in the bundle, relative.
    pub file: String,
    /// Version of NVRTC that compiled it, `12.6`: drivers take those of their own major version, and
    /// older ones.
    pub nvrtc: String,
}

/// One part of a memory plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// What holds it: `vision weights`, `kv cache`, `scratch`, ...
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// An engine or a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// `vision`, `embed`, `decoder`, ...
    pub name: String,
    /// Its file in the bundle, relative.
    pub file: String,
    /// Inputs, in the engine's order.
    pub inputs: Vec<TensorInfo>,
    /// Outputs, in the engine's order.
    pub outputs: Vec<TensorInfo>,
    /// Optimization profiles, in the plan's order, of a plan or of a graph that becomes one.
    pub profiles: Vec<Profile>,
    /// Digests of the graph that TensorRT's builder reads or has read, and of its weights, by file
    /// name; empty for graphs that are run as they are.
    pub graph: Vec<FileDigest>,
}

/// Name, type and shape of an input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInfo {
    /// Name.
    pub name: String,
    /// Element type: `f32`, `f16`, `i64`, ...
    pub dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<Extent>,
}

/// A dimension: a number, a name for what varies, or `?`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Extent {
    /// A number.
    Fixed(u64),
    /// A name: equal names are equal sizes.
    Named(String),
}

/// The shapes of one optimization profile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// What it is for: `prefill 512`, `step 1`.
    pub name: String,
    /// Shapes of the inputs that vary.
    pub inputs: Vec<ProfileInput>,
}

/// The range of shapes that a profile gives to one input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfileInput {
    /// Name of the input.
    pub name: String,
    /// Smallest shape.
    pub min: Vec<u64>,
    /// Shape that kernels are chosen for.
    pub opt: Vec<u64>,
    /// Largest shape.
    pub max: Vec<u64>,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Named(name) => f.write_str(name),
        }
    }
}

impl From<&str> for Extent {
    fn from(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::Named(text.to_owned()), Self::Fixed)
    }
}

impl TensorInfo {
    /// Describes a tensor; a dimension is a number's digits, a name, or `?`.
    pub fn new<D: AsRef<str>>(
        name: &str,
        dtype: impl fmt::Display,
        shape: impl IntoIterator<Item = D>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            dtype: dtype.to_string(),
            shape: shape.into_iter().map(|d| d.as_ref().into()).collect(),
        }
    }
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.shape.iter().map(Extent::to_string).collect();
        write!(f, "{} [{}]", self.dtype, dims.join(", "))
    }
}

/// The one field that every version of the form has.
#[derive(Deserialize)]
struct Versioned {
    schema_version: u32,
}

impl Manifest {
    /// Reads and checks a manifest; `path` names it in errors.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Malformed`], or [`Error::Mismatch`] for another schema
    /// version.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > limits::MANIFEST_BYTES {
            return Err(Error::TooLarge {
                what: format!("{} (bytes)", path.display()),
                actual: bytes.len() as u64,
                limit: limits::MANIFEST_BYTES,
            });
        }
        let bad = |e: serde_json::Error| Error::malformed(path, format!("not a manifest: {e}"));
        // Another version may have other fields, so that the version is looked at first.
        let version = serde_json::from_slice::<Versioned>(bytes)
            .map_err(bad)?
            .schema_version;
        if version != SCHEMA_VERSION {
            return Err(Error::Mismatch {
                path: path.to_path_buf(),
                what: "schema version",
                expected: SCHEMA_VERSION.to_string(),
                actual: version.to_string(),
            });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(bad)?;
        manifest
            .check()
            .map_err(|reason| Error::malformed(path, reason))?;
        Ok(manifest)
    }

    /// Compares what the engines were built for with the model's own configuration; `path` names
    /// the manifest.
    ///
    /// # Errors
    /// [`Error::Mismatch`] for another family or vocabulary, and for a context that the model or
    /// the KV cache does not have.
    pub fn check_config(&self, path: &Path, config: &ModelConfig) -> Result<()> {
        let mismatch = |what, actual: String, expected: String| {
            Err(Error::Mismatch {
                path: path.to_path_buf(),
                what,
                expected,
                actual,
            })
        };
        if self.model.family != config.family.name {
            let family = config.family.name.to_owned();
            return mismatch("family", self.model.family.clone(), family);
        }
        if self.vocabulary as usize != config.vocab {
            let (own, other) = (self.vocabulary.to_string(), config.vocab.to_string());
            return mismatch("vocabulary", own, format!("{other}, as config.json says"));
        }
        for (what, n) in [
            ("context", self.max_context),
            ("KV capacity", self.kv_capacity),
        ] {
            if n == 0 || n as usize > config.max_positions {
                let most = config.max_positions;
                return mismatch(what, n.to_string(), format!("1 to the model's {most}"));
            }
        }
        if self.max_context > self.kv_capacity {
            let capacity = format!("at most the KV capacity of {}", self.kv_capacity);
            return mismatch("context", self.max_context.to_string(), capacity);
        }
        Ok(())
    }

    /// The engines for a target, if the bundle has them.
    pub fn engine_set(&self, target: Target) -> Option<&EngineSet> {
        self.engines.iter().find(|set| set.target == target)
    }

    /// Bytes of all files that the manifest lists.
    pub fn total_bytes(&self) -> u64 {
        self.files
            .iter()
            .map(|f| f.bytes)
            .fold(0, u64::saturating_add)
    }

    /// What the types cannot say: names are distinct and stay in the bundle, digests are digests,
    /// what is named is listed.
    pub(super) fn check(&self) -> Result<(), String> {
        let files: HashSet<&str> = distinct("file", self.files.iter().map(|f| f.path.as_str()))?;
        distinct("source", self.model.sources.iter().map(|f| f.path.as_str()))?;
        for file in self.files.iter().chain(&self.model.sources) {
            let name = &file.path;
            check_name(name).map_err(|reason| format!("file name `{name}`: {reason}"))?;
            if !is_sha256(&file.sha256) {
                return Err(format!("file `{name}`: not a SHA-256 digest"));
            }
        }
        let graphs = self.engines.iter().flat_map(|set| &set.components);
        let digests = graphs.flat_map(|component| &component.graph);
        let origin = self.finished_from.iter().map(|from| &from.manifest_sha256);
        if let Some(digest) = digests
            .map(|file| &file.sha256)
            .chain(origin)
            .find(|digest| !is_sha256(digest))
        {
            return Err(format!("`{digest}` is not a SHA-256 digest"));
        }
        if let Some(name) = [MANIFEST, MANIFEST_DIGEST]
            .iter()
            .find(|n| files.contains(**n))
        {
            return Err(format!("`{name}` lists itself"));
        }
        if self.engines.is_empty() {
            return Err("no engines".to_owned());
        }
        let targets: Vec<String> = self.engines.iter().map(|s| s.target.to_string()).collect();
        distinct("target", targets.iter().map(String::as_str))?;
        for set in &self.engines {
            distinct("component", set.components.iter().map(|c| c.name.as_str()))?;
            let components = set.components.iter().map(|c| (c.name.as_str(), &c.file));
            let kernels = set.kernels.iter().map(|k| ("kernels", &k.file));
            let mut named = components.chain(kernels);
            if let Some((name, file)) = named.find(|(_, file)| !files.contains(file.as_str())) {
                return Err(format!("component `{name}`: `{file}` is not listed"));
            }
        }
        if self.kv_capacity as usize > limits::CONTEXT_TOKENS
            || self.max_context as usize > limits::CONTEXT_TOKENS
            || self.vocabulary as usize > limits::VOCABULARY
        {
            return Err("context or vocabulary is above the limits".to_owned());
        }
        Ok(())
    }
}

impl EngineSet {
    /// True if it holds graphs from which the builder of the target makes plans.
    pub fn is_portable(&self) -> bool {
        matches!(self.target, Target::Sm(_)) && self.engine.flavour == Flavour::Onnx
    }

    /// The component with this name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|c| c.name == name)
    }
}

/// The set of `names`, or an error if one stands twice.
fn distinct<'a>(
    what: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<HashSet<&'a str>, String> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("{what} `{name}` stands twice"));
        }
    }
    Ok(seen)
}
