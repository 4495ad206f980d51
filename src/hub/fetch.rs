//! Fetching a model, watched: a transfer that stands still ends with an error.

use std::panic;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::cache::{Fetched, RepoCache};
use super::client::Client;
use super::files::{choose, refused, size_limit, too_large};
use super::{HubOptions, RepoId};
use crate::error::{Error, Result};

/// How often a caller hears of progress, and the cancel flag is looked at.
const TICK: Duration = Duration::from_millis(50);

/// How far the fetching of one file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The file.
    pub file: String,
    /// Its number, from 0.
    pub index: usize,
    /// How many files there are.
    pub n_files: usize,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes of the file.
    pub total_bytes: u64,
}

/// What the fetching thread says.
enum Message {
    Alive,
    Progress(Progress),
    Done(Result<PathBuf>),
}

/// Gives the local folder of a model, after fetching what of it is not in the cache.
///
/// Without `variant`: `fp32`, else `fp16`, else the only one there is. A model that was fetched
/// whole is found without a network. `progress` is called about twenty times a second at most.
///
/// # Errors
/// [`Error::Download`] naming repository and file: refused, not found, no connection, broken off
/// and not to be resumed, wrong size or digest, nothing heard for [`HubOptions::stall`].
/// [`Error::Io`] if the cache cannot be written, [`Error::Cancelled`] once `cancel` is set; what
/// has come by then is kept, and resumed by the next call. [`Error::TooLarge`] for a file above
/// its limit in [`limits`](crate::limits).
pub fn fetch(
    options: &HubOptions,
    repo: &RepoId,
    variant: Option<&str>,
    cancel: &AtomicBool,
    mut progress: impl FnMut(&Progress),
) -> Result<PathBuf> {
    if let Some(folder) = RepoCache::new(options, repo).find(variant) {
        return Ok(folder);
    }
    let client = Client::new(options, repo)?;
    let (send, receive) = mpsc::channel();
    let (id, asked) = (repo.clone(), variant.map(str::to_owned));
    thread::Builder::new()
        .name("hub".to_owned())
        .spawn(move || {
            let work = panic::AssertUnwindSafe(|| fetch_all(&client, &id, asked.as_deref(), &send));
            let done = panic::catch_unwind(work).unwrap_or_else(|panic| match panic.downcast() {
                Ok(excess) => {
                    let Excess { file, bytes } = *excess;
                    Err(too_large(&id, &file, bytes))
                }
                Err(_) => Err(refused(&id, "the hub gave an answer that is not one")),
            });
            // Nobody listens any more after a stall or a cancel.
            let _ = send.send(Message::Done(done));
        })
        .map_err(Error::io(&options.cache))?;
    let mut heard = Instant::now();
    loop {
        match receive.recv_timeout(TICK) {
            Ok(Message::Done(done)) => return done,
            Ok(Message::Progress(now)) => {
                progress(&now);
                heard = Instant::now();
            }
            Ok(Message::Alive) => heard = Instant::now(),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(refused(repo, "broke off")),
        }
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::Cancelled);
        }
        if heard.elapsed() > options.stall {
            let reason = format!(
                "{}: nothing came for {} s; start again to resume",
                options.endpoint,
                options.stall.as_secs()
            );
            return Err(refused(repo, reason));
        }
    }
}

fn fetch_all(
    client: &Client,
    repo: &RepoId,
    variant: Option<&str>,
    send: &Sender<Message>,
) -> Result<PathBuf> {
    let listing = client.list()?;
    let files = choose(&listing.files, variant).map_err(|reason| refused(repo, reason))?;
    for (index, file) in files.iter().enumerate() {
        let report = Report::new(send.clone(), file, index, files.len());
        client.download(file, &listing.commit, &report)?;
    }
    let fetched = Fetched {
        commit: listing.commit,
        files,
    };
    client.cache().remember(variant, &fetched)?;
    Ok(client.snapshot(&fetched.commit))
}

/// More bytes came than were announced and are allowed: a panic's payload, because the transfer
/// of `hf-hub` can be left in no other way.
struct Excess {
    file: String,
    bytes: u64,
}

/// Tells the watching thread what comes.
#[derive(Clone)]
pub(super) struct Report {
    send: Sender<Message>,
    now: Progress,
    sent: Option<Instant>,
}

impl Report {
    fn new(send: Sender<Message>, file: &str, index: usize, n_files: usize) -> Self {
        Self {
            send,
            now: Progress {
                file: file.to_owned(),
                index,
                n_files,
                bytes: 0,
                total_bytes: 0,
            },
            sent: None,
        }
    }

    /// Says that work goes on.
    pub(super) fn alive(&self) {
        let _ = self.send.send(Message::Alive);
    }

    /// Waits without being taken for stalled.
    pub(super) fn wait(&self, total: Duration) {
        let end = Instant::now() + total;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            self.alive();
            thread::sleep(left.min(TICK).max(Duration::from_millis(1)));
        }
    }

    /// Leaves a transfer that brings more than the file may have.
    fn check(&self, bytes: u64) {
        if bytes > size_limit(&self.now.file) {
            let file = self.now.file.clone();
            panic::resume_unwind(Box::new(Excess { file, bytes }));
        }
    }

    fn tell(&mut self) {
        self.sent = Some(Instant::now());
        let _ = self.send.send(Message::Progress(self.now.clone()));
    }
}

impl hf_hub::api::Progress for Report {
    fn init(&mut self, size: usize, _: &str) {
        self.now.bytes = 0;
        self.now.total_bytes = size as u64;
        self.check(size as u64);
        self.tell();
    }

    fn update(&mut self, size: usize) {
        self.now.bytes += size as u64;
        self.check(self.now.bytes);
        if self.sent.is_none_or(|sent| sent.elapsed() >= TICK) {
            self.tell();
        }
    }

    fn finish(&mut self) {
        self.tell();
    }
}
