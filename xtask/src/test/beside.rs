//! CPU-bound checks that run while the live tests wait for timeouts of clients.
//!
//! They run in another process of this program with the scheduler's idle policy, so they use only processor time that the tests don't need.
//! Two thirds of their ten minutes therefore add nothing to the total.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};

use crate::fuzz;
use crate::run::{is_root, root, shell, step};

/// Running checks. They and their children are ended on drop.
pub(super) struct Beside {
    process: Child,
    said: PathBuf,
}

impl Beside {
    pub(super) fn start() -> anyhow::Result<Self> {
        use std::os::unix::process::CommandExt as _;

        let directory = root().join("target/beside");
        fs::create_dir_all(&directory).with_context(|| format!("make {}", directory.display()))?;
        let said = directory.join("output");
        let output = File::create(&said).with_context(|| format!("create {}", said.display()))?;
        let program = std::env::current_exe().context("find this program's own file")?;
        let process = Command::new("chrt")
            .args(["--idle", "0"])
            .arg(program)
            .args(["test", "--beside"])
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("share the output file")?)
            .stderr(output)
            // A separate process group, which can be ended as a whole.
            .process_group(0)
            .spawn()
            .context("start `chrt --idle 0` (of util-linux)")?;
        Ok(Self { process, said })
    }

    /// Waits until the checks end, and prints their output.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let status = self.process.wait().context("wait for the checks")?;
        let said = fs::read(&self.said).with_context(|| format!("read {}", self.said.display()))?;
        std::io::stderr()
            .write_all(&said)
            .context("print the output of the checks")?;
        if !status.success() {
            bail!("a check failed ({status}): see above, or run `cargo xtask test --beside`");
        }
        Ok(())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        if let Ok(None) = self.process.try_wait() {
            let group = self.process.id();
            let _ended = Command::new("kill").args(["--", &format!("-{group}")]).status();
            let _reaped = self.process.wait();
        }
    }
}

/// Main function of the other process.
pub(super) fn run() -> anyhow::Result<()> {
    let sh = shell()?;
    super::dependencies(&sh)?;
    {
        // Cargo allows one build at a time per target directory, and the tests use the default one.
        let _target = sh.push_env("CARGO_TARGET_DIR", root().join("target/beside"));
        super::lints(&sh)?;
    }
    step("fuzz targets", || fuzz::smoke(&sh))?;
    if is_root() {
        step(
            "build, doctor and analyze on a machine that nothing has prepared",
            || super::pristine::short(&sh),
        )?;
    }
    Ok(())
}
