//! What to build, and what was built.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::flavour::{Flavour, Version};
use crate::error::{Error, Result};

/// The GPU architecture that a plan is for; written `current` or `sm86`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Sm {
    /// That of this machine's first GPU.
    Current,
    /// Compute capability times ten: 86 for 8.6, 120 for 12.0.
    Sm(u32),
}

impl fmt::Display for Sm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Current => f.write_str("current"),
            Self::Sm(number) => write!(f, "sm{number}"),
        }
    }
}

impl FromStr for Sm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.strip_prefix("sm").and_then(|n| n.parse().ok());
        match (text, number) {
            ("current", _) => Ok(Self::Current),
            (_, Some(number @ 10..=999)) => Ok(Self::Sm(number)),
            _ => Err(Error::Argument {
                name: "target",
                reason: format!("{text:?} is neither `current` nor an SM such as sm86"),
            }),
        }
    }
}

impl From<Sm> for String {
    fn from(sm: Sm) -> Self {
        sm.to_string()
    }
}

impl TryFrom<String> for Sm {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// What one input's dimensions may be: outermost first, all three of the input's rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DimRange {
    /// Name of the input.
    pub input: String,
    /// Smallest shape.
    pub min: Vec<i64>,
    /// Shape that kernels are chosen for.
    pub opt: Vec<i64>,
    /// Largest shape.
    pub max: Vec<i64>,
}

/// One optimization profile: a range for every input with a dynamic dimension.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// One entry an input.
    pub dims: Vec<DimRange>,
}

/// One build: an ONNX file, the plan to write and the settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildSpec {
    /// The graph, lowered and checked; external data lies beside it.
    pub onnx: PathBuf,
    /// Where the plan goes. It appears complete or not at all.
    pub plan: PathBuf,
    /// The GPU it is for.
    pub target: Sm,
    /// Flavour to build with; `None` takes the first that can build for `target`.
    #[serde(default)]
    pub flavour: Option<Flavour>,
    /// Optimization profiles, in the order of their indices in the plan.
    #[serde(default)]
    pub profiles: Vec<Profile>,
    /// Limit of the memory that a kernel may use beside its tensors, on the GPU.
    #[serde(default)]
    pub workspace_bytes: Option<u64>,
    /// File of timings that is read before and written after a build. TensorRT-RTX times
    /// nothing and leaves it alone.
    #[serde(default)]
    pub timing_cache: Option<PathBuf>,
    /// TensorRT's builder optimization level, 0 to 5.
    #[serde(default)]
    pub optimization_level: Option<i32>,
    /// Lets FP32 products be computed in TF32 on GPUs that have it, as TensorRT does by itself.
    #[serde(default)]
    pub tf32: bool,
    /// Bytes of weights in the ONNX file and its external data; `None` sums up the files whose
    /// names begin with the ONNX file's.
    #[serde(default)]
    pub weight_bytes: Option<u64>,
    /// Passes TensorRT's verbose log lines on, tens of thousands a build.
    #[serde(default)]
    pub verbose_log: bool,
}

impl BuildSpec {
    /// A build without profiles, with TensorRT's own settings, TF32 off.
    pub fn new(onnx: impl Into<PathBuf>, plan: impl Into<PathBuf>, target: Sm) -> Self {
        Self {
            onnx: onnx.into(),
            plan: plan.into(),
            target,
            flavour: None,
            profiles: Vec::new(),
            workspace_bytes: None,
            timing_cache: None,
            optimization_level: None,
            tf32: false,
            weight_bytes: None,
            verbose_log: false,
        }
    }

    /// The name of the component for messages: the plan's file name without its suffix.
    pub(super) fn component(&self) -> String {
        let stem = self.plan.file_stem().unwrap_or_default();
        stem.to_string_lossy().into_owned()
    }

    /// Checks what can be checked before the graph is read.
    pub(super) fn validate(&self) -> Result<()> {
        if self.plan.file_name().is_none() {
            return Err(argument("plan", "names no file"));
        }
        if self
            .optimization_level
            .is_some_and(|l| !(0..=5).contains(&l))
        {
            return Err(argument("optimization_level", "must be 0 to 5"));
        }
        if self.workspace_bytes == Some(0) {
            return Err(argument("workspace_bytes", "must not be 0"));
        }
        for range in self.profiles.iter().flat_map(|profile| &profile.dims) {
            range.validate()?;
        }
        Ok(())
    }
}

impl DimRange {
    fn validate(&self) -> Result<()> {
        let n = self.min.len();
        let ordered = self.opt.len() == n
            && self.max.len() == n
            && (0..n).all(|i| {
                0 <= self.min[i] && self.min[i] <= self.opt[i] && self.opt[i] <= self.max[i]
            });
        if ordered {
            return Ok(());
        }
        Err(Error::Shape {
            name: self.input.clone(),
            expected: "0 <= min <= opt <= max in a profile, all of one rank".to_owned(),
            actual: format!("{:?}, {:?}, {:?}", self.min, self.opt, self.max),
        })
    }
}

fn argument(name: &'static str, reason: &str) -> Error {
    Error::Argument {
        name,
        reason: reason.to_owned(),
    }
}

/// Whether a tensor goes into a plan or comes out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IoMode {
    /// Goes in.
    Input,
    /// Comes out.
    Output,
}

/// Element type of a plan's input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float.
    F16,
    /// bfloat16.
    Bf16,
    /// 8-bit integer.
    I8,
    /// 32-bit integer.
    I32,
    /// 64-bit integer.
    I64,
    /// Unsigned 8-bit integer.
    U8,
    /// Truth value, one byte.
    Bool,
    /// A type that this program does not use, under TensorRT's name.
    Other(String),
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I8 => "i8",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::Bool => "bool",
            Self::Other(name) => name,
        })
    }
}

impl DType {
    /// From TensorRT's name of a `DataType`.
    pub(super) fn from_name(name: Option<&str>, code: i32) -> Self {
        match name {
            Some("kFLOAT") => Self::F32,
            Some("kHALF") => Self::F16,
            Some("kBF16") => Self::Bf16,
            Some("kINT8") => Self::I8,
            Some("kINT32") => Self::I32,
            Some("kINT64") => Self::I64,
            Some("kUINT8") => Self::U8,
            Some("kBOOL") => Self::Bool,
            Some(name) => Self::Other(name.to_owned()),
            None => Self::Other(code.to_string()),
        }
    }
}

/// An input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorDesc {
    /// Its name in the graph.
    pub name: String,
    /// In or out.
    pub mode: IoMode,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; −1 is dynamic.
    pub shape: Vec<i64>,
}

/// What a build made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BuildReport {
    /// Inputs, then outputs, in the graph's order.
    pub io: Vec<TensorDesc>,
    /// Profiles as they were asked for.
    pub profiles: Vec<Profile>,
    /// Parsing and building.
    pub seconds: f64,
    /// Peak resident memory of the process that built.
    pub peak_rss_bytes: u64,
    /// Size of the plan.
    pub plan_bytes: u64,
    /// SHA-256 of the plan, in hexadecimal.
    pub plan_sha256: String,
    /// The GPU it is for, as it was asked for.
    pub target: Sm,
    /// Who built it.
    pub flavour: Flavour,
    /// The library's version.
    pub version: Version,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sm_reads_what_it_writes_and_refuses_the_rest() {
        for sm in [Sm::Current, Sm::Sm(86), Sm::Sm(120)] {
            assert_eq!(sm.to_string().parse::<Sm>().ok(), Some(sm));
        }
        for text in ["", "sm", "sm8", "sm8.6", "86", "sm-86", "cuda"] {
            assert!(text.parse::<Sm>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn spec_with_disordered_ranges_or_settings_is_refused() {
        let spec = BuildSpec::new("a.onnx", "a.plan", Sm::Sm(86));
        assert!(spec.validate().is_ok());
        let with = |change: fn(&mut BuildSpec)| {
            let mut changed = spec.clone();
            change(&mut changed);
            changed.validate()
        };
        assert!(with(|s| s.optimization_level = Some(6)).is_err());
        assert!(with(|s| s.workspace_bytes = Some(0)).is_err());
        assert!(with(|s| s.plan = PathBuf::from("/")).is_err());
        for (min, opt, max) in [
            (vec![2], vec![1], vec![3]),
            (vec![1], vec![4], vec![3]),
            (vec![-1], vec![1], vec![1]),
            (vec![1, 1], vec![1], vec![1]),
        ] {
            let mut changed = spec.clone();
            let input = "x".to_owned();
            let dims = vec![DimRange {
                input,
                min,
                opt,
                max,
            }];
            changed.profiles.push(Profile { dims });
            assert!(matches!(changed.validate(), Err(Error::Shape { .. })));
        }
    }
}
