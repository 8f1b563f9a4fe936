//! Programs on the observer's hooks, for comparison: some do nothing, others do the minimum that an observer needs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use imds_observer_lab::bpf::least::{self, PacketOffsets, Tables};
use imds_observer_lab::bpf::{Hook, Measured};
use imds_observer_lab::topology::Lab;
use nix::net::if_::if_nametoindex;

/// Programs by the name of their hook.
pub(crate) type Programs = BTreeMap<&'static str, Measured>;

/// Hooks for packets and connections. They attach to one cgroup or one interface.
const LOCAL: [(&str, Hook); 6] = [
    ("segment_egress", Hook::CgroupEgress),
    ("segment_ingress", Hook::CgroupIngress),
    ("wire_egress", Hook::TcxEgress),
    ("wire_ingress", Hook::TcxIngress),
    ("connect4", Hook::Connect4),
    ("connect_tuple", Hook::SockOps),
];
/// Size of an event in bytes: for a segment with a request head of usual length, for a packet at the uplink, and for a `connect()`.
const EVENT_BYTES: [(&str, u32); 5] = [
    ("segment_egress", 200),
    ("segment_ingress", 140),
    ("wire_egress", 104),
    ("wire_ingress", 104),
    ("connect4", 72),
];

/// A cgroup and an interface of the node to which programs are attached.
struct At<'a> {
    cgroup: File,
    interface: &'a str,
}

impl At<'_> {
    fn attach<T>(
        &self,
        lab: &Lab,
        hooks: impl IntoIterator<Item = T> + Send,
        attach: impl Fn(&T, BorrowedFd<'_>, u32) -> std::io::Result<Option<(&'static str, Measured)>> + Sync,
    ) -> Result<Programs> {
        lab.node().netns().run(|| {
            let index = if_nametoindex(self.interface).with_context(|| format!("find {}", self.interface))?;
            hooks
                .into_iter()
                .filter_map(|hook| attach(&hook, self.cgroup.as_fd(), index).transpose())
                .collect::<std::io::Result<_>>()
                .context("attach programs beside the observer's")
        })?
    }
}

fn at<'a>(cgroup: &Path, interface: &'a str) -> Result<At<'a>> {
    Ok(At {
        cgroup: File::open(cgroup).context("open a cgroup")?,
        interface,
    })
}

/// Attaches one empty program to each hook that the observer may use.
pub(crate) fn empties(lab: &Lab, types: &Types, cgroup: &Path, interface: &str) -> Result<Programs> {
    let mut hooks = LOCAL.to_vec();
    hooks.extend([
        ("socket_state", Hook::RawTracepoint("inet_sock_set_state")),
        ("socket_error", Hook::RawTracepoint("inet_sk_error_report")),
    ]);
    let tracing = [
        ("drop_btf", "TYPEDEF", "btf_trace_kfree_skb"),
        ("socket_state_btf", "TYPEDEF", "btf_trace_inet_sock_set_state"),
        ("connect_exit", "FUNC", "inet_stream_connect"),
    ];
    hooks.extend(tracing.into_iter().filter_map(|(hook, kind, name)| {
        let id = types.id(kind, name)?;
        Some((
            hook,
            if kind == "FUNC" {
                Hook::FunctionExit(id)
            } else {
                Hook::BtfTracepoint(id)
            },
        ))
    }));
    at(cgroup, interface)?.attach(lab, hooks, |(name, hook), cgroup, index| {
        match Measured::empty(*hook, cgroup, index) {
            // Some kernels don't support function tracing.
            Err(_) if matches!(hook, Hook::FunctionExit(_)) => Ok(None),
            result => result.map(|program| Some((*name, program))),
        }
    })
}

/// The minimum for distinguishing other packets: comparing an address.
pub(crate) fn lookers(lab: &Lab, types: &Types, cgroup: &Path, interface: &str) -> Result<Programs> {
    let place = at(cgroup, interface)?;
    let mut programs = place.attach(lab, LOCAL, |(name, hook), cgroup, index| {
        Ok(least::looks(*hook, cgroup, index)?.map(|program| (*name, program)))
    })?;
    if let Some(id) = types.id("TYPEDEF", "btf_trace_kfree_skb") {
        let offset = |member| {
            types
                .offset("sk_buff", member)
                .with_context(|| format!("find sk_buff.{member} in this kernel's types"))
        };
        let packet = PacketOffsets {
            head: offset("head")?,
            network_header: offset("network_header")?,
        };
        let program = least::looks_at_drop(Hook::BtfTracepoint(id), packet, place.cgroup.as_fd())
            .context("attach a program that looks at drops")?;
        programs.insert("drop_btf", program);
    }
    Ok(programs)
}

/// The minimum for reporting IMDS packets: one event each, and a map entry per `connect()`.
pub(crate) fn tellers(lab: &Lab, tables: &Tables, cgroup: &Path, interface: &str) -> Result<Programs> {
    at(cgroup, interface)?.attach(lab, LOCAL, |(name, hook), cgroup, index| {
        let Some((_, bytes)) = EVENT_BYTES.iter().find(|(known, _)| known == name) else {
            return Ok(None);
        };
        let program = if *hook == Hook::Connect4 {
            tables.notes_and_reports(*hook, *bytes, cgroup, index)
        } else {
            tables.reports(*hook, *bytes, cgroup, index)
        };
        program.map(|program| Some((*name, program)))
    })
}

/// Attaches one empty program to each hook that the observer uses on this kernel. If the kernel can't trace the exit of `connect()`, this
/// includes `sys_exit`, which runs at the end of every system call.
pub(crate) fn as_observer(lab: &Lab, types: &Types, cgroup: &Path, interface: &str) -> Result<Programs> {
    let mut empties = empties(lab, types, cgroup, interface)?;
    if empties.contains_key("socket_state_btf") {
        empties.remove("socket_state");
    }
    if !empties.contains_key("connect_exit") {
        let cgroup = File::open(cgroup).context("open a cgroup")?;
        let any = Measured::empty(Hook::RawTracepoint("sys_exit"), cgroup.as_fd(), 0);
        empties.insert("connect_returned", any.context("attach an empty program to sys_exit")?);
    }
    Ok(empties)
}

/// This kernel's BTF types, as `bpftool` lists them: `[NUMBER] KIND 'NAME' ...`
pub(crate) struct Types(String);

impl Types {
    pub(crate) fn of_kernel() -> Result<Self> {
        let output = Command::new("bpftool")
            .args(["btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "raw"])
            .output()
            .context("run bpftool (is it installed?)")?;
        ensure!(output.status.success(), "bpftool could not list this kernel's types");
        Ok(Self(String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    fn id(&self, kind: &str, name: &str) -> Option<u32> {
        self.0.lines().find_map(|line| {
            let (id, rest) = line.strip_prefix('[')?.split_once("] ")?;
            let rest = rest.strip_prefix(kind)?.strip_prefix(" '")?;
            (rest.split('\'').next()? == name).then(|| id.parse().ok())?
        })
    }

    /// Offset in bytes. Members of unnamed structs and unions are found too.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        self.member(self.id("STRUCT", structure)?, member).map(|bits| bits / 8)
    }

    fn member(&self, id: u32, wanted: &str) -> Option<u32> {
        let head = format!("[{id}] ");
        let lines = self.0.lines().skip_while(|line| !line.starts_with(&head)).skip(1);
        lines.take_while(|line| line.starts_with('\t')).find_map(|line| {
            let (name, rest) = line.trim_start().strip_prefix('\'')?.split_once("' type_id=")?;
            let (kind, rest) = rest.split_once(" bits_offset=")?;
            let bits: u32 = rest.split(' ').next()?.parse().ok()?;
            match name {
                "(anon)" => self.member(kind.parse().ok()?, wanted).map(|within| bits + within),
                _ => (name == wanted).then_some(bits),
            }
        })
    }
}
