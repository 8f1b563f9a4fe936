//! How the eBPF object is compiled, and which sources it is compiled from.
//!
//! Shared by imds-observer's build script (feature `kernel-log`, and the check for a stale object) and by `cargo xtask ebpf`,
//! which writes the object that is kept in the tree.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::toolchain::{self, Compiler};

/// What the object is compiled from, relative to the repository. Crates from the registry are not in the list: Cargo.lock
/// changes with every dependency of user space, and `cargo xtask test` compiles the object anyway.
pub(crate) const SOURCES: [&str; 5] = [
    "imds-observer-common/Cargo.toml",
    "imds-observer-common/src",
    "imds-observer-ebpf/Cargo.toml",
    "imds-observer-ebpf/build.rs",
    "imds-observer-ebpf/src",
];

/// The key in `built-with.toml` that has the digest of the sources.
pub(crate) const DIGEST_KEY: &str = "sources";

/// Digest of the sources' names and bytes: 64-bit FNV-1a, which needs no crate in the build script and finds every
/// accidental change. `None` outside the repository, as in a package from crates.io.
pub(crate) fn digest(repository: &Path) -> Option<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        list(&repository.join(source), &mut files).ok()?;
    }
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes.iter().chain(&[0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    for file in files {
        add(file.strip_prefix(repository).ok()?.to_str()?.as_bytes());
        add(&fs::read(&file).ok()?);
    }
    Some(format!("{hash:016x}"))
}

/// Directories with the sources of registries from which this workspace has crates. Others come and go (`cargo package` makes
/// one), and with each change of flags cargo compiles everything again. anyhow is unpacked before anything here runs.
fn registries() -> Vec<PathBuf> {
    let has_crates = |registry: &Path| {
        fs::read_dir(registry).is_ok_and(|crates| {
            crates
                .flatten()
                .any(|package| package.file_name().to_string_lossy().starts_with("anyhow-"))
        })
    };
    let mut registries: Vec<PathBuf> = fs::read_dir(toolchain::cargo_home().join("registry/src"))
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    registries.retain(|registry| has_crates(registry));
    registries.sort();
    registries
}

fn list(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            list(&entry?.path(), files)?;
        }
    } else {
        fs::metadata(path)?;
        files.push(path.to_path_buf());
    }
    Ok(())
}

/// The value of a `key = "value"` line.
pub(crate) fn recorded<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(" = ")?;
        (name == key).then(|| value.trim_matches('"'))
    })
}

/// Compiles the kernel programs, and returns the path of the object, debug information included.
///
/// No path of this machine reaches the object: those of the repository, of crates and of the compiler's sources are replaced.
/// The processor is always the same one: programs differ by it only in kprobes' registers, and there are no kprobes.
pub(crate) fn compile(
    repository: &Path,
    features: &[&str],
    target_directory: &Path,
) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let compiler = Compiler::find().ok_or(
        "neither a rustup nightly with rust-src nor Debian's compiler is here (run `cargo xtask setup --for ebpf`)",
    )?;
    let sysroot = compiler.sysroot().ok_or("the compiler doesn't report its sysroot")?;
    let library = sysroot.join("lib/rustlib/src/rust");
    let library = library.canonicalize().unwrap_or(library);
    let mut flags = OsString::from("--cfg=bpf_target_arch=\"x86_64\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf");
    let mut remapped = vec![
        (repository.to_path_buf(), "/imds-observer"),
        (sysroot, "/rust"),
        (library, "/rust/lib/rustlib/src/rust"),
    ];
    // One directory a registry: its name has a hash of the registry's address, which a mirror changes.
    remapped.extend(registries().into_iter().map(|registry| (registry, "/crates")));
    for (from, to) in remapped {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    let mut command = Command::new("rustup");
    command
        .args([
            "run",
            compiler.toolchain(),
            "cargo",
            "build",
            "--quiet",
            "--locked",
            "--release",
        ])
        .args(["--package", "imds-observer-ebpf", "--bins"])
        .args(["--target", "bpfel-unknown-none", "-Zbuild-std=core"])
        .args(["--features", &features.join(",")])
        .arg("--target-dir")
        .arg(target_directory)
        .current_dir(repository)
        .env("PATH", toolchain::path()?)
        .env("CARGO_ENCODED_RUSTFLAGS", flags);
    for inherited in [
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(inherited);
    }
    if compiler == Compiler::Linked {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    let status = command
        .status()
        .map_err(|error| format!("start {command:?}: {error}"))?;
    if !status.success() {
        return Err(format!("compile the kernel programs: {command:?}: {status}").into());
    }
    Ok(target_directory.join("bpfel-unknown-none/release/imds-observer-ebpf"))
}
