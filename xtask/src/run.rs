//! Runs programs for commands: in the repository's root, with our tools on `PATH`, and timed.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;
use xshell::Shell;

use crate::toolchain;

/// The repository's root, independent of the current directory.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .to_path_buf()
}

/// A shell in the repository's root whose children find what setup installed.
pub(crate) fn shell() -> anyhow::Result<Shell> {
    let sh = Shell::new().context("start a shell in the current directory")?;
    sh.change_dir(root());
    sh.set_var("PATH", toolchain::path().context("put our tools on PATH")?);
    sh.set_var("IMDS_OBSERVER_PYTHON", python());
    Ok(sh)
}

/// Python with the clients of tests and the demo. `setup --for test` creates it.
pub(crate) fn python() -> PathBuf {
    venv().join("bin/python3")
}

pub(crate) fn venv() -> PathBuf {
    toolchain::tools().join("venv")
}

/// Runs one step of a command and prints its duration.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    eprintln!("==> {name}");
    let begin = Instant::now();
    let result = work().with_context(|| name.to_owned());
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!("==> {name}: {outcome} in {:.1} s", begin.elapsed().as_secs_f64());
    result
}

/// Whether this process is root, which attaching eBPF programs and creating network namespaces requires.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
