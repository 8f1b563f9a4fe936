//! State of one connection, and the outcome of its attempt and its requests.
//!
//! Events only add to what is known. [`Flow::settle`] alone decides, and may be asked at any time: so the order in which two CPUs report the same
//! moment doesn't matter.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher as _};
use std::net::SocketAddr;

use rustc_hash::FxHasher;

use super::attempt::Attempt;
use super::errno;
use super::pending::{Answer, Pending};
use super::shares::Charge;
use super::sightings::Sightings;
use super::{Fact, Limits};
use crate::event::{
    ConnectAttempt, ConnectResult, Direction, FlowId, Packet, PacketDrop, Redirection, Sender, SocketChange,
    SocketState, Vantage,
};
use crate::flow::{FoundRequest, FoundResponse, Meta, Refused, RequestReader, ResponseReader, Seq};
use crate::imds::{Hasher, below_version, endpoint_at, no_request, normalise, read_request_to, role_of};
use crate::record::{
    self, Body, Connection, DropCause, End, Exchange, ExchangeOutcome, LossCounts, PacketDirection, Request, SECOND,
    Time,
};

const MILLISECOND: u64 = 1_000_000;
/// Events of one moment may come this far apart and in any order.
const REORDER_NS: u64 = 10 * MILLISECOND;
/// Longest wait for missing bytes, or of a response for the request that it acknowledges.
const GAP_NS: u64 = 50 * MILLISECOND;
/// Time after which an undelivered response counts as lost.
const TRANSIT_NS: u64 = 100 * MILLISECOND;
/// Longest wait of a credentials response for its end: without `Content-Length` only the end of the stream shows its length.
const LENGTH_NS: u64 = 100 * MILLISECOND;
/// A client may close its sending side first and still read the answer. Without socket events, this is the time for which that is assumed.
const HALF_CLOSE_NS: u64 = SECOND;
/// Idle timeout. A request that waits this long when observation ends counts as unanswered, otherwise as open. Without socket events, nothing is expected after it.
const IDLE_NS: u64 = 20 * SECOND;
/// A drop event may arrive 3.05 s after a client that waited 2 s has closed.
const LINGER_NS: u64 = 5 * SECOND;
/// The same for a local socket whose requests were all answered: no drop needs an explanation, and its copies have arrived.
const SHORT_LINGER_NS: u64 = SECOND;
/// Slack of the time at which a connection is removed.
const FORGET_SLACK_NS: u64 = SECOND / 4;
/// Longer than any connection lives: no clock decides.
const NEVER_NS: u64 = 100 * 365 * 24 * 3_600 * SECOND;
/// A connection without any packet is forgotten after this; a later request on it starts a new entry.
const FORGET_NS: u64 = 900 * SECOND;

/// The parts of the table that a flow needs.
pub(super) struct Context<'a> {
    pub(super) limits: &'a Limits,
    pub(super) hasher: &'a Hasher,
    pub(super) loss: &'a mut LossCounts,
    /// Room for requests between reader and queue, the same for all flows; empty.
    pub(super) fresh: &'a mut Vec<Fresh>,
    /// The same for response heads.
    pub(super) heads: &'a mut Vec<FoundResponse>,
    /// The end of a socket that was opened after this will be seen. `None`: the source doesn't report sockets' states.
    pub(super) ends_are_seen: Option<Time>,
}

/// A request as it comes from the reader.
#[derive(Debug)]
pub(super) struct Fresh {
    truncated: bool,
    pending: Pending,
}

/// Where a client's own address was read, the surest last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum LocalFrom {
    /// A packet on its way, perhaps behind NAT.
    Elsewhere,
    /// Packets that the socket sends. A host's own packets have passed the firewall's NAT there already.
    Sent,
    /// The socket itself, or what is delivered to it.
    Socket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// Will send no more; may still read.
    Fin,
    Gone,
}

/// Known sequence numbers of the server's bytes.
#[derive(Clone, Copy, Debug)]
enum ServerBytes {
    Unknown,
    /// The first one.
    From(Seq),
    /// The one behind the last.
    Until(Seq),
}

/// Each connection takes one, so it has a bound: see the test.
#[derive(Debug)]
pub(super) struct Flow {
    id: FlowId,
    pub(super) opened: Time,
    isn: Option<Seq>,
    local: Option<SocketAddr>,
    /// How sure that is.
    local_from: LocalFrom,
    remote: SocketAddr,
    /// Boxed: few connections have it, and all pay for its size.
    redirected_to: Option<Box<SocketAddr>>,
    sender: Option<Sender>,
    attempt: Option<Attempt>,
    connect_ns: Option<u64>,
    requests: RequestReader,
    responses: ResponseReader,
    pending: VecDeque<Pending>,
    /// Response heads without a request yet, in the order of the stream.
    early: Vec<(FoundResponse, Vantage, Time)>,
    number: u32,
    socket_seen: bool,
    uplink_seen: bool,
    ifindex: u32,
    wire_ttl: Option<u8>,
    sightings: Sightings,
    client_ack: Option<Seq>,
    /// Start of the last response that was paired or passed over.
    last_response: Option<Seq>,
    /// 0: there was no response yet.
    responded: Time,
    client_left: Option<(Time, Leave)>,
    /// The client has closed its sending side alone, and reads on.
    half_closed: bool,
    /// Seen in a capture, where time costs nothing.
    captured: bool,
    server_fin: Option<Time>,
    server_bytes: ServerBytes,
    server_rst: Option<Time>,
    error: u32,
    closed: Option<Time>,
    last: Time,
    gap_since: Option<Time>,
    /// The client uses the port or socket for another connection: this one ended at an unknown time.
    superseded: bool,
    /// Not all went well: what comes late may explain it.
    troubled: bool,
    /// When the table's timer will look at this flow.
    pub(super) scheduled: Option<Time>,
    /// The flow's part of the budget.
    pub(super) share: Charge,
}

enum Decision {
    Wait(Time),
    Done {
        outcome: ExchangeOutcome,
        delivered: Option<bool>,
        until: Option<Time>,
    },
}

impl Flow {
    pub(super) fn new(id: FlowId, time: Time, remote: SocketAddr, limits: &Limits) -> Self {
        Self {
            id,
            opened: time,
            isn: None,
            local: None,
            local_from: LocalFrom::Elsewhere,
            remote,
            redirected_to: None,
            sender: None,
            attempt: None,
            connect_ns: None,
            requests: RequestReader::new(limits.stream),
            responses: ResponseReader::new(limits.stream),
            pending: VecDeque::new(),
            early: Vec::new(),
            number: 0,
            socket_seen: false,
            uplink_seen: false,
            ifindex: 0,
            wire_ttl: None,
            sightings: Sightings::new(),
            client_ack: None,
            last_response: None,
            responded: Time(0),
            client_left: None,
            half_closed: false,
            captured: false,
            server_fin: None,
            server_bytes: ServerBytes::Unknown,
            server_rst: None,
            error: 0,
            closed: None,
            last: time,
            gap_since: None,
            superseded: false,
            troubled: false,
            scheduled: None,
            share: Charge::default(),
        }
    }

    pub(super) fn sender(&self) -> Option<&Sender> {
        self.sender.as_ref()
    }

    /// Bytes of it, and of all that it refers to.
    pub(super) fn held_bytes(&self) -> usize {
        size_of::<Self>()
            + self.pending.capacity() * size_of::<Pending>()
            + self.pending.len() * Pending::TEXT_BYTES
            + self.early.capacity() * size_of::<(FoundResponse, Vantage, Time)>()
            + self.requests.held_bytes()
            + self.responses.held_bytes()
    }

    /// The client's initial sequence number, where its SYN was seen.
    pub(super) fn isn(&self) -> Option<Seq> {
        self.isn
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_some()
    }

    /// Something would be lost if the flow were forgotten now.
    pub(super) fn is_busy(&self) -> bool {
        !self.pending.is_empty()
            || self.attempt.as_ref().is_some_and(Attempt::is_open)
            || self.requests.partial().is_some()
    }

    /// Requests and attempts whose outcome would be lost.
    pub(super) fn awaited(&self) -> u64 {
        let attempt = self.attempt.as_ref().is_some_and(Attempt::is_open);
        self.pending.len() as u64 + u64::from(attempt) + u64::from(self.requests.partial().is_some())
    }

    fn socketless(&self) -> bool {
        matches!(self.id, FlowId::Addresses { .. })
    }

    fn connection(&self, exchange: u32) -> Connection {
        let id = match self.id {
            FlowId::Cookie(cookie) => format!("{cookie:x}"),
            FlowId::Addresses { local, remote } => {
                let mut hasher = FxHasher::default();
                (local, remote, self.isn.map_or(self.opened.0, |isn| u64::from(isn.0))).hash(&mut hasher);
                format!("{:016x}", hasher.finish())
            }
        };
        Connection {
            id,
            local: self.local.map(text),
            remote: text(self.remote),
            exchange,
            interface: None,
            cgroup: None,
            netns: None,
            redirected_to: self.redirected_to.as_deref().copied().map(text),
        }
    }

    fn know_local(&mut self, local: SocketAddr, from: LocalFrom) {
        let better = from > self.local_from || (from == self.local_from && from != LocalFrom::Elsewhere);
        if local.port() != 0 && (better || self.local.is_none()) {
            self.local = Some(local);
            self.local_from = from;
        }
    }

    fn know_remote(&mut self, remote: SocketAddr) {
        // A socket that was disconnected has no port any more.
        if remote.port() != 0 {
            self.remote = remote;
        }
    }

    fn know_sender(&mut self, sender: Option<Sender>) {
        if let Some(sender) = sender.filter(|sender| sender.key.tgid != 0) {
            self.sender = Some(sender);
        } else if self.sender.is_none() {
            self.sender = sender;
        }
    }

    fn attempt(&mut self, time: Time) -> &mut Attempt {
        let (sender, socketless) = (self.sender, self.socketless());
        self.attempt
            .get_or_insert_with(|| Attempt::new(time, sender, socketless))
    }

    pub(super) fn connect(&mut self, event: &ConnectAttempt, limits: &Limits) {
        self.last = self.last.max(event.time);
        self.know_sender(Some(event.sender));
        self.remote = event.remote;
        if self.tries_again() {
            self.begin_again(limits);
        }
        self.attempt
            .get_or_insert_with(|| Attempt::new(event.time, Some(event.sender), false));
    }

    /// The socket has been through a connection or a failed attempt: a `connect()` is a new one. While it is connecting or connected,
    /// `connect()` only asks how it went.
    pub(super) fn tries_again(&self) -> bool {
        self.attempt.as_ref().is_some_and(Attempt::has_failed) || self.closed.is_some()
    }

    /// Forgets what belonged to the connection before, once its facts are out. Exchanges are counted on: the socket is the same.
    pub(super) fn begin_again(&mut self, limits: &Limits) {
        self.attempt
            .take_if(|attempt| attempt.has_failed() || !attempt.is_open());
        self.isn = None;
        self.redirected_to = None;
        self.connect_ns = None;
        self.requests = RequestReader::new(limits.stream);
        self.responses = ResponseReader::new(limits.stream);
        self.pending.clear();
        self.early.clear();
        self.client_ack = None;
        self.last_response = None;
        self.responded = Time(0);
        self.client_left = None;
        self.half_closed = false;
        self.server_fin = None;
        self.server_bytes = ServerBytes::Unknown;
        self.server_rst = None;
        self.error = 0;
        self.closed = None;
        self.gap_since = None;
        self.superseded = false;
        self.troubled = false;
    }

    pub(super) fn supersede(&mut self) {
        self.superseded = true;
    }

    /// A packet filter sends its packets elsewhere.
    pub(super) fn redirected(&mut self, event: &Redirection) {
        self.last = self.last.max(event.time);
        self.remote = event.remote;
        self.know_local(event.local, LocalFrom::Socket);
        self.redirected_to = Some(Box::new(event.to));
    }

    /// Takes over what was seen of this connection at an uplink, behind NAT, before it was known whose it is. How many requests can't be
    /// reported: an answer that came later may be theirs or not.
    pub(super) fn absorb(&mut self, other: &mut Self) -> u64 {
        self.last = self.last.max(other.last);
        self.uplink_seen |= other.uplink_seen;
        self.wire_ttl = self.wire_ttl.or(other.wire_ttl);
        self.sightings.absorb(other.sightings);
        if let (Some(attempt), Some(other)) = (&mut self.attempt, &other.attempt) {
            attempt.absorb(other);
        }
        let mut unknown = 0;
        for sighted in other.pending.drain(..) {
            if let Some(known) = self.pending.iter_mut().find(|known| known.start == sighted.start) {
                known.absorb(sighted);
            } else if sighted.time < self.opened && sighted.answer.is_none() {
                unknown += 1;
            } else if sighted.time < self.opened {
                // From before the socket's own hook was attached: reported here or nowhere.
                self.number = self.number.saturating_add(1);
                let at = self
                    .pending
                    .partition_point(|known| sighted.start.from(known.start) > 0);
                let (number, sender) = (self.number, self.sender);
                self.pending.insert(
                    at,
                    Pending {
                        number,
                        sender,
                        ..sighted
                    },
                );
            }
        }
        unknown
    }

    pub(super) fn connect_returned(&mut self, event: &ConnectResult) {
        self.last = self.last.max(event.time);
        if let Some(attempt) = &mut self.attempt {
            attempt.errno(event.time, event.errno);
        }
    }

    pub(super) fn socket(&mut self, event: &SocketChange) {
        self.last = self.last.max(event.time);
        if event.state == SocketState::ErrorReport && self.closed.is_some() {
            // Closing with SO_LINGER 0 sets an error and clears the addresses: the client's own doing.
            return;
        }
        self.know_remote(event.remote);
        self.know_local(event.local, LocalFrom::Socket);
        let errno = i32::try_from(event.error).unwrap_or(0);
        match event.state {
            SocketState::SynSent => self.attempt(event.time).has_states(),
            SocketState::Established => self.attempt(event.time).establish(event.time),
            SocketState::HalfClosed => self.half_closed = true,
            SocketState::Released => self.client_gone(event.time),
            SocketState::ErrorReport => {
                self.error = event.error;
                if let Some(attempt) = self.attempt.as_mut().filter(|_| errno != 0) {
                    attempt.errno(event.time, errno);
                }
            }
            SocketState::Closed => {
                if errno != 0 {
                    self.error = event.error;
                }
                if let (ServerBytes::From(first), Some(received)) = (self.server_bytes, event.received) {
                    self.server_bytes = ServerBytes::Until(first.plus(received));
                }
                if let Some(attempt) = &mut self.attempt {
                    if !event.unconnected {
                        attempt.connected_before(event.time);
                    } else if attempt.revoke() {
                        self.connect_ns = None;
                    }
                    if errno != 0 {
                        attempt.errno(event.time, errno);
                    }
                    attempt.close(event.time);
                }
                self.closed.get_or_insert(event.time);
                self.client_gone(event.time);
            }
        }
    }

    fn client_gone(&mut self, time: Time) {
        self.client_left = Some(match self.client_left {
            // The client's wait ends when it closes, not when the kernel destroys the socket.
            Some((left, how)) if how == Leave::Gone || !self.half_closed => (left, Leave::Gone),
            _ => (time, Leave::Gone),
        });
    }

    /// A packet was dropped by this kernel. Gives the fact, unless it is the kernel's own housekeeping.
    pub(super) fn dropped(&mut self, event: &PacketDrop, out: &mut Vec<Fact>) {
        self.last = self.last.max(event.time);
        let syn = event.tcp_flags & Packet::SYN != 0;
        if is_housekeeping(event) || !(syn || event.payload_len > 0) {
            return;
        }
        self.know_remote(event.remote);
        self.know_local(event.local, LocalFrom::Elsewhere);
        let [reason, location] = [&event.reason, &event.location].map(|text| text.as_deref().map(str::to_owned));
        let evidence = || DropCause {
            reason: reason.clone(),
            location: location.clone(),
        };
        if syn && self.attempt.is_none() && event.direction == Direction::Request {
            self.attempt(event.time).watch();
        }
        if let Some(attempt) = self.attempt.as_mut().filter(|_| syn) {
            if event.direction == Direction::Response && attempt.answer_dropped() {
                self.connect_ns = None;
            }
            attempt.dropped(evidence);
        }
        if event.direction == Direction::Response && event.payload_len > 0 && self.closed.is_none() {
            self.response_died(event);
        }
        let known = event.sender.filter(|sender| sender.key.tgid != 0);
        let body = Body::Drop(record::PacketDrop {
            process: None,
            container: None,
            connection: self.connection(0),
            direction: match event.direction {
                Direction::Request => PacketDirection::Request,
                Direction::Response => PacketDirection::Response,
            },
            reason,
            location,
            ttl: (event.ttl != 0).then_some(event.ttl),
            netns: (event.netns != 0).then_some(event.netns),
        });
        let sender = known.or(self.sender).or(event.sender);
        out.push(self.fact(event.time, sender, body));
    }

    fn response_died(&mut self, event: &PacketDrop) {
        let seq = Seq(event.seq);
        if let Some(answer) = self.answer_in(seq, event.payload_len) {
            answer.dropped(event.time);
            return;
        }
        // Its arrival was not observed, but it must have arrived: at an uplink that another program reads before us.
        let waiting = self.pending.iter_mut().find(|pending| pending.answer.is_none());
        if let Some(pending) = waiting.filter(|pending| pending.floor == seq) {
            let answer = pending.answer.insert(Answer::new(seq));
            answer.dropped(event.time);
            self.last_response = Some(seq);
        }
    }

    fn answer_in(&mut self, seq: Seq, len: u32) -> Option<&mut Answer> {
        self.pending
            .iter_mut()
            .filter_map(|pending| pending.answer.as_mut())
            .find(|answer| answer.start.within(seq, len.max(1)))
    }

    pub(super) fn packet(&mut self, packet: &Packet, context: &mut Context<'_>) {
        self.last = self.last.max(packet.time);
        self.know_remote(packet.remote);
        if let Some(icmp) = packet.icmp {
            if let Some(attempt) = self.attempt.as_mut().filter(|attempt| attempt.is_open()) {
                attempt.icmp(packet.time, icmp);
            }
            // An ICMP error sent to IMDS shows that its packet was dropped here.
            if packet.direction == Direction::Request
                && let Some(answer) = self.answer_in(Seq(packet.seq), packet.payload_len)
            {
                answer.refused(icmp);
            }
            return;
        }
        let from = match (packet.vantage, packet.direction) {
            (Vantage::Socket, Direction::Response) => LocalFrom::Socket,
            (Vantage::Socket, Direction::Request) => LocalFrom::Sent,
            _ => LocalFrom::Elsewhere,
        };
        self.know_local(packet.local, from);
        if self.socketless() && self.ifindex == 0 {
            self.ifindex = packet.ifindex;
        }
        match packet.vantage {
            Vantage::Socket => self.socket_seen = true,
            Vantage::Uplink => self.uplink_seen = true,
            Vantage::Capture => self.captured = true,
        }
        match packet.direction {
            Direction::Request => self.request_packet(packet, context),
            Direction::Response => self.response_packet(packet, context),
        }
    }

    fn request_packet(&mut self, packet: &Packet, context: &mut Context<'_>) {
        let flags = packet.tcp_flags;
        match packet.vantage {
            Vantage::Socket => {}
            Vantage::Uplink => self.wire_ttl = Some(packet.ttl),
            // Among copies at several interfaces, the one with the smallest TTL is the one that left the host.
            Vantage::Capture => self.wire_ttl = Some(self.wire_ttl.map_or(packet.ttl, |ttl| ttl.min(packet.ttl))),
        }
        self.sightings.see(packet);
        if flags & Packet::SYN != 0 {
            self.know_sender(packet.sender);
            if self.isn == Some(Seq(packet.seq)) && self.number == 0 {
                // The RST before it refused a stale acknowledgement of the server (a port in TIME_WAIT): the client goes on connecting.
                self.client_left = None;
                self.closed = None;
            }
            self.isn = Some(Seq(packet.seq));
            self.requests.start(Seq(packet.seq));
            let (socket, wire, place) = match packet.vantage {
                Vantage::Socket => (true, false, 0),
                Vantage::Uplink => (false, true, 1),
                Vantage::Capture => (true, true, 2),
            };
            if self.attempt(packet.time).syn(packet.time, socket, wire, place) {
                self.connect_ns = None;
            }
        } else if flags & Packet::RST == 0
            && let Some(attempt) = &mut self.attempt
        {
            // The handshake's last packet, or anything behind it.
            attempt.establish(packet.time);
        }
        if flags & Packet::ACK != 0 {
            let ack = Seq(packet.ack);
            self.client_ack = Some(self.client_ack.map_or(ack, |known| known.max(ack)));
            for answer in self.pending.iter_mut().filter_map(|pending| pending.answer.as_mut()) {
                if ack.from(answer.start) > 0 {
                    answer.acknowledge(packet.time);
                }
            }
        }
        if packet.payload_len > 0 {
            self.request_payload(packet, context);
        }
        if flags & Packet::RST != 0 {
            self.closed.get_or_insert(packet.time);
            self.client_gone(packet.time);
        } else if flags & Packet::FIN != 0 {
            self.client_left.get_or_insert((packet.time, Leave::Fin));
            self.close_if_both_left(packet.time);
        }
    }

    fn close_if_both_left(&mut self, time: Time) {
        if self.client_left.is_some() && self.server_fin.is_some() {
            self.closed.get_or_insert(time);
        }
    }

    fn request_payload(&mut self, packet: &Packet, context: &mut Context<'_>) {
        let seq = Seq(packet.seq);
        let captured = packet.vantage == Vantage::Capture;
        // Where an uplink is all there is, it is like a capture: it shows by itself what is sent again.
        let only_wire = packet.vantage == Vantage::Uplink && self.socketless();
        let again = packet.retransmit || ((captured || only_wire) && self.is_old(packet));
        if again && (packet.vantage != Vantage::Uplink || only_wire) {
            let touches = |pending: &&mut Pending| {
                let behind = pending.end.from(seq) > 0;
                behind && seq.plus(packet.payload_len).from(pending.start) > 0
            };
            if let Some(pending) = self.pending.iter_mut().find(touches) {
                pending.sent_again(packet.time);
            }
        }
        // The hook at the socket reports all bytes of that socket.
        if packet.vantage == Vantage::Uplink && !self.socketless() {
            return;
        }
        if packet.data.is_empty() && !packet.cut && !captured {
            if only_wire {
                self.unreadable_request(packet, context);
            }
            return;
        }
        self.know_sender(packet.sender);
        if captured {
            self.responses.start(Seq(packet.ack));
        }
        match self.collect(context, |requests, found| requests.push(packet, found)) {
            Ok(()) => {}
            Err(Refused::Far) => context.loss.unparsed += 1,
            Err(Refused::Full) => {
                context.loss.truncated += 1;
                self.collect(context, |requests, found| requests.skip_gap(found));
                // The first waiting piece is gone: there is room.
                let _ = self.collect(context, |requests, found| requests.push(packet, found));
            }
        }
        self.gap_since = match self.gap_since {
            _ if !self.has_gap() => None,
            None => Some(packet.time),
            since => since,
        };
    }

    fn is_old(&self, packet: &Packet) -> bool {
        let end = Seq(packet.seq).plus(packet.payload_len);
        self.requests.next_seq().is_some_and(|next| end.from(next) <= 0)
    }

    fn has_gap(&self) -> bool {
        self.requests.has_gap() || self.responses.has_gap()
    }

    /// Payload of a client without a socket here, of which the uplink shows no byte: all that is known is that something was asked.
    fn unreadable_request(&mut self, packet: &Packet, context: &mut Context<'_>) {
        if let Some(pending) = self.pending.back_mut().filter(|pending| pending.answer.is_none()) {
            if pending.start.within(Seq(packet.seq), packet.payload_len) {
                pending.sent_again(packet.time);
            }
            return;
        }
        let seq = Seq(packet.seq);
        if self.requests.next_seq().is_some_and(|next| seq.from(next) < 0) {
            return;
        }
        self.requests = RequestReader::new(context.limits.stream);
        self.requests.start(seq.plus(packet.payload_len).plus(u32::MAX));
        self.enqueue(
            Pending {
                number: 0,
                start: seq,
                end: seq.plus(packet.payload_len),
                floor: Seq(packet.ack),
                pipelined: false,
                time: packet.time,
                last_sent: packet.time,
                sender: None,
                request: Request {
                    endpoint: Some(endpoint_at(self.remote.ip())),
                    ..no_request(false)
                },
                wants_length: false,
                answer: None,
            },
            context,
        );
    }

    /// Takes over the requests that the reader gives while `read` is at work.
    fn collect<R>(
        &mut self,
        context: &mut Context<'_>,
        read: impl FnOnce(&mut RequestReader, &mut dyn FnMut(FoundRequest<'_>)) -> R,
    ) -> R {
        let mut fresh = std::mem::take(context.fresh);
        let (hasher, remote) = (context.hasher, self.remote.ip());
        let mut doubtful = 0;
        let mut take = |found: FoundRequest<'_>| {
            if found.doubtful {
                doubtful += 1;
                return;
            }
            let Meta { time, ack, sender, .. } = found.meta;
            let request = read_request_to(&found.head, hasher, Some(remote));
            fresh.push(Fresh {
                truncated: found.head.truncated,
                pending: Pending {
                    number: 0,
                    start: found.start,
                    end: found.end,
                    floor: ack,
                    pipelined: false,
                    time,
                    last_sent: time,
                    sender,
                    wants_length: asks_for_credentials(&request),
                    request,
                    answer: None,
                },
            });
        };
        let result = read(&mut self.requests, &mut take);
        self.number = self.number.saturating_add(doubtful);
        context.loss.truncated += u64::from(doubtful);
        for Fresh { truncated, pending } in fresh.drain(..) {
            context.loss.truncated += u64::from(truncated);
            context.loss.unparsed += u64::from(pending.request.method.is_none());
            self.enqueue(pending, context);
        }
        *context.fresh = fresh;
        result
    }

    fn enqueue(&mut self, mut pending: Pending, context: &mut Context<'_>) {
        self.pair(pending.time, false, context);
        // The client has received bytes since the request before, and their head was missed: the response to that request is unknown.
        let moved_on = self.early.is_empty()
            && self.pending.back().is_some_and(|before| {
                before.answer.is_none() && !before.pipelined && pending.floor.from(before.floor) > 0
            });
        if moved_on {
            self.pending.pop_back();
            context.loss.truncated += 1;
        }
        if self.pending.len() >= context.limits.pending {
            self.pending.pop_front();
            context.loss.evicted += 1;
        }
        self.number = self.number.saturating_add(1);
        pending.number = self.number;
        pending.pipelined = self.pending.back().is_some_and(|before| before.answer.is_none());
        pending.sender = pending
            .sender
            .filter(|sender| sender.key.tgid != 0)
            .or(self.sender)
            .or(pending.sender);
        if self.pending.is_empty() {
            // Mostly there is one.
            self.pending.reserve_exact(1);
        }
        self.pending.push_back(pending);
    }

    fn response_packet(&mut self, packet: &Packet, context: &mut Context<'_>) {
        let flags = packet.tcp_flags;
        let reaches_client = packet.vantage != Vantage::Uplink;
        if flags & Packet::SYN != 0 {
            let first = Seq(packet.seq).plus(1);
            self.requests.server_starts(first);
            self.server_bytes = ServerBytes::From(first);
            if packet.vantage == Vantage::Capture {
                self.responses.start(first);
            }
            if let Some(attempt) = &mut self.attempt {
                match packet.vantage {
                    // Whether it reaches the client shows in what that sends next: an ACK, or its SYN again.
                    Vantage::Capture => {
                        attempt.arrived();
                        attempt.answered(packet.time);
                    }
                    Vantage::Socket => attempt.answered(packet.time),
                    Vantage::Uplink => attempt.arrived(),
                }
            }
        }
        if packet.payload_len > 0 {
            self.response_payload(packet, context);
        }
        if flags & Packet::RST != 0 {
            match self.attempt.as_mut().filter(|attempt| attempt.is_open()) {
                Some(attempt) => attempt.reset(packet.time),
                None if reaches_client || !self.socket_seen => {
                    self.server_rst.get_or_insert(packet.time);
                    self.closed.get_or_insert(packet.time);
                }
                None => {}
            }
        } else if flags & Packet::FIN != 0 {
            self.server_fin.get_or_insert(packet.time);
            if !matches!(self.server_bytes, ServerBytes::Until(_)) {
                self.server_bytes = ServerBytes::Until(Seq(packet.seq).plus(packet.payload_len));
            }
            self.close_if_both_left(packet.time);
        }
    }

    fn response_payload(&mut self, packet: &Packet, context: &mut Context<'_>) {
        self.requests.turn();
        if let Some(attempt) = self.attempt.as_mut().filter(|_| packet.vantage != Vantage::Uplink) {
            attempt.establish(packet.time);
        }
        if let Some(answer) = self.answer_in(Seq(packet.seq), packet.payload_len) {
            answer.sight(packet.vantage, packet.time, packet.ttl);
        }
        if packet.vantage == Vantage::Capture {
            let mut found = std::mem::take(context.heads);
            match self.responses.push(packet, |head| found.push(head)) {
                Ok(()) => {}
                Err(Refused::Far) => context.loss.unparsed += 1,
                Err(Refused::Full) => {
                    context.loss.truncated += 1;
                    self.responses.skip_gap(|head| found.push(head));
                    // The first waiting piece is gone: there is room.
                    let _ = self.responses.push(packet, |head| found.push(head));
                }
            }
            for head in found.drain(..) {
                self.response_head(head, Vantage::Capture, packet.time, context);
            }
            *context.heads = found;
            if self.has_gap() {
                self.gap_since.get_or_insert(packet.time);
            }
            return;
        }
        let head = FoundResponse::in_segment(packet).or_else(|| {
            // The first byte behind what the client had when it asked, and it is no HTTP.
            let waiting = self.pending.iter().find(|pending| pending.answer.is_none())?;
            (waiting.floor == Seq(packet.seq) && !waiting.pipelined).then(|| FoundResponse {
                start: Seq(packet.seq),
                meta: Meta::of(packet),
                status: None,
                server: None,
                via_proxy: None,
                head_bytes: None,
                body_bytes: None,
            })
        });
        if let Some(head) = head {
            self.response_head(head, packet.vantage, packet.time, context);
        }
    }

    fn response_head(&mut self, head: FoundResponse, vantage: Vantage, now: Time, context: &mut Context<'_>) {
        if let Some(answer) = self.answer_in(head.start, 1) {
            // Sighted already; but a drop or a first byte may have come without its status.
            answer.describe(head);
            return;
        }
        // 100 Continue and its like are no answer; 101 is the last HTTP response on the connection.
        if matches!(head.status, Some(100 | 102..=199))
            || self.last_response.is_some_and(|last| head.start.from(last) <= 0)
        {
            return;
        }
        // Kept once for each vantage point: both sightings count when its request comes.
        if self
            .early
            .iter()
            .any(|(known, at, _)| known.start == head.start && *at == vantage)
        {
            return;
        }
        if self.early.len() >= context.limits.early {
            context.loss.evicted += 1;
            return;
        }
        let at = self
            .early
            .partition_point(|(known, ..)| head.start.from(known.start) >= 0);
        self.early.insert(at, (head, vantage, now));
    }

    /// Gives response heads to the requests that they answer.
    fn pair(&mut self, now: Time, last: bool, context: &mut Context<'_>) {
        while let Some((head, vantage, seen)) = self.early.first() {
            let (start, ack, vantage, seen) = (head.start, head.meta.ack, *vantage, *seen);
            if self.answer_in(start, 1).is_some() {
                // The same response at another vantage point.
                let (head, ..) = self.early.remove(0);
                if let Some(answer) = self.answer_in(start, 1) {
                    answer.sight(vantage, head.meta.time, head.meta.ttl);
                    answer.describe(head);
                }
                continue;
            }
            // A FIN takes a sequence number of its own.
            let fin = i32::from(self.client_left.is_some());
            let behind = self.requests.next_seq().is_some_and(|next| ack.from(next) > fin);
            if behind && !last && now < seen.plus_ns(GAP_NS) {
                return;
            }
            let asked = |pending: &&mut Pending| pending.answer.is_none() && ack.from(pending.start) > 0;
            if self.pending.iter_mut().find(asked).is_none()
                && self.requests.partial().is_some_and(|partial| ack.from(partial) > 0)
            {
                // Answered before its head was complete, or the rest of it was missed.
                let waiting = std::mem::take(&mut self.early);
                self.collect(context, |requests, found| requests.flush(found));
                self.early = waiting;
            }
            let (head, ..) = self.early.remove(0);
            self.last_response = Some(start);
            let Some(pending) = self.pending.iter_mut().find(asked) else {
                continue;
            };
            self.responded = head.meta.time;
            let answer = pending.answer.insert(Answer::new(start));
            answer.sight(vantage, head.meta.time, head.meta.ttl);
            if self.client_ack.is_some_and(|acknowledged| acknowledged.from(start) > 0) {
                answer.acknowledge(head.meta.time);
            }
            answer.describe(head);
        }
    }

    /// Decides what can be decided by `now`, and returns when to ask again; `None`: the flow can be removed.
    /// `last`: the observer stops, nothing more will come.
    pub(super) fn settle(
        &mut self,
        now: Time,
        last: bool,
        context: &mut Context<'_>,
        out: &mut Vec<Fact>,
    ) -> Option<Time> {
        if self.gap_since.is_some_and(|since| last || now >= since.plus_ns(GAP_NS)) {
            self.give_up_gaps(now, context);
        }
        if last || self.closed.is_some() {
            let mut found = Vec::new();
            self.responses.flush(|head| found.push(head));
            for head in found {
                self.response_head(head, Vantage::Capture, now, context);
            }
        }
        self.pair(now, last, context);
        let leaving = self
            .client_left
            .is_some_and(|(time, _)| now >= time.plus_ns(REORDER_NS))
            || self.server_rst.is_some();
        let stale = now >= self.last.plus_ns(IDLE_NS);
        if self.requests.partial().is_some() && (last || leaving || stale) {
            self.collect(context, |requests, found| requests.flush(found));
        }
        let mut due = self.settle_attempt(now, last, out);
        let mut sooner = |time: Option<Time>| {
            if let Some(time) = time {
                due = Some(due.map_or(time, |due: Time| due.min(time)));
            }
        };
        let mut at = 0;
        while let Some(pending) = self.pending.get(at) {
            match self.judge(pending, now, last, context.ends_are_seen) {
                Decision::Wait(time) => {
                    sooner(Some(time));
                    at += 1;
                }
                Decision::Done {
                    outcome,
                    delivered,
                    until,
                } => {
                    if let Some(pending) = self.pending.remove(at) {
                        self.report(pending, outcome, delivered, until, context, out);
                    }
                }
            }
        }
        sooner(self.gap_since.map(|since| since.plus_ns(GAP_NS)));
        sooner(self.early.first().map(|(.., seen)| seen.plus_ns(GAP_NS)));
        if self.requests.partial().is_some() {
            sooner(self.client_left.map(|(time, _)| time.plus_ns(REORDER_NS)));
            sooner(Some(self.last.plus_ns(IDLE_NS)));
        }
        if due.is_some() {
            return due;
        }
        let forget = self.forgotten();
        // A little later does no harm, if it is looked at then anyway.
        let looked_at = |time: &Time| (forget..=forget.plus_ns(FORGET_SLACK_NS)).contains(time);
        let forget = self.scheduled.filter(looked_at).unwrap_or(forget);
        (now < forget).then_some(forget)
    }

    /// When nothing that comes can belong to it any more.
    fn forgotten(&mut self) -> Time {
        let Some(closed) = self.closed else {
            return self.last.plus_ns(FORGET_NS);
        };
        // It is kept for a while, and thousands with it: without the room that it took for its requests.
        self.pending = VecDeque::new();
        let failed = self.attempt.as_ref().is_some_and(Attempt::has_failed);
        let linger = if self.troubled || failed || self.socketless() {
            LINGER_NS
        } else {
            SHORT_LINGER_NS
        };
        closed.max(self.last).plus_ns(linger)
    }

    fn give_up_gaps(&mut self, now: Time, context: &mut Context<'_>) {
        self.gap_since = None;
        let mut found = Vec::new();
        while self.requests.has_gap() {
            context.loss.truncated += 1;
            self.collect(context, |requests, found| requests.skip_gap(found));
        }
        while self.responses.has_gap() {
            context.loss.truncated += 1;
            self.responses.skip_gap(|head| found.push(head));
        }
        for head in found {
            self.response_head(head, Vantage::Capture, now, context);
        }
    }

    fn settle_attempt(&mut self, now: Time, last: bool, out: &mut Vec<Fact>) -> Option<Time> {
        if self.number == 0 && self.connect_ns.is_none() {
            self.connect_ns = self.attempt.as_ref()?.handshake_ns();
        }
        let attempt = self.attempt.as_ref().filter(|attempt| attempt.is_open())?;
        if attempt.is_due(now) || last {
            let connection = self.connection(0);
            let attempt = self.attempt.as_mut()?;
            let (time, sender) = attempt.origin();
            let connect = attempt.settle(now, last, connection);
            out.extend(connect.map(|connect| self.fact(time, sender, Body::Connect(connect))));
        }
        let attempt = self.attempt.as_ref()?;
        if self.socketless() && attempt.has_failed() {
            self.closed.get_or_insert(now);
        }
        attempt.due()
    }

    fn judge(&self, pending: &Pending, now: Time, last: bool, ends_are_seen: Option<Time>) -> Decision {
        // Seen at an uplink alone: a socket of this host may yet turn out to have sent it.
        let settled = pending.time.plus_ns(REORDER_NS);
        if self.uplink_seen && self.socketless() && now < settled && !last {
            return Decision::Wait(settled);
        }
        let answer = pending.answer.as_ref();
        if let Some((answer, delivered)) = answer.and_then(|answer| Some((answer, answer.delivered()?))) {
            // Whether these are credentials shows in their length, which may be known a moment later.
            let ends = delivered.plus_ns(LENGTH_NS);
            let over = last || self.closed.is_some() || self.server_rst.is_some();
            if pending.wants_length && now < ends && !over && self.length(pending, answer).is_none() {
                return Decision::Wait(ends);
            }
            // The TTL on the wire may arrive slightly later.
            let settled = delivered.plus_ns(REORDER_NS);
            if self.uplink_seen && !answer.on_wire() && now < settled && !last {
                return Decision::Wait(settled);
            }
            return Decision::Done {
                outcome: ExchangeOutcome::Answered,
                delivered: Some(true),
                until: answer.first_byte(),
            };
        }
        let arrived = answer.and_then(|answer| answer.arrived);
        let killed = answer.is_some_and(|answer| answer.killed);
        // Without a socket in sight, not seeing the delivery proves nothing: the death or the repetition must have been seen.
        let proven = self.socket_seen || killed || answer.is_some_and(|answer| answer.retransmits > 0);
        let arrived_as = if proven {
            (ExchangeOutcome::Lost, Some(false))
        } else {
            (ExchangeOutcome::Answered, None)
        };
        let done = |(outcome, delivered), until| Decision::Done {
            outcome,
            delivered,
            until,
        };
        let silent_since = pending.time.max(arrived.unwrap_or_default());
        // A response that has arrived and isn't delivered is unlikely to be delivered later.
        let idle = if arrived.is_some() {
            silent_since.plus_ns(IDLE_NS)
        } else {
            self.nothing_comes_after(silent_since, ends_are_seen)
        };
        let mut wait = idle;
        if let Some((left, how)) = self.client_left {
            // Its end, or the server's, will decide.
            let reads_on = self.half_closed && how == Leave::Fin;
            let settled = match (arrived, how) {
                (Some(at), _) if killed || left.since(at) >= TRANSIT_NS => left,
                (_, Leave::Fin) if reads_on => idle,
                (_, Leave::Fin) if self.captured => self.last.max(left).plus_ns(FORGET_NS),
                (_, Leave::Fin) => left.plus_ns(HALF_CLOSE_NS),
                (_, Leave::Gone) => left.plus_ns(REORDER_NS),
            };
            if now >= settled || last && !reads_on {
                let verdict = match arrived {
                    Some(_) => arrived_as,
                    None if self.server_rst.is_some_and(|reset| reset <= settled) => (ExchangeOutcome::Reset, None),
                    None if self.error == errno::ECONNRESET as u32 => (ExchangeOutcome::Reset, None),
                    None if self.error == errno::ETIMEDOUT as u32 => (ExchangeOutcome::Unanswered, None),
                    None if self.server_fin.is_some_and(|fin| fin < left) => (ExchangeOutcome::Unanswered, None),
                    None => (ExchangeOutcome::Closed, None),
                };
                return done(verdict, Some(left));
            }
            wait = wait.min(settled);
        }
        if let Some(reset) = self.server_rst {
            let settled = reset.plus_ns(REORDER_NS);
            if now >= settled || last {
                return done(
                    if arrived.is_some() {
                        arrived_as
                    } else {
                        (ExchangeOutcome::Reset, None)
                    },
                    Some(reset),
                );
            }
            wait = wait.min(settled);
        }
        if let Some(fin) = self.server_fin.filter(|_| arrived.is_none()) {
            let settled = fin.plus_ns(TRANSIT_NS);
            if now >= settled || last {
                return done((ExchangeOutcome::Unanswered, None), Some(fin));
            }
            wait = wait.min(settled);
        }
        if now >= idle || (last && !self.socket_outlives(ends_are_seen) && now >= silent_since.plus_ns(IDLE_NS)) {
            return done(
                if arrived.is_some() {
                    arrived_as
                } else {
                    (ExchangeOutcome::Unanswered, None)
                },
                None,
            );
        }
        if last {
            return match arrived {
                Some(_) if killed || (proven && (self.superseded || !self.socket_seen)) => {
                    done((ExchangeOutcome::Lost, Some(false)), None)
                }
                Some(_) if !self.socket_seen => done((ExchangeOutcome::Answered, None), None),
                Some(at) => done(
                    (ExchangeOutcome::Open, (now.since(at) >= TRANSIT_NS).then_some(false)),
                    None,
                ),
                None if self.superseded => done((ExchangeOutcome::Closed, None), None),
                None => done((ExchangeOutcome::Open, None), None),
            };
        }
        // Lost events may change which side decides.
        Decision::Wait(wait.min(now.plus_ns(FORGET_NS)))
    }

    /// When no answer can come any more, if nothing else shows it. A socket's end decides, however long its process waits; where it
    /// isn't seen, silence does.
    fn nothing_comes_after(&self, silent_since: Time, ends_are_seen: Option<Time>) -> Time {
        if self.socket_outlives(ends_are_seen) {
            return self.last.max(silent_since).plus_ns(NEVER_NS);
        }
        if self.socketless() || ends_are_seen.is_some() {
            return self.last.max(silent_since).plus_ns(FORGET_NS);
        }
        silent_since.plus_ns(IDLE_NS)
    }

    /// There is a socket, and its end will be reported.
    fn socket_outlives(&self, ends_are_seen: Option<Time>) -> bool {
        !self.socketless() && self.closed.is_none() && ends_are_seen.is_some_and(|lost| self.opened > lost)
    }

    /// Bytes of an answer, head and body: by its head, else up to the next request or the end of the stream.
    fn length(&self, pending: &Pending, answer: &Answer) -> Option<u64> {
        if pending.request.method.as_deref() == Some("HEAD") {
            // Content-Length is that of the body that is left out.
            return None;
        }
        if answer.length.is_some() {
            return answer.length;
        }
        let next = self
            .pending
            .iter()
            .find(|next| next.number > pending.number)
            .filter(|next| !next.pipelined)
            .map(|next| next.floor);
        let newest = self.last_response == Some(answer.start);
        let end = match (next, self.server_bytes) {
            (Some(next), _) => next,
            (None, ServerBytes::Until(end)) if newest => end,
            _ => return None,
        };
        u64::try_from(end.from(answer.start)).ok().filter(|length| *length > 0)
    }

    fn report(
        &mut self,
        pending: Pending,
        outcome: ExchangeOutcome,
        delivered: Option<bool>,
        until: Option<Time>,
        context: &mut Context<'_>,
        out: &mut Vec<Fact>,
    ) {
        // Two answers in one segment show one head: this request may well have had the second.
        let hidden = pending.pipelined
            && pending.answer.is_none()
            && outcome != ExchangeOutcome::Reset
            && self.responded != Time(0)
            && self.responded >= pending.time;
        if hidden {
            context.loss.truncated += 1;
            return;
        }
        self.troubled |= outcome != ExchangeOutcome::Answered;
        let closed_by = self.closed_by(outcome);
        let length = pending.answer.as_ref().and_then(|answer| self.length(&pending, answer));
        let mut request = pending.request;
        request.ttl = self.wire_ttl.or(self.sightings.socket_ttl());
        request.ttl_on_wire = request.ttl.map(|_| self.wire_ttl.is_some());
        request.hops = self.sightings.hops();
        let latency_ns = pending
            .answer
            .as_ref()
            .and_then(Answer::first_byte)
            .map(|first| first.since(pending.time));
        let body = Body::Exchange(Exchange {
            process: None,
            container: None,
            connection: self.connection(pending.number),
            request,
            response: pending.answer.map(|answer| answer.record(delivered, length)),
            outcome,
            latency_ns,
            waited_ns: until.map(|until| until.since(pending.time)),
            connect_ns: self.connect_ns.filter(|_| pending.number == 1),
            closed_by,
        });
        out.push(self.fact(pending.time, pending.sender, body));
    }

    fn fact(&self, time: Time, sender: Option<Sender>, body: Body) -> Fact {
        Fact {
            flow: self.id,
            sender,
            ifindex: self.ifindex,
            time,
            body,
        }
    }

    /// Which end closed the connection of a request that had no response.
    fn closed_by(&self, outcome: ExchangeOutcome) -> Option<End> {
        let by_client = self.client_left.map(|(time, _)| time);
        let by_server = [self.server_fin, self.server_rst].into_iter().flatten().min();
        match outcome {
            ExchangeOutcome::Answered | ExchangeOutcome::Lost | ExchangeOutcome::Open => None,
            ExchangeOutcome::Reset => Some(End::Server),
            _ => match (by_client, by_server) {
                (Some(client), Some(server)) if client <= server => Some(End::Client),
                (_, Some(_)) => Some(End::Server),
                (Some(_), None) => Some(End::Client),
                (None, None) => None,
            },
        }
    }
}

/// Whether the length of the answer is evidence.
fn asks_for_credentials(request: &Request) -> bool {
    let path = request.path.as_deref().unwrap_or_default();
    path.contains("/security-credentials/") && role_of(below_version(&normalise(path))).is_some()
}

/// As `Display` writes it, which costs as much as the rest of a connection's record.
fn text(address: SocketAddr) -> String {
    let SocketAddr::V4(address) = address else {
        return address.to_string();
    };
    let mut text = String::with_capacity("255.255.255.255:65535".len());
    let mut number = itoa::Buffer::new();
    for (at, octet) in address.ip().octets().into_iter().enumerate() {
        if at > 0 {
            text.push('.');
        }
        text.push_str(number.format(octet));
    }
    text.push(':');
    text.push_str(number.format(address.port()));
    text
}

/// Packets that the kernel frees in the normal course of closing a socket, not because anything went wrong.
fn is_housekeeping(event: &PacketDrop) -> bool {
    const REASONS: [&str; 6] = [
        "QUEUE_PURGE",
        "TCP_OLD_DATA",
        "TCP_OFOMERGE",
        "SOCKET_CLOSE",
        "CONSUMED",
        "NOT_DROPPED_YET",
    ];
    const PLACES: [&str; 8] = [
        "sk_stream_kill_queues",
        "skb_queue_purge",
        "skb_queue_purge_reason",
        "__skb_queue_purge",
        "skb_errqueue_purge",
        "inet_sock_destruct",
        "tcp_write_queue_purge",
        "tcp_rtx_queue_purge",
    ];
    event.reason.as_deref().is_some_and(|reason| REASONS.contains(&reason))
        || event.location.as_deref().is_some_and(|location| {
            let name = location.split('+').next().unwrap_or_default();
            PLACES.contains(&name)
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_flow_is_small_enough_for_the_allocators_short_way() {
        assert!(size_of::<Flow>() <= 1032, "{}", size_of::<Flow>());
    }

    proptest! {
        #[test]
        fn addresses_are_written_as_display_does(address: SocketAddr) {
            prop_assert_eq!(text(address), address.to_string());
        }
    }
}
