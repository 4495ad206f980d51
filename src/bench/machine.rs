//! On what, and of what, something was measured.

use std::path::{Path, PathBuf};
use std::thread;

use serde::Serialize;

use crate::cpu::ENGINE_VERSION;
use crate::digest::sha256_file;
use crate::error::Result;
use crate::host::cpu_name;
use crate::pipeline::Source;

/// The machine and what ran on it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Name of the processor; empty where the system does not tell.
    pub cpu: String,
    /// Threads that may run at once.
    pub n_threads: usize,
    /// Operating system and architecture.
    pub system: String,
    /// Version of this program.
    pub trtvlm: &'static str,
    /// Version of the CPU engine.
    pub engine: &'static str,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        Self {
            cpu: cpu_name().unwrap_or_default(),
            n_threads: thread::available_parallelism().map_or(1, usize::from),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            trtvlm: env!("CARGO_PKG_VERSION"),
            engine: ENGINE_VERSION,
        }
    }
}

/// A file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelDigest {
    /// Its name.
    pub file: PathBuf,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

impl ModelDigest {
    /// Those of a model folder's configuration and graphs with their external data, or of a
    /// bundle's manifest, which has those of its files.
    ///
    /// # Errors
    /// As [`Source::read`]; [`Error::Io`](crate::Error::Io).
    pub fn of(path: &Path, variant: Option<&str>) -> Result<Vec<Self>> {
        let model = match Source::read(path, variant)? {
            Source::Bundle(bundle) => {
                return Ok(vec![Self {
                    file: crate::bundle::MANIFEST.into(),
                    sha256: bundle.digest().to_owned(),
                }]);
            }
            Source::Folder(model) => model,
        };
        let files = &model.files;
        let mut paths = vec![
            model.dir.join("config.json"),
            model.dir.join("tokenizer.json"),
        ];
        for graph in [&files.vision, &files.embed, &files.decoder] {
            paths.push(graph.clone());
            let mut data = graph.clone().into_os_string();
            data.push("_data");
            let data = PathBuf::from(data);
            if data.is_file() {
                paths.push(data);
            }
        }
        let digest = |path: PathBuf| {
            Ok(Self {
                sha256: sha256_file(&path, |_| {})?.sha256,
                file: path.strip_prefix(&model.dir).unwrap_or(&path).to_path_buf(),
            })
        };
        paths.into_iter().map(digest).collect()
    }
}
