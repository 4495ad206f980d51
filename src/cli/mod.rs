//! The command line: one file a subcommand, each only parses, calls the library and prints.
//!
//! stdout carries the result, stderr everything else. Exit status: 0 done, 1 failed, 2 usage,
//! 3 a threshold was missed, 130 interrupted.

mod bench;
mod build;
#[cfg(feature = "tensorrt")]
mod build_plan;
mod build_progress;
mod calibrate;
mod calibration;
mod collect;
mod completions;
mod doctor;
mod eval;
mod files;
mod gate;
mod inspect;
mod interrupt;
mod knobs;
mod main;
mod progress;
mod quantization;
mod run;
mod signals;
mod source;
mod table;
#[cfg(feature = "train")]
mod train;
#[cfg(feature = "train")]
mod train_pruner;
#[cfg(feature = "train")]
mod train_quick;
mod watch;

pub use main::main;
