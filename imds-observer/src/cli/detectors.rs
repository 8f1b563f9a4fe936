//! `detectors`: which patterns are found, and each one's manual page.

use std::fmt::Write as _;

use clap::{Args, Subcommand};

use super::{Status, print, values};
use crate::detectors::{CATALOGUE, manual};
use crate::record::Code;

/// List the detectors, or explain one
#[derive(Debug, Args)]
pub(super) struct DetectorsArgs {
    #[command(subcommand)]
    command: DetectorsCommand,
}

#[derive(Debug, Subcommand)]
enum DetectorsCommand {
    /// One line for each code
    List,
    /// The manual page of one code
    Explain {
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
                anyhow::anyhow!(
                    "explain {code}: this version has no detector for it (see `imds-observer detectors list`)"
                )
            })?,
        };
        print(&text)?;
        Ok(Status::Done)
    }
}
