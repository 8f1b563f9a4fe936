//! Measures the observer's cost in a lab: one file per question.
//!
//! `cargo xtask bench NAME` runs it. Each verb prints a section of docs/benchmarks.md. All load is bounded and stays in the lab.

mod beside;
mod flood;
mod idle;
mod kernel;
mod latency;
mod load;
mod memory;
mod numbers;
mod observer;
mod traffic;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args)]
struct Common {
    /// The program to measure
    #[arg(long)]
    observer: PathBuf,
    /// Run for a few seconds in total, to test the bench itself
    #[arg(long)]
    short: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Time per run of each kernel program, beside an empty one on the same hook
    Kernel {
        #[command(flatten)]
        common: Common,
    },
    /// Throughput of other traffic with nothing, the observer, tcpdump and tshark
    Traffic {
        #[command(flatten)]
        common: Common,
    },
    /// Increasing load, until events are lost
    Flood {
        #[command(flatten)]
        common: Common,
        /// Duration of a load of twenty times the quota
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Memory, CPU and wake-ups while hardly anything happens
    Idle {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 300)]
        seconds: u64,
    },
    /// Time from the packet that completes an exchange to its line on standard output
    Latency {
        #[command(flatten)]
        common: Common,
        /// Exchanges a second
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        #[arg(long, default_value_t = 20)]
        seconds: u64,
    },
    /// Memory of the kernel's tables, by limit
    Memory {
        #[command(flatten)]
        common: Common,
    },
    /// Make traffic; the other benches start this inside the lab
    Load(load::Load),
}

fn main() -> ExitCode {
    load::raise_descriptor_limit();
    match run(&Cli::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("imds-observer-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: &Verb) -> Result<()> {
    match verb {
        Verb::Kernel { common } => kernel::run(&common.observer, common.short),
        Verb::Traffic { common } => traffic::run(&common.observer, common.short),
        Verb::Flood { common, seconds } => flood::run(&common.observer, common.short, *seconds),
        Verb::Idle { common, seconds } => idle::run(&common.observer, common.short, *seconds),
        Verb::Latency { common, rate, seconds } => latency::run(&common.observer, common.short, *rate, *seconds),
        Verb::Memory { common } => memory::run(&common.observer),
        Verb::Load(load) => load::run(load),
    }
}
