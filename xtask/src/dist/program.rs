//! One program per processor, linked statically, without paths of the build machine.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use object::Object as _;
use sha2::{Digest as _, Sha256};
use xshell::{Shell, cmd};

use super::Release;
use crate::kernels::{Arch, cross};

/// Features of released programs.
pub(super) const FEATURES: &str = "otlp";

/// Path of the program before it is packed.
pub(super) fn path(release: &Release, arch: Arch) -> PathBuf {
    release
        .directory
        .join("programs")
        .join(arch.name())
        .join("imds-observer")
}

pub(super) fn build(sh: &Shell, release: &Release, source: &Path, arch: Arch) -> anyhow::Result<()> {
    let toolchain = cross::toolchain(sh, arch)?;
    let wrapper = wrapper(sh, source, arch, toolchain.sysroot.as_deref())?;
    let target = arch.target();
    let directory = source.join("target");
    let mut command = cmd!(
        sh,
        "cargo build --release --locked --package imds-observer --features {FEATURES} --target {target} --target-dir {directory}"
    )
    .env("RUSTFLAGS", cross::STATIC)
    .env("RUSTC_WRAPPER", wrapper);
    for (name, value) in &toolchain.environment {
        command = command.env(name, value);
    }
    command.run()?;
    let built = directory.join(target).join("release/imds-observer");
    let to = path(release, arch);
    sh.create_dir(to.parent().context("the program has a directory")?)?;
    sh.copy_file(&built, &to)?;
    // Distributions' checkers require stripping. Panic messages contain their location even without symbols.
    let strip = cross::strip(arch);
    cmd!(sh, "{strip} --strip-all {to}").quiet().run()?;
    renew_build_id(&to)?;
    // Packages take the program from cargo's path. The file is replaced, not overwritten, because cargo has another hard link to it.
    sh.remove_path(&built)?;
    sh.copy_file(&to, &built)?;
    is_static(&to)?;
    reports_no_paths(&to, source)
}

/// Writes a wrapper of the compiler that replaces paths of this machine. RUSTFLAGS would enter the hashes that cargo puts into symbols; a
/// wrapper and the arguments that it adds don't.
fn wrapper(sh: &Shell, source: &Path, arch: Arch, sysroot: Option<&Path>) -> anyhow::Result<PathBuf> {
    let home = PathBuf::from(env::var_os("HOME").context("HOME is not set")?);
    let cargo = env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let rustup = env::var_os("RUSTUP_HOME").map_or_else(|| home.join(".rustup"), PathBuf::from);
    let remap: Vec<String> = [(source, "/imds-observer"), (&cargo, "/cargo"), (&rustup, "/rustup")]
        .map(|(from, to)| format!("--remap-path-prefix='{}={to}'", from.display()))
        .into();
    let remap = remap.join(" ");
    let target = arch.target();
    let library = sysroot.map_or_else(String::new, |sysroot| {
        format!(
            "case \" $* \" in *\" --target {target} \"*) set -- \"$@\" --sysroot='{}';; esac\n",
            sysroot.display()
        )
    });
    let script = format!("#!/bin/sh\n{library}exec \"$@\" {remap}\n");
    let path = source.join("target/dist-rustc").join(arch.name());
    sh.create_dir(path.parent().context("the wrapper has a directory")?)?;
    // An unchanged wrapper keeps its time, because cargo rebuilds everything when the wrapper is newer.
    if !sh.read_file(&path).is_ok_and(|have| have == script) {
        sh.write_file(&path, script)?;
        cmd!(sh, "chmod +x {path}").quiet().run()?;
    }
    Ok(path)
}

/// Derives the build ID from the stripped program. The linker's build ID depends on the stripped parts too, which differ between builds.
fn renew_build_id(program: &Path) -> anyhow::Result<()> {
    let mut bytes = fs::read(program)?;
    let place = {
        let file = object::File::parse(&*bytes).with_context(|| format!("read {}", program.display()))?;
        file.build_id()?
            .map(|id| (id.as_ptr().addr() - bytes.as_ptr().addr(), id.len()))
    };
    let Some((at, len)) = place else { return Ok(()) };
    bytes[at..at + len].fill(0);
    let digest = Sha256::digest(&bytes);
    ensure!(len <= digest.len(), "{}: a build ID of {len} bytes", program.display());
    bytes[at..at + len].copy_from_slice(&digest[..len]);
    fs::write(program, bytes).with_context(|| format!("write {}", program.display()))
}

/// Checks that the program needs no loader, because an empty root directory has none.
fn is_static(program: &Path) -> anyhow::Result<()> {
    const PT_INTERP: u32 = 3;
    let bytes = fs::read(program)?;
    // Program headers of a 64-bit little-endian ELF file: their offset, size and number.
    let word = |at: usize, len: usize| {
        bytes
            .get(at..at + len)
            .map(|bytes| bytes.iter().rev().fold(0, |all, byte| all << 8 | usize::from(*byte)))
            .context("the program is cut off")
    };
    ensure!(
        bytes.starts_with(b"\x7fELF\x02\x01"),
        "{} is no 64-bit ELF file",
        program.display()
    );
    let (begin, size, count) = (word(0x20, 8)?, word(0x36, 2)?, word(0x38, 2)?);
    for number in 0..count {
        ensure!(
            word(begin + number * size, 4)? != PT_INTERP as usize,
            "{} is not static: it asks for a loader",
            program.display()
        );
    }
    Ok(())
}

fn reports_no_paths(program: &Path, source: &Path) -> anyhow::Result<()> {
    let bytes = fs::read(program)?;
    let wanted = source.to_str().context("the sources' path is text")?;
    let found = bytes.windows(wanted.len()).position(|part| part == wanted.as_bytes());
    if let Some(at) = found {
        let text: String = bytes[at..]
            .iter()
            .take(120)
            .take_while(|byte| byte.is_ascii_graphic())
            .map(|byte| char::from(*byte))
            .collect();
        anyhow::bail!("{} contains its build path: {text}", program.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_differ_in_their_build_ids_alone_become_the_same() {
        let sh = Shell::new().unwrap();
        let directory = sh.create_temp_dir().unwrap();
        let own = fs::read(env::current_exe().unwrap()).unwrap();
        let id = object::File::parse(&*own)
            .unwrap()
            .build_id()
            .unwrap()
            .map(<[u8]>::to_vec);
        let id = id.expect("the linker writes build IDs");
        let at = own.windows(id.len()).position(|part| part == id).unwrap();
        let renewed = [own[at], !own[at]].map(|first| {
            let path = directory.path().join(first.to_string());
            let mut program = own.clone();
            program[at] = first;
            fs::write(&path, program).unwrap();
            renew_build_id(&path).unwrap();
            fs::read(path).unwrap()
        });
        assert!(renewed[0] == renewed[1], "both have one ID");
        assert_ne!(renewed[0][at..at + id.len()], id, "it is not the linker's");
        assert_ne!(renewed[0][at..at + id.len()], vec![0; id.len()]);
    }
}
