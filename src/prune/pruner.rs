//! The policies by name.

use std::fmt;
use std::str::FromStr;

use super::{Attention, Diverse, Grid, Norm, Policy, Random, Similarity};
use crate::error::{Error, Result};

/// A policy that needs no training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Pruner {
    /// [`Attention`].
    #[default]
    Attention,
    /// [`Diverse`].
    Diverse,
    /// [`Similarity`].
    Similarity,
    /// [`Norm`].
    Norm,
    /// [`Grid`].
    Grid,
    /// [`Random`].
    Random,
}

impl Pruner {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Attention,
        Self::Diverse,
        Self::Similarity,
        Self::Norm,
        Self::Grid,
        Self::Random,
    ];

    /// The policy; `seed` is for the one that draws.
    pub fn policy(self, seed: u64) -> Box<dyn Policy> {
        match self {
            Self::Attention => Box::new(Attention),
            Self::Diverse => Box::new(Diverse),
            Self::Similarity => Box::new(Similarity),
            Self::Norm => Box::new(Norm),
            Self::Grid => Box::new(Grid),
            Self::Random => Box::new(Random { seed }),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attention => "attention",
            Self::Diverse => "diverse",
            Self::Similarity => "similarity",
            Self::Norm => "norm",
            Self::Grid => "grid",
            Self::Random => "random",
        }
    }
}

impl fmt::Display for Pruner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Pruner {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|pruner| pruner.name() == text);
        found.ok_or_else(|| Error::Argument {
            name: "pruner",
            reason: format!(
                "`{text}` is none of {}",
                Self::ALL.map(Self::name).join(", ")
            ),
        })
    }
}
