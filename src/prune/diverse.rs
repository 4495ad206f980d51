//! `diverse`: what concerns the question, nothing twice.

use super::features::{Features, cosine, dot};
use super::policy::{Inputs, Kept, Needs, Policy};
use super::top::top_k;
use crate::error::Result;

/// Keeps rows by a determinantal point process whose kernel is their cosine, scaled on both sides
/// by how much each concerns the question: `L[i, j] = r[i] * cos(x[i], x[j]) * r[j]`.
///
/// `r` is the cosine with the question's embedding, from 0 to 1 over the rows of the frame. The most likely set is approached greedily (Chen
/// et al., "Fast Greedy MAP Inference for Determinantal Point Process", arXiv 1709.05135), in
/// `k * n * d + k * k * n / 2` multiplications: the rows are read once for each that stays.
///
/// Source: CDPruner (arXiv 2506.10967), `fast_dpp_conditional` of its LLaVA model, but without a
/// text tower: the question is what the language model reads. Without a question in `L` it would be
/// DivPrune's aim (arXiv 2503.02175), with another measure of diversity.
#[derive(Debug, Clone, Copy, Default)]
pub struct Diverse;

/// Added to relevance, as CDPruner does, so that the least relevant row has some.
const LEAST: f32 = 1e-6;

/// What is left of a row that others span already, rounding errors included.
const SPANNED: f32 = 1e-6;

impl Policy for Diverse {
    fn name(&self) -> &'static str {
        "diverse"
    }

    fn needs(&self) -> Needs {
        Needs {
            features: true,
            question: true,
            saliency: false,
        }
    }

    fn select(&self, inputs: &Inputs<'_>, keep: usize) -> Result<Kept> {
        let features = &inputs.features;
        let norms = features.norms()?;
        let question = inputs.question.unwrap_or_default();
        let scores = relevance(features, &norms, question);
        let mut chosen = greedy(features, &norms, &scores, keep);
        if chosen.len() < keep {
            // The rest adds nothing new: what concerns the question most.
            let mut left = scores.clone();
            for &row in &chosen {
                left[row] = f32::NEG_INFINITY;
            }
            chosen.extend(top_k(&left, keep - chosen.len()));
        }
        chosen.sort_unstable();
        Ok(Kept {
            indices: chosen,
            scores,
            merge: None,
        })
    }
}

/// Cosine of each row with the question, from 0 to 1 over all rows; 1 where all are the same.
fn relevance(features: &Features<'_>, norms: &[f32], question: &[f32]) -> Vec<f32> {
    let norm = dot(question, question).sqrt();
    let cosines = features.cosines(norms, question, norm);
    let (low, high) = cosines
        .iter()
        .fold((f32::MAX, f32::MIN), |(low, high), &x| {
            (low.min(x), high.max(x))
        });
    let range = high - low;
    let scaled = |&x: &f32| match range > LEAST {
        true => (x - low + LEAST) / range,
        false => 1.0,
    };
    cosines.iter().map(scaled).collect()
}

/// Rows in the order in which each makes the determinant largest; ends where none adds to it.
fn greedy(features: &Features<'_>, norms: &[f32], scores: &[f32], keep: usize) -> Vec<usize> {
    let n = features.n();
    // What a row adds: its own kernel less what the chosen ones span of it.
    let adds = |&row: &usize| match norms[row] {
        0.0 => 0.0,
        _ => scores[row] * scores[row],
    };
    let full: Vec<f32> = (0..n).map(|row| adds(&row)).collect();
    let mut adds = full.clone();
    let mut factors: Vec<f32> = Vec::with_capacity(keep * n);
    let mut chosen = Vec::with_capacity(keep);
    while chosen.len() < keep {
        let better = |best: usize, row: usize| match adds[row] > adds[best] {
            true => row,
            false => best,
        };
        let best = (0..n).fold(0, better);
        if adds[best] <= SPANNED * full[best] {
            break;
        }
        let root = adds[best].sqrt();
        let (row, norm) = (features.row(best), norms[best]);
        let mut factor: Vec<f32> = (0..n)
            .map(|other| {
                let cosine = cosine(dot(row, features.row(other)), norm, norms[other]);
                scores[best] * cosine * scores[other]
            })
            .collect();
        for before in factors.chunks_exact(n) {
            let share = before[best];
            for (x, y) in factor.iter_mut().zip(before) {
                *x -= share * y;
            }
        }
        for (x, left) in factor.iter_mut().zip(&mut adds) {
            *x /= root;
            *left -= *x * *x;
        }
        adds[best] = f32::NEG_INFINITY;
        for (left, full) in adds.iter_mut().zip(&full) {
            // Spanned already: rounding errors must not choose it.
            if *left <= SPANNED * full {
                *left = f32::NEG_INFINITY;
            }
        }
        factors.extend_from_slice(&factor);
        chosen.push(best);
    }
    chosen
}
