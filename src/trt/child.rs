//! The child process that builds one plan: its side of the pipe.

use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::builder::{build, partial_path};
use super::ffi::shim;
use super::spec::BuildSpec;
use super::wire::{CANCEL, Message};
use crate::error::{Error, Result};

/// Exit status of a child whose parent went away.
const ORPHANED: i32 = 3;

/// Builds what one JSON [`BuildSpec`] on standard input asks for.
///
/// Standard output carries one JSON object a line: events, then a result or an error. The line
/// `cancel` on standard input stops the build at TensorRT's next step; the end of standard
/// input ends the process at once, so that it never outlives its parent. Returns the process's
/// exit status: 0 after a result, 1 after an error.
///
/// To be called by a program that does nothing else, see
/// [`build_in_child`](super::build_in_child).
pub fn run() -> i32 {
    let out = Arc::new(Mutex::new(std::io::stdout()));
    // Whatever the program printed before must not run into the first message.
    let _ = writeln!(std::io::stdout());
    let cancel = Arc::new(AtomicBool::new(false));
    let message = match read_spec().and_then(|spec| {
        watch_parent(
            partial_path(&spec.plan, std::process::id()),
            Arc::clone(&cancel),
        )?;
        let sink_out = Arc::clone(&out);
        build(
            &spec,
            Arc::new(move |event| send(&sink_out, &Message::Event(event))),
            &cancel,
        )
    }) {
        Ok(report) => Message::Result(report),
        Err(error) => Message::Error((&error).into()),
    };
    send(&out, &message);
    i32::from(!matches!(message, Message::Result(_)))
}

fn read_spec() -> Result<BuildSpec> {
    let mut line = String::new();
    let name = "standard input";
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(Error::io(name))?;
    serde_json::from_str(&line).map_err(|e| Error::malformed(name, format!("no build spec: {e}")))
}

/// Obeys the rest of standard input on a thread of its own.
fn watch_parent(partial: PathBuf, cancel: Arc<AtomicBool>) -> Result<()> {
    let watch = move || {
        for line in std::io::stdin().lock().lines() {
            match line {
                Ok(line) if line == CANCEL => cancel.store(true, Ordering::Relaxed),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // Best effort: nobody is left to be told.
        let _ = std::fs::remove_file(partial);
        shim::exit_now(ORPHANED);
    };
    let thread = std::thread::Builder::new().name("parent watch".to_owned());
    thread.spawn(watch).map_err(Error::io("parent watch"))?;
    Ok(())
}

/// Writes one line. A parent that no longer reads is noticed by [`watch_parent`].
fn send(out: &Mutex<std::io::Stdout>, message: &Message) {
    if let Ok(line) = serde_json::to_string(message) {
        let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    }
}
