//! The one error type of the crate.
//!
//! A variant exists if a caller would act differently; a fact exists as a field. Every variant
//! that concerns a file names the file.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What failed, and on what.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },

    /// A file was read, and is not what it has to be.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file, or the name under which its bytes were given.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// Something from outside is larger than [`crate::limits`] allows.
    #[error("{what} is {actual}, the limit is {limit}")]
    TooLarge {
        /// What was measured, with its unit, and the file if there is one.
        what: String,
        /// Its size.
        actual: u64,
        /// The largest size that is accepted.
        limit: u64,
    },

    /// Two things that must agree do not: both sides are named.
    #[error("{}: {what} is {actual}, expected {expected}", path.display())]
    Mismatch {
        /// The file that carries `actual`.
        path: PathBuf,
        /// The property that differs.
        what: &'static str,
        /// What this program, machine or manifest asks for.
        expected: String,
        /// What the file has.
        actual: String,
    },

    /// A tensor's shape or type does not fit its use; `expected` is symbolic.
    #[error("tensor `{name}`: expected {expected}, got {actual}")]
    Shape {
        /// Name of the tensor in its graph.
        name: String,
        /// What was expected, for example `[1, n, 896] f32`.
        expected: String,
        /// What was found.
        actual: String,
    },

    /// An ONNX node that a pass or an engine cannot handle.
    #[error("node `{node}` ({op}): {reason}")]
    Unsupported {
        /// Name of the node.
        node: String,
        /// Its operator type.
        op: String,
        /// Why it is not handled.
        reason: String,
    },

    /// An image could not be decoded, or has no pixels.
    #[error("image {name}: {reason}")]
    Image {
        /// The file, or how the caller named the frame.
        name: String,
        /// What the decoder said.
        reason: String,
    },

    /// A prompt that cannot be asked.
    #[error("prompt: {reason}")]
    Prompt {
        /// Why it was refused.
        reason: String,
    },

    /// A question that only the language model answers, in quick mode.
    #[error("quick mode does not answer this: {reason}")]
    NotQuick {
        /// Why not.
        reason: String,
    },

    /// An argument outside its range.
    #[error("{name}: {reason}")]
    Argument {
        /// The option or parameter.
        name: &'static str,
        /// What is wrong with its value.
        reason: String,
    },

    /// The decoder returned logits that no token can be picked from.
    #[error("the decoder returned {what} at step {step}")]
    Logits {
        /// What stands there: NaN, or no number above minus infinity.
        what: &'static str,
        /// Tokens of the answer so far.
        step: usize,
    },

    /// The CPU engine refused a graph or failed while running it.
    #[error("CPU engine, {graph}: {message}")]
    Cpu {
        /// The graph: `vision`, `embed`, `decoder`, or a file.
        graph: String,
        /// What the engine said.
        message: String,
    },

    /// A CUDA driver or NVRTC call failed.
    #[error("CUDA {call} failed: {message}")]
    Cuda {
        /// The call.
        call: &'static str,
        /// Code and text.
        message: String,
    },

    /// TensorRT refused a call; `code` is one of those in `cpp/shim_error.h`.
    #[error("TensorRT {call} failed ({code}): {message}")]
    Engine {
        /// The call.
        call: &'static str,
        /// Code of the shim.
        code: String,
        /// Text for people; nobody searches it.
        message: String,
    },

    /// A shared library or a device that was asked for is not on this machine.
    #[error("{what} is not available: {reason}")]
    Unavailable {
        /// The library or device.
        what: String,
        /// What was tried, and what to do about it.
        reason: String,
    },

    /// A child process that builds an engine died.
    #[error("building {component} died: {reason}")]
    Crashed {
        /// The component that was being built.
        component: String,
        /// Signal or exit status, and the last log lines.
        reason: String,
    },

    /// Memory that a build or a run needs is not there.
    #[error("{what} needs {needed_bytes} bytes, {available_bytes} are available")]
    OutOfMemory {
        /// What needs it.
        what: String,
        /// The plan.
        needed_bytes: u64,
        /// What the machine has now.
        available_bytes: u64,
    },

    /// A result is worse than the caller accepts.
    #[error("{what} is {actual}, at least {expected} was asked for")]
    Threshold {
        /// What was measured.
        what: &'static str,
        /// The least that is accepted.
        expected: String,
        /// The result.
        actual: String,
    },

    /// The output exists already and may not be replaced.
    #[error("{} exists (use --force to replace it)", path.display())]
    Exists {
        /// The output.
        path: PathBuf,
    },

    /// A model could not be downloaded.
    #[error("download of {repo}: {reason}")]
    Download {
        /// `owner/name` on the hub.
        repo: String,
        /// What went wrong, and on which file.
        reason: String,
    },

    /// The caller asked to stop.
    #[error("cancelled")]
    Cancelled,
}

/// Longest reason of [`Error::malformed`], in bytes.
const REASON_BYTES: usize = 1000;

impl Error {
    /// An I/O error that names its file: `.map_err(Error::io(path))`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A file that is not what it has to be. A reason that quotes much of the file is shortened.
    pub fn malformed(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        if reason.len() > REASON_BYTES {
            // What it is stands in front, where it is at the end.
            let head = reason.floor_char_boundary(REASON_BYTES / 2);
            let tail = reason.ceil_char_boundary(reason.len() - REASON_BYTES / 2);
            reason.replace_range(head..tail, " … ");
        }
        Self::Malformed {
            path: path.as_ref().to_path_buf(),
            reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_with_a_long_reason_keeps_its_ends() {
        let quoted = "ä".repeat(100_000);
        let reason = format!("unknown variant `{quoted}` at line 7");
        let text = Error::malformed("a.json", reason).to_string();
        assert!(text.len() < 1100, "{} bytes", text.len());
        assert!(text.starts_with("a.json: unknown variant `ä"), "{text}");
        assert!(text.ends_with("ä` at line 7"), "{text}");
        let short = Error::malformed("a.json", "cut short").to_string();
        assert_eq!(short, "a.json: cut short");
    }
}
