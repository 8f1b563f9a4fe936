//! `bench memory`: memory in bytes at each limit of the configuration. User space is measured with filled tables; the kernel reports the
//! size of its maps.

use super::lab::{self, Bench, Programs};
use super::pipeline;

pub(crate) fn run(programs: &Programs, args: &lab::Args) -> anyhow::Result<()> {
    // Memory doesn't depend on optimization, and an optimized build takes minutes.
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
