//! Events from a source to the pipeline. Owned, decoded, in event time.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
pub use imds_observer_common::{Direction, ProcessKey};

use crate::record::{Caller, IcmpCode, LossCounts, Process, Record, Time, VpcResolver};

/// Which connection an event belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FlowId {
    /// The kernel's socket cookie: unique for the uptime of the host.
    Cookie(u64),
    /// No socket of this host is known: client and endpoint, as the vantage point sees them.
    Addresses { local: SocketAddr, remote: SocketAddr },
}

/// Who sent a packet or called `connect()`, as the kernel noted at that moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sender {
    /// `key.tgid == 0`: unknown to the kernel.
    pub key: ProcessKey,
    pub tid: u32,
    /// cgroup v2 id of the socket; 0: not known.
    pub cgroup_id: u64,
    /// Inode of the network namespace; 0: not known.
    pub netns: u32,
}

/// Where a packet was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Vantage {
    /// At the socket's cgroup: before NAT on the way out, delivered on the way in.
    Socket,
    /// At an uplink of this host.
    Uplink,
    /// In a capture of unknown place.
    Capture,
}

/// An ICMP or ICMPv6 error that quotes a packet of the flow. The packet's own fields then hold what is quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    pub v6: bool,
    pub kind: u8,
    pub code: u8,
}

impl IcmpError {
    pub fn code(self) -> IcmpCode {
        let Self { kind, code, .. } = self;
        IcmpCode { kind, code }
    }
}

/// A TCP segment of a flow (or an ICMP error about one).
#[derive(Clone, Debug)]
pub struct Packet {
    pub time: Time,
    pub vantage: Vantage,
    pub flow: FlowId,
    /// Direction of the packet itself; an ICMP error that this host sends to IMDS goes as `Request`.
    pub direction: Direction,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// For [`Vantage::Socket`], and if a capture's comments have it.
    pub sender: Option<Sender>,
    pub seq: u32,
    pub ack: u32,
    /// As in the TCP header: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub tcp_flags: u8,
    pub ttl: u8,
    /// TCP payload bytes of the packet from `seq` on, captured or not.
    pub payload_len: u32,
    /// What is captured of them. Of responses: the status line's first bytes (live), or the head (captures); never a body.
    pub data: Bytes,
    /// More payload follows behind `data` that no further event brings.
    pub cut: bool,
    /// The source knows that nothing in this segment is new.
    pub retransmit: bool,
    pub icmp: Option<IcmpError>,
    /// Index of the interface; 0: not known. For captures, the pcapng interface number + 1.
    pub ifindex: u32,
}

impl Packet {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// `connect()` towards an endpoint begins.
#[derive(Clone, Copy, Debug)]
pub struct ConnectAttempt {
    pub time: Time,
    pub flow: FlowId,
    pub remote: SocketAddr,
    pub sender: Sender,
}

/// `connect()` has returned.
#[derive(Clone, Copy, Debug)]
pub struct ConnectResult {
    pub time: Time,
    pub flow: FlowId,
    /// 0, or a positive errno; `EINPROGRESS` for a non-blocking socket.
    pub errno: i32,
}

/// A packet filter of the client's own network namespace sends its packets elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Redirection {
    pub time: Time,
    pub flow: FlowId,
    pub local: SocketAddr,
    /// The endpoint, as the socket has it.
    pub remote: SocketAddr,
    pub to: SocketAddr,
}

/// The states of a TCP socket that matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    SynSent,
    Established,
    /// The process will send no more (`shutdown()`), and goes on reading.
    HalfClosed,
    /// The process has closed a half-closed socket; the kernel may still be at work on it.
    Released,
    Closed,
    /// Not a state: the socket reports an error.
    ErrorReport,
}

/// A TCP socket towards an endpoint changed its state.
#[derive(Clone, Copy, Debug)]
pub struct SocketChange {
    pub time: Time,
    pub flow: FlowId,
    pub state: SocketState,
    /// It closes without having been connected: it was in SYN_SENT.
    pub unconnected: bool,
    /// Bytes that it had received when it closed, modulo 2^32; `None`: not known.
    pub received: Option<u32>,
    /// Positive errno (`sk_err`), or 0.
    pub error: u32,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// This kernel freed a packet of the flow.
#[derive(Clone, Debug)]
pub struct PacketDrop {
    pub time: Time,
    pub flow: FlowId,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub direction: Direction,
    pub sender: Option<Sender>,
    pub seq: u32,
    pub payload_len: u32,
    pub tcp_flags: u8,
    pub ttl: u8,
    /// Without `SKB_DROP_REASON_`.
    pub reason: Option<Arc<str>>,
    pub location: Option<Arc<str>>,
    pub netns: u32,
}

/// Link-local packets at one interface since the last sample; about one sample a second.
#[derive(Clone, Debug)]
pub struct InterfaceSample {
    pub time: Time,
    pub name: Arc<str>,
    /// Time that the sample covers, nanoseconds.
    pub interval_ns: u64,
    /// By [`imds_observer_common::TrafficClass`].
    pub egress: [u64; imds_observer_common::TRAFFIC_CLASSES],
    pub ingress: [u64; imds_observer_common::TRAFFIC_CLASSES],
    /// Growth of `linklocal_allowance_exceeded`; `None` if the driver has none, and in captures.
    pub allowance_exceeded: Option<u64>,
    /// Whose DNS is counted beside that to link-local addresses.
    pub resolver: Option<Arc<VpcResolver>>,
}

/// The wall clock was stepped. Event time is continuous; from now on it is written by the new wall clock.
#[derive(Clone, Copy, Debug)]
pub struct ClockStep {
    /// When it was noticed, in continuous time.
    pub time: Time,
    /// How far ahead the wall clock is of where it was.
    pub by_ns: i64,
}

/// A cgroup's path, and how much of it is an unprivileged user's choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath {
    pub path: String,
    /// Components, from the leaf, below a directory in which another user than root may make others. They name no container.
    pub delegated: usize,
}

/// An event.
#[derive(Clone, Debug)]
pub enum Event {
    /// Comes before the first event that mentions its key; again when the process has been moved to another cgroup.
    Process {
        key: ProcessKey,
        process: Arc<Process>,
        cgroup_id: u64,
        /// Number of delegated components of [`Process::cgroup`]: see [`CgroupPath::delegated`].
        delegated: usize,
        /// Where the process is in a v1 hierarchy as well.
        v1: Option<CgroupPath>,
    },
    /// The same from a trace that has the container too.
    Caller {
        key: ProcessKey,
        caller: Caller,
    },
    Connect(ConnectAttempt),
    ConnectReturned(ConnectResult),
    Packet(Packet),
    Socket(SocketChange),
    Drop(PacketDrop),
    Redirection(Redirection),
    Interface(InterfaceSample),
    /// The source's own loss so far: absolute counts, not growth.
    Loss(LossCounts),
    ClockStep(ClockStep),
    /// A record of a trace that was written earlier. Shared, so that a sink can keep it as it is.
    Record(Arc<Record>),
}

impl Event {
    /// The record that was read, if it is one.
    pub fn into_record(self) -> Option<Arc<Record>> {
        match self {
            Self::Record(record) => Some(record),
            _ => None,
        }
    }

    /// Event time, where the event has one.
    pub fn time(&self) -> Option<Time> {
        Some(match self {
            Self::Process { .. } | Self::Caller { .. } | Self::Loss(_) => return None,
            Self::Connect(event) => event.time,
            Self::ConnectReturned(event) => event.time,
            Self::Packet(event) => event.time,
            Self::Socket(event) => event.time,
            Self::Drop(event) => event.time,
            Self::Redirection(event) => event.time,
            Self::Interface(event) => event.time,
            Self::ClockStep(event) => event.time,
            Self::Record(record) => record.time,
        })
    }

    /// When what it describes was over: a trace's records are in this order, see [`crate::source::ndjson`].
    pub fn settled(&self) -> Option<Time> {
        match self {
            Self::Record(record) => Some(record.settled()),
            event => event.time(),
        }
    }

    /// Whether it comes from the kernel's events, in whose order time passes.
    pub(crate) fn is_traffic(&self) -> bool {
        matches!(
            self,
            Self::Connect(_)
                | Self::ConnectReturned(_)
                | Self::Packet(_)
                | Self::Socket(_)
                | Self::Drop(_)
                | Self::Redirection(_)
        )
    }
}
