//! The command line: one file a subcommand.

mod analyze;
mod completions;
mod detectors;
#[cfg(live)]
mod doctor;
#[cfg(live)]
mod live;
mod man;
#[cfg(not(live))]
mod not_live;
mod observe;
mod offline;
mod preflight;
mod schema;
#[cfg(live)]
mod service;
#[cfg(live)]
mod stream;
mod values;
mod watch;

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Observes traffic to the EC2 instance metadata service (IMDS): who asked, what became of it, and what is wrong.
///
/// It never talks to IMDS itself. Response bodies never leave the kernel; tokens in requests become salted hashes at once and are never written.
#[derive(Debug, Parser)]
#[command(name = "imds-observer", version, propagate_version = true)]
#[command(
    after_help = "Exit status: 0 done; 1 could not run, or part of the input could not be read; 2 bad usage; \
    3 analyze --fail-on or preflight found something; 4 preflight can't say.\n\
    Log lines go to stderr; IMDS_OBSERVER_LOG=debug shows more of them."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Watch(watch::WatchArgs),
    #[cfg(live)]
    Stream(stream::StreamArgs),
    /// Not in this build: it observes a host
    #[cfg(not(live))]
    Stream(not_live::NotLiveArgs),
    Analyze(analyze::AnalyzeArgs),
    Preflight(preflight::PreflightArgs),
    #[cfg(live)]
    Doctor(doctor::DoctorArgs),
    /// Not in this build: it inspects a host
    #[cfg(not(live))]
    Doctor(not_live::NotLiveArgs),
    Detectors(detectors::DetectorsArgs),
    Schema(schema::SchemaArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// How a command ended that could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Done,
    /// Part of the input could not be read; the rest was used.
    Partial,
    /// `analyze --fail-on` or `preflight` found something.
    Found,
    /// `preflight` can't say.
    CannotSay,
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(match status {
            Status::Done => 0,
            Status::Partial => 1,
            Status::Found => 3,
            Status::CannotSay => 4,
        })
    }
}

/// Parses the command line and runs it. Bad usage ends the program with status 2.
#[cfg_attr(
    not(live),
    expect(clippy::match_same_arms, reason = "commands that aren't there have one answer")
)]
pub fn run() -> anyhow::Result<Status> {
    let cli = Cli::parse();
    log_to_stderr();
    match cli.command {
        Command::Watch(args) => args.run(),
        Command::Stream(args) => args.run(),
        Command::Analyze(args) => args.run(),
        Command::Preflight(args) => args.run(),
        Command::Doctor(args) => args.run(),
        Command::Detectors(args) => args.run(),
        Command::Schema(args) => args.run(),
        Command::Completions(args) => args.run(),
        Command::Man(args) => args.run(),
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_env("IMDS_OBSERVER_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    let terminal = io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| crate::watch::log::Stderr)
        .with_ansi(crate::report::text::Colour::on(terminal).0)
        .with_target(false)
        .without_time()
        .init();
}

/// Writes to stdout; a reader that has gone away is no error.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error).context("write to stdout"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
