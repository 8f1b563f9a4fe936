//! `test --kernel VERSION`: the live suite on another kernel than this machine's, inside QEMU.
//!
//! Debian's own kernels, unpacked under `target/kernels` and never installed. The guest is an initramfs of static test
//! programs, the tools that the lab calls, and a first process that runs the suite once per set of rights
//! (`imds-observer-lab/src/bin/imds-observer-guest.rs`). The processor is emulated: a boot takes seconds, no
//! virtualisation is asked of the host, and nothing of the guest reaches the host's network.

mod debian;
mod guest;
mod outcome;
mod table;

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::run::{root, shell, step};
use crate::setup::{self, Group};
use crate::test::Totals;

pub(crate) use debian::{Version, mirror};

/// What the guest's processor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// As Debian calls it.
    fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }
}

/// Where everything that a run fetches or makes lies.
fn directory(arch: Arch) -> PathBuf {
    root().join("target/kernels").join(arch.name())
}

/// Runs the suite on each kernel in turn: one guest keeps two cores busy.
pub(crate) fn run(versions: &[Version], arch: Arch, whole: bool, write_table: bool) -> anyhow::Result<()> {
    step("setup", || setup::ensure(&[Group::Kernels]))?;
    let sh = shell()?;
    let base = step("static test programs and their tools", || guest::base(&sh, arch, whole))?;
    let mut totals = Totals::default();
    let mut failed = Vec::new();
    for version in versions {
        let result = step(&format!("kernel {version} on {}", arch.name()), || {
            let kernel = debian::fetch(&sh, arch, version)?;
            let console = guest::run(&sh, arch, &kernel, &base)?;
            outcome::read(&console)
        });
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => {
                eprintln!("kernel {version}: {error:#}");
                failed.push(version.to_string());
                continue;
            }
        };
        totals += outcome.totals;
        println!("{outcome}");
        if outcome.failed() {
            failed.push(version.to_string());
        }
        table::keep(arch, version, &outcome)?;
    }
    if write_table {
        table::write(&root().join("docs/kernel-support.md")).context("write docs/kernel-support.md")?;
    }
    println!("{totals}");
    if !failed.is_empty() {
        bail!("the live suite failed on kernel {}", failed.join(", "));
    }
    Ok(())
}
