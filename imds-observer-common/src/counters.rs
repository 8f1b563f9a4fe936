//! What is counted in the kernel and read from user space.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Everything that the kernel side could not report, since it was loaded. One slot a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LossCounters {
    /// Events that did not fit into the ring buffer.
    pub ring_buffer: u64,
    /// Map entries that could not be made.
    pub map_full: u64,
    /// Packets of an endpoint whose headers could not be read (fragments, extension headers, cut packets).
    pub unparsed: u64,
    /// Request heads that were longer than what may be copied.
    pub truncated: u64,
}

/// What the link-local packet quota is spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum TrafficClass {
    Imds = 0,
    Dns = 1,
    Ntp = 2,
    /// Any other packet to a link-local service.
    Other = 3,
}

/// Number of [`TrafficClass`]es.
pub const TRAFFIC_CLASSES: usize = 4;

/// Packets at one interface since the program was loaded, by [`TrafficClass`]. One slot a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterfaceCounters {
    pub egress: [u64; TRAFFIC_CLASSES],
    pub ingress: [u64; TRAFFIC_CLASSES],
}
