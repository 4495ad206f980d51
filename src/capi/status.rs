//! Status codes.

use std::ffi::CStr;
use std::fmt::Display;

use crate::error::Error;

/// What became of a call. Everything but `TRTVLM_STATUS_OK` leaves a message in the session.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done. An answer that a deadline or a limit cut short is one, too.
    Ok = 0,
    /// An argument is null, out of range, of an unknown size or kind, or not UTF-8.
    Argument = 1,
    /// A kind of frame or engine that this build cannot take (CUDA memory on the CPU engine).
    Unsupported = 2,
    /// The handle belongs to no open session: it was closed, or never was one.
    Closed = 3,
    /// The session is answering: another thread asked, or a callback of its own did.
    Busy = 4,
    /// The answer is longer than the buffer; its beginning was written, `needed` has its length.
    BufferTooSmall = 5,
    /// The frame cannot be used: cut short, damaged, or larger than the limits.
    Frame = 6,
    /// The question cannot be asked: empty, or too long for the model.
    Question = 7,
    /// A file cannot be read.
    Io = 8,
    /// A model or bundle is not what it has to be.
    Model = 9,
    /// Something that was asked for is not on this machine, or not in this model.
    Unavailable = 10,
    /// Memory that is needed is not there.
    Memory = 11,
    /// The engine failed on this frame; the session can be asked again.
    Engine = 12,
    /// A defect of this library. The session answers no more: close it, and open another.
    Internal = 13,
}

/// All of them, in the order of their numbers, with their texts.
const ALL: [(Status, &CStr); 14] = [
    (Status::Ok, c"done"),
    (Status::Argument, c"invalid argument"),
    (Status::Unsupported, c"not supported by this build"),
    (Status::Closed, c"no open session"),
    (Status::Busy, c"the session is answering"),
    (
        Status::BufferTooSmall,
        c"the answer is longer than the buffer",
    ),
    (Status::Frame, c"the frame cannot be used"),
    (Status::Question, c"the question cannot be asked"),
    (Status::Io, c"a file cannot be read"),
    (Status::Model, c"the model is not what it has to be"),
    (Status::Unavailable, c"not available"),
    (Status::Memory, c"not enough memory"),
    (Status::Engine, c"the engine failed"),
    (
        Status::Internal,
        c"internal error: the session has to be opened again",
    ),
];

/// The text of a status.
pub(super) fn text(status: i32) -> &'static CStr {
    let mut all = ALL.iter();
    let found = all.find(|(known, _)| *known as i32 == status);
    found.map_or(c"unknown status", |(_, text)| text)
}

/// A call that failed, with a message for people.
#[derive(Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) status: Status,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(status: Status, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { status, message }
    }

    /// An argument that is wrong, by its name.
    pub(super) fn argument(name: &str, reason: impl Display) -> Self {
        Self::new(Status::Argument, format!("{name}: {reason}"))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Argument { .. } => Status::Argument,
            Error::Image { .. } | Error::TooLarge { .. } => Status::Frame,
            Error::Prompt { .. } | Error::NotQuick { .. } => Status::Question,
            Error::Io { .. } | Error::Download { .. } => Status::Io,
            Error::Unavailable { .. } => Status::Unavailable,
            Error::OutOfMemory { .. } => Status::Memory,
            Error::Malformed { .. }
            | Error::Mismatch { .. }
            | Error::Unsupported { .. }
            | Error::Threshold { .. }
            | Error::Exists { .. } => Status::Model,
            Error::Shape { .. }
            | Error::Logits { .. }
            | Error::Cpu { .. }
            | Error::Cuda { .. }
            | Error::Engine { .. }
            | Error::Crashed { .. }
            | Error::Cancelled => Status::Engine,
        };
        // The cause stands below an I/O error, where C has no chain to walk.
        let message = match &error {
            Error::Io { source, .. } => format!("{error}: {source}"),
            error => error.to_string(),
        };
        Self { status, message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_a_text_of_its_own() {
        for (number, (status, wanted)) in ALL.iter().enumerate() {
            assert_eq!(*status as usize, number);
            assert_eq!(text(number as i32), *wanted);
            let same = ALL.iter().filter(|(_, text)| text == wanted).count();
            assert_eq!(same, 1, "{wanted:?}");
        }
        for unknown in [-1, ALL.len() as i32, i32::MAX, i32::MIN] {
            assert_eq!(text(unknown), c"unknown status");
        }
    }

    #[test]
    fn failure_of_a_file_says_what_the_system_said() {
        let error = Error::io("a/b")(std::io::ErrorKind::NotFound.into());
        let failure = Failure::from(error);
        assert_eq!(failure.status, Status::Io);
        assert!(failure.message.starts_with("a/b: "), "{failure:?}");
        assert!(failure.message.contains("not found"), "{failure:?}");
    }
}
