//! What became of a TCP socket towards an endpoint.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, Tuple};

/// Sent when the socket enters ESTABLISHED (1), SYN_SENT (2) or CLOSE (7), when it reports an error (`new_state` 0), when its process closes
/// the sending side alone, and when it then closes the rest (another state, and `shutdown`).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketEvent {
    pub header: EventHeader,
    pub cookie: u64,
    pub tuple: Tuple,
    /// `sk_err`: a positive errno, or 0.
    pub error: u32,
    /// TCP state as the kernel counts, or 0 for an error report.
    pub old_state: u8,
    pub new_state: u8,
    /// `sk_shutdown`: 1 will not receive, 2 will not send.
    pub shutdown: u8,
    pub reserved: u8,
    pub netns: u32,
    /// Bytes that the socket has received since it was made, its peer's FIN included, modulo 2^32: what a response's length follows from.
    pub received: u32,
    pub reserved_end: u32,
}
