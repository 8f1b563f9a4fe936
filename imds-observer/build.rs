//! Puts the eBPF object into the program: the one in the tree (`cargo xtask ebpf` makes it), which needs no second compiler.
//!
//! With the feature `kernel-log` the kernel programs are compiled here, with the toolchain that `cargo xtask setup --for ebpf`
//! installs. `IMDS_OBSERVER_EBPF_OBJECT` names another object to put in instead.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

#[path = "build/object.rs"]
mod object;
#[path = "build/toolchain.rs"]
mod toolchain;

/// Another object than that in the tree.
const OTHER: &str = "IMDS_OBSERVER_EBPF_OBJECT";

fn main() -> Result<(), Box<dyn Error>> {
    // `cfg(live)`: the feature, where it can be had.
    println!("cargo:rustc-check-cfg=cfg(live)");
    if env::var_os("CARGO_FEATURE_LIVE").is_none() || env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        println!("cargo:rerun-if-changed=build.rs");
        return Ok(());
    }
    println!("cargo:rustc-cfg=live");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    println!("cargo:rerun-if-env-changed={OTHER}");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=ebpf");
    // In a package from crates.io the kernel programs' sources are absent.
    let repository = manifest.parent().filter(|repository| is_repository(repository));
    if let Some(repository) = repository {
        for source in object::SOURCES {
            println!("cargo:rerun-if-changed={}", repository.join(source).display());
        }
    }
    let kept = manifest.join("ebpf/imds-observer.bpf.o");
    let from = match (env::var_os(OTHER), env::var_os("CARGO_FEATURE_KERNEL_LOG")) {
        (Some(other), _) => {
            let other = PathBuf::from(other);
            println!("cargo:rerun-if-changed={}", other.display());
            other
        }
        (None, Some(_)) => {
            let repository = repository
                .ok_or("the feature kernel-log compiles the kernel programs: build it in a clone of the repository")?;
            object::compile(repository, &["log"], &out.join("ebpf"))?
        }
        (None, None) => {
            if let Some(repository) = repository {
                warn_if_stale(repository, &manifest.join("ebpf/built-with.toml"))?;
            }
            kept
        }
    };
    fs::copy(&from, out.join("imds-observer.bpf.o"))
        .map_err(|error| format!("copy the eBPF object {}: {error}", from.display()))?;
    Ok(())
}

fn is_repository(directory: &Path) -> bool {
    object::SOURCES.iter().all(|source| directory.join(source).exists())
}

/// A program with an object older than its sources would read events that have another layout: the build warns, and a unit
/// test fails (`bpf::kernel`).
fn warn_if_stale(repository: &Path, record: &Path) -> Result<(), Box<dyn Error>> {
    let text = fs::read_to_string(record).map_err(|error| format!("read {}: {error}", record.display()))?;
    let digest = object::digest(repository).ok_or("read the kernel programs' sources")?;
    if object::recorded(&text, object::DIGEST_KEY) != Some(&digest) {
        println!("cargo:rustc-env=IMDS_OBSERVER_EBPF_STALE=1");
        println!(
            "cargo:warning=the eBPF object in imds-observer/ebpf is older than its sources: run `cargo xtask ebpf`"
        );
    }
    Ok(())
}
