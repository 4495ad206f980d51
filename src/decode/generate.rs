//! The decoding loop.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::draft::{Accepted, Draft, MAX_DRAFT};
use super::outcome::Outcome;
use super::pace::{Deadline, Pass};
use super::report::{NEAR_TIE, NearTie, Report};
use super::sampler::Sampler;
use super::speculator::Speculator;
use crate::backend::{Backend, Logits, Prefill};
use crate::error::{Error, Result};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// The model closed its answer.
    Eos,
    /// The answer has as many tokens as were allowed, or the context is full.
    Length,
    /// A sentence was complete and no more was asked for.
    Sentence,
    /// The time was up.
    Deadline,
    /// The caller asked to stop.
    Cancelled,
}

/// What ends an answer.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// Ids that close an answer.
    pub eos: &'a [u32],
    /// Most tokens of the answer, the closing one included.
    pub max_tokens: usize,
    /// No pass begins that would end after it, by what is known of such passes.
    pub deadline: Option<Deadline<'a>>,
    /// Set by another thread to stop before the next step.
    pub cancel: Option<&'a AtomicBool>,
}

impl Limits<'_> {
    /// Why no pass of the model may start any more.
    pub fn exceeded(&self) -> Option<Stop> {
        if self.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return Some(Stop::Cancelled);
        }
        let late = self.deadline.is_some_and(|deadline| deadline.is_over());
        late.then_some(Stop::Deadline)
    }

    /// Why this pass may not begin.
    pub fn refuses(&self, pass: Pass) -> Option<Stop> {
        let late = || self.deadline.is_some_and(|deadline| !deadline.allows(pass));
        self.exceeded().or_else(|| late().then_some(Stop::Deadline))
    }
}

/// The tokens of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// Ids, the closing one included.
    pub ids: Vec<u32>,
    /// Why the answer ended.
    pub stop: Stop,
    /// Time from the start of the prefill to the first token.
    pub prefill: Duration,
    /// Time from the first token to the last.
    pub decode: Duration,
    /// Passes of the decoder after the prefill, and how drafts fared.
    pub speculation: Report,
}

/// Answers a prompt; `on_token` sees each token as it comes and can end the answer.
///
/// The `speculator` may propose tokens, which the target checks in one pass: the longest prefix that
/// it would have chosen itself is taken, then its own next token; the rows of the others are
/// forgotten. The answer is the one that comes without drafts: greedy token for token, drawn in
/// distribution (token for token, too, if drafts were chosen and not drawn). Only rounding can part
/// them: a pass of several rows may sum in another order than a pass of one, so that a choice that
/// hung by less than [`NEAR_TIE`] may fall otherwise. [`Report::near_ties`] lists those.
///
/// # Errors
/// Those of the backend; [`Error::Logits`] if it returns NaN. An answer that was cut short by a limit is not an error.
pub fn generate(
    backend: &mut dyn Backend,
    prompt: &Prefill<'_>,
    sampler: &mut Sampler,
    limits: &Limits<'_>,
    speculator: &mut Speculator,
    on_token: &mut dyn FnMut(u32) -> Result<ControlFlow<Stop>>,
) -> Result<Generated> {
    let mut room = TokenRoom::default();
    generate_in(
        &mut room, backend, prompt, sampler, limits, speculator, on_token,
    )
}

/// Room for the tokens of an answer, used again for the next one.
#[derive(Debug, Default)]
pub struct TokenRoom {
    /// For the ids that are returned: give them back when they are not needed any more.
    pub ids: Vec<u32>,
    history: Vec<u32>,
    draft: Draft,
    fed: Vec<u32>,
}

impl TokenRoom {
    /// Makes room for a prompt and its answer of so many ids together.
    pub fn reserve(&mut self, n_ids: usize) {
        self.ids.reserve(n_ids);
        self.history.reserve(n_ids);
        self.fed.reserve(1 + MAX_DRAFT);
    }
}

/// The same in memory that is used again: where no drafts are asked for, and the answer before was allowed as many
/// tokens after as long a prompt, nothing is allocated here.
///
/// # Errors
/// As [`generate`].
pub fn generate_in(
    room: &mut TokenRoom,
    backend: &mut dyn Backend,
    prompt: &Prefill<'_>,
    sampler: &mut Sampler,
    limits: &Limits<'_>,
    speculator: &mut Speculator,
    on_token: &mut dyn FnMut(u32) -> Result<ControlFlow<Stop>>,
) -> Result<Generated> {
    let start = Instant::now();
    let TokenRoom {
        ids,
        history,
        draft,
        fed,
    } = room;
    let mut ids = std::mem::take(ids);
    ids.clear();
    ids.reserve(limits.max_tokens);
    history.clear();
    history.reserve(prompt.ids.len() + limits.max_tokens);
    history.extend_from_slice(prompt.ids);
    draft.clear();
    let mut answer = Answer {
        ids,
        history,
        near_ties: Vec::new(),
        sampler,
        limits,
        on_token,
    };
    let early = match limits.max_tokens {
        0 => Some(Stop::Length),
        _ => limits.refuses(Pass::Prefill(prompt.ids.len())),
    };
    if let Some(stop) = early {
        return Ok(Generated {
            ids: answer.ids,
            stop,
            prefill: Duration::ZERO,
            decode: Duration::ZERO,
            speculation: Report::default(),
        });
    }
    speculator.begin(prompt);
    let first_position = prompt.positions.last().map_or(0, |&last| last + 1);
    // Whoever takes the largest logit only need not see them.
    let is_greedy = answer.sampler.is_greedy();
    let mut outcome = Outcome::prefill(backend, prompt, is_greedy)?;
    let prefill = start.elapsed();
    let decoding = Instant::now();
    let stop = loop {
        let n_before = answer.ids.len();
        let stop = match &outcome {
            Outcome::Scored(logits) => answer.take(logits, draft)?,
            Outcome::Chosen(chosen) => answer.take_chosen(&chosen.ids)?,
        };
        let taken = &answer.ids[n_before..];
        if taken.len() <= draft.ids.len() {
            // The newest token was not fed yet; the rows of the drafts after it are of no use.
            backend.rollback(prompt.ids.len() + answer.ids.len() - 1)?;
        }
        let hidden = backend.hidden();
        let hidden = hidden.map(|rows| &rows[..rows.len() / outcome.n_rows() * taken.len()]);
        speculator.accept(&Accepted { ids: taken, hidden }, draft);
        if let Some(stop) = stop {
            break stop;
        }
        let n_left = limits.max_tokens - answer.ids.len();
        speculator.propose(n_left - 1, outcome.n_vocab(), draft);
        let position = first_position + answer.ids.len() as u32 - 1;
        let newest = &answer.history[answer.history.len() - 1..];
        if !draft.ids.is_empty() && limits.refuses(Pass::Step(1 + draft.ids.len())).is_some() {
            // One row may still be in time.
            speculator.withdraw(draft);
        }
        if draft.ids.is_empty()
            && let Some(stop) = limits.refuses(Pass::Step(1))
        {
            break stop;
        }
        fed.clear();
        fed.extend(newest.iter().chain(&draft.ids));
        speculator.pass_begins();
        let step = answer.ids.len();
        outcome = Outcome::step(backend, fed, position, is_greedy).map_err(at(step))?;
        speculator.pass_ends(fed.len());
    };
    let decode = decoding.elapsed();
    let mut speculation = speculator.end(answer.ids.len(), decode);
    speculation.near_ties = answer.near_ties;
    Ok(Generated {
        ids: answer.ids,
        stop,
        prefill,
        decode,
        speculation,
    })
}

/// Says at which token logits were broken.
fn at(step: usize) -> impl Fn(Error) -> Error {
    move |error| match error {
        Error::Logits { what, .. } => Error::Logits { what, step },
        other => other,
    }
}

/// An answer as it grows.
struct Answer<'a> {
    ids: Vec<u32>,
    /// Prompt and answer.
    history: &'a mut Vec<u32>,
    near_ties: Vec<NearTie>,
    sampler: &'a mut Sampler,
    limits: &'a Limits<'a>,
    on_token: &'a mut dyn FnMut(u32) -> Result<ControlFlow<Stop>>,
}

impl Answer<'_> {
    /// Takes the tokens that a pass gave: the accepted prefix of `draft` and the target's own next
    /// one, fewer if one of them ends the answer. Row `i` of `logits` follows the first `i` drafts.
    fn take(&mut self, logits: &Logits, draft: &Draft) -> Result<Option<Stop>> {
        for row in 0..=draft.ids.len() {
            let row_logits = logits.row(row);
            let proposed = draft.ids.get(row).copied();
            let id = self.pick(row_logits, proposed, draft.drawn_from.get(row))?;
            if !draft.ids.is_empty()
                && let Some(margin) = self.sampler.margin(row_logits, id)
                && margin < NEAR_TIE
            {
                let index = self.ids.len();
                self.near_ties.push(NearTie { index, margin });
            }
            let stop = self.push(id)?;
            if stop.is_some() || proposed != Some(id) {
                return Ok(stop);
            }
        }
        Ok(None)
    }

    /// Takes tokens that the backend chose, fewer if one of them ends the answer.
    fn take_chosen(&mut self, ids: &[u32]) -> Result<Option<Stop>> {
        for &id in ids {
            let stop = self.push(id)?;
            if stop.is_some() {
                return Ok(stop);
            }
        }
        Ok(None)
    }

    fn pick(
        &mut self,
        logits: &[f32],
        proposed: Option<u32>,
        drawn_from: Option<&Vec<(u32, f32)>>,
    ) -> Result<u32> {
        let picked = match (proposed, drawn_from) {
            (Some(id), Some(from)) => self.sampler.pick_drafted(logits, self.history, id, from),
            _ => self.sampler.pick(logits, self.history),
        };
        // The sampler does not know the step.
        picked.map_err(at(self.ids.len()))
    }

    fn push(&mut self, id: u32) -> Result<Option<Stop>> {
        self.ids.push(id);
        self.history.push(id);
        if self.limits.eos.contains(&id) {
            return Ok(Some(Stop::Eos));
        }
        if let ControlFlow::Break(stop) = (self.on_token)(id)? {
            return Ok(Some(stop));
        }
        if self.ids.len() >= self.limits.max_tokens {
            return Ok(Some(Stop::Length));
        }
        Ok(self.limits.exceeded())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Logits;
    use crate::decode::{Pace, Sampling};
    use crate::preprocess::PixelValues;

    /// In a script: logits with a NaN.
    const BROKEN: u32 = u32::MAX;

    /// Answers with a fixed list of ids and notes what it was asked.
    struct Scripted {
        answer: Vec<u32>,
        fed: Vec<(u32, u32)>,
    }

    impl Scripted {
        fn logits(&self) -> Logits {
            let mut row = vec![0.0; 16];
            if self.answer[self.fed.len()] == BROKEN {
                row[3] = f32::NAN;
                return Logits::new(16, row);
            }
            row[self.answer[self.fed.len()] as usize] = 1.0;
            Logits::new(16, row)
        }
    }

    impl Backend for Scripted {
        fn encode(&mut self, _: &PixelValues) -> Result<usize> {
            Ok(0)
        }
        fn prefill(&mut self, _: &Prefill<'_>) -> Result<Logits> {
            Ok(self.logits())
        }
        fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
            self.fed.push((ids[0], position));
            Ok(self.logits())
        }
        fn rollback(&mut self, _: usize) -> Result<()> {
            Ok(())
        }
    }

    fn run(
        limits: Limits<'_>,
        on_token: &mut dyn FnMut(u32) -> Result<ControlFlow<Stop>>,
    ) -> (Generated, Vec<(u32, u32)>) {
        let mut backend = Scripted {
            answer: vec![4, 5, 6, 1, 7, 7],
            fed: Vec::new(),
        };
        let prompt = Prefill {
            ids: &[9, 9],
            positions: &[0, 8],
            visual: &[],
            image_token: 15,
            reserve: 8,
        };
        let mut sampler = Sampler::new(Sampling::default()).expect("greedy");
        let done = generate(
            &mut backend,
            &prompt,
            &mut sampler,
            &limits,
            &mut Speculator::off(),
            on_token,
        )
        .expect("run");
        (done, backend.fed)
    }

    #[test]
    fn answer_ends_at_each_limit() {
        let set = AtomicBool::new(true);
        let pace = Pace::default();
        let open = Limits {
            eos: &[1],
            max_tokens: 10,
            deadline: None,
            cancel: None,
        };
        let cases: [(Limits<'_>, &[u32], Stop); 5] = [
            (open, &[4, 5, 6, 1], Stop::Eos),
            (
                Limits {
                    max_tokens: 2,
                    ..open
                },
                &[4, 5],
                Stop::Length,
            ),
            (
                Limits {
                    max_tokens: 0,
                    ..open
                },
                &[],
                Stop::Length,
            ),
            (
                Limits {
                    cancel: Some(&set),
                    ..open
                },
                &[],
                Stop::Cancelled,
            ),
            (
                Limits {
                    deadline: Some(pace.deadline_after(Duration::ZERO)),
                    ..open
                },
                &[],
                Stop::Deadline,
            ),
        ];
        for (limits, ids, stop) in cases {
            let (done, _) = run(limits, &mut |_| Ok(ControlFlow::Continue(())));
            assert_eq!((done.ids.as_slice(), done.stop), (ids, stop));
        }
    }

    #[test]
    fn nan_logits_are_an_error_that_names_the_step() {
        let limits = Limits {
            eos: &[1],
            max_tokens: 10,
            deadline: None,
            cancel: None,
        };
        for (answer, step) in [(vec![BROKEN], 0), (vec![4, 5, BROKEN], 2)] {
            let mut backend = Scripted {
                answer,
                fed: Vec::new(),
            };
            let prompt = Prefill {
                ids: &[9],
                positions: &[0],
                visual: &[],
                image_token: 15,
                reserve: 8,
            };
            let mut sampler = Sampler::new(Sampling::default()).expect("greedy");
            let mut seen = Vec::new();
            let e = generate(
                &mut backend,
                &prompt,
                &mut sampler,
                &limits,
                &mut Speculator::off(),
                &mut |id| {
                    seen.push(id);
                    Ok(ControlFlow::Continue(()))
                },
            )
            .expect_err("NaN");
            let expected = format!("the decoder returned NaN at step {step}");
            assert_eq!(e.to_string(), expected);
            assert_eq!(seen.len(), step);
        }
    }

    #[test]
    fn steps_feed_each_token_at_the_next_position() {
        let limits = Limits {
            eos: &[1],
            max_tokens: 10,
            deadline: None,
            cancel: None,
        };
        let (_, fed) = run(limits, &mut |_| Ok(ControlFlow::Continue(())));
        assert_eq!(fed, [(4, 9), (5, 10), (6, 11)]);
    }

    #[test]
    fn caller_ends_the_answer_and_does_not_see_the_eos() {
        let limits = Limits {
            eos: &[1],
            max_tokens: 10,
            deadline: None,
            cancel: None,
        };
        let mut seen = Vec::new();
        let (done, _) = run(limits, &mut |id| {
            seen.push(id);
            Ok(match id {
                6 => ControlFlow::Break(Stop::Sentence),
                _ => ControlFlow::Continue(()),
            })
        });
        assert_eq!((done.ids, done.stop), (vec![4, 5, 6], Stop::Sentence));
        assert_eq!(seen, [4, 5, 6]);
    }
}
