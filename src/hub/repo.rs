//! Names of models on the hub.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// What a model's name begins with when it is to be fetched from the hub.
const SCHEME: &str = "hf:";

/// Longest owner or name that the hub gives out.
const PART_BYTES: usize = 96;

/// `owner/name`, which names a repository on the hub and a folder in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoId(String);

impl RepoId {
    /// The repository that a model argument names, `None` if it is not of the form `hf:...`.
    ///
    /// # Errors
    /// [`Error::Argument`] if what follows `hf:` is not `owner/name`.
    pub fn from_spec(spec: &str) -> Result<Option<Self>> {
        spec.strip_prefix(SCHEME).map(str::parse).transpose()
    }

    /// `owner/name`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepoId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.split_once('/') {
            Some((owner, name)) if is_part(owner) && is_part(name) => Ok(Self(text.to_owned())),
            _ => Err(Error::Argument {
                name: "model",
                reason: format!(
                    "`{text}` is not `owner/name` of letters, digits, `-`, `_` and `.`"
                ),
            }),
        }
    }
}

impl fmt::Display for RepoId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// True for what the hub accepts as owner or name. The cache joins both with `--`, which is why
/// neither may have it.
fn is_part(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    text.len() <= PART_BYTES
        && edge(text.chars().next())
        && edge(text.chars().next_back())
        && !text.contains("..")
        && !text.contains("--")
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_names_are_read_and_path_tricks_refused() {
        let id = |spec: &str| RepoId::from_spec(spec).map(|id| id.map(|id| id.to_string()));
        assert_eq!(id("models/fastvlm").expect("a folder"), None);
        for good in [
            "onnx-community/FastVLM-0.5B-ONNX",
            "a/b",
            "HuggingFaceTB/SmolVLM-256M_x",
        ] {
            assert_eq!(
                id(&format!("hf:{good}")).expect(good).as_deref(),
                Some(good)
            );
        }
        let long = format!("hf:a/{}", "x".repeat(97));
        for bad in [
            "hf:",
            "hf:a",
            "hf:/b",
            "hf:a/",
            "hf:a/b/c",
            "hf:../b",
            "hf:a/..",
            "hf:a/../b",
            "hf:.a/b",
            "hf:a/b?x=1",
            "hf:a/b#x",
            "hf:a/b c",
            "hf:a--b/c",
            "hf:a/ü",
            "hf:a/b@main",
            "hf:-a/b",
            "hf:a\\b/c",
            "hf:a/b\n",
            &long,
        ] {
            assert!(matches!(id(bad), Err(Error::Argument { .. })), "{bad}");
        }
    }
}
