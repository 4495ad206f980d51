//! `trtvlm completions`: what a shell needs to complete our arguments.

use std::io::{Write, stdout};

use clap_complete::Shell;

/// Print a completion script for a shell, for example: trtvlm completions bash > /etc/bash_completion.d/trtvlm
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Args {
    /// Prints the script for `command`, the whole program.
    pub fn run(self, mut command: clap::Command) -> anyhow::Result<()> {
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        stdout().write_all(&script)?;
        Ok(())
    }
}
