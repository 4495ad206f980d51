//! From what the user typed to a path on this machine.

use std::path::{Path, PathBuf};

/// The folder of a model argument.
///
/// # Errors
/// Those of the download.
pub fn resolve(model: &Path, _variant: Option<&str>) -> anyhow::Result<PathBuf> {
    Ok(model.to_path_buf())
}
