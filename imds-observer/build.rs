//! Builds the eBPF object with the toolchain that `cargo xtask setup` found or installed.

use std::env;
use std::path::PathBuf;

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

#[path = "build/toolchain.rs"]
mod toolchain;

use toolchain::Compiler;

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    println!("cargo:rerun-if-env-changed=IMDS_OBSERVER_TOOLS");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build/toolchain.rs");
    println!("cargo:rerun-if-changed=../imds-observer-common/src");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("imds-observer-ebpf");
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1" || skip == "true") {
        // Offline commands work without the object; live ones say that this build has none.
        return std::fs::write(&out, b"").context("write an empty eBPF object");
    }

    let compiler = Compiler::find().context(
        "build the eBPF object: neither a rustup nightly with rust-src nor Debian's compiler is here (run `cargo xtask setup`)",
    )?;
    // SAFETY: a build script has one thread here.
    unsafe { env::set_var("PATH", toolchain::path()?) };
    if compiler == Compiler::Linked {
        // SAFETY: as above. It reaches only the cargo that aya-build starts, never the user-space build.
        unsafe { env::set_var("RUSTC_BOOTSTRAP", "1") };
    }
    let features: &[&str] = if env::var_os("CARGO_FEATURE_KERNEL_LOG").is_some() {
        &["log"]
    } else {
        &[]
    };
    // aya-build asks for a package of ours by name; the directory is watched for changes.
    aya_build::build_ebpf(
        [Package {
            name: "imds-observer-ebpf",
            root_dir: "../imds-observer-ebpf",
            features,
            ..Package::default()
        }],
        match compiler {
            Compiler::Linked => Toolchain::Custom(toolchain::LINKED),
            Compiler::Nightly => Toolchain::Nightly,
        },
    )
    .context("build the eBPF object (run `cargo xtask setup` first)")
}
