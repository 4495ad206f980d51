//! The command line: see [`trtvlm::cli`].

use std::process::ExitCode;

use trtvlm::huge_pages::HugePages;

#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

fn main() -> ExitCode {
    trtvlm::cli::main()
}
