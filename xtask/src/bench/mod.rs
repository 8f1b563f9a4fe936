//! `bench`: measures what the program costs, side by side with the programs that people would use instead.

mod all;
mod lab;
mod memory;
mod offline;
mod pipeline;
mod trace;
mod watch;

use clap::{Args as ClapArgs, Subcommand};
use lab::{Bench, Programs};

/// Measure the program's cost
#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// All benches, into docs/benchmarks.md (needs root)
    All(lab::Args),
    /// Time per run of each kernel program, beside an empty one on the same hook (needs root)
    Kernel(lab::Args),
    /// Throughput of other traffic with nothing, the observer, tcpdump and tshark (needs root)
    Traffic(lab::Args),
    /// Increasing load, until events are lost (needs root)
    Flood {
        #[command(flatten)]
        args: lab::Args,
        /// Duration of a load of twenty times the quota
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// Memory, CPU and wake-ups while hardly anything happens; time to the first record (needs root)
    Idle {
        #[command(flatten)]
        args: lab::Args,
        /// Duration of a load of one request a second
        #[arg(long)]
        seconds: Option<u64>,
    },
    /// Time from the packet that completes an exchange to its line on standard output (needs root)
    Latency {
        #[command(flatten)]
        args: lab::Args,
        /// Exchanges a second
        #[arg(long)]
        rate: Option<u32>,
    },
    /// Memory of each limit of the configuration, bytes (needs root)
    Memory(lab::Args),
    /// The pure stages, each measured separately, per event
    Pipeline(lab::Args),
    Offline(offline::Args),
    Watch(watch::Args),
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::All(args) => all::run(args),
        What::Kernel(args) => lab::run(Bench::Kernel, args, &[]),
        What::Traffic(args) => lab::run(Bench::Traffic, args, &[]),
        What::Flood { args, seconds } => lab::run(Bench::Flood, args, &option("--seconds", *seconds)),
        What::Idle { args, seconds } => lab::run(Bench::Idle, args, &option("--seconds", *seconds)),
        What::Latency { args, rate } => lab::run(Bench::Latency, args, &option("--rate", *rate)),
        What::Memory(args) => memory::run(&Programs::build(args)?, args),
        What::Pipeline(args) => pipeline::run(args),
        What::Offline(args) => offline::run(args),
        What::Watch(args) => watch::run(args),
    }
}

/// Tests the benches themselves, for `cargo xtask test`.
pub(crate) fn short() -> anyhow::Result<()> {
    all::run(&lab::Args::short())
}

fn option(name: &str, value: Option<impl ToString>) -> Vec<String> {
    value.map_or_else(Vec::new, |value| vec![name.to_owned(), value.to_string()])
}
