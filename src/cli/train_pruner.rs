//! `trtvlm train pruner`.

use std::io::{Write, stdout};
use std::path::PathBuf;

use super::interrupt;
use super::main::say;
use super::train::{Bar, model_and_items, with_bar};
use crate::train::{PrunerEvent, PrunerOptions, PrunerOutcome, train_pruner};

/// Train what chooses visual tokens for --pruner learned
///
/// Looks once at what the model attends to when it answers, then trains a small net to know from the picture and the
/// question which visual tokens that will be. After Ctrl-C the same command goes on where this one was. As `pruner.safetensors` in the
/// model folder it is found by `run`, and goes into what `build` makes.
#[derive(clap::Args)]
pub struct PrunerArgs {
    /// Model folder or hf:OWNER/NAME
    model: PathBuf,
    /// JSONL file of pictures with questions, or a folder; where there is no answer the model gives one
    #[arg(long, value_name = "ITEMS.jsonl")]
    data: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Items to ask, evenly spread over the list [default: all]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Files of the model folder to use: fp32, fp16, … [default: fp32, else fp16]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Most tokens of an answer [default: what the model says, else 64]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Most epochs
    #[arg(long, value_name = "N", default_value_t = 12)]
    epochs: usize,
    /// Epochs without a better score on held-out pictures after which training ends
    #[arg(long, value_name = "N", default_value_t = 12)]
    patience: usize,
    /// Pictures of a step
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Largest learning rate
    #[arg(long, value_name = "R", default_value_t = 4e-3)]
    rate: f64,
    /// Width of the projections, a multiple of 16
    #[arg(long, value_name = "N", default_value_t = 16)]
    width: usize,
    /// What a token that stays leaves its neighbours of their importance, from 0 to 1
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.05,
        allow_negative_numbers = true
    )]
    neighbours: f64,
    /// Share of the tokens that stay which lie evenly over the picture, from 0 to 1
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.4,
        allow_negative_numbers = true
    )]
    anchors: f64,
    /// Share of the pictures that is judged and not learned from
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    held_out: f64,
    /// Decides the first weights and the order of pictures
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print the outcome as a JSON object
    #[arg(long)]
    json: bool,
}

impl PrunerArgs {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Those of the training; what was collected and learned so far stays beside the output.
    pub fn run(self) -> anyhow::Result<()> {
        let variant = self.variant.as_deref();
        let (model, items) = model_and_items(&self.model, variant, &self.data, self.samples)?;
        let options = PrunerOptions {
            items: &items,
            out: &self.out,
            force: self.force,
            epochs: self.epochs,
            patience: self.patience,
            batch: self.batch,
            rate: self.rate,
            width: self.width,
            neighbours: self.neighbours,
            anchors: self.anchors,
            held_out: self.held_out,
            max_tokens: self.max_tokens,
            seed: self.seed,
            cancel: &interrupt::interrupted,
        };
        let outcome =
            with_bar(|bar| train_pruner(&model, &options, &mut |event| show(bar, &event)));
        self.print(&outcome?)
    }

    fn print(&self, outcome: &PrunerOutcome) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, outcome).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        let best = &outcome.epochs[outcome.best - 1];
        Ok(writeln!(
            out,
            "{}: {} parameters; on held-out pictures the tenth of the tokens that it prefers gets {:.1} % of the attention that the best tenth gets",
            outcome.file.display(),
            outcome.parameters,
            100.0 * best.attention,
        )?)
    }
}

fn show(bar: &mut Bar, event: &PrunerEvent) {
    match event {
        PrunerEvent::Asked(done, total) => bar.show("asking", *done, *total),
        PrunerEvent::Example(done, total, epoch) => bar.show_epoch(*epoch, *done, *total),
        PrunerEvent::Epoch(report) => {
            bar.finish();
            say(format_args!(
                "epoch {}: loss {:.4}, {:.1} % of the attention",
                report.epoch,
                report.loss,
                100.0 * report.attention,
            ));
        }
    }
}
