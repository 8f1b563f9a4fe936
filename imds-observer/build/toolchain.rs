//! Which compiler and linker make the eBPF object.
//!
//! Shared by imds-observer's build script, which uses them for the feature `kernel-log`, and by `cargo xtask`, which installs
//! them and makes the object in the tree.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Name that `cargo xtask setup` gives to Debian's compiler.
pub(crate) const LINKED: &str = "imds-observer-ebpf";

/// A compiler that can build `core` for the bpf target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// Debian's rustc with its own sources: a stable compiler that accepts unstable flags with `RUSTC_BOOTSTRAP`.
    Linked,
    /// rustup's nightly with rust-src: aya's usual way.
    Nightly,
}

impl Compiler {
    /// The first that is complete. The linked one first: setup made it for this repository, with a linker of the same LLVM.
    pub(crate) fn find() -> Option<Self> {
        [Self::Linked, Self::Nightly]
            .into_iter()
            .find(|compiler| compiler.is_complete())
    }

    pub(crate) fn toolchain(self) -> &'static str {
        match self {
            Self::Linked => LINKED,
            Self::Nightly => "nightly",
        }
    }

    pub(crate) fn sysroot(self) -> Option<PathBuf> {
        let output = Command::new("rustup")
            .args(["run", self.toolchain(), "rustc", "--print", "sysroot"])
            .stderr(Stdio::null())
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| PathBuf::from(text.trim_end()))
    }

    /// A toolchain without the sources of `core` is of no use: `core` isn't distributed compiled for bpf.
    fn is_complete(self) -> bool {
        self.sysroot()
            .is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file())
    }
}

/// Where setup keeps what it builds for this repository: `$IMDS_OBSERVER_TOOLS`, or a directory in the user's home.
pub(crate) fn tools() -> PathBuf {
    env::var_os("IMDS_OBSERVER_TOOLS").map_or_else(|| home().join(".local/share/imds-observer-tools"), PathBuf::from)
}

/// Where cargo keeps the sources of crates.
pub(crate) fn cargo_home() -> PathBuf {
    env::var_os("CARGO_HOME").map_or_else(|| home().join(".cargo"), PathBuf::from)
}

fn home() -> PathBuf {
    PathBuf::from(env::var_os("HOME").unwrap_or_default())
}

/// `PATH` with our tools ahead.
pub(crate) fn path() -> Result<std::ffi::OsString, env::JoinPathsError> {
    let mut path = vec![tools().join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    env::join_paths(path)
}
