//! Parsing of arguments, exit status, log lines.

use std::io::{ErrorKind, IsTerminal, Write, stderr};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use super::interrupt::{EXIT_INTERRUPTED, interrupted};
use super::signals::ignore_file_size_signal;
use super::table::printable_lines;
#[cfg(feature = "tensorrt")]
use crate::build::WORKER_COMMAND;
use crate::error::Error;

/// Exit status of a command whose result missed a threshold that the user set.
const EXIT_THRESHOLD: u8 = 3;

/// Small vision-language models: from ONNX files to TensorRT engines and answers about camera
/// frames.
#[derive(Parser)]
#[command(name = "trtvlm", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Build(super::build::Args),
    #[cfg(feature = "tensorrt")]
    #[command(name = WORKER_COMMAND, hide = true)]
    BuildPlan(super::build_plan::Args),
    Calibrate(super::calibrate::Args),
    Run(super::run::Args),
    Eval(super::eval::Args),
    Bench(super::bench::Args),
    #[cfg(feature = "train")]
    Train(super::train::Args),
    Watch(super::watch::Args),
    Inspect(super::inspect::Args),
    Doctor(super::doctor::Args),
    Completions(super::completions::Args),
}

/// Parses the arguments of the process, runs the subcommand, returns the exit status.
pub fn main() -> ExitCode {
    ignore_file_size_signal();
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("TRTVLM_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    let result = match cli.command {
        Command::Build(args) => args.run(),
        #[cfg(feature = "tensorrt")]
        Command::BuildPlan(args) => args.run(),
        Command::Calibrate(args) => args.run(),
        Command::Run(args) => args.run(),
        Command::Eval(args) => args.run(),
        Command::Bench(args) => args.run(),
        #[cfg(feature = "train")]
        Command::Train(args) => args.run(),
        Command::Watch(args) => args.run(),
        Command::Inspect(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Completions(args) => args.run(Cli::command()),
    };
    match result {
        Ok(()) if interrupted() => ExitCode::from(EXIT_INTERRUPTED),
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) if is_cancelled(&e) => ExitCode::from(EXIT_INTERRUPTED),
        Err(e) => {
            say(format_args!("error: {e:#}"));
            match e.downcast_ref() {
                Some(Error::Threshold { .. }) => ExitCode::from(EXIT_THRESHOLD),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Prints a line on stderr; a stderr that cannot be written is no reason to fail.
///
/// Names and messages may come from model files: control characters are shown, not obeyed.
pub(super) fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(stderr(), "{}", printable_lines(&line.to_string()));
}

/// What the user asked for, not a failure.
fn is_cancelled(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<Error>(), Some(Error::Cancelled))
}

/// The reader of our output went away: no reason to complain.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
    })
}
