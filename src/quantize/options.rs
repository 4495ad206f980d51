//! What to quantize.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::smooth::USUAL_ALPHA;
use crate::error::{Error, Result};

/// What becomes integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheme {
    /// Weights (a scale per channel) and the activations that they meet (a scale per tensor).
    Int8,
    /// Weights of linear operators only (a scale per channel); activations are not touched.
    Int8Weights,
    /// Weights of linear operators only, in 4 bits (a scale per block of a column).
    Int4Weights,
}

impl Scheme {
    /// True if activations stay floats.
    pub fn is_of_weights(self) -> bool {
        self != Self::Int8
    }
}

/// What to quantize, and what to leave.
///
/// A node is quantized if an `include` names it (or there is none), no `exclude` does, it is in
/// `only` (or that is `None`) and not in `except`.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizeOptions {
    /// What becomes integers.
    pub scheme: Scheme,
    /// Nodes that the user wants, all if empty.
    pub include: Vec<Pattern>,
    /// Nodes that the user does not want.
    pub exclude: Vec<Pattern>,
    /// The LM head, too.
    pub lm_head: bool,
    /// Weights of a column that share a scale, at most, with [`Scheme::Int4Weights`].
    pub block: usize,
    /// The residual operand of additions behind convolutions, so that an engine computes both as
    /// one.
    pub residuals: bool,
    /// How much of activations' outliers is moved into weights, from 0 to 1 ([`Scheme::Int8`]);
    /// nothing is moved without.
    pub smooth: Option<f32>,
    /// Labels ([`label`](crate::onnx::proto::NodeProto::label)) of the nodes that may be quantized.
    pub only: Option<BTreeSet<String>>,
    /// Labels of nodes that stay as they are, for measured reasons.
    pub except: BTreeSet<String>,
    /// Labels of linear operators of which the weight alone becomes integers, for measured reasons;
    /// others are not concerned.
    pub weights_only: BTreeSet<String>,
}

impl QuantizeOptions {
    /// Everything that the scheme covers.
    pub fn new(scheme: Scheme) -> Self {
        Self {
            scheme,
            include: Vec::new(),
            exclude: Vec::new(),
            lm_head: true,
            block: 32,
            residuals: true,
            smooth: Some(USUAL_ALPHA),
            only: None,
            except: BTreeSet::new(),
            weights_only: BTreeSet::new(),
        }
    }

    /// True if names alone let a node be quantized.
    pub(super) fn admits(&self, label: &str, op: &str) -> bool {
        let named = |patterns: &[Pattern]| patterns.iter().any(|p| p.matches(label, op));
        (self.include.is_empty() || named(&self.include))
            && !named(&self.exclude)
            && self.only.as_ref().is_none_or(|only| only.contains(label))
            && !self.except.contains(label)
    }
}

/// Names nodes: an operator (`Conv`), or a node's name in which `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// True if it names a node of this label and operator.
    pub fn matches(&self, label: &str, op: &str) -> bool {
        self.0 == op || self.matches_name(label)
    }

    fn matches_name(&self, name: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or("");
        let Some(mut rest) = name.strip_prefix(first) else {
            return false;
        };
        let Some(last) = parts.next_back() else {
            return rest.is_empty();
        };
        // Each part where it first fits: what is left for those behind it is then the most.
        for part in parts {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::Argument {
                name: "pattern",
                reason: "is empty".to_owned(),
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().expect("pattern")
    }

    #[test]
    fn pattern_names_an_operator_or_nodes() {
        for (text, matches) in [
            ("Conv", true),
            ("conv", false),
            ("/a/b/Conv", true),
            ("/a/b", false),
            ("/a*", true),
            ("*Conv", true),
            ("*", true),
            ("**", true),
            ("/a*b*v", true),
            ("/a*b*b*", false),
            ("*/Conv*Conv", false),
            ("/a/b/Conv*", true),
            ("/a/b/Convx*", false),
        ] {
            assert_eq!(
                pattern(text).matches("/a/b/Conv", "Conv"),
                matches,
                "{text}"
            );
        }
        assert!("".parse::<Pattern>().is_err());
    }

    #[test]
    fn admits_asks_every_list() {
        let mut options = QuantizeOptions::new(Scheme::Int8);
        assert!(options.admits("n", "Conv"));
        options.include = vec![pattern("n*"), pattern("MatMul")];
        assert!(options.admits("n1", "Conv") && options.admits("x", "MatMul"));
        assert!(!options.admits("x", "Conv"));
        options.exclude = vec![pattern("*1")];
        assert!(!options.admits("n1", "Conv") && options.admits("n2", "Conv"));
        options.only = Some(["n2".to_owned(), "n3".to_owned()].into());
        assert!(!options.admits("n4", "Conv") && options.admits("n2", "Conv"));
        options.except = ["n2".to_owned()].into();
        assert!(!options.admits("n2", "Conv") && options.admits("n3", "Conv"));
    }
}
