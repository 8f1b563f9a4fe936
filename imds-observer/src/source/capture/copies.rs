//! The same packet logged several times: Windows' pktmon does so at each component of the network stack that a packet passes.
//!
//! The flow table ignores copies by itself; the quota counts packets, so it asks here. Two packets with the same bytes up to the
//! transport header's end differ in nothing that a sender chooses (identification, sequence number), unless one is a copy.

use std::hash::Hasher as _;

use rustc_hash::FxHasher;

use crate::record::Time;

/// A copy comes within this time: the stack is passed in some 10 µs, and no retransmission comes as early.
const WINDOW_NS: u64 = 100_000;
/// Packets that are remembered: as many as pass one stack within the window.
const REMEMBERED: usize = 32;
/// IP and TCP headers without options, and what identifies a DNS query.
const HASHED_BYTES: usize = 64;

#[derive(Debug)]
pub(super) struct Copies {
    recent: [(Time, u64); REMEMBERED],
    next: usize,
}

impl Copies {
    pub(super) fn new() -> Self {
        Self {
            recent: [(Time(0), 0); REMEMBERED],
            next: 0,
        }
    }

    /// Whether this packet was here just now. `place` distinguishes interfaces and directions.
    pub(super) fn has(&mut self, time: Time, ip: &[u8], place: u64) -> bool {
        let mut hasher = FxHasher::default();
        hasher.write_u64(place);
        hasher.write_usize(ip.len());
        hasher.write(&ip[..ip.len().min(HASHED_BYTES)]);
        let hash = hasher.finish();
        let copy = self
            .recent
            .iter()
            .any(|(seen, other)| *other == hash && time.since(*seen) <= WINDOW_NS);
        if !copy {
            self.recent[self.next] = (time, hash);
            self.next = (self.next + 1) % REMEMBERED;
        }
        copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_bytes_at_once_and_on_one_interface() {
        let mut copies = Copies::new();
        let at = |micros: u64| Time(1_700_000_000_000_000_000 + micros * 1_000);
        let packet = [0x45_u8; 80];
        assert!(!copies.has(at(0), &packet, 1));
        assert!(copies.has(at(5), &packet, 1));
        assert!(copies.has(at(100), &packet, 1));
        assert!(!copies.has(at(5), &packet, 2), "another interface");
        assert!(!copies.has(at(5), &packet[..60], 1), "another length");
        assert!(!copies.has(at(101), &packet, 1), "a retransmission");
        let mut other = packet;
        other[5] += 1;
        assert!(!copies.has(at(102), &other, 1), "another identification");
    }
}
