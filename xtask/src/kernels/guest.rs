//! What is in the guest, and running it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use xshell::{Shell, cmd};

use super::debian::Kernel;
use super::{Arch, directory};

/// Test targets that run in a guest: what the kernel gives, and with `whole` what the program makes of it.
const KERNEL_TARGETS: &[&str] = &["live_kernel"];
const WHOLE_TARGETS: &[&str] = &["live_kernel", "live"];

/// Tests that need what a guest doesn't have: Python with a real SDK.
const SKIPPED: &[&str] = &[
    "a_lost_token_response_in_a_pod_is_proven_and_explained",
    "hop_limit_1_alone_is_no_finding_for_a_host_process",
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
];

/// Names under which the guest finds them too.
const ALIASES: &[(&str, &str)] = &[
    ("iptables", "iptables-legacy"),
    ("ip6tables", "ip6tables-legacy"),
    ("sh", "dash"),
];

/// What the lab's networks and firewalls are made of. Names that a kernel lacks are left out: 5.10 has counters of
/// nftables as a module, later ones have built them in.
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
];

/// Longest that a guest may take; it watches its own tests more closely.
const PATIENCE: Duration = Duration::from_secs(600);

/// The part of the initramfs that all kernels of an architecture share.
pub(super) fn base(sh: &Shell, arch: Arch, whole: bool) -> anyhow::Result<PathBuf> {
    if arch == Arch::Aarch64 {
        bail!("aarch64 guests are not built yet");
    }
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
    for (name, built) in programs(sh, arch, whole)? {
        let to = match name.as_str() {
            "imds-observer-guest" => tree.join("init"),
            // Where its tests look for it: the path is fixed when they are compiled.
            "imds-observer" => below(&tree, &built),
            "imds-observer-lab" => tree.join("guest/target").join(name),
            name => tree.join("guest/target/deps").join(name),
        };
        copy(sh, &built, &to)?;
    }
    for program in PROGRAMS {
        let path = find(sh, program)?;
        copy(sh, &path, &tree.join("usr/bin").join(program))?;
        for library in libraries(sh, &path)? {
            copy(sh, &library, &below(&tree, &library))?;
        }
    }
    for (alias, program) in ALIASES {
        std::os::unix::fs::symlink(program, tree.join("usr/bin").join(alias))?;
    }
    // iptables' own extensions are loaded by name.
    let extensions = PathBuf::from(format!("/usr/lib/{}-linux-gnu/xtables", arch.name()));
    for extension in sh.read_dir(&extensions).context("list iptables' extensions")? {
        copy(sh, &extension, &below(&tree, &extension))?;
    }
    sh.write_file(tree.join("guest/skip"), SKIPPED.join("\n"))?;
    let archive = directory(arch).join("base.cpio");
    pack(&tree, &archive)?;
    Ok(archive)
}

/// Builds for the guest: name and path of each program. Static: the guest has no loader of ours.
fn programs(sh: &Shell, arch: Arch, whole: bool) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let target = arch.target();
    let targets = if whole { WHOLE_TARGETS } else { KERNEL_TARGETS };
    let tests: Vec<&str> = targets.iter().flat_map(|name| ["--test", name]).collect();
    let flags = "-C target-feature=+crt-static -C strip=symbols";
    let mut found = Vec::new();
    for command in [
        cmd!(
            sh,
            "cargo build --locked --target {target} --package imds-observer-lab --bins --message-format json-render-diagnostics"
        ),
        cmd!(
            sh,
            "cargo test --locked --target {target} --package imds-observer {tests...} --no-run --message-format json-render-diagnostics"
        ),
    ] {
        let output = command.env("RUSTFLAGS", flags).read()?;
        for line in output.lines() {
            let message: serde_json::Value = serde_json::from_str(line).context("read what cargo built")?;
            if message["reason"] == "compiler-artifact"
                && let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str())
            {
                found.push((name.to_owned(), PathBuf::from(path)));
            }
        }
    }
    ensure!(
        found.iter().any(|(name, _)| name == "imds-observer-guest"),
        "cargo built no guest"
    );
    Ok(found)
}

fn find(sh: &Shell, program: &str) -> anyhow::Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| sh.path_exists(path))
        .with_context(|| format!("find {program} for the guest (cargo xtask setup --for kernels installs it)"))
}

/// The libraries that a program asks for, and the loader.
fn libraries(sh: &Shell, program: &Path) -> anyhow::Result<BTreeSet<PathBuf>> {
    let listed = cmd!(sh, "ldd {program}").quiet().read()?;
    Ok(listed
        .lines()
        .filter_map(|line| {
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(PathBuf::from)
        })
        .collect())
}

fn below(tree: &Path, path: &Path) -> PathBuf {
    tree.join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(sh: &Shell, from: &Path, to: &Path) -> anyhow::Result<()> {
    if let Some(parent) = to.parent() {
        sh.create_dir(parent)?;
    }
    // Through links: the guest has the file itself.
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// A tree as a cpio archive, which is what the kernel unpacks.
fn pack(tree: &Path, archive: &Path) -> anyhow::Result<()> {
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

/// Modules, unpacked and in loading order.
fn modules(sh: &Shell, arch: Arch, kernel: &Kernel) -> anyhow::Result<PathBuf> {
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
    let archive = tree.with_extension("cpio");
    pack(&tree, &archive)?;
    Ok(archive)
}

/// Boots the guest and gives what it wrote to its console.
pub(super) fn run(sh: &Shell, arch: Arch, kernel: &Kernel, base: &Path) -> anyhow::Result<String> {
    let initramfs = directory(arch).join(format!("{}.initramfs", kernel.release));
    let mut whole = File::create(&initramfs)?;
    // The kernel takes archives one behind the other.
    for part in [base, &modules(sh, arch, kernel)?] {
        std::io::copy(&mut File::open(part)?, &mut whole)?;
    }
    drop(whole);
    let console = directory(arch).join(format!("{}.console", kernel.release));
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
            "2",
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
        .arg(&initramfs)
        .arg("-append")
        .arg(format!("console={serial} quiet panic=-1 mitigations=off"))
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("start {program} (cargo xtask setup --for kernels installs it)"))?;
    let status = loop {
        if let Some(status) = guest.try_wait()? {
            break status;
        }
        if begin.elapsed() > PATIENCE {
            guest.kill()?;
            guest.wait()?;
            bail!(
                "the guest did not end within {} s: see {}",
                PATIENCE.as_secs(),
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
    File::open(&console)?.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
