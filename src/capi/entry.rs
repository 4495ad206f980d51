//! The functions (an unsafe fence: see `tests/house.rs`): each reads its arguments, calls what is safe, and
//! writes what came of it.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use super::files::{MOST_FILES, NamedBytes};
use super::frame::{Kind, Picture};
use super::raw;
use super::registry;
use super::session;
use super::settings::{Question, Settings};
use super::status::{self, Failure, Status};
use super::types::{
    FileView, FrameView, MemoryReport, Options, Outcome, QuestionView, Session, TRTVLM_ABI_VERSION,
    TRTVLM_STOP_CANCELLED, TRTVLM_STOP_DEADLINE, TRTVLM_STOP_EOS, TRTVLM_STOP_LENGTH,
    TRTVLM_STOP_SENTENCE,
};

const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("a version has no zero inside"),
    };

/// Runs an entry; a panic inside ends here, and `fallback` is returned.
fn guard<T>(entry: &'static str, fallback: T, body: impl FnOnce() -> T) -> T {
    let run = || {
        #[cfg(test)]
        super::tests::fault(entry);
        body()
    };
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => value,
        Err(panic) => {
            tracing::error!("{entry}: panic");
            // What was thrown may panic once more when it is dropped.
            std::mem::forget(panic);
            fallback
        }
    }
}

/// Runs an entry that works on an open session, which keeps why it failed.
fn with_session(
    entry: &'static str,
    handle: *mut Session,
    body: impl FnOnce(&Arc<session::Session>) -> Result<Status, Failure>,
) -> Status {
    guard(entry, Status::Internal, || {
        let session = match registry::find(handle.addr()) {
            Ok(session) => session,
            Err(failure) => return failure.status,
        };
        body(&session).unwrap_or_else(|failure| {
            session.note(&failure);
            failure.status
        })
    })
}

/// Writes as much of a text as there is room for, whole characters and a zero behind; returns the bytes without
/// the zero.
fn write_text(room: &mut [MaybeUninit<u8>], text: &str) -> usize {
    let Some(most) = room.len().checked_sub(1) else {
        return 0;
    };
    let n = text.floor_char_boundary(most);
    room[..n].write_copy_of_slice(&text.as_bytes()[..n]);
    room[n].write(0);
    n
}

/// Version of the interface that the library has; `TRTVLM_ABI_VERSION` is that of the header. A program goes on
/// if they are equal.
#[unsafe(no_mangle)]
pub extern "C" fn trtvlm_abi_version() -> u32 {
    guard("trtvlm_abi_version", 0, || TRTVLM_ABI_VERSION)
}

/// Version of the library, such as "0.1.0". Never null, lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn trtvlm_version() -> *const c_char {
    guard("trtvlm_version", c"".as_ptr(), || VERSION.as_ptr())
}

/// What a status means, in a few words. Never null, lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn trtvlm_status_text(status: i32) -> *const c_char {
    guard("trtvlm_status_text", c"".as_ptr(), || {
        status::text(status).as_ptr()
    })
}

/// The word for why an answer ended: "eos", "length", "sentence", "deadline" or "cancelled". Never null, lives
/// for ever.
#[unsafe(no_mangle)]
pub extern "C" fn trtvlm_stop_text(stop: u32) -> *const c_char {
    guard("trtvlm_stop_text", c"".as_ptr(), || {
        let text = match stop {
            TRTVLM_STOP_EOS => c"eos",
            TRTVLM_STOP_LENGTH => c"length",
            TRTVLM_STOP_SENTENCE => c"sentence",
            TRTVLM_STOP_DEADLINE => c"deadline",
            TRTVLM_STOP_CANCELLED => c"cancelled",
            _ => c"unknown",
        };
        text.as_ptr()
    })
}

/// Fills `options`, whose size is `size` bytes, with what `trtvlm_open` takes by default.
///
/// # Safety
/// `options` is null or leads to `size` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trtvlm_options_init(options: *mut Options, size: usize) -> Status {
    guard("trtvlm_options_init", Status::Internal, || {
        let init = || {
            let mut defaults = Options::new();
            // SAFETY: the caller gives `size` bytes; the struct is filled only if its size fits.
            unsafe {
                let room = raw::room("options", options.cast(), size)?;
                if size < size_of::<usize>() || !options.is_aligned() {
                    return Err(Failure::argument("options", "too small or not aligned"));
                }
                room.fill(MaybeUninit::zeroed());
                raw::put("options", options.cast::<usize>(), size)?;
                defaults.size = size;
                raw::write_struct(options, &defaults)?;
            }
            Ok(Status::Ok)
        };
        init().unwrap_or_else(|failure: Failure| failure.status)
    })
}

/// Opens a bundle or a model folder: reads, verifies, loads, warms up. `options` may be null. Takes as long as the
/// model is large; everything a frame needs is there when it returns.
///
/// `*session` is the new session, or null if the status is not `TRTVLM_STATUS_OK`; then `message` (of
/// `message_size` bytes, may be null if that is 0) says why. Close it with `trtvlm_close`. Sessions are
/// independent of each other; each may be used from any thread, and answers one question at a time.
///
/// # Safety
/// Addresses lead to what they say; `path` ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trtvlm_open(
    path: *const c_char,
    options: *const Options,
    session: *mut *mut Session,
    message: *mut c_char,
    message_size: usize,
) -> Status {
    let open = |settings| {
        // SAFETY: the caller's address, as it promises.
        let path = unsafe { raw::text("path", path, usize::MAX)? };
        session::Session::open(Path::new(path), settings)
    };
    // SAFETY: the caller's addresses, as it promises.
    unsafe {
        enter(
            "trtvlm_open",
            options,
            session,
            (message, message_size),
            open,
        )
    }
}

/// Opens a bundle or a model folder whose `n_files` files lie in memory, such as in the program itself. They are
/// copied into a folder in shared memory (/dev/shm; the system's temporary folder where there is none), which goes when the session
/// is closed; the caller's memory is of no use from the return on. All else is as with `trtvlm_open`.
///
/// # Safety
/// As `trtvlm_open`; `files` leads to `n_files` structs, and these to what they say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trtvlm_open_files(
    files: *const FileView,
    n_files: usize,
    options: *const Options,
    session: *mut *mut Session,
    message: *mut c_char,
    message_size: usize,
) -> Status {
    let open = |settings| {
        if n_files > MOST_FILES {
            let reason = format!("{n_files}, {MOST_FILES} are the most");
            return Err(Failure::argument("n_files", reason));
        }
        // SAFETY: the caller's addresses, as it promises.
        let files = unsafe { raw::values("files", files, n_files)? };
        let named = files.iter().map(|file| {
            // SAFETY: as above. A file without bytes may lie anywhere.
            unsafe {
                let path = raw::text("files.path", file.path, usize::MAX)?;
                let bytes = match file.length {
                    0 => &[],
                    length => raw::bytes(path, file.data, length)?,
                };
                Ok(NamedBytes { path, bytes })
            }
        });
        let named: Vec<NamedBytes<'_>> = named.collect::<Result<_, Failure>>()?;
        session::Session::open_files(&named, settings)
    };
    let message = (message, message_size);
    // SAFETY: the caller's addresses, as it promises.
    unsafe { enter("trtvlm_open_files", options, session, message, open) }
}

/// Reads options, opens a session and enters it; a message says why not.
///
/// # Safety
/// As [`trtvlm_open`].
unsafe fn enter(
    entry: &'static str,
    options: *const Options,
    session: *mut *mut Session,
    (message, message_size): (*mut c_char, usize),
    open: impl FnOnce(Settings) -> Result<session::Session, Failure>,
) -> Status {
    guard(entry, Status::Internal, || {
        let enter = || {
            // SAFETY: the caller's addresses, as it promises.
            let settings = unsafe {
                raw::put("session", session, ptr::null_mut())?;
                let options = match options.is_null() {
                    true => Options::new(),
                    false => raw::read_struct(options)?,
                };
                let variant = raw::optional_text("options.variant", options.variant)?;
                let pruner = raw::optional_text("options.pruner", options.pruner)?;
                Settings::new(&options, variant, pruner)?
            };
            let handle = registry::enter(open(settings)?);
            // SAFETY: the same address as above.
            unsafe { raw::put("session", session, ptr::without_provenance_mut(handle))? };
            Ok(Status::Ok)
        };
        enter().unwrap_or_else(|failure: Failure| {
            // SAFETY: the caller's address, as it promises; where there is none nobody wants to know.
            let room = unsafe { raw::room("message", message, message_size) };
            write_text(room.unwrap_or_default(), &failure.message);
            failure.status
        })
    })
}

/// Closes a session; its handle is of no use from then on. An answer that another thread waits for is given
/// first, by that thread; `trtvlm_cancel` shortens it. Null is closed already.
#[unsafe(no_mangle)]
pub extern "C" fn trtvlm_close(session: *mut Session) -> Status {
    guard("trtvlm_close", Status::Internal, || {
        if session.is_null() {
            return Status::Ok;
        }
        match registry::remove(session.addr()) {
            Ok(_) => Status::Ok,
            Err(failure) => failure.status,
        }
    })
}

/// Asks a question about a frame and waits for the answer.
///
/// `answer` takes the text and a zero, as many whole characters as fit into `answer_size` bytes; it may be null if
/// that is 0. If not all of it fits the status is `TRTVLM_STATUS_BUFFER_TOO_SMALL` and everything else is as if it
/// had. `result` may be null; it is all zeros if the status is neither `TRTVLM_STATUS_OK` nor that.
///
/// # Safety
/// Addresses lead to what they say, and nobody changes what they lead to before the call returns.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trtvlm_ask(
    session: *mut Session,
    frame: *const FrameView,
    question: *const QuestionView,
    answer: *mut c_char,
    answer_size: usize,
    result: *mut Outcome,
) -> Status {
    with_session("trtvlm_ask", session, |session| {
        // SAFETY: the caller's addresses, as it promises.
        let (view, asked, room) = unsafe {
            if !result.is_null() {
                // A result that cannot be written is found out before the work is done.
                raw::write_struct(result, &Outcome::default())?;
            }
            (
                raw::read_struct(frame)?,
                raw::read_struct(question)?,
                raw::room("answer", answer, answer_size)?,
            )
        };
        let kind = Kind::of(&view)?;
        let mut planes: [&[u8]; 2] = [&[]; 2];
        for (index, plane) in planes.iter_mut().enumerate().take(kind.n_planes()) {
            let name = ["frame.planes[0]", "frame.planes[1]"][index];
            let at = &view.planes[index];
            // SAFETY: the caller's address and the bytes that may be read there.
            *plane = unsafe { raw::bytes(name, at.data, at.length)? };
        }
        // SAFETY: the caller's text and function.
        let (text, on_text) = unsafe {
            let text = raw::text("question.text", asked.text, asked.length)?;
            (text, raw::OnText::new(asked.on_text, asked.user))
        };
        let question = Question {
            text,
            max_tokens: asked.max_tokens,
            one_sentence: asked.one_sentence,
            keep: asked.keep,
            reserved: asked.reserved,
        };
        let deadline = (asked.deadline_ns > 0).then(|| Duration::from_nanos(asked.deadline_ns));
        let mut outcome = session.ask(
            &Picture::new(kind, &view, planes),
            &question,
            deadline,
            &mut |piece| on_text.as_ref().is_none_or(|on_text| on_text.call(piece)),
            &mut |text| write_text(room, text),
        )?;
        outcome.timestamp_ns = view.timestamp_ns;
        if !result.is_null() {
            // SAFETY: written once already, above.
            unsafe { raw::write_struct(result, &outcome)? };
        }
        if outcome.written < outcome.needed {
            return Err(Failure::new(
                Status::BufferTooSmall,
                format!(
                    "answer: {} bytes and a zero are needed, there are {answer_size}",
                    outcome.needed
                ),
            ));
        }
        Ok(Status::Ok)
    })
}

/// Stops the answer at hand, from any thread, before its next pass: `trtvlm_ask` returns what there is with
/// `TRTVLM_STOP_CANCELLED`. Where no question is being answered it does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn trtvlm_cancel(session: *mut Session) -> Status {
    with_session("trtvlm_cancel", session, |session| {
        session.cancel();
        Ok(Status::Ok)
    })
}

/// What memory the session and the process have.
///
/// # Safety
/// `memory` is null or leads to a struct with its size set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trtvlm_memory_report(
    session: *mut Session,
    memory: *mut MemoryReport,
) -> Status {
    with_session("trtvlm_memory_report", session, |session| {
        // SAFETY: the caller's address, as it promises.
        unsafe { raw::write_struct(memory, &session.memory())? };
        Ok(Status::Ok)
    })
}

/// Why the newest call on the session that failed did: whole characters and a zero in `message`, which may be null
/// if `message_size` is 0. Returns the bytes of the whole text without the zero; 0 if no call has failed, or there is no
/// such session.
///
/// # Safety
/// `message` is null or leads to `message_size` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn trtvlm_last_error(
    session: *mut Session,
    message: *mut c_char,
    message_size: usize,
) -> usize {
    guard("trtvlm_last_error", 0, || {
        // SAFETY: the caller's address, as it promises.
        let room = unsafe { raw::room("message", message, message_size) }.unwrap_or_default();
        let found = registry::find(session.addr());
        let found = found.as_ref().map(|session| session.message());
        let text = found.as_ref().map_or("", |text| text.as_str());
        write_text(room, text);
        text.len()
    })
}

/// The functions of the header, for tests.
#[cfg(test)]
pub(super) const NAMES: [&str; 12] = [
    "trtvlm_abi_version",
    "trtvlm_version",
    "trtvlm_status_text",
    "trtvlm_stop_text",
    "trtvlm_options_init",
    "trtvlm_open",
    "trtvlm_open_files",
    "trtvlm_close",
    "trtvlm_ask",
    "trtvlm_cancel",
    "trtvlm_memory_report",
    "trtvlm_last_error",
];
