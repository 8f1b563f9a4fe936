//! Checks that the built programs start without any other file.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use xshell::{Shell, cmd};

use super::Release;
use crate::kernels::{self, Arch};
use crate::run::is_root;
use crate::setup::which;

/// Starts the program in a root directory that contains only the program, on this machine or in a guest.
pub(super) fn program(sh: &Shell, arch: Arch, program: &Path) -> anyhow::Result<()> {
    if !arch.is_native() {
        return guest(sh, arch, program);
    }
    if !is_root() {
        eprintln!("dist: not tried in an empty root: that needs root");
        return Ok(());
    }
    let empty = sh.create_temp_dir()?;
    let root = empty.path();
    sh.copy_file(program, root.join("imds-observer"))?;
    let version = cmd!(sh, "chroot {root} /imds-observer --version").read()?;
    says(&version, env!("CARGO_PKG_VERSION"))?;
    let doctor = cmd!(sh, "chroot {root} /imds-observer doctor").ignore_status().read()?;
    says(&doctor, "cgroup2")?;
    let schema = cmd!(sh, "chroot {root} /imds-observer schema").quiet().read()?;
    says(&schema, "$schema")
}

/// Observes one request to a server on the loopback interface of a guest with nothing else in it. The script is PID 1: the guest ends with
/// the script, and the kernel prints its exit status.
const OBSERVE: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /run /www/latest
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b grep -E '/(sch_ingress|cls_bpf)' /guest/modules | while read module; do $b insmod $module; done
$b ip link set lo up
echo here > /www/latest/it
$b httpd -p 127.0.0.1:80 -h /www
/program stream -i lo --endpoint 127.0.0.1 --count 1 --duration 120s > /run/records &
observer=$!
until $b grep -q '"record":"start"' /run/records || ! $b kill -0 $observer; do $b sleep 0.1; done
$b wget -q -O - http://127.0.0.1/latest/it
wait $observer
status=$?
$b cat /run/records
exit $status
"#;

/// Starts the program as the only process of a guest with another processor, whose console shows the output, and then observes a request
/// there.
fn guest(sh: &Shell, arch: Arch, program: &Path) -> anyhow::Result<()> {
    for (arguments, wanted) in [("--version", env!("CARGO_PKG_VERSION")), ("doctor", "cgroup2")] {
        says(&kernels::only(sh, arch, program, arguments)?, wanted)?;
    }
    let console = kernels::script(sh, arch, program, OBSERVE)?;
    let line = |kind: &str| {
        let wanted = format!("\"record\":\"{kind}\"");
        console.lines().find(|line| line.contains(&wanted))
    };
    let exchange = line("exchange").with_context(|| format!("nothing was observed in the guest: {console}"))?;
    for wanted in [
        "\"path\":\"/latest/it\"",
        "\"status\":200",
        "\"comm\":\"busybox\"",
        "\"outcome\":\"answered\"",
    ] {
        ensure!(exchange.contains(wanted), "{wanted} is not in {exchange}");
    }
    eprintln!("  {}", line("start").unwrap_or_default());
    Ok(())
}

/// Tries the image with podman and skopeo, if both are installed and this process is root.
pub(super) fn image(sh: &Shell, release: &Release) -> anyhow::Result<()> {
    if !release.arches.iter().any(|arch| arch.is_native())
        || !is_root()
        || !["podman", "skopeo"].iter().all(|program| which(sh, program))
    {
        eprintln!("dist: the image is not tried: that needs root, podman and skopeo");
        return Ok(());
    }
    let archive = release.file("-image.tar");
    // A separate store, which is removed afterwards.
    let store = sh.create_temp_dir()?;
    let (data, run) = (store.path().join("data"), store.path().join("run"));
    let podman = |arguments: &[&str]| {
        cmd!(
            sh,
            "podman --root {data} --runroot {run} --storage-driver vfs --cgroup-manager cgroupfs --runtime runc {arguments...}"
        )
        .read()
    };
    let loaded = podman(&["load", "--quiet", "--input", &archive.display().to_string()])?;
    let name = loaded
        .lines()
        .find_map(|line| line.split_once(": ").map(|(_, name)| name))
        .with_context(|| format!("podman did not print what it loaded: {loaded}"))?
        .to_owned();
    let version = podman(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--pids-limit",
        "0",
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=1024:1024",
        "--read-only",
        &name,
        "--version",
    ])?;
    says(&version, &release.version)?;
    // Copy all processors' images, as a registry would get them. This verifies each blob against its hash.
    let copy = store.path().join("copy");
    let (from, to) = (
        format!("oci-archive:{}", archive.display()),
        format!("oci:{}:{}", copy.display(), release.version),
    );
    cmd!(sh, "skopeo copy --quiet --all {from} {to}").run()?;
    let inside = podman(&[
        "image",
        "inspect",
        "--format",
        "{{.Os}}/{{.Architecture}} {{.Created}}",
        &name,
    ])?;
    eprintln!("dist: podman ran {name} ({inside})");
    let size = fs::metadata(&archive)?.len() / 1_000_000;
    eprintln!("dist: the image has {size} MB for all processors");
    Ok(())
}

fn says(text: &str, wanted: &str) -> anyhow::Result<()> {
    ensure!(text.contains(wanted), "the program did not print `{wanted}`: {text}");
    for line in text.lines().take(3) {
        eprintln!("  {line}");
    }
    Ok(())
}
