//! One repository of the hub, through `hf-hub`, with what that leaves to its callers: names that
//! a server may not give, sizes and digests, and what to say when something fails.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo};

use super::cache::{RepoCache, forget, is_commit, is_etag};
use super::fetch::Report;
use super::files::{refused, size_limit, too_large};
use super::{HubOptions, RepoId};
use crate::digest::{is_sha256, sha256_file};
use crate::error::{Error, Result};

/// A repository on the hub.
pub(super) struct Client {
    id: RepoId,
    options: HubOptions,
    api: Api,
    repo: ApiRepo,
    cache: RepoCache,
}

/// What a repository holds.
pub(super) struct Listing {
    pub commit: String,
    pub files: Vec<String>,
}

/// A failure, and whether trying again may help.
struct Failure {
    error: Error,
    retry: bool,
}

impl Client {
    pub(super) fn new(options: &HubOptions, id: &RepoId) -> Result<Self> {
        let api = ApiBuilder::from_cache(Cache::new(options.cache.clone()))
            .with_endpoint(options.endpoint.trim_end_matches('/').to_owned())
            .with_token(options.token.clone())
            .with_progress(false)
            .with_user_agent(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|e| refused(id, e.to_string()))?;
        Ok(Self {
            id: id.clone(),
            options: options.clone(),
            repo: api.repo(Repo::model(id.to_string())),
            api,
            cache: RepoCache::new(options, id),
        })
    }

    /// Asks the hub which files the repository has.
    pub(super) fn list(&self) -> Result<Listing> {
        let info = self
            .repo
            .info()
            .map_err(|e| self.failure("its list of files", e).error)?;
        if !is_commit(&info.sha) {
            return Err(refused(&self.id, "the hub's answer names no commit"));
        }
        Ok(Listing {
            commit: info.sha,
            files: info.siblings.into_iter().map(|s| s.rfilename).collect(),
        })
    }

    /// Fetches a file, resuming and repeating what breaks, and verifies it.
    pub(super) fn download(&self, file: &str, commit: &str, report: &Report) -> Result<()> {
        let path = self.cache.snapshot(commit).join(file);
        // Files get their name in the snapshot when they are whole.
        if path.is_file() {
            return Ok(());
        }
        let mut wait = self.options.retry_wait;
        let mut left = self.options.retries;
        loop {
            match self.attempt(file, &path, commit, report) {
                Ok(()) => return Ok(()),
                Err(Failure { error, retry }) if !retry || left == 0 => return Err(error),
                Err(Failure { error, .. }) => tracing::warn!("{error}; trying again"),
            }
            left -= 1;
            report.wait(wait);
            wait *= 2;
        }
    }

    fn attempt(
        &self,
        file: &str,
        path: &Path,
        commit: &str,
        report: &Report,
    ) -> Result<(), Failure> {
        let stop = |reason: String| Failure {
            error: refused(&self.id, format!("{file}: {reason}")),
            retry: false,
        };
        let meta = self
            .api
            .metadata(&self.repo.url(file))
            .map_err(|e| self.failure(file, e))?;
        report.alive();
        if meta.commit_hash() != commit {
            return Err(stop(
                "the model was changed meanwhile, start again".to_owned(),
            ));
        }
        if !is_etag(meta.etag()) {
            return Err(stop("the hub's answer has no usable ETag".to_owned()));
        }
        if meta.size() as u64 > size_limit(file) {
            return Err(Failure {
                error: too_large(&self.id, file, meta.size() as u64),
                retry: false,
            });
        }
        let blob = self.cache.blob(meta.etag());
        // A part that is as long as the file cannot be resumed: there is nothing to ask for.
        let part = blob.with_extension("part");
        if fs::metadata(&part).is_ok_and(|p| p.len() >= meta.size() as u64) {
            forget(&[&part]);
        }
        self.repo
            .download_with_progress(file, report.clone())
            .map_err(|e| self.failure(file, e))?;
        self.verify(path, &meta, report).map_err(|error| {
            forget(&[path, &blob]);
            let reason = format!("{file}: {error}");
            Failure {
                error: refused(&self.id, reason),
                retry: true,
            }
        })
    }

    /// Compares a file with what the hub says of it: its size, and for large files, whose ETag is
    /// their SHA-256, the digest.
    fn verify(&self, path: &Path, meta: &Metadata, report: &Report) -> Result<(), String> {
        let len = fs::metadata(path).map_err(|e| e.to_string())?.len();
        if len != meta.size() as u64 {
            return Err(format!("{len} bytes came, the hub has {}", meta.size()));
        }
        if is_sha256(meta.etag()) {
            let digest = sha256_file(path, |_| report.alive()).map_err(|e| e.to_string())?;
            if digest.sha256 != meta.etag() {
                return Err(format!(
                    "SHA-256 is {}, the hub has {}",
                    digest.sha256,
                    meta.etag()
                ));
            }
        }
        Ok(())
    }

    fn failure(&self, file: &str, error: ApiError) -> Failure {
        let network = |reason: String, retry| Failure {
            error: refused(&self.id, format!("{file}: {reason}")),
            retry,
        };
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(code) => network(status(code), is_passing(code)),
                other => network(format!("{}: {other}", self.options.endpoint), true),
            },
            ApiError::IoError(source) if is_local(source.kind()) => Failure {
                error: Error::Io {
                    path: self.options.cache.clone(),
                    source,
                },
                retry: false,
            },
            ApiError::IoError(source) => network(format!("the transfer broke: {source}"), true),
            ApiError::LockAcquisition(path) => network(
                format!(
                    "another process is fetching it ({} is locked)",
                    path.display()
                ),
                false,
            ),
            other => network(other.to_string(), false),
        }
    }

    /// The folder of a commit's files.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.snapshot(commit)
    }

    /// What the cache knows of this repository.
    pub(super) fn cache(&self) -> &RepoCache {
        &self.cache
    }
}

/// What a status code means here.
fn status(code: u16) -> String {
    match code {
        401 | 403 => format!(
            "access refused (HTTP {code}): the model is gated, private or not there; accept its \
             terms on the hub and set HF_TOKEN"
        ),
        404 => "not found (HTTP 404)".to_owned(),
        code => format!("the hub answered HTTP {code}"),
    }
}

/// True for answers that may be another one later.
fn is_passing(code: u16) -> bool {
    matches!(code, 408 | 429 | 500..)
}

/// True for errors of the cache's disk; all others are the network's.
fn is_local(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::PermissionDenied
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::NotFound
    )
}
