//! A packet at an uplink: the packets that actually leave and reach this host, after NAT.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, Tuple};

/// Limit on bytes of a response that leave the kernel: the length of `HTTP/1.1 200 OK`, rounded up.
pub const STATUS_LINE_BYTES: usize = 16;

/// A TCP packet of an IMDS flow, or an ICMP error that quotes one. Followed by `head_len` bytes of a request's payload.
///
/// If a request's socket isn't on this host (for example a virtual machine behind a tap device), only this event contains the request. A
/// long one is sent as several events, like a [`crate::SegmentEvent`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireEvent {
    pub header: EventHeader,
    /// Cookie of the socket, found by the sequence number or by the tuple at the uplink; 0: no socket of this host is known for the packet.
    pub cookie: u64,
    /// Addresses after NAT. For an ICMP error, the addresses of the packet that it quotes.
    pub tuple: Tuple,
    pub seq: u32,
    pub ack: u32,
    pub payload_len: u32,
    pub ifindex: u32,
    /// [`crate::Direction`] of the packet itself. An ICMP error that is sent to IMDS has direction `Request`.
    pub direction: u8,
    pub tcp_flags: u8,
    pub ttl: u8,
    /// 1 (ICMP) or 58 (ICMPv6) if `icmp_type` and `icmp_code` are valid, otherwise 0.
    pub icmp_protocol: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// Number of valid bytes in `status_line`; 0 unless the payload starts with `HTTP/1.`.
    pub status_len: u8,
    /// Bits of [`crate::SegmentFlags`].
    pub flags: u8,
    pub status_line: [u8; STATUS_LINE_BYTES],
    pub head_len: u16,
    pub reserved: u16,
}
