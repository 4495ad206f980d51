//! How to ask: the arguments that every subcommand which asks a model shares.

use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

use clap::ValueEnum;

use super::interrupt;
use super::main::say;
use super::source::resolve;
use crate::decode::{MAX_DRAFT, Sampling, Strategy};
use crate::error::{Error, Result};
use crate::limits;
use crate::pipeline::{Ask, Choice, Mode, Pipeline, Positions, Pruning, StopAt};
use crate::preprocess::{Fit, Tiles};
use crate::prune::{Keep, Pruner};

/// Tokens of a draft where the user does not say.
const DRAFT_TOKENS: usize = 4;

/// What an answer depends on beside the model, the picture and the question.
#[derive(clap::Args)]
pub struct Knobs {
    /// Most tokens of an answer [default: what the model says, else 64]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<usize>,
    /// Files of a model folder to use: fp32, fp16, q4, q4f16, int8, … [default: fp32, else fp16]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Where the model runs
    #[arg(long, value_enum, default_value = "auto")]
    backend: BackendArg,
    /// How a frame becomes a square: as the model's configuration says, padded, or stretched
    #[arg(long, value_enum, default_value = "processor")]
    fit: FitArg,
    /// Pictures that a frame may be split into (SmolVLM): auto, or a number; 1 = no split
    #[arg(long, value_name = "auto|N", default_value = "auto", value_parser = parse_tiles)]
    tiles: Tiles,
    /// Share of the visual tokens that the model reads, above 0 to 1 [default: 1]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    keep: Option<f64>,
    /// Who chooses them: learned, attention, diverse, similarity, norm, grid or random [default: learned
    /// where the model has a pruner.safetensors, else attention]
    #[arg(long, value_name = "NAME", value_parser = Pruner::from_str)]
    pruner: Option<Pruner>,
    /// Where they stand: where they stood among all, or packed behind each other
    #[arg(long, value_enum, default_value = "original")]
    positions: PositionsArg,
    /// Who answers: the language model; templates over what the vision tower shows (`train quick`); or these where
    /// they are sure enough
    #[arg(long, value_enum, default_value = "full")]
    mode: ModeArg,
    /// Least confidence of an answer that --mode auto takes without the language model, from 0 to 1 [default: what the
    /// model's quick.safetensors says]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    confidence: Option<f64>,
    /// Where an answer ends
    #[arg(long, value_enum, default_value = "eos")]
    stop_at: StopAtArg,
    /// Who proposes tokens that one pass of the model checks together; the answer is the same. auto: whoever
    /// pays on this machine, if anybody does
    #[arg(long, value_enum, default_value = "auto")]
    draft: DraftArg,
    /// Most tokens that --draft ngram, head or early-exit proposes for a pass [default: 4]
    #[arg(long, value_name = "K")]
    draft_tokens: Option<usize>,
    /// Draw tokens with this temperature instead of taking the most likely; 0 = greedy
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Draw from the K most likely tokens only
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<usize>,
    /// Draw from the most likely tokens that together have probability P
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Make tokens that occurred already less likely; 1 = off
    #[arg(
        long,
        value_name = "R",
        default_value_t = 1.0,
        allow_negative_numbers = true
    )]
    repetition_penalty: f32,
    /// Seed for drawing tokens, and of --pruner random
    #[arg(
        long,
        value_name = "S",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    seed: u64,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum BackendArg {
    /// TensorRT where a bundle has plans for a GPU of this machine, else the CPU
    Auto,
    /// The CPU engine
    Cpu,
    /// TensorRT on an NVIDIA GPU
    Tensorrt,
}

#[derive(Clone, Copy, ValueEnum)]
enum FitArg {
    Processor,
    Pad,
    Stretch,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum PositionsArg {
    Original,
    Packed,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum ModeArg {
    /// The language model
    Full,
    /// Templates, and no question that has none
    Quick,
    /// Templates where they are sure enough, else the language model
    Auto,
}

#[derive(Clone, Copy, ValueEnum)]
enum StopAtArg {
    Eos,
    Sentence,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum DraftArg {
    /// Whoever pays, if anybody does
    Auto,
    /// Nobody: one token a pass
    Off,
    /// What followed the same words before: in the prompt, this answer, and earlier ones
    Ngram,
    /// The first layers of the model, trained for it
    EarlyExit,
    /// A small model, trained for it
    Head,
}

fn parse_tiles(text: &str) -> Result<Tiles, String> {
    match text {
        "auto" => Ok(Tiles::Auto),
        n => match n.parse() {
            Ok(n) if (1..=limits::TILES).contains(&n) => Ok(Tiles::Count(n)),
            _ => Err(format!("expected `auto` or 1 to {}", limits::TILES)),
        },
    }
}

impl Knobs {
    /// Checks what the arguments alone can tell.
    ///
    /// # Errors
    /// [`Error::Argument`] for a value outside its range.
    pub fn check(&self) -> Result<()> {
        self.ask().sampling.validate()?;
        match self.keep {
            Some(share) => drop(Keep::new(share)?),
            None if self.pruner.is_some() || self.positions == PositionsArg::Packed => {
                return Err(Error::Argument {
                    name: match self.pruner {
                        Some(_) => "pruner",
                        None => "positions",
                    },
                    reason: "acts with --keep SHARE".to_owned(),
                });
            }
            None => {}
        }
        if let Some(least) = self.confidence {
            let reason = match self.mode {
                ModeArg::Auto if (0.0..=1.0).contains(&least) => None,
                ModeArg::Auto => Some(format!("{least}, from 0 to 1")),
                _ => Some("acts with --mode auto".to_owned()),
            };
            if let Some(reason) = reason {
                return Err(Error::Argument {
                    name: "confidence",
                    reason,
                });
            }
        }
        if let Some(n) = self.draft_tokens {
            let reason = match self.strategy() {
                Strategy::Always { .. } if (1..=MAX_DRAFT).contains(&n) => None,
                Strategy::Always { .. } => Some(format!("{n}, from 1 to {MAX_DRAFT}")),
                _ => Some("acts with a drafter of its own, such as --draft ngram".to_owned()),
            };
            if let Some(reason) = reason {
                return Err(Error::Argument {
                    name: "draft-tokens",
                    reason,
                });
            }
        }
        Ok(())
    }

    /// Opens a model folder, bundle or `hf:OWNER/NAME`, and says what was opened.
    ///
    /// # Errors
    /// Those of the download and of [`Pipeline::open`]; [`Error::Unavailable`] if the model has no
    /// such drafter.
    pub fn open(&self, model: &Path, cancel: &AtomicBool) -> Result<Pipeline> {
        let choice = match self.backend {
            BackendArg::Auto => Choice::Auto,
            BackendArg::Cpu => Choice::Cpu,
            BackendArg::Tensorrt => Choice::TensorRt,
        };
        let pipeline = open(model, self.variant.as_deref(), choice, cancel)?;
        pipeline.check_draft(self.strategy())?;
        pipeline.check_pruning(&self.ask().pruning)?;
        pipeline.check_mode(self.ask().mode)?;
        Ok(pipeline)
    }

    /// Files of a model folder to use.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// How answers are drafted.
    fn strategy(&self) -> Strategy {
        let always = |drafter| Strategy::Always {
            drafter,
            n: self.draft_tokens.unwrap_or(DRAFT_TOKENS),
        };
        match self.draft {
            DraftArg::Auto => Strategy::Auto,
            DraftArg::Off => Strategy::Off,
            DraftArg::Ngram => always("ngram"),
            DraftArg::EarlyExit => always("early-exit"),
            DraftArg::Head => always("head"),
        }
    }

    /// Where an answer ends.
    pub fn stop_at(&self) -> StopAt {
        match self.stop_at {
            StopAtArg::Eos => StopAt::Eos,
            StopAtArg::Sentence => StopAt::Sentence,
        }
    }

    /// The same for the library.
    pub fn ask(&self) -> Ask<'static> {
        let drawn = self.top_k.is_some() || self.top_p.is_some();
        Ask {
            fit: match self.fit {
                FitArg::Processor => Fit::Processor,
                FitArg::Pad => Fit::Pad,
                FitArg::Stretch => Fit::Stretch,
            },
            tiles: self.tiles,
            max_tokens: self.max_tokens,
            stop_at: self.stop_at(),
            mode: match self.mode {
                ModeArg::Full => Mode::Full,
                ModeArg::Quick => Mode::Quick,
                ModeArg::Auto => Mode::Auto,
            },
            confidence: self.confidence,
            draft: self.strategy(),
            pruning: Pruning {
                keep: self
                    .keep
                    .and_then(|keep| Keep::new(keep).ok())
                    .unwrap_or(Keep::ALL),
                pruner: self.pruner,
                positions: match self.positions {
                    PositionsArg::Original => Positions::Original,
                    PositionsArg::Packed => Positions::Packed,
                },
                seed: self.seed,
            },
            sampling: Sampling {
                temperature: self.temperature.unwrap_or(if drawn { 1.0 } else { 0.0 }),
                top_k: self.top_k.unwrap_or(0),
                top_p: self.top_p.unwrap_or(1.0),
                repetition_penalty: self.repetition_penalty,
                seed: self.seed,
            },
            deadline: None,
            cancel: None,
        }
    }
}

/// Opens a model folder with the files of `variant`, a bundle or `hf:OWNER/NAME`, and says what was
/// opened.
///
/// # Errors
/// As [`Knobs::open`].
pub fn open(
    model: &Path,
    variant: Option<&str>,
    choice: Choice,
    cancel: &AtomicBool,
) -> Result<Pipeline> {
    let path = resolve(model, variant, cancel)?;
    // What is half loaded is worth nothing.
    interrupt::end_at_once(true);
    let pipeline = Pipeline::open_on(&path, variant, choice);
    interrupt::end_at_once(false);
    let pipeline = pipeline?;
    say(format_args!(
        "{}: {} on the {} engine",
        path.display(),
        pipeline.precision(),
        pipeline.backend_name()
    ));
    Ok(pipeline)
}
