//! The first bytes of every event in the ring buffer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Struct of an event. The numbers are stable only within one build, because both sides are always built together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum EventKind {
    /// [`crate::ProcessEvent`]: a process that is about to contact IMDS, seen for the first time.
    Process = 1,
    /// [`crate::ConnectEvent`]: `connect()` towards an endpoint begins.
    Connect = 2,
    /// [`crate::ConnectEvent`]: `connect()` towards an endpoint has failed.
    ConnectReturned = 3,
    /// [`crate::SegmentEvent`]: a TCP segment at the cgroup of its socket.
    Segment = 4,
    /// [`crate::WireEvent`]: a packet at an uplink.
    Wire = 5,
    /// [`crate::DropEvent`]: the kernel dropped a packet of an IMDS flow.
    Drop = 6,
    /// [`crate::SocketEvent`]: a TCP socket towards an endpoint changed its state or reported an error.
    Socket = 7,
    /// [`crate::RedirectEvent`]: the packets of a socket that connected to an endpoint are sent to another address.
    Redirect = 8,
}

impl TryFrom<u16> for EventKind {
    type Error = u16;

    fn try_from(kind: u16) -> Result<Self, u16> {
        Ok(match kind {
            1 => Self::Process,
            2 => Self::Connect,
            3 => Self::ConnectReturned,
            4 => Self::Segment,
            5 => Self::Wire,
            6 => Self::Drop,
            7 => Self::Socket,
            8 => Self::Redirect,
            other => return Err(other),
        })
    }
}

/// Header of all events.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct EventHeader {
    /// Boot-time clock (`CLOCK_BOOTTIME`), nanoseconds.
    pub time_ns: u64,
    /// An [`EventKind`].
    pub kind: u16,
    /// Length of the whole event in bytes.
    pub len: u16,
    /// Always 0. The field keeps the header free of padding.
    pub reserved: u32,
}

/// Direction of a packet, as seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Client to IMDS.
    Request = 0,
    /// IMDS to client.
    Response = 1,
}

impl TryFrom<u8> for Direction {
    type Error = u8;

    fn try_from(direction: u8) -> Result<Self, u8> {
        match direction {
            0 => Ok(Self::Request),
            1 => Ok(Self::Response),
            other => Err(other),
        }
    }
}
