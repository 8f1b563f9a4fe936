//! `docs`: writes anew what is made from sources: the detectors' manual pages and their example records.
//!
//! `cargo xtask test` fails when they are out of date.

use clap::Args as ClapArgs;
use xshell::cmd;

use crate::run::shell;

/// Write docs/detectors anew from the detectors' doc comments and fixtures.
#[derive(ClapArgs)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    let sh = shell()?;
    cmd!(
        sh,
        "cargo test --locked --package imds-observer --test detectors manuals"
    )
    .env("UPDATE_DOCS", "1")
    // Pages need no eBPF object.
    .env("AYA_BUILD_SKIP", "1")
    .run()?;
    Ok(())
}
