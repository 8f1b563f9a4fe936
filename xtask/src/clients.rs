//! The clients that scenarios run: real ones, from Debian, PyPI, npm and crates.io, in the tools directory.
//!
//! Some packages would start a service, add udev rules or configure a network when they are installed. These are only unpacked, because a
//! test must not change the machine. Packages with only programs and libraries are installed.

use std::path::PathBuf;

use anyhow::Context as _;
use xshell::{Shell, cmd};

use crate::run::root;
use crate::setup::{has_apt, make_venv, say, which};
use crate::toolchain;

/// Packages whose programs and libraries do nothing by themselves.
pub(crate) const INSTALLED: &[&str] = &[
    "awscli",
    "ruby-aws-sdk-core",
    "rclone",
    "restic",
    "amazon-ecr-credential-helper",
    // Dependencies of cloud-init, which is unpacked.
    "python3-configobj",
    "python3-jinja2",
    "python3-jsonpatch",
    "python3-jsonschema",
    "python3-oauthlib",
    "python3-requests",
    "python3-yaml",
    // Dependencies of s3fs.
    "libfuse2",
    "libcurl3-gnutls",
    "libxml2",
    // Dependencies of EC2's scripts: logger.
    "bsdutils",
];

/// Packages that are only unpacked, each with the reason.
const UNPACKED: &[(&str, &str)] = &[
    ("cloud-init", "would configure the machine at its next boot"),
    ("amazon-ec2-utils", "udev rules"),
    ("amazon-ec2-net-utils", "udev rules and network units"),
    ("prometheus", "a service"),
    ("s3fs", "pulls in fuse, which displaces fuse3"),
];

/// Directory of all clients.
pub(crate) fn directory() -> PathBuf {
    toolchain::tools().join("clients")
}

pub(crate) fn ensure(sh: &Shell) -> anyhow::Result<()> {
    sh.create_dir(directory())?;
    make_venv(
        sh,
        &directory().join("venv"),
        &root().join("xtask/clients/requirements.txt"),
        "botocore, boto3, ec2-metadata and moto",
    )?;
    unpack(sh)?;
    node(sh)?;
    rust(sh)
}

fn unpack(sh: &Shell) -> anyhow::Result<()> {
    let place = directory().join("debian");
    let missing: Vec<&(&str, &str)> = UNPACKED
        .iter()
        .filter(|(package, _)| !place.join(package).is_dir())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !has_apt(sh) {
        let names: Vec<&str> = missing.iter().map(|(package, _)| *package).collect();
        eprintln!(
            "setup: no apt-get here; unpack Debian's {} into directories of these names in {}",
            names.join(", "),
            place.display()
        );
        return Ok(());
    }
    sh.create_dir(&place)?;
    for (package, why) in missing {
        say(&format!(
            "unpack Debian's {package} into {} (not installed: {why})",
            place.display()
        ));
        let download = place.join(format!("{package}.download"));
        let unpacked = place.join(format!("{package}.new"));
        sh.remove_path(&download)?;
        sh.remove_path(&unpacked)?;
        sh.create_dir(&download)?;
        {
            let _inside = sh.push_dir(&download);
            // apt's download user can't enter root's directories.
            let fetch = || cmd!(sh, "apt-get --quiet=2 -o APT::Sandbox::User=root download {package}").run();
            if fetch().is_err() {
                say("apt-get update (a package was not found)");
                cmd!(sh, "apt-get update -o DPkg::Lock::Timeout=300").run()?;
                fetch().with_context(|| format!("download Debian's {package}"))?;
            }
        }
        for deb in sh.read_dir(&download)? {
            cmd!(sh, "dpkg -x {deb} {unpacked}").quiet().run()?;
        }
        sh.remove_path(&download)?;
        // Renamed only when complete, so that an interrupted run leaves no partial package.
        std::fs::rename(&unpacked, place.join(package)).with_context(|| format!("put {package} in its place"))?;
    }
    Ok(())
}

/// Installs the listed packages in exact versions. npm chooses the versions of their dependencies.
fn node(sh: &Shell) -> anyhow::Result<()> {
    if !which(sh, "npm") {
        // An existing Node.js is kept. Debian's npm would replace it.
        crate::setup::apt(sh, &["nodejs", "npm"], "SDKs for JavaScript")?;
    }
    let place = directory().join("node");
    let wanted = root().join("xtask/clients/package.json");
    let (stamp, text) = (place.join("installed.json"), sh.read_file(&wanted)?);
    if sh.read_file(&stamp).is_ok_and(|have| have == text) {
        return Ok(());
    }
    say(&format!(
        "install the SDKs for JavaScript (v3 and 2.560.0) into {}",
        place.display()
    ));
    sh.create_dir(&place)?;
    sh.copy_file(&wanted, place.join("package.json"))?;
    cmd!(
        sh,
        "npm install --prefix {place} --no-audit --no-fund --no-package-lock --ignore-scripts --loglevel=error"
    )
    .run()
    .context("install the SDKs for JavaScript")?;
    sh.write_file(&stamp, text)?;
    Ok(())
}

fn rust(sh: &Shell) -> anyhow::Result<()> {
    let manifest = root().join("imds-observer-lab/clients/rust-sdk/Cargo.toml");
    let target = directory().join("rust-sdk");
    if !target.join("release/rust-sdk").exists() {
        say("build a client of the AWS SDK for Rust (a minute or two)");
    }
    // cargo itself checks whether there is anything to build.
    cmd!(
        sh,
        "cargo build --quiet --release --locked --manifest-path {manifest} --target-dir {target}"
    )
    .quiet()
    .run()
    .context("build the client of the AWS SDK for Rust")?;
    Ok(())
}
