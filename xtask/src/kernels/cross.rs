//! Building for another processor than this machine's: which compiler, linker and standard library.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use super::{Arch, debian, directory};

/// Of `gcc-aarch64-linux-gnu`, the only other processor so far.
const LINKER: &str = "aarch64-linux-gnu-gcc";
pub(super) const STRIP: &str = "aarch64-linux-gnu-strip";
/// Debian's compiler, which setup installs for the eBPF object.
const DEBIANS: &str = "/usr/bin/rustc";
/// Its standard library for other processors.
const LIBRARY: &str = "libstd-rust-web-dev";

/// What cargo must be told.
pub(super) struct Cross {
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
}

/// rustup's standard library for the target if it is installed; else Debian's compiler with that of Debian's package.
pub(super) fn prepare(sh: &Shell, arch: Arch) -> anyhow::Result<Cross> {
    let target = arch.target();
    let mut flags = "-C target-feature=+crt-static".to_owned();
    let mut environment = vec![(
        format!("CARGO_TARGET_{}_LINKER", target.replace('-', "_").to_uppercase()),
        LINKER.to_owned(),
    )];
    let own = cmd!(sh, "rustc --print target-libdir --target {target}")
        .quiet()
        .read()?;
    if !sh.path_exists(&own) {
        let sysroot = library(sh, arch)?;
        flags.push_str(&format!(" --sysroot={}", sysroot.display()));
        environment.push(("RUSTC".to_owned(), DEBIANS.to_owned()));
    }
    environment.push(("RUSTFLAGS".to_owned(), flags));
    Ok(Cross {
        arguments: vec!["--target".to_owned(), target.to_owned()],
        environment,
    })
}

/// Debian's standard library for `arch`, of the version of Debian's compiler here, unpacked.
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
