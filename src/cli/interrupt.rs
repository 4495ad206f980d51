//! Ctrl-C: the first asks for an orderly end, the second ends at once; so does the first where
//! there is nothing to be brought to an end.

use std::process::exit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};

use crate::sync::lock;

/// Exit status of an interrupted command, as shells have it.
pub const EXIT_INTERRUPTED: u8 = 130;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Whether the first Ctrl-C ends the process. Held while it does, so that whoever is about to begin
/// what must be ended in order waits instead of being cut off in it.
static AT_ONCE: Mutex<bool> = Mutex::new(false);

/// Installs the handler; the flag becomes true at the first Ctrl-C (or SIGTERM).
///
/// # Errors
/// If a handler is installed already.
pub fn install() -> anyhow::Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        let at_once = lock(&AT_ONCE);
        let again = INTERRUPTED.swap(true, Ordering::SeqCst);
        if again || *at_once {
            exit(i32::from(EXIT_INTERRUPTED));
        }
    })?;
    Ok(&INTERRUPTED)
}

/// Says whether the first Ctrl-C ends the process from now on, because nothing would be lost: a
/// pass of a large model takes seconds, and cannot be left in any other way. A Ctrl-C that came
/// shortly before ends it here.
pub fn end_at_once(yes: bool) {
    let mut at_once = lock(&AT_ONCE);
    *at_once = yes;
    if yes && interrupted() {
        exit(i32::from(EXIT_INTERRUPTED));
    }
}

/// The flag that [`install`] gives out, for work that keeps it.
pub fn shared() -> Arc<AtomicBool> {
    INTERRUPTED.clone()
}

/// True if Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
