//! `trtvlm calibrate`: a file of scales from a model folder and pictures.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use indicatif::ProgressBar;

use super::interrupt;
use super::main::say;
use super::progress::style;
use super::source::resolve;
use crate::bundle::Bundle;
use crate::calibrate::{
    CalibrateOptions, CalibrateOutcome, DEFAULT_SAMPLES, DEFAULT_TOKENS, Progress, calibrate,
    sample_set,
};
use crate::error::Error;
use crate::items::{Item, read_items, spread};
use crate::model::Model;
use crate::quantize::Method;

/// Observe a model on pictures and write the ranges of its tensors
#[derive(clap::Args)]
pub struct Args {
    /// Model folder or hf:OWNER/NAME
    model: PathBuf,
    /// Folder of pictures or JSONL file of items [default: the model folder's sample set]
    #[arg(long, value_name = "DIR|JSONL")]
    calibration: Option<PathBuf>,
    /// How a range is chosen; the file holds those of all methods
    #[arg(long, value_enum, default_value = "entropy")]
    calibration_method: MethodArg,
    /// Share of the values that the percentile method keeps inside, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 99.99)]
    percentile: f64,
    /// Items to observe, evenly spread over the list
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SAMPLES)]
    samples: usize,
    /// Most tokens of each answer
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TOKENS)]
    max_tokens: usize,
    /// Files of the model folder to use: fp32, fp16, … [default: fp32, else fp16]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// The file of scales
    #[arg(long, value_name = "FILE", default_value = "scales.json")]
    out: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Print the outcome as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum MethodArg {
    /// Least Kullback-Leibler divergence
    Entropy,
    /// A share of the values
    Percentile,
    /// Least mean squared error
    Mse,
    /// The largest value
    Max,
}

impl From<MethodArg> for Method {
    fn from(method: MethodArg) -> Self {
        match method {
            MethodArg::Entropy => Self::Entropy,
            MethodArg::Percentile => Self::Percentile,
            MethodArg::Mse => Self::Mse,
            MethodArg::Max => Self::Max,
        }
    }
}

impl Args {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Those of the calibration; what was observed so far stays beside the output.
    pub fn run(self) -> anyhow::Result<()> {
        let cancel: &'static AtomicBool = interrupt::install()?;
        let path = resolve(&self.model, self.variant.as_deref(), cancel)?;
        if Bundle::is_bundle(&path) {
            return Err(Error::malformed(&path, "is a bundle; calibrate the model folder").into());
        }
        let model = Model::load(&path, self.variant.as_deref())?;
        let items = self.items(&model)?;
        say(format_args!(
            "{}: {} files, {} items",
            path.display(),
            model.files.variant,
            items.len()
        ));
        let options = CalibrateOptions {
            items: &items,
            method: self.calibration_method.into(),
            percentile: self.percentile,
            max_tokens: self.max_tokens,
            out: &self.out,
            force: self.force,
            cancel: Arc::new(|| cancel.load(Ordering::Relaxed)),
        };
        let mut bar = Bar::new();
        let mut done = 0;
        let outcome = calibrate(&model, &options, &mut |progress| {
            done = progress.done;
            bar.on(progress);
        });
        bar.finish();
        if matches!(outcome, Err(Error::Cancelled)) {
            say(format_args!(
                "interrupted: {done} of {} items are kept; the same command continues",
                items.len()
            ));
        }
        self.print(&outcome?)
    }

    fn items(&self, model: &Model) -> anyhow::Result<Vec<Item>> {
        if self.samples == 0 {
            return Err(Error::Argument {
                name: "samples",
                reason: "0, at least 1".to_owned(),
            }
            .into());
        }
        let data = match &self.calibration {
            Some(data) => data.clone(),
            None => {
                let data = sample_set(&model.dir)?;
                tracing::warn!(
                    "no --calibration: using the sample pictures in {}; your own camera's are better",
                    data.display()
                );
                data
            }
        };
        let items = read_items(&data)?;
        if items.len() > self.samples {
            say(format_args!(
                "{}: {} of {} items (--samples)",
                data.display(),
                self.samples,
                items.len()
            ));
        }
        Ok(spread(items, self.samples))
    }

    fn print(&self, outcome: &CalibrateOutcome) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, outcome).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        const SHOWN: usize = 5;
        if !outcome.constant.is_empty() {
            let mut names = outcome.constant[..outcome.constant.len().min(SHOWN)].join(", ");
            if outcome.constant.len() > SHOWN {
                names.push_str(", …");
            }
            say(format_args!(
                "{} tensors never change on these pictures: {names}",
                outcome.constant.len()
            ));
        }
        if !outcome.skipped.is_empty() {
            say(format_args!(
                "{} pictures could not be read",
                outcome.skipped.len()
            ));
        }
        let [vision, decoder] = outcome.tensors;
        Ok(writeln!(
            out,
            "{}: {vision} tensors of the vision tower, {decoder} of the decoder, from {} items in {:.1} s",
            outcome.out.display(),
            outcome.items,
            outcome.seconds
        )?)
    }
}

/// The bar: items and the time that remains, on a terminal only.
struct Bar {
    bar: ProgressBar,
    begun: bool,
}

impl Bar {
    fn new() -> Self {
        let bar = ProgressBar::new(0);
        bar.set_style(style("{spinner} {msg} [{elapsed}]"));
        bar.set_message("reading the model");
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar, begun: false }
    }

    fn on(&mut self, progress: &Progress) {
        if !self.begun {
            self.begun = true;
            self.bar.set_style(style(
                "{spinner} {bar:24} {pos}/{len} {msg} [{elapsed}, {eta} left]",
            ));
            self.bar.set_length(progress.total as u64);
            // What an earlier run did says nothing about the speed of this one.
            self.bar.set_position(progress.resumed as u64);
            self.bar.reset_eta();
            self.bar.set_message("items");
        }
        self.bar.set_position(progress.done as u64);
        if progress.skipped > 0 {
            self.bar
                .set_message(format!("items, {} skipped", progress.skipped));
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
