//! A packet of an IMDS flow that this kernel freed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, ProcessKey, Tuple};

/// Only packets with SYN or payload are reported. Dropping others is part of the kernel's normal operation.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DropEvent {
    pub header: EventHeader,
    /// Cookie of the packet's socket; 0: no socket of this host is known for the packet.
    pub cookie: u64,
    pub process: ProcessKey,
    pub cgroup_id: u64,
    /// Address of the kernel code that freed the packet. `/proc/kallsyms` has its name.
    pub location: u64,
    pub tuple: Tuple,
    pub seq: u32,
    pub payload_len: u32,
    /// `enum skb_drop_reason`; 0: this kernel has no drop reasons.
    pub reason: u32,
    pub ifindex: u32,
    /// Network namespace in which the packet was dropped; 0: not known.
    pub netns: u32,
    /// A [`crate::Direction`].
    pub direction: u8,
    pub tcp_flags: u8,
    pub ttl: u8,
    pub reserved: u8,
    pub tid: u32,
}
