//! A TCP segment between a socket of this host and an endpoint, as the socket's cgroup sees it: before NAT, with its owner.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, ProcessKey, Tuple};

/// Bytes of payload that one event carries. A power of two: the verifier needs it so.
pub const HEAD_BYTES: usize = 512;
/// Events that one packet may give, so that a request head of up to 4 KiB in one segment is seen whole.
pub const HEADS_PER_PACKET: u32 = 8;

/// Bits of [`SegmentEvent::flags`].
#[derive(Clone, Copy, Debug)]
pub struct SegmentFlags;

impl SegmentFlags {
    /// Nothing in this segment is new: the kernel sends it again.
    pub const RETRANSMIT: u8 = 1;
    /// The payload goes on behind what the event carries, and no further event brings it.
    pub const CUT: u8 = 2;
}

/// Followed by `head_len` bytes of payload.
///
/// Requests carry up to [`HEAD_BYTES`] bytes, larger ones come as several events with growing `seq`. Of a response only the
/// status line's first [`crate::STATUS_LINE_BYTES`] bytes are ever copied, and only if it starts with `HTTP/1.`: no byte of a body leaves the kernel.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentEvent {
    pub header: EventHeader,
    pub cookie: u64,
    /// For requests, the process that sent this payload (or SYN); else the one that connected.
    pub process: ProcessKey,
    pub cgroup_id: u64,
    pub tid: u32,
    pub netns: u32,
    pub tuple: Tuple,
    /// Sequence number of the first byte of this event's payload.
    pub seq: u32,
    pub ack: u32,
    /// Payload bytes of the whole packet, from this event's `seq` on.
    pub payload_len: u32,
    pub ifindex: u32,
    pub head_len: u16,
    /// A [`crate::Direction`].
    pub direction: u8,
    /// As in the TCP header: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub tcp_flags: u8,
    /// TTL or IPv6 hop limit.
    pub ttl: u8,
    /// [`SegmentFlags`].
    pub flags: u8,
    pub reserved: [u16; 3],
}
