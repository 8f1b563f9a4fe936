//! State changes and errors of a TCP socket towards an endpoint.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, Tuple};

/// Sent when the socket enters ESTABLISHED (1), SYN_SENT (2) or CLOSE (7), and when it reports an error (`new_state` 0). Also sent when its
/// process closes only the sending side, and when the process then closes the rest; these have another state and a `shutdown` value.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SocketEvent {
    pub header: EventHeader,
    pub cookie: u64,
    pub tuple: Tuple,
    /// `sk_err`: a positive errno, or 0.
    pub error: u32,
    /// TCP state with the kernel's number, or 0 for an error report.
    pub old_state: u8,
    pub new_state: u8,
    /// `sk_shutdown`: bit 1 closes the receiving side, bit 2 the sending side.
    pub shutdown: u8,
    pub reserved: u8,
    pub netns: u32,
    /// Number of bytes that the socket has received since its creation, including the peer's FIN, modulo 2^32. User space derives the
    /// length of a response from it.
    pub received: u32,
    pub reserved_end: u32,
}
