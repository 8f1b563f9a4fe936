//! Where can requests be joined with processes?

use std::fs;
use std::path::Path;

use super::check::{Check, CheckState};
use crate::bpf::cgroup2_mount;

const NAME: &str = "cgroup2";

pub(super) fn checks(wanted: Option<&Path>) -> Vec<Check> {
    let mounts = match fs::read_to_string("/proc/self/mounts") {
        Ok(mounts) => mounts,
        Err(error) => return vec![Check::unread(NAME, format!("/proc/self/mounts: {error}"))],
    };
    let found = mounts_in(&mounts);
    let usable = wanted.is_some() || cgroup2_mount().is_some();
    let mut checks = vec![of(&found, usable)];
    if let Some(path) = wanted.filter(|path| !path.join("cgroup.procs").exists()) {
        checks.push(
            Check::new(NAME, CheckState::Missing, "not a cgroup2 directory")
                .about(&path.display())
                .blinding("everything: eBPF programs can't be attached there")
                .remedied("Name a directory below a cgroup2 mount with --cgroup.", []),
        );
    }
    checks
}

/// `usable`: one shows the hierarchy from its root.
fn of(mounts: &[String], usable: bool) -> Check {
    let found = if mounts.is_empty() {
        "not mounted".to_owned()
    } else {
        mounts.join(", ")
    };
    let blinds = "everything: requests can't be attributed to processes";
    if mounts.is_empty() {
        return Check::new(NAME, CheckState::Missing, found).blinding(blinds).remedied(
            "Mount it, and name the directory with --cgroup.",
            ["mount -t cgroup2 none /mnt/cgroup2".to_owned()],
        );
    }
    if !usable {
        return Check::new(
            NAME,
            CheckState::Missing,
            format!("{found}, which shows only a part of the hierarchy"),
        )
        .blinding(blinds)
        .remedied(
            "Mount the host's /sys/fs/cgroup into this container, or use the host's cgroup namespace.",
            [],
        );
    }
    Check::ok(NAME, found)
}

fn mounts_in(mounts: &str) -> Vec<String> {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| point.to_owned())
    };
    mounts.lines().filter_map(mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_and_parts_distinguished() {
        let mounts =
            "tmpfs /run tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /c cgroup rw 0 0\n";
        let found = mounts_in(mounts);
        assert_eq!(found, ["/sys/fs/cgroup/unified"]);
        assert_eq!(of(&found, true).state, CheckState::Ok);
        assert_eq!(of(&found, false).state, CheckState::Missing);
        assert_eq!(of(&[], false).state, CheckState::Missing);
    }
}
