//! `doctor`: what this kernel and host let the observer see.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::net::IpAddr;

use clap::{Args, ValueEnum};

use super::{Status, print};
use crate::bpf::DEFAULT_ENDPOINTS;
use crate::doctor::{Report, State};
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DoctorFormat {
    Text,
    Json,
}

impl DoctorArgs {
    pub(super) fn run(&self) -> anyhow::Result<Status> {
        let endpoints = if self.endpoint.is_empty() {
            &DEFAULT_ENDPOINTS
        } else {
            self.endpoint.as_slice()
        };
        let report = Report::of_this_host(endpoints);
        let text = match self.output {
            DoctorFormat::Text => text(&report, Colour::on(io::stdout().is_terminal())),
            DoctorFormat::Json => serde_json::to_string_pretty(&report)? + "\n",
        };
        print(&text)?;
        Ok(Status::Done)
    }
}

fn text(report: &Report, colour: Colour) -> String {
    let mut out = String::new();
    for check in &report.checks {
        let state = match check.state {
            State::Ok => "ok     ",
            State::Missing => "MISSING",
            State::Unknown => "unknown",
        };
        let state = if check.state == State::Missing {
            colour.bold(state)
        } else {
            state.to_owned()
        };
        let _ = writeln!(out, "{state}  {:<24} {}", check.name, Escaped(&check.found));
        if let Some(means) = &check.means {
            let _ = writeln!(out, "{:34} {means}", "");
        }
    }
    out
}
