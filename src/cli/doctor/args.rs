//! Arguments and the two forms of the report.

use std::io::{Write, stdout};

use serde::Serialize;

use super::gpu::{self, Gpu};
use super::host;
use super::item::{Item, Status};
use crate::cli::table::wrap;

/// Where lines are broken.
const LINE: usize = 110;

/// Show what this machine has, what is missing, and what to do about it
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    features: Vec<&'static str>,
    items: Vec<Item>,
    #[serde(flatten)]
    gpu: Gpu,
}

impl Args {
    /// Prints the report. That something is missing is no failure.
    pub fn run(self) -> anyhow::Result<()> {
        let mut items = host::items();
        let (gpu, found) = gpu::look();
        items.extend(found);
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            features: features(),
            items,
            gpu,
        };
        let text = match self.json {
            true => serde_json::to_string(&report)? + "\n",
            false => report.text(),
        };
        stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

fn features() -> Vec<&'static str> {
    let all = [
        ("cli", cfg!(feature = "cli")),
        ("cuda", cfg!(feature = "cuda")),
        ("tensorrt", cfg!(feature = "tensorrt")),
    ];
    all.into_iter().filter(|f| f.1).map(|f| f.0).collect()
}

impl Report {
    fn text(&self) -> String {
        let width = self.items.iter().map(|i| i.name.len()).max().unwrap_or(0);
        let indent = width + 13;
        let mut text = format!(
            "trtvlm {}, built with {}\n\n",
            self.version,
            self.features.join(", ")
        );
        for item in &self.items {
            let (word, name) = (item.status.word(), item.name);
            let found = wrap(item.found.split(' '), " ", indent, LINE);
            text += &format!("  {word:<7}  {name:<width$}  {}", found.trim_start());
            if let Some(advice) = &item.advice {
                let advice = format!("-> {advice}");
                text += &wrap(advice.split(' '), " ", indent, LINE);
            }
        }
        let lacking = self.items.iter().filter(|i| i.status != Status::Ok).count();
        text + &match lacking {
            0 => "\nNothing is missing.\n".to_owned(),
            1 => "\nOne item needs attention.\n".to_owned(),
            n => format!("\n{n} items need attention.\n"),
        }
    }
}
