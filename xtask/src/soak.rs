//! `soak`: runs an observer with mixed traffic, faults, pods and uplinks that are added and removed, reloads and rotations, and checks that
//! its resource use stays constant.

use anyhow::bail;
use clap::Args as ClapArgs;
use xshell::{Shell, cmd};

use crate::build;
use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};

/// Run an observer for a long time, and check that memory, descriptors, maps and attachments stay constant (needs root).
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Duration in minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
}

/// Duration as part of `test`.
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

/// Runs it for two minutes, with the programs that the tests have built.
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
