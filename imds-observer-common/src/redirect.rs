//! The packets of a socket are sent to another address than the one that the process asked for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, Tuple};

/// Sent in two cases. With a socket's first segment, if its destination differs from the socket's remote address: nat OUTPUT (REDIRECT,
/// DNAT) has rewritten it by then. And before the SYN, if the socket's remote address differs from the endpoint that the process asked for:
/// a cgroup program has rewritten it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RedirectEvent {
    pub header: EventHeader,
    pub cookie: u64,
    /// Addresses of the socket, with the endpoint as the remote end.
    pub tuple: Tuple,
    /// Actual destination of the packet; v4-mapped for IPv4.
    pub to: [u8; 16],
    pub to_port: u16,
    pub reserved: u16,
}
