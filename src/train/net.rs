//! The nets of drafts.
//!
//! Norms are RMS norms without gains: what follows each is a matrix, which has them.
//!
//! ```text
//! head:        x = [norm(embedding), norm(hidden)] W_in        one row for each token
//!              a = x + attention(norm(x)) W_o                   no positions: hidden states know theirs
//!              f = a + W_d (silu(norm(a) W_g) * norm(a) W_u)
//!              logits = norm(f) W_out      next hidden state = f W_back
//! early-exit:  x = norm(hidden) W_in, then as from f on, with x for a
//! ```
//!
//! Drafts of the head are made of its own guesses from the second token on, and so is its training:
//! each token of an answer begins a chain of [`CHAIN`] guesses, which sees rows of the target up to there, and its own
//! after it (training-time test of EAGLE-3, arXiv 2503.01840). The loss is the Kullback-Leibler divergence from the target's distribution, up to the
//! target's own entropy.

use std::sync::Arc;

use candle_core::{D, DType, Device, Tensor};

use super::collect::TOP;
use super::failed;
use super::fit::Trainee;
use super::params::Params;
use super::shards::Record;
use crate::cpu::Embedding;
use crate::decode::LEAST_PROBABILITY;
use crate::error::{Error, Result};
use crate::model::DraftKind;

/// Tokens of the drafts that are trained and judged.
pub(super) const CHAIN: usize = 4;

/// How much the loss of a token counts after the one before it.
const FALL: f64 = 0.8;

/// Width of a head of attention.
pub(super) const HEAD_DIM: usize = 32;

/// Added to mean squares.
pub(super) const NORM_EPSILON: f64 = 1e-6;

/// What is below this is no score of attention.
const MASKED: f32 = -1e9;

/// A net, without its weights.
pub(super) struct Net {
    pub kind: DraftKind,
    pub d_model: usize,
    /// Inner width, a multiple of [`HEAD_DIM`].
    pub width: usize,
    /// The token id of each logit, ascending.
    pub vocabulary: Vec<u32>,
    pub eos: Vec<u32>,
    pub embedding: Arc<Embedding>,
}

/// One answer, as the net learns from it.
struct Example {
    /// Embeddings of the tokens that follow each row, normed, `[rows, d]`; none for early-exit.
    embeds: Option<Tensor>,
    /// Tapped rows, normed, `[rows, d]`.
    rows: Tensor,
    /// Row from which the first guess is made.
    first: usize,
    /// Probabilities of the target for each guess, `[guesses, vocabulary]`, times what the guess counts; what is missing
    /// has no logit.
    target: Tensor,
    /// What the target chose.
    chosen: Vec<u32>,
}

/// A guess of a draft.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Guess {
    pub id: u32,
    pub probability: f32,
}

impl Net {
    /// Inner width of the feed-forward part.
    pub(super) fn hidden_width(&self) -> usize {
        2 * self.width
    }

    /// Adds the weights.
    pub(super) fn init(&self, params: &mut Params) -> Result<()> {
        let (d, w, h) = (self.d_model, self.width, self.hidden_width());
        if self.kind == DraftKind::Head {
            params.add_matrix("in", 2 * d, w, 1.0)?;
            for name in ["q", "k", "v"] {
                params.add_matrix(name, w, w, 1.0)?;
            }
            params.add_matrix("o", w, w, 0.5)?;
            params.add_matrix("back", w, d, 1.0)?;
        } else {
            params.add_matrix("in", d, w, 1.0)?;
        }
        params.add_matrix("gate", w, h, 1.0)?;
        params.add_matrix("up", w, h, 1.0)?;
        params.add_matrix("down", h, w, 0.5)?;
        params.add_matrix("out", w, self.vocabulary.len(), 1.0)
    }

    /// What is to be learned from a record; `None` from an answer of one token, after which nothing is
    /// drafted, and from a picture that could not be read.
    fn example(&self, record: &Record) -> Result<Option<Example>> {
        let Some(ids) = record.get("ids") else {
            return Ok(None);
        };
        let part = |name: &str| {
            let found = record.get(name);
            found.ok_or_else(|| Error::Shape {
                name: name.to_owned(),
                expected: "a tensor of each record".to_owned(),
                actual: "none".to_owned(),
            })
        };
        let read = || -> candle_core::Result<(Vec<u32>, u32)> {
            Ok((
                ids.to_vec1()?,
                part("n_prompt").map_err(wrap)?.to_vec1()?[0],
            ))
        };
        let (ids, n_prompt) = read().map_err(failed)?;
        let n_prompt = n_prompt as usize;
        let answer = ids.get(n_prompt..).unwrap_or(&[]);
        let n_guesses = answer.len().saturating_sub(1);
        if n_guesses == 0 {
            return Ok(None);
        }
        let chosen = answer[1..].to_vec();
        let (embeds, n_rows, first) = match self.kind {
            DraftKind::Head => {
                // Row t: hidden state t and token t + 1.
                let n = n_prompt + n_guesses - 1;
                let mut embeds = Vec::new();
                self.embedding.rows(&ids[1..=n], &mut embeds)?;
                (Some(embeds), n, n_prompt - 1)
            }
            DraftKind::EarlyExit => (None, n_guesses, 0),
        };
        let (top_ids, top_p) = (part("top_ids")?, part("top_p")?);
        let rows = part("rows")?;
        let weights = record.get("weights");
        let make = || -> candle_core::Result<Example> {
            let d = self.d_model;
            let embeds = embeds.map(|e| norm(&Tensor::from_vec(e, (n_rows, d), &Device::Cpu)?));
            let rows = rows.narrow(0, 0, n_rows)?.to_dtype(DType::F32)?;
            let (top_ids, top_p) = (top_ids.flatten_all()?, top_p.flatten_all()?);
            let (top_ids, top_p) = (top_ids.to_vec1::<u32>()?, top_p.to_vec1::<f32>()?);
            let weights = weights.map(Tensor::to_vec1::<f32>).transpose()?;
            let n_logits = self.vocabulary.len();
            let mut target = vec![0f32; n_guesses * n_logits];
            // The first token of an answer is not drafted.
            for (row, out) in target.chunks_exact_mut(n_logits).enumerate() {
                let weight = weights.as_ref().map_or(1.0, |weights| weights[row + 1]);
                for at in (row + 1) * TOP..(row + 2) * TOP {
                    if let Ok(logit) = self.vocabulary.binary_search(&top_ids[at]) {
                        out[logit] += weight * top_p[at];
                    }
                }
            }
            Ok(Example {
                embeds: embeds.transpose()?,
                rows: norm(&rows)?,
                first,
                target: Tensor::from_vec(target, (n_guesses, n_logits), &Device::Cpu)?,
                chosen,
            })
        };
        make().map(Some).map_err(failed)
    }

    /// Logits of guesses: entry `s` has a row for each chain that has a token `s`, `[chains - s, vocabulary]`; chain
    /// `i` begins with guess `i`.
    fn forward(&self, params: &Params, example: &Example) -> Result<Vec<Tensor>> {
        let n = example.chosen.len();
        let weight = |name: &str| params.get(name);
        let Some(embeds) = &example.embeds else {
            // The first layers see the guesses themselves: there is no chain.
            let w_in = weight("in")?;
            let x = example.rows.matmul(w_in).map_err(failed)?;
            let f = self.feed_forward(params, &x)?;
            let logits = norm(&f).and_then(|f| f.matmul(weight("out").map_err(wrap)?));
            let logits = logits.map_err(failed)?;
            let steps = (0..CHAIN.min(n)).map(|s| logits.narrow(0, s, n - s));
            return steps.collect::<candle_core::Result<_>>().map_err(failed);
        };
        let [w_in, wq, wk, wv, wo, back, out] =
            ["in", "q", "k", "v", "o", "back", "out"].map(weight);
        let (w_in, wq, wk, wv, wo, back, out) = (w_in?, wq?, wk?, wv?, wo?, back?, out?);
        let first = example.first;
        let mut steps = Vec::new();
        let mut run = || -> candle_core::Result<()> {
            let heads = |x: Tensor| {
                let (rows, width) = x.dims2()?;
                let by_head = x.reshape((rows, width / HEAD_DIM, HEAD_DIM))?;
                by_head.transpose(0, 1)?.contiguous()
            };
            let x = Tensor::cat(&[embeds, &example.rows], 1)?.matmul(w_in)?;
            let y = norm(&x)?;
            let keys = heads(y.matmul(wk)?)?;
            let values = heads(y.matmul(wv)?)?;
            let n_rows = x.dim(0)?;
            let seen = |i: usize, t: usize| if t <= first + i { 0.0 } else { MASKED };
            let mask: Vec<f32> = (0..n)
                .flat_map(|i| (0..n_rows).map(move |t| seen(i, t)))
                .collect();
            let mask = Tensor::from_vec(mask, (1, n, n_rows), &Device::Cpu)?;
            let keys_t = keys.transpose(1, 2)?.contiguous()?;
            let (mut x, mut y) = (x.narrow(0, first, n)?, y.narrow(0, first, n)?);
            // Rows of guesses: one key and value a chain.
            let mut guessed: Vec<(Tensor, Tensor)> = Vec::new();
            for s in 0..CHAIN.min(n) {
                let left = n - s;
                let scale = 1.0 / (HEAD_DIM as f64).sqrt();
                let q = (heads(y.matmul(wq)?)? * scale)?;
                let real = q.matmul(&keys_t)?;
                let mut scores = vec![real.broadcast_add(&mask.narrow(1, 0, left)?)?];
                for (key, _) in &guessed {
                    scores.push((&q * key.narrow(1, 0, left)?)?.sum_keepdim(2)?);
                }
                let p = softmax(&Tensor::cat(&scores, 2)?)?;
                let mut mixed = p.narrow(2, 0, n_rows)?.contiguous()?.matmul(&values)?;
                for (at, (_, value)) in guessed.iter().enumerate() {
                    let share = p.narrow(2, n_rows + at, 1)?;
                    mixed = (mixed + share.broadcast_mul(&value.narrow(1, 0, left)?)?)?;
                }
                let mixed = mixed.transpose(0, 1)?.contiguous()?;
                let mixed = mixed.reshape((left, self.width))?.matmul(wo)?;
                let a = (&x + mixed)?;
                let f = self.feed_forward(params, &a).map_err(wrap)?;
                steps.push(norm(&f)?.matmul(out)?);
                if s + 1 >= CHAIN.min(n) {
                    break;
                }
                let next = norm(&f.narrow(0, 0, left - 1)?.matmul(back)?)?;
                let token = embeds.narrow(0, first + s + 1, left - 1)?;
                x = Tensor::cat(&[&token, &next], 1)?.matmul(w_in)?;
                y = norm(&x)?;
                guessed.push((heads(y.matmul(wk)?)?, heads(y.matmul(wv)?)?));
            }
            Ok(())
        };
        run().map_err(failed)?;
        Ok(steps)
    }

    fn feed_forward(&self, params: &Params, a: &Tensor) -> Result<Tensor> {
        let (gate, up, down) = (params.get("gate")?, params.get("up")?, params.get("down")?);
        let run = || -> candle_core::Result<Tensor> {
            let z = norm(a)?;
            let inner = (z.matmul(gate)?.silu()? * z.matmul(up)?)?;
            a + inner.matmul(down)?
        };
        run().map_err(failed)
    }

    /// The guesses of each chain: `[step][chain]`.
    fn guesses(&self, params: &Params, example: &Example) -> Result<Vec<Vec<Guess>>> {
        let steps = self.forward(params, example)?;
        let best = |logits: &Tensor| -> candle_core::Result<Vec<Guess>> {
            let p = softmax(logits)?.to_vec2::<f32>()?;
            Ok(p.iter()
                .map(|row| {
                    let best = row.iter().copied().enumerate();
                    let best = best.fold((0, f32::MIN), |a, b| if b.1 > a.1 { b } else { a });
                    Guess {
                        id: self.vocabulary[best.0],
                        probability: best.1,
                    }
                })
                .collect())
        };
        steps
            .iter()
            .map(|logits| best(logits).map_err(failed))
            .collect()
    }
}

impl Trainee for Net {
    fn loss(&self, params: &Params, record: &Record) -> Result<Option<Tensor>> {
        let Some(example) = self.example(record)? else {
            return Ok(None);
        };
        // Chains of the early exit are made of the same guesses.
        let n_steps = if example.embeds.is_some() { CHAIN } else { 1 };
        let steps = self.forward(params, &example)?;
        let sum = || -> candle_core::Result<Tensor> {
            let (mut sum, mut weights, mut weight) = (None, 0.0, 1.0);
            for (s, logits) in steps.iter().take(n_steps).enumerate() {
                let n = logits.dim(0)?;
                let most = logits.max_keepdim(D::Minus1)?.detach();
                let shifted = logits.broadcast_sub(&most)?;
                let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
                let target = example.target.narrow(0, s, n)?;
                let loss = (shifted.broadcast_sub(&log_sum)? * target)?.sum_all()?;
                let loss = (loss * (-weight / n as f64))?;
                weights += weight;
                weight *= FALL;
                sum = Some(match sum {
                    None => loss,
                    Some(sum) => (sum + loss)?,
                });
            }
            let sum = sum.ok_or_else(|| candle_core::Error::Msg("no guess".to_owned()))?;
            sum / weights
        };
        sum().map(Some).map_err(failed)
    }

    fn judge(&self, params: &Params, record: &Record) -> Result<Vec<f64>> {
        let Some(example) = self.example(record)? else {
            return Ok(Vec::new());
        };
        let guesses = self.guesses(params, &example)?;
        Ok(play(&guesses, &example.chosen, &self.eos))
    }

    fn score(&self, sums: &[f64]) -> f64 {
        // Tokens for each pass.
        ratio(sums, 2, 3)
    }
}

/// A quotient of two sums of [`play`].
pub(super) fn ratio(sums: &[f64], a: usize, b: usize) -> f64 {
    let at = |i: usize| sums.get(i).copied().unwrap_or(0.0);
    if at(b) > 0.0 { at(a) / at(b) } else { 0.0 }
}

/// Plays an answer with drafts: tokens proposed, tokens accepted, tokens of all passes, passes. Guesses after a wrong one
/// are not known, since they follow another token; those that follow the right one stand for them.
fn play(guesses: &[Vec<Guess>], chosen: &[u32], eos: &[u32]) -> Vec<f64> {
    let (mut proposed, mut accepted, mut n_passes) = (0, 0, 0);
    let mut at = 0;
    while at < chosen.len() {
        n_passes += 1;
        let (mut right, mut all_right) = (0, true);
        for (s, step) in guesses.iter().enumerate() {
            let Some(guess) = step.get(at).filter(|g| g.probability >= LEAST_PROBABILITY) else {
                break;
            };
            proposed += 1;
            all_right &= guess.id == chosen[at + s];
            right += usize::from(all_right);
            if eos.contains(&guess.id) {
                break;
            }
        }
        accepted += right;
        at += right + 1;
    }
    [proposed, accepted, chosen.len(), n_passes]
        .map(|n| n as f64)
        .to_vec()
}

fn norm(x: &Tensor) -> candle_core::Result<Tensor> {
    let mean = (x.sqr()?.mean_keepdim(D::Minus1)? + NORM_EPSILON)?;
    x.broadcast_div(&mean.sqrt()?)
}

fn softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    let most = x.max_keepdim(D::Minus1)?.detach();
    let e = x.broadcast_sub(&most)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

/// The factor that makes of a tensor numbers of unit scale.
pub(super) fn unit_scale(tensor: &Tensor) -> Result<f64> {
    let mean = tensor
        .to_dtype(DType::F32)
        .and_then(|t| t.sqr()?.mean_all());
    let mean = mean
        .and_then(|mean| mean.to_scalar::<f32>())
        .map_err(failed)?;
    Ok(1.0 / f64::from(mean).sqrt().max(1e-6))
}

/// Mean negative logarithm of the probabilities of targets: logits `[n, c]`, targets `[n]` u32.
pub(super) fn cross_entropy(logits: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
    let most = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&most)?;
    let sums = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let logs = shifted.broadcast_sub(&sums)?;
    logs.gather(&targets.unsqueeze(1)?, 1)?.mean_all()?.neg()
}

/// One of our errors on its way through the library's.
pub(super) fn wrap(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn play_counts_what_a_draft_would_have_done() {
        let guess = |id| Guess {
            id,
            probability: 0.9,
        };
        // Chain 0 guesses 1 2, chain 1 guesses 2 9, chain 2 guesses 0 (the end).
        let guesses = [vec![guess(1), guess(2), guess(0)], vec![guess(2), guess(9)]];
        assert_eq!(play(&guesses, &[1, 2, 0], &[0]), [2.0, 2.0, 3.0, 1.0]);
        // A wrong first token: one pass for it, then chain 1.
        assert_eq!(play(&guesses, &[7, 2, 0], &[0]), [4.0, 1.0, 3.0, 2.0]);
        let unsure = Guess {
            id: 1,
            probability: 0.1,
        };
        assert_eq!(
            play(&[vec![unsure; 2]], &[1, 1], &[0]),
            [0.0, 0.0, 2.0, 2.0]
        );
    }
}
