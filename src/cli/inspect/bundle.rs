//! A bundle.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use indicatif::HumanBytes;
use serde::Serialize;

use super::folder::full;
use super::tensors;
use crate::bundle::{
    Bundle, Component, EngineSet, MANIFEST, Manifest, Profile, ProfileInput, sha256_file,
};
use crate::cli::progress::bytes_bar;
use crate::cli::table::{Table, printable};
use crate::error::Result;

/// What a bundle says of itself, and whether that is true.
#[derive(Debug, Serialize)]
pub struct BundleReport {
    path: PathBuf,
    /// Every file is as the manifest says.
    verified: bool,
    /// What is wrong.
    pub problem: Option<String>,
    /// SHA-256 of the manifest, which names the bundle.
    digest: String,
    total_bytes: u64,
    manifest: Manifest,
}

/// Verifies a bundle. What its manifest says is shown also when a file is damaged.
pub fn inspect(dir: &Path) -> Result<BundleReport> {
    let manifest = Bundle::read_manifest(dir)?;
    let digest = sha256_file(&dir.join(MANIFEST), |_| {})?.sha256;
    let bar = OnceLock::new();
    let opened = Bundle::open_with(dir, |bytes, total| {
        bar.get_or_init(|| bytes_bar("verifying", total)).inc(bytes);
    });
    if let Some(bar) = bar.get() {
        bar.finish_and_clear();
    }
    Ok(BundleReport {
        path: dir.to_path_buf(),
        verified: opened.is_ok(),
        problem: opened.err().map(|e| full(&e)),
        digest,
        total_bytes: manifest.total_bytes(),
        manifest,
    })
}

impl BundleReport {
    /// The report for people.
    pub fn text(&self) -> String {
        let m = &self.manifest;
        let state = if self.verified { "verified" } else { "DAMAGED" };
        let mut facts = Table::default();
        if let Some(problem) = &self.problem {
            facts.row(["problem", problem]);
        }
        let model = format!(
            "{} ({}), {} files, {} sources",
            m.model.name,
            m.model.family,
            m.model.variant,
            m.model.sources.len()
        );
        facts.row(["model", &model]);
        facts.row(["precision", &m.precision.to_string()]);
        let context = format!(
            "{} positions, KV cache of {}, {} draft tokens, vocabulary of {}",
            m.max_context, m.kv_capacity, m.draft_tokens, m.vocabulary
        );
        facts.row(["context", &context]);
        for (name, sizes) in [
            ("prefill rows", &m.buckets.prefill),
            ("step rows", &m.buckets.step),
            ("visual tokens", &m.buckets.visual_tokens),
        ] {
            let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
            let text = if sizes.is_empty() {
                "any".to_owned()
            } else {
                sizes.join(", ")
            };
            facts.row([name, &text]);
        }
        facts.row(["built by", &m.created_by]);
        facts.row(["command line", &m.command_line.join(" ")]);
        if let Some(from) = &m.finished_from {
            let text = format!("{} by {}", from.manifest_sha256, from.created_by);
            facts.row(["finished from", &text]);
        }
        facts.row(["manifest", &self.digest]);
        let mut files = Table::right(&[1]);
        for file in &m.files {
            let size = HumanBytes(file.bytes).to_string();
            files.row([&file.path, &size, &file.sha256]);
        }
        let sets: String = m.engines.iter().map(|set| set_text(set, m)).collect();
        format!(
            "{}: bundle, {state}\n{}{sets}  files ({}, {})\n{}",
            printable(&self.path.display().to_string()),
            facts.render(2),
            m.files.len(),
            HumanBytes(self.total_bytes),
            files.render(4),
        )
    }
}

fn set_text(set: &EngineSet, manifest: &Manifest) -> String {
    let state = match set.is_portable() {
        true => ", to be built there",
        false => "",
    };
    let mut text = format!(
        "  target {}, {}{state}\n",
        set.target,
        printable(&set.engine.to_string())
    );
    for component in &set.components {
        // Weights stand beside their graph: `decoder.onnx.data`.
        let beside = format!("{}.", component.file);
        let of_it = |path: &str| path == component.file || path.starts_with(&beside);
        let files = manifest.files.iter().filter(|f| of_it(&f.path));
        let bytes = files.map(|f| f.bytes).fold(0, u64::saturating_add);
        text += &format!(
            "    {}: {}, {}\n",
            printable(&component.name),
            printable(&component.file),
            HumanBytes(bytes)
        );
        text += &component_text(component, 6);
    }
    let mut memory = Table::right(&[1]);
    for part in &set.memory {
        memory.row([part.name.clone(), HumanBytes(part.bytes).to_string()]);
    }
    let total = set
        .memory
        .iter()
        .map(|p| p.bytes)
        .fold(0, u64::saturating_add);
    if !set.memory.is_empty() {
        text += &format!(
            "    memory plan ({})\n{}",
            HumanBytes(total),
            memory.render(6)
        );
    }
    text
}

/// Inputs, outputs and profiles of a component.
pub fn component_text(component: &Component, indent: usize) -> String {
    let mut text = tensors::text("inputs", &component.inputs, indent);
    text += &tensors::text("outputs", &component.outputs, indent);
    text + &profiles_text(&component.profiles, indent)
}

/// Optimization profiles, one input a line, those of all layers together.
pub fn profiles_text(profiles: &[Profile], indent: usize) -> String {
    if profiles.is_empty() {
        return String::new();
    }
    let mut table = Table::default();
    table.row(["profile", "input", "min", "opt", "max"]);
    for profile in profiles {
        let mut name = profile.name.as_str();
        let alike =
            |a: &ProfileInput, b: &ProfileInput| a.min == b.min && a.opt == b.opt && a.max == b.max;
        for (input_name, input) in tensors::group(&profile.inputs, |i| &i.name, alike) {
            let shape = |dims: &[u64]| {
                let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
                dims.join(" x ")
            };
            table.row([
                name,
                &input_name,
                &shape(&input.min),
                &shape(&input.opt),
                &shape(&input.max),
            ]);
            name = "";
        }
    }
    table.render(indent)
}
