//! Compiler and linker of the eBPF object. Only `cargo xtask ebpf` and `cargo xtask test` need them.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail, ensure};
use xshell::{Shell, cmd};

use super::{has_apt, is_program, packages, say};
use crate::toolchain::{self, Compiler, LINKED};

/// Debian's compiler and the sources of `core`.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "rust-web-src"];
/// Version of bpf-linker. The features in its manifest state the supported LLVM versions.
const LINKER_VERSION: &str = "0.13";
const LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

pub(super) fn ensure(sh: &Shell) -> anyhow::Result<()> {
    if cmd!(sh, "rustup --version").quiet().ignore_stderr().read().is_err() {
        bail!(
            "rustup: not on PATH, any version is needed: a second toolchain compiles the eBPF object (install rustup, see rustup.rs)"
        );
    }
    let compiler = match Compiler::find() {
        Some(compiler) => compiler,
        None => install_compiler(sh)?,
    };
    // A linked toolchain has no cargo. rustup then uses the cargo of the toolchain named nightly, beta or stable.
    let toolchain = compiler.toolchain();
    if cmd!(sh, "rustup run {toolchain} cargo --version")
        .quiet()
        .ignore_stderr()
        .read()
        .is_err()
    {
        bail!(
            "cargo for toolchain {toolchain}: not found, any version is needed: rustup lends it that of `stable` (run `rustup toolchain install stable`)"
        );
    }
    linker(sh, compiler_llvm(sh, compiler)?)
}

fn compiler_llvm(sh: &Shell, compiler: Compiler) -> anyhow::Result<u32> {
    let toolchain = compiler.toolchain();
    cmd!(sh, "rustup run {toolchain} rustc --version --verbose")
        .quiet()
        .ignore_stderr()
        .read()?
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
        .with_context(|| format!("read the LLVM version of toolchain {toolchain} from `rustc --version --verbose`"))
}

fn install_compiler(sh: &Shell) -> anyhow::Result<Compiler> {
    for compiler in Compiler::ALL {
        if let Err(why) = compiler.check() {
            say(&why);
        }
    }
    if has_apt(sh) && packages::are_offered(sh, COMPILER_PACKAGES)? {
        packages::install(sh, COMPILER_PACKAGES, "compiler of the eBPF object")?;
        say(&format!("link rustup toolchain {LINKED} to /usr (Debian's rustc)"));
        if cmd!(sh, "rustup toolchain list")
            .quiet()
            .read()?
            .lines()
            .any(|line| line.starts_with(LINKED))
        {
            // The link points to another compiler, or to a removed one.
            cmd!(sh, "rustup toolchain uninstall {LINKED}").run()?;
        }
        cmd!(sh, "rustup toolchain link {LINKED} /usr").run()?;
        Compiler::Linked.check().map_err(|why| {
            anyhow!(
                "{why}: run `apt-get update && apt-get install {}`",
                COMPILER_PACKAGES.join(" ")
            )
        })?;
        return Ok(Compiler::Linked);
    }
    say("install rustup's nightly with rust-src (compiler of the eBPF object)");
    let install = cmd!(
        sh,
        "rustup toolchain install nightly --profile minimal --component rust-src"
    );
    install.run().with_context(|| format!("run `{install}`"))?;
    Compiler::Nightly
        .check()
        .map_err(|why| anyhow!("{why}: run `{install}`"))?;
    Ok(Compiler::Nightly)
}

/// Installs a linker that reads the compiler's bitcode, which must be built with the same LLVM version.
fn linker(sh: &Shell, llvm: u32) -> anyhow::Result<()> {
    let tools = toolchain::tools();
    let own = tools.join("bin/bpf-linker");
    let found = program(sh, &own);
    if let Some(found) = &found {
        match check_linker(sh, found, &own, &tools, llvm) {
            Ok(()) => return Ok(()),
            Err(why) => say(&format!("bpf-linker: {why:#}: building it")),
        }
    }
    ensure!(
        LINKER_LLVM.contains(&llvm),
        "bpf-linker: version {LINKER_VERSION} supports LLVM {} to {}, and the compiler has LLVM {llvm}: raise LINKER_VERSION in xtask/src/setup/kernel_side.rs to a version that supports it",
        LINKER_LLVM.start(),
        LINKER_LLVM.end()
    );
    if has_apt(sh) {
        let (llvm_dev, polly) = (format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev"));
        packages::install(
            sh,
            &[&llvm_dev, &polly, "libzstd-dev", "zlib1g-dev", "g++"],
            "what bpf-linker is built from",
        )?;
    }
    say(&format!(
        "build bpf-linker {LINKER_VERSION} for LLVM {llvm} into {} (minutes)",
        tools.display()
    ));
    let feature = format!("llvm-{llvm}");
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    let mut build = cmd!(
        sh,
        "cargo install bpf-linker --version ^{LINKER_VERSION} --locked --force --no-default-features --features {feature} --root {tools}"
    );
    if prefix.is_dir() {
        build = build.env("LLVM_PREFIX", prefix);
    }
    build.run().with_context(|| {
        format!(
            "build bpf-linker {LINKER_VERSION}: install LLVM {llvm}'s development files (Fedora: `dnf install llvm-devel polly-devel libzstd-devel zlib-devel gcc-c++`, not tried), or put a bpf-linker {LINKER_VERSION} made for LLVM {llvm} on PATH"
        )
    })?;
    check_linker(sh, &own, &own, &tools, llvm).with_context(|| format!("bpf-linker: built into {}", tools.display()))
}

/// Our own linker, otherwise the first one on `PATH`.
fn program(sh: &Shell, own: &Path) -> Option<PathBuf> {
    if is_program(own) {
        return Some(own.to_path_buf());
    }
    std::env::split_paths(&sh.var_os("PATH")?)
        .map(|directory| directory.join("bpf-linker"))
        .find(|path| is_program(path))
}

fn check_linker(sh: &Shell, found: &Path, own: &Path, tools: &Path, llvm: u32) -> anyhow::Result<()> {
    let said = cmd!(sh, "{found} --version").quiet().ignore_stderr().read();
    let said = said.map_err(|_| anyhow!("{} doesn't start (its LLVM library was removed?)", found.display()))?;
    let version = said.trim().rsplit(' ').next().unwrap_or_default();
    ensure!(
        version == LINKER_VERSION || version.starts_with(&format!("{LINKER_VERSION}.")),
        "{} has version {version}, {LINKER_VERSION} is needed",
        found.display()
    );
    // bpf-linker doesn't print its LLVM version. cargo has recorded the feature with which it was built here.
    if found == own {
        let notes = sh.read_file(tools.join(".crates2.json")).unwrap_or_default();
        let built = llvm_of(&notes).context("which LLVM it was built with is not recorded")?;
        ensure!(
            built == llvm,
            "built with LLVM {built}, and the compiler has LLVM {llvm}"
        );
    }
    Ok(())
}

/// The LLVM version that bpf-linker was built with, from cargo's record of installed programs.
fn llvm_of(notes: &str) -> Option<u32> {
    let notes: serde_json::Value = serde_json::from_str(notes).ok()?;
    let (_, install) = notes["installs"]
        .as_object()?
        .iter()
        .find(|(name, _)| name.starts_with("bpf-linker "))?;
    install["features"]
        .as_array()?
        .iter()
        .find_map(|feature| feature.as_str()?.strip_prefix("llvm-")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linkers_llvm_is_read_from_cargos_notes() {
        let notes = r#"{"installs":{"ripgrep 14.0.0 (x)":{"features":[]},"bpf-linker 0.13.0 (registry)":{"features":["llvm-22"],"no_default_features":true}}}"#;
        assert_eq!(llvm_of(notes), Some(22));
        assert_eq!(llvm_of(r#"{"installs":{}}"#), None);
        assert_eq!(llvm_of(""), None);
    }

    #[test]
    fn a_linker_of_another_version_or_llvm_is_not_accepted() {
        let directory = std::env::temp_dir().join(format!("imds-observer-linker-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let sh = Shell::new().unwrap();
        let own = directory.join("bpf-linker");
        let made = |version: &str, llvm: u32| {
            sh.write_file(&own, format!("#!/bin/sh\necho bpf-linker {version}\n"))
                .unwrap();
            cmd!(sh, "chmod +x {own}").quiet().run().unwrap();
            let notes = format!(r#"{{"installs":{{"bpf-linker {version} (x)":{{"features":["llvm-{llvm}"]}}}}}}"#);
            sh.write_file(directory.join(".crates2.json"), notes).unwrap();
            check_linker(&sh, &own, &own, &directory, 22).map_err(|error| error.to_string())
        };
        assert_eq!(made("0.13.4", 22), Ok(()));
        assert!(
            made("0.12.0", 22)
                .unwrap_err()
                .contains("has version 0.12.0, 0.13 is needed")
        );
        assert!(made("0.130.0", 22).is_err());
        assert!(made("0.13.0", 21).unwrap_err().contains("built with LLVM 21"));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
