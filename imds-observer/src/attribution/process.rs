//! A process from `/proc`, if the eBPF programs could not describe it in time.
//!
//! A PID is reused, so a process counts only if its start time is the one that was asked for. That `execve` has replaced the image
//! since, `/proc` doesn't show: the PID is right then, and executable and arguments are those of now.

use imds_observer_common::{CMDLINE_BYTES, MAX_ANCESTORS, ProcessKey};

use super::cgroup::{self, Hierarchies};
use super::host::HostRoot;
use crate::record::{self, Ancestor, Process, Time, Unredacted};

/// `stat` has one line, `status` some 1,500 bytes, `cgroup` a line a hierarchy.
const MAX_FILE: u64 = 16 << 10;

/// Constants that convert the numbers in `/proc` to times.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Clock ticks a second, as `/proc/PID/stat` counts (`sysconf(_SC_CLK_TCK)`).
    pub ticks_per_s: u64,
    /// Added to a boot-time clock reading to give the wall clock.
    pub boot_to_wall_ns: u64,
}

/// The fields of `/proc/PID/stat` that matter here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    pub comm: String,
    pub parent: u32,
    pub start_ticks: u64,
}

/// Field numbers as in proc(5), less those up to and with the command's closing parenthesis.
pub fn stat(text: &[u8]) -> Option<Stat> {
    let text = String::from_utf8_lossy(text);
    // The command may have spaces and parentheses itself: the last one ends it.
    let (before, after) = text.rsplit_once(')')?;
    let (_, comm) = before.split_once('(')?;
    let mut fields = after.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start_ticks = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        comm: comm.to_owned(),
        parent,
        start_ticks,
    })
}

/// Effective user, and the PID in the innermost namespace.
pub(super) fn status(text: &[u8]) -> (Option<u32>, Option<u32>) {
    let text = String::from_utf8_lossy(text);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
    let uid = field("Uid:").and_then(|uids| uids.split_ascii_whitespace().nth(1)?.parse().ok());
    let pid = field("NSpid:").and_then(|pids| pids.split_ascii_whitespace().next_back()?.parse().ok());
    (uid, pid)
}

/// A process, and how much of its cgroup's path is an unprivileged user's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    pub process: Process,
    /// See [`crate::event::CgroupPath::delegated`].
    pub delegated: usize,
    /// `CLOCK_BOOTTIME`, in whole ticks.
    pub start_time_ns: u64,
}

/// The process with this key, if it still is there.
pub fn read(host: &HostRoot, hierarchies: &Hierarchies, key: ProcessKey, clock: Clock) -> Option<Described> {
    read_any(host, hierarchies, key.tgid, clock, |stat| {
        key.start_time_ns == 0 || stat.start_ticks == ticks(key.start_time_ns, clock)
    })
}

/// The process that has this PID now, and its identity according to `/proc`.
pub fn read_now(host: &HostRoot, hierarchies: &Hierarchies, pid: u32, clock: Clock) -> Option<Described> {
    read_any(host, hierarchies, pid, clock, |_| true)
}

/// A start time in the unit of `/proc`: the kernel rounds down.
pub fn ticks(start_time_ns: u64, clock: Clock) -> u64 {
    (u128::from(start_time_ns) * u128::from(clock.ticks_per_s) / 1_000_000_000) as u64
}

fn read_any(
    host: &HostRoot,
    hierarchies: &Hierarchies,
    pid: u32,
    clock: Clock,
    is_it: impl Fn(&Stat) -> bool,
) -> Option<Described> {
    let stat_of = |pid: u32| stat(&host.proc(&format!("{pid}/stat"), MAX_FILE)?);
    let first = stat_of(pid).filter(&is_it)?;
    let (uid, namespace_pid) = host
        .proc(&format!("{pid}/status"), MAX_FILE)
        .map_or((None, None), |text| status(&text));
    let cmdline = host
        .proc(&format!("{pid}/cmdline"), CMDLINE_BYTES as u64)
        .filter(|bytes| !bytes.is_empty());
    let exe = host.proc_link(&format!("{pid}/exe"));
    let cgroup = host.proc(&format!("{pid}/cgroup"), MAX_FILE).and_then(|text| {
        let locate = |controllers: &str, path: &str| hierarchies.locate(controllers, path);
        cgroup::from_proc(&String::from_utf8_lossy(&text), &locate)
    });
    let netns = host.proc_link(&format!("{pid}/ns/net"));
    let mut ancestors = Vec::new();
    let mut parent = first.parent;
    while parent != 0 && ancestors.len() < MAX_ANCESTORS {
        let Some(stat) = stat_of(parent) else { break };
        ancestors.push(Ancestor {
            pid: parent,
            comm: stat.comm,
        });
        parent = stat.parent;
    }
    // Once more: what lies between was of the same process only if it still is there.
    let last = stat_of(pid).filter(|last| last.start_ticks == first.start_ticks)?;
    let start_ns = u128::from(first.start_ticks) * 1_000_000_000 / u128::from(clock.ticks_per_s.max(1));
    Some(Described {
        delegated: cgroup.as_ref().map_or(0, |cgroup| cgroup.delegated),
        process: Process::new(Unredacted {
            pid,
            tid: None,
            namespace_pid: namespace_pid.filter(|inner| *inner != pid),
            comm: last.comm,
            exe: exe.map(|exe| exe.strip_suffix(" (deleted)").map(str::to_owned).unwrap_or(exe)),
            cmdline: cmdline.map(|bytes| record::arguments(&bytes)),
            uid,
            start_time: Some(Time((start_ns as u64).saturating_add(clock.boot_to_wall_ns))),
            ancestors,
            cgroup: cgroup.map(|cgroup| cgroup.path),
            netns: netns.as_deref().and_then(namespace_inode),
        }),
        start_time_ns: start_ns as u64,
    })
}

/// `net:[4026531840]`
pub fn namespace_inode(link: &str) -> Option<u32> {
    link.split_once('[')?.1.strip_suffix(']')?.parse().ok()
}

/// Fills the gaps of `known` from `found`, the same process read a moment later. `None`: nothing to add, or another image meanwhile.
pub fn complete(known: &Process, found: &Process) -> Option<Process> {
    let whole = known.exe.as_ref().filter(|exe| !exe.starts_with("..."));
    let same = known.comm == found.comm && (whole.is_none() || whole == found.exe.as_ref());
    if !same {
        return None;
    }
    let mut completed = known.clone();
    completed.exe = whole.cloned().or_else(|| found.exe.clone()).or(completed.exe);
    completed.cmdline = completed.cmdline.or_else(|| found.cmdline.clone());
    completed.uid = completed.uid.or(found.uid);
    completed.start_time = completed.start_time.or(found.start_time);
    completed.netns = completed.netns.or(found.netns);
    if completed
        .cgroup
        .as_ref()
        .is_none_or(|path| path.starts_with("...") || path == "/")
    {
        completed.cgroup = found.cgroup.clone().or(completed.cgroup);
    }
    if completed.ancestors.is_empty() {
        completed.ancestors.clone_from(&found.ancestors);
    }
    (completed != *known).then_some(completed)
}

/// Whether the kernel side noted less than there is: arguments in a page that wasn't in memory, a path that was too long.
pub fn is_incomplete(process: &Process) -> bool {
    let cut = |path: &Option<String>| path.as_ref().is_none_or(|path| path.starts_with("..."));
    cut(&process.exe) || cut(&process.cgroup) || process.cmdline.is_none()
}

#[cfg(all(test, live))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLOCK: Clock = Clock {
        ticks_per_s: 100,
        boot_to_wall_ns: 0,
    };

    #[test]
    fn our_own_process() {
        let host = HostRoot::new(std::path::Path::new("/"));
        let Described {
            process, start_time_ns, ..
        } = read_now(&host, &Hierarchies::of(&host), std::process::id(), CLOCK).unwrap();
        assert_eq!(process.pid, std::process::id());
        let exe = std::env::current_exe().unwrap();
        assert_eq!(process.exe.as_deref(), exe.to_str());
        assert!(!process.ancestors.is_empty() && process.cgroup.is_some() && process.netns.is_some());
        let key = ProcessKey {
            // Within the tick, as the kernel knows it.
            start_time_ns: start_time_ns + 3_000_000,
            tgid: process.pid,
            exec_id: 7,
        };
        let read = |key| read(&host, &Hierarchies::default(), key, CLOCK);
        assert!(read(key).is_some());
        let reused = ProcessKey {
            start_time_ns: start_time_ns + 10_000_000,
            ..key
        };
        assert_eq!(read(reused), None, "a reused PID");
    }

    #[test]
    fn only_gaps_are_filled_and_only_of_the_same_image() {
        let host = HostRoot::new(std::path::Path::new("/"));
        let found = read_now(&host, &Hierarchies::default(), std::process::id(), CLOCK)
            .unwrap()
            .process;
        let gap = Process {
            cmdline: None,
            exe: found.exe.as_ref().map(|exe| format!("...{}", &exe[exe.len() / 2..])),
            ..found.clone()
        };
        assert!(is_incomplete(&gap) && !is_incomplete(&found));
        assert_eq!(complete(&gap, &found).as_ref(), Some(&found));
        assert_eq!(complete(&found, &found), None);
        let other = Process {
            comm: "other".to_owned(),
            ..gap
        };
        assert_eq!(complete(&other, &found), None, "the process has called execve since");
    }

    proptest! {
        #[test]
        fn any_text(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (stat(&text), status(&text), record::arguments(&text));
            let _ = namespace_inode(&String::from_utf8_lossy(&text));
        }
    }
}
