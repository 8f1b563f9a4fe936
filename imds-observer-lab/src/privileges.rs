//! Privileges with which the observer under test runs.
//!
//! The lab itself always needs all privileges. Tests reduce only those of the thread or process that runs the observer, so one suite covers
//! both root on a host and a DaemonSet.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};

/// Environment variable whose value is `full` (or unset) or `daemonset`.
pub const VARIABLE: &str = "IMDS_OBSERVER_TEST_PRIVILEGES";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privileges {
    /// All privileges of the tests.
    Full,
    /// User 0 with only the four capabilities that suffice (docs/privileges.md). The shipped DaemonSet has two more.
    DaemonSet,
}

/// Capabilities in the DaemonSet's manifest, without `CAP_SYSLOG` and `CAP_DAC_READ_SEARCH`, which only add details.
const DAEMONSET: [Capability; 4] = [
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_SYS_PTRACE,
];

impl Privileges {
    /// Value of [`VARIABLE`].
    pub fn from_env() -> Result<Self> {
        match std::env::var(VARIABLE).as_deref() {
            Err(_) | Ok("" | "full") => Ok(Self::Full),
            Ok("daemonset") => Ok(Self::DaemonSet),
            Ok(other) => bail!("{VARIABLE}={other}: neither full nor daemonset"),
        }
    }

    /// Permanently drops everything that these privileges don't include, for the calling thread and for the threads and children that it
    /// creates later. They can't enter network namespaces afterwards.
    pub fn reduce_thread(self) -> Result<()> {
        if self == Self::Full {
            return Ok(());
        }
        keep_only(&DAEMONSET.into_iter().collect())
    }

    /// Makes `command` run with these privileges.
    pub fn reduce(self, command: &mut Command) -> &mut Command {
        // SAFETY: between fork and exec. The capability crate allocates, which is safe here because tests that use this
        // run one at a time and glibc's allocator is usable after fork in any case.
        unsafe { command.pre_exec(move || self.reduce_thread().map_err(std::io::Error::other)) }
    }
}

/// Makes `command` run with the caller's capabilities except these, which are named as in capabilities(7).
pub fn withhold<'a>(command: &'a mut Command, names: &[&str]) -> Result<&'a mut Command> {
    let mut keep = caps::read(None, CapSet::Permitted).context("read the capabilities")?;
    for name in names {
        let capability: Capability = name
            .parse()
            .with_context(|| format!("no capability is called {name}"))?;
        keep.remove(&capability);
    }
    // SAFETY: between fork and exec; as above.
    unsafe { command.pre_exec(move || keep_only(&keep).map_err(std::io::Error::other)) };
    Ok(command)
}

/// Drops all other capabilities of the calling thread permanently.
fn keep_only(keep: &CapsHashSet) -> Result<()> {
    // The bounding set first, because the next step drops the capability for this. If the bounding set kept them, user 0 would regain all
    // capabilities at execve.
    for capability in caps::runtime::thread_all_supported().difference(keep) {
        caps::drop(None, CapSet::Bounding, *capability)
            .with_context(|| format!("drop {capability} from the bounding set"))?;
    }
    for (set, capabilities) in [
        (CapSet::Inheritable, &CapsHashSet::new()),
        (CapSet::Effective, keep),
        (CapSet::Permitted, keep),
    ] {
        caps::set(None, set, capabilities).with_context(|| format!("reduce the {set:?} capabilities"))?;
    }
    Ok(())
}
