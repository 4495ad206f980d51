//! How far a build has come.

use serde::{Deserialize, Serialize};

/// The phases that this program adds around TensorRT's own, which run between them.
pub(super) const PARSING: &str = "Parsing ONNX";
/// See [`PARSING`].
pub(super) const WRITING: &str = "Writing plan";

/// Shares of a bar for parsing and, with it, building; the rest is writing.
const PARSED: f32 = 0.1;
const BUILT: f32 = 0.95;

/// A step forward in a build. Phases nest; names are TensorRT's, and may recur.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "progress", rename_all = "snake_case")]
pub enum Progress {
    /// A phase begins.
    PhaseStart {
        /// Its name.
        phase: String,
        /// The phase it is part of.
        parent: Option<String>,
        /// How many steps it has.
        steps: u32,
    },
    /// A phase has done a step.
    Step {
        /// Its name.
        phase: String,
        /// Counted from 0.
        step: u32,
    },
    /// A phase has ended, by itself or because the build was cancelled.
    PhaseEnd {
        /// Its name.
        phase: String,
    },
}

/// Turns the steps of one build into one figure for a bar.
///
/// Steps of a phase count alike and a nested phase fills one step of its parent, so the figure
/// grows unevenly, but never shrinks.
#[derive(Debug, Default)]
pub struct Fraction {
    open: Vec<Phase>,
    reached: f32,
}

#[derive(Debug)]
struct Phase {
    name: String,
    steps: u32,
    done: u32,
}

impl Fraction {
    /// Takes a step in; the answer is between 0 and 1.
    pub fn update(&mut self, progress: &Progress) -> f32 {
        let mut ended = None;
        match progress {
            Progress::PhaseStart { phase, steps, .. } => self.open.push(Phase {
                name: phase.clone(),
                steps: (*steps).max(1),
                done: 0,
            }),
            Progress::Step { phase, step } => {
                let open = self.open.iter_mut().rfind(|open| open.name == *phase);
                if let Some(open) = open {
                    open.done = open.done.max(step.saturating_add(1)).min(open.steps);
                }
            }
            Progress::PhaseEnd { phase } => {
                if let Some(at) = self.open.iter().rposition(|open| open.name == *phase) {
                    if at == 0 {
                        ended = Some((phase.as_str(), 1.0));
                    }
                    self.open.truncate(at);
                }
            }
        }
        let outermost = self
            .open
            .first()
            .map(|phase| (phase.name.as_str(), self.inner()));
        if let Some((name, inner)) = ended.or(outermost) {
            let (from, to) = match name {
                PARSING => (0.0, PARSED),
                WRITING => (BUILT, 1.0),
                _ => (PARSED, BUILT),
            };
            self.reached = self.reached.max(from + (to - from) * inner);
        }
        self.reached
    }

    /// How much of the outermost open phase is done.
    fn inner(&self) -> f32 {
        let phases = self.open.iter().rev();
        phases.fold(0.0, |inner, phase| {
            ((phase.done as f32 + inner) / phase.steps as f32).min(1.0)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(phase: &str, steps: u32) -> Progress {
        let (phase, parent) = (phase.to_owned(), None);
        Progress::PhaseStart {
            phase,
            parent,
            steps,
        }
    }

    fn step(phase: &str, step: u32) -> Progress {
        let phase = phase.to_owned();
        Progress::Step { phase, step }
    }

    fn end(phase: &str) -> Progress {
        let phase = phase.to_owned();
        Progress::PhaseEnd { phase }
    }

    #[test]
    fn fraction_of_nested_phases_grows_to_one() {
        let mut fraction = Fraction::default();
        for (progress, expected) in [
            (start(PARSING, 1), 0.0),
            (end(PARSING), 0.1),
            (start("Building engine", 2), 0.1),
            (step("Building engine", 0), 0.1 + 0.85 * 0.5),
            (start("Timing", 4), 0.1 + 0.85 * 0.5),
            (step("Timing", 1), 0.1 + 0.85 * 0.75),
            (end("Timing"), 0.1 + 0.85 * 0.75), // never back
            (step("Building engine", 1), 0.95),
            (end("Building engine"), 0.95),
            (start(WRITING, 1), 0.95),
            (end(WRITING), 1.0),
        ] {
            let got = fraction.update(&progress);
            assert!(
                (got - expected).abs() < 1e-6,
                "{progress:?}: {got}, not {expected}"
            );
        }
    }

    #[test]
    fn fraction_of_odd_events_stays_between_zero_and_one() {
        let mut fraction = Fraction::default();
        for progress in [
            end("unknown"),
            step("unknown", 7),
            start("x", 0),
            step("x", u32::MAX),
            start("x", 3),
            step("x", 9),
            end("x"),
            end("x"),
            end("x"),
        ] {
            let got = fraction.update(&progress);
            assert!((0.0..=1.0).contains(&got), "{progress:?}: {got}");
        }
    }
}
