//! Does the systemd unit, as it is shipped, work under a real systemd?
//!
//! The test boots a guest whose root file system is a Debian system made by mmdebstrap, with systemd as PID 1. `systemd/trial.sh` installs
//! the unit as `docs/install.md` describes, and starts, reloads, stops and hangs the service. This module checks the guest's console
//! output.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process;

use anyhow::{Context as _, ensure};
use caps::Capability;
use serde_json::Value;
use xshell::{Shell, cmd};

use super::{Arch, debian, directory, guest};
use crate::run::root;
use crate::toolchain::tools;

/// Packages in addition to Debian's essential set.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,iproute2,kmod,curl";
const LEFT_OUT: [&str; 4] = ["doc", "i18n", "locale", "man"];

/// Disables logins and Debian's timers, and keeps the console free of other output.
const COMMAND_LINE: &str = "rdinit=/lib/systemd/systemd systemd.unit=multi-user.target systemd.show_status=no systemd.getty_auto=no \
    systemd.mask=getty.target systemd.mask=timers.target mitigations=off rcupdate.rcu_expedited=1 no_timer_check";

/// Returns the root file system as a cpio archive. It has the Debian release of the build machine, because the programs are linked with
/// that release's libraries. The archive is built once and reused. To get newer packages, delete the directory `guests` in the tools
/// directory.
pub(super) fn system(sh: &Shell, arch: Arch) -> anyhow::Result<PathBuf> {
    let suite = debian::own_suites()?.swap_remove(0);
    let directory = tools().join("guests");
    let archive = directory.join(format!("systemd-{suite}-{}.cpio", arch.name()));
    let list = archive.with_extension("packages");
    if sh.path_exists(&archive) && sh.read_file(&list).is_ok_and(|have| have == PACKAGES) {
        return Ok(archive);
    }
    sh.create_dir(&directory)?;
    let mirror = debian::mirror(sh, "Debian")?;
    let (tree, new) = [".tree", ".new"]
        .map(|kind| directory.join(format!("{}{kind}", process::id())))
        .into();
    let debian = arch.debian();
    let left_out = &LEFT_OUT.map(|name| format!("--dpkgopt=path-exclude=/usr/share/{name}/*"));
    let made = debian::patiently(|| {
        sh.remove_path(&tree)?;
        cmd!(
            sh,
            "mmdebstrap --quiet --variant=minbase --architectures={debian} --include={PACKAGES} --dpkgopt=force-unsafe-io {left_out...} {suite} {tree} {mirror}"
        )
        .run()?;
        Ok(())
    })
    .and_then(|()| guest::pack(&tree, &new));
    sh.remove_path(&tree)?;
    made.context("make a root file system with systemd (cargo xtask setup --for kernels installs mmdebstrap)")?;
    // Renamed atomically, because concurrent runs look for the archive.
    fs::rename(&new, &archive).with_context(|| format!("rename {}", new.display()))?;
    sh.write_file(&list, PACKAGES)?;
    Ok(archive)
}

/// Boots the guest, and fails if the service differs from the unit file or the documentation. With `deb`, tests the installation from
/// that package.
pub(super) fn trial(sh: &Shell, arch: Arch, deb: Option<&Path>) -> anyhow::Result<()> {
    let kernel = debian::fetch(sh, arch, &"6.1".parse()?)?;
    let system = system(sh, arch)?;
    let tree = directory(arch).join("systemd");
    sh.remove_path(&tree)?;
    sh.create_dir(tree.join("guest"))?;
    for (name, built) in guest::programs(sh, arch)? {
        if ["imds-observer", "imds-observer-lab"].contains(&name.as_str()) {
            let to = tree.join("guest").join(name);
            cmd!(sh, "strip --strip-debug -o {to} {built}").quiet().run()?;
        }
    }
    let (deploy, own) = (root().join("deploy"), root().join("xtask/src/kernels/systemd"));
    let unit = deploy.join("systemd/imds-observer.service");
    for file in [&unit, &deploy.join("imds-observer.toml"), &own.join("trial.sh")] {
        sh.copy_file(file, tree.join("guest"))?;
    }
    if let Some(deb) = deb {
        sh.copy_file(deb, tree.join("guest/imds-observer.deb"))?;
    }
    let units = tree.join("etc/systemd/system");
    sh.create_dir(units.join("multi-user.target.wants"))?;
    sh.copy_file(own.join("trial.service"), &units)?;
    symlink("../trial.service", units.join("multi-user.target.wants/trial.service"))?;
    let archive = directory(arch).join("systemd.cpio");
    guest::pack(&tree, &archive)?;
    let initramfs = directory(arch).join("systemd.initramfs");
    guest::concatenate(&[&system, &archive, &guest::modules(sh, arch, &kernel)?], &initramfs)?;
    let console = directory(arch).join("systemd.console");
    let text = guest::boot(arch, &kernel, &initramfs, &console, COMMAND_LINE, guest::PATIENCE_ONLY)?;
    fs::remove_file(&initramfs)?;
    let said = Said::read(&text);
    said.judge(&fs::read_to_string(unit)?)
        .with_context(|| format!("the unit in a guest with systemd: see {}", console.display()))?;
    let installed = said.get("installed")?;
    let wanted = if deb.is_some() { "package" } else { "by hand" };
    ensure!(installed == wanted, "installation: {installed}, expected: {wanted}");
    eprintln!("{}: {}", said.get("version")?, said.get("exposure")?);
    Ok(())
}

/// Values from the console, by name.
struct Said<'a>(BTreeMap<&'a str, &'a str>);

impl<'a> Said<'a> {
    fn read(console: &'a str) -> Self {
        let reported = console.lines().filter_map(|line| {
            let (_, fact) = line.split_once("@@ ")?;
            Some(fact.trim_end().split_once(' ').unwrap_or((fact.trim_end(), "")))
        });
        Self(reported.collect())
    }

    fn get(&self, name: &str) -> anyhow::Result<&'a str> {
        self.0
            .get(name)
            .copied()
            .with_context(|| format!("{name} was not printed"))
    }

    fn record(&self, kind: &str) -> anyhow::Result<Value> {
        let line = self.get(&format!("record.{kind}"))?;
        let record: Value = serde_json::from_str(line).with_context(|| format!("the record `{kind}`: {line}"))?;
        ensure!(record["record"] == kind, "no record of kind {kind}: {record}");
        Ok(record)
    }

    fn capabilities(&self, set: &str) -> anyhow::Result<Vec<String>> {
        let bits = u64::from_str_radix(self.get(&format!("process.{set}"))?, 16)?;
        Ok(names(|capability| bits & capability.bitmask() != 0))
    }

    /// Checks that everything matches `unit` and the documentation.
    fn judge(&self, unit: &str) -> anyhow::Result<()> {
        ensure!(!self.0.contains_key("failed"), "{}", self.get("failed")?);
        self.get("end")?;
        for (name, wanted) in EXPECTED {
            let reported = self.get(name)?;
            ensure!(reported == *wanted, "{name} is `{reported}` and not `{wanted}`");
        }
        let given = unit
            .lines()
            .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
            .context("the unit has no CapabilityBoundingSet=")?;
        let given = names(|capability| given.split(' ').any(|name| name == capability.to_string()));
        // The observer can't change its bounding set, because that requires CAP_SETPCAP, which the unit doesn't grant. The set is
        // therefore the one that systemd configured.
        let bounding = self.capabilities("CapBnd")?;
        ensure!(
            bounding == given,
            "the unit gives {given:?}, the process has {bounding:?}"
        );
        let (permitted, effective) = (self.capabilities("CapPrm")?, self.capabilities("CapEff")?);
        ensure!(
            permitted == ["CAP_NET_ADMIN"] && effective == permitted,
            "capabilities after start-up: permitted {permitted:?}, effective {effective:?}, expected only CAP_NET_ADMIN"
        );

        let start = self.record("start")?;
        ensure!(
            start["missing"] == Value::Array(Vec::new()),
            "something is missing: {start}"
        );
        let confinement = &start["confinement"];
        ensure!(
            confinement["no_new_privs"] == true && confinement["seccomp"] == true && !confinement["landlock"].is_null(),
            "it is not confined: {confinement}"
        );
        let exchange = self.record("exchange")?;
        let (process, response) = (&exchange["process"], &exchange["response"]);
        ensure!(
            process["comm"] == "curl" && process["cgroup"] == "/system.slice/client.service",
            "the wrong process: {exchange}"
        );
        ensure!(
            exchange["outcome"] == "answered" && response["status"] == 200 && response["ttl"] == 255,
            "the wrong answer: {exchange}"
        );
        ensure!(self.record("summary")?["total"] == true, "no last summary");
        let loss = self.record("loss")?;
        ensure!(
            loss["ring_buffer"] == 0 && loss["unattributed"] == 0,
            "something was lost: {loss}"
        );
        Ok(())
    }
}

fn names(wanted: impl Fn(Capability) -> bool) -> Vec<String> {
    let mut names: Vec<String> = caps::all()
        .into_iter()
        .filter(|capability| wanted(*capability))
        .map(|capability| capability.to_string())
        .collect();
    names.sort_unstable();
    names
}

const EXPECTED: &[(&str, &str)] = &[
    ("start.status", "0"),
    ("start.ActiveState", "active"),
    ("start.SubState", "running"),
    ("start.Type", "notify"),
    ("start.NRestarts", "0"),
    ("start.StatusText", "observing, 1 uplinks"),
    ("start.WatchdogUSec", "30s"),
    ("process.CapInh", "0000000000000000"),
    ("process.CapAmb", "0000000000000000"),
    ("process.NoNewPrivs", "1"),
    // 2: a seccomp filter is active (systemd's and the observer's).
    ("process.Seccomp", "2"),
    ("ready", "200"),
    ("reload.status", "0"),
    ("filtered", "0"),
    ("running.ActiveState", "active"),
    ("running.SubState", "running"),
    ("running.NRestarts", "0"),
    ("running.same", "yes"),
    ("stop.status", "0"),
    ("stop.ActiveState", "inactive"),
    ("stop.SubState", "dead"),
    ("stop.Result", "success"),
    // CLD_EXITED
    ("stop.ExecMainCode", "1"),
    ("stop.ExecMainStatus", "0"),
    ("stop.NRestarts", "0"),
    ("stuck.said", "yes"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_behind_whatever_stands_before_them() {
        let said = Said::read("noise\r\n\u{1b}[0m@@ start.StatusText observing, 1 uplinks\r\n@@ end\r\n");
        assert_eq!(said.get("start.StatusText").unwrap(), "observing, 1 uplinks");
        assert_eq!(said.get("end").unwrap(), "");
        assert!(said.get("stop.status").is_err());
    }

    #[test]
    fn a_trial_that_failed_or_ended_early_is_no_success() {
        assert!(Said::read("@@ failed no sign of life\r\n@@ end\r\n").judge("").is_err());
        assert!(Said::read("@@ start.status 0\r\n").judge("").is_err());
    }
}
