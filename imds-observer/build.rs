//! Builds the eBPF object with the toolchain that `cargo xtask setup` found or installed.
//!
//! Two ways lead to it: rustup's nightly with rust-src (aya's usual way), or a linked toolchain named [`LINKED`] that
//! is Debian's rustc with its own sources. The second is a stable compiler, so `RUSTC_BOOTSTRAP` is set for that child alone.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

/// Name that `cargo xtask setup` gives to Debian's compiler.
const LINKED: &str = "imds-observer-ebpf";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    println!("cargo:rerun-if-env-changed=IMDS_OBSERVER_TOOLS");
    println!("cargo:rerun-if-changed=../imds-observer-common/src");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("imds-observer-ebpf");
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1" || skip == "true") {
        // Offline commands work without the object; live ones say that this build has none.
        return std::fs::write(&out, b"").context("write an empty eBPF object");
    }

    let tools = env::var_os("IMDS_OBSERVER_TOOLS").map_or_else(
        || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(".local/share/imds-observer-tools"),
        PathBuf::from,
    );
    let mut path = vec![tools.join("bin")];
    path.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    // SAFETY: a build script has one thread here.
    unsafe { env::set_var("PATH", env::join_paths(path)?) };

    let toolchain = if runs(LINKED) {
        // SAFETY: as above. It reaches only the cargo that aya-build starts, never the user-space build.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
        Toolchain::Custom(LINKED)
    } else {
        Toolchain::Nightly
    };
    // aya-build asks for a package of ours by name; the directory is watched for changes.
    aya_build::build_ebpf(
        [Package {
            name: "imds-observer-ebpf",
            root_dir: "../imds-observer-ebpf",
            ..Package::default()
        }],
        toolchain,
    )
    .context("build the eBPF object (run `cargo xtask setup` first)")
}

fn runs(toolchain: &str) -> bool {
    Command::new("rustup")
        .args(["run", toolchain, "rustc", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
