//! Packages of the distribution: which ones are absent or too old, and how they are installed.
//!
//! A machine's package lists may be absent, weeks old, or incomplete. The offered versions are therefore checked before anything is
//! installed, and the installed versions afterwards.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

use super::{has_apt, is_program, say, which};
use crate::run::is_root;

/// A package for which more than its Debian name is known.
struct Known {
    debian: &'static str,
    /// Its name in Fedora and Amazon Linux 2023. Untested: no such machine runs the tests.
    dnf: &'static str,
    /// A program of the package, for machines without dpkg.
    program: Option<&'static str>,
}

const fn known(debian: &'static str, dnf: &'static str, program: &'static str) -> Known {
    Known {
        debian,
        dnf,
        program: Some(program),
    }
}

const KNOWN: &[Known] = &[
    known("bpftool", "bpftool", "bpftool"),
    known("buildah", "buildah", "buildah"),
    known("bzip2", "bzip2", "bzip2"),
    known(
        "chromium-headless-shell",
        "chromium-headless",
        "chromium-headless-shell",
    ),
    known("conmon", "conmon", "conmon"),
    known("containerd", "containerd", "containerd"),
    known("cpio", "cpio", "cpio"),
    known("curl", "curl", "curl"),
    known("ethtool", "ethtool", "ethtool"),
    known("g++", "gcc-c++", "g++"),
    known(
        "gcc-aarch64-linux-gnu",
        "gcc-aarch64-linux-gnu",
        "aarch64-linux-gnu-gcc",
    ),
    known("iperf3", "iperf3", "iperf3"),
    known("iproute2", "iproute", "ip"),
    known("iptables", "iptables-nft", "iptables"),
    known("ipvsadm", "ipvsadm", "ipvsadm"),
    known("jq", "jq", "jq"),
    known("kmod", "kmod", "modprobe"),
    known("mmdebstrap", "mmdebstrap", "mmdebstrap"),
    known("nftables", "nftables", "nft"),
    known("podman", "podman", "podman"),
    known("qemu-system-arm", "qemu-system-aarch64-core", "qemu-system-aarch64"),
    known("qemu-system-x86", "qemu-system-x86-core", "qemu-system-x86_64"),
    known("runc", "runc", "runc"),
    known("skopeo", "skopeo", "skopeo"),
    known("systemd", "systemd", "systemd-analyze"),
    known("tcpdump", "tcpdump", "tcpdump"),
    known("time", "time", "time"),
    known("tmux", "tmux", "tmux"),
    known("tshark", "wireshark-cli", "tshark"),
    known("wireguard-tools", "wireguard-tools", "wg"),
    known("wrk", "wrk", "wrk"),
    known("xz-utils", "xz", "xz"),
];

/// Minimum versions of packages for which some releases still offer an older version.
const OLDEST: &[(&str, &str)] = &[("rustc-web", "1.87"), ("rust-web-src", "1.87")];

fn oldest(package: &str) -> Option<&'static str> {
    OLDEST
        .iter()
        .find(|(name, _)| *name == package)
        .map(|(_, oldest)| *oldest)
}

/// A package that is absent or too old.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lack {
    package: String,
    found: Option<String>,
}

impl Lack {
    /// Text with tool, version found and version needed.
    fn describe(&self) -> String {
        let found = self.found.as_ref().map_or_else(
            || "not installed".to_owned(),
            |found| format!("version {found} is installed"),
        );
        match oldest(&self.package) {
            Some(oldest) => format!("{}: {found}, {oldest} or newer is needed", self.package),
            None => format!("{}: {found}", self.package),
        }
    }
}

/// Installs packages that are absent or too old.
pub(crate) fn install(sh: &Shell, packages: &[&str], what: &str) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !has_apt(sh) {
        return check_programs(sh, packages, what);
    }
    let lacking = lacking(sh, packages)?;
    if lacking.is_empty() {
        return Ok(());
    }
    let reasons = join(&lacking, "\n  ");
    let list = names(&lacking).join(" ");
    if !is_root() {
        bail!(
            "{what}: installing packages needs root:\n  {reasons}\nrun: sudo sh -c 'apt-get update && apt-get install --yes {list}'"
        );
    }
    let mut refreshed = false;
    if !not_offered(sh, &lacking)?.is_empty() {
        refresh(sh, "a package is absent from the package lists, or too old there")?;
        refreshed = true;
    }
    // A package that this release doesn't have is accepted if its program is installed by other means.
    let absent = not_offered(sh, &lacking)?;
    let wanted: Vec<&Lack> = lacking.iter().filter(|lack| !absent.contains(lack)).collect();
    let nowhere: Vec<&Lack> = absent
        .iter()
        .filter(|lack| !program_of(&lack.package).is_some_and(|program| has_program(sh, program)))
        .collect();
    if !nowhere.is_empty() {
        bail!(
            "{what}: {} has no such package in the version needed:\n  {}\nset-up uses Debian's package names: install the programs by hand, and run this again",
            release(),
            nowhere
                .iter()
                .map(|lack| lack.describe())
                .collect::<Vec<_>>()
                .join("\n  ")
        );
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let wanted: Vec<&str> = wanted.iter().map(|lack| lack.package.as_str()).collect();
    say(&format!("apt-get install {} ({what})", wanted.join(" ")));
    let packages = &wanted;
    let install = || {
        cmd!(
            sh,
            "apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 {packages...}"
        )
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
    };
    let mut done = install().is_ok();
    if !done && !refreshed {
        // Old lists also contain files that a mirror has since replaced.
        refresh(sh, "an installation failed")?;
        done = install().is_ok();
    }
    if !done {
        bail!("{what}: apt-get failed on\n  {reasons}\nrun: apt-get update && apt-get install {list}");
    }
    let still = self::lacking(sh, &wanted)?;
    if !still.is_empty() {
        bail!(
            "{what}: after apt-get install:\n  {}\nrun: apt-get update && apt-get install {list}",
            join(&still, "\n  ")
        );
    }
    Ok(())
}

/// Whether the package lists, refreshed if necessary, offer all of these packages in a suitable version.
pub(super) fn are_offered(sh: &Shell, packages: &[&str]) -> anyhow::Result<bool> {
    let wanted: Vec<Lack> = packages
        .iter()
        .map(|&package| Lack {
            package: package.to_owned(),
            found: None,
        })
        .collect();
    if not_offered(sh, &wanted)?.is_empty() {
        return Ok(true);
    }
    if is_root() {
        refresh(sh, "the compiler is absent from the package lists, or too old there")?;
    }
    Ok(not_offered(sh, &wanted)?.is_empty())
}

fn refresh(sh: &Shell, why: &str) -> anyhow::Result<()> {
    say(&format!("apt-get update ({why})"));
    cmd!(sh, "apt-get update -o DPkg::Lock::Timeout=300").run()?;
    Ok(())
}

fn join(lacking: &[Lack], separator: &str) -> String {
    lacking.iter().map(Lack::describe).collect::<Vec<_>>().join(separator)
}

fn names(lacking: &[Lack]) -> Vec<&str> {
    lacking.iter().map(|lack| lack.package.as_str()).collect()
}

/// Packages that are absent or too old.
fn lacking(sh: &Shell, packages: &[&str]) -> anyhow::Result<Vec<Lack>> {
    // dpkg-query fails if it doesn't know one of the packages, but still prints the others.
    let format = "--showformat=${db:Status-Status}\\t${binary:Package}\\t${Version}\\n";
    let output = cmd!(sh, "dpkg-query --show {format} {packages...}")
        .quiet()
        .ignore_status()
        .ignore_stderr()
        .read()
        .context("ask dpkg what is installed")?;
    let installed: HashMap<&str, &str> = output.lines().filter_map(installed).collect();
    let mut lacking = Vec::new();
    for &package in packages {
        let found = installed.get(package).copied();
        let enough = match (found, oldest(package)) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(found), Some(oldest)) => is_at_least(sh, found, oldest),
        };
        if !enough {
            lacking.push(Lack {
                package: package.to_owned(),
                found: found.map(str::to_owned),
            });
        }
    }
    Ok(lacking)
}

/// Name and version from a line of dpkg-query, if the package is installed.
fn installed(line: &str) -> Option<(&str, &str)> {
    let (package, version) = line.strip_prefix("installed\t")?.split_once('\t')?;
    Some((package.split(':').next().unwrap_or(package), version))
}

fn is_at_least(sh: &Shell, version: &str, oldest: &str) -> bool {
    cmd!(sh, "dpkg --compare-versions {version} ge {oldest}")
        .quiet()
        .ignore_stderr()
        .run()
        .is_ok()
}

/// Packages that the package lists don't have in a suitable version.
fn not_offered(sh: &Shell, lacking: &[Lack]) -> anyhow::Result<Vec<Lack>> {
    let packages = names(lacking);
    let output = cmd!(sh, "apt-cache policy {packages...}")
        .env("LC_ALL", "C")
        .quiet()
        .read()
        .context("ask apt-cache what the package lists offer")?;
    let candidates = candidates(&output);
    Ok(lacking
        .iter()
        .filter(
            |lack| match (candidates.get(lack.package.as_str()), oldest(&lack.package)) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(candidate), Some(oldest)) => !is_at_least(sh, candidate, oldest),
            },
        )
        .cloned()
        .collect())
}

/// The version that would be installed, by package, from the output of `apt-cache policy`.
fn candidates(output: &str) -> HashMap<&str, &str> {
    let mut package = None;
    let mut candidates = HashMap::new();
    for line in output.lines() {
        if let Some(candidate) = line.strip_prefix("  Candidate: ") {
            if let Some(package) = package.take().filter(|_| candidate != "(none)") {
                candidates.insert(package, candidate);
            }
        } else if !line.starts_with(' ') {
            package = line.strip_suffix(':');
        }
    }
    candidates
}

fn program_of(package: &str) -> Option<&'static str> {
    KNOWN.iter().find(|known| known.debian == package)?.program
}

fn has_program(sh: &Shell, program: &str) -> bool {
    // A user's PATH may lack the administrator's directories.
    which(sh, program)
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|directory| is_program(&std::path::Path::new(directory).join(program)))
}

/// Checks for programs on a system other than Debian, where the user has to install the packages.
fn check_programs(sh: &Shell, packages: &[&str], what: &str) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| program_of(package).is_some_and(|program| !has_program(sh, program)))
        .copied()
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let programs: Vec<&str> = missing.iter().filter_map(|package| program_of(package)).collect();
    bail!(
        "{what}: not found: {}\nset-up installs packages with apt-get alone, and this is {}: {}",
        programs.join(", "),
        release(),
        by_hand(which(sh, "dnf"), packages)
    );
}

/// The command to run where there is no apt-get.
fn by_hand(dnf: bool, packages: &[&str]) -> String {
    if !dnf {
        return format!("install what Debian calls {}, and run this again", packages.join(" "));
    }
    let names: Vec<&str> = packages
        .iter()
        .map(|package| {
            KNOWN
                .iter()
                .find(|known| known.debian == *package)
                .map_or(*package, |known| known.dnf)
        })
        // Part of Fedora's python3.
        .filter(|name| *name != "python3-venv")
        .collect();
    format!(
        "run `dnf install {}` (names not tried; leave out what this release doesn't have), and run this again",
        names.join(" ")
    )
}

/// Name of the distribution.
fn release() -> String {
    fs::read_to_string("/etc/os-release")
        .ok()
        .and_then(|text| {
            let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
            Some(name.trim_matches('"').to_owned())
        })
        .unwrap_or_else(|| "this distribution".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_are_read_by_package() {
        let output = "rustc-web:\n  Installed: (none)\n  Candidate: 1.85.0+dfsg3-1~deb12u3\n  Version table:\n     1.85.0+dfsg3-1~deb12u3 500\n        500 http://mirror.example bookworm/main amd64 Packages\nllvm-22-dev:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n";
        let found = candidates(output);
        assert_eq!(found.get("rustc-web"), Some(&"1.85.0+dfsg3-1~deb12u3"));
        assert_eq!(found.len(), 1);
        assert!(candidates("").is_empty());
    }

    #[test]
    fn only_installed_packages_count() {
        assert_eq!(
            installed("installed\tlibzstd-dev:amd64\t1.5.4"),
            Some(("libzstd-dev", "1.5.4"))
        );
        assert_eq!(installed("config-files\tcurl\t7.88"), None);
        assert_eq!(installed("not-installed\tcurl\t"), None);
    }

    #[test]
    fn a_lack_names_what_is_found_and_what_is_needed() {
        let lack = |found: Option<&str>| Lack {
            package: "rustc-web".into(),
            found: found.map(str::to_owned),
        };
        assert_eq!(
            lack(Some("1.85.0+dfsg3-1")).describe(),
            "rustc-web: version 1.85.0+dfsg3-1 is installed, 1.87 or newer is needed"
        );
        assert_eq!(
            lack(None).describe(),
            "rustc-web: not installed, 1.87 or newer is needed"
        );
    }

    #[test]
    fn without_apt_the_line_to_type_has_the_other_names() {
        let line = by_hand(true, &["iproute2", "g++", "python3-venv"]);
        assert!(line.contains("`dnf install iproute gcc-c++`"), "{line}");
        assert!(by_hand(false, &["iproute2"]).contains("Debian calls iproute2"));
    }
}
