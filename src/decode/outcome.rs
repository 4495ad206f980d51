//! What came of a pass.

use crate::backend::{Backend, Chosen, Logits, Prefill};
use crate::error::{Error, Result};

/// What came of a pass: logits, or the tokens that the backend took itself.
pub(super) enum Outcome {
    Scored(Logits),
    Chosen(Chosen),
}

impl Outcome {
    /// Of the prompt's pass.
    pub fn prefill(
        backend: &mut dyn Backend,
        prompt: &Prefill<'_>,
        is_greedy: bool,
    ) -> Result<Self> {
        if is_greedy && let Some(chosen) = backend.prefill_greedily(prompt)? {
            return Self::chosen(chosen, 1);
        }
        Self::scored(backend.prefill(prompt)?, 1)
    }

    /// Of a pass over the newest token and drafts.
    pub fn step(backend: &mut dyn Backend, fed: &[u32], at: u32, is_greedy: bool) -> Result<Self> {
        if is_greedy && let Some(chosen) = backend.step_greedily(fed, at)? {
            return Self::chosen(chosen, fed.len());
        }
        Self::scored(backend.step(fed, at)?, fed.len())
    }

    fn scored(logits: Logits, n: usize) -> Result<Self> {
        match logits.n_rows() == n {
            true => Ok(Self::Scored(logits)),
            false => Err(wrong_rows("logits", format!("{n} rows"), logits.n_rows())),
        }
    }

    fn chosen(chosen: Chosen, most: usize) -> Result<Self> {
        match (1..=most).contains(&chosen.ids.len()) {
            true => Ok(Self::Chosen(chosen)),
            false => Err(wrong_rows(
                "tokens of a pass",
                format!("1 to {most}"),
                chosen.ids.len(),
            )),
        }
    }

    /// Rows that it has.
    pub fn n_rows(&self) -> usize {
        match self {
            Self::Scored(logits) => logits.n_rows(),
            Self::Chosen(chosen) => chosen.ids.len(),
        }
    }

    /// Size of the vocabulary.
    pub fn n_vocab(&self) -> usize {
        match self {
            Self::Scored(logits) => logits.n_vocab(),
            Self::Chosen(chosen) => chosen.n_vocab,
        }
    }
}

fn wrong_rows(name: &str, expected: String, actual: usize) -> Error {
    Error::Shape {
        name: name.to_owned(),
        expected,
        actual: actual.to_string(),
    }
}
