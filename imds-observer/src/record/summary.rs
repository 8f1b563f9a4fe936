//! Numbers over a time, and what is missing from them: `start`, `summary`, `loss`.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::workload::Group;
use super::{Container, Dialect, Process, Time};

/// Where records come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Live,
    Offline,
}

/// A hook that works.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// `connect4`, `segment-egress`, `wire-ingress`, `kfree-skb`, ...
    pub hook: String,
    /// How: `cgroup`, `tcx`, `clsact`, `tp_btf`, `raw_tp`, `tracepoint`.
    pub method: String,
    /// Cgroup path, interface, or tracepoint.
    pub target: String,
}

/// Something that couldn't be had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    pub capability: String,
    pub why: String,
    /// Facts that are not visible without it.
    pub blinds: String,
}

/// Remaining privileges of a live run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Confinement {
    /// Capabilities that are kept, such as `CAP_NET_ADMIN`.
    pub capabilities: Vec<String>,
    pub no_new_privs: bool,
    /// System calls that it never makes are refused.
    pub seccomp: bool,
    /// Files are confined: `full`, `partial` (an older kernel); null: this kernel has no Landlock.
    pub landlock: Option<String>,
}

/// The tool that configures a host's network, and re-creates its routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkTool {
    NetworkManager,
    SystemdNetworkd,
    Netplan,
    /// Network scripts of Red Hat (`ifcfg-*`).
    Ifcfg,
    /// Debian's `/etc/network/interfaces`.
    Ifupdown,
}

/// The first line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub version: String,
    /// Release of the running kernel; null offline.
    pub kernel: Option<String>,
    pub mode: Mode,
    pub endpoints: Vec<String>,
    pub interfaces: Vec<String>,
    pub attached: Vec<Attached>,
    pub missing: Vec<Missing>,
    /// Filters that restrict the records: `comm=curl`, `cgroup=/kubepods`, `records=finding`. Empty: everything is recorded.
    #[serde(default)]
    pub filters: Vec<String>,
    /// Null offline, and with `--unconfined`.
    #[serde(default)]
    pub confinement: Option<Confinement>,
    /// Inode of this host's own network namespace; null offline.
    #[serde(default)]
    pub netns: Option<u32>,
    /// Null offline.
    #[serde(default)]
    pub boot_time: Option<Time>,
    /// NAT rules of this host that match requests for the endpoints, as they were at the start. Null offline, and where they can't be read.
    #[serde(default)]
    pub nat_rules: Option<Vec<String>>,
    /// The cloud that this host's firmware names, `unknown` for another maker. Null offline, and where firmware names nothing.
    #[serde(default)]
    pub cloud: Option<Dialect>,
    /// The tool that configures this host's network. Null offline, and where no sign of a known tool was found.
    #[serde(default)]
    pub network_tool: Option<NetworkTool>,
    /// What creates instances like this one: its configuration decides the metadata options of the next one. Null offline, and where no
    /// sign of a known owner was found.
    #[serde(default)]
    pub node_owner: Option<NodeOwner>,
}

/// The tool that creates and replaces an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NodeOwner {
    pub kind: NodeOwnerKind,
    /// Name of the EC2NodeClass, the node group or the ECS cluster; null if it isn't known.
    pub name: Option<String>,
    /// ID of the launch template with which a managed node group was created; null if it has none, or if it isn't known.
    #[serde(default)]
    pub launch_template: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum NodeOwnerKind {
    Karpenter,
    EksManagedNodeGroup,
    EksAutoMode,
    Eksctl,
    Ecs,
}

/// Nanoseconds; null if nothing was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Quantiles {
    pub p50: Option<u64>,
    pub p90: Option<u64>,
    pub p99: Option<u64>,
    pub max: Option<u64>,
}

/// A path and how often it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PathCount {
    pub path: String,
    pub requests: u64,
}

/// One process's (or group of short-lived processes') share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessSummary {
    pub process: Option<Arc<Process>>,
    pub container: Option<Arc<Container>>,
    /// The client's own address, where neither process nor container is known: in captures.
    #[serde(default)]
    pub address: Option<String>,
    /// As findings and reports group.
    #[serde(default)]
    pub workload: Option<String>,
    /// Process images that this row adds up: more than 1 for a loop of short-lived programs.
    #[serde(default)]
    pub instances: u64,
    pub requests: u64,
    pub rate_per_s: f64,
    /// `token`, `v2`, `v1`, `other`, `unknown`: requests.
    pub by_version: BTreeMap<String, u64>,
    /// Status code, or the outcome of what has none: requests.
    pub by_status: BTreeMap<String, u64>,
    /// Distinct tokens used or asked for.
    pub tokens: u64,
    pub latency_ns: Quantiles,
    pub top_paths: Vec<PathCount>,
    /// Responses that arrived and died on the way.
    #[serde(default)]
    pub lost: u64,
    /// Attempts that never became a connection.
    #[serde(default)]
    pub failed_connects: u64,
    /// The longest handshake, which is over before a latency begins; null if none was seen from its first SYN.
    #[serde(default)]
    pub longest_connect_ns: Option<u64>,
    /// All handshakes together.
    #[serde(default)]
    pub total_connect_ns: u64,
}

impl ProcessSummary {
    /// Whom the row is about, for people.
    pub fn caller(&self) -> String {
        // A group takes a connection's own end, with its port.
        let local = self.address.as_ref().map(|address| format!("{address}:0"));
        Group::of(self.process.as_deref(), self.container.as_deref(), local.as_deref()).name(self.instances)
    }
}

/// The VPC resolver (base address of the VPC + 2) whose packets are counted beside link-local ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VpcResolver {
    pub address: String,
    /// Why this address is assumed to be the resolver: packets don't show it.
    pub assumed_from: String,
}

/// One interface's link-local traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InterfaceSummary {
    pub name: String,
    /// Packets to IMDS, NTP and the VPC resolver.
    pub egress_packets: u64,
    pub ingress_packets: u64,
    /// Highest count of one 1 s window, the larger of both directions.
    pub peak_packets_per_s: u64,
    /// `peak_packets_per_s` over the quota of 1024.
    pub quota_share: f64,
    /// Growth of the driver's `linklocal_allowance_exceeded`; null if the driver has none.
    pub allowance_exceeded: Option<u64>,
    /// Packets of the peak window, by `imds`, `dns`, `ntp`, `other`.
    #[serde(default)]
    pub peak_by_class: BTreeMap<String, u64>,
    /// Null where DNS is counted at link-local addresses only.
    #[serde(default)]
    pub vpc_resolver: Option<Arc<VpcResolver>>,
}

/// Numbers over an interval (`total: false`) or the whole run or trace (`total: true`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    pub total: bool,
    pub from: Time,
    pub to: Time,
    pub interval_ns: u64,
    /// Most requests first.
    pub processes: Vec<ProcessSummary>,
    pub interfaces: Vec<InterfaceSummary>,
    /// Rows that the bound on processes cut off, added up in requests.
    #[serde(default)]
    pub other_requests: u64,
}

/// Counts of lost input since the start. A record of them is written when anything was lost, and at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Loss")]
pub struct LossCounts {
    /// Events that didn't fit into the ring buffer.
    pub ring_buffer: u64,
    /// Packets, events or heads that couldn't be read.
    pub unparsed: u64,
    /// Request heads or byte streams that were cut.
    pub truncated: u64,
    /// Entries evicted from a bounded table or queue.
    pub evicted: u64,
    /// Exchanges whose process stays unknown.
    pub unattributed: u64,
    /// Records that a slow sink made us shed.
    #[serde(default)]
    pub shed: u64,
    /// Containers whose cgroup path or names have a form that we don't know.
    #[serde(default)]
    pub unknown_containers: u64,
    /// Programs of the observer that another tool detached while it ran: what they would have seen since then is unknown.
    #[serde(default)]
    pub detached: u64,
    /// Programs of other tools that were attached while the observer ran, and that may rewrite the address of a connection before the
    /// observer sees it: clients that they send elsewhere are not visible.
    #[serde(default)]
    pub preempted: u64,
    /// Not a count: nanoseconds by which this host's wall clock was stepped since the record before. This record and later ones have the new
    /// time. 0: it was not.
    #[serde(default)]
    pub clock_step_ns: i64,
}

impl LossCounts {
    pub fn any(&self) -> bool {
        let counts = Self {
            clock_step_ns: 0,
            ..*self
        };
        counts != Self::default()
    }

    /// Whether none of the counts is greater than its counterpart.
    pub fn is_within(self, other: Self) -> bool {
        self.ring_buffer <= other.ring_buffer
            && self.unparsed <= other.unparsed
            && self.truncated <= other.truncated
            && self.evicted <= other.evicted
            && self.unattributed <= other.unattributed
            && self.shed <= other.shed
            && self.unknown_containers <= other.unknown_containers
            && self.detached <= other.detached
            && self.preempted <= other.preempted
    }

    /// The sum; counts from a file may be anything, so it saturates.
    #[must_use]
    pub fn plus(self, more: Self) -> Self {
        Self {
            ring_buffer: self.ring_buffer.saturating_add(more.ring_buffer),
            unparsed: self.unparsed.saturating_add(more.unparsed),
            truncated: self.truncated.saturating_add(more.truncated),
            evicted: self.evicted.saturating_add(more.evicted),
            unattributed: self.unattributed.saturating_add(more.unattributed),
            shed: self.shed.saturating_add(more.shed),
            unknown_containers: self.unknown_containers.saturating_add(more.unknown_containers),
            detached: self.detached.saturating_add(more.detached),
            preempted: self.preempted.saturating_add(more.preempted),
            // A step belongs to one record.
            clock_step_ns: 0,
        }
    }
}
