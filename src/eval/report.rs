//! What an evaluation says: the object that `eval --json` prints.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::check::Checked;
use super::energy::Watched;
use super::order::{Evaluation, Outcome};
use super::quick::QuickReport;
use super::stats::{Share, Spread};
use crate::decode::Totals;
use crate::items::Item;
use crate::pipeline::Timings;

/// Family of items that name none.
pub const OTHER: &str = "other";

/// The figures of an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The model.
    pub model: PathBuf,
    /// Which backend ran it.
    pub backend: &'static str,
    /// Precision of its weights.
    pub precision: String,
    /// The list of items.
    pub data: PathBuf,
    /// What became of the items.
    pub items: ItemsReport,
    /// Right answers; `None` if no item has one.
    pub accuracy: Option<Share>,
    /// By family.
    pub families: BTreeMap<String, FamilyReport>,
    /// Quick answers beside the language model's; `None` if only that was to answer.
    pub quick: Option<QuickReport>,
    /// Beside the reference; `None` if no item has one.
    pub agreement: Option<AgreementReport>,
    /// Milliseconds of each stage.
    pub latency_ms: LatencyReport,
    /// Tokens of the answers.
    pub tokens: TokensReport,
    /// How drafts fared.
    pub speculation: Totals,
    /// Largest resident memory of the process, in bytes; `None` where the system does not tell, or
    /// a reference was in memory, too.
    pub peak_memory_bytes: Option<u64>,
    /// Energy of the answers.
    pub energy: Energy,
    /// Wall time.
    pub seconds: f64,
}

/// What became of the items.
#[derive(Debug, Clone, Serialize)]
pub struct ItemsReport {
    /// In the list.
    pub total: usize,
    /// Asked.
    pub asked: usize,
    /// Those of the list that have no right answer.
    pub unanswered: usize,
    /// Pictures that are not there.
    pub missing: Vec<PathBuf>,
    /// Pictures that could not be read.
    pub unreadable: Vec<PathBuf>,
}

/// One family of questions.
#[derive(Debug, Clone, Serialize)]
pub struct FamilyReport {
    /// Items that were asked.
    pub items: usize,
    /// Right answers.
    pub accuracy: Option<Share>,
    /// Answers whose ids are the reference's.
    pub agreement: Option<Share>,
    /// Quick answers; `None` if only the language model was to answer.
    pub quick: Option<Share>,
    /// Right answers of the language model to the same questions, where others than it were to answer.
    pub full_accuracy: Option<Share>,
}

/// Answers beside those of the reference.
#[derive(Debug, Clone, Serialize)]
pub struct AgreementReport {
    /// What the reference is: `items`, or a model.
    pub reference: String,
    /// Answers of which all ids are equal.
    pub answers: Share,
    /// Ids up to the first that differs, of all ids of the reference.
    pub tokens: Share,
    /// Right answers of the reference, if it is a model.
    pub reference_accuracy: Option<Share>,
    /// Each answer that differs.
    pub differences: Vec<Difference>,
}

/// An answer that differs from the reference's.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// File and line of the item.
    pub item: String,
    /// The question.
    pub prompt: String,
    /// The answer.
    pub text: String,
    /// Index of the first id that differs.
    pub at: usize,
    /// Ids of the answer.
    pub token_ids: Vec<u32>,
    /// Ids of the reference.
    pub reference_ids: Vec<u32>,
}

/// Milliseconds of each stage, as in an answer's timings.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)]
pub struct LatencyReport {
    pub preprocess: Option<Spread>,
    pub vision: Option<Spread>,
    pub prune: Option<Spread>,
    pub prefill: Option<Spread>,
    pub decode: Option<Spread>,
    pub ttft: Option<Spread>,
    pub total: Option<Spread>,
}

/// Tokens of the answers.
#[derive(Debug, Clone, Serialize)]
pub struct TokensReport {
    /// All of them, the closing ones included.
    pub total: usize,
    /// All but each answer's first, by the time that they took; `None` if no answer has two.
    pub per_second: Option<f64>,
}

/// Energy of the answers.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Energy {
    /// Measured.
    Measured {
        /// All answers together.
        joules: f64,
        /// One answer.
        joules_per_answer: f64,
        /// While answers were made.
        watts: f64,
        /// What was read, and so what is in it.
        source: &'static str,
    },
    /// Not measured.
    NotAvailable {
        /// Why.
        not_available: String,
    },
}

impl Report {
    /// Draws up the figures; `items` are those that were asked, `reference` is the name of the model
    /// that ran alongside, if one did.
    pub fn new(
        model: PathBuf,
        data: PathBuf,
        checked: &Checked,
        reference: Option<String>,
        evaluation: &Evaluation,
    ) -> Self {
        let outcomes = &evaluation.outcomes;
        let items = &checked.items;
        let mut answers = outcomes.iter().map(|outcome| &outcome.answer);
        let first = answers.find(|answer| !answer.backend.is_empty());
        Self {
            model,
            backend: first.map_or("", |answer| answer.backend),
            precision: first.map(|a| a.precision.clone()).unwrap_or_default(),
            data,
            items: ItemsReport {
                total: items.len() + checked.missing.len(),
                asked: outcomes.len(),
                unanswered: checked.unanswered,
                missing: checked.missing.clone(),
                unreadable: evaluation.unreadable.clone(),
            },
            accuracy: share(outcomes.iter().map(|o| o.right)),
            families: families(items, outcomes),
            quick: QuickReport::of(outcomes),
            agreement: agreement(items, outcomes, reference),
            latency_ms: LatencyReport::of(outcomes),
            tokens: TokensReport::of(outcomes),
            speculation: Totals::of(outcomes.iter().map(|o| &o.answer.speculation)),
            peak_memory_bytes: evaluation.peak_memory_bytes,
            energy: energy(&evaluation.energy, outcomes),
            seconds: evaluation.seconds,
        }
    }
}

/// A share of those for which there is a yes or no; `None` if there are none.
pub(super) fn share(values: impl Iterator<Item = Option<bool>>) -> Option<Share> {
    Some(Share::of(values.flatten())).filter(|share| share.of > 0)
}

fn agrees(outcome: &Outcome) -> Option<bool> {
    outcome.agreement.as_ref().map(|a| a.agrees)
}

fn families(items: &[Item], outcomes: &[Outcome]) -> BTreeMap<String, FamilyReport> {
    let mut families: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        let family = items[outcome.item].family.as_deref().unwrap_or(OTHER);
        families.entry(family).or_default().push(outcome);
    }
    let report = |outcomes: Vec<&Outcome>| FamilyReport {
        items: outcomes.len(),
        accuracy: share(outcomes.iter().map(|o| o.right)),
        agreement: share(outcomes.iter().map(|o| agrees(o))),
        quick: share(outcomes.iter().map(|o| o.quick())),
        full_accuracy: share(outcomes.iter().map(|o| o.full?.right)),
    };
    let named = families.into_iter();
    named
        .map(|(name, of)| (name.to_owned(), report(of)))
        .collect()
}

fn agreement(
    items: &[Item],
    outcomes: &[Outcome],
    reference: Option<String>,
) -> Option<AgreementReport> {
    let compared = || {
        outcomes
            .iter()
            .filter_map(|o| Some((o, o.agreement.as_ref()?)))
    };
    let answers = share(outcomes.iter().map(agrees))?;
    let n_equal = compared().map(|(_, a)| a.n_equal).sum();
    // An answer that was cut is no evidence of the reference's ids after the cut.
    let n_reference = compared().map(|(outcome, a)| match a.agrees {
        true => a.reference.len().min(outcome.answer.token_ids.len()),
        false => a.reference.len(),
    });
    let difference = |(outcome, a): (&Outcome, &super::order::Agreement)| Difference {
        item: items[outcome.item].origin.clone(),
        prompt: items[outcome.item].prompt.clone(),
        text: outcome.answer.text.clone(),
        at: a.n_equal,
        token_ids: outcome.answer.token_ids.clone(),
        reference_ids: a.reference.clone(),
    };
    Some(AgreementReport {
        answers,
        tokens: Share::new(n_equal, n_reference.sum()),
        reference_accuracy: share(outcomes.iter().map(|o| o.reference_right)),
        differences: compared()
            .filter(|(_, a)| !a.agrees)
            .map(difference)
            .collect(),
        reference: reference.unwrap_or_else(|| "items".to_owned()),
    })
}

fn energy(watched: &Watched, outcomes: &[Outcome]) -> Energy {
    match watched {
        Watched::NotAvailable(reason) => Energy::NotAvailable {
            not_available: reason.clone(),
        },
        Watched::Joules(joules, source) => {
            let ms: f64 = outcomes.iter().map(|o| o.answer.timings_ms.total).sum();
            Energy::Measured {
                joules: *joules,
                joules_per_answer: joules / outcomes.len().max(1) as f64,
                watts: joules / (ms / 1e3).max(f64::MIN_POSITIVE),
                source,
            }
        }
    }
}

impl LatencyReport {
    fn of(outcomes: &[Outcome]) -> Self {
        let answers = outcomes.iter().filter(|o| !o.is_refused());
        Self::of_timings(answers.map(|o| o.answer.timings_ms))
    }

    /// Of the timings of some answers.
    pub fn of_timings(timings: impl IntoIterator<Item = Timings>) -> Self {
        let timings: Vec<Timings> = timings.into_iter().collect();
        let stage = |stage: fn(&Timings) -> f64| Spread::of(timings.iter().map(stage));
        Self {
            preprocess: stage(|t| t.preprocess),
            vision: stage(|t| t.vision),
            prune: stage(|t| t.prune),
            prefill: stage(|t| t.prefill),
            decode: stage(|t| t.decode),
            ttft: stage(|t| t.ttft),
            total: stage(|t| t.total),
        }
    }

    /// The stages with their names, in the order in which they run.
    pub fn stages(&self) -> [(&'static str, Option<Spread>); 7] {
        [
            ("preprocess", self.preprocess),
            ("vision", self.vision),
            ("prune", self.prune),
            ("prefill", self.prefill),
            ("decode", self.decode),
            ("ttft", self.ttft),
            ("total", self.total),
        ]
    }
}

impl TokensReport {
    fn of(outcomes: &[Outcome]) -> Self {
        let answers = || outcomes.iter().map(|outcome| &outcome.answer);
        let after_first: usize = answers().map(|a| a.token_ids.len().saturating_sub(1)).sum();
        let ms: f64 = answers().map(|a| a.timings_ms.decode).sum();
        Self {
            total: answers().map(|a| a.token_ids.len()).sum(),
            per_second: (after_first > 0 && ms > 0.0).then(|| after_first as f64 / (ms / 1e3)),
        }
    }
}
