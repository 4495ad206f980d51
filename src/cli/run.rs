//! `trtvlm run`: questions about image files.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::path::PathBuf;

use anyhow::Context;
use clap::ValueEnum;

use super::interrupt;
use super::main::say;
use super::source::resolve;
use super::table::printable_lines;
use crate::decode::{Sampling, Stop};
use crate::error::Error;
use crate::limits;
use crate::pipeline::{Answer, Ask, Pipeline, StopAt};
use crate::preprocess::{Fit, Frame, Tiles};
use crate::text::Text;

/// Answer a question about one or more images
#[derive(clap::Args)]
pub struct Args {
    /// Model folder, bundle, or hf:OWNER/NAME
    model: PathBuf,
    /// Image file; may be given several times, each is asked about in turn
    #[arg(long, required = true, num_args = 1.., value_name = "FILE")]
    image: Vec<PathBuf>,
    /// The question; `-` reads it from standard input
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: OsString,
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
    /// Where an answer ends
    #[arg(long, value_enum, default_value = "eos")]
    stop_at: StopAtArg,
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
    /// Seed for drawing
    #[arg(
        long,
        value_name = "S",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    seed: u64,
    /// Print one JSON object a line for each image
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum BackendArg {
    /// The one that the model was built for; the CPU for model folders
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

#[derive(Clone, Copy, ValueEnum)]
enum StopAtArg {
    Eos,
    Sentence,
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

impl Args {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// The first that occurs; answers before it were printed.
    pub fn run(self) -> anyhow::Result<()> {
        let cancel = interrupt::install()?;
        // What the arguments alone can tell is told before a model is fetched or loaded.
        let question = self.question()?;
        Text::check_question(&question)?;
        self.ask().sampling.validate()?;
        if self.backend == BackendArg::Tensorrt {
            return Err(Error::Unavailable {
                what: "the TensorRT backend".to_owned(),
                reason: "this version answers on the CPU engine; use --backend cpu".to_owned(),
            }
            .into());
        }
        let path = resolve(&self.model, self.variant.as_deref(), cancel)?;
        let mut pipeline = Pipeline::open(&path, self.variant.as_deref())?;
        say(format_args!(
            "{}: {} on the {} engine",
            path.display(),
            pipeline.precision(),
            pipeline.backend_name()
        ));
        let ask = Ask {
            cancel: Some(cancel),
            ..self.ask()
        };
        for image in &self.image {
            let frame = Frame::load(image)?;
            self.answer(&mut pipeline, &frame, &question, &ask)
                .with_context(|| image.display().to_string())?;
            if interrupt::interrupted() {
                break;
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        pipeline: &mut Pipeline,
        frame: &Frame,
        question: &str,
        ask: &Ask<'_>,
    ) -> anyhow::Result<()> {
        // Not locked while the model runs: the engine may print there, too (`RTEN_TIMING`).
        let mut out = stdout();
        if self.json {
            let answer = pipeline.ask(frame, question, ask, &mut |_| {})?;
            serde_json::to_writer(&mut out, &answer).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        // A sentence may be trimmed at its end, so that it is not printed before it is whole.
        let stream = self.stop_at() == StopAt::Eos;
        let terminal = out.is_terminal();
        let mut broken = None;
        let answer = pipeline.ask(frame, question, ask, &mut |piece| {
            if stream && broken.is_none() {
                let written = out
                    .write_all(shown(piece, terminal).as_bytes())
                    .and_then(|()| out.flush());
                broken = written.err();
            }
        })?;
        if let Some(e) = broken {
            return Err(e.into());
        }
        if !stream {
            out.write_all(shown(&answer.text, terminal).as_bytes())?;
        }
        writeln!(out)?;
        say(format_args!("  {}", summary(&answer)));
        Ok(())
    }

    fn question(&self) -> anyhow::Result<String> {
        if self.prompt == "-" {
            let mut bytes = Vec::new();
            stdin()
                .lock()
                .take(limits::PROMPT_BYTES as u64 + 1)
                .read_to_end(&mut bytes)
                .context("standard input")?;
            if bytes.len() > limits::PROMPT_BYTES {
                let reason = format!("longer than {} bytes", limits::PROMPT_BYTES);
                return Err(Error::Prompt { reason }.into());
            }
            let mut text =
                String::from_utf8(bytes).map_err(|e| not_utf8(e.utf8_error().valid_up_to()))?;
            // The line end that a terminal or `echo` adds is not part of the question.
            if text.ends_with('\n') {
                text.pop();
                text.truncate(text.strip_suffix('\r').unwrap_or(&text).len());
            }
            return Ok(text);
        }
        let bytes = self.prompt.as_encoded_bytes();
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(not_utf8(e.valid_up_to()).into()),
        }
    }

    fn stop_at(&self) -> StopAt {
        match self.stop_at {
            StopAtArg::Eos => StopAt::Eos,
            StopAtArg::Sentence => StopAt::Sentence,
        }
    }

    fn ask(&self) -> Ask<'static> {
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

/// A piece of an answer as it goes to stdout: to a terminal without what it would take for a
/// command, to a pipe or a file as the model wrote it.
fn shown(piece: &str, terminal: bool) -> Cow<'_, str> {
    match terminal {
        true => printable_lines(piece).into(),
        false => piece.into(),
    }
}

fn not_utf8(at: usize) -> Error {
    Error::Prompt {
        reason: format!("not valid UTF-8 at byte {at}"),
    }
}

fn summary(answer: &Answer) -> String {
    let times = answer.timings_ms;
    let rate = match answer.tokens_per_second() {
        Some(rate) => format!(", {rate:.1} tokens/s"),
        None => String::new(),
    };
    let why = match answer.stop {
        Stop::Eos => "",
        Stop::Length => ", cut at the length limit",
        Stop::Sentence => ", one sentence",
        Stop::Deadline => ", cut at the deadline",
        Stop::Cancelled => ", interrupted",
    };
    format!(
        "{} tokens{rate}, first token {:.0} ms (vision {:.0}, prefill {:.0}), total {:.0} ms{why}",
        answer.token_ids.len(),
        times.ttft,
        times.vision,
        times.prefill,
        times.total,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_is_cleaned_for_terminals_only() {
        let piece = "car\u{1b}[2J\u{9b}31m\r\n\tü";
        assert_eq!(shown(piece, false), piece);
        assert_eq!(shown(piece, true), "car\\u{1b}[2J\\u{9b}31m\\r\n\tü");
    }
}
