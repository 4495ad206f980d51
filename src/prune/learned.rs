//! `learned`: what a small net says the answer will need.

use std::sync::Arc;

use rten_simd::{Isa, SimdOp};
use serde::{Deserialize, Serialize};

use super::features::Features;
use super::grid::evenly;
use super::layer::{Layer, relu};
use super::place::Place;
use super::policy::{Inputs, Kept, Needs, Policy};
use crate::error::{Error, Result};
use crate::model::TrainedFile;

/// Columns of a projection that are made at once.
const COLUMNS: usize = 16;

/// Rows of a projection that are made at once.
const ROWS: usize = 4;

/// The score of a row that is taken: below all others.
const TAKEN: f32 = -1.0;

/// Keeps the rows to which a net that was trained for the model gives the greatest importance for the
/// question, one after the other: each that stays leaves its neighbours in the picture a part of theirs, because
/// they see much of the same. A share of them are anchors, evenly over the picture.
///
/// | tensor | shape | what |
/// |--------|-------|------|
/// | `visual`        | `[d, p]`  | projects a visual row: `z` |
/// | `question`      | `[d, h]`  | first layer for the question's mean embedding, behind it `question.bias` `[h]` and ReLU |
/// | `condition`     | `[h, p]`  | second layer, behind it `condition.bias` `[p]`: `c` |
/// | `mlp`           | `[3p, m]` | of `[z, c, z * c]`, behind it `mlp.bias` `[m]` and ReLU |
/// | `score`         | `[m, 1]`  | behind it `score.bias` `[1]` and the logistic function: importance, from 0 to 1 |
///
/// `p` and `m` are multiples of 16. The question's part of the net is run once a frame, and what it makes of the first
/// layer of the MLP is one matrix `[p, m]`, so that a row costs `d * p + p * m` multiplications. The file's settings are
/// a [`LearnedSettings`].
#[derive(Debug, Clone)]
pub struct Learned {
    net: Arc<Net>,
}

/// What a pruner's file says beside its tensors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearnedSettings {
    /// What a row that stays leaves each of its eight neighbours of their importance, from 0 to 1.
    pub neighbours: f64,
    /// Share of those that stay which lie evenly over the picture, whatever their importance, from 0 to 1: they tell
    /// where the others are.
    pub anchors: f64,
}

#[derive(Debug)]
struct Net {
    settings: LearnedSettings,
    d: usize,
    p: usize,
    m: usize,
    visual: Vec<f32>,
    question: Layer,
    condition: Layer,
    mlp: Layer,
    score: Layer,
}

impl Learned {
    /// Reads the net of a pruner's file.
    ///
    /// # Errors
    /// [`Error::Malformed`] naming file and tensor.
    pub fn new(mut file: TrainedFile) -> Result<Self> {
        let d = file.spec().d_model;
        let settings = file.spec().settings.clone();
        let settings: LearnedSettings = serde_json::from_value(settings)
            .map_err(|e| Error::malformed(file.path(), format!("its settings: {e}")))?;
        for (name, share) in [
            ("neighbours", settings.neighbours),
            ("anchors", settings.anchors),
        ] {
            if !(0.0..=1.0).contains(&share) {
                let reason = format!("its {name} are {share}, from 0 to 1");
                return Err(Error::malformed(file.path(), reason));
            }
        }
        let visual = file.take("visual", &[Some(d), None])?;
        let p = visual.shape[1];
        let question = Layer::take(&mut file, "question", d, None)?;
        let condition = Layer::take(&mut file, "condition", question.n(), Some(p))?;
        let mlp = Layer::take(&mut file, "mlp", 3 * p, None)?;
        let m = mlp.n();
        let score = Layer::take(&mut file, "score", m, Some(1))?;
        if !p.is_multiple_of(COLUMNS) || !m.is_multiple_of(COLUMNS) {
            let reason = format!("its widths are {p} and {m}, expected multiples of {COLUMNS}");
            return Err(Error::malformed(file.path(), reason));
        }
        let net = Net {
            settings,
            d,
            p,
            m,
            visual: visual.data,
            question,
            condition,
            mlp,
            score,
        };
        Ok(Self { net: Arc::new(net) })
    }

    /// Importance of each row for a question, from 0 to 1: `[n, d]`, `[d]` -> `[n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if a width is another one than the net's, or a row has something that is no number.
    pub fn importance(&self, features: &Features<'_>, question: &[f32]) -> Result<Vec<f32>> {
        let net = &self.net;
        for (name, d) in [
            ("image_features", features.d()),
            ("question", question.len()),
        ] {
            if d != net.d {
                return Err(Error::Shape {
                    name: name.to_owned(),
                    expected: format!("{} wide, as the pruner was trained", net.d),
                    actual: format!("{d} wide"),
                });
            }
        }
        let (matrix, bias) = net.conditioned(question);
        let n = features.n();
        let mut projected = vec![0f32; n * net.p];
        project(features.data(), net.d, &net.visual, net.p, &mut projected);
        // ReLU would hide them.
        let sums = projected.chunks_exact(net.p).map(|row| row.iter().sum());
        features.check_sums(&sums.collect::<Vec<f32>>())?;
        let mut hidden = vec![0f32; n * net.m];
        project(&projected, net.p, &matrix, net.m, &mut hidden);
        let score = |row: &[f32]| {
            let terms = row.iter().zip(&bias).zip(&net.score.matrix);
            let sum: f32 = terms.map(|((x, b), w)| (x + b).max(0.0) * w).sum();
            logistic(sum + net.score.bias[0])
        };
        Ok(hidden.chunks_exact(net.m).map(score).collect())
    }
}

impl Net {
    /// The first layer of the MLP for one question, `[p, m]` and `[m]`.
    fn conditioned(&self, question: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let mut hidden = self.question.apply(question);
        relu(&mut hidden);
        let condition = self.condition.apply(&hidden);
        let part = self.p * self.m;
        let [of_row, of_question, of_both] =
            [0, 1, 2].map(|i| &self.mlp.matrix[i * part..][..part]);
        let mut matrix = of_row.to_vec();
        let mut bias = self.mlp.bias.clone();
        for (i, &c) in condition.iter().enumerate() {
            let row = i * self.m..(i + 1) * self.m;
            for (w, both) in matrix[row.clone()].iter_mut().zip(&of_both[row.clone()]) {
                *w += c * both;
            }
            for (b, own) in bias.iter_mut().zip(&of_question[row]) {
                *b += c * own;
            }
        }
        (matrix, bias)
    }
}

impl Policy for Learned {
    fn name(&self) -> &'static str {
        "learned"
    }

    fn needs(&self) -> Needs {
        Needs {
            features: true,
            question: true,
            saliency: false,
        }
    }

    fn select(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept> {
        let question = inputs.question.unwrap_or_default();
        let scores = self.importance(&inputs.features, question)?;
        Ok(Kept {
            indices: spread(&scores, inputs.places, self.net.settings, keep),
            scores,
            merge: None,
        })
    }
}

/// The `keep` rows that stay, ascending: those with the greatest scores, where each that is taken leaves its
/// neighbours a part of theirs, and a share of anchors; of equal scores the lower index. Scores are not negative.
fn spread(scores: &[f32], places: &[Place], settings: LearnedSettings, keep: usize) -> Vec<usize> {
    let mut left = scores.to_vec();
    let mut kept = Vec::with_capacity(keep);
    let part = settings.neighbours as f32;
    let n_anchors = (keep as f64 * settings.anchors) as usize;
    while kept.len() < keep - n_anchors {
        take_best(&mut left, places, part, &mut kept);
    }
    for anchor in evenly(places, n_anchors) {
        if left[anchor] != TAKEN {
            left[anchor] = TAKEN;
            kept.push(anchor);
        }
    }
    // Anchors that had been taken already.
    while kept.len() < keep {
        take_best(&mut left, places, part, &mut kept);
    }
    kept.sort_unstable();
    kept
}

/// Takes the row with the most score left.
fn take_best(left: &mut [f32], places: &[Place], part: f32, kept: &mut Vec<usize>) {
    let better = |best: usize, row: usize| if left[row] > left[best] { row } else { best };
    let best = (0..left.len()).fold(0, better);
    let at = places[best];
    for (row, column) in around(at) {
        let place = Place { row, column, ..at };
        if let Ok(neighbour) = places.binary_search(&place)
            && left[neighbour] != TAKEN
        {
            left[neighbour] *= part;
        }
    }
    left[best] = TAKEN;
    kept.push(best);
}

/// Rows and columns of the places around one, itself included.
fn around(place: Place) -> impl Iterator<Item = (usize, usize)> {
    let near = |n: usize| n.saturating_sub(1)..=n + 1;
    near(place.row).flat_map(move |row| near(place.column).map(move |column| (row, column)))
}

fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `[n, d] x [d, p]` into `[n, p]`; `p` is a multiple of [`COLUMNS`].
fn project(rows: &[f32], d: usize, matrix: &[f32], p: usize, out: &mut [f32]) {
    Project {
        rows,
        d,
        matrix,
        p,
        out,
    }
    .dispatch();
}

struct Project<'a> {
    rows: &'a [f32],
    d: usize,
    matrix: &'a [f32],
    p: usize,
    out: &'a mut [f32],
}

impl SimdOp for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn eval<I: Isa>(self, _isa: I) {
        let Self {
            rows,
            d,
            matrix,
            p,
            out,
        } = self;
        for (rows, out) in rows.chunks(ROWS * d).zip(out.chunks_mut(ROWS * p)) {
            for column in (0..p).step_by(COLUMNS) {
                match rows.len() == ROWS * d {
                    true => block::<ROWS>(rows, d, matrix, p, column, out),
                    false => {
                        for (row, out) in rows.chunks_exact(d).zip(out.chunks_exact_mut(p)) {
                            block::<1>(row, d, matrix, p, column, out);
                        }
                    }
                }
            }
        }
    }
}

/// [`COLUMNS`] columns of `N` rows.
#[inline(always)]
fn block<const N: usize>(
    rows: &[f32],
    d: usize,
    matrix: &[f32],
    p: usize,
    column: usize,
    out: &mut [f32],
) {
    let rows: [&[f32]; N] = std::array::from_fn(|r| &rows[r * d..][..d]);
    let mut sums = [[0f32; COLUMNS]; N];
    for (i, weights) in matrix.chunks_exact(p).enumerate() {
        let weights = &weights[column..][..COLUMNS];
        for (sums, row) in sums.iter_mut().zip(rows) {
            let x = row[i];
            for (sum, w) in sums.iter_mut().zip(weights) {
                *sum += x * w;
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        out[r * p + column..][..COLUMNS].copy_from_slice(sums);
    }
}

#[cfg(test)]
impl Learned {
    /// A net of weights that nobody trained.
    pub(super) fn drawn(d: usize, neighbours: f64) -> Self {
        let (p, h, m) = (16, 3, 32);
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            let number = |i: usize| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5;
            (0..n).map(number).collect()
        };
        let layer = |inputs: usize, outputs: usize| Layer {
            matrix: numbers(inputs * outputs, inputs),
            bias: numbers(outputs, outputs),
        };
        let net = Net {
            settings: LearnedSettings {
                neighbours,
                anchors: 0.25,
            },
            d,
            p,
            m,
            visual: numbers(d * p, 1),
            question: layer(d, h),
            condition: layer(h, p),
            mlp: layer(3 * p, m),
            score: layer(m, 1),
        };
        Self { net: Arc::new(net) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{grid_places, numbers};
    use super::*;

    /// The net as its description says, one number after the other.
    fn reference(net: &Net, row: &[f32], question: &[f32]) -> f64 {
        let product = |x: &[f64], matrix: &[f32], bias: &[f32], n: usize| -> Vec<f64> {
            let column = |j: usize| {
                let terms = x.iter().enumerate();
                let sum: f64 = terms.map(|(i, x)| x * f64::from(matrix[i * n + j])).sum();
                sum + bias.get(j).copied().map_or(0.0, f64::from)
            };
            (0..n).map(column).collect()
        };
        let relu = |x: Vec<f64>| -> Vec<f64> { x.into_iter().map(|x| x.max(0.0)).collect() };
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().copied().map(f64::from).collect() };
        let z = product(&wide(row), &net.visual, &[], net.p);
        let of =
            |layer: &Layer, x: &[f64]| product(x, &layer.matrix, &layer.bias, layer.bias.len());
        let c = of(&net.condition, &relu(of(&net.question, &wide(question))));
        let both: Vec<f64> = z.iter().zip(&c).map(|(z, c)| z * c).collect();
        let all = [z, c, both].concat();
        let score = of(&net.score, &relu(of(&net.mlp, &all)))[0];
        1.0 / (1.0 + (-score).exp())
    }

    #[test]
    fn importance_is_that_of_the_net_as_it_is_described() {
        for (n, d) in [(1, 1), (3, 5), (4, 16), (9, 33), (66, 20)] {
            let learned = Learned::drawn(d, 1.0);
            let (rows, question) = (numbers(1, n * d), numbers(2, d));
            let features = Features::new(&rows, d).expect("rows");
            let scores = learned.importance(&features, &question).expect("scores");
            for (row, &score) in scores.iter().enumerate() {
                let expected = reference(&learned.net, features.row(row), &question);
                // Sums of few small numbers, in single precision here and in double there.
                assert!(
                    (f64::from(score) - expected).abs() < 1e-5,
                    "{n} x {d}: {score} {expected}"
                );
            }
        }
    }

    #[test]
    fn question_decides_what_is_important() {
        let learned = Learned::drawn(8, 1.0);
        let rows = numbers(1, 40 * 8);
        let features = Features::new(&rows, 8).expect("rows");
        let scores = |question: &[f32]| learned.importance(&features, question).expect("scores");
        assert_ne!(scores(&numbers(2, 8)), scores(&numbers(3, 8)));
        for width in [7, 9] {
            let error = learned
                .importance(&features, &numbers(1, width))
                .expect_err("refused");
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        }
    }

    #[test]
    fn neighbours_of_what_stays_have_a_part_of_their_importance_left() {
        // The greatest in the middle of nine, its neighbours little less, one far away half as much.
        let places = grid_places(1, 4, 4);
        let mut scores = vec![0.1; 16];
        for at in [0, 1, 2, 4, 6, 8, 9, 10] {
            scores[at] = 0.8;
        }
        (scores[5], scores[15]) = (0.9, 0.5);
        let spread = |scores: &[f32], places: &[Place], neighbours, anchors, keep| {
            let settings = LearnedSettings {
                neighbours,
                anchors,
            };
            spread(scores, places, settings, keep)
        };
        assert_eq!(spread(&scores, &places, 1.0, 0.0, 3), [0, 1, 5]);
        assert_eq!(spread(&scores, &places, 0.5, 0.0, 2), [5, 15]);
        // Nothing left, and no places: still as many as are asked for, each once.
        let all: Vec<usize> = (0..16).collect();
        assert_eq!(spread(&scores, &places, 0.0, 0.0, 16), all);
        assert_eq!(spread(&scores, &places, 0.0, 1.0, 16), all);
        // Four of eight are those of the grid, whatever their importance.
        let kept = spread(&scores, &places, 1.0, 0.5, 8);
        assert!(
            evenly(&places, 4)
                .iter()
                .all(|anchor| kept.contains(anchor))
        );
        assert!(kept.len() == 8 && kept.contains(&5));
        // Another picture is no neighbour.
        let places = grid_places(2, 1, 2);
        assert_eq!(spread(&[0.1, 0.9, 0.8, 0.2], &places, 0.0, 0.0, 2), [1, 2]);
    }
}
