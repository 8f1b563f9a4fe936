//! Compiler, linker and standard library for building for another processor.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use super::{Arch, debian, directory};

/// Linker from `gcc-aarch64-linux-gnu`, for the only other processor that is supported.
const LINKER: &str = "aarch64-linux-gnu-gcc";
const STRIP: &str = "aarch64-linux-gnu-strip";
/// Debian's compiler, which setup installs for the eBPF object.
const DEBIANS: &str = "/usr/bin/rustc";
/// Its standard library for other processors.
const LIBRARY: &str = "libstd-rust-web-dev";

/// Flags for static programs, because guests and empty root directories have no libraries.
pub(crate) const STATIC: &str = "-C target-feature=+crt-static";

/// Program that removes the symbols of programs for `arch`.
pub(crate) fn strip(arch: Arch) -> &'static str {
    if arch.is_native() { "strip" } else { STRIP }
}

/// Arguments and environment for cargo.
pub(super) struct Cross {
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
}

/// Compiler, linker and standard library.
pub(crate) struct Toolchain {
    pub(crate) environment: Vec<(String, String)>,
    /// Path of the standard library, if the compiler doesn't find it by itself.
    pub(crate) sysroot: Option<PathBuf>,
}

pub(super) fn prepare(sh: &Shell, arch: Arch) -> anyhow::Result<Cross> {
    let Toolchain {
        mut environment,
        sysroot,
    } = toolchain(sh, arch)?;
    let sysroot = sysroot.map(|sysroot| format!(" --sysroot={}", sysroot.display()));
    environment.push((
        "RUSTFLAGS".to_owned(),
        format!("{STATIC}{}", sysroot.unwrap_or_default()),
    ));
    Ok(Cross {
        arguments: vec!["--target".to_owned(), arch.target().to_owned()],
        environment,
    })
}

/// Uses rustup's standard library for the target if it is installed. Otherwise uses Debian's compiler with the standard library of Debian's
/// package.
pub(crate) fn toolchain(sh: &Shell, arch: Arch) -> anyhow::Result<Toolchain> {
    let target = arch.target();
    let mut environment = Vec::new();
    if !arch.is_native() {
        environment.push((
            format!("CARGO_TARGET_{}_LINKER", target.replace('-', "_").to_uppercase()),
            LINKER.to_owned(),
        ));
    }
    let own = cmd!(sh, "rustc --print target-libdir --target {target}")
        .quiet()
        .read()?;
    let mut sysroot = None;
    if !sh.path_exists(&own) {
        sysroot = Some(library(sh, arch)?);
        environment.push(("RUSTC".to_owned(), DEBIANS.to_owned()));
    }
    Ok(Toolchain { environment, sysroot })
}

/// Unpacks Debian's standard library for `arch`, in the version of the installed Debian compiler.
fn library(sh: &Shell, arch: Arch) -> anyhow::Result<PathBuf> {
    let target = arch.target();
    let format = "--showformat=${Version}";
    let Ok(version) = cmd!(sh, "dpkg-query --show {format} {LIBRARY}")
        .quiet()
        .ignore_stderr()
        .read()
    else {
        bail!("no standard library for {target}: run `rustup target add {target}`");
    };
    let files = directory(arch).join("rust");
    let sysroot = files.join("usr");
    let stamp = files.join("version");
    if !sh.read_file(&stamp).is_ok_and(|have| have == version) {
        debian::unpack_from_own_release(sh, arch, &[format!("{LIBRARY}={version}")], &files).with_context(|| {
            format!("fetch the standard library for {target} (or run `rustup target add {target}`)")
        })?;
        sh.write_file(&stamp, &version)?;
    }
    Ok(sysroot)
}
