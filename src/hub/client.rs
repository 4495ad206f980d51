//! One repository of the hub, through `hf-hub`, with what that leaves to its callers: names that
//! a server may not give, sizes and digests, and what to say when something fails.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo};

use super::cache::{RepoCache, forget, is_commit, is_etag};
use super::fetch::Report;
use super::files::{refused, size_limit, too_large};
use super::{HubOptions, RepoId};
use crate::digest::{is_sha256, sha256_file};
use crate::error::{Error, Result};

/// How often it is looked whether another process has fetched a file.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

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
#[derive(Debug)]
struct Failure {
    error: Error,
    again: Again,
}

/// Whether a transfer is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// It would fail again.
    Never,
    /// As often as the options say.
    Counted,
    /// Until it is there: another process is fetching the file.
    Waiting,
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
        let wait = |time| report.wait(time);
        insist(self.options.retries, self.options.retry_wait, wait, || {
            // Files get their name in the snapshot when they are whole.
            if path.is_file() {
                return Ok(());
            }
            self.attempt(file, &path, commit, report)
        })
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
            again: Again::Never,
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
                again: Again::Never,
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
                again: Again::Counted,
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
        let network = |reason: String, again| Failure {
            error: refused(&self.id, format!("{file}: {reason}")),
            again,
        };
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(code) if is_passing(code) => {
                    network(status(code), Again::Counted)
                }
                ureq::Error::StatusCode(code) => network(status(code), Again::Never),
                other => network(
                    format!("{}: {other}", self.options.endpoint),
                    Again::Counted,
                ),
            },
            ApiError::IoError(source) if is_local(source.kind()) => Failure {
                error: Error::Io {
                    path: self.options.cache.clone(),
                    source,
                },
                again: Again::Never,
            },
            ApiError::IoError(source) => {
                network(format!("the transfer broke: {source}"), Again::Counted)
            }
            ApiError::LockAcquisition(path) => network(
                format!("another process is fetching it ({})", path.display()),
                Again::Waiting,
            ),
            other => network(other.to_string(), Again::Never),
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

/// Calls `attempt` until it has done its work, or failed for good: `retries` times after the first
/// failure that may pass, `pause` the wait before the first of them, doubled for each further one.
fn insist(
    retries: u32,
    mut pause: Duration,
    wait: impl Fn(Duration),
    mut attempt: impl FnMut() -> Result<(), Failure>,
) -> Result<()> {
    let (mut left, mut is_told) = (retries, false);
    loop {
        let Err(Failure { error, again }) = attempt() else {
            return Ok(());
        };
        match again {
            Again::Counted if left > 0 => {
                tracing::warn!("{error}; trying again");
                left -= 1;
                wait(pause);
                pause *= 2;
            }
            Again::Waiting => {
                if !is_told {
                    tracing::warn!("{error}; waiting for it");
                    is_told = true;
                }
                wait(LOOK_AGAIN);
            }
            _ => return Err(error),
        }
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Attempts that fail as listed, then work; how many were made, and the waits in milliseconds.
    fn insisted(failures: &[Again]) -> (Result<()>, usize, Vec<u128>) {
        let (mut n, waits) = (0, RefCell::new(Vec::new()));
        let wait = |time: Duration| waits.borrow_mut().push(time.as_millis());
        let done = insist(2, Duration::from_millis(10), wait, || {
            n += 1;
            let error = Error::Cancelled;
            match failures.get(n - 1) {
                Some(&again) => Err(Failure { error, again }),
                None => Ok(()),
            }
        });
        (done, n, waits.into_inner())
    }

    #[test]
    fn transfer_is_repeated_as_often_as_its_failure_is_worth() {
        use Again::{Counted, Never, Waiting};
        let each = LOOK_AGAIN.as_millis();
        let cases: [(&[Again], bool, usize, &[u128]); 6] = [
            (&[], true, 1, &[]),
            (&[Never], false, 1, &[]),
            (&[Counted, Counted], true, 3, &[10, 20]),
            (&[Counted, Counted, Counted], false, 3, &[10, 20]),
            (&[Counted, Never], false, 2, &[10]),
            // Waiting for another process uses nothing up.
            (
                &[Waiting, Waiting, Waiting, Counted, Waiting],
                true,
                6,
                &[each, each, each, 10, each],
            ),
        ];
        for (failures, good, n, waits) in cases {
            let (done, made, waited) = insisted(failures);
            assert_eq!((done.is_ok(), made), (good, n), "{failures:?}");
            assert_eq!(waited, waits, "{failures:?}");
        }
    }

    #[test]
    fn file_that_another_process_fetches_is_waited_for() {
        let dir = tempfile::tempdir().expect("temp dir");
        let options = HubOptions {
            cache: dir.path().to_path_buf(),
            endpoint: "http://127.0.0.1:9".to_owned(),
            token: None,
            stall: Duration::from_secs(1),
            retries: 0,
            retry_wait: Duration::ZERO,
        };
        let client = Client::new(&options, &"own/model".parse().expect("id")).expect("client");
        let locked = ApiError::LockAcquisition("x.lock".into());
        let failure = client.failure("onnx/x.onnx", locked);
        assert_eq!(failure.again, Again::Waiting);
        let text = failure.error.to_string();
        assert!(
            text.contains("own/model") && text.contains("x.lock"),
            "{text}"
        );
    }
}
