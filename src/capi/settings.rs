//! How a session asks, as C says it.

use std::str::FromStr;

use super::status::Failure;
use super::types::{
    Options, TRTVLM_DRAFT_AUTO, TRTVLM_DRAFT_OFF, TRTVLM_FIT_PAD, TRTVLM_FIT_PROCESSOR,
    TRTVLM_FIT_STRETCH, TRTVLM_MODE_AUTO, TRTVLM_MODE_FULL, TRTVLM_MODE_QUICK,
};
use crate::decode::Strategy;
use crate::limits;
use crate::pipeline::{Ask, Mode, Pruning, StopAt};
use crate::preprocess::{Fit, Tiles};
use crate::prune::{Keep, Pruner};

/// Answers before a session is open, where the caller does not say.
pub(super) const WARM_UP: u32 = 3;

/// Most answers before a session is open.
const MOST_WARM_UP: u32 = 10_000;

/// Options of a session, checked.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) variant: Option<String>,
    /// Width and height of the camera's frames, if they are known.
    pub(super) camera: Option<(usize, usize)>,
    pub(super) warm_up: u32,
    /// A pruner was named: questions may drop visual tokens, and it is made ready.
    pub(super) prunes: bool,
    pub(super) ask: Ask<'static>,
}

/// What one question has of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'a> {
    pub(super) text: &'a str,
    pub(super) max_tokens: u32,
    pub(super) one_sentence: u32,
    pub(super) keep: f32,
    pub(super) reserved: u32,
}

impl Options {
    /// What a caller gets who says nothing.
    pub(super) fn new() -> Self {
        Self {
            size: size_of::<Self>(),
            variant: std::ptr::null(),
            pruner: std::ptr::null(),
            fit: TRTVLM_FIT_PROCESSOR,
            tiles: 0,
            keep: 0.0,
            draft: TRTVLM_DRAFT_OFF,
            frame_width: 0,
            frame_height: 0,
            warm_up: WARM_UP,
            max_tokens: 0,
            mode: TRTVLM_MODE_FULL,
            confidence: 0.0,
        }
    }
}

impl Settings {
    /// Of options whose texts were read.
    pub(super) fn new(
        options: &Options,
        variant: Option<&str>,
        pruner: Option<&str>,
    ) -> Result<Self, Failure> {
        let fit = match options.fit {
            TRTVLM_FIT_PROCESSOR => Fit::Processor,
            TRTVLM_FIT_PAD => Fit::Pad,
            TRTVLM_FIT_STRETCH => Fit::Stretch,
            other => return Err(Failure::argument("options.fit", other)),
        };
        let tiles = match options.tiles as usize {
            0 => Tiles::Auto,
            n @ 1..=limits::TILES => Tiles::Count(n),
            other => return Err(Failure::argument("options.tiles", other)),
        };
        let draft = match options.draft {
            TRTVLM_DRAFT_OFF => Strategy::Off,
            TRTVLM_DRAFT_AUTO => Strategy::Auto,
            other => return Err(Failure::argument("options.draft", other)),
        };
        let mode = match options.mode {
            TRTVLM_MODE_FULL => Mode::Full,
            TRTVLM_MODE_QUICK => Mode::Quick,
            TRTVLM_MODE_AUTO => Mode::Auto,
            other => return Err(Failure::argument("options.mode", other)),
        };
        if !(0.0..=1.0).contains(&options.confidence) {
            let reason = format!("{}, from 0 to 1", options.confidence);
            return Err(Failure::argument("options.confidence", reason));
        }
        let confidence = (options.confidence > 0.0).then_some(f64::from(options.confidence));
        let camera = match (options.frame_width, options.frame_height) {
            (0, 0) => None,
            (width, height) => Some((width as usize, height as usize)),
        };
        if options.warm_up > MOST_WARM_UP {
            let reason = format!("{}, at most {MOST_WARM_UP}", options.warm_up);
            return Err(Failure::argument("options.warm_up", reason));
        }
        let keep = keep(options.keep, Keep::ALL)?;
        let prunes = pruner.is_some();
        let pruner = pruner.map(Pruner::from_str).transpose()?;
        Ok(Self {
            variant: variant.map(str::to_owned),
            camera,
            warm_up: options.warm_up,
            prunes,
            ask: Ask {
                fit,
                tiles,
                max_tokens: at_least_one(options.max_tokens),
                mode,
                confidence,
                draft,
                pruning: Pruning {
                    keep,
                    pruner,
                    ..Pruning::default()
                },
                ..Ask::default()
            },
        })
    }

    /// How to ask one question.
    pub(super) fn ask(&self, question: &Question<'_>) -> Result<Ask<'static>, Failure> {
        let mut ask = self.ask;
        ask.stop_at = match question.one_sentence {
            0 => StopAt::Eos,
            1 => StopAt::Sentence,
            other => return Err(Failure::argument("question.one_sentence", other)),
        };
        if question.reserved != 0 {
            return Err(Failure::argument("question.reserved", "it is not zero"));
        }
        ask.pruning.keep = keep(question.keep, ask.pruning.keep)?;
        ask.max_tokens = at_least_one(question.max_tokens).or(ask.max_tokens);
        Ok(ask)
    }
}

fn at_least_one(n: u32) -> Option<usize> {
    (n > 0).then_some(n as usize)
}

fn keep(share: f32, default: Keep) -> Result<Keep, Failure> {
    if share == 0.0 {
        return Ok(default);
    }
    Ok(Keep::new(f64::from(share))?)
}
