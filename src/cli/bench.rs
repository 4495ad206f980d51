//! `trtvlm bench`: what each way to be faster costs and gains.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use indicatif::ProgressBar;

use super::files;
use super::interrupt;
use super::knobs::{Knobs, open};
use super::main::say;
use super::progress::style;
use crate::bench::{Machine, ModelDigest, Plan, Ran, Results, RowReport, SHARES, measure, plots};
use crate::error::Error;
use crate::eval::{Checked, check_items};
use crate::items::{read_items, spread};
use crate::pipeline::{Ask, Choice, Pipeline, Pruning};
use crate::prune::{Keep, Pruner};

/// Share of the ablation's rows with pruning, where `--keep` does not say.
const KEEP: f64 = 0.1;

/// Measure pruning and speculation beside plain answers, in turn on every item, with a table and plots
#[derive(clap::Args)]
pub struct Args {
    /// Model folder, bundle, or hf:OWNER/NAME
    model: PathBuf,
    /// JSONL file of pictures with questions and answers, or a folder that has an items.jsonl
    #[arg(long, value_name = "ITEMS.jsonl")]
    data: PathBuf,
    /// Folder for results.json, table.md and plots
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// --keep and --pruner are those of the rows with pruning [default: 0.1, the best that the model has], --draft that
    /// of the rows with speculation
    #[command(flatten)]
    knobs: Knobs,
    /// A quantized model or bundle of the same model, for the rows with it
    #[arg(long, value_name = "MODEL")]
    quantized: Option<PathBuf>,
    /// Files of its model folder to use
    #[arg(long, value_name = "NAME", requires = "quantized")]
    quantized_variant: Option<String>,
    /// Policies of the retention sweep, or none
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = parse_pruner)]
    sweep: Option<Vec<Option<Pruner>>>,
    /// Drafters of the sweep over lengths of drafts, or none [default: all that the model has]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    draft_sweep: Option<Vec<String>>,
    /// Items to ask, evenly spread over the list [default: all]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Times that the first question is asked in every configuration before anything is measured
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: usize,
    /// Pass over missing pictures, and items without an answer among others
    #[arg(long)]
    skip_missing: bool,
    /// Write into a folder that exists, over results that stand there
    #[arg(long)]
    force: bool,
}

fn parse_pruner(text: &str) -> Result<Option<Pruner>, Error> {
    match text {
        "none" => Ok(None),
        name => Pruner::from_str(name).map(Some),
    }
}

impl Args {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// The first that occurs; then nothing is written.
    pub fn run(self) -> anyhow::Result<()> {
        let cancel = interrupt::install()?;
        self.knobs.check()?;
        check_folder(&self.out, self.force)?;
        let checked = self.items()?;
        let ask = Ask {
            cancel: Some(cancel),
            ..self.knobs.ask()
        };
        let pruning = match ask.pruning.keep < Keep::ALL {
            true => ask.pruning,
            false => Pruning {
                keep: Keep::new(KEEP)?,
                ..ask.pruning
            },
        };
        let mut pipeline = self.knobs.open(&self.model, cancel)?;
        let pruners = match &self.sweep {
            Some(pruners) => pruners.iter().copied().flatten().collect(),
            None => pipeline.pruners(),
        };
        let plan = Plan {
            ask: Ask { pruning, ..ask },
            draft: ask.draft,
            pruners,
            shares: SHARES.to_vec(),
            drafters: self.drafters(&pipeline)?,
            most_draft_tokens: pipeline.most_draft_tokens(),
            quantized: self.quantized.is_some(),
        };
        let configurations = plan.configurations()?;
        let variant = self.quantized_variant.as_deref();
        let mut quantized = match &self.quantized {
            Some(model) => Some(open(model, variant, Choice::Auto, cancel)?),
            None => None,
        };
        let path = super::source::resolve(&self.model, self.knobs.variant(), cancel)?;
        let second = match (&self.quantized, &quantized) {
            (Some(model), Some(pipeline)) => {
                let path = super::source::resolve(model, variant, cancel)?;
                let digests = ModelDigest::of(&path, variant)?;
                Some((model.clone(), pipeline.precision().to_owned(), digests))
            }
            _ => None,
        };
        let ran = Ran {
            model: self.model.clone(),
            precision: pipeline.precision().to_owned(),
            digests: ModelDigest::of(&path, self.knobs.variant())?,
            quantized: second,
            data: self.data.clone(),
            items: checked.items.len(),
            command: std::env::args_os()
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect(),
        };
        let bar = ProgressBar::new(0);
        bar.set_style(style(
            "{spinner} {bar:24} {pos}/{len} answers [{elapsed}, {eta} left]",
        ));
        bar.enable_steady_tick(Duration::from_millis(100));
        let samples = measure(
            &mut pipeline,
            quantized.as_mut(),
            &checked.items,
            &configurations,
            self.warm_up,
            &mut |progress| {
                bar.set_length(progress.total as u64);
                bar.set_position(progress.done as u64);
            },
        );
        let done = bar.position();
        bar.finish_and_clear();
        if matches!(samples, Err(Error::Cancelled)) {
            say(format_args!("interrupted after {done} answers; no results"));
        }
        let samples = samples?;
        let rows = configurations.iter().zip(&samples);
        let results = Results {
            machine: Machine::here(),
            ran,
            rows: rows
                .map(|(of, samples)| RowReport::new(of, samples))
                .collect(),
        };
        self.write(&results)
    }

    /// Drafters of the sweep, which the model has.
    fn drafters(&self, pipeline: &Pipeline) -> Result<Vec<&'static str>, Error> {
        let all = pipeline.drafters();
        let Some(names) = &self.draft_sweep else {
            return Ok(all);
        };
        let names = names.iter().filter(|name| *name != "none");
        let known = |name: &String| {
            let found = all.iter().find(|own| *own == name);
            found.copied().ok_or_else(|| Error::Unavailable {
                what: format!("the drafter `{name}`"),
                reason: format!("this model has {}", all.join(", ")),
            })
        };
        names.map(known).collect()
    }

    fn items(&self) -> anyhow::Result<Checked> {
        for (name, n) in [
            ("samples", self.samples),
            ("max-tokens", self.knobs.ask().max_tokens),
        ] {
            if n == Some(0) {
                let reason = "0, at least 1".to_owned();
                return Err(Error::Argument { name, reason }.into());
            }
        }
        let mut items = read_items(&self.data)?;
        if let Some(n) = self.samples {
            items = spread(items, n);
        }
        Ok(check_items(&self.data, items, self.skip_missing)?)
    }

    fn write(&self, results: &Results) -> anyhow::Result<()> {
        fs::create_dir_all(&self.out).map_err(Error::io(&self.out))?;
        let table = results.markdown();
        let mut json = serde_json::to_vec_pretty(results)?;
        json.push(b'\n');
        for plot in plots(results) {
            files::write(&self.out.join(plot.name), plot.svg.as_bytes())?;
        }
        files::write(&self.out.join("table.md"), table.as_bytes())?;
        files::write(&self.out.join("results.json"), &json)?;
        let mut out = std::io::stdout().lock();
        std::io::Write::write_all(&mut out, table.as_bytes())?;
        Ok(())
    }
}

/// Refuses a folder that has something in it, before anything is measured.
fn check_folder(out: &Path, force: bool) -> Result<(), Error> {
    let meta = match fs::metadata(out) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(out)(e)),
    };
    if !meta.is_dir() {
        return Err(Error::malformed(out, "not a folder"));
    }
    let mut entries = fs::read_dir(out).map_err(Error::io(out))?;
    match entries.next().is_some() && !force {
        true => Err(Error::Exists {
            path: out.to_path_buf(),
        }),
        false => Ok(()),
    }
}
