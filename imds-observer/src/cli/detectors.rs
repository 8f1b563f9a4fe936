//! `detectors`: the list of detectors, and the manual page of each.

use std::fmt::Write as _;

use clap::{Args, Subcommand};

use super::{Status, help, print, values};
use crate::detectors::{CATALOGUE, manual};
use crate::record::Code;

/// List the detectors, or explain one
#[derive(Debug, Args)]
#[command(after_long_help = help::DETECTORS)]
pub(super) struct DetectorsArgs {
    #[command(subcommand)]
    command: DetectorsCommand,
}

#[derive(Debug, Subcommand)]
enum DetectorsCommand {
    /// List all finding codes, one per line
    List,
    /// Print the manual page of a finding code
    Explain {
        /// Finding code, such as token-response-lost
        #[arg(value_parser = values::code())]
        code: Code,
    },
}

impl DetectorsArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let text = match self.command {
            DetectorsCommand::List => CATALOGUE.iter().fold(String::new(), |mut text, entry| {
                let _ = writeln!(text, "{:<22} {}", entry.code, entry.line);
                text
            }),
            DetectorsCommand::Explain { code } => manual(code).ok_or_else(|| {
                anyhow::anyhow!("explain {code}: no such detector in this version (see `imds-observer detectors list`)")
            })?,
        };
        print(&text)?;
        Ok(Status::Done)
    }
}
