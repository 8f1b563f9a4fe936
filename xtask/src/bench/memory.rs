//! `bench memory`: what each limit of the configuration bounds, in bytes: in user space filled to the limit, in the kernel as it reports.

use super::lab::{self, Bench, Programs};
use super::pipeline;

pub(crate) fn run(programs: &Programs, args: &lab::Args) -> anyhow::Result<()> {
    // Memory doesn't depend on optimization, which takes minutes to build.
    let own = pipeline::cargo_bench("memory", "dev", args)?;
    let kernel = programs.measure(Bench::Memory, args, &[])?;
    if !args.short && !args.no_write {
        let reported = format!(
            "`cargo xtask bench memory`, {}.\n\nOutside the kernel, filled to the limit by a client that does its worst:\n\n{}\n\nIn the kernel, taken at the start:\n\n{}",
            lab::machine()?,
            own.trim_end(),
            kernel.trim_end()
        );
        lab::write("memory", &reported)?;
    }
    Ok(())
}
