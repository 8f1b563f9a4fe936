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

/// Oldest compiler that aya-ebpf supports.
const OLDEST: (u32, u32) = (1, 87);

impl Compiler {
    /// The linked one first: setup made it for this repository, with a linker of the same LLVM.
    pub(crate) const ALL: [Self; 2] = [Self::Linked, Self::Nightly];

    /// The first that is complete and new enough.
    pub(crate) fn find() -> Option<Self> {
        Self::ALL.into_iter().find(|compiler| compiler.check().is_ok())
    }

    pub(crate) fn toolchain(self) -> &'static str {
        match self {
            Self::Linked => LINKED,
            Self::Nightly => "nightly",
        }
    }

    /// Why it can't compile the kernel programs: which toolchain, what was found, what is needed.
    pub(crate) fn check(self) -> Result<(), String> {
        let toolchain = self.toolchain();
        let said = self
            .ask(&["--version", "--verbose"])
            .ok_or_else(|| format!("rustup toolchain {toolchain}: not installed, or without a rustc that starts"))?;
        let (release, version) =
            release(&said).ok_or_else(|| format!("rustup toolchain {toolchain}: rustc printed no version"))?;
        if version < OLDEST {
            return Err(format!(
                "rustup toolchain {toolchain}: rustc {release} found, {}.{} or newer is needed",
                OLDEST.0, OLDEST.1
            ));
        }
        // `core` isn't distributed compiled for bpf.
        let sources = self
            .sysroot()
            .is_some_and(|sysroot| sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").is_file());
        if !sources {
            return Err(format!(
                "rustup toolchain {toolchain}: rustc {release} found, without the sources of core (rust-src), which are needed"
            ));
        }
        Ok(())
    }

    pub(crate) fn sysroot(self) -> Option<PathBuf> {
        Some(PathBuf::from(self.ask(&["--print", "sysroot"])?.trim_end()))
    }

    fn ask(self, arguments: &[&str]) -> Option<String> {
        let output = Command::new("rustup")
            .args(["run", self.toolchain(), "rustc"])
            .args(arguments)
            .stderr(Stdio::null())
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8(output.stdout).ok())?
    }
}

/// The release that `rustc --version --verbose` printed, and its first two numbers.
fn release(said: &str) -> Option<(&str, (u32, u32))> {
    let release = said.lines().find_map(|line| line.strip_prefix("release: "))?;
    let mut numbers = release.split('.').map(str::parse);
    Some((release, (numbers.next()?.ok()?, numbers.next()?.ok()?)))
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
