//! `doctor`: what this kernel and host let the observer see.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Status, print};
use crate::bpf::DEFAULT_ENDPOINTS;
use crate::doctor::{Check, DoctorOptions, Report, State};
use crate::report::escape::Escaped;
use crate::report::text::Colour;

/// Tell what this kernel and host let the observer see, and what stands between this host and IMDS
///
/// Sends no packet and changes nothing.
#[derive(Debug, Args)]
pub(super) struct DoctorArgs {
    /// What to write
    #[arg(short, value_name = "FORMAT", default_value = "text")]
    output: DoctorFormat,
    /// Address of IMDS (repeatable) [default: 169.254.169.254 and fd00:ec2::254]
    #[arg(long, value_name = "ADDR")]
    endpoint: Vec<IpAddr>,
    /// Uplink to look at (repeatable) [default: those that route to the endpoints]
    #[arg(short, long, value_name = "IF")]
    interface: Vec<String>,
    /// Where the observer's programs would be attached [default: the root of cgroup2]
    #[arg(long, value_name = "PATH")]
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
            self.endpoint
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

/// Columns of what is seen, and of what is said about it.
const FOUND: usize = 9;
const SAID: usize = 13;

fn text(report: &Report, colour: Colour) -> String {
    let mut out = format!(
        "imds-observer {} on kernel {}\n\n",
        report.version,
        report.kernel.as_deref().unwrap_or("unknown")
    );
    for check in &report.checks {
        check_text(check, colour, &mut out);
    }
    let count = |state| report.count(state);
    let _ = writeln!(
        out,
        "\n{} between this host and IMDS, {} missing for the observer, {} to note, {} that couldn't be told",
        count(State::Fault),
        count(State::Missing),
        count(State::Note),
        count(State::Unknown)
    );
    out
}

fn check_text(check: &Check, colour: Colour, out: &mut String) {
    let state = match check.state {
        State::Ok => "ok     ".to_owned(),
        State::Note => "note   ".to_owned(),
        State::Unknown => "unknown".to_owned(),
        State::Missing => colour.bold("MISSING"),
        State::Fault => colour.bold("FAULT  "),
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
        let _ = writeln!(out, "{:FOUND$}blinds: {}", "", Escaped(blinds));
    }
    if let Some(remedy) = &check.remedy {
        let _ = writeln!(out, "{:FOUND$}to do: {}", "", Escaped(&remedy.text));
        for command in &remedy.commands {
            let _ = writeln!(out, "{:SAID$}{}", "", Escaped(command));
        }
    }
}
