//! `trtvlm train`: small models beside a model that stays as it is.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget};

use super::interrupt;
use super::main::say;
use super::progress::style;
use super::source::resolve;
use super::train_pruner::PrunerArgs;
use super::train_quick::QuickArgs;
use crate::bundle::Bundle;
use crate::corrections::read_corrections;
use crate::error::{Error, Result};
use crate::items::{Item, read_items, spread};
use crate::model::{DraftKind, Model};
use crate::train::{DraftEvent, DraftOptions, DraftOutcome, decoder_fingerprints, train_draft};

/// Train what makes a model answer faster; the model itself stays as it is
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Draft(DraftArgs),
    Pruner(PrunerArgs),
    Quick(QuickArgs),
}

/// Train a drafter for --draft head or --draft early-exit
///
/// Asks the model every item once, then trains on what it said. After Ctrl-C the same command goes on where this one
/// was. Written into the folder `drafts` of the model folder, the draft is found by `run`, and goes into what
/// `build` makes.
#[derive(clap::Args)]
struct DraftArgs {
    /// Model folder or hf:OWNER/NAME
    model: PathBuf,
    /// What to train
    #[arg(long, value_enum)]
    kind: KindArg,
    /// JSONL file of pictures with questions, or a folder
    #[arg(long, value_name = "ITEMS.jsonl")]
    data: PathBuf,
    /// Refused drafts that `run` or `eval --collect` has written: learn from them, too
    #[arg(long, value_name = "FILE.jsonl")]
    corrections: Option<PathBuf>,
    /// Folder of the draft's files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Replace files that are there
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
    /// Most passes over the answers
    #[arg(long, value_name = "N", default_value_t = 20)]
    epochs: usize,
    /// Passes without a better result after which training ends
    #[arg(long, value_name = "N", default_value_t = 4)]
    patience: usize,
    /// Answers of a step
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Largest learning rate
    #[arg(long, value_name = "R", default_value_t = 2e-3)]
    rate: f64,
    /// Inner width, a multiple of 32 [default: the model's, rounded down to one]
    #[arg(long, value_name = "N")]
    width: Option<usize>,
    /// Last layer that an early exit runs, from 0 [default: a quarter of the layers]
    #[arg(long, value_name = "N")]
    exit_layer: Option<usize>,
    /// Most ids that are drafted
    #[arg(long, value_name = "N", default_value_t = 8192)]
    vocabulary: usize,
    /// Share of the pictures that is judged and not learned from
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    held_out: f64,
    /// Decides the first weights and the order of answers
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print the outcome as a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindArg {
    /// One transformer layer on the model's hidden states
    Head,
    /// The model's first layers with a small head
    EarlyExit,
}

impl Args {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Those of the training; what was collected and learned so far stays beside the output.
    pub fn run(self) -> anyhow::Result<()> {
        match self.what {
            What::Draft(args) => args.run(),
            What::Pruner(args) => args.run(),
            What::Quick(args) => args.run(),
        }
    }
}

/// The model to be trained for, and what it is asked.
///
/// # Errors
/// [`Error::Malformed`] for a bundle, which holds what was trained already; those of reading both.
pub fn model_and_items(
    model: &Path,
    variant: Option<&str>,
    data: &Path,
    samples: Option<usize>,
) -> anyhow::Result<(Model, Vec<Item>)> {
    let model = load_model(model, variant)?;
    let mut items = read_items(data)?;
    if let Some(n) = samples {
        items = spread(items, n);
    }
    Ok((model, items))
}

/// The model to be trained for.
///
/// # Errors
/// As [`model_and_items`].
pub fn load_model(model: &Path, variant: Option<&str>) -> anyhow::Result<Model> {
    let cancel = interrupt::install()?;
    let path = resolve(model, variant, cancel)?;
    if Bundle::is_bundle(&path) {
        return Err(Error::malformed(&path, "is a bundle; train on the model folder").into());
    }
    Ok(Model::load(&path, variant)?)
}

impl DraftArgs {
    fn run(self) -> anyhow::Result<()> {
        let variant = self.variant.as_deref();
        let (model, items) = model_and_items(&self.model, variant, &self.data, self.samples)?;
        let corrections = match &self.corrections {
            Some(path) => read_corrections(path, &decoder_fingerprints(&model)?)?,
            None => Vec::new(),
        };
        let options = DraftOptions {
            kind: match self.kind {
                KindArg::Head => DraftKind::Head,
                KindArg::EarlyExit => DraftKind::EarlyExit,
            },
            items: &items,
            corrections: &corrections,
            out: &self.out,
            force: self.force,
            epochs: self.epochs,
            patience: self.patience,
            batch: self.batch,
            rate: self.rate,
            width: self.width,
            exit_layer: self.exit_layer,
            vocabulary: self.vocabulary,
            held_out: self.held_out,
            max_tokens: self.max_tokens,
            seed: self.seed,
            cancel: &interrupt::interrupted,
        };
        let outcome = with_bar(|bar| train_draft(&model, &options, &mut |event| show(bar, &event)));
        self.print(&outcome?)
    }

    fn print(&self, outcome: &DraftOutcome) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, outcome).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        let best = &outcome.epochs[outcome.best - 1];
        Ok(writeln!(
            out,
            "{}: {} parameters, {} ids with {:.2} % of the probability; on held-out pictures {:.1} % accepted, {:.2} tokens a pass",
            outcome.graph.display(),
            outcome.parameters,
            outcome.vocabulary,
            100.0 * outcome.vocabulary_mass,
            100.0 * best.acceptance,
            best.tokens_per_pass,
        )?)
    }
}

/// Trains with a bar; says that it goes on from there if it was interrupted.
pub fn with_bar<T>(train: impl FnOnce(&mut Bar) -> Result<T>) -> Result<T> {
    let mut bar = Bar::default();
    let outcome = train(&mut bar);
    bar.finish();
    if matches!(outcome, Err(Error::Cancelled)) {
        say(format_args!(
            "interrupted; the same command goes on from here"
        ));
    }
    outcome
}

fn show(bar: &mut Bar, event: &DraftEvent) {
    match event {
        DraftEvent::Asked(done, total) => bar.show("asking", *done, *total),
        DraftEvent::Example(done, total, epoch) => bar.show_epoch(*epoch, *done, *total),
        DraftEvent::Epoch(report) => {
            bar.finish();
            say(format_args!(
                "epoch {}: loss {:.4}, {:.1} % accepted, {:.2} tokens a pass",
                report.epoch,
                report.loss,
                100.0 * report.acceptance,
                report.tokens_per_pass
            ));
        }
    }
}

/// One bar for the questions, one for each epoch.
#[derive(Default)]
pub struct Bar(Option<ProgressBar>);

impl Bar {
    /// Shows how far an epoch is, counted from 0.
    pub fn show_epoch(&mut self, epoch: usize, done: usize, total: usize) {
        self.show(&format!("epoch {}", epoch + 1), done, total);
    }

    /// Shows how far what is called `label` is.
    pub fn show(&mut self, label: &str, done: usize, total: usize) {
        let is_new = self.0.as_ref().is_none_or(|bar| bar.message() != label);
        if is_new {
            self.finish();
            let target = ProgressDrawTarget::stderr();
            let bar = ProgressBar::with_draw_target(Some(total as u64), target);
            bar.set_style(style("{msg} {bar:24} {pos}/{len}, {eta} left"));
            bar.set_message(label.to_owned());
            bar.set_position(done as u64);
            bar.reset_eta();
            self.0 = Some(bar);
        }
        if let Some(bar) = &self.0 {
            bar.set_position(done as u64);
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}
