//! `soak`: an observer among mixed traffic, faults, pods and uplinks that come and go, reloads and rotations; it must stay as it is.

use anyhow::bail;
use clap::Args as ClapArgs;
use xshell::{Shell, cmd};

use crate::build;
use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};

/// Run an observer for long and look whether memory, descriptors, maps and attachments stay flat (needs root).
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// How long
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

/// As part of `test`.
const SHORT_MINUTES: f64 = 2.0;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !is_root() {
        bail!("needs root: it makes network namespaces and attaches eBPF programs in them");
    }
    setup::ensure(&[Group::Lab])?;
    step("build", build::release)?;
    let sh = shell()?;
    step("build the lab", || build::lab(&sh))?;
    soak(&sh, "release", args.minutes)
}

/// Two minutes of it, with the programs that the tests have built.
pub(crate) fn short(sh: &Shell) -> anyhow::Result<()> {
    build::lab(sh)?;
    cmd!(
        sh,
        "cargo build --locked --package imds-observer --bin imds-observer --target-dir target"
    )
    .run()?;
    soak(sh, "debug", SHORT_MINUTES)
}

fn soak(sh: &Shell, profile: &str, minutes: f64) -> anyhow::Result<()> {
    let observer = root().join("target").join(profile).join("imds-observer");
    let program = root().join("target/debug/imds-observer-soak");
    let minutes = minutes.to_string();
    Ok(cmd!(sh, "{program} --observer {observer} --minutes {minutes}").run()?)
}
