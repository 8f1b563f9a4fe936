//! A packet filter or a cgroup program sends the packets of a socket to another address than the one that the socket has.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, Tuple};

/// Sent with a socket's first segment if its destination isn't the socket's own: nat OUTPUT (REDIRECT, DNAT) has rewritten it by then. And
/// before the SYN if the socket's remote end isn't the endpoint that the process asked for: a cgroup program has rewritten it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RedirectEvent {
    pub header: EventHeader,
    pub cookie: u64,
    /// As the socket has it: the remote end is the endpoint.
    pub tuple: Tuple,
    /// Where the packet goes instead; v4-mapped for IPv4.
    pub to: [u8; 16],
    pub to_port: u16,
    pub reserved: u16,
}
