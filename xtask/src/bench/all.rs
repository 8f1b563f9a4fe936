//! `bench all`: every figure of docs/benchmarks.md, from one command.

use std::time::Instant;

use super::lab::{self, Bench, Programs};
use super::{memory, offline, pipeline, watch};
use crate::run::step;

pub(crate) fn run(args: &lab::Args) -> anyhow::Result<()> {
    let begin = Instant::now();
    let programs = Programs::build(args)?;
    // Short runs are for CI, which doesn't install the programs that these benches compare with. Tests cover the live view and `analyze`.
    if !args.short {
        step("bench Offline", || offline::run(&offline::Args::whole(args.clone())))?;
        step("bench Watch", || watch::run(&watch::Args::whole(args.clone())))?;
    }
    for bench in Bench::ALL {
        step(&format!("bench {bench:?}"), || programs.run(bench, args, &[]))?;
    }
    step("bench Memory", || memory::run(&programs, args))?;
    step("bench Pipeline", || pipeline::run(args))?;
    eprintln!("all of it in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}
