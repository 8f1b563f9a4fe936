//! Why can the observer not start, and why was a program refused?

use std::io;
use std::path::Path;

use aya::programs::ProgramError;
use aya::util::KernelVersion;
use imds_observer_common::MAX_ENDPOINTS;
use thiserror::Error;

use super::occupied::{CgroupHook, exclusive_holder};
use crate::host::capabilities::{self, Held, Needed};

/// Why the observer can't start.
#[derive(Debug, Error)]
pub enum KernelError {
    #[error(
        "no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /mnt/cgroup2` and name it with --cgroup"
    )]
    NoCgroup2,
    #[error("find the cgroup v2 hierarchy in /proc/self/mountinfo: {0}")]
    Mounts(io::Error),
    #[error("open cgroup {path}: {source}")]
    Cgroup { path: String, source: io::Error },
    #[error("{family} endpoints: at most {MAX_ENDPOINTS} can be observed")]
    TooManyEndpoints { family: &'static str },
    #[error("load the eBPF object: {}", explain(.0))]
    Load(aya::EbpfError),
    #[error(
        "load the eBPF object: the limit of {kib} KiB of locked memory (RLIMIT_MEMLOCK) is too low, and this kernel charges eBPF maps against it (raise it with LimitMEMLOCK=infinity or ulimit -l unlimited, or add CAP_SYS_RESOURCE)"
    )]
    LockedMemory { kib: u64 },
    #[error("load the eBPF object: this process lacks {0} (run as root, or add the capability)")]
    Needed(&'static str),
    #[error("map {name}: {source}")]
    Map {
        name: &'static str,
        source: aya::maps::MapError,
    },
    #[error("map {0} is not in the object")]
    NoMap(&'static str),
    #[error("{hook} at {target}: {why} ({hint})")]
    Attach {
        hook: &'static str,
        target: String,
        why: String,
        hint: &'static str,
    },
}

/// Names the required capability that may be missing, for error messages.
fn rights_hint() -> &'static str {
    let lacks = |right: &Needed| right.held() == Some(Held::No);
    if lacks(&capabilities::BPF) {
        "this process lacks CAP_BPF: run as root, or add the capability"
    } else if lacks(&capabilities::PERFMON) {
        "this process lacks CAP_PERFMON: run as root, or add the capability"
    } else if lacks(&capabilities::NET_ADMIN) {
        "this process lacks CAP_NET_ADMIN: run as root, or add the capability"
    } else {
        "needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    }
}

pub(super) fn attach_error(hook: &'static str, target: &str, error: &ProgramError) -> KernelError {
    KernelError::Attach {
        hook,
        target: target.to_owned(),
        why: explain(error),
        hint: rights_hint(),
    }
}

/// Reason for a refusal at a cgroup: EPERM is a missing capability, or another tool that keeps it to itself.
pub(super) fn cgroup_why(cgroup: &Path, hook: CgroupHook, error: &ProgramError) -> String {
    let why = explain(error);
    if errno(error) == Some(libc::EPERM)
        && let Some(holder) = exclusive_holder(cgroup, hook)
    {
        return format!("{why}: {holder}");
    }
    why
}

pub(super) fn cgroup_error(hook: &'static str, cgroup: &Path, kind: CgroupHook, error: &ProgramError) -> KernelError {
    let why = cgroup_why(cgroup, kind, error);
    let hint = if why.ends_with("exclusively") {
        "have that tool attach with BPF_F_ALLOW_MULTI, or name a cgroup beside it with --cgroup"
    } else {
        rights_hint()
    };
    KernelError::Attach {
        hook,
        target: cgroup.display().to_string(),
        why,
        hint,
    }
}

/// Reasons for which a tracepoint is refused though the program was loaded.
pub(super) fn tracepoint_why(error: &ProgramError) -> String {
    let why = explain(error);
    match errno(error) {
        Some(libc::EACCES | libc::EPERM) => {
            let paranoid = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
            format!(
                "{why} (kernel.perf_event_paranoid is {}: above 2, Debian's kernels give tracepoints to CAP_SYS_ADMIN only)",
                paranoid.trim()
            )
        }
        Some(libc::ENOENT) => format!("{why} (is tracefs mounted? mount -t tracefs tracefs /sys/kernel/tracing)"),
        _ => why,
    }
}

/// The system's error at the end of a chain.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut cause = Some(error);
    let mut found = None;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            found = io.raw_os_error().or(found);
        }
        cause = error.source();
    }
    found
}

/// Up to 5.10 the kernel counts maps and programs as locked memory and returns EPERM, as it does for a missing capability.
pub(super) fn load_error(error: aya::EbpfError) -> KernelError {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    if errno(&error) == Some(libc::EPERM)
        && KernelVersion::current().is_ok_and(|running| running < KernelVersion::new(5, 11, 0))
        && let Ok((soft, _)) = getrlimit(Resource::RLIMIT_MEMLOCK)
        && soft != RLIM_INFINITY
    {
        return KernelError::LockedMemory { kib: soft >> 10 };
    }
    if matches!(errno(&error), Some(libc::EPERM | libc::EACCES)) && capabilities::BPF.held() == Some(Held::No) {
        return KernelError::Needed("CAP_BPF");
    }
    KernelError::Load(error)
}

/// The verifier's last words, enough to see what it was about.
const LOG_LINES: usize = 80;

/// The whole chain, in one line. A verifier log is cut: it is of use in a bug report, not in a log.
pub(super) fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(ProgramError::LoadError { io_error, verifier_log }) = error.downcast_ref() {
        let log = verifier_log.to_string();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        tracing::debug!(
            "verifier: {}",
            lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
        );
        // Behind the reason come statistics.
        let last = lines
            .iter()
            .rfind(|line| {
                !["processed ", "stack depth ", "verification time "]
                    .iter()
                    .any(|statistics| line.starts_with(statistics))
            })
            .copied()
            .unwrap_or_default();
        return format!("the kernel refused the program: {io_error} {last}");
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}
