//! Builds and runs the guest.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use xshell::{Shell, cmd};

use super::debian::{self, Kernel};
use super::{Arch, Scope, cross, directory};
use crate::test;

/// Test programs of a guest, each with the names of the tests to run (none: all tests).
type Plan = &'static [(&'static str, &'static [&'static str])];

/// Detectors tolerate failures in the first 120 s after a boot. The tests before this entry take about that long.
const WAIT: (&str, &[&str]) = ("wait", &["121"]);

/// The features of a kernel and the basic observation test. Takes minutes.
const BRIEF: Plan = &[
    ("live_kernel", &[]),
    ("uplinks", &["stream_follows_the_uplinks_when_none_is_named"]),
    (
        "live",
        &[
            "main_job::a_lost_token_response_in_a_pod_is_proven_and_explained",
            "main_job::hop_limit_1_alone_is_no_finding_for_a_host_process",
            "harmless::kill_9_leaves_nothing_attached",
        ],
    ),
    WAIT,
    ("live", &["faults::every_fault_is_named_by_its_cause"]),
];

/// Tests of networks and hosts that differ from the lab's.
const NETWORKS: Plan = &[
    ("uplinks", &[]),
    WAIT,
    ("live", &["networks::", "hosts::", "devices::", "detached::"]),
];

/// All tests that a guest can run.
const WHOLE: Plan = &[("live_kernel", &[]), ("uplinks", &[]), WAIT, ("live", &[])];

impl Scope {
    fn plan(self) -> Plan {
        match self {
            Self::Brief => BRIEF,
            Self::Networks => NETWORKS,
            Self::Whole => WHOLE,
        }
    }

    /// Whether scripted clients in Python run in the guest.
    fn needs_python(self, arch: Arch) -> bool {
        self != Self::Brief && arch.is_native()
    }
}

/// Faults whose symptoms differ between kernels or privileges. `whole` includes all faults.
const BRIEF_FAULTS: &[&str] = &[
    "output-reject",
    "output-drop-legacy:IPv4",
    "forward-drop",
    "no-route",
    "route-prohibit:IPv4",
    "route-blackhole:IPv4",
    "no-route-forwarded:IPv4",
    "on-link-silent",
    "policy-connect",
    "policy-cgroup-egress:IPv4",
    "policy-tc-ingress-pod:IPv4",
    "server-down:IPv4",
    "hop-limit-1",
    "hop-limit-2:IPv4",
];

/// Tests that need programs that a guest doesn't have: a terminal multiplexer, a C compiler, container engines, Prometheus, a shell that
/// counts seconds.
const SKIPPED: &[&str] = &[
    "callers::",
    "terminal::",
    "containers::",
    "service::",
    "hostile::",
    "clock::",
    "confined::each_right_to_look_at_processes_is_for_what_the_table_says",
    "confined::only_what_is_needed_is_kept_and_the_work_goes_on",
    "a_curl_loop_is_one_finding_for_the_loop",
];

/// Tests with scripts in Python. Guests with another processor don't have Python.
const PYTHON_ONLY: &[&str] = &["networks::", "hosts::"];

/// Parts of Python's library that no script imports.
const PYTHON_LEFT_OUT: &[&str] = &["test", "idlelib", "ensurepip", "lib2to3", "pydoc_data", "tkinter"];

/// Environment of the tests: the lab's client instead of Python's, longer timeouts because emulation is slow, and the root cgroup because
/// no other processes run in the guest.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("IMDS_OBSERVER_TEST_CLIENT", "lab"),
    ("IMDS_OBSERVER_TEST_PATIENCE", "6"),
    ("IMDS_OBSERVER_TEST_CGROUP", "/sys/fs/cgroup"),
    // Device types that Debian's kernels have.
    (
        "IMDS_OBSERVER_TEST_DEVICES",
        "vlan,macvlan,ipvlan,vxlan,gre,ipip,wireguard,netkit,bond,vrf,ipvs",
    ),
];

/// Programs that the lab and the tests call.
const PROGRAMS: &[&str] = &[
    "curl",
    "nft",
    "iptables-legacy",
    "ip6tables-legacy",
    "tc",
    "ip",
    "bpftool",
    "ethtool",
    "dash",
    "sleep",
    "nsenter",
    "rm",
    "wg",
    "ipvsadm",
    "grep",
];

/// Additional names of these programs in the guest.
const ALIASES: &[(&str, &str)] = &[
    ("iptables", "iptables-legacy"),
    ("ip6tables", "ip6tables-legacy"),
    ("sh", "dash"),
];

/// Modules for the lab's networks and firewalls. Names that a kernel lacks are skipped: for example, 5.10 has nftables' counters as a
/// module, but later kernels have them built in.
const MODULES: &[&str] = &[
    "veth",
    "bridge",
    "dummy",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_netem",
    "sch_tbf",
    "nf_tables",
    "nft_chain_nat",
    "nft_masq",
    "nft_nat",
    "nft_redir",
    "nft_numgen",
    "nft_counter",
    "nft_ct",
    "nft_limit",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_compat",
    "ip_tables",
    "ip6_tables",
    "iptable_filter",
    "ip6table_filter",
    "iptable_nat",
    "ip6table_nat",
    "iptable_mangle",
    "ip6table_mangle",
    "ipt_REJECT",
    "ip6t_REJECT",
    "xt_MASQUERADE",
    "xt_tcpudp",
    "xt_conntrack",
    "xt_owner",
    "xt_cgroup",
    "xt_string",
    "ts_bm",
    "xt_HL",
    "xt_comment",
    "tcp_diag",
    "inet_diag",
    // Modules for kinds of uplinks.
    "8021q",
    "bonding",
    "macvlan",
    "ipvlan",
    "vxlan",
    "ip_gre",
    "ipip",
    "wireguard",
    "vrf",
    "ip_vs",
    "ip_vs_rr",
];

/// Timeout of a guest. The guest's init process has shorter timeouts for its tests.
const PATIENCE: Duration = Duration::from_secs(2_400);
const PATIENCE_WHOLE: Duration = Duration::from_secs(7_200);
/// Timeout of a boot and a program that ends by itself.
pub(super) const PATIENCE_ONLY: Duration = Duration::from_secs(300);

/// The part of the initramfs that all kernels of an architecture share.
pub(super) fn base(sh: &Shell, arch: Arch, scope: Scope, filter: Option<&str>) -> anyhow::Result<PathBuf> {
    let tree = directory(arch).join("root");
    sh.remove_path(&tree)?;
    for name in [
        "guest/target/deps",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "usr/bin",
        "etc",
    ] {
        sh.create_dir(tree.join(name))?;
    }
    for (merged, target) in [("bin", "usr/bin"), ("sbin", "usr/bin"), ("usr/sbin", "bin")] {
        std::os::unix::fs::symlink(target, tree.join(merged))?;
    }
    let plan = scope.plan();
    for (name, built) in programs(sh, arch)? {
        let to = match name.as_str() {
            "imds-observer-guest" => tree.join("init"),
            // The path at which tests look for it is fixed when they are compiled.
            "imds-observer" => below(&tree, &built),
            "imds-observer-lab" => tree.join("guest/target").join(name),
            name if plan.iter().any(|(program, _)| *program == name) => tree.join("guest/target/deps").join(name),
            _ => continue,
        };
        if let Some(parent) = to.parent() {
            sh.create_dir(parent)?;
        }
        let strip = cross::strip(arch);
        cmd!(sh, "{strip} --strip-debug -o {to} {built}").quiet().run()?;
        if arch.is_native() {
            copy_libraries(sh, &built, &tree)?;
        }
    }
    if arch.is_native() {
        own_tools(sh, arch, &tree)?;
    } else {
        debian::tools(sh, arch, PROGRAMS, &tree)?;
    }
    if scope.needs_python(arch) {
        python(sh, &tree)?;
    }
    for (alias, program) in ALIASES {
        std::os::unix::fs::symlink(program, tree.join("usr/bin").join(alias))?;
    }
    let lines: Vec<String> = match filter {
        Some(filter) => vec![format!("live {filter}")],
        None => plan
            .iter()
            .map(|(program, tests)| format!("{program} {}", tests.join(" ")))
            .collect(),
    };
    sh.write_file(tree.join("guest/plan"), lines.join("\n"))?;
    let without_python = if scope.needs_python(arch) { &[][..] } else { PYTHON_ONLY };
    sh.write_file(tree.join("guest/skip"), [SKIPPED, without_python].concat().join("\n"))?;
    let mut environment: Vec<String> = ENVIRONMENT
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if scope == Scope::Brief {
        environment.push(format!("IMDS_OBSERVER_FAULTS={}", BRIEF_FAULTS.join(",")));
    }
    sh.write_file(tree.join("guest/env"), environment.join("\n"))?;
    let archive = directory(arch).join("base.cpio");
    pack(&tree, &archive)?;
    Ok(archive)
}

/// Builds the guest's programs, and returns name and path of each. For this machine's own processor, they are the programs of the live
/// tests, so nothing is built twice. For another processor, they are static.
pub(super) fn programs(sh: &Shell, arch: Arch) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let targets = test::test_targets(sh, |name| test::is_live(name) || name == "uplinks")?;
    let cross = (!arch.is_native()).then(|| cross::prepare(sh, arch)).transpose()?;
    let arguments = cross.as_ref().map_or(&[][..], |cross| &cross.arguments);
    let mut command = cmd!(
        sh,
        "cargo test --locked {arguments...} {targets...} --no-run --message-format json-render-diagnostics"
    );
    for (name, value) in cross.iter().flat_map(|cross| &cross.environment) {
        command = command.env(name, value);
    }
    let mut found = Vec::new();
    for line in command.read()?.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("read what cargo built")?;
        if message["reason"] == "compiler-artifact"
            && let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            found.push((name.to_owned(), PathBuf::from(path)));
        }
    }
    ensure!(
        found.iter().any(|(name, _)| name == "imds-observer-guest"),
        "cargo built no guest"
    );
    Ok(found)
}

/// Copies this machine's programs and their libraries.
fn own_tools(sh: &Shell, arch: Arch, tree: &Path) -> anyhow::Result<()> {
    for program in PROGRAMS {
        let path = find(sh, program)?;
        copy(sh, &path, &tree.join("usr/bin").join(program))?;
        copy_libraries(sh, &path, tree)?;
    }
    // iptables loads its extensions by name, so `ldd` doesn't list them.
    let extensions = PathBuf::from(format!("/usr/lib/{}-linux-gnu/xtables", arch.name()));
    for extension in sh.read_dir(&extensions).context("list iptables' extensions")? {
        copy(sh, &extension, &below(tree, &extension))?;
    }
    Ok(())
}

/// Copies this machine's Python with its library, as `/usr/bin/python3`.
fn python(sh: &Shell, tree: &Path) -> anyhow::Result<()> {
    let program = find(sh, "python3")?;
    copy(sh, &program, &tree.join("usr/bin/python3"))?;
    copy_libraries(sh, &program, tree)?;
    let library = cmd!(sh, "{program} -c 'import os; print(os.path.dirname(os.__file__))'")
        .quiet()
        .read()?;
    let library = Path::new(&library);
    let to = below(tree, library);
    sh.create_dir(to.parent().unwrap_or(tree))?;
    cmd!(sh, "cp --archive {library} {to}").quiet().run()?;
    for part in PYTHON_LEFT_OUT {
        sh.remove_path(to.join(part))?;
    }
    for extension in sh.read_dir(to.join("lib-dynload"))? {
        copy_libraries(sh, &extension, tree)?;
    }
    Ok(())
}

fn find(sh: &Shell, program: &str) -> anyhow::Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| sh.path_exists(path))
        .with_context(|| format!("find {program} for the guest (cargo xtask setup --for kernels installs it)"))
}

/// Copies the libraries that a program needs, and the loader.
fn copy_libraries(sh: &Shell, program: &Path, tree: &Path) -> anyhow::Result<()> {
    let listed = cmd!(sh, "ldd {program}").quiet().read()?;
    for library in listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
    {
        let to = below(tree, Path::new(library));
        if !sh.path_exists(&to) {
            copy(sh, Path::new(library), &to)?;
        }
    }
    Ok(())
}

fn below(tree: &Path, path: &Path) -> PathBuf {
    tree.join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(sh: &Shell, from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        sh.create_dir(parent)?;
    }
    // Links are followed: the guest gets the file itself.
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Packs a tree as a cpio archive, the format that the kernel unpacks.
pub(super) fn pack(tree: &Path, archive: &Path) -> anyhow::Result<()> {
    let list = Command::new("find")
        .arg(".")
        .arg("-print0")
        .current_dir(tree)
        .output()?;
    let mut cpio = Command::new("cpio")
        .args(["--null", "--create", "--quiet", "--format=newc", "--owner=0:0"])
        .current_dir(tree)
        .stdin(Stdio::piped())
        .stdout(File::create(archive)?)
        .spawn()
        .context("start cpio (cargo xtask setup --for kernels installs it)")?;
    cpio.stdin.take().context("cpio's input")?.write_all(&list.stdout)?;
    let status = cpio.wait()?;
    ensure!(status.success(), "cpio: {status}");
    Ok(())
}

/// Prepares the modules, decompressed and listed in loading order.
pub(super) fn modules(sh: &Shell, arch: Arch, kernel: &Kernel) -> anyhow::Result<PathBuf> {
    let tree = directory(arch).join(format!("modules-{}", kernel.release));
    sh.remove_path(&tree)?;
    sh.create_dir(tree.join("guest"))?;
    let (files, release) = (&kernel.files, &kernel.release);
    let mut order: Vec<PathBuf> = Vec::new();
    for module in MODULES {
        let Ok(listed) = cmd!(
            sh,
            "modprobe --dirname {files} --set-version {release} --show-depends {module}"
        )
        .quiet()
        .ignore_stderr()
        .read() else {
            continue;
        };
        for path in listed.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = PathBuf::from(path.split(' ').next().unwrap_or(path));
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    ensure!(!order.is_empty(), "kernel {release} has none of the lab's modules");
    let mut list = String::new();
    for path in order {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .context("a module has a name")?;
        let plain = name.trim_end_matches(".xz");
        let to = tree.join("guest").join(plain);
        if plain == name {
            copy(sh, &path, &to)?;
        } else {
            let unpacked = Command::new("xz")
                .args(["--decompress", "--stdout"])
                .arg(&path)
                .output()?;
            ensure!(unpacked.status.success(), "unpack {}", path.display());
            fs::write(&to, unpacked.stdout)?;
        }
        list.push_str(&format!("/guest/{plain}\n"));
    }
    sh.write_file(tree.join("guest/modules"), list)?;
    let archive = directory(arch).join(format!("modules-{release}.cpio"));
    pack(&tree, &archive)?;
    Ok(archive)
}

/// The guest's initramfs: the shared part and this kernel's modules.
pub(super) fn initramfs(sh: &Shell, arch: Arch, kernel: &Kernel, base: &Path) -> anyhow::Result<PathBuf> {
    let initramfs = directory(arch).join(format!("{}.initramfs", kernel.release));
    concatenate(&[base, &modules(sh, arch, kernel)?], &initramfs)?;
    Ok(initramfs)
}

/// Concatenates archives. The kernel unpacks them one after the other.
pub(super) fn concatenate(parts: &[&Path], whole: &Path) -> anyhow::Result<()> {
    let mut whole = File::create(whole)?;
    for part in parts {
        std::io::copy(&mut File::open(part)?, &mut whole)?;
    }
    Ok(())
}

/// Boots the guest and returns its console output.
pub(super) fn run(arch: Arch, kernel: &Kernel, initramfs: &Path, scope: Scope) -> anyhow::Result<String> {
    let console = directory(arch).join(format!("{}.console", kernel.release));
    let patience = match scope {
        Scope::Brief => PATIENCE,
        Scope::Networks | Scope::Whole => PATIENCE_WHOLE,
    };
    boot(
        arch,
        kernel,
        initramfs,
        &console,
        "mitigations=off rcupdate.rcu_expedited=1 no_timer_check",
        patience,
    )
}

/// Boots a guest that contains only these files, by their paths in the guest, and the modules at `/guest` if wanted. `first` is the init
/// process and its arguments on the kernel's command line.
pub(super) fn run_only(
    sh: &Shell,
    arch: Arch,
    kernel: &Kernel,
    files: &[(&str, &Path)],
    with_modules: bool,
    first: &str,
) -> anyhow::Result<String> {
    let tree = directory(arch).join("only");
    sh.remove_path(&tree)?;
    for (to, from) in files {
        copy(sh, from, &tree.join(to))?;
    }
    let mut archive = directory(arch).join("only.initramfs");
    pack(&tree, &archive)?;
    if with_modules {
        archive = initramfs(sh, arch, kernel, &archive)?;
    }
    let console = directory(arch).join("only.console");
    let text = boot(
        arch,
        kernel,
        &archive,
        &console,
        &format!("rdinit={first}"),
        PATIENCE_ONLY,
    )?;
    // When the init process ends, the kernel panics and prints the process's exit status.
    ensure!(
        text.contains("exitcode=0x00000000"),
        "`{first}` failed as the first process of a guest: see {}",
        console.display()
    );
    Ok(text)
}

pub(super) fn boot(
    arch: Arch,
    kernel: &Kernel,
    initramfs: &Path,
    console: &Path,
    more: &str,
    patience: Duration,
) -> anyhow::Result<String> {
    let (program, machine, serial) = match arch {
        Arch::X86_64 => ("qemu-system-x86_64", "q35", "ttyS0"),
        Arch::Aarch64 => ("qemu-system-aarch64", "virt", "ttyAMA0"),
    };
    let processor = if arch == Arch::X86_64 { "max" } else { "cortex-a72" };
    let begin = Instant::now();
    let mut guest = Command::new(program)
        .args(["-accel", "tcg,thread=multi", "-machine", machine, "-cpu", processor])
        .args([
            "-m",
            "1536",
            "-smp",
            "1",
            "-nographic",
            "-no-reboot",
            "-nodefaults",
            "-nic",
            "none",
        ])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(kernel.image())
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!("console={serial} quiet panic=-1 {more}"))
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {program} (cargo xtask setup --for kernels installs it)"))?;
    let status = loop {
        if let Some(status) = guest.try_wait()? {
            break status;
        }
        if begin.elapsed() > patience {
            guest.kill()?;
            guest.wait()?;
            bail!(
                "the guest did not end within {} s: see {}",
                patience.as_secs(),
                console.display()
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    ensure!(status.success(), "{program}: {status}");
    eprintln!(
        "kernels: guest {} ran for {:.1} s; its console: {}",
        kernel.release,
        begin.elapsed().as_secs_f64(),
        console.display()
    );
    let mut text = Vec::new();
    File::open(console)?.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
