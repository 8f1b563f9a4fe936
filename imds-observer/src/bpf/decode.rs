//! Ring-buffer bytes into events. Decoded once, here; what we don't know is counted and passed over.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use imds_observer_common::{
    ConnectEvent, Direction, DropEvent, EventHeader, EventKind, HEAD_BYTES, ProcessEvent, ProcessKey, RedirectEvent,
    STATUS_LINE_BYTES, SegmentEvent, SegmentFlags, SocketEvent, Tuple, WireEvent,
};
use thiserror::Error;
use zerocopy::FromBytes;

use super::offsets::DropReasons;
use super::symbols::{Name, Naming, Symbols};
use crate::event::{
    CgroupPath, ConnectAttempt, ConnectResult, Event, FlowId, IcmpError, Packet, PacketDrop, Redirection, Sender,
    SocketChange, SocketState, Vantage,
};
use crate::record::{self, Ancestor, Process, Time, Unredacted};

/// Bytes from the ring buffer that are no event of ours.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    #[error("truncated event: need {need} bytes, have {have}")]
    Truncated { need: usize, have: usize },
    #[error("unknown event kind {0}")]
    Kind(u16),
    #[error("unknown direction {0}")]
    Direction(u8),
    #[error("unknown socket state {0}")]
    State(u8),
}

/// Turns event bytes into [`Event`]s.
pub struct Decoder {
    /// Added to a boot-time clock reading to give the wall clock.
    boot_to_wall_ns: u64,
    reasons: HashMap<u32, Arc<str>>,
    naming: Naming,
    /// Drops whose place is being looked up, oldest first.
    held: VecDeque<Held>,
    /// The place of the drop that was decoded last, if it is being looked up.
    unnamed: Option<u64>,
}

/// Drops that wait for the name of their place, about 200 bytes each. One more goes without it.
const MAX_HELD: usize = 4096;
/// Longest time that a drop waits for it.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// A drop whose location is looked up.
struct Held {
    location: u64,
    since: Instant,
    drop: PacketDrop,
}

fn take<T: FromBytes>(bytes: &[u8]) -> Result<(T, &[u8]), WireError> {
    T::read_from_prefix(bytes).map_err(|_| WireError::Truncated {
        need: size_of::<T>(),
        have: bytes.len(),
    })
}

impl Decoder {
    pub fn new(reasons: DropReasons, symbols: Symbols) -> Self {
        let reasons = reasons
            .into_iter()
            .map(|(value, name)| (value, Arc::from(name)))
            .collect();
        Self {
            boot_to_wall_ns: 0,
            reasons,
            naming: Naming::new(symbols),
            held: VecDeque::new(),
            unnamed: None,
        }
    }

    /// Sets what lies between the boot-time clock and the wall clock, nanoseconds.
    pub fn set_clock(&mut self, boot_to_wall_ns: u64) {
        self.boot_to_wall_ns = boot_to_wall_ns;
    }

    fn time(&self, boot_ns: u64) -> Time {
        Time(boot_ns.saturating_add(self.boot_to_wall_ns))
    }

    /// One event into `out`. A drop in a place that was not met before comes later, from [`Self::named`]: what else there is doesn't
    /// wait for its name.
    pub fn take(&mut self, bytes: &[u8], out: &mut Vec<Event>) -> Result<(), WireError> {
        let event = self.decode(bytes)?;
        match event {
            Event::Drop(drop) if self.unnamed.is_some() && self.held.len() < MAX_HELD => {
                let since = Instant::now();
                self.held
                    .extend(self.unnamed.take().map(|location| Held { location, since, drop }));
            }
            event => out.push(event),
        }
        Ok(())
    }

    /// Appends drops whose place has a name by now. `patience`: waits so long for the names, and gives the rest without.
    pub fn named(&mut self, patience: Duration, out: &mut Vec<Event>) {
        if self.held.is_empty() {
            return;
        }
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let came = self.naming.answers(left);
            for _ in 0..self.held.len() {
                let Some(mut held) = self.held.pop_front() else {
                    break;
                };
                match self.naming.name(held.location) {
                    Name::Soon if held.since.elapsed() < MAX_WAIT => self.held.push_back(held),
                    name => {
                        held.drop.location = known(name);
                        out.push(Event::Drop(held.drop));
                    }
                }
            }
            if self.held.is_empty() || !came && left.is_zero() {
                break;
            }
        }
        if !patience.is_zero() {
            out.extend(self.held.drain(..).map(|held| Event::Drop(held.drop)));
        }
    }

    /// When the oldest drop that waits for a name happened: the end of a connection may depend on it.
    pub fn held_since(&self) -> Option<Time> {
        self.held.iter().map(|held| held.drop.time).min()
    }

    /// One event. Total: any bytes give an event or an error. A drop's place has its name if it is known already.
    pub fn decode(&mut self, bytes: &[u8]) -> Result<Event, WireError> {
        self.unnamed = None;
        let (header, _) = take::<EventHeader>(bytes)?;
        let time = self.time(header.time_ns);
        match EventKind::try_from(header.kind).map_err(WireError::Kind)? {
            EventKind::Process => {
                let (event, v1) = take::<ProcessEvent>(bytes)?;
                Ok(self.process(&event, v1))
            }
            EventKind::Connect => {
                let (event, _) = take::<ConnectEvent>(bytes)?;
                Ok(Event::Connect(ConnectAttempt {
                    time,
                    flow: FlowId::Cookie(event.cookie),
                    remote: SocketAddr::new(address(event.remote), event.remote_port),
                    sender: Sender {
                        key: event.process,
                        tid: event.tid,
                        cgroup_id: event.cgroup_id,
                        netns: event.netns,
                    },
                }))
            }
            EventKind::ConnectReturned => {
                let (event, _) = take::<ConnectEvent>(bytes)?;
                Ok(Event::ConnectReturned(ConnectResult {
                    time,
                    flow: FlowId::Cookie(event.cookie),
                    errno: event.result.saturating_neg().max(0),
                }))
            }
            EventKind::Segment => {
                let (event, head) = take::<SegmentEvent>(bytes)?;
                segment(time, &event, head)
            }
            EventKind::Wire => {
                let (event, head) = take::<WireEvent>(bytes)?;
                wire(time, &event, head)
            }
            EventKind::Drop => self.dropped(time, &take::<DropEvent>(bytes)?.0),
            EventKind::Socket => socket(time, &take::<SocketEvent>(bytes)?.0),
            EventKind::Redirect => {
                let (event, _) = take::<RedirectEvent>(bytes)?;
                Ok(Event::Redirection(Redirection {
                    time,
                    flow: flow(event.cookie, &event.tuple),
                    local: local(&event.tuple),
                    remote: remote(&event.tuple),
                    to: SocketAddr::new(address(event.to), event.to_port),
                }))
            }
        }
    }

    fn process(&self, event: &ProcessEvent, v1: &[u8]) -> Event {
        let ancestors = event
            .ancestor
            .iter()
            .take(event.ancestors as usize)
            .map(|ancestor| Ancestor {
                pid: ancestor.tgid,
                comm: text(&ancestor.comm),
            })
            .collect();
        let known = |len: u16, bytes: &[u8]| {
            bytes
                .get(..usize::from(len))
                .filter(|bytes| !bytes.is_empty())
                .map(<[u8]>::to_vec)
        };
        Event::Process {
            key: event.key,
            cgroup_id: event.cgroup_id,
            delegated: event.cgroup_delegated.into(),
            v1: known(event.cgroup_v1_len, v1)
                .and_then(|bytes| cgroup(&bytes))
                .map(|path| CgroupPath {
                    path,
                    delegated: event.cgroup_v1_delegated.into(),
                }),
            process: Arc::new(Process::new(Unredacted {
                pid: event.key.tgid,
                tid: None,
                namespace_pid: (event.namespace_pid != event.key.tgid).then_some(event.namespace_pid),
                comm: text(&event.comm),
                exe: known(event.exe_len, &event.exe).and_then(|bytes| executable(&bytes)),
                cmdline: known(event.cmdline_len, &event.cmdline).map(|bytes| record::arguments(&bytes)),
                uid: (event.uid != u32::MAX).then_some(event.uid),
                start_time: (event.key.start_time_ns != 0).then(|| self.time(event.key.start_time_ns)),
                ancestors,
                cgroup: known(event.cgroup_len, &event.cgroup).and_then(|bytes| cgroup(&bytes)),
                netns: (event.netns != 0).then_some(event.netns),
            })),
        }
    }

    fn dropped(&mut self, time: Time, event: &DropEvent) -> Result<Event, WireError> {
        let direction = Direction::try_from(event.direction).map_err(WireError::Direction)?;
        let name = self.naming.name(event.location);
        self.unnamed = (name == Name::Soon).then_some(event.location);
        let location = known(name);
        Ok(Event::Drop(PacketDrop {
            time,
            flow: flow(event.cookie, &event.tuple),
            local: local(&event.tuple),
            remote: remote(&event.tuple),
            direction,
            sender: sender(event.process, event.tid, event.cgroup_id, 0),
            seq: event.seq,
            payload_len: event.payload_len,
            tcp_flags: event.tcp_flags,
            ttl: event.ttl,
            reason: self.reasons.get(&event.reason).cloned(),
            location,
            netns: event.netns,
        }))
    }
}

fn known(name: Name) -> Option<Arc<str>> {
    match name {
        Name::Known(name) => Some(name),
        Name::None | Name::Soon => None,
    }
}

/// The payload behind an event.
fn payload(len: u16, bytes: &[u8]) -> Result<&[u8], WireError> {
    let len = usize::from(len).min(HEAD_BYTES);
    bytes.get(..len).ok_or(WireError::Truncated {
        need: len,
        have: bytes.len(),
    })
}

/// Bytes to keep: what nearly every response begins with takes no memory.
fn kept(bytes: &[u8]) -> Bytes {
    const USUAL: &[u8; STATUS_LINE_BYTES] = b"HTTP/1.1 200 OK\r";
    if bytes == USUAL {
        Bytes::from_static(USUAL)
    } else {
        Bytes::copy_from_slice(bytes)
    }
}

fn segment(time: Time, event: &SegmentEvent, head: &[u8]) -> Result<Event, WireError> {
    let direction = Direction::try_from(event.direction).map_err(WireError::Direction)?;
    let head = payload(event.head_len, head)?;
    Ok(Event::Packet(Packet {
        time,
        vantage: Vantage::Socket,
        flow: flow(event.cookie, &event.tuple),
        direction,
        local: local(&event.tuple),
        remote: remote(&event.tuple),
        sender: sender(event.process, event.tid, event.cgroup_id, event.netns),
        seq: event.seq,
        ack: event.ack,
        tcp_flags: event.tcp_flags,
        ttl: event.ttl,
        payload_len: event.payload_len,
        data: kept(head),
        cut: event.flags & SegmentFlags::CUT != 0,
        retransmit: event.flags & SegmentFlags::RETRANSMIT != 0,
        icmp: None,
        ifindex: event.ifindex,
    }))
}

fn wire(time: Time, event: &WireEvent, head: &[u8]) -> Result<Event, WireError> {
    let direction = Direction::try_from(event.direction).map_err(WireError::Direction)?;
    let data = match direction {
        Direction::Request => payload(event.head_len, head)?,
        Direction::Response => &event.status_line[..usize::from(event.status_len).min(STATUS_LINE_BYTES)],
    };
    Ok(Event::Packet(Packet {
        time,
        vantage: Vantage::Uplink,
        flow: flow(event.cookie, &event.tuple),
        direction,
        local: local(&event.tuple),
        remote: remote(&event.tuple),
        sender: None,
        seq: event.seq,
        ack: event.ack,
        tcp_flags: event.tcp_flags,
        ttl: event.ttl,
        payload_len: event.payload_len,
        data: kept(data),
        cut: event.flags & SegmentFlags::CUT != 0,
        retransmit: false,
        icmp: (event.icmp_protocol != 0).then_some(IcmpError {
            v6: event.icmp_protocol == 58,
            kind: event.icmp_type,
            code: event.icmp_code,
        }),
        ifindex: event.ifindex,
    }))
}

/// States and `sk_shutdown` as the kernel counts.
const TCP_SYN_SENT: u8 = 2;
const TCP_FIN_WAIT2: u8 = 5;
const TCP_CLOSE: u8 = 7;
const TCP_CLOSE_WAIT: u8 = 8;
const TCP_LAST_ACK: u8 = 9;
const TCP_CLOSING: u8 = 11;
const RCV_SHUTDOWN: u8 = 1;
const SEND_SHUTDOWN: u8 = 2;

fn socket(time: Time, event: &SocketEvent) -> Result<Event, WireError> {
    Ok(Event::Socket(SocketChange {
        time,
        flow: flow(event.cookie, &event.tuple),
        state: match event.new_state {
            0 => SocketState::ErrorReport,
            1 => SocketState::Established,
            2 => SocketState::SynSent,
            7 => SocketState::Closed,
            3..=11 if event.shutdown == SEND_SHUTDOWN => SocketState::HalfClosed,
            3..=11 if event.shutdown == SEND_SHUTDOWN | RCV_SHUTDOWN => SocketState::Released,
            other => return Err(WireError::State(other)),
        },
        unconnected: event.new_state == TCP_CLOSE && event.old_state == TCP_SYN_SENT,
        received: (event.new_state == TCP_CLOSE && event.received > 0).then(|| {
            // The server's FIN has come in these states, and counts as a byte.
            let fin = matches!(
                event.old_state,
                TCP_FIN_WAIT2 | TCP_CLOSE_WAIT | TCP_LAST_ACK | TCP_CLOSING
            );
            event.received.saturating_sub(u32::from(fin))
        }),
        error: event.error,
        local: local(&event.tuple),
        remote: remote(&event.tuple),
    }))
}

fn address(mapped: [u8; 16]) -> IpAddr {
    let address = Ipv6Addr::from(mapped);
    address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
}

fn local(tuple: &Tuple) -> SocketAddr {
    SocketAddr::new(address(tuple.local), tuple.local_port)
}

fn remote(tuple: &Tuple) -> SocketAddr {
    SocketAddr::new(address(tuple.remote), tuple.remote_port)
}

fn flow(cookie: u64, tuple: &Tuple) -> FlowId {
    if cookie == 0 {
        FlowId::Addresses {
            local: local(tuple),
            remote: remote(tuple),
        }
    } else {
        FlowId::Cookie(cookie)
    }
}

fn sender(key: ProcessKey, tid: u32, cgroup_id: u64, netns: u32) -> Option<Sender> {
    (key.tgid != 0 || cgroup_id != 0).then_some(Sender {
        key,
        tid,
        cgroup_id,
        netns,
    })
}

/// Up to the first NUL.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// `python3\0bin\0usr\0/\0` -> `/usr/bin/python3`. Without the root's own `/` the path is longer than what was noted.
fn executable(bytes: &[u8]) -> Option<String> {
    let mut components: Vec<_> = components(bytes);
    let whole = components.last().is_some_and(|last| *last == b"/");
    if whole {
        components.pop();
    }
    join(&components, whole)
}

/// `app.service\0system.slice\0\0` -> `/system.slice/app.service`.
fn cgroup(bytes: &[u8]) -> Option<String> {
    let mut components: Vec<_> = components(bytes);
    let whole = components.last().is_some_and(|last| last.is_empty() || *last == b"/");
    if whole {
        components.pop();
        if components.is_empty() {
            return Some("/".to_owned());
        }
    }
    join(&components, whole)
}

fn components(bytes: &[u8]) -> Vec<&[u8]> {
    // Each component ends with NUL, so the last split is empty.
    bytes
        .strip_suffix(b"\0")
        .unwrap_or(bytes)
        .split(|byte| *byte == 0)
        .collect()
}

fn join(components: &[&[u8]], whole: bool) -> Option<String> {
    if components.iter().all(|component| component.is_empty()) {
        return None;
    }
    let mut path = String::from(if whole { "" } else { "..." });
    for component in components.iter().rev() {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(component));
    }
    Some(path)
}
#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::FromZeros as _;

    use super::*;

    #[test]
    fn paths_are_put_together_from_the_leaf_up() {
        assert_eq!(executable(b"curl\0bin\0usr\0/\0").as_deref(), Some("/usr/bin/curl"));
        assert_eq!(executable(b"curl\0bin\0").as_deref(), Some(".../bin/curl"));
        assert_eq!(
            cgroup(b"app.service\0system.slice\0\0").as_deref(),
            Some("/system.slice/app.service")
        );
        assert_eq!(cgroup(b"\0").as_deref(), Some("/"));
        assert_eq!(record::arguments(b"curl\0-s\0\0"), ["curl", "-s", ""]);
    }

    const ESTABLISHED: u8 = 1;

    #[test]
    fn bytes_that_a_closed_socket_received_are_those_of_its_stream() {
        let received = |old_state, new_state, received| {
            let mut event = SocketEvent::new_zeroed();
            (event.old_state, event.new_state, event.received) = (old_state, new_state, received);
            match socket(Time(0), &event) {
                Ok(Event::Socket(change)) => change.received,
                other => panic!("{other:?}"),
            }
        };
        for after_fin in [TCP_FIN_WAIT2, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING] {
            assert_eq!(received(after_fin, TCP_CLOSE, 301), Some(300), "{after_fin}");
        }
        assert_eq!(received(ESTABLISHED, TCP_CLOSE, 300), Some(300), "reset before a FIN");
        assert_eq!(received(ESTABLISHED, TCP_CLOSE, 0), None, "not known");
    }

    proptest! {
        #[test]
        fn any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..2048), kind in 0_u16..10) {
            if bytes.len() >= 10 {
                bytes[8..10].copy_from_slice(&kind.to_ne_bytes());
            }
            let _ = Decoder::new(Vec::new(), Symbols::default()).decode(&bytes);
        }
    }
}
