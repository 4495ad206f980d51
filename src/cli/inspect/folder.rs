//! A model folder.

use std::fs;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use serde::Serialize;

use super::onnx::{self, FileSize, OnnxReport};
use crate::cli::table::{Table, printable};
use crate::error::{Error, Result};
use crate::limits;
use crate::model::{ModelConfig, ModelFiles};

/// The folder of the components.
const ONNX: &str = "onnx";

/// What a model folder holds.
#[derive(Debug, Serialize)]
pub struct FolderReport {
    path: PathBuf,
    name: String,
    family: &'static str,
    image_size: usize,
    tokens_per_tile: usize,
    d_model: usize,
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    vocabulary: usize,
    max_positions: usize,
    eos: Vec<u32>,
    /// All files of the folder and of `onnx/`, with links followed.
    files: Vec<FileSize>,
    /// The variant that was looked into.
    variant: Option<String>,
    components: Vec<OnnxReport>,
    /// Why the folder cannot be used.
    pub problem: Option<String>,
}

/// True if `dir` has something of a model folder.
pub fn is_model(dir: &Path) -> bool {
    dir.join("config.json").exists() || dir.join(ONNX).is_dir()
}

/// Looks into a model folder and the ONNX files of one variant.
pub fn inspect(dir: &Path, variant: Option<&str>) -> Result<FolderReport> {
    let config = ModelConfig::load(dir)?;
    let mut files = list(dir, Path::new(""))?;
    if dir.join(ONNX).is_dir() {
        files.extend(list(dir, Path::new(ONNX))?);
    }
    let mut report = FolderReport {
        path: dir.to_path_buf(),
        name: config.name,
        family: config.family.name,
        image_size: config.image_size,
        tokens_per_tile: config.tokens_per_tile,
        d_model: config.d_model,
        n_layers: config.n_layers,
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        vocabulary: config.vocab,
        max_positions: config.max_positions,
        eos: config.eos,
        files,
        variant: None,
        components: Vec::new(),
        problem: None,
    };
    // What is known is shown, also when the rest cannot be read.
    match ModelFiles::find(dir, variant) {
        Ok(found) => {
            for file in [&found.vision, &found.embed, &found.decoder] {
                match onnx::inspect(file) {
                    Ok(component) => report.components.push(component),
                    Err(error) => report.problem = report.problem.or(Some(full(&error))),
                }
            }
            report.variant = Some(found.variant);
        }
        Err(error) => report.problem = Some(full(&error)),
    }
    Ok(report)
}

/// An error with its causes, on one line.
pub fn full(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Regular files of one folder, by name.
fn list(dir: &Path, folder: &Path) -> Result<Vec<FileSize>> {
    let path = dir.join(folder);
    let mut files = Vec::new();
    for entry in fs::read_dir(&path).map_err(Error::io(&path))? {
        let entry = entry.map_err(Error::io(&path))?;
        let meta = fs::metadata(entry.path());
        if let Some(meta) = meta.ok().filter(fs::Metadata::is_file) {
            files.push(FileSize {
                path: folder.join(entry.file_name()),
                bytes: meta.len(),
            });
        }
        if files.len() as u64 > limits::BUNDLE_FILES {
            return Err(Error::TooLarge {
                what: format!("{} (files)", path.display()),
                actual: files.len() as u64,
                limit: limits::BUNDLE_FILES,
            });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

impl FolderReport {
    /// The report for people.
    pub fn text(&self) -> String {
        let mut facts = Table::default();
        facts.row(["name", &self.name]);
        facts.row(["family", self.family]);
        let vision = format!(
            "{0} x {0} pixels, {1} tokens a picture",
            self.image_size, self.tokens_per_tile
        );
        facts.row(["vision", &vision]);
        let decoder = format!(
            "{} layers, width {}, {} heads, {} KV heads of {}",
            self.n_layers, self.d_model, self.n_heads, self.n_kv_heads, self.head_dim
        );
        facts.row(["decoder", &decoder]);
        let vocabulary = format!(
            "{} tokens, {} positions, ends at {:?}",
            self.vocabulary, self.max_positions, self.eos
        );
        facts.row(["text", &vocabulary]);
        let mut files = Table::right(&[1]);
        for file in &self.files {
            let size = HumanBytes(file.bytes).to_string();
            files.row([file.path.display().to_string(), size]);
        }
        let mut text = format!(
            "{}: model folder\n{}  files ({})\n{}",
            printable(&self.path.display().to_string()),
            facts.render(2),
            self.files.len(),
            files.render(4),
        );
        if let Some(variant) = &self.variant {
            let bytes: u64 = self.components.iter().map(OnnxReport::total_bytes).sum();
            text += &format!(
                "\nvariant {}: {} in {} components\n",
                printable(variant),
                HumanBytes(bytes),
                self.components.len()
            );
        }
        for component in &self.components {
            text.push('\n');
            text += &component.text();
        }
        text
    }
}
