//! `demo`: the main job on real clients, from a fresh clone on a fresh machine in one command.

use anyhow::bail;
use clap::Args as ClapArgs;
use xshell::cmd;

use crate::build;
use crate::run::{is_root, python, root, shell, step};
use crate::setup::{self, Group};

/// Build the program and show it at work on real clients in the lab (needs root).
#[derive(ClapArgs)]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    if !is_root() {
        bail!("the demo needs root: it makes network namespaces and attaches eBPF programs in them");
    }
    setup::ensure(&[Group::Demo])?;
    step("build", build::release)?;
    let sh = shell()?;
    step("build the lab", || build::lab(&sh))?;
    let (observer, demo) = (
        root().join("target/release/imds-observer"),
        root().join("target/debug/imds-observer-demo"),
    );
    let (python, trace) = (python(), root().join("target/demo.ndjson"));
    cmd!(sh, "{demo} --observer {observer} --python {python} --trace {trace}")
        .quiet()
        .run()?;
    Ok(())
}
