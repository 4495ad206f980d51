//! `trtvlm train quick`.

use std::io::{Write, stdout};
use std::path::PathBuf;

use super::interrupt;
use super::main::say;
use super::table::Table;
use super::train::{Bar, load_model, with_bar};
use crate::error::Error;
use crate::model::read_text;
use crate::quick::Words;
use crate::train::{ClassReport, QuickEvent, QuickOptions, QuickOutcome, read_scenes, train_quick};

/// Train what answers without the language model, for --mode quick and auto
///
/// Shows the frozen vision tower every picture once, then trains a linear probe of what it makes of them: where objects
/// are, of which kind and colour, and what they stand on. How sure its answers are is measured on held-out pictures. After Ctrl-C
/// the same command goes on where this one was. As `quick.safetensors` in the model folder it is found by `run`, and
/// goes into what `build` makes.
#[derive(clap::Args)]
pub struct QuickArgs {
    /// Model folder or hf:OWNER/NAME
    model: PathBuf,
    /// JSONL file of pictures with `scene`, what is in them, or a folder that has an items.jsonl (docs/quick.md)
    #[arg(long, value_name = "ITEMS.jsonl")]
    data: PathBuf,
    /// JSON file of kinds, colours, questions and answers (docs/quick.md)
    #[arg(long, value_name = "WORDS.json")]
    words: PathBuf,
    /// The file to write
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    /// Files of the model folder to use: fp32, fp16, … [default: fp32, else fp16]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Most epochs
    #[arg(long, value_name = "N", default_value_t = 20)]
    epochs: usize,
    /// Epochs without a better score on held-out pictures after which training ends
    #[arg(long, value_name = "N", default_value_t = 5)]
    patience: usize,
    /// Pictures of a step
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// Largest learning rate
    #[arg(long, value_name = "R", default_value_t = 1e-2)]
    rate: f64,
    /// Share of the pictures that is judged and not learned from
    #[arg(long, value_name = "SHARE", default_value_t = 0.2)]
    held_out: f64,
    /// Least confidence of an answer that --mode auto takes without the language model, from 0 to 1
    #[arg(
        long,
        value_name = "SHARE",
        default_value_t = 0.9,
        allow_negative_numbers = true
    )]
    least: f64,
    /// Decides the first weights and the order of pictures
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    /// Print the outcome as a JSON object
    #[arg(long)]
    json: bool,
}

impl QuickArgs {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// Those of the training; what was collected and learned so far stays beside the output.
    pub fn run(self) -> anyhow::Result<()> {
        let text = read_text(&self.words)?;
        let words: Words = serde_json::from_str(&text)
            .map_err(|e| Error::malformed(&self.words, e.to_string()))?;
        words
            .check()
            .map_err(|reason| Error::malformed(&self.words, reason))?;
        let scenes = read_scenes(&self.data, &words)?;
        let model = load_model(&self.model, self.variant.as_deref())?;
        let options = QuickOptions {
            scenes: &scenes,
            words: &words,
            out: &self.out,
            force: self.force,
            epochs: self.epochs,
            patience: self.patience,
            batch: self.batch,
            rate: self.rate,
            held_out: self.held_out,
            least: self.least,
            seed: self.seed,
            cancel: &interrupt::interrupted,
        };
        let outcome = with_bar(|bar| train_quick(&model, &options, &mut |event| show(bar, &event)));
        self.print(&outcome?)
    }

    fn print(&self, outcome: &QuickOutcome) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, outcome).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        let judged = &outcome.judged;
        let mut table = Table::right(&[1, 2, 3, 4]);
        table.row(["held out", "there", "found", "precision", "recall"]);
        for class in [&judged.kinds, &judged.colours, &judged.grounds]
            .into_iter()
            .flatten()
        {
            table.row(row(class));
        }
        write!(out, "{}", table.render(0))?;
        let forms = judged.forms.iter();
        let forms = forms.map(|form| format!("{} {} of {}", form.form, form.right, form.asked));
        Ok(writeln!(
            out,
            "{}: {} parameters, threshold {}; right of {} held-out pictures: {}",
            outcome.file.display(),
            outcome.parameters,
            outcome.threshold,
            judged.pictures,
            forms.collect::<Vec<_>>().join(", "),
        )?)
    }
}

fn row(class: &ClassReport) -> [String; 5] {
    let percent = |share: Option<f64>| {
        share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
    };
    [
        class.name.clone(),
        class.there.to_string(),
        class.found.to_string(),
        percent(class.precision),
        percent(class.recall),
    ]
}

fn show(bar: &mut Bar, event: &QuickEvent) {
    match event {
        QuickEvent::Seen(done, total) => bar.show("looking", *done, *total),
        QuickEvent::Example(done, total, epoch) => bar.show_epoch(*epoch, *done, *total),
        QuickEvent::Epoch(report) => {
            bar.finish();
            say(format_args!(
                "epoch {}: loss {:.4}, {:.4} on held-out pictures",
                report.epoch, report.loss, report.held_out_loss,
            ));
        }
    }
}
