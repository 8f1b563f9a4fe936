//! Processes that connect, at the moment when they do, and what `connect()` returned.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramError, SockOps};

use super::super::attach::cgroup2_mount;
use super::super::error::cgroup_why;
use super::super::first::attach_first;
use super::super::kernel::Kernel;
use super::super::occupied::{CgroupHook, Occupant, listed, others_at_connect};
use super::super::preempting::PreemptingWatch;
use super::{Alternative, HookSpec, Method};

const ATTEMPTS: &str = "connection attempts that fail before a packet is sent, and their processes";

pub(super) const CONNECT4: HookSpec = HookSpec {
    alternatives: &[Alternative {
        program: "connect4",
        name: "connect4",
        method: Method::Cgroup,
        target: "",
    }],
    hides: ATTEMPTS,
};

pub(super) const CONNECT6: HookSpec = HookSpec {
    alternatives: &[Alternative {
        program: "connect6",
        name: "connect6",
        method: Method::Cgroup,
        target: "",
    }],
    hides: ATTEMPTS,
};

pub(super) const TUPLE: HookSpec = HookSpec {
    alternatives: &[Alternative {
        program: "connect_tuple",
        name: "connect-tuple",
        method: Method::Cgroup,
        target: "",
    }],
    hides: "the process whose packets an OUTPUT firewall rule drops",
};

/// The cheapest first. The function behind `connect()` costs other processes nothing, but needs BTF and, on arm64, 6.4. Debian's kernels
/// refuse the tracepoint of that one call to all but CAP_SYS_ADMIN. The raw tracepoint of all calls needs neither. Both tracepoints make
/// every call of every process return by the slow path.
pub(super) const RETURNED: HookSpec = HookSpec {
    alternatives: &[
        Alternative {
            program: "connect_exit",
            name: "connect-returned",
            method: Method::Fexit,
            target: "inet_stream_connect",
        },
        Alternative {
            program: "connect_returned",
            name: "connect-returned",
            method: Method::Tracepoint,
            target: "syscalls/sys_exit_connect",
        },
        Alternative {
            program: "any_call_returned",
            name: "connect-returned",
            method: Method::RawTracepoint,
            target: "sys_exit",
        },
    ],
    hides: "the error that connect() returned",
};

impl Kernel {
    /// Returns other tools' programs at `connect4` and `connect6`, each with whether ours runs before it.
    pub(in super::super) fn attach_connect(&mut self, cgroup: &File, path: &Path) -> Vec<(Occupant, bool)> {
        let mut others: Vec<_> = others_at_connect(path, cgroup2_mount().as_deref())
            .into_iter()
            .map(|other| (other, false))
            .collect();
        let mut behind = Vec::new();
        for (hook, kind) in [(&CONNECT4, CgroupHook::Connect4), (&CONNECT6, CgroupHook::Connect6)] {
            let program = hook.alternatives[0].program;
            let first = self
                .loaded::<CgroupSockAddr>(program, None)
                .and_then(|program| Ok(attach_first(program.fd()?.as_fd(), cgroup.as_fd(), kind).ok()));
            let result = if let Ok(Some(link)) = first {
                self.first.push(link);
                for (other, is_behind) in &mut others {
                    *is_behind |= other.hook == program;
                }
                Ok(())
            } else {
                behind.push(program);
                self.loaded::<CgroupSockAddr>(program, None)
                    .and_then(|program| program.attach(cgroup, CgroupAttachMode::Single))
                    .map(drop)
            };
            self.settle(hook, path, kind, result);
        }
        if !behind.is_empty() {
            self.preempting = Some(PreemptingWatch {
                cgroup: path.to_path_buf(),
                hooks: behind,
                known: others.iter().map(|(other, _)| other.clone()).collect(),
            });
        }
        let result = self
            .loaded::<SockOps>(TUPLE.alternatives[0].program, None)
            .and_then(|program| program.attach(cgroup, CgroupAttachMode::Single))
            .map(drop);
        self.settle(&TUPLE, path, CgroupHook::SockOps, result);
        others
    }

    pub(in super::super) fn attach_connect_returned(&mut self, types: Option<&aya::Btf>) {
        self.attach_traced(&RETURNED, types);
    }

    fn settle(&mut self, hook: &HookSpec, path: &Path, kind: CgroupHook, result: Result<(), ProgramError>) {
        let (alternative, target) = (&hook.alternatives[0], path.display().to_string());
        let method = alternative.method.name();
        match result {
            Ok(()) => self.note(alternative, method, &target),
            Err(error) => {
                let why = cgroup_why(path, kind, &error);
                self.miss(hook.name(), format!("{method} {target}: {why}"), hook.hides);
            }
        }
    }

    /// A program that runs before ours at `connect4` or `connect6` may have rewritten the address by then. What one behind ours has made of it
    /// is seen right before the SYN.
    pub(in super::super) fn miss_rewritten(&mut self, others: &[(Occupant, bool)]) {
        let sees_more = self.attached.iter().any(|attached| attached.hook == "connect-tuple");
        for hook in ["connect4", "connect6"] {
            let unseen: Vec<_> = others
                .iter()
                .filter(|(other, is_behind)| other.hook == hook && !(*is_behind && sees_more))
                .map(|(other, _)| other)
                .collect();
            if !unseen.is_empty() {
                self.miss(
                    &format!("{hook}-before-others"),
                    format!("{} may rewrite a connection's address", listed(&unseen)),
                    "clients whose connection it sends to another address: no packet of theirs has an endpoint's",
                );
            }
        }
    }
}
