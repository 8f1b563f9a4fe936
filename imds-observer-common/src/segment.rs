//! A TCP segment between a socket of this host and an endpoint, observed at the socket's cgroup: before NAT, and with its owner.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, ProcessKey, Tuple};

/// Bytes of payload in one event. The verifier requires a power of two.
pub const HEAD_BYTES: usize = 512;
/// Limit on the events of one packet: a request head of up to 4 KiB in one segment is reported completely.
pub const HEADS_PER_PACKET: u32 = 8;

/// Bits of [`SegmentEvent::flags`].
#[derive(Clone, Copy, Debug)]
pub struct SegmentFlags;

impl SegmentFlags {
    /// All bytes of this segment were sent before: it is a retransmission.
    pub const RETRANSMIT: u8 = 1;
    /// The payload is longer than what the events contain.
    pub const CUT: u8 = 2;
}

/// Followed by `head_len` bytes of payload.
///
/// Requests contain up to [`HEAD_BYTES`] bytes; longer ones are sent as several events with increasing `seq`. Of a response, only the first
/// [`crate::STATUS_LINE_BYTES`] bytes are ever copied, and only if they start with `HTTP/1.`. So no byte of a body leaves the kernel.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SegmentEvent {
    pub header: EventHeader,
    pub cookie: u64,
    /// Process that sent this payload (or SYN). For responses, the process that last sent payload or, if there was none, called
    /// `connect()`.
    pub process: ProcessKey,
    pub cgroup_id: u64,
    pub tid: u32,
    pub netns: u32,
    pub tuple: Tuple,
    /// Sequence number of the first byte of this event's payload.
    pub seq: u32,
    pub ack: u32,
    /// Number of payload bytes in the packet from this event's `seq` on.
    pub payload_len: u32,
    pub ifindex: u32,
    pub head_len: u16,
    /// A [`crate::Direction`].
    pub direction: u8,
    /// Flags with the values of the TCP header: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
    pub tcp_flags: u8,
    /// TTL or IPv6 hop limit.
    pub ttl: u8,
    /// Bits of [`SegmentFlags`].
    pub flags: u8,
    pub reserved: [u16; 3],
}
