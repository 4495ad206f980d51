//! How sure an answer is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::merge::ln;
use super::question::Question;
use super::scene::Looked;
use super::words::{Form, Words};

/// Distances that differ by this share of [`Words::near`] from it could as well be on its other side, by a logistic function.
const NEAR_DOUBT: f64 = 0.04;

/// Most steps of a fit.
const STEPS: usize = 100;

/// Calibrations by form of question.
pub type Calibration = BTreeMap<Form, Logistic>;

/// From a score to the probability that an answer is right.
///
/// Source: Platt 1999, "Probabilistic outputs for support vector machines"; fitted as Lin, Lin and Weng 2007 do.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logistic {
    /// Times the score.
    pub slope: f64,
    /// Added to it.
    pub offset: f64,
}

impl Default for Logistic {
    /// Where nothing was measured: never above one half, since no score is above 0.
    fn default() -> Self {
        Self {
            slope: 1.0,
            offset: 0.0,
        }
    }
}

impl Logistic {
    /// Probability, 0 to 1.
    pub fn at(self, score: f64) -> f64 {
        logistic(self.slope * score + self.offset)
    }
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Logarithm of the probability that all is as the answer says which it depends on, were cells and objects
/// independent; at most 0.
pub(super) fn score(words: &Words, question: Question, looked: &Looked) -> f64 {
    let scene = &looked.scene;
    match question {
        Question::Describe => {
            let one = |thing: usize| {
                let Some(colour) = said_colour(words, looked, thing) else {
                    return is(looked, thing);
                };
                is(looked, thing) + ln(looked.sures[thing].colours[colour])
            };
            let all: f64 = (0..scene.things.len()).map(one).sum();
            all + looked.nothing_elsewhere + ln(looked.ground)
        }
        Question::Count { kind } => {
            let one = |thing: usize| match scene.things[thing].kind == kind {
                true => is(looked, thing),
                false => is_not(looked, thing, kind, None),
            };
            let all: f64 = (0..scene.things.len()).map(one).sum();
            all + looked.elsewhere[kind]
        }
        Question::Find { kind, colour } => match scene.such(kind, colour).next() {
            Some(found) => {
                let sure = &looked.sures[found];
                let of_colour = colour.map_or(0.0, |colour| ln(sure.colours[colour]));
                let n_such = scene.such(kind, colour).count();
                is(looked, found) + of_colour + ln(sure.place) - (n_such as f64).ln()
            }
            None => absent(looked, kind, colour),
        },
        Question::Near { kind, other } => match scene.closest(kind, other) {
            Some((a, b, distance)) => {
                let doubt = (distance - words.near).abs() / (NEAR_DOUBT * words.near);
                is(looked, a) + is(looked, b) + ln(logistic(doubt))
            }
            None => {
                let missing = [kind, other].into_iter();
                let missing = missing.filter(|&kind| scene.such(kind, None).next().is_none());
                let scores = missing.map(|kind| absent(looked, kind, None));
                scores.fold(f64::NEG_INFINITY, f64::max).max(ln(0.0))
            }
        },
        Question::Colour { kind } => match scene.such(kind, None).next() {
            Some(found) => {
                let colour = scene.things[found].colour;
                let colour = colour.map_or(ln(0.0), |c| ln(looked.sures[found].colours[c]));
                let n_such = scene.such(kind, None).count();
                is(looked, found) + colour - (n_such as f64).ln()
            }
            None => absent(looked, kind, None),
        },
    }
}

/// The colour with which a description names an object.
fn said_colour(words: &Words, looked: &Looked, thing: usize) -> Option<usize> {
    let thing = &looked.scene.things[thing];
    thing.colour.filter(|_| !words.kinds[thing.kind].plain)
}

/// That an object is one of its kind.
fn is(looked: &Looked, thing: usize) -> f64 {
    let sure = &looked.sures[thing];
    ln(sure.presence) + ln(sure.kinds[looked.scene.things[thing].kind])
}

/// That it is none of another.
fn is_not(looked: &Looked, thing: usize, kind: usize, colour: Option<usize>) -> f64 {
    let sure = &looked.sures[thing];
    let colour = colour.map_or(1.0, |colour| sure.colours[colour]);
    ln(1.0 - sure.kinds[kind] * colour)
}

/// That nothing is of a kind and colour.
fn absent(looked: &Looked, kind: usize, colour: Option<usize>) -> f64 {
    let one = |thing: usize| is_not(looked, thing, kind, colour);
    let all: f64 = (0..looked.scene.things.len()).map(one).sum();
    all + looked.elsewhere[kind]
}

/// Fits a calibration to scores of answers and whether they were right; the slope is not negative.
///
/// Targets are those of Platt, `(n + 1) / (n + 2)` and `1 / (n + 2)` of each outcome, so that answers that were all right make
/// no certainty of it.
pub fn fit_logistic(samples: &[(f64, bool)]) -> Logistic {
    if samples.is_empty() {
        return Logistic::default();
    }
    let n_right = samples.iter().filter(|(_, right)| *right).count() as f64;
    let n_wrong = samples.len() as f64 - n_right;
    let target = |right: bool| match right {
        true => (n_right + 1.0) / (n_right + 2.0),
        false => 1.0 / (n_wrong + 2.0),
    };
    let mean: f64 = samples.iter().map(|&(_, right)| target(right)).sum::<f64>();
    let mean = mean / samples.len() as f64;
    let flat = Logistic {
        slope: 0.0,
        offset: (mean / (1.0 - mean)).ln(),
    };
    let loss = |of: Logistic| -> f64 {
        let one = |&(score, right): &(f64, bool)| {
            let (x, t) = (of.slope * score + of.offset, target(right));
            x.max(0.0) + (-x.abs()).exp().ln_1p() - t * x
        };
        samples.iter().map(one).sum()
    };
    let (mut best, mut least) = (flat, loss(flat));
    for _ in 0..STEPS {
        let step = newton_step(best, samples, &target);
        let mut share = 1.0;
        let better = std::iter::repeat_with(|| {
            let next = Logistic {
                slope: best.slope - share * step[0],
                offset: best.offset - share * step[1],
            };
            share *= 0.5;
            next
        });
        let Some(next) = better.take(30).find(|&next| loss(next) < least) else {
            break;
        };
        (best, least) = (next, loss(next));
    }
    if best.slope < 0.0 { flat } else { best }
}

/// The step of Newton's method, with a little added to the diagonal.
fn newton_step(at: Logistic, samples: &[(f64, bool)], target: &dyn Fn(bool) -> f64) -> [f64; 2] {
    let (mut g, mut h) = ([0.0; 2], [1e-9, 0.0, 1e-9]);
    for &(score, right) in samples {
        let p = at.at(score);
        let (d, curve) = (p - target(right), p * (1.0 - p));
        g[0] += d * score;
        g[1] += d;
        h[0] += curve * score * score;
        h[1] += curve * score;
        h[2] += curve;
    }
    let determinant = (h[0] * h[2] - h[1] * h[1]).max(1e-12);
    [
        (h[2] * g[0] - h[1] * g[1]) / determinant,
        (h[0] * g[1] - h[1] * g[0]) / determinant,
    ]
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Scene, Sure, Thing};
    use super::super::testing::words;
    use super::*;

    /// A car that may be a boat, and a tree.
    fn looked() -> Looked {
        let thing = |kind, colour, x| Thing {
            kind,
            colour,
            at: [x, 0.5],
        };
        let sure = |presence, kinds: [f64; 3], colours: [f64; 2]| Sure {
            presence,
            kinds: kinds.to_vec(),
            colours: colours.to_vec(),
            place: 0.5,
        };
        Looked {
            scene: Scene {
                things: vec![thing(0, Some(0), 0.1), thing(1, Some(1), 0.7)],
                ground: Some(0),
                size: [1.0, 1.0],
            },
            sures: vec![
                sure(0.9, [0.8, 0.0, 0.2], [0.75, 0.25]),
                sure(1.0, [0.0, 1.0, 0.0], [0.5, 0.5]),
            ],
            elsewhere: vec![0.95f64.ln(), 0.0, 0.9f64.ln()],
            nothing_elsewhere: 0.85f64.ln(),
            ground: 0.5,
            centres: Vec::new(),
        }
    }

    #[test]
    fn score_is_of_what_the_answer_depends_on() {
        let (words, looked) = (words(), looked());
        let far = logistic((0.6 - 0.4) / (NEAR_DOUBT * 0.4));
        for (question, expected) in [
            (Question::Describe, 0.9 * 0.8 * 0.75 * 0.85 * 0.5),
            (Question::Count { kind: 0 }, 0.9 * 0.8 * 0.95),
            (Question::Count { kind: 2 }, 0.8 * 0.9),
            (
                Question::Find {
                    kind: 0,
                    colour: Some(0),
                },
                0.9 * 0.8 * 0.75 * 0.5,
            ),
            (
                Question::Find {
                    kind: 0,
                    colour: Some(1),
                },
                (1.0 - 0.8 * 0.25) * 0.95,
            ),
            (Question::Near { kind: 0, other: 1 }, 0.9 * 0.8 * far),
            (Question::Near { kind: 0, other: 2 }, 0.8 * 0.9),
            (Question::Colour { kind: 0 }, 0.9 * 0.8 * 0.75),
            (Question::Colour { kind: 2 }, 0.8 * 0.9),
        ] {
            let found = score(&words, question, &looked).exp();
            assert!(
                (found - expected).abs() < 1e-9,
                "{question:?}: {found} {expected}"
            );
        }
    }

    #[test]
    fn object_that_could_be_one_of_several_is_less_sure() {
        let mut looked = looked();
        let question = Question::Colour { kind: 0 };
        let alone = score(&words(), question, &looked);
        looked.scene.things[1].kind = 0;
        let one_of_two = score(&words(), question, &looked);
        assert!((alone - one_of_two - 2f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn fitted_probabilities_are_those_of_the_samples() {
        // Right with probability logistic(2 x + 3), by a fixed sequence.
        let samples: Vec<(f64, bool)> = (0..4000)
            .map(|i| {
                let x = -4.0 * (f64::from(i) + 0.5) / 4000.0;
                let draw = (f64::from(i) * 0.618_033_988_749_895).fract();
                (x, draw < logistic(2.0 * x + 3.0))
            })
            .collect();
        let fitted = fit_logistic(&samples);
        // Some thousand draws.
        assert!((fitted.slope - 2.0).abs() < 0.3, "{fitted:?}");
        assert!((fitted.offset - 3.0).abs() < 0.4, "{fitted:?}");
    }

    #[test]
    fn few_samples_make_no_certainty_and_none_no_confidence() {
        let all_right = fit_logistic(&[(-0.1, true), (-0.2, true), (-0.1, true)]);
        let p = all_right.at(-0.1);
        assert!((p - 0.8).abs() < 0.05, "{p}");
        // The surer the more often wrong: the score tells nothing.
        let odd = fit_logistic(&[(-0.1, false), (-3.0, true), (-0.2, false), (-4.0, true)]);
        assert_eq!(odd.slope, 0.0);
        assert!((odd.at(-1.0) - 0.5).abs() < 1e-9);
        assert!(fit_logistic(&[]).at(0.0) <= 0.5);
    }
}
