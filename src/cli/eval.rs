//! `trtvlm eval`: many questions whose answers are known.

use std::io::{Write, stdout};
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{HumanBytes, ProgressBar};

use super::collect::CollectArgs;
use super::interrupt;
use super::knobs::{Knobs, open};
use super::main::say;
use super::progress::style;
use super::table::Table;
use crate::error::Error;
use crate::eval::{
    AgreementReport, Checked, Energy, EvalOptions, Progress, Report, Share, check_items, evaluate,
};
use crate::items::{read_items, spread};
use crate::pipeline::{Ask, Choice, Mode};

/// Missing or differing items that are listed for people; `--json` has all.
const LISTED: usize = 20;

/// Ask many questions and say how many answers are right, and how fast they came
#[derive(clap::Args)]
pub struct Args {
    /// Model folder, bundle, or hf:OWNER/NAME
    model: PathBuf,
    /// JSONL file of pictures with questions and answers, or a folder that has an items.jsonl
    #[arg(long, value_name = "ITEMS.jsonl")]
    data: PathBuf,
    #[command(flatten)]
    knobs: Knobs,
    #[command(flatten)]
    collect: CollectArgs,
    /// Model to agree with, run alongside [default: the token ids of the items]
    #[arg(long, value_name = "MODEL")]
    reference: Option<PathBuf>,
    /// Files of the reference's model folder to use
    #[arg(long, value_name = "NAME", requires = "reference")]
    reference_variant: Option<String>,
    /// Items to ask, evenly spread over the list [default: all]
    #[arg(long, value_name = "N")]
    samples: Option<usize>,
    /// Times that the first question is asked before anything is measured
    #[arg(long, value_name = "N", default_value_t = 1)]
    warm_up: usize,
    /// Pass over missing pictures, and items without an answer among others
    #[arg(long)]
    skip_missing: bool,
    /// Exit with 3 if less than this share of the answers is right, from 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    min_accuracy: Option<f64>,
    /// Exit with 3 if less than this share of the answers agrees with the reference, from 0 to 1
    #[arg(long, value_name = "SHARE", value_parser = parse_share)]
    min_agreement: Option<f64>,
    /// Print the report as a JSON object
    #[arg(long)]
    json: bool,
}

fn parse_share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("expected a share from 0 to 1, such as 0.95".to_owned()),
    }
}

impl Args {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// [`Error::Threshold`] if a threshold was missed, after the report was printed; else the first
    /// that occurs, and nothing is printed.
    pub fn run(self) -> anyhow::Result<()> {
        let cancel = interrupt::install()?;
        self.knobs.check()?;
        self.collect.check(&self.knobs)?;
        let checked = self.items()?;
        let mut pipeline = self.knobs.open(&self.model, cancel)?;
        let mut collecting = self.collect.open(&pipeline)?;
        let mut reference = match &self.reference {
            Some(model) => Some(open(
                model,
                self.reference_variant.as_deref(),
                Choice::Auto,
                cancel,
            )?),
            None => None,
        };
        let options = EvalOptions {
            ask: Ask {
                cancel: Some(cancel),
                ..self.knobs.ask()
            },
            skip_missing: self.skip_missing,
            warm_up: self.warm_up,
        };
        let mut bar = Bar::new(checked.items.len());
        let mut last = None;
        let evaluation = evaluate(
            &mut pipeline,
            reference.as_mut(),
            &checked.items,
            &options,
            &mut |progress| {
                last = Some(*progress);
                bar.on(progress);
            },
        );
        bar.finish();
        if let (Err(Error::Cancelled), Some(progress)) = (&evaluation, last) {
            say(format_args!(
                "interrupted after {} of {} items, of which {}; no report",
                progress.done,
                progress.total,
                so_far(&progress)
            ));
        }
        let reference = self.reference.as_ref().zip(reference.as_ref());
        let reference = reference.map(|(path, model)| {
            let (path, precision) = (path.display(), model.precision());
            format!("{path} ({precision})")
        });
        let evaluation = evaluation?;
        let report = Report::new(
            self.model.clone(),
            self.data.clone(),
            &checked,
            reference,
            &evaluation,
        );
        self.print(&report)?;
        if let Some(collecting) = &mut collecting {
            for outcome in &evaluation.outcomes {
                let item = &checked.items[outcome.item];
                collecting.add(&item.image, &item.prompt, &outcome.answer)?;
            }
        }
        if let Some(collecting) = collecting {
            collecting.finish();
        }
        Ok(self.check(&report)?)
    }

    fn items(&self) -> anyhow::Result<Checked> {
        let argument = |name, reason: &str| Error::Argument {
            name,
            reason: reason.to_owned(),
        };
        if self.samples == Some(0) {
            return Err(argument("samples", "0, at least 1").into());
        }
        if self.knobs.ask().max_tokens == Some(0) {
            return Err(argument("max-tokens", "0, at least 1: there is nothing to judge").into());
        }
        let mut items = read_items(&self.data)?;
        if let Some(n) = self.samples {
            items = spread(items, n);
        }
        let checked = check_items(&self.data, items, self.skip_missing)?;
        let without = |what: &str| {
            let reason = format!("no item that can be asked has {what}");
            Error::malformed(&self.data, reason)
        };
        let has_answers = checked.items.iter().any(|item| item.answer.is_some());
        if self.min_accuracy.is_some() && !has_answers {
            return Err(without("an `answer`, which --min-accuracy needs").into());
        }
        if self.min_agreement.is_some() && self.knobs.ask().mode != Mode::Full {
            let reason =
                "agreement is of token ids, which answers of --mode quick and auto may not have";
            return Err(argument("min-agreement", reason).into());
        }
        let has_ids = checked.items.iter().any(|item| item.token_ids.is_some());
        if self.min_agreement.is_some() && self.reference.is_none() && !has_ids {
            return Err(without("`token_ids`, and there is no --reference to agree with").into());
        }
        if !has_answers {
            tracing::warn!(
                "{}: no item has an `answer`: accuracy is not measured",
                self.data.display()
            );
        }
        Ok(checked)
    }

    fn check(&self, report: &Report) -> Result<(), Error> {
        let agreement = report.agreement.as_ref().map(|a| a.answers);
        let thresholds = [
            ("accuracy", report.accuracy, self.min_accuracy),
            ("agreement", agreement, self.min_agreement),
        ];
        for (what, share, least) in thresholds {
            if let (Some(share), Some(least)) = (share, least)
                && share.share < least
            {
                return Err(Error::Threshold {
                    what,
                    actual: format!("{:.4} ({} of {})", share.share, share.hits, share.of),
                    expected: least.to_string(),
                });
            }
        }
        Ok(())
    }

    fn print(&self, report: &Report) -> anyhow::Result<()> {
        for (paths, what) in [
            (&report.items.missing, "missing"),
            (&report.items.unreadable, "unreadable"),
        ] {
            for path in paths.iter().take(LISTED) {
                say(format_args!("  {what}: {}", path.display()));
            }
            if paths.len() > LISTED {
                say(format_args!("  … and {} more", paths.len() - LISTED));
            }
        }
        let mut out = stdout().lock();
        if self.json {
            serde_json::to_writer(&mut out, report).map_err(std::io::Error::from)?;
            return Ok(writeln!(out)?);
        }
        write!(out, "{}", text(report))?;
        if let Some(agreement) = &report.agreement {
            list_differences(agreement);
        }
        Ok(())
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    let items = &report.items;
    let mut text = format!(
        "{} of {} items asked in {:.1} s",
        items.asked, items.total, report.seconds
    );
    for (n, what) in [
        (items.missing.len(), "missing"),
        (items.unreadable.len(), "unreadable"),
        (items.unanswered, "without an answer"),
    ] {
        if n > 0 {
            text.push_str(&format!(", {n} {what}"));
        }
    }
    text.push_str("\n\n");

    let cell = |share: Option<Share>| share.map_or_else(|| "-".to_owned(), percent);
    let mut table = Table::right(&[1]);
    let quick = report.quick.as_ref();
    let headings = ["", "items", "right, with 95 % interval", "agrees"].map(str::to_owned);
    let of_quick = ["quick", "language model right"].map(str::to_owned);
    let row = |row: [String; 4], more: [String; 2]| -> Vec<String> {
        let more = more.into_iter().filter(|_| quick.is_some());
        row.into_iter().chain(more).collect()
    };
    table.row(row(headings, of_quick));
    for (name, family) in &report.families {
        let more = [cell(family.quick), cell(family.full_accuracy)];
        let family = [
            name.clone(),
            family.items.to_string(),
            cell(family.accuracy),
            cell(family.agreement),
        ];
        table.row(row(family, more));
    }
    let answers = report.agreement.as_ref().map(|a| a.answers);
    let all = [
        "all".to_owned(),
        items.asked.to_string(),
        cell(report.accuracy),
        cell(answers),
    ];
    let more = [
        cell(quick.map(|quick| quick.answered)),
        cell(quick.and_then(|quick| quick.full_accuracy)),
    ];
    table.row(row(all, more));
    text.push_str(&table.render(0));
    if let Some(quick) = quick {
        text.push_str(&format!(
            "mode {}: quick answers right: {}; refused: {}\n",
            quick.mode,
            cell(quick.accuracy),
            quick.refused
        ));
    }
    if let Some(agreement) = &report.agreement {
        let tokens = agreement.tokens;
        text.push_str(&format!(
            "reference: {}; ids up to the first difference: {} of {}\n",
            agreement.reference, tokens.hits, tokens.of
        ));
        if let Some(accuracy) = agreement.reference_accuracy {
            text.push_str(&format!("reference right: {}\n", percent(accuracy)));
        }
    }

    let mut table = Table::right(&[1, 2, 3, 4, 5]);
    table.row(["ms", "mean", "p50", "p95", "p99", "max"]);
    for (name, spread) in report.latency_ms.stages() {
        if let Some(s) = spread {
            let numbers = [s.mean, s.p50, s.p95, s.p99, s.max].map(|ms| format!("{ms:.1}"));
            table.row(std::iter::once(name.to_owned()).chain(numbers));
        }
    }
    if let Some(s) = quick.and_then(|quick| quick.full_latency_ms.total) {
        let numbers = [s.mean, s.p50, s.p95, s.p99, s.max].map(|ms| format!("{ms:.1}"));
        table.row(std::iter::once("total, language model".to_owned()).chain(numbers));
    }
    text.push('\n');
    text.push_str(&table.render(0));
    text.push('\n');
    if let Some(rate) = report.tokens.per_second {
        text.push_str(&format!("{rate:.1} tokens/s, "));
    }
    text.push_str(&format!("{} tokens in all\n", report.tokens.total));
    text.push_str(&match report.peak_memory_bytes {
        Some(bytes) => format!("peak memory: {}\n", HumanBytes(bytes)),
        None => "peak memory: not available (the system does not tell, or a reference was in memory, too)\n".to_owned(),
    });
    text.push_str(&match &report.energy {
        Energy::Measured {
            joules_per_answer,
            watts,
            source,
            ..
        } => format!("energy: {joules_per_answer:.2} J an answer, {watts:.1} W ({source})\n"),
        Energy::NotAvailable { not_available } => {
            format!("energy: not available ({not_available})\n")
        }
    });
    text
}

fn list_differences(agreement: &AgreementReport) {
    for difference in agreement.differences.iter().take(LISTED) {
        say(format_args!(
            "  differs at id {}: {}: \"{}\": \"{}\"",
            difference.at, difference.item, difference.prompt, difference.text
        ));
    }
    if agreement.differences.len() > LISTED {
        let more = agreement.differences.len() - LISTED;
        say(format_args!("  … and {more} more"));
    }
}

/// A share in percent with its interval and counts.
fn percent(share: Share) -> String {
    let [low, high] = share.interval95.map(|x| x * 100.0);
    format!(
        "{:.1} % ({low:.1} to {high:.1}), {} of {}",
        share.share * 100.0,
        share.hits,
        share.of
    )
}

fn so_far(progress: &Progress) -> String {
    let (right, agreeing) = (progress.right, progress.agreeing);
    let shares = [(right, "right"), (agreeing, "agree")];
    let known: Vec<String> = shares
        .iter()
        .filter(|(share, _)| share.of > 0)
        .map(|(share, what)| format!("{} of {} {what}", share.hits, share.of))
        .collect();
    match known.is_empty() {
        true => "none could be judged".to_owned(),
        false => known.join(", "),
    }
}

/// The bar: items and the time that remains, on a terminal only.
struct Bar(ProgressBar);

impl Bar {
    fn new(n_items: usize) -> Self {
        let bar = ProgressBar::new(n_items as u64);
        bar.set_style(style(
            "{spinner} {bar:24} {pos}/{len} items {msg} [{elapsed}, {eta} left]",
        ));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    fn on(&mut self, progress: &Progress) {
        self.0.set_position(progress.done as u64);
        if progress.done > 0 {
            self.0.set_message(so_far(progress));
        }
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}
