//! Which programs of other tools, attached during the run, rewrite addresses before ours sees them?
//!
//! On kernels without `BPF_F_PREORDER` a program in a cgroup below ours runs first at `connect4` and `connect6`, whenever it was attached. The
//! kernel gives no notice of it, so the tree is read again and again, on a thread of its own: a node has thousands of cgroups.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use super::attach::cgroup2_mount;
use super::occupied::{Occupant, below_at_connect, is_ours, listed};

/// How often the tree is read: about 75 ms of one CPU for 5,000 cgroups.
const INTERVAL: Duration = Duration::from_secs(20);
/// Programs that are remembered. A tool that attaches more is counted again.
const MAX_KNOWN: usize = 65_536;

/// Parameters of the search.
#[derive(Debug)]
pub(crate) struct PreemptingWatch {
    pub(super) cgroup: PathBuf,
    /// Hooks where our program is not the first: `connect4`.
    pub(super) hooks: Vec<&'static str>,
    /// Programs that `start.missing` names already.
    pub(super) known: Vec<Occupant>,
}

/// The thread that looks. It ends with this value.
pub(crate) struct Preempting {
    found: Receiver<Vec<Occupant>>,
    _ends: Sender<()>,
}

impl PreemptingWatch {
    /// The thread inherits the privileges of the caller. Reading needs CAP_NET_ADMIN; without it nothing is found.
    pub(crate) fn start(self) -> io::Result<Preempting> {
        let (finds, found) = channel();
        let (ends, ended) = channel();
        thread::Builder::new().name("preempting".to_owned()).spawn(move || {
            let Self { cgroup, hooks, known } = self;
            let mut seen: HashSet<_> = known.iter().map(key).collect();
            while ended.recv_timeout(INTERVAL) == Err(RecvTimeoutError::Timeout) {
                let mut others = below_at_connect(&cgroup, cgroup2_mount().as_deref());
                // Another observer of a cgroup below rewrites nothing; without CAP_SYS_ADMIN it has no name.
                others.retain(|other| {
                    hooks.contains(&other.hook.as_str()) && !other.name.as_deref().is_some_and(is_ours)
                });
                if seen.len() > MAX_KNOWN {
                    seen.clear();
                }
                others.retain(|other| seen.insert(key(other)));
                if !others.is_empty() && finds.send(others).is_err() {
                    break;
                }
            }
        })?;
        Ok(Preempting { found, _ends: ends })
    }
}

impl Preempting {
    /// Number and description of the programs found since the last call.
    pub(crate) fn take(&self) -> Option<(u64, String)> {
        let found: Vec<Occupant> = self.found.try_iter().flatten().collect();
        (!found.is_empty()).then(|| (found.len() as u64, listed(&found.iter().collect::<Vec<_>>())))
    }
}

fn key(occupant: &Occupant) -> (String, String, u32) {
    (occupant.hook.clone(), occupant.target.clone(), occupant.id)
}
