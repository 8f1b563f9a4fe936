//! `connect()` towards an endpoint, in the context of the process that calls it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, ProcessKey};

/// Sent when `connect()` begins ([`crate::EventKind::Connect`]) and, if the kernel allows tracing it, when it returns with an error.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ConnectEvent {
    pub header: EventHeader,
    pub cookie: u64,
    pub process: ProcessKey,
    pub cgroup_id: u64,
    pub tid: u32,
    pub netns: u32,
    /// The address; v4-mapped for IPv4.
    pub remote: [u8; 16],
    pub remote_port: u16,
    pub reserved: u16,
    /// On return: 0 or a negative errno. At the start: 0.
    pub result: i32,
}
