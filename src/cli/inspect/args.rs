//! Arguments; which kind of thing a path is.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::Serialize;

use super::{bundle, folder, onnx, plan};
use crate::bundle::Bundle;
use crate::cli::source::resolve;
use crate::error::Error;

/// Endings of TensorRT's plans.
const PLAN_ENDINGS: [&str; 3] = ["plan", "engine", "trt"];

/// Show what a model folder, ONNX file, bundle or plan holds
#[derive(clap::Args)]
pub struct Args {
    /// Model folder, .onnx file, bundle, .plan file, or hf:OWNER/NAME
    path: PathBuf,
    /// Files of a model folder to look into: fp32, fp16, q4, q4f16, int8, … [default: fp32, else fp16]
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Report {
    Model(folder::FolderReport),
    Onnx(onnx::OnnxReport),
    Bundle(bundle::BundleReport),
    Plan(plan::PlanReport),
}

impl Args {
    /// Prints the report; fails after that if what is there is damaged.
    pub fn run(self) -> anyhow::Result<()> {
        // Ctrl-C ends this command at once: it leaves nothing behind but parts to be resumed.
        let never = AtomicBool::new(false);
        let path = resolve(&self.path, self.variant.as_deref(), &never)?;
        let report = inspect(&path, self.variant.as_deref())?;
        let mut text = match &report {
            _ if self.json => serde_json::to_string(&report)?,
            Report::Model(model) => model.text(),
            Report::Onnx(onnx) => onnx.text(),
            Report::Bundle(bundle) => bundle.text(),
            Report::Plan(plan) => plan.text(),
        };
        if self.json {
            text.push('\n');
        }
        stdout().write_all(text.as_bytes())?;
        match report.problem() {
            Some(problem) => anyhow::bail!("{problem}"),
            None => Ok(()),
        }
    }
}

impl Report {
    fn problem(&self) -> Option<&str> {
        match self {
            Self::Model(model) => model.problem.as_deref(),
            Self::Bundle(bundle) => bundle.problem.as_deref(),
            Self::Plan(plan) => plan.problem.as_deref(),
            Self::Onnx(_) => None,
        }
    }
}

fn inspect(path: &Path, variant: Option<&str>) -> crate::Result<Report> {
    let meta = std::fs::metadata(path).map_err(Error::io(path))?;
    if meta.is_dir() {
        if Bundle::is_bundle(path) {
            return Ok(Report::Bundle(bundle::inspect(path)?));
        }
        if folder::is_model(path) {
            return Ok(Report::Model(folder::inspect(path, variant)?));
        }
        return Err(Error::malformed(
            path,
            "neither a model folder (no config.json, no onnx/) nor a bundle (no manifest.json)",
        ));
    }
    if !meta.is_file() {
        return Err(Error::malformed(path, "neither a file nor a folder"));
    }
    let ending = path
        .extension()
        .and_then(|e| e.to_str())
        .unwrap_or_default();
    if PLAN_ENDINGS.contains(&ending) {
        return Ok(Report::Plan(plan::inspect(path)?));
    }
    Ok(Report::Onnx(onnx::inspect(path)?))
}
