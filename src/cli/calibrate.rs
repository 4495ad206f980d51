//! `trtvlm calibrate`: a file of scales from a model folder and pictures.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use super::calibration::CalibrationArgs;
use super::interrupt;
use super::main::say;
use super::source::resolve;
use crate::bundle::Bundle;
use crate::calibrate::{CalibrateOutcome, DEFAULT_TOKENS};
use crate::error::Error;
use crate::model::Model;

/// Observe a model on pictures and write the ranges of its tensors
#[derive(clap::Args)]
pub struct Args {
    /// Model folder or hf:OWNER/NAME
    model: PathBuf,
    #[command(flatten)]
    calibration: CalibrationArgs,
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
        let items = self.calibration.items(&model)?;
        let (max_tokens, out, force) = (self.max_tokens, &self.out, self.force);
        let outcome = (self.calibration).observe(&model, &items, max_tokens, out, force, cancel)?;
        self.print(&outcome)
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
