//! All use of aya: load, attach, read the ring buffer, and what this kernel supports or why not.

#[cfg(live)]
mod attach;
#[cfg(live)]
mod btf;
#[cfg(live)]
mod clsact;
#[cfg(live)]
mod decode;
#[cfg(live)]
mod endpoints;
#[cfg(live)]
mod error;
#[cfg(live)]
mod first;
#[cfg(live)]
mod hooks;
#[cfg(live)]
mod kernel;
#[cfg(live)]
mod links;
#[cfg(live)]
mod load;
#[cfg(live)]
pub mod occupied;
#[cfg(live)]
mod offsets;
#[cfg(live)]
mod preempting;
#[cfg(live)]
mod symbols;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use imds_observer_common::sizes;
use serde::{Deserialize, Serialize};

pub use crate::imds::DEFAULT_ENDPOINTS;
use crate::record::VpcResolver;

#[cfg(live)]
pub use attach::cgroup2_mount;
#[cfg(live)]
pub use btf::{Btf, BtfError};
#[cfg(live)]
pub use clsact::HANDLES as CLSACT_HANDLES;
#[cfg(live)]
pub use decode::{Decoder, WireError};
#[cfg(live)]
pub use error::KernelError;
#[cfg(live)]
pub(crate) use hooks::hidden_without;
#[cfg(live)]
pub use kernel::Kernel;
#[cfg(live)]
pub(crate) use links::Links;
#[cfg(live)]
pub(crate) use preempting::Preempting;
#[cfg(live)]
pub use symbols::Symbols;

/// Sizes of the kernel side's tables, which are made before anything is attached. The constants' comments derive them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of the ring buffer, a power of two and whole pages.
    pub ring_bytes: u32,
    /// Connections to IMDS.
    pub flows: u32,
    /// Address pairs of connections, before and after NAT.
    pub tuples: u32,
    /// First segments on their way to the uplink.
    pub sequences: u32,
    /// Threads that are in `connect()`.
    pub connecting: u32,
    /// Process images that were sent to user space.
    pub processes: u32,
    /// Interfaces whose packets are counted.
    pub interfaces: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ring_bytes: sizes::RING_BYTES,
            flows: sizes::FLOWS,
            tuples: sizes::TUPLES,
            sequences: sizes::SEQUENCES,
            connecting: sizes::CONNECTING,
            processes: sizes::PROCESSES,
            interfaces: sizes::INTERFACES,
        }
    }
}

impl Limits {
    /// Each table's map in the object, and its size.
    pub fn maps(&self) -> [(&'static str, u32); 7] {
        [
            ("EVENTS", self.ring_bytes),
            ("FLOWS", self.flows),
            ("TUPLES", self.tuples),
            ("SEQUENCES", self.sequences),
            ("CONNECTING", self.connecting),
            ("PROCESSES", self.processes),
            ("INTERFACES", self.interfaces),
        ]
    }
}

/// Options of a live run.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// Uplinks; empty: those that route to the endpoints.
    pub interfaces: Vec<String>,
    /// Only sockets of this cgroup and below; `None`: of the whole host.
    pub cgroup: Option<PathBuf>,
    pub endpoints: Vec<IpAddr>,
    /// Whose DNS counts against the quota beside that to link-local addresses.
    pub resolver: Option<(Ipv4Addr, Arc<VpcResolver>)>,
    pub limits: Limits,
    /// Time between two looks into the ring buffer while events come and it doesn't fill. Each look costs a wake-up, which is dearer than
    /// what it brings: a request is some ten packets, one after the other.
    pub gather: Duration,
}

/// For a program that reads along: a record comes within milliseconds.
pub const STREAM_POLL: Duration = Duration::from_millis(3);
/// For people, who see no difference.
pub const INTERACTIVE_POLL: Duration = Duration::from_millis(50);

impl Default for LiveOptions {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            cgroup: None,
            endpoints: DEFAULT_ENDPOINTS.to_vec(),
            resolver: None,
            limits: Limits::default(),
            gather: STREAM_POLL,
        }
    }
}
