//! `bench pipeline`: the pure stages, each by itself, and what they allocate.

use std::fs;
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
        .current_dir(root())
        .stdin(Stdio::null());
    let table = root().join("target/bench-pipeline.md");
    if args.short {
        command.args(["--profile", "dev", "--", "--test"]);
    } else {
        command.env("IMDS_OBSERVER_BENCH_TABLE", &table);
    }
    let status = command.status().context("run cargo bench")?;
    if !status.success() {
        bail!("bench pipeline: {status}");
    }
    if args.short {
        return Ok(());
    }
    let text = fs::read_to_string(&table).with_context(|| format!("read {}", table.display()))?;
    println!("{text}");
    if !args.no_write {
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
