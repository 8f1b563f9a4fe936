//! `demo`: the observer on real clients, from a fresh clone on a fresh machine with one command.

use std::panic::resume_unwind;
use std::thread;

use anyhow::bail;
use clap::Args as ClapArgs;
use xshell::cmd;

use crate::run::{is_root, python, root, shell, step};
use crate::setup::{self, Group};

/// Build the program and show it at work on real clients in the lab (needs root).
#[derive(ClapArgs)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    if !is_root() {
        bail!("the demo needs root: it makes network namespaces and attaches eBPF programs in them");
    }
    setup::packages_of(&[Group::Demo])?;
    // The rest of the set-up mostly waits for downloads, while the build needs the processor.
    thread::scope(|scope| {
        let building = scope.spawn(|| step("build", build));
        setup::ensure(&[Group::Demo])?;
        building.join().unwrap_or_else(|panic| resume_unwind(panic))
    })?;
    let sh = shell()?;
    let (observer, demo) = (
        root().join("target/debug/imds-observer"),
        root().join("target/debug/imds-observer-demo"),
    );
    let (python, trace) = (python(), root().join("target/demo.ndjson"));
    cmd!(sh, "{demo} --observer {observer} --python {python} --trace {trace}")
        .quiet()
        .run()?;
    Ok(())
}

/// Builds without optimization. An optimized build would be most of the time from a clone to the demo's end, and the lab would compile the
/// same crates a second time. OpenTelemetry is left out, because the demo doesn't use it.
fn build() -> anyhow::Result<()> {
    let sh = shell()?;
    cmd!(
        sh,
        "cargo build --locked --package imds-observer --bin imds-observer --package imds-observer-lab --bin imds-observer-demo --no-default-features --features imds-observer/live --target-dir target"
    )
    .run()?;
    Ok(())
}
