//! Log lines and progress, on their way out of TensorRT.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

use super::flavour::Abi;
use super::progress::Progress;

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// TensorRT's `kINTERNAL_ERROR` and `kERROR`.
    Error,
    /// `kWARNING`.
    Warn,
    /// `kINFO`.
    Info,
    /// `kVERBOSE`.
    Debug,
}

/// What a build tells while it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step forward.
    Progress(Progress),
    /// A line of TensorRT's log.
    Log {
        /// Its severity.
        level: LogLevel,
        /// Its text.
        message: String,
    },
}

/// Part of a warning that says nothing but that our graphs have 64-bit indices.
const INT64_NOTE: &str = "has Int64 binding";

/// Writes a log line of TensorRT to `tracing`, target `tensorrt`.
pub(super) fn trace(level: LogLevel, message: &str) {
    match level {
        // Every input and output of 64-bit integers gets such a line in every build.
        LogLevel::Warn if message.contains(INT64_NOTE) => {
            tracing::debug!(target: "tensorrt", "{message}");
        }
        LogLevel::Error => tracing::error!(target: "tensorrt", "{message}"),
        LogLevel::Warn => tracing::warn!(target: "tensorrt", "{message}"),
        LogLevel::Info => tracing::info!(target: "tensorrt", "{message}"),
        LogLevel::Debug => tracing::debug!(target: "tensorrt", "{message}"),
    }
}

/// The bridge's receiver: TensorRT calls it on any of its threads, so it neither panics nor
/// waits for anything but the sink.
pub(super) struct Events {
    abi: &'static Abi,
    lowest: LogLevel,
    sink: Arc<dyn Fn(Event) + Send + Sync>,
    cancel: Arc<AtomicBool>,
}

impl Events {
    /// Events of the shim copy `abi` go to `sink`, log lines below `lowest` nowhere.
    pub fn new(
        abi: &'static Abi,
        lowest: LogLevel,
        sink: Arc<dyn Fn(Event) + Send + Sync>,
        cancel: Arc<AtomicBool>,
    ) -> Self {
        Self {
            abi,
            lowest,
            sink,
            cancel,
        }
    }

    fn level(&self, severity: i32) -> LogLevel {
        match self.abi.severity(severity) {
            Some("kWARNING") => LogLevel::Warn,
            Some("kINFO") => LogLevel::Info,
            Some("kVERBOSE") => LogLevel::Debug,
            _ => LogLevel::Error,
        }
    }

    /// Whether lines of this severity are wanted.
    pub fn wants(&self, severity: i32) -> bool {
        self.level(severity) <= self.lowest
    }

    /// A log line.
    pub fn log(&self, severity: i32, message: String) {
        let level = self.level(severity);
        (self.sink)(Event::Log { level, message });
    }

    /// A phase begins; `parent` is empty for an outermost one.
    pub fn phase_start(&self, phase: String, parent: String, n_steps: i32) {
        (self.sink)(Event::Progress(Progress::PhaseStart {
            phase,
            parent: Some(parent).filter(|name| !name.is_empty()),
            steps: u32::try_from(n_steps).unwrap_or(0),
        }));
    }

    /// A step is done; the answer is whether to go on.
    pub fn step(&self, phase: String, step: i32) -> bool {
        let step = u32::try_from(step).unwrap_or(0);
        (self.sink)(Event::Progress(Progress::Step { phase, step }));
        !self.cancelled()
    }

    /// A phase has ended.
    pub fn phase_finish(&self, phase: String) {
        (self.sink)(Event::Progress(Progress::PhaseEnd { phase }));
    }

    /// Whether the caller asked to stop.
    pub fn cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_lines_read_back_as_written() {
        let phase = "Building Engine".to_owned();
        for event in [
            Event::Progress(Progress::PhaseStart {
                phase: phase.clone(),
                parent: None,
                steps: 3,
            }),
            Event::Progress(Progress::Step {
                phase: phase.clone(),
                step: 2,
            }),
            Event::Progress(Progress::PhaseEnd { phase }),
            Event::Log {
                level: LogLevel::Warn,
                message: "a \"quoted\"\nline".to_owned(),
            },
        ] {
            let line = serde_json::to_string(&event).expect("serialise");
            assert!(!line.contains('\n'));
            assert_eq!(serde_json::from_str::<Event>(&line).expect("parse"), event);
        }
    }
}
