//! Flavours, versions, and the ABIs that this program was built for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which TensorRT a library or a plan belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flavour {
    /// TensorRT-RTX: builds without a GPU, compiles kernels at load.
    Rtx,
    /// TensorRT itself, as on a Jetson: builds for the GPU of its own machine.
    Enterprise,
    /// TensorRT's lean runtime: runs version-compatible plans, builds nothing.
    Lean,
}

impl fmt::Display for Flavour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rtx => "TensorRT-RTX",
            Self::Enterprise => "TensorRT",
            Self::Lean => "TensorRT lean runtime",
        })
    }
}

/// A version of headers or of a library; written `1.7.1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Version {
    /// First number; RTX counts from 1, TensorRT itself from 10.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl Version {
    /// From what `getInferLibVersion` returns: `major * 10000 + minor * 100 + patch`, before
    /// version 10 `major * 1000 + ...`.
    pub(super) fn from_library(number: i32) -> Self {
        let number = number.unsigned_abs();
        let unit = if number < 10_000 { 1000 } else { 10_000 };
        Self {
            major: number / unit,
            minor: number % unit / 100,
            patch: number % 100,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for Version {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let numbers: Vec<u32> = text.split('.').filter_map(|n| n.parse().ok()).collect();
        match numbers.as_slice() {
            &[major, minor, patch] => Ok(Self {
                major,
                minor,
                patch,
            }),
            _ => Err(format!("{text:?} is no version such as 1.7.1")),
        }
    }
}

/// One copy of the shim, and the constants of the headers it was compiled with.
#[derive(Debug)]
pub(super) struct Abi {
    /// Names the copy on the bridge.
    pub key: &'static str,
    rtx: bool,
    version: [u32; 3],
    data_types: &'static [(&'static str, i32)],
    builder_flags: &'static [(&'static str, i32)],
    compute_capabilities: &'static [(&'static str, i32)],
    severities: &'static [(&'static str, i32)],
    parser_errors: &'static [(&'static str, i32)],
}

// `ABIS`, written by build.rs from the headers with bindgen.
include!(concat!(env!("OUT_DIR"), "/trt_abis.rs"));

impl Abi {
    /// The copy that speaks to a library of this flavour and version.
    pub fn of_library(flavour: Flavour, version: Version) -> Option<&'static Self> {
        let rtx = flavour == Flavour::Rtx;
        ABIS.iter()
            .find(|abi| abi.rtx == rtx && abi.version[0] == version.major)
    }

    /// Flavour of the headers.
    pub fn flavour(&self) -> Flavour {
        if self.rtx {
            Flavour::Rtx
        } else {
            Flavour::Enterprise
        }
    }

    /// Version of the headers.
    pub fn headers(&self) -> Version {
        let [major, minor, patch] = self.version;
        Version {
            major,
            minor,
            patch,
        }
    }

    /// Name of a `DataType`, for example `kFLOAT`.
    pub fn data_type(&self, code: i32) -> Option<&'static str> {
        name_of(self.data_types, code)
    }

    /// Name of a parser error, for example `kUNSUPPORTED_NODE`.
    pub fn parser_error(&self, code: i32) -> Option<&'static str> {
        name_of(self.parser_errors, code)
    }

    /// Name of a log severity, for example `kWARNING`.
    pub fn severity(&self, code: i32) -> Option<&'static str> {
        name_of(self.severities, code)
    }

    /// The bit of a builder flag, for example `kTF32`; 0 if this ABI has no such flag.
    pub fn builder_flag(&self, name: &str) -> u32 {
        let code = self.builder_flags.iter().find(|(n, _)| *n == name);
        code.and_then(|(_, bit)| u32::try_from(*bit).ok())
            .and_then(|bit| 1u32.checked_shl(bit))
            .unwrap_or(0)
    }

    /// The `ComputeCapability` named `current`, or `sm86` and the like.
    pub fn compute_capability(&self, target: &str) -> Option<i32> {
        let name = if target == "current" {
            "kCURRENT".to_owned()
        } else {
            format!("k{}", target.to_ascii_uppercase())
        };
        let found = self.compute_capabilities.iter().find(|(n, _)| *n == name);
        found.map(|(_, code)| *code)
    }

    /// Every SM that this ABI can build for on any machine, as `sm86`; none if it builds only
    /// for the GPU that is present.
    pub fn known_sms(&self) -> Vec<String> {
        let names = self.compute_capabilities.iter().map(|(name, _)| *name);
        names
            .filter_map(|name| name.strip_prefix("kSM"))
            .map(|number| format!("sm{number}"))
            .collect()
    }
}

fn name_of(table: &'static [(&'static str, i32)], code: i32) -> Option<&'static str> {
    table
        .iter()
        .find(|(_, c)| *c == code)
        .map(|(name, _)| *name)
}

/// Flavour and version of every set of headers that this program was built with.
pub fn headers() -> Vec<(Flavour, Version)> {
    ABIS.iter()
        .map(|abi| (abi.flavour(), abi.headers()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_of_library_number_follows_both_schemes() {
        for (number, text) in [
            (10_701, "1.7.1"),
            (100_300, "10.3.0"),
            (101_601, "10.16.1"),
            (110_400, "11.4.0"),
            (8_601, "8.6.1"),
        ] {
            let version = Version::from_library(number);
            assert_eq!(version.to_string(), text);
            assert_eq!(Version::try_from(text.to_owned()), Ok(version));
        }
        assert!(Version::try_from("1.x.1".to_owned()).is_err());
    }

    #[test]
    fn constants_of_every_abi_are_those_of_the_headers() {
        assert!(!ABIS.is_empty());
        for abi in ABIS {
            assert_eq!(abi.data_type(0), Some("kFLOAT"), "{}", abi.key);
            assert_eq!(abi.severity(2), Some("kWARNING"), "{}", abi.key);
            assert!(abi.builder_flag("kTF32").is_power_of_two(), "{}", abi.key);
            assert_eq!(abi.builder_flag("kNO_SUCH_FLAG"), 0);
            assert!(abi.parser_error(8).is_some(), "{}", abi.key);
            let n_sms = abi.known_sms().len();
            assert_eq!(n_sms > 0, abi.flavour() == Flavour::Rtx, "{}", abi.key);
        }
    }

    #[test]
    fn compute_capability_of_rtx_knows_sm86_and_not_sm87() {
        let Some(rtx) = ABIS.iter().find(|abi| abi.rtx) else {
            panic!("built without TensorRT-RTX headers: run `make sdk`");
        };
        assert_eq!(rtx.compute_capability("sm86"), Some(86));
        assert_eq!(rtx.compute_capability("current"), Some(1));
        assert_eq!(rtx.compute_capability("sm87"), None);
    }
}
