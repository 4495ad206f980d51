//! The command line: one file a subcommand, each only parses, calls the library and prints.
//!
//! stdout carries the result, stderr everything else. Exit status: 0 done, 1 failed, 2 usage,
//! 3 a threshold was missed, 130 interrupted.

mod build;
#[cfg(feature = "tensorrt")]
mod build_plan;
mod build_progress;
mod interrupt;
mod main;
mod run;
mod source;

pub use main::main;
