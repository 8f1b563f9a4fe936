//! A packet of an IMDS flow that this kernel freed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{EventHeader, ProcessKey, Tuple};

/// Only packets that carry SYN or payload are reported: the rest is the kernel's own housekeeping.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DropEvent {
    pub header: EventHeader,
    /// 0: no socket of this host is known for it.
    pub cookie: u64,
    pub process: ProcessKey,
    pub cgroup_id: u64,
    /// Kernel address that freed it; `/proc/kallsyms` names it.
    pub location: u64,
    pub tuple: Tuple,
    pub seq: u32,
    pub payload_len: u32,
    /// `enum skb_drop_reason`; 0: this kernel has none.
    pub reason: u32,
    pub ifindex: u32,
    /// Namespace in which it was dropped; 0: not known.
    pub netns: u32,
    /// A [`crate::Direction`].
    pub direction: u8,
    pub tcp_flags: u8,
    pub ttl: u8,
    pub reserved: u8,
    pub tid: u32,
}
