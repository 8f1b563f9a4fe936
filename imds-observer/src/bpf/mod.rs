//! All use of aya: load, attach, read the ring buffer, and what this kernel supports or why not.

mod attach;
mod btf;
mod clsact;
mod decode;
mod kernel;
pub mod occupied;
mod offsets;
mod symbols;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

pub use attach::cgroup2_mount;
pub use btf::{Btf, BtfError};
pub use clsact::HANDLES as CLSACT_HANDLES;
pub use decode::{Decoder, WireError};
pub use kernel::{Kernel, KernelError};
pub use symbols::Symbols;

/// The metadata service's addresses, unless the user names others.
pub const DEFAULT_ENDPOINTS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
];

/// What to observe.
#[derive(Clone, Debug)]
pub struct LiveOptions {
    /// Uplinks; empty: those that route to the endpoints.
    pub interfaces: Vec<String>,
    /// Only sockets of this cgroup and below; `None`: of the whole host.
    pub cgroup: Option<PathBuf>,
    pub endpoints: Vec<IpAddr>,
    /// Size of the ring buffer in bytes, a power of two; `None`: what the object says.
    pub ring_bytes: Option<u32>,
    /// Least time between two looks into the ring buffer. Each look costs a wake-up, which is dearer than what it brings: a request is
    /// some ten packets, one after the other.
    pub gather: Duration,
}

/// For a program that reads along: a record comes within milliseconds.
const PROMPT: Duration = Duration::from_millis(2);
/// For people, who see no difference.
pub const UNHURRIED: Duration = Duration::from_millis(10);

impl Default for LiveOptions {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            cgroup: None,
            endpoints: DEFAULT_ENDPOINTS.to_vec(),
            ring_bytes: None,
            gather: PROMPT,
        }
    }
}
