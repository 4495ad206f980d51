//! Signals that must not end the program in the middle of a write (an unsafe fence: see
//! `tests/house.rs`).
#![allow(unsafe_code)]

/// Makes a write beyond the limit on file sizes (`ulimit -f`) an error like any other, "File too
/// large", where the system's way is to end the process. Child processes inherit it.
pub fn ignore_file_size_signal() {
    // SAFETY: no handler is installed, so that nothing of ours runs inside a signal.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}
