//! What a set of engines was built for, and by what.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::Error;

/// The machine that a set of engines is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// The CPU engine: graphs that it runs as they are.
    Cpu,
    /// Lowered graphs for any runtime.
    Onnx,
    /// A GPU by compute capability, major and minor digit joined: 86 for 8.6, 120 for 12.0.
    Sm(u16),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Onnx => f.write_str("onnx"),
            Self::Sm(sm) => write!(f, "sm{sm}"),
        }
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let sm = |digits: &str| {
            let plain =
                (2..=3).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
            let sm = plain.then(|| digits.parse().ok())?;
            sm.filter(|&sm| sm >= 50)
        };
        match text {
            "cpu" => Ok(Self::Cpu),
            "onnx" => Ok(Self::Onnx),
            _ => text
                .strip_prefix("sm")
                .and_then(sm)
                .map(Self::Sm)
                .ok_or_else(|| Error::Argument {
                    name: "target",
                    reason: format!("`{text}` is none of cpu, onnx, sm80, sm86, sm87, ..."),
                }),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// Who made and runs the files of an engine set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flavour {
    /// The CPU engine.
    Cpu,
    /// Graphs only, for whatever reads them: another runtime, or the builder of another machine.
    Onnx,
    /// TensorRT.
    #[serde(rename = "tensorrt")]
    TensorRt,
    /// TensorRT for RTX.
    #[serde(rename = "tensorrt-rtx")]
    TensorRtRtx,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU engine",
            Self::Onnx => "ONNX",
            Self::TensorRt => "TensorRT",
            Self::TensorRtRtx => "TensorRT-RTX",
        })
    }
}

/// A flavour with its version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Which library.
    pub flavour: Flavour,
    /// Its version, as it reports it: `10.3.0.30`, `1.7.1`, `rten 0.27.0`.
    pub version: String,
}

impl Engine {
    /// The CPU engine, in the version that this program has.
    pub fn cpu(version: &str) -> Self {
        Self {
            flavour: Flavour::Cpu,
            version: format!("rten {version}"),
        }
    }

    /// Graphs of the ONNX standard, of this version of its operators.
    pub fn graphs(opset: i64) -> Self {
        Self {
            flavour: Flavour::Onnx,
            version: format!("opset {opset}"),
        }
    }

    /// True if files that `self` made can be loaded where `other` is installed: plans need the
    /// very version that built them, graphs do not.
    pub fn loads_in(&self, other: &Self) -> bool {
        self.flavour == other.flavour
            && (matches!(self.flavour, Flavour::Cpu | Flavour::Onnx)
                || self.version == other.version)
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.flavour, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_text_survives_a_round_trip_or_is_refused() {
        for text in ["cpu", "onnx", "sm86", "sm120"] {
            let target: Target = text.parse().expect(text);
            assert_eq!(target.to_string(), text);
            let json = serde_json::to_string(&target).expect("json");
            assert_eq!(serde_json::from_str::<Target>(&json).expect("back"), target);
        }
        for text in [
            "", "gpu", "sm", "sm8", "sm+86", "sm8.6", "sm99999", "SM86", "sm0086", "sm08",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }

    #[test]
    fn plans_need_their_version_and_graphs_do_not() {
        let engine = |flavour, version: &str| Engine {
            flavour,
            version: version.to_owned(),
        };
        let plan = engine(Flavour::TensorRt, "10.3.0.30");
        assert!(plan.loads_in(&engine(Flavour::TensorRt, "10.3.0.30")));
        assert!(!plan.loads_in(&engine(Flavour::TensorRt, "10.16.0.1")));
        assert!(!plan.loads_in(&engine(Flavour::TensorRtRtx, "10.3.0.30")));
        let graph = engine(Flavour::Cpu, "rten 0.27.0");
        assert!(graph.loads_in(&engine(Flavour::Cpu, "rten 0.28.0")));
    }
}
