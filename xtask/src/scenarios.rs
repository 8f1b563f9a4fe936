//! `scenarios`: runs the observer on real clients, healthy and with faults, and measures the precision and recall of its findings.

use anyhow::bail;
use clap::Args as ClapArgs;
use xshell::cmd;

use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};
use crate::{build, clients};

/// Play every scenario in the lab and print the findings, precision and recall (needs root); fails unless both are 1.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Only scenarios whose name contains this.
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Store each scenario as a trace and a capture for the golden tests, and update the table in docs/scenarios.md.
    #[arg(long)]
    record: bool,
    /// Use this built observer instead of building an optimized one.
    #[arg(long, value_name = "PROGRAM")]
    observer: Option<std::path::PathBuf>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !is_root() {
        bail!("the scenarios need root: they make network namespaces and attach eBPF programs in them");
    }
    step("setup", || setup::ensure(&[Group::Scenarios]))?;
    let sh = shell()?;
    let observer = match &args.observer {
        Some(observer) => std::path::absolute(observer)?,
        None => {
            step("build", build::release)?;
            root().join("target/release/imds-observer")
        }
    };
    step("build the lab", || {
        Ok(cmd!(
            sh,
            "cargo build --locked --package imds-observer-lab --bins --target-dir target"
        )
        .run()?)
    })?;
    let program = root().join("target/debug/imds-observer-scenarios");
    let (tools, programs) = (clients::directory(), root().join("imds-observer-lab/clients"));
    let mut options: Vec<std::ffi::OsString> = Vec::new();
    if let Some(filter) = &args.filter {
        options.extend(["--filter".into(), filter.into()]);
    }
    if args.record {
        options.extend(["--record".into(), root().join("imds-observer/tests/scenarios").into()]);
        options.extend(["--write-table".into(), root().join("docs/scenarios.md").into()]);
    }
    cmd!(
        sh,
        "{program} --observer {observer} --tools {tools} --clients {programs} {options...}"
    )
    .quiet()
    .run()?;
    Ok(())
}
