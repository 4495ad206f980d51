//! From what the user typed to a folder on this machine.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Result;
use crate::hub::{self, HubOptions, RepoId};

/// The folder of a model argument: `hf:OWNER/NAME` is fetched into the user's cache, with a bar.
///
/// # Errors
/// Those of the download; a path is taken as it is.
pub fn resolve(model: &Path, variant: Option<&str>, cancel: &AtomicBool) -> Result<PathBuf> {
    let Some(repo) = model.to_str().map(RepoId::from_spec).transpose()?.flatten() else {
        return Ok(model.to_path_buf());
    };
    let bar = ProgressBar::new(0);
    bar.set_style(
        ProgressStyle::with_template(
            "{msg} {bar:24} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
        )
        .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let mut shown = None;
    let options = HubOptions::from_env()?;
    let folder = hub::fetch(&options, &repo, variant, cancel, |progress| {
        if shown != Some(progress.index) {
            shown = Some(progress.index);
            bar.reset();
            bar.set_message(format!(
                "{} ({} of {})",
                progress.file,
                progress.index + 1,
                progress.n_files
            ));
        }
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    folder
}
