//! `trtvlm run`: questions about image files.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::path::PathBuf;

use anyhow::Context;

use super::collect::CollectArgs;
use super::files;
use super::interrupt;
use super::knobs::Knobs;
use super::main::say;
use super::table::printable_lines;
use crate::decode::Stop;
use crate::error::Error;
use crate::limits;
use crate::pipeline::{Answer, Ask, Mode, Pipeline, StopAt};
use crate::preprocess::Frame;
use crate::text::Text;

/// Where answers go, for errors.
const STDOUT: &str = "standard output";

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
    #[command(flatten)]
    knobs: Knobs,
    #[command(flatten)]
    collect: CollectArgs,
    /// Draw which visual tokens stayed, and the pruner's scores, on the image into this PNG file
    #[arg(long, value_name = "OUT.png")]
    overlay: Option<PathBuf>,
    /// Print one JSON object a line for each image
    #[arg(long)]
    json: bool,
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
        self.knobs.check()?;
        self.collect.check(&self.knobs)?;
        self.check_overlay()?;
        let mut pipeline = self.knobs.open(&self.model, cancel)?;
        let mut collecting = self.collect.open(&pipeline)?;
        let ask = Ask {
            cancel: Some(cancel),
            ..self.knobs.ask()
        };
        for image in &self.image {
            interrupt::end_at_once(true);
            let frame = Frame::load(image)?;
            let answer = self.answer(&mut pipeline, &frame, &question, &ask)?;
            if let Some(collecting) = &mut collecting {
                collecting.add(image, &question, &answer)?;
            }
            if interrupt::interrupted() {
                break;
            }
        }
        if let Some(collecting) = collecting {
            collecting.finish();
        }
        Ok(())
    }

    fn answer(
        &self,
        pipeline: &mut Pipeline,
        frame: &Frame,
        question: &str,
        ask: &Ask<'_>,
    ) -> anyhow::Result<Answer> {
        let about = || frame.name().to_owned();
        // Not locked while the model runs: the engine may print there, too (`RTEN_TIMING`).
        let mut out = stdout();
        if self.json {
            let mut begun = |_: &str| interrupt::end_at_once(false);
            let answer = pipeline.ask(frame, question, ask, &mut begun);
            let answer = answer.with_context(about)?;
            self.draw_overlay(frame, &answer)?;
            // A line is whole or not there.
            interrupt::end_at_once(false);
            let written = serde_json::to_writer(&mut out, &answer).map_err(std::io::Error::from);
            written.and_then(|()| writeln!(out)).context(STDOUT)?;
            return Ok(answer);
        }
        // A sentence may be trimmed at its end, so that it is not printed before it is whole.
        let stream = self.knobs.stop_at() == StopAt::Eos;
        let terminal = out.is_terminal();
        let mut broken = None;
        let answer = pipeline.ask(frame, question, ask, &mut |piece| {
            interrupt::end_at_once(false);
            if stream && broken.is_none() {
                let written = out
                    .write_all(shown(piece, terminal).as_bytes())
                    .and_then(|()| out.flush());
                broken = written.err();
            }
        });
        let answer = answer.with_context(about)?;
        broken.map_or(Ok(()), Err).context(STDOUT)?;
        if !stream {
            let text = shown(&answer.text, terminal);
            out.write_all(text.as_bytes()).context(STDOUT)?;
        }
        writeln!(out).context(STDOUT)?;
        self.draw_overlay(frame, &answer)?;
        say(format_args!("  {}", summary(&answer)));
        Ok(answer)
    }

    /// Refuses what no overlay can be written to, before a model is loaded.
    fn check_overlay(&self) -> Result<(), Error> {
        let Some(path) = &self.overlay else {
            return Ok(());
        };
        let refused = |reason: String| {
            Err(Error::Argument {
                name: "overlay",
                reason,
            })
        };
        let is_png = path
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("png"));
        if !is_png {
            return refused(format!("{}: its name has to end in .png", path.display()));
        }
        if self.image.len() > 1 {
            return refused(format!("one picture of {} images", self.image.len()));
        }
        files::check_output(path)
    }

    fn draw_overlay(&self, frame: &Frame, answer: &Answer) -> anyhow::Result<()> {
        let Some(path) = &self.overlay else {
            return Ok(());
        };
        if answer.visual_tokens.view.is_none() {
            // Nothing was seen before it was interrupted.
            return Ok(());
        }
        let png = answer.visual_tokens.overlay(frame)?;
        Ok(files::write(path, &png)?)
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
    if answer.mode.answered == Mode::Quick {
        return format!(
            "without the language model, {:.1} % sure, total {:.0} ms (vision {:.0}, answer {:.1})",
            100.0 * answer.mode.confidence.unwrap_or(0.0),
            times.total,
            times.vision,
            answer.mode.quick_ms,
        );
    }
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
