//! `bench all`: every figure of docs/performance.md that needs a lab, from one command.

use std::time::Instant;

use super::lab::{self, Bench, Programs};
use super::{memory, pipeline};
use crate::run::step;

pub(crate) fn run(args: &lab::Args) -> anyhow::Result<()> {
    let begin = Instant::now();
    let programs = Programs::build(args)?;
    for bench in Bench::ALL {
        step(&format!("bench {bench:?}"), || programs.run(bench, args, &[]))?;
    }
    step("bench Memory", || memory::run(&programs, args))?;
    step("bench Pipeline", || pipeline::run(args))?;
    eprintln!("all of it in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}
