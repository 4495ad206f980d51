//! Drawn answers are distributed alike with drafts and without: chi-square tests against
//! probabilities that are computed here, by the definitions.

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::scripted::{Guess, Script, ScriptedModel};
use super::suffixes::mix;
use super::*;
use crate::backend::Prefill;
use crate::error::Result;

/// Answers of one test, and their length.
const N_ANSWERS: usize = 20_000;
const N_TOKENS: usize = 3;

const SCRIPT: Script = Script {
    seed: 3,
    n_vocab: 5,
    order: 100,
    n_levels: 12,
};

const PROMPT: &[u32] = &[4, 2];

/// Draws from a distribution of its own.
struct Dice {
    script: Script,
    ids: Vec<u32>,
    random: u64,
}

impl Drafter for Dice {
    fn name(&self) -> &'static str {
        "dice"
    }
    fn begin(&mut self, prompt: &Prefill<'_>) -> Result<()> {
        self.ids = prompt.ids.to_vec();
        Ok(())
    }
    fn accept(&mut self, tokens: Accepted<'_>) -> Result<()> {
        self.ids.extend_from_slice(tokens.ids);
        Ok(())
    }
    fn outlook(&mut self) -> Option<Outlook> {
        Some(Outlook { n: 8, class: 0 })
    }
    fn propose(&mut self, n: usize, draft: &mut Draft) -> Result<()> {
        for _ in 0..n {
            let seen = [&self.ids[..], &draft.ids].concat();
            let logits = self.script.logits(&seen);
            let sum: f32 = logits.iter().map(|x| x.exp()).sum();
            let q: Vec<(u32, f32)> = (0..).zip(logits.iter().map(|x| x.exp() / sum)).collect();
            self.random = mix(self.random);
            let mut left = (self.random >> 11) as f32 / (1u64 << 53) as f32;
            let drawn = q.iter().find(|(_, p)| {
                left -= p;
                left < 0.0
            });
            draft.ids.push(drawn.unwrap_or(&q[4]).0);
            draft.drawn_from.push(q);
        }
        Ok(())
    }
    fn end(&mut self) {}
}

/// Probability of each token after `ids`, by the definitions of penalty, temperature, top-k, top-p.
fn probabilities(sampling: &Sampling, ids: &[u32]) -> Vec<f64> {
    let mut logits: Vec<f64> = SCRIPT.logits(ids).into_iter().map(f64::from).collect();
    for (id, logit) in logits.iter_mut().enumerate() {
        if ids.contains(&(id as u32)) {
            let penalty = f64::from(sampling.repetition_penalty);
            *logit = if *logit > 0.0 {
                *logit / penalty
            } else {
                *logit * penalty
            };
        }
        *logit /= f64::from(sampling.temperature);
    }
    let mut best: Vec<usize> = (0..logits.len()).collect();
    best.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    if sampling.top_k > 0 {
        best.truncate(sampling.top_k);
    }
    let sum: f64 = best.iter().map(|&id| logits[id].exp()).sum();
    let mut kept = 0.0;
    let mut p = vec![0.0; logits.len()];
    for id in best {
        if kept < f64::from(sampling.top_p) {
            p[id] = logits[id].exp() / sum;
            kept += p[id];
        }
    }
    p.iter().map(|x| x / kept).collect()
}

/// Probability of each answer.
fn answers(sampling: &Sampling) -> HashMap<Vec<u32>, f64> {
    let mut all = HashMap::from([(PROMPT.to_vec(), 1.0)]);
    for _ in 0..N_TOKENS {
        let mut longer = HashMap::new();
        for (ids, so_far) in all {
            let p = probabilities(sampling, &ids);
            for (id, p) in (0..).zip(p).filter(|(_, p)| *p > 0.0) {
                longer.insert([&ids[..], &[id]].concat(), so_far * p);
            }
        }
        all = longer;
    }
    all
}

/// Draws answers; returns how often each came, and how many draft tokens were accepted.
fn draw(sampling: &Sampling, drafter: &'static str) -> (HashMap<Vec<u32>, usize>, usize) {
    let guess = Guess::new(SCRIPT, 100, 9);
    let own = Script { seed: 4, ..SCRIPT };
    let dice = Dice {
        script: own,
        ids: Vec::new(),
        random: 11,
    };
    let mut speculator = Speculator::new(vec![Box::new(guess), Box::new(dice)]);
    if drafter != "off" {
        let strategy = Strategy::Always { drafter, n: 2 };
        speculator.set(strategy).expect("a drafter");
    }
    let mut counts = HashMap::new();
    let mut n_accepted = 0;
    for seed in 0..N_ANSWERS as u64 {
        let limits = Limits {
            eos: &[],
            max_tokens: N_TOKENS,
            deadline: None,
            cancel: None,
        };
        let prompt = Prefill {
            ids: PROMPT,
            positions: &[0, 1],
            visual: &[],
            image_token: 100,
            reserve: N_TOKENS,
        };
        let sampling = Sampling { seed, ..*sampling };
        let done = generate(
            &mut ScriptedModel::new(SCRIPT),
            &prompt,
            &mut Sampler::new(sampling).expect("sampling"),
            &limits,
            &mut speculator,
            &mut |_| Ok(ControlFlow::Continue(())),
        );
        let done = done.expect("an answer");
        assert_eq!(done.speculation.switched_off, None);
        n_accepted += done.speculation.accepted;
        *counts.entry([PROMPT, &done.ids].concat()).or_insert(0) += 1;
    }
    (counts, n_accepted)
}

/// By how many standard deviations the chi-square statistic is above its mean.
fn excess(expected: &HashMap<Vec<u32>, f64>, counts: &HashMap<Vec<u32>, usize>) -> f64 {
    let (mut chi_square, mut n_bins) = (0.0, 0.0);
    // Answers too rare for the approximation share a bin.
    let mut rare = (0.0, 0.0);
    let mut add = |expected: f64, seen: f64| {
        chi_square += (seen - expected).powi(2) / expected;
        n_bins += 1.0;
    };
    for (ids, p) in expected {
        let (wanted, seen) = (
            p * N_ANSWERS as f64,
            counts.get(ids).copied().unwrap_or(0) as f64,
        );
        if wanted >= 5.0 {
            add(wanted, seen);
        } else {
            rare = (rare.0 + wanted, rare.1 + seen);
        }
    }
    if rare.0 > 0.0 {
        add(rare.0, rare.1);
    }
    let freedom = n_bins - 1.0;
    (chi_square - freedom) / f64::sqrt(2.0 * freedom)
}

#[test]
fn drawn_answers_are_distributed_alike_with_drafts_and_without() {
    let plain = Sampling {
        temperature: 1.0,
        ..Sampling::default()
    };
    let settings = [
        plain,
        Sampling {
            temperature: 0.6,
            top_k: 3,
            ..plain
        },
        Sampling {
            top_p: 0.7,
            repetition_penalty: 1.6,
            ..plain
        },
    ];
    for sampling in settings {
        let expected = answers(&sampling);
        for drafter in ["off", "guess", "dice"] {
            let (counts, n_accepted) = draw(&sampling, drafter);
            let context = format!("{drafter} {sampling:?}");
            for ids in counts.keys() {
                assert!(
                    expected.contains_key(ids),
                    "{context}: {ids:?} is impossible"
                );
            }
            let excess = excess(&expected, &counts);
            // One in thirty thousand by chance, and the seeds are fixed.
            assert!(excess < 4.0, "{context}: {excess} standard deviations");
            // Drafts were accepted, and refused.
            let share = n_accepted as f64 / N_ANSWERS as f64;
            assert!(
                drafter == "off" || (0.1..1.9).contains(&share),
                "{context}: {share}"
            );
        }
    }
    // The test tells apart what is not alike.
    let (counts, _) = draw(&plain, "off");
    let warmer = Sampling {
        temperature: 1.3,
        ..plain
    };
    assert!(excess(&answers(&warmer), &counts) > 10.0);
}
