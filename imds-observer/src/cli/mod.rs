//! The command line: one file a subcommand.

mod analyze;
mod completions;
mod detectors;
#[cfg(live)]
mod doctor;
#[cfg(live)]
mod exec;
mod help;
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

/// Trace EC2 instance metadata (IMDS) traffic, attribute it to processes and containers, and diagnose failures
///
/// Traffic comes from eBPF programs on this host, or from recorded traces and packet captures. imds-observer sends no request to IMDS.
/// Response bodies never leave the kernel. Tokens are replaced by salted hashes when they are read and are never written.
#[derive(Debug, Parser)]
#[command(name = "imds-observer", version, propagate_version = true)]
#[command(
    after_help = "Exit status:\n  \
    0  success\n  \
    1  could not run, or part of the input could not be read\n  \
    2  invalid command line\n  \
    3  analyze, exec --fail-on: a finding has that severity; exec --assert: an assertion failed; preflight: not safe\n  \
    4  preflight: inconclusive\n\n\
    exec: the status of its command; 125 exec failed, 126 the command can't be run, 127 it was not found\n\n\
    Log lines go to stderr. Set IMDS_OBSERVER_LOG=info or =debug for more of them.",
    after_long_help = help::PROGRAM
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
    /// Not available in this build (it needs the feature `live`)
    #[cfg(not(live))]
    Stream(not_live::NotLiveArgs),
    Analyze(analyze::AnalyzeArgs),
    Preflight(preflight::PreflightArgs),
    #[cfg(live)]
    Doctor(doctor::DoctorArgs),
    /// Not available in this build (it needs the feature `live`)
    #[cfg(not(live))]
    Doctor(not_live::NotLiveArgs),
    #[cfg(live)]
    Exec(Box<exec::ExecArgs>),
    /// Not available in this build (it needs the feature `live`)
    #[cfg(not(live))]
    Exec(not_live::NotLiveArgs),
    Detectors(detectors::DetectorsArgs),
    Schema(schema::SchemaArgs),
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Man(man::ManArgs),
}

/// Result of a command that ran, as an exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Done,
    /// Part of the input could not be read; the rest was used.
    Partial,
    /// `analyze --fail-on` or `preflight` found something.
    Found,
    /// `preflight` is inconclusive.
    CannotSay,
    /// That of `exec`'s command, or one of `exec` itself.
    Command(u8),
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(match status {
            Status::Done => 0,
            Status::Partial => 1,
            Status::Found => 3,
            Status::CannotSay => 4,
            Status::Command(status) => status,
        })
    }
}

/// Parses the command line and runs it. Bad usage ends the program with status 2.
pub fn run() -> anyhow::Result<Status> {
    let cli = Cli::parse();
    log_to_stderr();
    match cli.command {
        Command::Watch(args) => args.run(),
        Command::Stream(args) => args.run(),
        Command::Analyze(args) => args.run(),
        Command::Preflight(args) => args.run(),
        Command::Doctor(args) => args.run(),
        #[cfg(live)]
        Command::Exec(args) => Ok(args.run()),
        #[cfg(not(live))]
        Command::Exec(args) => args.run(),
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

/// Writes to stdout. A closed pipe isn't an error.
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
