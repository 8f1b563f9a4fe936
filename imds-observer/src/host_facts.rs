//! Facts about a host that detectors and remedies use.

use crate::record::{Host, Time};

/// What is known of the host that the records come from. Unknown offline, unless the user says.
#[derive(Clone, Debug)]
pub struct HostFacts {
    pub name: Host,
    /// For the commands of remedies; a placeholder stands in when it isn't known.
    pub instance_id: Option<String>,
    /// Requests right after it are start-up, not polling.
    pub boot_time: Option<Time>,
    /// Inode of the host's own network namespace: processes in another one are not the host's.
    pub netns: Option<u32>,
    /// Default gateway and its interface.
    pub gateway: Option<String>,
    pub uplink: Option<String>,
    /// NAT rules of this host that match requests for the endpoints, as they were when the run began.
    pub nat_rules: Vec<String>,
}

impl Default for HostFacts {
    fn default() -> Self {
        Self {
            name: Host::from(""),
            instance_id: None,
            boot_time: None,
            netns: None,
            gateway: None,
            uplink: None,
            nat_rules: Vec::new(),
        }
    }
}
