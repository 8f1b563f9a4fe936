//! `bench watch`: start-up time of the live view, and its cost at a thousand exchanges a second.

use anyhow::bail;
use clap::Args as ClapArgs;
use xshell::cmd;

use super::lab;
use crate::build;
use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};

/// The live view in a lab: time to the first picture, share of a core under load (needs root).
#[derive(ClapArgs)]
// By default, clap would give this group the same name as the group that is flattened into it.
#[group(skip)]
pub(crate) struct Args {
    #[command(flatten)]
    common: lab::Args,
    /// Approximate number of exchanges a second
    #[arg(long, default_value_t = RATE)]
    rate: u32,
    /// Duration of the measurement under load
    #[arg(long, default_value_t = SECONDS)]
    seconds: u64,
}

/// A little above the target's thousand, because clients don't quite reach the requested rate.
const RATE: u32 = 1100;
const SECONDS: u64 = 20;

impl Args {
    /// Arguments with which `bench all` runs it.
    pub(super) fn whole(common: lab::Args) -> Self {
        Self {
            common,
            rate: RATE,
            seconds: SECONDS,
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !is_root() {
        bail!("needs root: it makes network namespaces and attaches eBPF programs in them");
    }
    setup::ensure(&[Group::Lab])?;
    let program = if let Some(program) = &args.common.program {
        program.clone()
    } else {
        step("build", build::release)?;
        root()
            .join("target/release/imds-observer")
            .to_string_lossy()
            .into_owned()
    };
    let sh = shell()?;
    step("build the lab", || build::lab(&sh))?;
    let (rate, seconds) = (args.rate, if args.common.short { 2 } else { args.seconds });
    let (rate, seconds) = (rate.to_string(), seconds.to_string());
    let screen = root().join("target/debug/imds-observer-screen");
    let machine = lab::machine()?;
    let table = cmd!(
        sh,
        "{screen} --observer {program} measure --rate {rate} --seconds {seconds}"
    )
    .quiet()
    .read()?;
    println!("{table}");
    if !args.common.short && !args.common.no_write {
        let command = format!("cargo xtask bench watch --rate {rate} --seconds {seconds}");
        lab::write("watch", &format!("`{command}`, {machine}.\n\n{table}"))?;
    }
    Ok(())
}
