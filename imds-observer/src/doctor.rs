//! What this kernel and host let the observer see. Reads files and routing tables; sends no packet and changes nothing.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use nix::sys::utsname::uname;
use serde::Serialize;

use crate::host::routes::{Routed, Routing};

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    Missing,
    /// Can't be told from here.
    Unknown,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: String,
    pub state: State,
    /// What was seen.
    pub found: String,
    /// What it means for the observer or for IMDS, where something is missing.
    pub means: Option<String>,
}

/// All checks of one host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub version: &'static str,
    pub kernel: Option<String>,
    pub checks: Vec<Check>,
}

impl Report {
    pub fn of_this_host(endpoints: &[IpAddr]) -> Self {
        let kernel = uname().ok().map(|name| name.release().to_string_lossy().into_owned());
        let mut checks = vec![btf()];
        let version = kernel.as_deref().and_then(kernel_version);
        checks.extend([
            since(
                "ring-buffer",
                version,
                (5, 8),
                "the observer can't run: it needs kernel 5.8 or newer",
            ),
            since("drop-reasons", version, (5, 17), "`drop` records have no `reason`"),
            since(
                "tcx",
                version,
                (6, 6),
                "uplinks are attached through clsact, behind programs that others attached before",
            ),
            cgroup2(),
            tracefs(),
            lockdown(),
            kernel_symbols(),
        ]);
        checks.extend(capabilities());
        checks.extend(endpoints.iter().map(|endpoint| endpoint_route(*endpoint)));
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel,
            checks,
        }
    }
}

fn check(name: &str, ok: bool, found: impl Into<String>, means: &str) -> Check {
    Check {
        name: name.to_owned(),
        state: if ok { State::Ok } else { State::Missing },
        found: found.into(),
        means: (!ok).then(|| means.to_owned()),
    }
}

fn unknown(name: &str, found: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        state: State::Unknown,
        found: found.into(),
        means: None,
    }
}

/// `6.1.0-25-cloud-amd64` -> (6, 1).
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn since(name: &str, version: Option<(u32, u32)>, needed: (u32, u32), means: &str) -> Check {
    match version {
        Some(version) => {
            let found = format!("kernel {}.{}, needs {}.{}", version.0, version.1, needed.0, needed.1);
            check(name, version >= needed, found, means)
        }
        None => unknown(name, "the kernel's version can't be read"),
    }
}

fn btf() -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    check(
        "btf",
        Path::new(path).exists(),
        path,
        "no process facts and no drops: the kernel's layout is unknown (a kernel with CONFIG_DEBUG_INFO_BTF has it)",
    )
}

fn cgroup2() -> Check {
    let name = "cgroup2";
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else {
        return unknown(name, "/proc/self/mounts can't be read");
    };
    let found = cgroup2_mounts(&mounts);
    let text = if found.is_empty() {
        "not mounted".to_owned()
    } else {
        found.join(", ")
    };
    check(
        name,
        !found.is_empty(),
        text,
        "requests can't be joined with processes (mount -t cgroup2 none DIRECTORY, then --cgroup DIRECTORY)",
    )
}

fn cgroup2_mounts(mounts: &str) -> Vec<String> {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| point.to_owned())
    };
    mounts.lines().filter_map(mount).collect()
}

fn tracefs() -> Check {
    let mounted = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .find(|path| Path::new(path).join("events").exists());
    check(
        "tracefs",
        mounted.is_some(),
        mounted.unwrap_or("not mounted, or not readable"),
        "the errno of connect() can't be had from its tracepoint (mount -t tracefs nodev /sys/kernel/tracing)",
    )
}

fn lockdown() -> Check {
    let name = "lockdown";
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(text) => {
            let mode = text.split(['[', ']']).nth(1).unwrap_or("unknown").to_owned();
            // "integrity" still lets BPF read kernel memory.
            let ok = mode != "confidentiality";
            check(
                name,
                ok,
                mode,
                "no process facts and no drops: BPF may not read kernel memory",
            )
        }
        Err(_) => check(name, true, "not built in, or securityfs is not mounted", ""),
    }
}

fn kernel_symbols() -> Check {
    let first = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
    let hidden = first
        .lines()
        .next()
        .and_then(|line| line.split(' ').next())
        .is_none_or(|address| address.bytes().all(|byte| byte == b'0'));
    check(
        "kernel-symbols",
        !hidden,
        if hidden {
            "/proc/kallsyms hides addresses"
        } else {
            "/proc/kallsyms shows addresses"
        },
        "`drop` records have no `location` (needs CAP_SYSLOG, or kernel.kptr_restrict 0 or 1)",
    )
}

/// Name, number in `linux/capability.h`, and what is blind without it.
const CAPABILITIES: [(&str, u32, &str); 4] = [
    ("CAP_BPF", 39, "nothing can be observed: programs can't be loaded"),
    (
        "CAP_PERFMON",
        38,
        "no process facts and no drops: programs can't read kernel memory",
    ),
    (
        "CAP_NET_ADMIN",
        12,
        "nothing is seen at cgroups and uplinks: programs can't be attached",
    ),
    (
        "CAP_SYS_PTRACE",
        19,
        "processes that were there before the observer are known by name only",
    ),
];
const CAP_SYS_ADMIN: u32 = 21;

fn capabilities() -> Vec<Check> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let Some(effective) = effective_capabilities(&status) else {
        return vec![unknown("capabilities", "/proc/self/status can't be read")];
    };
    let has = |number: u32| effective & 1 << number != 0;
    CAPABILITIES
        .iter()
        .map(|(name, number, means)| {
            // CAP_SYS_ADMIN included what CAP_BPF and CAP_PERFMON were split off from.
            let through_admin = *number >= 38 && has(CAP_SYS_ADMIN);
            let found = match (has(*number), through_admin) {
                (true, _) => "held",
                (false, true) => "held through CAP_SYS_ADMIN",
                (false, false) => "not held by this process",
            };
            check(name, has(*number) || through_admin, found, means)
        })
        .collect()
}

fn effective_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn endpoint_route(endpoint: IpAddr) -> Check {
    let name = format!("route {endpoint}");
    let routed = Routing::open().and_then(|mut routing| routing.route_to(endpoint));
    match routed {
        Ok(Routed::Through(hop)) => {
            let interface = nix::net::if_::if_indextoname(hop.ifindex)
                .map_or_else(|_| hop.ifindex.to_string(), |name| name.to_string_lossy().into_owned());
            let way = hop
                .gateway
                .map_or_else(|| "on-link".to_owned(), |gateway| format!("via {gateway}"));
            check(&name, true, format!("{way} on {interface}"), "")
        }
        Ok(Routed::Local) => check(
            &name,
            false,
            "this host's own address",
            "something here answers in the place of IMDS",
        ),
        Ok(Routed::Refused(errno)) => check(
            &name,
            false,
            nix::errno::Errno::from_raw(errno).desc(),
            if endpoint.is_ipv4() {
                "clients fail at once (see `ip route get` and `ip rule`)"
            } else {
                "clients that try IPv6 fail at once; those that use IPv4 aren't concerned"
            },
        ),
        Err(error) => unknown(&name, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_mounts_and_capabilities_are_read() {
        assert_eq!(kernel_version("6.1.0-25-cloud-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("5.10"), Some((5, 10)));
        assert_eq!(kernel_version("unreal"), None);
        let mounts =
            "tmpfs /run tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\ncgroup /c cgroup rw 0 0\n";
        assert_eq!(cgroup2_mounts(mounts), ["/sys/fs/cgroup/unified"]);
        assert_eq!(
            effective_capabilities("Name:\tx\nCapEff:\t0000000000001000\n"),
            Some(1 << 12)
        );
        assert_eq!(effective_capabilities("CapEff:\tzz\n"), None);
    }

    #[test]
    fn what_is_missing_says_what_it_means() {
        let old = since("tcx", Some((6, 1)), (6, 6), "clsact");
        assert_eq!((old.state, old.means.as_deref()), (State::Missing, Some("clsact")));
        let new = since("tcx", Some((7, 0)), (6, 6), "clsact");
        assert_eq!((new.state, new.means), (State::Ok, None));
        assert_eq!(since("tcx", None, (6, 6), "clsact").state, State::Unknown);
    }
}
