//! Tasks of this repository, one file per command. `cargo xtask --help` lists them.

mod bench;
mod build;
mod clients;
mod demo;
mod dist;
mod docs;
mod ebpf;
mod foreign;
mod fuzz;
mod kernels;
mod lab;
#[path = "../../imds-observer/build/object.rs"]
mod object_build;
mod run;
mod scenarios;
mod screenshot;
mod setup;
mod soak;
mod test;
#[path = "../../imds-observer/build/toolchain.rs"]
mod toolchain;
mod words;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Chores of this repository",
    version
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Args),
    Bench(bench::Args),
    Build(build::Args),
    Demo(demo::Args),
    Dist(dist::Args),
    Test(test::Args),
    Lab(lab::Args),
    Docs(docs::Args),
    Ebpf(ebpf::Args),
    Fuzz(fuzz::Args),
    Scenarios(scenarios::Args),
    Screenshot(screenshot::Args),
    Soak(soak::Args),
    Words(words::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Build(args) => build::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Dist(args) => dist::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Lab(args) => lab::run(&args),
        Verb::Docs(args) => docs::run(&args),
        Verb::Ebpf(args) => ebpf::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
        Verb::Scenarios(args) => scenarios::run(&args),
        Verb::Screenshot(args) => screenshot::run(&args),
        Verb::Soak(args) => soak::run(&args),
        Verb::Words(args) => words::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
