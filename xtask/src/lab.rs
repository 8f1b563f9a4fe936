//! `lab`: network namespaces that simulate an EC2 host, kept until interrupted.

use clap::Args as ClapArgs;
use xshell::cmd;

use crate::run::shell;
use crate::setup::{self, Group};

/// Run the lab: stand-in IMDS, node and pod in network namespaces with no route out.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Arguments of imds-observer-lab; default: `up`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    setup::ensure(&[Group::Lab])?;
    let sh = shell()?;
    let up = [String::from("up")];
    let args: &[String] = if args.args.is_empty() { &up } else { &args.args };
    cmd!(
        sh,
        "cargo run --quiet --package imds-observer-lab --bin imds-observer-lab -- {args...}"
    )
    .quiet()
    .run()?;
    Ok(())
}
