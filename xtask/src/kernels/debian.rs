//! Debian's kernel packages: found by version, downloaded with separate apt directories, and unpacked without installation.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use xshell::{Shell, cmd};

use super::{Arch, directory};

/// Version such as `6.1`, `7` or `6.12.43`: the newest package whose version begins with these numbers is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Version(Vec<u32>);

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        let numbers = numbers.with_context(|| format!("{text} is no kernel version (6.1, 5.10, 7)"))?;
        ensure!(
            (1..=3).contains(&numbers.len()),
            "{text} is no kernel version (6.1, 5.10, 7)"
        );
        Ok(Self(numbers))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&numbers.join("."))
    }
}

impl Version {
    /// Suites that contain it, with their security suites if there are any.
    fn suites(&self) -> &'static [&'static str] {
        match self.0.as_slice() {
            [5, 10, ..] => &["bullseye", "bullseye-security"],
            [6, 1, ..] => &["bookworm", "bookworm-security"],
            [6, 12, ..] => &["trixie", "trixie-security"],
            _ => &["trixie-backports"],
        }
    }
}

/// Downloads are retried, because mirrors fail temporarily.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(5);

pub(super) fn patiently(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let mut tries = 1;
    loop {
        match work() {
            Err(error) if tries < TRIES => eprintln!("kernels: {error:#}; trying again"),
            result => return result,
        }
        tries += 1;
        sleep(PAUSE);
    }
}

/// An unpacked kernel.
pub(super) struct Kernel {
    /// As printed by `uname -r`.
    pub(super) release: String,
    /// The packages' files: `boot/`, `lib/modules/`.
    pub(super) files: PathBuf,
}

impl Kernel {
    /// Path of the image: in `/boot` or, since 7.2, beside the modules.
    pub(super) fn image(&self) -> PathBuf {
        let image = self.files.join("boot").join(format!("vmlinuz-{}", self.release));
        if image.is_file() {
            return image;
        }
        self.files.join("lib/modules").join(&self.release).join("vmlinuz")
    }
}

/// Fetches the newest kernel of this version. A kernel that is already unpacked is reused; delete its directory to get a newer one.
pub(super) fn fetch(sh: &Shell, arch: Arch, version: &Version) -> anyhow::Result<Kernel> {
    let files = directory(arch).join(version.to_string());
    if let Some(kernel) = unpacked(sh, &files) {
        return Ok(kernel);
    }
    let apt = Apt::new(sh, arch, version.suites())?;
    let candidates = apt.kernels(version)?;
    for package in candidates.iter().take(4) {
        // The list may contain a newest package that the mirror doesn't have, or no longer has.
        match apt.unpack(package, &files) {
            Ok(()) => {
                return unpacked(sh, &files).with_context(|| format!("{package} holds no kernel and modules"));
            }
            Err(error) => eprintln!("kernels: {package}: {error:#}; trying an older one"),
        }
    }
    bail!(
        "no package of kernel {version} for {} in {} could be had (tried {candidates:?})",
        arch.debian(),
        version.suites().join(", ")
    )
}

fn unpacked(sh: &Shell, files: &Path) -> Option<Kernel> {
    sh.read_dir(files.join("lib/modules")).ok()?.iter().find_map(|modules| {
        let kernel = Kernel {
            release: modules.file_name()?.to_str()?.to_owned(),
            files: files.to_path_buf(),
        };
        (modules.join("modules.dep").is_file() && kernel.image().is_file()).then_some(kernel)
    })
}

/// apt with separate lists and caches: it reads other suites and doesn't change those of the machine.
struct Apt<'a> {
    sh: &'a Shell,
    options: Vec<String>,
    debian: &'static str,
}

impl<'a> Apt<'a> {
    fn new(sh: &'a Shell, arch: Arch, suites: &[&str]) -> anyhow::Result<Self> {
        let home = directory(arch).join("apt").join(suites[0]);
        sh.create_dir(home.join("lists/partial"))?;
        sh.create_dir(home.join("cache/archives/partial"))?;
        let mut sources = String::new();
        for suite in suites {
            let label = if suite.ends_with("-security") {
                "Debian-Security"
            } else {
                "Debian"
            };
            sources.push_str(&format!("deb {} {suite} main\n", mirror(sh, label)?));
        }
        let list = home.join("sources.list");
        sh.write_file(&list, sources)?;
        let debian = arch.debian();
        let settings = [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={}", home.join("lists").display()),
            format!("Dir::Cache={}", home.join("cache").display()),
            "Acquire::Languages=none".to_owned(),
            // The download user can't write to our directories.
            "APT::Sandbox::User=root".to_owned(),
            format!("APT::Architecture={debian}"),
            format!("APT::Architectures={debian}"),
            format!("Acquire::Retries={TRIES}"),
        ];
        let options = settings
            .into_iter()
            .flat_map(|setting| ["-o".to_owned(), setting])
            .collect();
        let apt = Self { sh, options, debian };
        let options = &apt.options;
        patiently(|| Ok(cmd!(sh, "apt-get --quiet=2 {options...} update").run()?))?;
        Ok(apt)
    }

    /// Packages of this version, newest first.
    fn kernels(&self, version: &Version) -> anyhow::Result<Vec<String>> {
        let options = &self.options;
        let numbers = version.to_string().replace('.', "\\.");
        let debian = self.debian;
        let pattern = format!("^linux-image-{numbers}[.][0-9.]+[^ ]*-cloud-{debian}$");
        let sh = self.sh;
        let found = cmd!(sh, "apt-cache {options...} search --names-only {pattern}")
            .quiet()
            .read()?;
        let mut names: Vec<&str> = found.lines().filter_map(|line| line.split(' ').next()).collect();
        // Backports for other releases have other dependencies, and would list the same version twice.
        names.retain(|name| !name.contains('~') && !name.contains("-0.deb"));
        names.sort_by_key(|name| std::cmp::Reverse(numbers_in(name)));
        ensure!(!names.is_empty(), "no package matches {pattern}");
        Ok(names.into_iter().map(str::to_owned).collect())
    }

    /// Unpacks the package and those of its dependencies that contain image and modules, which are separate since 6.19.
    fn unpack(&self, package: &str, files: &Path) -> anyhow::Result<()> {
        let (sh, options) = (self.sh, &self.options);
        let depends = cmd!(sh, "apt-cache {options...} depends --important {package}")
            .quiet()
            .read()?;
        let mut packages = vec![package.to_owned()];
        packages.extend(
            depends
                .lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "))
                .filter(|name| name.starts_with("linux-binary-") || name.starts_with("linux-modules-"))
                .map(|name| name.split(':').next().unwrap_or(name).to_owned()),
        );
        self.unpack_all(&packages, files)?;
        if !sh.path_exists(files.join("lib")) {
            std::os::unix::fs::symlink("usr/lib", files.join("lib"))?;
        }
        for modules in sh.read_dir(files.join("lib/modules"))? {
            let release = modules.file_name().context("a directory of modules has a name")?;
            cmd!(sh, "depmod --basedir {files} {release}").quiet().run()?;
        }
        Ok(())
    }

    /// Replaces `files` with the contents of these packages.
    fn unpack_all(&self, packages: &[String], files: &Path) -> anyhow::Result<()> {
        let (sh, options) = (self.sh, &self.options);
        let mut downloads = files.as_os_str().to_owned();
        downloads.push(".download");
        let downloads = PathBuf::from(downloads);
        sh.remove_path(&downloads)?;
        sh.remove_path(files)?;
        sh.create_dir(&downloads)?;
        sh.create_dir(files)?;
        {
            let _inside = sh.push_dir(&downloads);
            cmd!(sh, "apt-get --quiet=2 {options...} download {packages...}").run()?;
        }
        for deb in sh.read_dir(&downloads)? {
            cmd!(sh, "dpkg -x {deb} {files}").quiet().run()?;
        }
        Ok(sh.remove_path(&downloads)?)
    }

    /// These packages and the libraries that they depend on.
    fn with_libraries(&self, packages: &[&str]) -> anyhow::Result<Vec<String>> {
        let (sh, options) = (self.sh, &self.options);
        let only = ["recommends", "suggests", "conflicts", "breaks", "replaces", "enhances"]
            .map(|kind| format!("--no-{kind}"));
        let listed = cmd!(sh, "apt-cache {options...} depends --recurse {only...} {packages...}")
            .quiet()
            .read()?;
        let mut names: Vec<String> = listed
            .lines()
            .filter(|name| packages.contains(name) || name.starts_with("lib") || name.starts_with("zlib"))
            .map(|name| name.split(':').next().unwrap_or(name).to_owned())
            .collect();
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

/// Code name of this machine's own release.
pub(crate) fn own_suite() -> anyhow::Result<String> {
    Ok(own_suites()?.swap_remove(0))
}

/// The suites of this machine's own release.
pub(super) fn own_suites() -> anyhow::Result<Vec<String>> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("find this machine's release in /etc/os-release: guests' programs are taken from Debian's packages")?;
    Ok(vec![
        name.to_owned(),
        format!("{name}-security"),
        format!("{name}-updates"),
    ])
}

/// Fetches and unpacks packages of this machine's own release for another processor.
pub(super) fn unpack_from_own_release(sh: &Shell, arch: Arch, packages: &[String], files: &Path) -> anyhow::Result<()> {
    let suites = own_suites()?;
    let suites: Vec<&str> = suites.iter().map(String::as_str).collect();
    Apt::new(sh, arch, &suites)?.unpack_all(packages, files)
}

/// Packages of the programs that the lab and the tests call.
const TOOLS: &[&str] = &[
    "bpftool",
    "coreutils",
    "curl",
    "dash",
    "ethtool",
    "grep",
    "iproute2",
    "iptables",
    "ipvsadm",
    "nftables",
    "util-linux",
    "wireguard-tools",
];

/// Copies `programs` for another processor and their libraries into a guest's tree.
pub(super) fn tools(sh: &Shell, arch: Arch, programs: &[&str], tree: &Path) -> anyhow::Result<()> {
    let files = directory(arch).join("tools");
    let stamp = files.join("packages");
    // If the list of packages has changed, the unpacked tools are incomplete.
    if !sh.read_file(&stamp).is_ok_and(|have| have == TOOLS.join(" ")) {
        sh.remove_path(&files)?;
        let suites = own_suites()?;
        let suites: Vec<&str> = suites.iter().map(String::as_str).collect();
        let apt = Apt::new(sh, arch, &suites)?;
        let packages = apt.with_libraries(TOOLS)?;
        apt.unpack_all(&packages, &files)?;
        sh.write_file(&stamp, TOOLS.join(" "))?;
    }
    for program in programs {
        let found = ["usr/sbin", "usr/bin", "sbin", "bin"]
            .iter()
            .map(|directory| files.join(directory).join(program))
            // An absolute link would point to a program of this machine.
            .find(|path| path.exists() && fs::read_link(path).map_or(true, |target| target.is_relative()))
            .with_context(|| format!("find {program} in Debian's packages for {}", arch.debian()))?;
        let to = tree.join("usr/bin").join(program);
        fs::copy(&found, &to).with_context(|| format!("copy {} to {}", found.display(), to.display()))?;
    }
    for libraries in ["lib", "usr/lib"] {
        let (from, to) = (files.join(libraries), tree.join(libraries));
        if from.is_dir() {
            sh.create_dir(&to)?;
            cmd!(sh, "cp --archive {from}/. {to}").quiet().run()?;
        }
    }
    Ok(())
}

/// URL of this machine's mirror of an archive, as configured by its administrator.
pub(crate) fn mirror(sh: &Shell, label: &str) -> anyhow::Result<String> {
    let format = "$(REPO_URI) $(LABEL)";
    let targets = cmd!(sh, "apt-get indextargets --format {format}")
        .quiet()
        .read()
        .context("ask apt for its mirrors (kernels are taken from Debian's packages)")?;
    targets
        .lines()
        .find_map(|line| line.strip_suffix(label)?.strip_suffix(' ').map(str::to_owned))
        .with_context(|| format!("apt knows no archive labelled {label}: kernels are taken from Debian's packages"))
}

fn numbers_in(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers() {
        assert_eq!("6.1".parse::<Version>().unwrap().to_string(), "6.1");
        for wrong in ["", "six", "6.x", "1.2.3.4"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn newer_builds_sort_behind_older_ones() {
        assert!(numbers_in("linux-image-6.1.0-56-cloud-amd64") > numbers_in("linux-image-6.1.0-9-cloud-amd64"));
    }
}
