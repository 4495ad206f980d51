//! The hidden subcommand that builds one plan in a process of its own.

/// Build one plan, as standard input says (started by `trtvlm build`)
#[derive(clap::Args)]
pub struct Args {}

impl Args {
    /// Runs the subcommand and ends the process with its status.
    ///
    /// # Errors
    /// Never: errors travel to the parent as events.
    pub fn run(self) -> anyhow::Result<()> {
        std::process::exit(crate::trt::child::run())
    }
}
