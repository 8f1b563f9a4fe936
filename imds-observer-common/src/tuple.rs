//! The addresses and ports of a flow, always from the client's side.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Local is the client (pod or host, before or after NAT), remote is the IMDS endpoint. IPv4 addresses are v4-mapped (`::ffff:a.b.c.d`), so
/// that one map holds both families. Ports are in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Tuple {
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port: u16,
    pub remote_port: u16,
}

/// Converts an IPv4 address to the v4-mapped IPv6 address in a [`Tuple`]. It is composed of words, because the kernel programs would
/// otherwise fill it byte by byte.
#[inline(always)]
pub const fn mapped_v4(address: [u8; 4]) -> [u8; 16] {
    let words = [
        0,
        0,
        u32::from_ne_bytes([0, 0, 0xff, 0xff]),
        u32::from_ne_bytes(address),
    ];
    zerocopy::transmute!(words)
}
