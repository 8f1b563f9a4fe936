//! `test --kernel VERSION`: runs the live tests on other kernels than this machine's, inside QEMU.
//!
//! Kernels are Debian's, unpacked under `target/kernels` and never installed. The guest is an initramfs of static test programs, the tools
//! that the lab calls, and an init process that runs the tests once per set of privileges
//! (`imds-observer-lab/src/bin/imds-observer-guest.rs`). The processor is emulated: a boot takes seconds, the host needs no virtualization,
//! and no packet of the guest reaches the host's network.

pub(crate) mod cross;
mod debian;
mod guest;
mod outcome;
mod systemd;
mod table;

use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use xshell::{Shell, cmd};

use crate::run::{root, shell, step};
use crate::setup::{self, Group};
use crate::test::Totals;

pub(crate) use debian::{Version, mirror, own_suite};

/// Processor of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Arch {
    /// Debian's name of the architecture.
    pub(crate) fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Whether this machine's own programs run on this architecture.
    pub(crate) fn is_native(self) -> bool {
        self.name() == std::env::consts::ARCH
    }

    pub(crate) fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }
}

/// Directory of everything that a run fetches or makes.
fn directory(arch: Arch) -> PathBuf {
    root().join("target/kernels").join(arch.name())
}

/// Number of concurrent guests. Their tests mostly wait for timeouts of clients.
const AT_A_TIME: usize = 3;

/// A run of tests in guests.
pub(crate) struct Request<'a> {
    pub(crate) versions: &'a [Version],
    pub(crate) arch: Arch,
    pub(crate) scope: Scope,
    /// Text in the names of the `live` tests to run; `None`: all.
    pub(crate) filter: Option<&'a str>,
}

/// Which tests run in a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Scope {
    /// The features of a kernel, and the basic observation test.
    #[default]
    Brief,
    /// Tests of networks and hosts that differ from the lab's.
    Networks,
    /// Every test that a guest can run.
    Whole,
}

/// Versions that `cargo xtask test` runs: the kernels of Amazon Linux 2 and Amazon Linux 2023, and the newer kernel of the latter.
const USUAL: [&str; 3] = ["5.10", "6.1", "6.12"];

fn usual_versions() -> anyhow::Result<(Arch, Vec<Version>)> {
    let arch = [Arch::X86_64, Arch::Aarch64].into_iter().find(|arch| arch.is_native());
    let arch = arch.with_context(|| format!("no guests with a processor of type {}", std::env::consts::ARCH))?;
    let versions: Vec<Version> = USUAL.iter().map(|version| version.parse()).collect::<Result<_, _>>()?;
    Ok((arch, versions))
}

/// Fetches the usual kernels and the root file system with systemd in the background. A failure here isn't final: the later steps fetch
/// again, and report an error.
pub(crate) fn fetch_usual() -> anyhow::Result<()> {
    let (arch, versions) = usual_versions()?;
    let sh = shell()?;
    for version in &versions {
        debian::fetch(&sh, arch, version)?;
    }
    systemd::system(&sh, arch)?;
    Ok(())
}

/// Runs the tests on the usual kernels, with this machine's processor.
pub(crate) fn usual() -> anyhow::Result<Totals> {
    let (arch, versions) = usual_versions()?;
    suite(&Request {
        versions: &versions,
        arch,
        scope: Scope::Brief,
        filter: None,
    })
}

/// Tests the shipped unit under a real systemd.
pub(crate) fn systemd() -> anyhow::Result<()> {
    let (arch, _) = usual_versions()?;
    systemd::trial(&shell()?, arch, None)
}

/// Tests the unit under systemd, installed from a package.
pub(crate) fn package(deb: &Path) -> anyhow::Result<()> {
    let (arch, _) = usual_versions()?;
    systemd::trial(&shell()?, arch, Some(deb))
}

/// Runs a program as the only process of a guest, with nothing mounted, on the kernel version of Amazon Linux 2023. Returns its output.
pub(crate) fn only(sh: &Shell, arch: Arch, program: &Path, arguments: &str) -> anyhow::Result<String> {
    let kernel = debian::fetch(sh, arch, &"6.1".parse()?)?;
    let first = format!("/program -- {arguments}");
    guest::run_only(sh, arch, &kernel, &[("program", program)], false, &first)
}

/// Runs a script as the first process of such a guest, which has the program at `/program`, busybox at `/bin/busybox` and the modules that
/// `/guest/modules` lists. Returns its output.
pub(crate) fn script(sh: &Shell, arch: Arch, program: &Path, script: &str) -> anyhow::Result<String> {
    let kernel = debian::fetch(sh, arch, &"6.1".parse()?)?;
    let busybox = directory(arch).join("busybox");
    if !sh.path_exists(busybox.join("bin/busybox")) && !sh.path_exists(busybox.join("usr/bin/busybox")) {
        debian::unpack_from_own_release(sh, arch, &["busybox-static".to_owned()], &busybox)?;
    }
    let shell = ["bin/busybox", "usr/bin/busybox"].map(|path| busybox.join(path));
    let shell = shell.iter().find(|path| path.is_file());
    let shell = shell.context("find busybox in Debian's busybox-static")?;
    let init = directory(arch).join("only-init");
    sh.write_file(&init, script)?;
    cmd!(sh, "chmod +x {init}").quiet().run()?;
    let files = [("program", program), ("bin/busybox", shell), ("init", &init)];
    guest::run_only(sh, arch, &kernel, &files, true, "/init")
}

/// Runs the tests on each kernel.
pub(crate) fn run(request: &Request<'_>, write_table: bool) -> anyhow::Result<()> {
    let groups: &[Group] = match request.arch {
        arch if arch.is_native() => &[Group::Kernels],
        _ => &[Group::Kernels, Group::CrossKernels],
    };
    step("setup", || setup::ensure(groups))?;
    let totals = suite(request);
    if write_table {
        // The table marks a failed run too.
        table::write(&root().join("docs/kernel-support.md")).context("write docs/kernel-support.md")?;
    }
    println!("{}", totals?);
    Ok(())
}

/// Runs the tests, after setup. Fails if they failed on any kernel.
pub(crate) fn suite(request: &Request<'_>) -> anyhow::Result<Totals> {
    let Request {
        versions,
        arch,
        scope,
        filter,
    } = *request;
    let sh = shell()?;
    let base = step("test programs and their tools for guests", || {
        guest::base(&sh, arch, scope, filter)
    })?;
    let mut failed = Vec::new();
    let mut ready = Vec::new();
    step("kernels", || {
        for version in versions {
            let prepared = debian::fetch(&sh, arch, version).and_then(|kernel| {
                let initramfs = guest::initramfs(&sh, arch, &kernel, &base)?;
                Ok((kernel, initramfs))
            });
            match prepared {
                Ok((kernel, initramfs)) => ready.push((version, kernel, initramfs)),
                Err(error) => {
                    eprintln!("kernel {version}: {error:#}");
                    failed.push(version.to_string());
                }
            }
        }
        Ok(())
    })?;
    let mut totals = Totals::default();
    for some in ready.chunks(AT_A_TIME) {
        // Scoped threads, so that the guests end with this command in any case.
        let outcomes: Vec<_> = thread::scope(|threads| {
            let guests: Vec<_> = some
                .iter()
                .map(|(version, kernel, initramfs)| {
                    threads.spawn(move || {
                        step(&format!("kernel {version} on {}", arch.name()), || {
                            outcome::read(&guest::run(arch, kernel, initramfs, scope)?)
                        })
                    })
                })
                .collect();
            guests.into_iter().map(thread::ScopedJoinHandle::join).collect()
        });
        for ((version, ..), outcome) in some.iter().zip(outcomes) {
            let outcome = match outcome {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(error)) => {
                    eprintln!("kernel {version}: {error:#}");
                    failed.push(version.to_string());
                    continue;
                }
                Err(panic) => std::panic::resume_unwind(panic),
            };
            totals += outcome.totals;
            println!("{outcome}");
            if outcome.failed() {
                failed.push(version.to_string());
            }
            // Only this selection is in the table, so that it shows the same tests for each kernel.
            if scope == Scope::Brief && filter.is_none() {
                table::keep(arch, version, &outcome)?;
            }
        }
    }
    if !failed.is_empty() {
        println!("{totals}");
        bail!("the live suite failed on kernel {}", failed.join(", "));
    }
    Ok(totals)
}
