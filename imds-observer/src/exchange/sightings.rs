//! How many hops are between a client and the uplink? The sender chooses the initial TTL, and may change it with each segment: only the
//! difference between two sightings of one segment is a distance.

use std::num::NonZeroU8;

use crate::event::{Packet, Vantage};

/// The newest segment that each side has seen, with its TTL: no packet is sent with 0. Small, since each connection has one: of a segment's number
/// the lower half, which is the same again after 64 KiB of requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sightings {
    sent: u16,
    left: u16,
    socket_ttl: Option<NonZeroU8>,
    uplink_ttl: Option<NonZeroU8>,
    /// The most that two sightings of one segment had.
    hops: Option<u8>,
}

impl Sightings {
    pub(super) fn new() -> Self {
        Self {
            sent: 0,
            left: 0,
            socket_ttl: None,
            uplink_ttl: None,
            hops: None,
        }
    }

    /// A client's packet.
    pub(super) fn see(&mut self, packet: &Packet) {
        if packet.payload_len == 0 && packet.tcp_flags & Packet::SYN == 0 {
            return;
        }
        let (seq, ttl) = (packet.seq as u16, NonZeroU8::new(packet.ttl));
        match packet.vantage {
            // A retransmitted segment may still be on its way with another TTL.
            Vantage::Socket => (self.sent, self.socket_ttl) = (seq, ttl.filter(|_| !packet.retransmit)),
            Vantage::Uplink => (self.left, self.uplink_ttl) = (seq, ttl),
            Vantage::Capture => return,
        }
        self.compare();
    }

    /// Takes over what was seen at an uplink before the connection was known.
    pub(super) fn absorb(&mut self, other: Self) {
        if self.uplink_ttl.is_none() {
            (self.left, self.uplink_ttl) = (other.left, other.uplink_ttl);
            self.compare();
        }
    }

    /// TTL of the newest segment at the socket.
    pub(super) fn socket_ttl(self) -> Option<u8> {
        self.socket_ttl.map(NonZeroU8::get)
    }

    pub(super) fn hops(self) -> Option<u8> {
        self.hops
    }

    fn compare(&mut self) {
        if let (Some(socket), Some(uplink)) = (self.socket_ttl, self.uplink_ttl)
            && self.sent == self.left
        {
            self.hops = self.hops.max(socket.get().checked_sub(uplink.get()));
        }
    }
}
