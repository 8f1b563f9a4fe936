//! `doctor`: what is visible on this kernel and host, and what blocks IMDS.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::help::{self, SCOPE};
use super::{Status, print};
use crate::doctor::{Check, CheckState, DoctorOptions, Report};
use crate::imds::{DEFAULT_ENDPOINTS, Selection};
use crate::report::escape::Escaped;
use crate::report::text::Colour;

/// Check observer prerequisites and diagnose IMDS connectivity on this host
///
/// Sends no packet and changes nothing. Checks the network namespace it runs in.
#[derive(Debug, Args)]
#[command(after_long_help = help::DOCTOR)]
pub(super) struct DoctorArgs {
    /// Output format
    #[arg(short, long, value_name = "FORMAT", default_value = "text")]
    output: DoctorFormat,
    /// Check these endpoints: imds, eks-pod-identity, ecs, or addresses (repeatable) [default: all three]
    #[arg(long, help_heading = SCOPE, value_name = "NAME|ADDR,...", value_delimiter = ',')]
    endpoint: Vec<Selection>,
    /// Check this uplink (repeatable) [default: all uplinks with a route to IMDS]
    #[arg(short, long, help_heading = SCOPE, value_name = "IF")]
    interface: Vec<String>,
    /// Check attaching to this cgroup v2 directory [default: the root]
    #[arg(long, help_heading = SCOPE, value_name = "PATH")]
    cgroup: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DoctorFormat {
    Text,
    Json,
}

impl DoctorArgs {
    pub(super) fn run(self) -> anyhow::Result<Status> {
        let endpoints = if self.endpoint.is_empty() {
            DEFAULT_ENDPOINTS.to_vec()
        } else {
            Selection::addresses(&self.endpoint)
        };
        let report = Report::of_this_host(&DoctorOptions {
            endpoints,
            interfaces: self.interface,
            cgroup: self.cgroup,
        });
        let text = match self.output {
            DoctorFormat::Text => text(&report, Colour::on(io::stdout().is_terminal())),
            DoctorFormat::Json => crate::report::escape::json(serde_json::to_string_pretty(&report)?) + "\n",
        };
        print(&text)?;
        Ok(Status::Done)
    }
}

/// Indentation of explanations, and of commands below them.
const FOUND: usize = 9;
const COMMANDS: usize = 13;

fn text(report: &Report, colour: Colour) -> String {
    let mut out = format!(
        "imds-observer {} on kernel {}\n\n",
        report.version,
        report.kernel.as_deref().unwrap_or("unknown")
    );
    for check in &report.checks {
        check_text(check, colour, &mut out);
    }
    let count = |state, one: &str, more: &str| match report.count(state) {
        1 => format!("1 {one}"),
        count => format!("{count} {more}"),
    };
    let _ = writeln!(
        out,
        "\n{} between this host and IMDS, {} missing for the observer, {}, {} unknown",
        count(CheckState::Fault, "fault", "faults"),
        count(CheckState::Missing, "feature", "features"),
        count(CheckState::Note, "note", "notes"),
        count(CheckState::Unknown, "check", "checks")
    );
    out
}

fn check_text(check: &Check, colour: Colour, out: &mut String) {
    let state = match check.state {
        CheckState::Ok => "ok     ".to_owned(),
        CheckState::Note => "note   ".to_owned(),
        CheckState::Unknown => "unknown".to_owned(),
        CheckState::Missing => colour.bold("MISSING"),
        CheckState::Fault => colour.bold("FAULT  "),
    };
    let subject = check
        .subject
        .as_ref()
        .map(|subject| format!(" {}", Escaped(subject)))
        .unwrap_or_default();
    let _ = writeln!(out, "{state}  {}{subject}: {}", check.name, Escaped(&check.found));
    if let Some(means) = &check.means {
        let _ = writeln!(out, "{:FOUND$}{}", "", Escaped(means));
    }
    if let Some(blinds) = &check.blinds {
        let _ = writeln!(out, "{:FOUND$}not visible: {}", "", Escaped(blinds));
    }
    if let Some(remedy) = &check.remedy {
        let _ = writeln!(out, "{:FOUND$}to do: {}", "", Escaped(&remedy.text));
        for command in &remedy.commands {
            let _ = writeln!(out, "{:COMMANDS$}{}", "", Escaped(command));
        }
    }
}
