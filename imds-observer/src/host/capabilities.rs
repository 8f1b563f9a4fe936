//! Which capabilities does this process hold, and what is blind without them?

use caps::{CapSet, Capability};

/// A capability that the observer has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needed {
    pub capability: Capability,
    /// Facts that are not visible without it.
    pub blinds: &'static str,
    /// Included in CAP_SYS_ADMIN, as far as BPF goes.
    within_admin: bool,
}

pub const BPF: Needed = Needed {
    capability: Capability::CAP_BPF,
    blinds: "everything: eBPF programs can't be loaded",
    within_admin: true,
};
pub const PERFMON: Needed = Needed {
    capability: Capability::CAP_PERFMON,
    blinds: "executable, command line, ancestors and cgroup of short-lived processes; dropped packets; socket outcomes: eBPF programs can't read kernel memory",
    within_admin: true,
};
pub const NET_ADMIN: Needed = Needed {
    capability: Capability::CAP_NET_ADMIN,
    blinds: "everything: eBPF programs can't be attached to cgroups and uplinks; firewall rules can't be read",
    within_admin: true,
};
pub const SYS_PTRACE: Needed = Needed {
    capability: Capability::CAP_SYS_PTRACE,
    blinds: "the process of a connection that is older than the observer; executables and environments of other users' processes",
    within_admin: false,
};

pub const ALL: [Needed; 4] = [BPF, PERFMON, NET_ADMIN, SYS_PTRACE];

/// How a capability is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Itself,
    ThroughAdmin,
    No,
}

impl Needed {
    /// By the calling thread. `None`: the kernel doesn't report it.
    pub fn held(&self) -> Option<Held> {
        let has = |capability| caps::has_cap(None, CapSet::Effective, capability).ok();
        Some(self.judge(has(self.capability)?, has(Capability::CAP_SYS_ADMIN)?))
    }

    fn judge(&self, itself: bool, admin: bool) -> Held {
        match (itself, admin && self.within_admin) {
            (true, _) => Held::Itself,
            (false, true) => Held::ThroughAdmin,
            (false, false) => Held::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_ptrace_is_within_admin() {
        assert_eq!(ALL.map(|right| right.judge(true, false)), [Held::Itself; 4]);
        let through = ALL.map(|right| right.judge(false, true));
        assert_eq!(
            through,
            [Held::ThroughAdmin, Held::ThroughAdmin, Held::ThroughAdmin, Held::No]
        );
        assert!(BPF.held().is_some());
    }
}
