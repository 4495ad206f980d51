//! What a policy is asked, and what it says.

use super::features::{Features, check_finite};
use super::place::{Place, line};
use crate::error::{Error, Result};

/// What a policy looks at, beside the places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// The rows themselves.
    pub features: bool,
    /// The question's embedding.
    pub question: bool,
    /// The question's attention.
    pub saliency: bool,
}

/// A score of a row that a device finds itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceScore {
    /// Minus its length.
    Shortness,
}

/// What is known of the rows of which some stay.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// The rows, `[n, d]`.
    pub features: Features<'a>,
    /// Where each stands, in order; empty if nobody knows.
    pub places: &'a [Place],
    /// Mean embedding of the question's tokens, `[d]`.
    pub question: Option<&'a [f32]>,
    /// How much the question attends to each row, `[n]`.
    pub saliency: Option<&'a [f32]>,
}

/// What stays.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// Rows that stay, ascending.
    pub indices: Vec<usize>,
    /// A score for each row, greater ones rather stay; empty if the policy has none.
    pub scores: Vec<f32>,
    /// How rows become those that stay; `None` if they stay as they are.
    pub merge: Option<Merge>,
}

/// Averages: row `slot` of the result is the sum of all rows that go into it, each times its weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Merge {
    /// For each row the place among the kept that it goes into.
    pub slots: Vec<u32>,
    /// For each row its weight; those of a slot add up to 1.
    pub weights: Vec<f32>,
}

impl Merge {
    /// The `n_kept` averaged rows, `[n_kept, d]`.
    ///
    /// # Panics
    /// If there are not as many slots as rows, or one of them is not below `n_kept`.
    pub fn apply(&self, features: &Features<'_>, n_kept: usize) -> Vec<f32> {
        let d = features.d();
        let mut merged = vec![0f32; n_kept * d];
        for (row, (&slot, &weight)) in self.slots.iter().zip(&self.weights).enumerate() {
            let sums = &mut merged[slot as usize * d..][..d];
            for (sum, x) in sums.iter_mut().zip(features.row(row)) {
                *sum += weight * x;
            }
        }
        merged
    }
}

/// Chooses the visual tokens that stay.
pub trait Policy: Send + Sync {
    /// What `--pruner` calls it.
    fn name(&self) -> &'static str;

    /// What it looks at. What it does not need may be missing.
    fn needs(&self) -> Needs;

    /// The score whose greatest it keeps, if that is all that it does and a device finds it itself.
    fn device_score(&self) -> Option<DeviceScore> {
        None
    }

    /// Chooses `keep` rows, fewer than there are; what [`needs`](Self::needs) names is there, of the
    /// right length and, rows aside, finite. Called through [`choose`](Self::choose).
    ///
    /// # Errors
    /// [`Error::Shape`] naming a row that is not finite.
    fn select(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept>;

    /// Chooses `keep` of the rows; all of them if there are no more.
    ///
    /// # Errors
    /// [`Error::Argument`] if none is to stay, [`Error::Shape`] if what the policy needs is missing,
    /// of another length, or not finite.
    fn choose(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept> {
        if keep == 0 {
            return Err(Error::Argument {
                name: "keep",
                reason: "0 tokens, at least one has to stay".to_owned(),
            });
        }
        let n = inputs.features.n();
        let needs = self.needs();
        let question = needs.question.then_some(inputs.question);
        check("question", question, inputs.features.d(), self.name())?;
        check(
            "saliency",
            needs.saliency.then_some(inputs.saliency),
            n,
            self.name(),
        )?;
        if !inputs.places.is_empty() && inputs.places.len() != n {
            return Err(Error::Shape {
                name: "places".to_owned(),
                expected: format!("[{n}]"),
                actual: format!("[{}]", inputs.places.len()),
            });
        }
        if keep >= n {
            return Ok(Kept {
                indices: (0..n).collect(),
                scores: Vec::new(),
                merge: None,
            });
        }
        if inputs.places.is_empty() {
            let places = line(n);
            let places = &places;
            return self.select(&Inputs { places, ..*inputs }, keep);
        }
        self.select(inputs, keep)
    }
}

/// Refuses what is needed and not there as it should be.
fn check(name: &str, needed: Option<Option<&[f32]>>, n: usize, policy: &str) -> Result<()> {
    let Some(values) = needed else { return Ok(()) };
    let found = values.map_or("none".to_owned(), |values| format!("[{}]", values.len()));
    match values {
        Some(values) if values.len() == n => check_finite(name, values),
        _ => Err(Error::Shape {
            name: name.to_owned(),
            expected: format!("[{n}] f32, which the pruner `{policy}` reads"),
            actual: found,
        }),
    }
}
