//! Ctrl-C: the first asks for an orderly end, the second ends at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// Exit status of an interrupted command, as shells have it.
pub const EXIT_INTERRUPTED: u8 = 130;

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Installs the handler; the flag becomes true at the first Ctrl-C (or SIGTERM).
///
/// # Errors
/// If a handler is installed already.
pub fn install() -> anyhow::Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
    })?;
    Ok(&INTERRUPTED)
}

/// The flag that [`install`] gives out, for work that keeps it.
pub fn shared() -> Arc<AtomicBool> {
    INTERRUPTED.clone()
}

/// True if Ctrl-C was pressed.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
