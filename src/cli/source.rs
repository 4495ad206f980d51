//! From what the user typed to a folder on this machine.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::progress::DownloadBar;
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
    let options = HubOptions::from_env()?;
    let mut bar = DownloadBar::new(&repo);
    let folder = hub::fetch(&options, &repo, variant, cancel, |progress| {
        bar.on(progress)
    });
    bar.finish();
    folder
}
