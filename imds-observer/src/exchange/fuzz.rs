//! Any bytes as a history of events: for the fuzz targets, and for the property tests that need no corpus.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;

use super::{Fact, FlowTable, Limits};
use crate::event::{
    ConnectAttempt, ConnectResult, Direction, Event, FlowId, IcmpError, Packet, PacketDrop, ProcessKey, Sender,
    SocketChange, SocketState, Vantage,
};
use crate::flow::StreamLimits;
use crate::imds::Hasher;
use crate::record::Time;

struct Bits<'a>(&'a [u8]);

impl Bits<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    fn below(&mut self, end: u8) -> u8 {
        self.byte() % end.max(1)
    }

    fn word(&mut self) -> u32 {
        u32::from_be_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// Mostly close to a number that wraps soon, so that packets meet.
    fn seq(&mut self) -> u32 {
        match self.below(8) {
            0 => self.word(),
            _ => u32::MAX.wrapping_sub(30).wrapping_add(u32::from(self.byte())),
        }
    }

    fn data(&mut self) -> Bytes {
        match self.below(6) {
            0 => Bytes::from_static(b"GET /latest/meta-data/ HTTP/1.1\r\n\r\n"),
            1 => Bytes::from_static(b"HTTP/1.1 200 OK\r\n"),
            2 => Bytes::from_static(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n"),
            3 => Bytes::new(),
            _ => {
                let len = usize::from(self.byte()).min(self.0.len());
                let (data, rest) = self.0.split_at(len);
                self.0 = rest;
                Bytes::copy_from_slice(data)
            }
        }
    }
}

/// Feeds a small table with what `bytes` spell, and gives the facts. Panics if a bound is broken or a flow is left behind.
pub fn fuzz_flow_table(bytes: &[u8]) -> Vec<Fact> {
    let limits = Limits {
        flows: 4,
        budget_bytes: 64 << 10,
        pending: 3,
        early: 2,
        translated: 4,
        stream: StreamLimits {
            pieces: 4,
            head_bytes: 256,
        },
    };
    let mut table = FlowTable::new(limits, Hasher::with_salt(1, 2));
    let mut facts = Vec::new();
    let mut bits = Bits(bytes);
    let mut time = Time(1_700_000_000_000_000_000);
    while !bits.0.is_empty() {
        // From the same moment to a quarter of a minute, and sometimes back.
        time = match bits.below(8) {
            0 => time.minus_ns(u64::from(bits.byte()) * 100_000),
            1 => time.plus_ns(u64::from(bits.byte()) * 60_000_000),
            _ => time.plus_ns(u64::from(bits.byte()) * 10_000),
        };
        let event = event(&mut bits, time);
        table.handle(&event, &mut facts);
        assert!(table.len() <= limits.flows, "more flows than the limit");
    }
    table.finish(time, &mut facts);
    assert!(table.is_empty(), "a flow is left behind");
    facts
}

fn event(bits: &mut Bits<'_>, time: Time) -> Event {
    let remote = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);
    let local = SocketAddr::new(
        IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)),
        40_000 + u16::from(bits.below(4)),
    );
    let flow = match bits.below(6) {
        cookie @ 0..3 => FlowId::Cookie(u64::from(cookie)),
        _ => FlowId::Addresses { local, remote },
    };
    let direction = if bits.below(2) == 0 {
        Direction::Request
    } else {
        Direction::Response
    };
    let sender = Sender {
        key: ProcessKey {
            start_time_ns: 1,
            tgid: u32::from(bits.below(3)),
            exec_id: 0,
        },
        tid: 1,
        cgroup_id: 1,
        netns: 1,
    };
    match bits.below(9) {
        0 => Event::Connect(ConnectAttempt {
            time,
            flow,
            remote,
            sender,
        }),
        1 => Event::ConnectReturned(ConnectResult {
            time,
            flow,
            errno: i32::from(bits.below(134)),
        }),
        2 => Event::Socket(SocketChange {
            time,
            flow,
            state: [
                SocketState::SynSent,
                SocketState::Established,
                SocketState::Closed,
                SocketState::ErrorReport,
                SocketState::HalfClosed,
                SocketState::Released,
            ][usize::from(bits.below(6))],
            received: (bits.below(4) == 0).then(|| u32::from(bits.below(255))),
            unconnected: bits.below(2) == 0,
            error: if bits.below(2) == 0 { 0 } else { bits.word() % 134 },
            local,
            remote,
        }),
        3 => Event::Drop(PacketDrop {
            time,
            flow,
            local,
            remote,
            direction,
            sender: None,
            seq: bits.seq(),
            payload_len: u32::from(bits.byte()),
            tcp_flags: bits.below(32),
            ttl: bits.byte(),
            reason: (bits.below(2) == 0).then(|| "IP_INHDR".into()),
            location: (bits.below(2) == 0).then(|| "ip_forward".into()),
            netns: 1,
        }),
        _ => {
            let data = bits.data();
            let mut payload_len = data.len() as u32;
            if bits.below(4) == 0 {
                payload_len = bits.word() >> bits.below(32);
            }
            Event::Packet(Packet {
                time,
                vantage: [Vantage::Socket, Vantage::Uplink, Vantage::Capture][usize::from(bits.below(3))],
                flow,
                direction,
                local,
                remote,
                sender: (bits.below(2) == 0).then_some(sender),
                seq: bits.seq(),
                ack: bits.seq(),
                tcp_flags: bits.below(32),
                ttl: bits.byte(),
                payload_len,
                data,
                cut: bits.below(4) == 0,
                retransmit: bits.below(4) == 0,
                icmp: (bits.below(16) == 0).then(|| IcmpError {
                    v6: bits.below(2) == 0,
                    kind: bits.below(12),
                    code: bits.below(14),
                }),
                ifindex: u32::from(bits.below(3)),
            })
        }
    }
}
