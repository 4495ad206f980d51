//! What `calibrate` and `build` share: pictures, how ranges are chosen, and the bar.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::ValueEnum;
use indicatif::ProgressBar;

use super::main::say;
use super::progress::{spinner, style};
use crate::calibrate::{
    CalibrateOptions, CalibrateOutcome, DEFAULT_SAMPLES, Progress, calibrate, sample_set,
};
use crate::error::{Error, Result};
use crate::items::{Item, read_items, spread};
use crate::model::Model;
use crate::quantize::Method;

/// Pictures, and how ranges are chosen from what they show.
#[derive(clap::Args)]
pub struct CalibrationArgs {
    /// Folder of pictures or JSONL file of items [default: the model folder's sample set]
    #[arg(long, value_name = "DIR|JSONL")]
    pub calibration: Option<PathBuf>,
    /// How a range is chosen [default: mse, or what a file of scales proposes]
    #[arg(long, value_enum)]
    pub calibration_method: Option<MethodArg>,
    /// Share of the values that the percentile method keeps inside, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 99.99)]
    percentile: f64,
    /// Items to observe, evenly spread over the list
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SAMPLES)]
    samples: usize,
}

/// How a range is chosen.
#[derive(Clone, Copy, ValueEnum)]
pub enum MethodArg {
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

impl CalibrationArgs {
    /// The method that was asked for.
    pub fn method(&self) -> Option<Method> {
        self.calibration_method.map(Method::from)
    }

    /// True if pictures or a method were named.
    pub fn is_given(&self) -> bool {
        self.calibration.is_some() || self.calibration_method.is_some()
    }

    /// Observes a model on `items`, those of [`CalibrationArgs::items`], and writes its scales to `out`.
    ///
    /// # Errors
    /// Those of the calibration; what was observed so far stays beside the output.
    pub fn observe(
        &self,
        model: &Model,
        items: &[Item],
        max_tokens: usize,
        out: &Path,
        force: bool,
        cancel: &'static AtomicBool,
    ) -> anyhow::Result<CalibrateOutcome> {
        say(format_args!(
            "{}: {} files, {} items",
            model.dir.display(),
            model.files.variant,
            items.len()
        ));
        let options = CalibrateOptions {
            items,
            method: self.method().unwrap_or(Method::Mse),
            percentile: self.percentile,
            max_tokens,
            out,
            force,
            cancel: Arc::new(|| cancel.load(Ordering::Relaxed)),
        };
        let mut bar = Bar::new();
        let mut done = 0;
        let outcome = calibrate(model, &options, &mut |progress| {
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
        Ok(outcome?)
    }

    /// The pictures, with questions: those that were named, else the model folder's sample set.
    ///
    /// # Errors
    /// [`Error::Argument`] if there is no sample set; those of reading the list.
    pub fn items(&self, model: &Model) -> Result<Vec<Item>> {
        if self.samples == 0 {
            return Err(Error::Argument {
                name: "samples",
                reason: "0, at least 1".to_owned(),
            });
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
}

/// The bar: items and the time that remains, on a terminal only.
struct Bar {
    bar: ProgressBar,
    begun: bool,
}

impl Bar {
    fn new() -> Self {
        let bar = spinner("reading the model");
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
