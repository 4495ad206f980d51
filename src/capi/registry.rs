//! Handles to open sessions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::session::Session;
use super::status::{Failure, Status};
use crate::sync::lock;

struct Registry {
    open: BTreeMap<usize, Arc<Session>>,
    last: usize,
}

static SESSIONS: Mutex<Registry> = Mutex::new(Registry {
    open: BTreeMap::new(),
    last: 0,
});

/// Enters a session; its handle was never given out before.
pub(super) fn enter(session: Session) -> usize {
    let mut sessions = lock(&SESSIONS);
    sessions.last += 1;
    let handle = sessions.last;
    sessions.open.insert(handle, Arc::new(session));
    handle
}

/// Finds the session of a handle.
pub(super) fn find(handle: usize) -> Result<Arc<Session>, Failure> {
    let sessions = lock(&SESSIONS);
    sessions.open.get(&handle).cloned().ok_or_else(unknown)
}

/// Takes a session out. Who is using it still can until they are done.
pub(super) fn remove(handle: usize) -> Result<Arc<Session>, Failure> {
    lock(&SESSIONS).open.remove(&handle).ok_or_else(unknown)
}

fn unknown() -> Failure {
    Failure::new(
        Status::Closed,
        "session: it was closed, or never was opened",
    )
}
