//! A model with its buffers.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::files::{self, NamedBytes};
use super::frame::{NAME, Picture};
use super::settings::{Question, Settings};
use super::status::{Failure, Status};
use super::types::{
    MemoryReport, Outcome, TRTVLM_STOP_CANCELLED, TRTVLM_STOP_DEADLINE, TRTVLM_STOP_EOS,
    TRTVLM_STOP_LENGTH, TRTVLM_STOP_SENTENCE,
};
use crate::decode::{Stop, Strategy};
use crate::host::{Memory, peak_resident_bytes, resident_bytes};
use crate::pipeline::{Answer, Ask, Mode, Pipeline};
use crate::preprocess::Frame;
use crate::prune::Keep;
use crate::sync::lock;

/// A question for warming up: what is in a picture of noise is of no consequence.
const WARM_UP_QUESTION: &str = "describe the scene";

/// Tokens of a question that room is made for, beyond those of the question above.
const QUESTION_TOKENS: usize = 256;

/// A model that answers one question at a time.
pub(super) struct Session {
    inner: Mutex<Inner>,
    cancel: AtomicBool,
    /// Why the newest call failed.
    message: Mutex<String>,
    /// What opening it took.
    bytes: u64,
    /// Files that lay in memory. Behind what reads them, so that they go last.
    _files: Option<TempDir>,
}

struct Inner {
    pipeline: Pipeline,
    settings: Settings,
    /// The newest frame.
    frame: Frame,
}

impl Session {
    pub(super) fn open(path: &Path, settings: Settings) -> Result<Self, Failure> {
        let before = resident_bytes();
        let variant = settings.variant.as_deref();
        let pipeline = match settings.ask.draft {
            Strategy::Off => Pipeline::open_undrafted(path, variant)?,
            _ => Pipeline::open(path, variant)?,
        };
        pipeline.check_draft(settings.ask.draft)?;
        pipeline.check_mode(settings.ask.mode)?;
        let mut inner = Inner {
            frame: Frame::empty(NAME),
            pipeline,
            settings,
        };
        inner.warm_up()?;
        Ok(Self {
            inner: Mutex::new(inner),
            cancel: AtomicBool::new(false),
            message: Mutex::new(String::new()),
            bytes: resident_bytes().saturating_sub(before),
            _files: None,
        })
    }

    /// Opens a model whose files lie in memory.
    pub(super) fn open_files(
        files: &[NamedBytes<'_>],
        settings: Settings,
    ) -> Result<Self, Failure> {
        let folder = files::write(files)?;
        let session = Self::open(folder.path(), settings)?;
        Ok(Self {
            _files: Some(folder),
            ..session
        })
    }

    /// Answers; what is said is handed to `write`, which returns how much of it there was room for.
    pub(super) fn ask(
        &self,
        picture: &Picture<'_>,
        question: &Question<'_>,
        deadline: Option<Duration>,
        on_text: &mut dyn FnMut(&str) -> bool,
        write: &mut dyn FnMut(&str) -> usize,
    ) -> Result<Outcome, Failure> {
        let start = Instant::now();
        let mut inner = self.begin()?;
        let Inner {
            pipeline,
            settings,
            frame,
        } = &mut *inner;
        #[cfg(test)]
        super::tests::fault("answer");
        self.cancel.store(false, Ordering::Relaxed);
        let deadline = deadline.and_then(|after| start.checked_add(after));
        let ask = Ask {
            deadline,
            cancel: Some(&self.cancel),
            ..settings.ask(question)?
        };
        picture.read_into(frame)?;
        let read = start.elapsed();
        let answer = pipeline.answer(frame, question.text, &ask, &mut |piece| {
            if !on_text(piece) {
                self.cancel.store(true, Ordering::Relaxed);
            }
        })?;
        let written = write(&answer.text);
        let mut outcome = outcome(answer);
        outcome.written = written;
        outcome.frame_ns = nanoseconds(read);
        if outcome.first_token_ns > 0 {
            outcome.first_token_ns += outcome.frame_ns;
        }
        outcome.late = u32::from(deadline.is_some_and(|at| Instant::now() > at));
        outcome.total_ns = nanoseconds(start.elapsed());
        Ok(outcome)
    }

    /// Stops the answer at hand before its next pass, if there is one.
    pub(super) fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
    }

    pub(super) fn memory(&self) -> MemoryReport {
        let resident = resident_bytes();
        let available = Memory::read().map_or(0, |memory| memory.left_for(resident));
        MemoryReport {
            size: size_of::<MemoryReport>(),
            session_bytes: self.bytes,
            resident_bytes: resident,
            peak_resident_bytes: peak_resident_bytes(),
            available_bytes: available,
        }
    }

    /// Keeps why a call failed.
    pub(super) fn note(&self, failure: &Failure) {
        lock(&self.message).clone_from(&failure.message);
    }

    /// Why the newest call that failed did; empty if none has.
    pub(super) fn message(&self) -> MutexGuard<'_, String> {
        lock(&self.message)
    }

    fn begin(&self) -> Result<MutexGuard<'_, Inner>, Failure> {
        self.inner.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                Failure::new(Status::Busy, "session: it is answering another question")
            }
            // Whoever held it has panicked in the middle of its work.
            TryLockError::Poisoned(_) => Failure::new(
                Status::Internal,
                "session: it failed inside; close it and open another",
            ),
        })
    }
}

impl Inner {
    /// Gives some answers to noise, so that all buffers have been in use.
    fn warm_up(&mut self) -> Result<(), Failure> {
        let side = self.pipeline.side();
        let (width, height) = self.settings.camera.unwrap_or((side, side));
        self.frame = Frame::from_fn(NAME, width, height, |i| (i * 7919 % 251) as u8)?;
        // A model's quick answers may have other words; what they need is less.
        let mut ask = Ask {
            mode: Mode::Full,
            ..self.settings.ask
        };
        for number in 0..self.settings.warm_up {
            self.pipeline
                .answer(&self.frame, WARM_UP_QUESTION, &ask, &mut |_| {})?;
            if number == 0 {
                // The first answer has told how long prompts are.
                self.pipeline.make_room(QUESTION_TOKENS, ask.max_tokens);
            }
            if self.settings.prunes {
                // Questions may ask for less than the session does.
                let half = Keep::new(ask.pruning.keep.share() / 2.0)?;
                ask.pruning.keep = if number == 0 {
                    half
                } else {
                    self.settings.ask.pruning.keep
                };
            }
        }
        Ok(())
    }
}

fn outcome(answer: &Answer) -> Outcome {
    let n = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let times = &answer.timings_ms;
    let ns = |ms: f64| (ms * 1e6) as u64;
    Outcome {
        size: size_of::<Outcome>(),
        needed: answer.text.len(),
        stop: match answer.stop {
            Stop::Eos => TRTVLM_STOP_EOS,
            Stop::Length => TRTVLM_STOP_LENGTH,
            Stop::Sentence => TRTVLM_STOP_SENTENCE,
            Stop::Deadline => TRTVLM_STOP_DEADLINE,
            Stop::Cancelled => TRTVLM_STOP_CANCELLED,
        },
        tokens: n(answer.token_ids.len()),
        prompt_tokens: n(answer.prompt_tokens),
        visual_tokens: n(answer.visual_tokens.total),
        visual_tokens_kept: n(answer.visual_tokens.kept),
        preprocess_ns: ns(times.preprocess),
        vision_ns: ns(times.vision),
        prune_ns: ns(times.prune),
        prefill_ns: ns(times.prefill),
        decode_ns: ns(times.decode),
        first_token_ns: ns(times.ttft),
        quick: u32::from(answer.mode.answered == Mode::Quick),
        confidence: answer.mode.confidence.unwrap_or(0.0) as f32,
        ..Outcome::default()
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
