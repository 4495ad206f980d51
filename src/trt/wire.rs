//! What a build's child process and its parent say to each other: one JSON object a line.
//!
//! The parent writes a [`BuildSpec`](super::BuildSpec), then perhaps [`CANCEL`], and keeps the
//! pipe open; its end tells the child that the parent is gone. The child writes [`Message`]s.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::events::Event;
use super::spec::BuildReport;
use crate::error::Error;

/// The line that asks a child to stop in an orderly way.
pub(super) const CANCEL: &str = "cancel";

/// One line of a child.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Message {
    /// Something happened.
    Event(Event),
    /// The plan is written. Nothing follows.
    Result(BuildReport),
    /// The build failed. Nothing follows.
    Error(WireError),
}

/// The errors of a build that a caller acts on differently.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub(super) enum WireError {
    Io {
        path: PathBuf,
        os: Option<i32>,
        text: String,
    },
    Malformed {
        path: PathBuf,
        reason: String,
    },
    Shape {
        name: String,
        expected: String,
        actual: String,
    },
    Unsupported {
        node: String,
        op: String,
        reason: String,
    },
    Argument {
        name: String,
        reason: String,
    },
    Engine {
        call: String,
        shim: String,
        message: String,
    },
    Unavailable {
        what: String,
        reason: String,
    },
    OutOfMemory {
        what: String,
        needed_bytes: u64,
        available_bytes: u64,
    },
    Cancelled,
    Other {
        text: String,
    },
}

impl From<&Error> for WireError {
    fn from(error: &Error) -> Self {
        match error {
            Error::Io { path, source } => Self::Io {
                path: path.clone(),
                os: source.raw_os_error(),
                text: source.to_string(),
            },
            Error::Malformed { path, reason } => Self::Malformed {
                path: path.clone(),
                reason: reason.clone(),
            },
            Error::Shape {
                name,
                expected,
                actual,
            } => Self::Shape {
                name: name.clone(),
                expected: expected.clone(),
                actual: actual.clone(),
            },
            Error::Unsupported { node, op, reason } => Self::Unsupported {
                node: node.clone(),
                op: op.clone(),
                reason: reason.clone(),
            },
            Error::Argument { name, reason } => Self::Argument {
                name: (*name).to_owned(),
                reason: reason.clone(),
            },
            Error::Engine {
                call,
                code,
                message,
            } => Self::Engine {
                call: (*call).to_owned(),
                shim: code.clone(),
                message: message.clone(),
            },
            Error::Unavailable { what, reason } => Self::Unavailable {
                what: what.clone(),
                reason: reason.clone(),
            },
            Error::OutOfMemory {
                what,
                needed_bytes,
                available_bytes,
            } => Self::OutOfMemory {
                what: what.clone(),
                needed_bytes: *needed_bytes,
                available_bytes: *available_bytes,
            },
            Error::Cancelled => Self::Cancelled,
            other => Self::Other {
                text: other.to_string(),
            },
        }
    }
}

/// Names that errors hold as `&'static str`; others arrive as the last of them.
const NAMES: [&str; 13] = [
    "plan",
    "optimization_level",
    "workspace_bytes",
    "target",
    "createInferBuilder",
    "parseFromFile",
    "getError",
    "getInput",
    "addOptimizationProfile",
    "buildSerializedNetwork",
    "getTimingCache",
    "open_library",
    "build",
];

fn intern(name: &str) -> &'static str {
    NAMES
        .iter()
        .find(|known| **known == name)
        .unwrap_or(&"build")
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Io { path, os, text } => Self::Io {
                path,
                source: os.map_or_else(
                    || std::io::Error::other(text),
                    std::io::Error::from_raw_os_error,
                ),
            },
            WireError::Malformed { path, reason } => Self::Malformed { path, reason },
            WireError::Shape {
                name,
                expected,
                actual,
            } => Self::Shape {
                name,
                expected,
                actual,
            },
            WireError::Unsupported { node, op, reason } => Self::Unsupported { node, op, reason },
            WireError::Argument { name, reason } => Self::Argument {
                name: intern(&name),
                reason,
            },
            WireError::Engine {
                call,
                shim,
                message,
            } => Self::Engine {
                call: intern(&call),
                code: shim,
                message,
            },
            WireError::Unavailable { what, reason } => Self::Unavailable { what, reason },
            WireError::OutOfMemory {
                what,
                needed_bytes,
                available_bytes,
            } => Self::OutOfMemory {
                what,
                needed_bytes,
                available_bytes,
            },
            WireError::Cancelled => Self::Cancelled,
            WireError::Other { text } => Self::Engine {
                call: "build",
                code: "internal".to_owned(),
                message: text,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_arrive_as_they_were_sent() {
        let errors = [
            Error::io("a.plan")(std::io::Error::from_raw_os_error(28)),
            Error::malformed("a.onnx", "cut short"),
            Error::Shape {
                name: "x".into(),
                expected: "[1]".into(),
                actual: "[2]".into(),
            },
            Error::Unsupported {
                node: "n".into(),
                op: "Gqa".into(),
                reason: "no".into(),
            },
            Error::Argument {
                name: "optimization_level",
                reason: "no".into(),
            },
            Error::Engine {
                call: "parseFromFile",
                code: "parse".into(),
                message: "no".into(),
            },
            Error::Unavailable {
                what: "a GPU".into(),
                reason: "none".into(),
            },
            Error::OutOfMemory {
                what: "x".into(),
                needed_bytes: 2,
                available_bytes: 1,
            },
            Error::Cancelled,
        ];
        for error in errors {
            let line = serde_json::to_string(&Message::Error((&error).into())).expect("serialise");
            let Ok(Message::Error(wire)) = serde_json::from_str(&line) else {
                panic!("{line}");
            };
            let back = Error::from(wire);
            assert_eq!(format!("{back:?}"), format!("{error:?}"));
        }
    }

    #[test]
    fn errors_of_other_kinds_keep_their_text() {
        let error = Error::Exists {
            path: "a.plan".into(),
        };
        let back = Error::from(WireError::from(&error));
        assert!(back.to_string().contains("a.plan exists"), "{back}");
    }
}
