//! `bench watch`: how soon the live view is there, and what it costs while a thousand exchanges a second go by.

use anyhow::bail;
use clap::Args as ClapArgs;
use xshell::cmd;

use crate::build;
use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};

/// The live view in a lab: time to the first picture, share of a core under load (needs root).
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Exchanges a second, about
    #[arg(long, default_value_t = 1000)]
    rate: u32,
    /// How long the load is measured
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Measure this program instead of building one
    #[arg(long)]
    program: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !is_root() {
        bail!("needs root: it makes network namespaces and attaches eBPF programs in them");
    }
    setup::ensure(&[Group::Lab])?;
    let program = if let Some(program) = &args.program {
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
    let (rate, seconds) = (args.rate.to_string(), args.seconds.to_string());
    let screen = root().join("target/debug/imds-observer-screen");
    cmd!(
        sh,
        "{screen} --observer {program} measure --rate {rate} --seconds {seconds}"
    )
    .quiet()
    .run()?;
    Ok(())
}
