//! `bench pipeline`: the pure stages, each by itself, and what they allocate.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::lab;
use crate::run::{root, shell};
use crate::setup;

pub(crate) fn run(args: &lab::Args) -> anyhow::Result<()> {
    setup::ensure(&[])?;
    let sh = shell()?;
    let path = sh.var("PATH")?;
    let mut command = Command::new("cargo");
    command
        .args(["bench", "--locked", "--package", "imds-observer", "--bench", "pipeline"])
        .env("PATH", path)
        // No kernel program runs in it.
        .env("AYA_BUILD_SKIP", "1")
        .current_dir(root())
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    if args.short {
        command.args(["--profile", "dev", "--", "--test"]);
    }
    let output = command.output().context("run cargo bench")?;
    let text = String::from_utf8(output.stdout).context("read what the bench printed")?;
    println!("{text}");
    if !output.status.success() {
        bail!("bench pipeline: {}", output.status);
    }
    if !args.short && !args.no_write {
        lab::write(
            "pipeline",
            &format!(
                "`cargo xtask bench pipeline`, {}.\n\n{}",
                lab::machine()?,
                text.trim_end()
            ),
        )?;
    }
    Ok(())
}
