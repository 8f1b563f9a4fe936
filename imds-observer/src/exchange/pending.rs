//! A request that waits for its answer, and the sightings of that answer.

use super::attempt::COPY_NS;
use crate::event::{IcmpError, Sender, Vantage};
use crate::flow::{FoundResponse, Seq};
use crate::imds::{PATH_BYTES, USER_AGENT_BYTES};
use crate::record::{Request, Response, Time};

/// The response to one request, wherever it was seen.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) start: Seq,
    status: Option<u16>,
    /// First seen at the uplink or in the capture, or freed by this kernel.
    pub(super) arrived: Option<Time>,
    last_arrival: Option<Time>,
    /// First seen at the socket.
    at_socket: Option<Time>,
    /// Acknowledged by the client.
    acknowledged: Option<Time>,
    wire_ttl: Option<u8>,
    /// This kernel dropped it, or an ICMP error reports a drop elsewhere.
    pub(super) killed: bool,
    icmp: Option<IcmpError>,
    pub(super) retransmits: u32,
    server: Option<String>,
    via_proxy: Option<bool>,
    /// Bytes of head and body, if the head has the length.
    pub(super) length: Option<u64>,
}

impl Answer {
    pub(super) fn new(start: Seq) -> Self {
        Self {
            start,
            status: None,
            arrived: None,
            last_arrival: None,
            at_socket: None,
            acknowledged: None,
            wire_ttl: None,
            killed: false,
            icmp: None,
            retransmits: 0,
            server: None,
            via_proxy: None,
            length: None,
        }
    }

    pub(super) fn describe(&mut self, found: FoundResponse) {
        if self.status.is_none() {
            self.status = found.status;
        }
        self.server = self.server.take().or(found.server);
        self.via_proxy = self.via_proxy.or(found.via_proxy);
        let length = found
            .head_bytes
            .zip(found.body_bytes)
            .map(|(head, body)| head.saturating_add(body));
        self.length = self.length.or(length);
    }

    /// A packet with its first byte was seen.
    pub(super) fn sight(&mut self, vantage: Vantage, time: Time, ttl: u8) {
        if vantage == Vantage::Socket {
            self.at_socket.get_or_insert(time);
            return;
        }
        self.arrived = Some(self.arrived.map_or(time, |arrived| arrived.min(time)));
        // In a capture on several interfaces the copy with the largest TTL is the one that came in first.
        self.wire_ttl = Some(match self.wire_ttl {
            Some(known) if vantage == Vantage::Capture => known.max(ttl),
            Some(known) => known,
            None => ttl,
        });
        if self.last_arrival.is_some_and(|last| time.since(last) >= COPY_NS) {
            self.retransmits = self.retransmits.saturating_add(1);
        }
        self.last_arrival = Some(self.last_arrival.map_or(time, |last| last.max(time)));
    }

    /// This kernel freed it. Where it was freed its TTL may have been lowered already, so that isn't the one it arrived with.
    pub(super) fn dropped(&mut self, time: Time) {
        self.killed = true;
        self.arrived.get_or_insert(time);
    }

    /// Takes over what was seen of the same response at an uplink.
    fn absorb(&mut self, other: &Self) {
        self.arrived = [self.arrived, other.arrived].into_iter().flatten().min();
        self.last_arrival = self.last_arrival.max(other.last_arrival);
        self.wire_ttl = self.wire_ttl.or(other.wire_ttl);
        self.killed |= other.killed;
        self.icmp = self.icmp.or(other.icmp);
        self.retransmits = self.retransmits.max(other.retransmits);
        self.status = self.status.or(other.status);
    }

    /// An ICMP error reported to the server that it can't be delivered.
    pub(super) fn refused(&mut self, icmp: IcmpError) {
        self.killed = true;
        self.icmp.get_or_insert(icmp);
    }

    pub(super) fn acknowledge(&mut self, time: Time) {
        self.acknowledged.get_or_insert(time);
    }

    /// When it is known to have reached the client.
    pub(super) fn delivered(&self) -> Option<Time> {
        self.at_socket.or(self.acknowledged)
    }

    pub(super) fn on_wire(&self) -> bool {
        self.last_arrival.is_some()
    }

    /// When its first byte came: to the process if that is known, else to the host.
    pub(super) fn first_byte(&self) -> Option<Time> {
        self.at_socket.or(self.arrived).or(self.acknowledged)
    }

    pub(super) fn record(self, delivered: Option<bool>, length: Option<u64>) -> Response {
        Response {
            status: self.status,
            ttl: self.wire_ttl,
            delivered,
            server: self.server,
            retransmits: self.retransmits,
            icmp: self.icmp.map(IcmpError::code),
            via_proxy: self.via_proxy,
            length,
        }
    }
}

/// A request without an outcome.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) number: u32,
    pub(super) start: Seq,
    /// Behind its head.
    pub(super) end: Seq,
    /// First byte that the client had not received when it began to send this.
    pub(super) floor: Seq,
    /// Another request was waiting when this one began.
    pub(super) pipelined: bool,
    pub(super) time: Time,
    pub(super) last_sent: Time,
    pub(super) sender: Option<Sender>,
    pub(super) request: Request,
    /// Asks for a role's credentials.
    pub(super) wants_length: bool,
    pub(super) answer: Option<Answer>,
}

impl Pending {
    /// Takes over what was seen of the same request at an uplink.
    pub(super) fn absorb(&mut self, other: Self) {
        match (&mut self.answer, other.answer) {
            (Some(answer), Some(other)) => answer.absorb(&other),
            (none @ None, Some(other)) => *none = Some(other),
            (_, None) => {}
        }
    }

    /// Limit on the bytes of its texts: method, path, user agent, and the token's hash.
    pub(super) const TEXT_BYTES: usize = PATH_BYTES + USER_AGENT_BYTES + 32;

    /// A packet with bytes of this request was seen again.
    pub(super) fn sent_again(&mut self, time: Time) {
        if time.since(self.last_sent) >= COPY_NS {
            self.request.retransmits = self.request.retransmits.saturating_add(1);
        }
        self.last_sent = self.last_sent.max(time);
    }
}
