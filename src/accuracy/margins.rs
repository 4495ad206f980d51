//! How close a model's answers are to other ones, and how far a quantized model moves them.
//!
//! Few answers say little by whether they differ: of 16 that all agree, one in five of the next
//! may not. The logits of their tokens say more. The best token leads the second by a margin, and
//! quantization shifts the difference of these two; where it shifts it by more, and towards the
//! second, the answer is another one. Margins and shifts are measured at every token, and as one
//! has little to do with the other, every shift stands for what could happen to every margin:
//!
//! `p = ½ · mean over shifts d, margins m of [|d| > m]`, a token that is another one;
//! `1 - (1 - p)^t`, an answer of `t` tokens that is another one.
//!
//! Margins near zero decide, and are few. So the smallest of them, as many as half the answers, are
//! taken to be spread evenly from zero up to the largest of these.

use std::sync::{Arc, Mutex};

use crate::backend::{Backend, CpuBackend, Logits, Prefill};
use crate::error::Result;
use crate::preprocess::PixelValues;
use crate::sync::lock;

/// Fewest of the smallest margins that are taken to be spread evenly.
const FEWEST_SMALL: usize = 4;

/// A token of an answer: the two best, and how far apart they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Place {
    best: u32,
    second: u32,
    margin: f32,
    /// The logit of the best.
    logit: f32,
}

/// What was heard of some answers, token by token.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Heard {
    /// Every token of every answer.
    pub places: Vec<Vec<Place>>,
    /// By how much the margins of the answers that were listened to before have changed, as far as
    /// the tokens are the same.
    pub shifts: Vec<f32>,
}

/// A backend whose logits are listened to while it answers.
pub struct Listener {
    inner: CpuBackend,
    heard: Arc<Mutex<Heard>>,
    reference: Arc<Heard>,
    /// Whether the answer is still the reference's.
    follows: bool,
}

impl Listener {
    /// Listens to `inner`, which is asked what the reference was asked, in the same order; the
    /// reference of a reference is empty.
    pub fn new(inner: CpuBackend, reference: Arc<Heard>, heard: Arc<Mutex<Heard>>) -> Self {
        Self {
            inner,
            heard,
            reference,
            follows: false,
        }
    }

    fn listen(&mut self, logits: &Logits) {
        let mut heard = lock(&self.heard);
        for row in 0..logits.n_rows() {
            let row = logits.row(row);
            let Some(place) = Place::of(row) else {
                continue;
            };
            let index = heard.places.len().saturating_sub(1);
            let Some(answer) = heard.places.last_mut() else {
                continue;
            };
            let theirs = self.reference.places.get(index);
            let theirs = theirs.and_then(|theirs| theirs.get(answer.len()));
            answer.push(place);
            if let Some(theirs) = theirs.filter(|_| self.follows) {
                heard.shifts.push(theirs.shift(row));
                self.follows = theirs.best == place.best;
            }
        }
    }
}

impl Place {
    /// Of the logits of one token; `None` of fewer than two.
    fn of(logits: &[f32]) -> Option<Self> {
        // Of equals the first is the best, as it is for who decodes.
        let better = |a: usize, b: usize| logits[a] > logits[b];
        let (mut best, mut second) = (0, 1);
        if logits.len() < 2 {
            return None;
        }
        if better(second, best) {
            (best, second) = (second, best);
        }
        for i in 2..logits.len() {
            if better(i, best) {
                (best, second) = (i, best);
            } else if better(i, second) {
                second = i;
            }
        }
        Some(Self {
            best: best as u32,
            second: second as u32,
            margin: logits[best] - logits[second],
            logit: logits[best],
        })
    }

    /// True if FP16, which tells numbers apart to one part in 1024, hardly tells which is the best.
    fn is_tie(&self) -> bool {
        self.margin < self.logit.abs() / 1024.0
    }

    /// How much larger the margin is by other logits.
    fn shift(&self, logits: &[f32]) -> f32 {
        let at = |id: u32| logits.get(id as usize).copied().unwrap_or(f32::NAN);
        at(self.best) - at(self.second) - self.margin
    }
}

impl Heard {
    /// True if token `token` of answer `answer` might as well have been another one.
    pub fn is_tie(&self, answer: usize, token: usize) -> bool {
        let place = self.places.get(answer).and_then(|places| places.get(token));
        place.is_some_and(Place::is_tie)
    }

    /// The share of answers to expect that would be other ones if margins were shifted as
    /// `shifts` says; 0 if nothing was heard. Shifts that are no numbers are larger than any margin.
    pub fn expected(&self, shifts: &[f32]) -> f64 {
        let mut margins: Vec<f32> = self.places.iter().flatten().map(|p| p.margin).collect();
        margins.sort_unstable_by(f32::total_cmp);
        let n_small = (self.places.len() / 2).max(FEWEST_SMALL);
        let (small, rest) = margins.split_at(n_small.min(margins.len()));
        let Some(&widest) = small.last().filter(|_| !shifts.is_empty()) else {
            return 0.0;
        };
        let beyond = |shift: &f32| {
            if !shift.is_finite() {
                return margins.len() as f64;
            }
            let shift = shift.abs();
            let of_small = match shift < widest {
                true => f64::from(shift / widest),
                false => 1.0,
            };
            small.len() as f64 * of_small + rest.partition_point(|&m| m < shift) as f64
        };
        let pairs = (shifts.len() * margins.len()) as f64;
        let token = 0.5 * shifts.iter().map(beyond).sum::<f64>() / pairs;
        let n_tokens = margins.len() as f64 / self.places.len() as f64;
        1.0 - (1.0 - token).powf(n_tokens)
    }
}

impl Backend for Listener {
    fn encode(&mut self, image: &PixelValues) -> Result<usize> {
        self.inner.encode(image)
    }

    fn takes_positions(&self) -> bool {
        self.inner.takes_positions()
    }

    fn rows_are_independent(&self) -> bool {
        self.inner.rows_are_independent()
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        let logits = self.inner.prefill(prompt)?;
        lock(&self.heard).places.push(Vec::new());
        self.follows = true;
        self.listen(&logits);
        Ok(logits)
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        let logits = self.inner.step(ids, position)?;
        self.listen(&logits);
        Ok(logits)
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        self.inner.rollback(n_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(answers: &[&[f32]]) -> Heard {
        let place = |&margin: &f32| Place {
            best: 0,
            second: 1,
            margin,
            logit: 16.0,
        };
        Heard {
            places: answers
                .iter()
                .map(|a| a.iter().map(place).collect())
                .collect(),
            shifts: Vec::new(),
        }
    }

    #[test]
    fn place_has_the_two_best_and_shifts_by_the_difference_of_their_changes() {
        for (logits, best, second, margin) in [
            (&[1.0, 4.0, 2.5, 3.0][..], 1, 3, 1.0),
            (&[2.0, 2.0, 1.0], 0, 1, 0.0),
            (&[0.0, 1.0, 1.0], 1, 2, 0.0),
            (&[5.0, 1.0], 0, 1, 4.0),
        ] {
            let place = Place::of(logits).expect("two");
            assert_eq!(
                (place.best, place.second, place.margin),
                (best, second, margin)
            );
            assert_eq!(place.shift(logits), 0.0);
        }
        let place = Place::of(&[1.0, 4.0, 2.5, 3.0]).expect("two");
        assert_eq!(place.shift(&[9.0, 3.0, 0.0, 3.5]), -1.5);
        assert!(place.shift(&[1.0]).is_nan());
        assert_eq!(Place::of(&[1.0]), None);
    }

    #[test]
    fn ties_are_closer_than_fp16_tells_apart_at_the_size_of_the_logit() {
        let heard = heard(&[&[1.0, 0.0155, 0.0157], &[0.0]]);
        let ties = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0)];
        let found = ties.map(|(answer, token)| heard.is_tie(answer, token));
        assert_eq!(found, [false, true, false, false, true, false]);
    }

    #[test]
    fn expected_share_is_that_of_its_formula() {
        // Eight margins, of which four are spread evenly up to 1: a shift of 0.5 is beyond half
        // of them, one of 2.5 beyond all of them and one more.
        let of_four = heard(&[&[0.1, 3.0], &[0.4, 4.0], &[1.0, 5.0], &[0.2, 2.0]]);
        let token = |beyond: f64| 0.5 * beyond / 8.0;
        let answer = |p: f64| 1.0 - (1.0 - p) * (1.0 - p);
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-7, "{a} {b}");
        close(of_four.expected(&[0.5]), answer(token(2.0)));
        close(of_four.expected(&[-2.5]), answer(token(5.0)));
        close(of_four.expected(&[0.5, 2.5]), answer(token(3.5)));
        close(of_four.expected(&[f32::NAN]), answer(0.5));
        close(of_four.expected(&[0.0; 9]), 0.0);
        close(of_four.expected(&[]), 0.0);
        close(Heard::default().expected(&[1.0]), 0.0);
    }

    /// Shifts and margins that are drawn apart, compared with what then happens.
    #[test]
    fn expected_share_is_near_what_happens() {
        let mut state = 7u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        let (n_answers, n_tokens) = (4000, 4);
        let mut answers = Vec::new();
        let (mut shifts, mut changed) = (Vec::new(), 0);
        for _ in 0..n_answers {
            let margins: Vec<f32> = (0..n_tokens).map(|_| 10.0 * draw()).collect();
            let noise: Vec<f32> = margins
                .iter()
                .map(|_| draw() + draw() + draw() + draw() - 2.0)
                .collect();
            changed += usize::from(margins.iter().zip(&noise).any(|(m, d)| m + d < 0.0));
            shifts.extend(noise);
            answers.push(margins);
        }
        let happens = changed as f64 / n_answers as f64;
        let all: Vec<&[f32]> = answers.iter().map(Vec::as_slice).collect();
        let expected = heard(&all).expected(&shifts);
        assert!(
            (expected / happens - 1.0).abs() < 0.1,
            "{expected} {happens}"
        );
        // Of the first 64 alone, of which too few change to count.
        let few = heard(&all[..64]).expected(&shifts[..64 * n_tokens]);
        assert!((few / happens - 1.0).abs() < 0.5, "{few} {happens}");
    }
}
