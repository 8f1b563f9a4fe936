//! `screenshot`: puts the live view of an incident in the lab, as a terminal shows it, into `docs/watch.svg`, and a report of `exec` into
//! `docs/exec.svg`.

use anyhow::bail;
use clap::Args as ClapArgs;
use xshell::cmd;

use crate::build;
use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};
use crate::toolchain;

/// Regenerate docs/watch.svg and docs/exec.svg from sessions in the lab (needs root).
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Show this program instead of building one
    #[arg(long)]
    program: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !is_root() {
        bail!("needs root: it makes network namespaces and attaches eBPF programs in them");
    }
    setup::ensure(&[Group::Test])?;
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
    let screen = root().join("target/debug/imds-observer-screen");
    let svg = cmd!(sh, "{screen} --observer {program} picture").quiet().read()?;
    sh.write_file("docs/watch.svg", format!("{svg}\n"))?;
    let python = toolchain::tools().join("venv/bin/python3");
    let svg = cmd!(sh, "{screen} --observer {program} exec --python {python}")
        .quiet()
        .read()?;
    sh.write_file("docs/exec.svg", format!("{svg}\n"))?;
    eprintln!("screenshot: docs/watch.svg, docs/exec.svg");
    Ok(())
}
