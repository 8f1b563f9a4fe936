//! `test --pristine`: runs the README's commands on a machine without any preparation.
//!
//! The machine is a Debian root file system (mmdebstrap, minbase) with a C compiler, rustup and one stable toolchain, as the README
//! requires. Its mounts are in a mount namespace that ends with the commands, so no mount is left behind.

use std::env;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use xshell::{Shell, cmd};

use crate::kernels::{mirror, own_suite};
use crate::run::{is_root, root, shell, step};
use crate::setup::{self, Group};
use crate::toolchain::{LINKED, cargo_home, tools};

/// Packages that rustup's installer needs, besides Debian's essential ones.
const PACKAGES: &str = "ca-certificates,gcc,libc6-dev";

/// State of the package lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lists {
    Absent,
    /// Lists of the release without its security updates, which contain only a compiler that is too old.
    Stale,
}

/// Extent of the test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// Set-up, build and demo, in three states of the machine.
    Full,
    /// Build, and the built program's offline commands.
    Short,
}

pub(super) fn run(form: Form, suite: Option<&str>) -> anyhow::Result<()> {
    if !is_root() {
        bail!("needs root: it makes root file systems and mounts in them");
    }
    let begin = Instant::now();
    step("setup", || setup::ensure(&[Group::Pristine]))?;
    let sh = shell()?;
    let own = own_suite()?;
    match (form, suite) {
        (Form::Full, Some(suite)) if suite != own => other_release(&sh, suite)?,
        (Form::Full, _) => full(&sh, &own)?,
        (Form::Short, None) => short(&sh)?,
        (Form::Short, Some(_)) => bail!("--suite: only with `--pristine full`"),
    }
    eprintln!("pristine: all of it in {:.0} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// On another Debian release, without package lists: runs the demo, the set-up of the tests, and compiles the eBPF object with the
/// installed tools.
fn other_release(sh: &Shell, suite: &str) -> anyhow::Result<()> {
    let base = step("root file system", || base(sh, suite))?;
    let machine = Machine::new(sh, &base, suite, Lists::Absent)?;
    step(&format!("{suite}: cargo xtask demo"), || {
        machine.run(sh, "cd /clone && cargo xtask demo", true)
    })?;
    step(&format!("{suite}: set-up of the tests"), || {
        machine.run(sh, "cd /clone && cargo xtask setup --for test", true)
    })?;
    step(&format!("{suite}: the eBPF object with what set-up installed"), || {
        machine.run(sh, "cd /clone && cargo xtask ebpf --check", true)
    })?;
    machine.remove(sh)
}

fn full(sh: &Shell, suite: &str) -> anyhow::Result<()> {
    let base = step("root file system", || base(sh, suite))?;

    let machine = Machine::new(sh, &base, "no-lists", Lists::Absent)?;
    step("no package lists: cargo xtask demo", || {
        machine.run(sh, "cd /clone && cargo xtask demo", true)
    })?;
    from_clone_to_demo(sh, &machine)?;
    installed_program(sh, &machine)?;
    package(sh, &machine)?;
    machine.remove(sh)?;

    let machine = Machine::new(sh, &base, "stale-lists", Lists::Stale)?;
    step(
        "stale lists: a compiler that is too old, linked as set-up once did",
        || {
            machine.run(
            sh,
            &format!("apt-get install --yes --no-install-recommends rustc-web rust-web-src && rustup toolchain link {LINKED} /usr"),
            true,
        )?;
            let listed = machine.read(sh, &format!("rustup run {LINKED} rustc --version"), false)?;
            let minor: u32 = listed
                .split('.')
                .nth(1)
                .and_then(|minor| minor.parse().ok())
                .with_context(|| format!("read the version from `{listed}`"))?;
            ensure!(
                minor < 87,
                "this trial shows nothing any more: the old lists offer {listed}"
            );
            Ok(())
        },
    )?;
    step("stale lists, old compiler linked: set-up of demo and test", || {
        machine.run(
            sh,
            "cd /clone && cargo xtask setup --for demo && cargo xtask setup --for test",
            true,
        )
    })?;
    step("the eBPF object with what set-up installed", || {
        machine.run(sh, "cd /clone && cargo xtask ebpf --check", true)
    })?;
    step("a toolchain without sources linked: set-up again", || {
        machine.run(
            sh,
            &format!(
                "rustup toolchain uninstall {LINKED} && rustup toolchain link {LINKED} \"$(rustc --print sysroot)\" && cd /clone && cargo xtask setup --for ebpf && cargo xtask ebpf --check"
            ),
            true,
        )
    })?;
    machine.remove(sh)
}

/// Measures the time of the demo if Debian's packages are installed but nothing else is. Crates are downloaded again.
fn from_clone_to_demo(sh: &Shell, machine: &Machine) -> anyhow::Result<()> {
    const TARGET_S: f64 = 150.0;
    machine.run(sh, "rm -rf /clone/target /root/.cargo/registry /root/.local", false)?;
    let begin = Instant::now();
    step("the demo again, with Debian's packages and without crates", || {
        machine.run(sh, "cd /clone && cargo xtask demo", true)
    })?;
    let took_s = begin.elapsed().as_secs_f64();
    let met = if took_s < TARGET_S { "met" } else { "NOT MET" };
    eprintln!("pristine: from a clone to the demo's end {took_s:.0} s (target: {TARGET_S:.0} s on two cores, {met})");
    Ok(())
}

/// Script that fails if a compiler or linker is present that would hide a missing requirement of the eBPF build.
const ONE_STABLE_COMPILER: &str = "\
    if test -e /usr/bin/rustc || command -v bpf-linker || find /root/.local /root/.cargo -name bpf-linker -type f -executable | grep .; then exit 1; fi
    test \"$(ls /root/.rustup/toolchains | wc -l)\" = 1";

/// Runs `cargo install` with only a stable compiler, and the installed program on live traffic.
fn installed_program(sh: &Shell, machine: &Machine) -> anyhow::Result<()> {
    machine.run(sh, ONE_STABLE_COMPILER, false)?;
    step("cargo install --path imds-observer", || {
        machine.run(sh, "cd /clone && cargo install --locked --path imds-observer", true)
    })?;
    machine.run(sh, ONE_STABLE_COMPILER, false)?;
    step("the installed program in the lab", || {
        machine.run(
            sh,
            "cd /clone && target/debug/imds-observer-demo --observer /root/.cargo/bin/imds-observer --python /root/.local/share/imds-observer-tools/venv/bin/python3 --trace /installed.ndjson",
            true,
        )
    })
}

/// Builds the published packages in an empty directory.
fn package(sh: &Shell, machine: &Machine) -> anyhow::Result<()> {
    // The other package isn't in the registry yet. Dependencies are those that the demo was built with.
    const BUILD: &str = "\
        cd /clone
        cargo package --locked --no-verify --quiet --package imds-observer-common --package imds-observer-standin --package imds-observer
        mkdir /empty
        cd /empty
        for crate in /clone/target/package/*.crate; do tar -xf $crate; done
        cd imds-observer-[0-9]*
        CARGO_PROFILE_DEV_DEBUG=line-tables-only cargo build --target-dir /clone/target --config \"patch.crates-io.imds-observer-common.path='$(echo /empty/imds-observer-common-*)'\" --config \"patch.crates-io.imds-observer-standin.path='$(echo /empty/imds-observer-standin-*)'\"
        /clone/target/debug/imds-observer analyze /installed.ndjson";
    step("the packaged crates in an empty directory", || {
        let found = machine.read(sh, BUILD, true)?;
        ensure!(
            found.contains("token-response-lost"),
            "the packaged crate doesn't find what the trace has:\n{found}"
        );
        Ok(())
    })
}

/// Part of `cargo xtask test`: stale lists, the build, and `doctor` and `analyze` of the built program. Crates that this machine has
/// already downloaded are reused.
pub(super) fn short(sh: &Shell) -> anyhow::Result<()> {
    let base = base(sh, &own_suite()?)?;
    let machine = Machine::new(sh, &base, "short", Lists::Stale)?;
    machine.lend_crates(sh)?;
    let here = |script: &str| machine.run(sh, script, true);
    here(ONE_STABLE_COMPILER)?;
    // The README's command, without the optimizations.
    here(
        "cd /clone && CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 sh -c 'cargo xtask setup && cargo xtask build'",
    )?;
    let doctor = "cd /clone && target/release/imds-observer doctor";
    machine.run(sh, doctor, false)?;
    let found = machine.read(
        sh,
        "cd /clone && target/release/imds-observer analyze imds-observer/tests/traces/lost-token-pod.ndjson",
        false,
    )?;
    ensure!(
        found.contains("token-response-lost"),
        "analyze on a machine that nothing has prepared doesn't find what the trace has:\n{found}"
    );
    machine.remove(sh)
}

/// The root file system that machines are copied from. It is kept in the tools directory; delete it there to get newer packages.
fn base(sh: &Shell, suite: &str) -> anyhow::Result<Base> {
    let made = |tree| Base {
        suite: suite.to_owned(),
        tree,
    };
    let base = tools().join("guests").join(format!("pristine-{suite}"));
    let list = base.with_extension("packages");
    if base.is_dir() && sh.read_file(&list).is_ok_and(|have| have == PACKAGES) {
        return Ok(made(base));
    }
    let mirror = mirror(sh, "Debian")?;
    let new = base.with_extension(format!("{}.new", std::process::id()));
    sh.create_dir(tools().join("guests"))?;
    cmd!(
        sh,
        "mmdebstrap --quiet --variant=minbase --include={PACKAGES} --dpkgopt=force-unsafe-io {suite} {new} {mirror}"
    )
    .run()
    .context("make a root file system")?;
    sh.remove_path(&base)?;
    fs::rename(&new, &base).with_context(|| format!("rename {}", new.display()))?;
    sh.write_file(&list, PACKAGES)?;
    Ok(made(base))
}

/// A root file system that machines are copied from.
struct Base {
    suite: String,
    tree: PathBuf,
}

/// A root file system with rustup, one toolchain, and the sources at `/clone`.
struct Machine {
    tree: PathBuf,
    /// This machine's toolchain, which is mounted in the other.
    toolchain: PathBuf,
}

impl Machine {
    fn new(sh: &Shell, base: &Base, name: &str, lists: Lists) -> anyhow::Result<Self> {
        let tree = root().join("target/pristine").join(name);
        sh.remove_path(&tree)?;
        sh.create_dir(root().join("target/pristine"))?;
        let from = &base.tree;
        cmd!(sh, "cp --archive --reflink=auto {from} {tree}").run()?;
        for file in [
            "etc/resolv.conf",
            "etc/hosts",
            "etc/pip.conf",
            "etc/ssl/certs/ca-certificates.crt",
        ] {
            let (from, to) = (Path::new("/").join(file), tree.join(file));
            if from.is_file() {
                sh.remove_path(&to)?;
                fs::copy(&from, &to).with_context(|| format!("copy {file}"))?;
            }
        }
        let toolchain = PathBuf::from(cmd!(sh, "rustc --print sysroot").quiet().read()?);
        let machine = Self { tree, toolchain };
        machine.rustup(sh)?;
        machine.clone(sh)?;
        machine.lists(sh, &base.suite, lists)?;
        Ok(machine)
    }

    fn name_of_toolchain(&self) -> anyhow::Result<&str> {
        let name = self.toolchain.file_name().and_then(|name| name.to_str());
        name.context("the toolchain's directory has a name")
    }

    fn rustup(&self, sh: &Shell) -> anyhow::Result<()> {
        let bin = self.tree.join("root/.cargo/bin");
        sh.create_dir(&bin)?;
        let rustup = cargo_home().join("bin/rustup");
        sh.copy_file(&rustup, &bin)
            .with_context(|| format!("copy {} (is Rust here from rustup?)", rustup.display()))?;
        for proxy in ["cargo", "rustc"] {
            symlink("rustup", bin.join(proxy))?;
        }
        let home = self.tree.join("root/.rustup");
        let name = self.name_of_toolchain()?;
        sh.create_dir(home.join("toolchains").join(name))?;
        let settings =
            format!("version = \"12\"\nprofile = \"minimal\"\ndefault_toolchain = \"{name}\"\n\n[overrides]\n");
        sh.write_file(home.join("settings.toml"), settings)?;
        Ok(())
    }

    /// Copies the files that git tracks or would add, as they are on disk, so that uncommitted changes are tested too.
    fn clone(&self, sh: &Shell) -> anyhow::Result<()> {
        let to = self.tree.join("clone");
        sh.create_dir(&to)?;
        let script = "git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract --directory=\"$1\"";
        cmd!(sh, "sh -eu -c {script} sh {to}").quiet().run()?;
        Ok(())
    }

    /// Writes the apt sources of the release and of its security updates, with this machine's mirrors.
    fn lists(&self, sh: &Shell, suite: &str, lists: Lists) -> anyhow::Result<()> {
        let (release, security) = (mirror(sh, "Debian")?, mirror(sh, "Debian-Security")?);
        let release = format!("deb {release} {suite} main\n");
        let both = format!("{release}deb {security} {suite}-security main\n");
        let sources = self.tree.join("etc/apt/sources.list");
        if lists == Lists::Stale {
            sh.write_file(&sources, release)?;
            self.run(sh, "apt-get update", true)?;
        }
        sh.write_file(&sources, both)?;
        Ok(())
    }

    /// Copies crates that this machine has already downloaded, so that they are not downloaded again.
    fn lend_crates(&self, sh: &Shell) -> anyhow::Result<()> {
        let to = self.tree.join("root/.cargo/registry");
        sh.create_dir(&to)?;
        for part in ["cache", "index"] {
            let from = cargo_home().join("registry").join(part);
            if from.is_dir() {
                cmd!(sh, "cp --archive --reflink=auto {from} {to}").run()?;
            }
        }
        Ok(())
    }

    /// Runs a script in the machine; without `network`, in an empty network namespace.
    fn run(&self, sh: &Shell, script: &str, network: bool) -> anyhow::Result<()> {
        let (program, arguments) = self.command(script, network)?;
        cmd!(sh, "{program} {arguments...}")
            .quiet()
            .run()
            .with_context(|| format!("`{script}` in {}", self.tree.display()))
    }

    fn read(&self, sh: &Shell, script: &str, network: bool) -> anyhow::Result<String> {
        let (program, arguments) = self.command(script, network)?;
        cmd!(sh, "{program} {arguments...}")
            .quiet()
            .read()
            .with_context(|| format!("`{script}` in {}", self.tree.display()))
    }

    fn command(&self, script: &str, network: bool) -> anyhow::Result<(&'static str, Vec<String>)> {
        const MOUNTS: &str = r#"
            tree=$1 from=$2 to=$3 script=$4
            shift 4
            for directory in proc sys dev; do mount --rbind "/$directory" "$tree/$directory"; done
            mount -t tmpfs -o mode=755 run "$tree/run"
            mount --bind -o ro "$from" "$tree$to"
            exec chroot "$tree" /usr/bin/env -i "$@" sh -eu -c "$script"
        "#;
        let mut arguments: Vec<String> = ["--mount", "--propagation", "private"].map(str::to_owned).into();
        if !network {
            arguments.push("--net".to_owned());
        }
        let from = self.toolchain.display().to_string();
        let to = format!("/root/.rustup/toolchains/{}", self.name_of_toolchain()?);
        let tree = self.tree.display().to_string();
        arguments.extend(["sh", "-eu", "-c", MOUNTS, "sh", &tree, &from, &to, script].map(str::to_owned));
        arguments.extend(
            [
                "HOME=/root",
                "PATH=/root/.cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=dumb",
                "RUSTUP_AUTO_INSTALL=0",
                "CARGO_INCREMENTAL=0",
            ]
            .map(str::to_owned),
        );
        // Settings with which this machine reaches mirrors and registries.
        arguments.extend(
            env::vars()
                .filter(|(name, _)| is_about_network(name))
                .map(|(name, value)| format!("{name}={value}")),
        );
        Ok(("unshare", arguments))
    }

    fn remove(self, sh: &Shell) -> anyhow::Result<()> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
        let tree = self.tree.display().to_string();
        ensure!(!mounts.contains(&tree), "something is still mounted in {tree}");
        sh.remove_path(&self.tree)?;
        Ok(())
    }
}

fn is_about_network(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with("_proxy")
        || [
            "PIP_",
            "CARGO_HTTP_",
            "CARGO_NET_",
            "CARGO_REGISTRIES_",
            "CARGO_SOURCE_",
            "SSL_CERT_",
        ]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}
