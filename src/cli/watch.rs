//! `trtvlm watch`: questions about frames as they come.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;

use super::interrupt;
use super::knobs::Knobs;
use super::main::say;
use crate::decode::Stop;
use crate::error::Error;
use crate::pipeline::{Answer, Ask, Pipeline};
use crate::preprocess::Frame;
use crate::text::Text;
use crate::watch::{Latest, RawSpec, Source, Taken};

/// Where answers go, for errors.
const STDOUT: &str = "standard output";

/// How long one sleeps before looking whether to stop.
const NAP: Duration = Duration::from_millis(20);

/// Ask questions about the frames of a camera, video, folder or pipe
#[derive(clap::Args)]
pub struct Args {
    /// Model folder, bundle, or hf:OWNER/NAME
    model: PathBuf,
    /// Where frames come from: a folder, a pattern such as 'shots/*.jpg', /dev/videoN, a video file (both through
    /// ffmpeg), or - for MJPEG, Y4M or raw frames on the standard input
    #[arg(long, value_name = "SOURCE")]
    source: PathBuf,
    /// Raw frames on the standard input: rgb24, bgr24, gray, nv12, yuv420p or yuvj420p, and their size
    #[arg(long, value_name = "NAME:WxH")]
    format: Option<RawSpec>,
    /// The question; may be given several times, each is asked about every frame
    #[arg(long, required = true, value_name = "TEXT", allow_hyphen_values = true)]
    ask: Vec<String>,
    /// Least time from one frame that is asked about to the next, such as 500ms or 2s; 0 = as fast as answers come
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = parse_time)]
    every: Duration,
    /// Most time for an answer, such as 100ms: what is there by then is printed
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    deadline: Option<Duration>,
    /// Drop no frame: the source waits (folders always do)
    #[arg(long)]
    all: bool,
    /// End after so many frames
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    knobs: Knobs,
}

/// One line of the output.
#[derive(Serialize)]
struct Line<'a> {
    /// Number of the frame at its source, from 1.
    frame: u64,
    /// From the first frame to this one.
    time_ms: f64,
    /// How old the frame was when the answer was there.
    age_ms: f64,
    /// Frames that nobody was asked about, up to now.
    dropped: u64,
    /// Frames that could not be used, up to now.
    broken: u64,
    question: &'a str,
    #[serde(flatten)]
    answer: &'a Answer,
}

impl Args {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// The first that occurs; answers before it were printed.
    pub fn run(self) -> anyhow::Result<()> {
        let cancel = interrupt::install()?;
        for question in &self.ask {
            Text::check_question(question)?;
        }
        self.knobs.check()?;
        let source = Source::of(&self.source);
        let mut pipeline = self.knobs.open(&self.model, cancel)?;
        interrupt::end_at_once(true);
        let latest = Latest::start(source.open(self.format)?, self.all || source.can_wait());
        let ask = Ask {
            cancel: Some(cancel),
            ..self.knobs.ask()
        };
        let n_asked = self.watch(&mut pipeline, &latest, &ask);
        let (dropped, broken) = latest.lost();
        if let Ok(n_asked) = &n_asked {
            say(format_args!(
                "{n_asked} frames asked about, {dropped} dropped, {broken} broken"
            ));
            if *n_asked == 0 && !interrupt::interrupted() {
                return Err(Error::malformed(&self.source, "no frame could be used").into());
            }
        }
        n_asked.map(drop)
    }

    /// Asks until there are no more frames, or enough; returns how many there were.
    fn watch(
        &self,
        pipeline: &mut Pipeline,
        latest: &Latest,
        ask: &Ask<'_>,
    ) -> anyhow::Result<u64> {
        let go_on = || !interrupt::interrupted();
        let mut frame = Frame::empty("frame");
        let (mut n_asked, mut first) = (0, None);
        while go_on() && self.count.is_none_or(|count| n_asked < count) {
            let due = Instant::now() + self.every;
            let Some(taken) = latest.take(&mut frame, &go_on)? else {
                break;
            };
            let first = *first.get_or_insert(taken.at);
            for question in &self.ask {
                if !self.answer(pipeline, &frame, question, ask, (&taken, first))? {
                    return Ok(n_asked);
                }
            }
            n_asked += 1;
            let is_last = self.count == Some(n_asked);
            while !is_last && go_on() && Instant::now() < due {
                thread::sleep(NAP.min(due.saturating_duration_since(Instant::now())));
            }
        }
        Ok(n_asked)
    }

    /// Prints one answer; false if it was interrupted.
    fn answer(
        &self,
        pipeline: &mut Pipeline,
        frame: &Frame,
        question: &str,
        ask: &Ask<'_>,
        (taken, first): (&Taken, Instant),
    ) -> anyhow::Result<bool> {
        let deadline = self.deadline.map(|time| Instant::now() + time);
        let ask = Ask { deadline, ..*ask };
        interrupt::end_at_once(true);
        let answer = pipeline.ask(frame, question, &ask, &mut |_| {
            interrupt::end_at_once(false);
        });
        // A line is whole or not there.
        interrupt::end_at_once(false);
        let answer = answer.with_context(|| format!("frame {}", taken.number))?;
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let line = Line {
            frame: taken.number,
            time_ms: ms(taken.at.saturating_duration_since(first)),
            age_ms: ms(taken.at.elapsed()),
            dropped: taken.dropped,
            broken: taken.broken,
            question,
            answer: &answer,
        };
        let mut out = stdout().lock();
        let written = serde_json::to_writer(&mut out, &line).map_err(std::io::Error::from);
        let written = written
            .and_then(|()| writeln!(out))
            .and_then(|()| out.flush());
        written.context(STDOUT)?;
        Ok(answer.stop != Stop::Cancelled)
    }
}

/// A time with its unit: `500ms`, `2s`, `0`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}`, expected a time such as 500ms or 2s");
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 1e-3),
        (None, Some(number)) => (number, 1.0),
        (None, None) if text == "0" => (text, 1.0),
        (None, None) => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    // A day is longer than anybody waits for a frame.
    let seconds = number * unit;
    match (0.0..=86_400.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, ms) in [
            ("500ms", 500),
            ("2s", 2000),
            ("0", 0),
            ("1.5s", 1500),
            ("0ms", 0),
        ] {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in [
            "", "5", "s", "ms", "-1s", "nans", "infs", "1e9s", "2 m", "2m",
        ] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
