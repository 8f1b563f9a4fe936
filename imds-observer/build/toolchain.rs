//! Which compiler and linker make the eBPF object.
//!
//! Shared by imds-observer's build script, which uses them, and by `cargo xtask setup`, which sees to it that they exist.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Name that `cargo xtask setup` gives to Debian's compiler.
pub(crate) const LINKED: &str = "imds-observer-ebpf";

/// A compiler that can build `core` for the bpf target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// Debian's rustc with its own sources: a stable compiler that must be told to take unstable flags.
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

    /// A toolchain without the sources of `core` is of no use: nobody ships `core` compiled for bpf.
    fn is_complete(self) -> bool {
        Command::new("rustup")
            .args(["run", self.toolchain(), "rustc", "--print", "sysroot"])
            .stderr(Stdio::null())
            .output()
            .ok()
            .filter(|output| output.status.success())
            .and_then(|output| String::from_utf8(output.stdout).ok())
            .is_some_and(|sysroot| {
                Path::new(sysroot.trim_end())
                    .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                    .is_file()
            })
    }
}

/// Where setup keeps what it builds for this repository: `$IMDS_OBSERVER_TOOLS`, or a place in the user's home.
pub(crate) fn tools() -> PathBuf {
    env::var_os("IMDS_OBSERVER_TOOLS").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".local/share/imds-observer-tools"),
        PathBuf::from,
    )
}

/// `PATH` with our tools ahead.
pub(crate) fn path() -> Result<std::ffi::OsString, env::JoinPathsError> {
    let mut path = vec![tools().join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    env::join_paths(path)
}
