//! `bench`: what the program costs, measured side by side with what people would use instead.

mod offline;
mod trace;
mod watch;

use clap::{Args as ClapArgs, Subcommand};

/// Measure.
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    Offline(offline::Args),
    Watch(watch::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::Offline(args) => offline::run(args),
        What::Watch(args) => watch::run(args),
    }
}
