//! `build`: builds the optimized program, which contains the eBPF object, at `target/release/imds-observer`.

use clap::Args as ClapArgs;
use xshell::{Shell, cmd};

use crate::run::{root, shell, step};
use crate::setup;

/// Build the optimized program at target/release/imds-observer.
#[derive(ClapArgs)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    setup::ensure(&[])?;
    step("build", release)?;
    eprintln!("{}", root().join("target/release/imds-observer").display());
    Ok(())
}

/// The release build alone, for commands that have already run the set-up.
pub(crate) fn release() -> anyhow::Result<()> {
    let sh = shell()?;
    // The documented path contains the directory, so an inherited CARGO_TARGET_DIR must not change it.
    cmd!(
        sh,
        "cargo build --release --locked --package imds-observer --target-dir target"
    )
    .run()?;
    Ok(())
}

/// The lab's programs at target/debug.
pub(crate) fn lab(sh: &Shell) -> anyhow::Result<()> {
    cmd!(
        sh,
        "cargo build --locked --package imds-observer-lab --bins --target-dir target"
    )
    .run()?;
    Ok(())
}
