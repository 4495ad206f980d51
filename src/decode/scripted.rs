//! Made-up models and drafters for the tests of this module.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clock::Clock;
use super::draft::{Accepted, Draft, Drafter, Outlook};
use super::suffixes::mix;
use crate::backend::{Backend, DraftModel, Logits, Prefill};
use crate::error::{Error, Result};
use crate::preprocess::PixelValues;

/// A language: what follows depends on the last few tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Script {
    pub seed: u64,
    pub n_vocab: usize,
    /// Tokens that count.
    pub order: usize,
    /// Number of different logits: few make ties.
    pub n_levels: u64,
}

impl Script {
    pub(super) fn logits(&self, ids: &[u32]) -> Vec<f32> {
        let seen = &ids[ids.len().saturating_sub(self.order)..];
        let context = seen.iter().fold(self.seed, |h, &id| mix(h ^ u64::from(id)));
        (0..self.n_vocab as u64)
            .map(|id| (mix(context ^ (id << 40)) % self.n_levels) as f32 * 0.25)
            .collect()
    }

    /// The most likely token, the lowest id among equals.
    pub(super) fn next(&self, ids: &[u32]) -> u32 {
        let logits = self.logits(ids);
        let best = (0..logits.len())
            .rev()
            .max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        best.expect("a vocabulary") as u32
    }
}

/// Runs a script, and is strict about how it is asked.
pub(super) struct ScriptedModel {
    pub script: Script,
    /// The KV cache: ids and their positions.
    pub cache: Vec<(u32, u32)>,
    pub n_steps: usize,
    capacity: usize,
    hidden: Vec<f32>,
    /// If there is one: ticks of a made-up clock that a pass of 1, 2, ... rows takes.
    pub cost: Option<(MadeUpClock, Vec<u64>)>,
}

impl ScriptedModel {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            cache: Vec::new(),
            n_steps: 0,
            capacity: 0,
            hidden: Vec::new(),
            cost: None,
        }
    }

    fn logits(&mut self, n_rows: usize) -> Logits {
        let ids: Vec<u32> = self.cache.iter().map(|&(id, _)| id).collect();
        let ends = ids.len() + 1 - n_rows..=ids.len();
        // The hidden state of a row is how many rows it sees, and its id.
        let state = |end: usize| [end as f32, ids[end - 1] as f32];
        self.hidden = ends.clone().flat_map(state).collect();
        let rows = ends.flat_map(|end| self.script.logits(&ids[..end]));
        Logits::new(self.script.n_vocab, rows.collect())
    }
}

impl Backend for ScriptedModel {
    fn encode(&mut self, _: &PixelValues) -> Result<usize> {
        Ok(0)
    }

    fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
        let rows = prompt.ids.iter().zip(prompt.positions);
        self.cache = rows.map(|(&id, &position)| (id, position)).collect();
        self.capacity = prompt.ids.len() + prompt.reserve;
        Ok(self.logits(1))
    }

    fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
        let newest = self.cache.last().expect("prefilled").1;
        assert_eq!(position, newest + 1, "positions go on where they ended");
        self.cache.extend(ids.iter().copied().zip(position..));
        assert!(self.cache.len() <= self.capacity, "the KV cache is full");
        self.n_steps += 1;
        if let Some((clock, ticks)) = &self.cost {
            clock.advance(ticks[ids.len() - 1]);
        }
        Ok(self.logits(ids.len()))
    }

    fn rollback(&mut self, n_rows: usize) -> Result<()> {
        assert!(n_rows < self.cache.len(), "nothing to forget");
        self.cache.truncate(n_rows);
        Ok(())
    }

    fn hidden(&self) -> Option<&[f32]> {
        Some(&self.hidden)
    }
}

/// How a guess goes wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fault {
    OutOfRange,
    NotANumber,
    TooMany,
    BadDistribution,
}

/// Guesses what a script says next, right with a given probability.
pub(super) struct Guess {
    pub script: Script,
    /// Probability of a right token, in 1/256.
    pub right: u64,
    pub random: u64,
    /// Goes wrong at this proposal.
    pub fault: Option<(usize, Fault)>,
    pub n_proposals: usize,
    pub ids: Vec<u32>,
    pub n_prompt: usize,
    /// Ticks of a made-up clock that a token takes.
    pub cost: Option<(MadeUpClock, u64)>,
    /// Ticks that a row of the prompt takes, before the first draft of an answer.
    pub row_cost: u64,
    /// What it is said to be accepted of.
    pub known: Option<f64>,
    has_begun: bool,
}

impl Guess {
    pub(super) fn new(script: Script, right: u64, random: u64) -> Self {
        Self {
            script,
            right,
            random,
            fault: None,
            n_proposals: 0,
            ids: Vec::new(),
            n_prompt: 0,
            cost: None,
            row_cost: 0,
            known: None,
            has_begun: false,
        }
    }

    fn random(&mut self) -> u64 {
        self.random = mix(self.random);
        self.random >> 8
    }
}

impl Drafter for Guess {
    fn name(&self) -> &'static str {
        "guess"
    }

    fn known_acceptance(&self) -> Option<f64> {
        self.known
    }

    fn begin(&mut self, prompt: &Prefill<'_>) -> Result<()> {
        self.has_begun = false;
        self.ids = prompt.ids.to_vec();
        self.n_prompt = self.ids.len();
        Ok(())
    }

    fn accept(&mut self, tokens: Accepted<'_>) -> Result<()> {
        let hidden = tokens.hidden.expect("the model keeps them");
        assert_eq!(hidden.len(), 2 * tokens.ids.len());
        for (&id, state) in tokens.ids.iter().zip(hidden.chunks(2)) {
            let seen = [self.ids.len() as f32, self.ids[self.ids.len() - 1] as f32];
            assert_eq!(state, seen, "the state from which the token was chosen");
            self.ids.push(id);
        }
        Ok(())
    }

    fn outlook(&mut self) -> Option<Outlook> {
        Some(Outlook { n: 8, class: 0 })
    }

    fn propose(&mut self, n: usize, draft: &mut Draft) -> Result<()> {
        self.n_proposals += 1;
        if let Some((clock, _)) = &self.cost
            && !std::mem::replace(&mut self.has_begun, true)
        {
            clock.advance(self.row_cost * self.n_prompt as u64);
        }
        let mut ids = self.ids.clone();
        for _ in 0..n {
            let best = self.script.next(&ids);
            let id = match self.random() % 256 < self.right {
                true => best,
                false => (best + 1) % self.script.n_vocab as u32,
            };
            ids.push(id);
            draft.ids.push(id);
            if let Some((clock, ticks)) = &self.cost {
                clock.advance(*ticks);
            }
        }
        match self.fault {
            Some((at, fault)) if at < self.n_proposals => match fault {
                Fault::OutOfRange => draft.ids[n - 1] = self.script.n_vocab as u32,
                Fault::TooMany => draft.ids.extend([0; 20]),
                Fault::BadDistribution => draft.drawn_from = vec![vec![(0, f32::NAN)]; n],
                Fault::NotANumber => {
                    return Err(Error::Logits {
                        what: "NaN",
                        step: 0,
                    });
                }
            },
            _ => {}
        }
        Ok(())
    }

    fn end(&mut self) {}
}

/// A clock that only models and drafters move.
#[derive(Debug, Clone, Default)]
pub(super) struct MadeUpClock(Arc<AtomicU64>);

impl MadeUpClock {
    pub(super) fn advance(&self, ticks: u64) {
        self.0.fetch_add(ticks, Ordering::Relaxed);
    }
}

impl Clock for MadeUpClock {
    fn now(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

/// A draft model that knows a script, and how it goes wrong.
pub(super) struct ScriptedDraft {
    pub script: Script,
    /// Logits that it adds to those of the script, up to so many.
    pub noise: f32,
    /// Goes wrong at this call.
    pub fault: Option<(usize, Fault)>,
    pub vocabulary: Vec<u32>,
    pub n_calls: usize,
    /// What the target chose, and guesses after it.
    pub ids: Vec<u32>,
    pub n_chosen: usize,
}

impl ScriptedDraft {
    /// Knows every other id.
    pub(super) fn new(script: Script, noise: f32) -> Self {
        Self {
            script,
            noise,
            fault: None,
            vocabulary: (0..script.n_vocab as u32).step_by(2).collect(),
            n_calls: 0,
            ids: Vec::new(),
            n_chosen: 0,
        }
    }

    fn logits(&mut self) -> Vec<f32> {
        self.n_calls += 1;
        let all = self.script.logits(&self.ids);
        let salt = self.n_calls as u64;
        let logit = |&id: &u32| {
            let noise = (mix(salt ^ (u64::from(id) << 32)) % 1000) as f32 / 1000.0;
            // Sharper than the script: the drafter is to be sure of something.
            all.get(id as usize).copied().unwrap_or(1e3) * 8.0 + noise * self.noise
        };
        let mut logits: Vec<f32> = self.vocabulary.iter().map(logit).collect();
        match self.fault {
            Some((at, Fault::NotANumber)) if at < self.n_calls => logits[0] = f32::NAN,
            Some((at, _)) if at < self.n_calls => {
                self.vocabulary[0] = self.script.n_vocab as u32;
                logits[0] = 1e4;
            }
            _ => {}
        }
        logits
    }
}

impl DraftModel for ScriptedDraft {
    fn name(&self) -> &'static str {
        "scripted"
    }

    fn vocabulary(&self) -> &[u32] {
        &self.vocabulary
    }

    fn acceptance(&self) -> f64 {
        0.5
    }

    fn begin(&mut self, prompt: &Prefill<'_>) {
        prompt.ids.clone_into(&mut self.ids);
        self.n_chosen = self.ids.len();
    }

    fn take(&mut self, ids: &[u32], hidden: &[f32]) -> Result<Vec<f32>> {
        self.ids.truncate(self.n_chosen);
        assert_eq!(hidden.len(), 2 * ids.len());
        for (&id, state) in ids.iter().zip(hidden.chunks(2)) {
            let seen = [self.ids.len() as f32, self.ids[self.ids.len() - 1] as f32];
            assert_eq!(state, seen, "the state from which the token was chosen");
            self.ids.push(id);
        }
        self.n_chosen = self.ids.len();
        Ok(self.logits())
    }

    fn guess(&mut self, id: u32) -> Result<Vec<f32>> {
        assert!(self.n_chosen < self.ids.len() + 1 && !self.ids.is_empty());
        self.ids.push(id);
        Ok(self.logits())
    }
}
