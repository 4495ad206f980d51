//! The policies by name.

use std::fmt;
use std::str::FromStr;

use super::{Attention, Diverse, Grid, Learned, Norm, Policy, Random, Similarity};
use crate::error::{Error, Result};

/// A policy by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pruner {
    /// [`Learned`].
    Learned,
    /// [`Attention`].
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
    pub const ALL: [Self; 7] = [
        Self::Learned,
        Self::Attention,
        Self::Diverse,
        Self::Similarity,
        Self::Norm,
        Self::Grid,
        Self::Random,
    ];

    /// The policy; `seed` is for the one that draws, `learned` what was trained for the model.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for [`Pruner::Learned`] where nothing was trained.
    pub fn policy(self, seed: u64, learned: Option<&Learned>) -> Result<Box<dyn Policy>> {
        Ok(match self {
            Self::Learned => match learned {
                Some(learned) => Box::new(learned.clone()),
                None => {
                    return Err(Error::Unavailable {
                        what: "the pruner `learned`".to_owned(),
                        reason:
                            "the model has no pruner.safetensors; `trtvlm train pruner` makes one"
                                .to_owned(),
                    });
                }
            },
            Self::Attention => Box::new(Attention),
            Self::Diverse => Box::new(Diverse),
            Self::Similarity => Box::new(Similarity),
            Self::Norm => Box::new(Norm),
            Self::Grid => Box::new(Grid),
            Self::Random => Box::new(Random { seed }),
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Learned => "learned",
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
