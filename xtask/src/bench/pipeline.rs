//! `bench pipeline`: time and allocations of the pure stages, each measured separately.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::lab;
use crate::run::{root, shell};
use crate::setup;

pub(crate) fn run(args: &lab::Args) -> anyhow::Result<()> {
    let text = cargo_bench("pipeline", "bench", args)?;
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

/// Runs a bench of cargo and returns its table. A short run has no table.
pub(crate) fn cargo_bench(name: &str, profile: &str, args: &lab::Args) -> anyhow::Result<String> {
    setup::ensure(&[])?;
    let sh = shell()?;
    let path = sh.var("PATH")?;
    let mut command = Command::new("cargo");
    command
        .args(["bench", "--locked", "--package", "imds-observer", "--bench", name])
        .env("PATH", path)
        .current_dir(root())
        .stdin(Stdio::null());
    let table = root().join(format!("target/bench-{name}.md"));
    if args.short {
        command.args(["--profile", "dev", "--", "--test"]);
    } else {
        command.args(["--profile", profile]);
        command.env("IMDS_OBSERVER_BENCH_TABLE", &table);
    }
    let status = command.status().context("run cargo bench")?;
    if !status.success() {
        bail!("bench {name}: {status}");
    }
    if args.short {
        return Ok(String::new());
    }
    let text = fs::read_to_string(&table).with_context(|| format!("read {}", table.display()))?;
    println!("{text}");
    Ok(text)
}
