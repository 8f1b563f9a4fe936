//! A packet at an uplink: what really left this host and what really came back, after NAT.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, Tuple};

/// Bytes of a response that may leave the kernel: `HTTP/1.1 200 OK` and no further.
pub const STATUS_LINE_BYTES: usize = 16;

/// A TCP packet of an IMDS flow, or an ICMP error that quotes one. Followed by `head_len` bytes of a request's payload.
///
/// A request whose socket isn't on this host (a virtual machine's, behind a tap) can be read nowhere else: it comes like a
/// [`crate::SegmentEvent`]'s, in several events if it is long.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct WireEvent {
    pub header: EventHeader,
    /// Found through the sequence number or the wire tuple; 0: no socket of this host is known for it.
    pub cookie: u64,
    /// After NAT. For an ICMP error: of the packet that it quotes.
    pub tuple: Tuple,
    pub seq: u32,
    pub ack: u32,
    pub payload_len: u32,
    pub ifindex: u32,
    /// A [`crate::Direction`]: of the packet itself. An ICMP error sent to IMDS goes in direction `Request`.
    pub direction: u8,
    pub tcp_flags: u8,
    pub ttl: u8,
    /// 0, or 1 (ICMP) or 58 (ICMPv6): then `icmp_type` and `icmp_code` hold.
    pub icmp_protocol: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
    /// Bytes of `status_line` that hold; 0 unless the payload starts with `HTTP/1.`.
    pub status_len: u8,
    /// [`crate::SegmentFlags`].
    pub flags: u8,
    pub status_line: [u8; STATUS_LINE_BYTES],
    pub head_len: u16,
    pub reserved: u16,
}
