//! What came of it: `results.json` and a table.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Serialize;

use super::configuration::Configuration;
use super::machine::{Machine, ModelDigest};
use super::order::Sample;
use crate::decode::Totals;
use crate::eval::{LatencyReport, Share};
use crate::prune::Pruner;

/// What was run.
#[derive(Debug, Clone, Serialize)]
pub struct Ran {
    /// The model.
    pub model: PathBuf,
    /// Precision of its weights.
    pub precision: String,
    /// Its files.
    pub digests: Vec<ModelDigest>,
    /// The second model, its precision and files.
    pub quantized: Option<(PathBuf, String, Vec<ModelDigest>)>,
    /// The list of items.
    pub data: PathBuf,
    /// Items that were asked.
    pub items: usize,
    /// The command.
    pub command: Vec<String>,
}

/// All figures.
#[derive(Debug, Clone, Serialize)]
pub struct Results {
    /// Where it ran.
    pub machine: Machine,
    /// What ran.
    pub ran: Ran,
    /// A row for each configuration, the baseline first.
    pub rows: Vec<RowReport>,
}

/// One configuration.
#[derive(Debug, Clone, Serialize)]
pub struct RowReport {
    /// Its name.
    pub name: String,
    /// Whether it belongs to the ablation.
    pub ablation: bool,
    /// Policy and share of a point of the sweep.
    pub sweep: Option<(String, f64)>,
    /// Drafter and length of drafts of a point of the sweep over drafts.
    pub drafts: Option<(String, usize)>,
    /// Right answers; `None` if no item has one.
    pub accuracy: Option<Share>,
    /// Answers whose ids are the baseline's.
    pub agreement: Share,
    /// Visual tokens that the model read, mean.
    pub kept: f64,
    /// Tokens a second, the first of each answer not counted.
    pub tokens_per_second: Option<f64>,
    /// How drafts fared.
    pub speculation: Totals,
    /// Milliseconds of each stage.
    pub latency_ms: LatencyReport,
}

impl RowReport {
    /// Draws up one row.
    pub fn new(configuration: &Configuration<'_>, samples: &[Sample]) -> Self {
        let n = samples.len().max(1) as f64;
        let after_first: usize = samples.iter().map(|s| s.tokens.saturating_sub(1)).sum();
        let ms: f64 = samples.iter().map(|s| s.timings.decode).sum();
        let accuracy = Share::of(samples.iter().filter_map(|s| s.right));
        Self {
            name: configuration.name.clone(),
            ablation: configuration.ablation,
            sweep: configuration
                .sweep
                .map(|(pruner, share)| (pruner.to_string(), share)),
            drafts: configuration
                .drafts
                .map(|(drafter, n)| (drafter.to_owned(), n)),
            accuracy: Some(accuracy).filter(|share| share.of > 0),
            agreement: Share::of(samples.iter().map(|s| s.agrees)),
            kept: samples.iter().map(|s| s.kept as f64).sum::<f64>() / n,
            tokens_per_second: (after_first > 0 && ms > 0.0)
                .then(|| after_first as f64 / (ms / 1e3)),
            speculation: Totals::of(samples.iter().map(|s| &s.speculation)),
            latency_ms: LatencyReport::of_timings(samples.iter().map(|s| s.timings)),
        }
    }

    /// Mean of a stage in milliseconds, by its name in [`LatencyReport::stages`].
    pub(super) fn mean_ms(&self, stage: &str) -> f64 {
        let stages = self.latency_ms.stages();
        let found = stages.iter().find(|(name, _)| *name == stage);
        found
            .and_then(|(_, spread)| spread.as_ref())
            .map_or(0.0, |s| s.mean)
    }

    /// Median of the time to the first token.
    pub(super) fn ttft_ms(&self) -> f64 {
        self.latency_ms.ttft.map_or(0.0, |spread| spread.p50)
    }
}

impl Results {
    /// The ablation, and accuracy of each policy by share, in Markdown.
    pub fn markdown(&self) -> String {
        // Writing to a `String` cannot fail.
        let mut text = String::new();
        let ran = &self.ran;
        let _ = writeln!(
            text,
            "# {}, {}: {} items\n\n{}, {} threads, trtvlm {}, rten {}\n",
            ran.model.display(),
            ran.precision,
            ran.items,
            self.machine.cpu,
            self.machine.n_threads,
            self.machine.trtvlm,
            self.machine.engine
        );
        let _ = writeln!(text, "    {}\n", ran.command.join(" "));
        text.push_str(
            "| | visual tokens | right, % with 95 % interval | ids of the baseline, % | first token, ms (p50, p95) | whole answer, ms (p50, p95) | tokens/s |\n|---|---|---|---|---|---|---|\n",
        );
        for row in self.rows.iter().filter(|row| row.ablation) {
            let pair = |spread: Option<crate::eval::Spread>| {
                spread.map_or("-".to_owned(), |s| format!("{:.1}, {:.1}", s.p50, s.p95))
            };
            let _ = writeln!(
                text,
                "| {} | {:.0} | {} | {:.1} | {} | {} | {} |",
                row.name,
                row.kept,
                percent(row.accuracy),
                row.agreement.share * 100.0,
                pair(row.latency_ms.ttft),
                pair(row.latency_ms.total),
                row.tokens_per_second
                    .map_or("-".to_owned(), |rate| format!("{rate:.0}")),
            );
        }
        let shares = self.shares();
        if shares.is_empty() {
            return text;
        }
        let columns: Vec<String> = shares.iter().map(f64::to_string).collect();
        for (title, cell) in [
            (
                "right, % with 95 % interval",
                percent_of as fn(&RowReport) -> String,
            ),
            ("first token, ms (p50)", |row| {
                format!("{:.1}", row.ttft_ms())
            }),
        ] {
            let _ = writeln!(
                text,
                "\n| {title}, by share kept | {} |",
                columns.join(" | ")
            );
            let _ = writeln!(text, "|---|{}", "---|".repeat(shares.len()));
            for pruner in Pruner::ALL.map(Pruner::name) {
                let cells: Vec<String> = shares
                    .iter()
                    .filter_map(|&share| self.point(pruner, share))
                    .map(cell)
                    .collect();
                if !cells.is_empty() {
                    let _ = writeln!(text, "| `{pruner}` | {} |", cells.join(" | "));
                }
            }
        }
        self.write_drafts(&mut text);
        text
    }

    /// The sweep over drafts.
    fn write_drafts(&self, text: &mut String) {
        let swept = || self.rows.iter().filter(|row| row.drafts.is_some());
        if swept().next().is_none() {
            return;
        }
        text.push_str(
            "\n| drafter | most tokens of a draft | accepted, % | tokens a pass | drafter's share of the time, % | times plain decoding | ids of the baseline, % |\n|---|---|---|---|---|---|---|\n",
        );
        for row in swept() {
            let Some((drafter, n)) = &row.drafts else {
                continue;
            };
            let drafts = &row.speculation;
            let _ = writeln!(
                text,
                "| `{drafter}` | {n} | {:.1} | {:.2} | {:.1} | {:.2} | {:.1} |",
                100.0 * drafts.accepted as f64 / drafts.proposed.max(1) as f64,
                drafts.tokens_per_pass.unwrap_or(0.0),
                100.0 * drafts.drafter_share,
                self.decode_speed_up(row),
                100.0 * row.agreement.share,
            );
        }
    }

    /// Drafters of the sweep over drafts, in its order.
    pub(super) fn drafters(&self) -> Vec<&str> {
        let found = self.rows.iter().filter_map(|row| row.drafts.as_ref());
        let mut names: Vec<&str> = found.map(|(name, _)| name.as_str()).collect();
        names.dedup();
        names
    }

    /// How many times faster than in the baseline tokens after the first one come.
    pub(super) fn decode_speed_up(&self, row: &RowReport) -> f64 {
        let base = self.rows.first().map_or(0.0, |row| row.mean_ms("decode"));
        let own = row.mean_ms("decode");
        if own > 0.0 { base / own } else { 0.0 }
    }

    /// Shares of the sweep, descending.
    pub(super) fn shares(&self) -> Vec<f64> {
        let found = self
            .rows
            .iter()
            .filter_map(|row| Some(row.sweep.as_ref()?.1));
        let mut shares: Vec<f64> = found.collect();
        shares.sort_unstable_by(|a, b| b.total_cmp(a));
        shares.dedup();
        shares
    }

    /// A point of the sweep.
    pub(super) fn point(&self, pruner: &str, share: f64) -> Option<&RowReport> {
        let is_it = |row: &&RowReport| {
            row.sweep
                .as_ref()
                .is_some_and(|(name, of)| name == pruner && *of == share)
        };
        self.rows.iter().find(is_it)
    }
}

fn percent(share: Option<Share>) -> String {
    share.map_or("-".to_owned(), |share| {
        let [low, high] = share.interval95.map(|x| x * 100.0);
        format!("{:.1} ({low:.0} to {high:.0})", share.share * 100.0)
    })
}

fn percent_of(row: &RowReport) -> String {
    percent(row.accuracy)
}
