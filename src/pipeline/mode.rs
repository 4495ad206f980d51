//! Who answers: the language model, or templates over what the visual rows show.

use std::fmt;
use std::time::Instant;

use serde::Serialize;

use super::answer::Answer;
use super::ask::{Ask, StopAt, ms};
use super::open::Pipeline;
use crate::decode::{SentenceEnd, Stop};
use crate::error::{Error, Result};
use crate::model::TrainedKind;
use crate::preprocess::{Frame, View};
use crate::quick::{Grid, Looked, Probe, Question};

/// Why nothing is answered about a frame whose rows are no grid.
const NO_GRID: &str = "nobody knows where the model's visual tokens stand in the frame";

/// Who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The language model.
    #[default]
    Full,
    /// Templates over what the visual rows show, whatever their confidence; a question of none of their forms is refused.
    Quick,
    /// Templates where their confidence is high enough, else the language model.
    Auto,
}

/// Why it was answered so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The mode was asked for.
    #[default]
    Asked,
    /// The confidence is high enough.
    Sure,
    /// It is not.
    Unsure,
    /// The question is of no form that has templates.
    Question,
    /// Nobody knows where visual rows stand in the frame, or the colour that the question is about.
    Scene,
    /// Nothing was answered in quick mode, for the same reasons: only of evaluations, elsewhere it is an error.
    Refused,
}

/// Who answered, and why: `mode` of `run --json`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ModeReport {
    /// Who was to answer.
    pub asked: Mode,
    /// Who did: [`Mode::Full`] or [`Mode::Quick`].
    pub answered: Mode,
    /// How often quick answers that are as sure are right, 0 to 1; `None` if there was none, given or not.
    pub confidence: Option<f64>,
    /// Why.
    pub reason: Reason,
    /// Milliseconds from visual rows to the quick answer; 0 if none was tried.
    pub quick_ms: f64,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Quick => "quick",
            Self::Auto => "auto",
        })
    }
}

/// A frame whose visual rows the backend has.
#[derive(Clone, Copy)]
pub(super) struct Encoded<'a> {
    pub(super) frame: &'a Frame,
    pub(super) view: View,
    pub(super) total: usize,
}

impl Pipeline {
    /// Says whether this model can be asked in a mode.
    ///
    /// # Errors
    /// [`Error::Unavailable`] for others than [`Mode::Full`] if the model has no `quick.safetensors` that fits it.
    pub fn check_mode(&self, mode: Mode) -> Result<()> {
        match mode {
            Mode::Full => Ok(()),
            Mode::Quick | Mode::Auto => self.probe().map(drop),
        }
    }

    fn probe(&self) -> Result<&Probe> {
        self.nets.quick.as_ref().ok_or_else(|| Error::Unavailable {
            what: "quick mode".to_owned(),
            reason: match self.nets.refusal(TrainedKind::Quick) {
                Some(reason) => reason.to_owned(),
                None => {
                    "the model has no quick.safetensors; `trtvlm train quick` makes one".to_owned()
                }
            },
        })
    }

    /// Shows a frame to the vision tower alone, and writes its visual rows, `[n, d_model]` f32, into `rows`; returns how
    /// the last picture's lie over the frame.
    ///
    /// # Errors
    /// As [`ask`](Self::ask); [`Error::Unavailable`] if the rows are no square grid, or the backend keeps them.
    pub fn look(&mut self, frame: &Frame, ask: &Ask<'_>, rows: &mut Vec<f32>) -> Result<Grid> {
        let image = self.processor.run(frame, ask.fit, ask.tiles)?;
        let total = self.backend.encode(&image)?;
        self.backend.visual_rows(rows)?;
        Grid::new(frame, &image.view(), total).ok_or_else(|| Error::Unavailable {
            what: "a grid of visual tokens".to_owned(),
            reason: NO_GRID.to_owned(),
        })
    }

    /// The question as templates have it, before anything runs; `None` if the language model answers.
    ///
    /// # Errors
    /// [`Error::NotQuick`] if quick mode was asked for and the question is of none of its forms; as [`check_mode`](Self::check_mode).
    pub(super) fn quick_question(
        &self,
        text: &str,
        mode: Mode,
        report: &mut ModeReport,
    ) -> Result<Option<Question>> {
        if mode == Mode::Full {
            return Ok(None);
        }
        let question = self.probe()?.question(text);
        if question.is_none() {
            report.reason = Reason::Question;
            if mode == Mode::Quick {
                return Err(self.no_form()?);
            }
        }
        Ok(question)
    }

    fn no_form(&self) -> Result<Error> {
        let questions = &self.probe()?.settings().words.questions;
        let forms: Vec<String> = questions
            .iter()
            .filter_map(|(form, templates)| Some(format!("{form} (`{}`)", templates.first()?)))
            .collect();
        let reason = format!(
            "it has templates for questions of the forms {}; --mode auto leaves others to the language model",
            forms.join(", ")
        );
        Ok(Error::NotQuick { reason })
    }

    /// Answers from the visual rows; false if the language model is to answer.
    ///
    /// # Errors
    /// [`Error::NotQuick`] in quick mode, if there is no grid of rows, or no colour; those of the backend.
    pub(super) fn quick_answer(
        &mut self,
        question: Question,
        ask: &Ask<'_>,
        encoded: &Encoded<'_>,
        rows: &mut Vec<f32>,
        answer: &mut Answer,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<bool> {
        let start = Instant::now();
        answer.mode.reason = Reason::Scene;
        let refused = |reason: &str| match ask.mode {
            Mode::Quick => Err(Error::NotQuick {
                reason: reason.to_owned(),
            }),
            _ => Ok(false),
        };
        let Some(grid) = Grid::new(encoded.frame, &encoded.view, encoded.total) else {
            return refused(NO_GRID);
        };
        self.backend.visual_rows(rows)?;
        let probe = self.probe()?;
        let looked = probe.look(rows, &grid)?;
        let Some(said) = probe.say(question, &looked) else {
            answer.mode.quick_ms = ms(start.elapsed());
            return refused("the colour that it is about is not known");
        };
        let least = ask.confidence.unwrap_or(probe.settings().least);
        answer.mode.confidence = Some(said.confidence);
        answer.mode.quick_ms = ms(start.elapsed());
        if ask.mode == Mode::Auto && said.confidence < least {
            answer.mode.reason = Reason::Unsure;
            return Ok(false);
        }
        answer.mode.answered = Mode::Quick;
        answer.mode.reason = match ask.mode {
            Mode::Auto => Reason::Sure,
            _ => Reason::Asked,
        };
        show(&grid, &looked, encoded, answer);
        answer.text.push_str(&said.text);
        answer.stop = Stop::Eos;
        if ask.stop_at == StopAt::Sentence
            && let Some(end) = SentenceEnd::first(&answer.text)
        {
            answer.text.truncate(end);
            answer.stop = Stop::Sentence;
        }
        on_text(&answer.text);
        Ok(true)
    }
}

/// Notes what an overlay shows: where centres are likely.
fn show(grid: &Grid, looked: &Looked, encoded: &Encoded<'_>, answer: &mut Answer) {
    let visual = &mut answer.visual_tokens;
    visual.total = encoded.total;
    visual.view = Some(encoded.view);
    visual.scores.resize(encoded.total, f32::NAN);
    let scores = &mut visual.scores[grid.first..];
    for (cell, (score, &centre)) in scores.iter_mut().zip(&looked.centres).enumerate() {
        if grid.sees(cell) {
            *score = centre as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::nets::Nets;
    use super::*;
    use crate::backend::{Backend, CpuBackend, Logits, Prefill};
    use crate::model::Model;
    use crate::preprocess::PixelValues;

    /// Counts the passes of the language model.
    struct Counting {
        inner: CpuBackend,
        n_passes: Arc<AtomicUsize>,
    }

    impl Backend for Counting {
        fn encode(&mut self, image: &PixelValues) -> Result<usize> {
            self.inner.encode(image)
        }

        fn visual_rows(&mut self, rows: &mut Vec<f32>) -> Result<()> {
            self.inner.visual_rows(rows)
        }

        fn prefill(&mut self, prompt: &Prefill<'_>) -> Result<Logits> {
            self.n_passes.fetch_add(1, Ordering::Relaxed);
            self.inner.prefill(prompt)
        }

        fn step(&mut self, ids: &[u32], position: u32) -> Result<Logits> {
            self.n_passes.fetch_add(1, Ordering::Relaxed);
            self.inner.step(ids, position)
        }

        fn rollback(&mut self, n_rows: usize) -> Result<()> {
            self.inner.rollback(n_rows)
        }
    }

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
    }

    fn counting() -> (Pipeline, Arc<AtomicUsize>) {
        let dir = root().join("onnx/uav-tiny");
        let model = Model::load(&dir, None).expect("model");
        let n_passes = Arc::new(AtomicUsize::new(0));
        let backend = Counting {
            inner: CpuBackend::load(&model).expect("graphs"),
            n_passes: Arc::clone(&n_passes),
        };
        let nets = Nets::find(&dir, &model.config, |file| file.check_target(&model));
        let opened =
            Pipeline::with_backend(model, "fp16".to_owned(), "counting", Box::new(backend));
        let mut pipeline = opened.expect("pipeline");
        pipeline.nets = nets;
        (pipeline, n_passes)
    }

    fn frame() -> Frame {
        let path: PathBuf = root().join("calibration/images/0024.png");
        Frame::load(&path).expect("frame")
    }

    fn ask(mode: Mode) -> Ask<'static> {
        Ask {
            mode,
            ..Ask::default()
        }
    }

    #[test]
    fn quick_answer_needs_no_pass_of_the_language_model() {
        let (mut pipeline, n_passes) = counting();
        let mut told = Vec::new();
        let mut ask = ask(Mode::Quick);
        let on_text = &mut |text: &str| told.push(text.to_owned());
        let answer = pipeline.ask(&frame(), "describe the scene", &ask, on_text);
        let answer = answer.expect("answer");
        assert_eq!(n_passes.load(Ordering::Relaxed), 0);
        assert_eq!(told, [answer.text.as_str()]);
        assert_eq!((answer.stop, answer.prompt_tokens), (Stop::Eos, 0));
        assert!(answer.token_ids.is_empty() && !answer.text.is_empty());
        assert_eq!(answer.mode.answered, Mode::Quick);
        assert!(
            answer
                .mode
                .confidence
                .is_some_and(|c| (0.0..=1.0).contains(&c))
        );
        let times = answer.timings_ms;
        assert_eq!((times.prune, times.prefill, times.decode), (0.0, 0.0, 0.0));
        assert!(times.ttft >= times.vision && answer.tokens_per_second().is_none());
        answer.visual_tokens.overlay(&frame()).expect("a heat map");
        // As sure as nobody is: the language model answers, with the tokens that it always gives.
        ask.mode = Mode::Auto;
        ask.confidence = Some(1.0);
        let auto = pipeline.ask(&frame(), "describe the scene", &ask, &mut |_| {});
        let auto = auto.expect("answer");
        assert!(n_passes.load(Ordering::Relaxed) > 0);
        assert_eq!(
            (auto.mode.answered, auto.mode.reason),
            (Mode::Full, Reason::Unsure)
        );
        assert_eq!(auto.mode.confidence, answer.mode.confidence);
        let full = pipeline.ask(
            &frame(),
            "describe the scene",
            &self::ask(Mode::Full),
            &mut |_| {},
        );
        assert_eq!(full.expect("answer").token_ids, auto.token_ids);
        ask.confidence = Some(0.0);
        let before = n_passes.load(Ordering::Relaxed);
        let auto = pipeline.ask(&frame(), "describe the scene", &ask, &mut |_| {});
        let auto = auto.expect("answer");
        assert_eq!(
            (auto.mode.answered, auto.mode.reason),
            (Mode::Quick, Reason::Sure)
        );
        assert_eq!(
            (auto.text, n_passes.load(Ordering::Relaxed)),
            (answer.text, before)
        );
    }

    #[test]
    fn question_without_a_template_is_refused_before_anything_runs_or_left_to_the_language_model() {
        let (mut pipeline, n_passes) = counting();
        let question = "which way is north";
        let error = pipeline.ask(&frame(), question, &ask(Mode::Quick), &mut |_| {});
        let error = error.expect_err("refused");
        assert!(matches!(error, Error::NotQuick { .. }), "{error}");
        assert!(error.to_string().contains("describe the scene"), "{error}");
        let answer = pipeline.ask(&frame(), question, &ask(Mode::Auto), &mut |_| {});
        let mode = answer.expect("answer").mode;
        assert_eq!((mode.answered, mode.reason), (Mode::Full, Reason::Question));
        assert_eq!(mode.confidence, None);
        assert!(n_passes.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn confidence_outside_its_range_is_refused() {
        let (mut pipeline, _) = counting();
        for least in [-0.1, 1.1, f64::NAN] {
            let ask = Ask {
                confidence: Some(least),
                ..ask(Mode::Auto)
            };
            let error = pipeline.ask(&frame(), "describe the scene", &ask, &mut |_| {});
            let error = error.expect_err("refused");
            assert!(
                matches!(
                    error,
                    Error::Argument {
                        name: "confidence",
                        ..
                    }
                ),
                "{error}"
            );
        }
    }

    #[test]
    fn model_without_quick_answers_says_how_to_train_them() {
        let tiny = root().join("tests/data/tiny/fastvlm-tiny-plain");
        let mut pipeline = Pipeline::open(&tiny, None).expect("model");
        for mode in [Mode::Quick, Mode::Auto] {
            pipeline.check_mode(mode).expect_err("none");
            let error = pipeline.ask(&frame(), "describe the scene", &ask(mode), &mut |_| {});
            let error = error.expect_err("refused");
            assert!(matches!(error, Error::Unavailable { .. }), "{error}");
            assert!(error.to_string().contains("train quick"), "{error}");
        }
        pipeline.check_mode(Mode::Full).expect("always there");
    }
}
