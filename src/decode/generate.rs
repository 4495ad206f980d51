//! The decoding loop.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::sampler::Sampler;
use crate::backend::{Backend, Prefill};
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
    /// No step starts after this instant.
    pub deadline: Option<Instant>,
    /// Set by another thread to stop before the next step.
    pub cancel: Option<&'a AtomicBool>,
}

impl Limits<'_> {
    /// Why no pass of the model may start any more.
    pub fn exceeded(&self) -> Option<Stop> {
        if self.cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
            return Some(Stop::Cancelled);
        }
        let late = self.deadline.is_some_and(|at| Instant::now() >= at);
        late.then_some(Stop::Deadline)
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
    /// Passes of the decoder after the prefill.
    pub steps: usize,
}

/// Answers a prompt; `on_token` sees each token as it comes and can end the answer.
///
/// # Errors
/// Those of the backend; [`Error::Logits`] if it returns NaN. An answer that was cut short by a limit is not an error.
pub fn generate(
    backend: &mut dyn Backend,
    prompt: &Prefill<'_>,
    sampler: &mut Sampler,
    limits: &Limits<'_>,
    on_token: &mut dyn FnMut(u32) -> Result<ControlFlow<Stop>>,
) -> Result<Generated> {
    let start = Instant::now();
    let mut done = Generated {
        ids: Vec::with_capacity(limits.max_tokens),
        stop: Stop::Length,
        prefill: Duration::ZERO,
        decode: Duration::ZERO,
        steps: 0,
    };
    if limits.max_tokens == 0 {
        return Ok(done);
    }
    if let Some(stop) = limits.exceeded() {
        return Ok(Generated { stop, ..done });
    }
    let mut history = prompt.ids.to_vec();
    let mut position = prompt.positions.last().map_or(0, |&last| last + 1);
    let mut logits = backend.prefill(prompt)?;
    done.prefill = start.elapsed();
    let decoding = Instant::now();
    done.stop = loop {
        let picked = sampler.pick(logits.last_row(), &history);
        let id = picked.map_err(|e| at_step(e, done.steps))?;
        done.ids.push(id);
        history.push(id);
        if limits.eos.contains(&id) {
            break Stop::Eos;
        }
        if let ControlFlow::Break(stop) = on_token(id)? {
            break stop;
        }
        if done.ids.len() >= limits.max_tokens {
            break Stop::Length;
        }
        if let Some(stop) = limits.exceeded() {
            break stop;
        }
        logits = backend.step(&[id], position)?;
        position += 1;
        done.steps += 1;
    };
    done.decode = decoding.elapsed();
    Ok(done)
}

/// An error of the sampler, which does not know the step.
fn at_step(error: Error, step: usize) -> Error {
    match error {
        Error::Logits { what, .. } => Error::Logits { what, step },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Logits;
    use crate::decode::Sampling;
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
        let done = generate(&mut backend, &prompt, &mut sampler, &limits, on_token).expect("run");
        (done, backend.fed)
    }

    #[test]
    fn answer_ends_at_each_limit() {
        let set = AtomicBool::new(true);
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
                    deadline: Some(Instant::now()),
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
            let e = generate(&mut backend, &prompt, &mut sampler, &limits, &mut |id| {
                seen.push(id);
                Ok(ControlFlow::Continue(()))
            })
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
