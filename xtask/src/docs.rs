//! `docs`: regenerates pages that are made from sources and runs: the detectors' manual pages with their example records, and the table of
//! faults.
//!
//! `cargo xtask test` fails when the pages are out of date.

use clap::Args as ClapArgs;
use xshell::cmd;

use crate::run::shell;

/// Regenerate docs/detectors from the detectors' doc comments and fixtures.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Regenerate the table in docs/faults.md instead, from a live run over all faults; needs root and some minutes.
    #[arg(long)]
    faults: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let sh = shell()?;
    if args.faults {
        cmd!(sh, "cargo build --locked --package imds-observer-lab").run()?;
        cmd!(
            sh,
            "cargo test --locked --package imds-observer --test live -- --include-ignored --test-threads 1 every_fault_is_named"
        )
        .env("UPDATE_DOCS", "1")
        .run()?;
        return Ok(());
    }
    for tests in [["detectors", "manuals"], ["incidents", "page"]] {
        let [target, filter] = tests;
        cmd!(
            sh,
            "cargo test --locked --package imds-observer --test {target} {filter}"
        )
        .env("UPDATE_DOCS", "1")
        .run()?;
    }
    Ok(())
}
