//! What of a model is in the cache already, so that it opens without the hub.

use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo};
use serde::{Deserialize, Serialize};

use super::files::is_safe;
use super::{HubOptions, RepoId};
use crate::error::{Error, Result};

/// Folder, beside the cache's own of a repository, for what we know of it.
const NOTES: &str = "trtvlm";

/// What was fetched whole: written last, and so the proof that nothing is missing.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Fetched {
    /// The commit that all files belong to.
    pub commit: String,
    /// The files, relative to the repository.
    pub files: Vec<String>,
}

/// A repository's folders in the cache.
#[derive(Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    inner: CacheRepo,
}

impl RepoCache {
    pub(super) fn new(options: &HubOptions, repo: &RepoId) -> Self {
        let model = Repo::model(repo.to_string());
        Self {
            root: options.cache.join(model.folder_name()),
            inner: Cache::new(options.cache.clone()).repo(model),
        }
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.inner.pointer_path(commit)
    }

    /// A file's contents, by its tag.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.inner.blob_path(etag)
    }

    /// The model's folder, if all of the variant was fetched before and is still there.
    pub(super) fn find(&self, variant: Option<&str>) -> Option<PathBuf> {
        let note = fs::read(self.note(variant)?).ok()?;
        let fetched: Fetched = serde_json::from_slice(&note).ok()?;
        let safe = is_commit(&fetched.commit) && fetched.files.iter().all(|f| is_safe(f));
        let snapshot = self.snapshot(&fetched.commit);
        let there = safe && fetched.files.iter().all(|f| snapshot.join(f).is_file());
        there.then_some(snapshot)
    }

    /// Notes that all of a variant is there.
    pub(super) fn remember(&self, variant: Option<&str>, fetched: &Fetched) -> Result<()> {
        let Some(path) = self.note(variant) else {
            return Ok(());
        };
        let folder = path.parent().unwrap_or(&self.root);
        // Renamed into place: a reader sees all of it or nothing.
        let written = fs::create_dir_all(folder).and_then(|()| {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            serde_json::to_writer(&mut file, fetched)?;
            file.persist(&path)?;
            Ok(())
        });
        written.map_err(Error::io(&path))
    }

    /// Where [`Fetched`] stands; none for what cannot be a variant.
    fn note(&self, variant: Option<&str>) -> Option<PathBuf> {
        let name = match variant {
            None => "any.json".to_owned(),
            Some(variant) => format!("variant-{variant}.json"),
        };
        let plain = is_safe(&name) && !name.contains('/');
        plain.then(|| self.root.join(NOTES).join(name))
    }
}

/// True for what can be a commit's name.
pub(super) fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// True for what can be a file's tag, which names its contents in the cache.
pub(super) fn is_etag(text: &str) -> bool {
    let plain = text.strip_prefix("W/").unwrap_or(text);
    is_safe(plain) && !plain.contains('/')
}

/// Removes a file and the link to it, to fetch them anew.
pub(super) fn forget(paths: &[&Path]) {
    for path in paths {
        if let Err(e) = fs::remove_file(path)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{}: not removed: {e}", path.display());
        }
    }
}
