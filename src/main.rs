//! The command line: see [`trtvlm::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    trtvlm::cli::main()
}
