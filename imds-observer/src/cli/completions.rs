//! `completions`: shell completion scripts.

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{Cli, Status, help, print};

/// Print a shell completion script
#[derive(Debug, Args)]
#[command(after_long_help = help::COMPLETIONS)]
pub(super) struct CompletionsArgs {
    /// Shell that will read the script
    shell: Shell,
}

impl CompletionsArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "imds-observer", &mut script);
        print(&String::from_utf8_lossy(&script))?;
        Ok(Status::Done)
    }
}
