//! Facts about this host that IMDS depends on. Read only: asks the kernel, sends no packet, changes nothing.

pub mod capabilities;
pub mod ethtool;
pub mod filters;
pub mod firewall;
mod fuzz;
pub mod instance;
pub mod netlink;
mod owner;
pub mod routes;
pub mod uplinks;

#[doc(hidden)]
pub use fuzz::fuzz_kernel_answers;
pub use instance::facts;
pub use uplinks::{Uplink, UplinkChange, UplinkMonitor, Uplinks};
