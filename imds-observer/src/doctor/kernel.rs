//! Which of the kernel's features that the observer builds on are there?

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use super::check::{Check, CheckState};

const BTF: &str = "/sys/kernel/btf/vmlinux";

pub(super) fn checks(release: Option<&str>) -> Vec<Check> {
    let version = release.and_then(version);
    vec![
        since(
            "ring-buffer",
            version,
            (5, 8),
            "everything: the observer can't run",
            "Run kernel 5.8 or newer.",
        ),
        btf(Path::new(BTF)),
        since(
            "drop-reasons",
            version,
            (5, 17),
            "drop reasons; drop locations are still recorded",
            "Run kernel 5.17 or newer.",
        ),
        tcx(version),
        tracefs(),
        perf_events(),
        kernel_symbols(),
        lockdown(),
        unprivileged_bpf(),
    ]
}

/// `6.1.0-25-cloud-amd64` -> (6, 1).
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn since(name: &str, version: Option<(u32, u32)>, needed: (u32, u32), blinds: &str, remedy: &str) -> Check {
    match version {
        Some(version) => {
            let found = format!("kernel {}.{}, needs {}.{}", version.0, version.1, needed.0, needed.1);
            Check::needed(name, version >= needed, found, blinds, remedy)
        }
        None => Check::unread(name, "the kernel's version can't be read"),
    }
}

/// Without it everything is visible, unless another tool's program runs first.
fn tcx(version: Option<(u32, u32)>) -> Check {
    let check = since("tcx", version, (6, 6), "", "");
    if check.state != CheckState::Missing {
        return check;
    }
    Check::new("tcx", CheckState::Note, check.found).meaning(
        "programs are attached to uplinks through clsact instead; another tool's filter with priority 1 may handle packets first",
    )
}

fn btf(path: &Path) -> Check {
    let (name, remedy) = ("btf", "Run a kernel built with CONFIG_DEBUG_INFO_BTF.");
    let blinds =
        "executable, command line, ancestors and cgroup of short-lived processes; dropped packets; socket outcomes";
    match fs::File::open(path) {
        Ok(_) => Check::ok(name, path.display().to_string()),
        Err(error) => Check::needed(name, false, format!("{}: {error}", path.display()), blinds, remedy),
    }
}

fn tracefs() -> Check {
    let mounted = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .into_iter()
        .find(|path| Path::new(path).join("events").exists());
    let name = "tracefs";
    match mounted {
        Some(path) => Check::ok(name, path),
        None => Check::new(name, CheckState::Missing, "not mounted, or not readable")
            .blinding("the error that connect() returned, unless fexit or sys_exit tracing is available")
            .remedied(
                "Mount tracefs. In a container, mount the host's.",
                ["mount -t tracefs tracefs /sys/kernel/tracing".to_owned()],
            ),
    }
}

fn perf_events() -> Check {
    let (name, path) = ("perf-event-paranoid", "/proc/sys/kernel/perf_event_paranoid");
    let value = match fs::read_to_string(path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) => return Check::unread(name, format!("{path}: {error}")),
    };
    match value.parse::<i32>() {
        Ok(level) if level > 2 => Check::new(name, CheckState::Note, value)
            .meaning(
                "above 2, Debian's kernels require CAP_SYS_ADMIN for tracepoints; errors of connect() are read through fexit or sys_exit instead",
            ),
        Ok(_) => Check::ok(name, value),
        Err(_) => Check::unread(name, format!("{path} holds {value:?}")),
    }
}

fn kernel_symbols() -> Check {
    let name = "kernel-symbols";
    let mut first = String::new();
    let read = fs::File::open("/proc/kallsyms").and_then(|file| BufReader::new(file).read_line(&mut first));
    let shown = read.is_ok()
        && first
            .split(' ')
            .next()
            .is_some_and(|address| address.bytes().any(|byte| byte.is_ascii_hexdigit() && byte != b'0'));
    Check::needed(
        name,
        shown,
        if shown {
            "/proc/kallsyms shows addresses"
        } else {
            "/proc/kallsyms hides addresses"
        },
        "the kernel function that dropped a packet",
        "Add CAP_SYSLOG, or set kernel.kptr_restrict to 0.",
    )
}

fn lockdown() -> Check {
    let name = "lockdown";
    match fs::read_to_string("/sys/kernel/security/lockdown") {
        Ok(text) => {
            let mode = text.split(['[', ']']).nth(1).unwrap_or("unknown");
            // "integrity" still lets BPF read kernel memory.
            Check::needed(
                name,
                mode != "confidentiality",
                mode,
                "process facts and drops: eBPF programs may not read kernel memory",
                "Boot with lockdown=integrity.",
            )
        }
        Err(_) => Check::ok(name, "not built in, or securityfs is not mounted"),
    }
}

fn unprivileged_bpf() -> Check {
    let (name, path) = ("unprivileged-bpf", "/proc/sys/kernel/unprivileged_bpf_disabled");
    match fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("0") => Check::new(name, CheckState::Note, "enabled")
            .meaning("any user may load eBPF socket filters; the observer doesn't need this"),
        Ok(value) => Check::ok(name, format!("disabled ({value})")),
        Err(error) => Check::unread(name, format!("{path}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.1.0-25-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("5.10"), Some((5, 10)));
        assert_eq!(version("unreal"), None);
    }

    #[test]
    fn what_is_missing_says_what_it_blinds() {
        let old = since("drop-reasons", Some((5, 10)), (5, 17), "why", "newer");
        assert_eq!((old.state, old.blinds.as_deref()), (CheckState::Missing, Some("why")));
        let new = since("drop-reasons", Some((7, 0)), (5, 17), "why", "newer");
        assert_eq!((new.state, new.blinds), (CheckState::Ok, None));
        assert_eq!(since("x", None, (6, 6), "", "").state, CheckState::Unknown);
        assert_eq!(tcx(Some((6, 1))).state, CheckState::Note);
        assert_eq!(btf(Path::new("/nonexistent")).state, CheckState::Missing);
    }
}
