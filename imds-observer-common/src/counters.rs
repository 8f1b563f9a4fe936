//! Counters that the kernel programs increment and user space reads.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Everything that the kernel programs could not report since they were loaded. One slot per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LossCounters {
    /// Events that did not fit into the ring buffer.
    pub ring_buffer: u64,
    /// Map entries that could not be created.
    pub map_full: u64,
    /// Packets of an endpoint whose headers could not be read (fragments, extension headers, truncated packets).
    pub unparsed: u64,
    /// Request heads that exceeded the limit on copied bytes.
    pub truncated: u64,
}

/// Kind of traffic that counts toward the link-local packet quota.
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

/// Packets at one interface since the program was loaded, by [`TrafficClass`]. One slot per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterfaceCounters {
    pub egress: [u64; TRAFFIC_CLASSES],
    pub ingress: [u64; TRAFFIC_CLASSES],
}
