//! Quick answers beside those of the language model.

use serde::Serialize;

use super::order::{Outcome, is_right};
use super::report::{LatencyReport, share};
use super::stats::Share;
use crate::items::Item;
use crate::pipeline::{Answer, Mode, Reason, Timings};

/// What the language model says to a question that others than it were to answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Beside {
    /// Whether it is right; `None` if nobody knows the right answer.
    pub right: Option<bool>,
    /// How long it took alone.
    pub timings_ms: Timings,
}

impl Beside {
    /// Of an answer that was asked for beside a quick one.
    pub(super) fn new(item: &Item, full: &Answer) -> Self {
        Self {
            right: is_right(item, &full.text),
            timings_ms: full.timings_ms,
        }
    }

    /// Of an answer that [`Mode::Auto`] left to it, without the time that the quick one took before.
    pub(super) fn in_auto(item: &Item, answer: &Answer) -> Self {
        let mut beside = Self::new(item, answer);
        let tried_ms = answer.mode.quick_ms;
        beside.timings_ms.total -= tried_ms;
        if beside.timings_ms.ttft > 0.0 {
            beside.timings_ms.ttft -= tried_ms;
        }
        beside
    }
}

/// Quick answers of an evaluation.
#[derive(Debug, Clone, Serialize)]
pub struct QuickReport {
    /// Who was to answer.
    pub mode: Mode,
    /// Quick answers, of all.
    pub answered: Share,
    /// Right ones, of these.
    pub accuracy: Option<Share>,
    /// Questions that [`Mode::Quick`] has refused.
    pub refused: usize,
    /// Right answers of the language model, asked all of the questions.
    pub full_accuracy: Option<Share>,
    /// Milliseconds of its stages.
    pub full_latency_ms: LatencyReport,
}

impl QuickReport {
    /// Of some outcomes; `None` if only the language model was to answer.
    pub(super) fn of(outcomes: &[Outcome]) -> Option<Self> {
        let asked = outcomes.iter().map(|outcome| outcome.answer.mode.asked);
        let mode = asked.clone().find(|&mode| mode != Mode::Full)?;
        let quick = || outcomes.iter().filter(|o| o.quick() == Some(true));
        let full = outcomes.iter().filter_map(|outcome| outcome.full);
        Some(Self {
            mode,
            answered: Share::of(outcomes.iter().filter_map(Outcome::quick)),
            accuracy: share(quick().map(|outcome| outcome.right)),
            refused: outcomes.iter().filter(|o| o.is_refused()).count(),
            full_accuracy: share(outcomes.iter().map(|o| o.full?.right)),
            full_latency_ms: LatencyReport::of_timings(full.map(|full| full.timings_ms)),
        })
    }
}

impl Outcome {
    /// Whether quick mode has answered; `None` if only the language model was to answer.
    pub fn quick(&self) -> Option<bool> {
        let mode = &self.answer.mode;
        (mode.asked != Mode::Full).then(|| mode.answered == Mode::Quick && !self.is_refused())
    }

    /// Whether quick mode was to answer, and had no answer.
    pub fn is_refused(&self) -> bool {
        self.answer.mode.reason == Reason::Refused
    }
}
