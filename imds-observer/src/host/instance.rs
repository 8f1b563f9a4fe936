//! What the detectors' remedies should know of this host, without asking IMDS.

use std::fs;

use nix::time::{ClockId, clock_gettime};

use super::routes::{Hop, Routing};
use crate::host_facts::HostFacts;
use crate::record::{Host, Time};

/// On Nitro instances, firmware provides the instance's ID here.
const ASSET_TAG: &str = "/sys/devices/virtual/dmi/id/board_asset_tag";

/// Reads facts of this host; missing facts stay unknown.
pub fn facts(name: Host) -> HostFacts {
    let route = default_route();
    HostFacts {
        name,
        instance_id: instance_id(),
        boot_time: boot_time(),
        gateway: route
            .as_ref()
            .and_then(|(hop, _)| hop.gateway)
            .map(|gateway| gateway.to_string()),
        netns: netns(),
        uplink: route.map(|(_, interface)| interface),
        nat_rules: None,
    }
}

/// Where a default route leads, and through which interface; IPv4 first, as remedies are about that endpoint.
fn default_route() -> Option<(Hop, String)> {
    let mut routing = Routing::open().ok()?;
    let hop = [false, true]
        .into_iter()
        .find_map(|v6| routing.default_route(v6).ok().flatten())?;
    let name = nix::net::if_::if_indextoname(hop.ifindex).ok()?;
    Some((hop, name.to_string_lossy().into_owned()))
}

/// This instance's ID; `None` if the firmware provides none.
pub fn instance_id() -> Option<String> {
    fs::read_to_string(ASSET_TAG).ok().and_then(|tag| instance_id_in(&tag))
}

/// Other makers write other things into the tag.
fn instance_id_in(tag: &str) -> Option<String> {
    let tag = tag.trim();
    let digits = tag.strip_prefix("i-")?;
    let hexadecimal = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    (matches!(digits.len(), 8 | 17) && hexadecimal).then(|| tag.to_owned())
}

fn netns() -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self/ns/net")
        .ok()
        .and_then(|netns| u32::try_from(netns.ino()).ok())
}

fn boot_time() -> Option<Time> {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).ok()?;
    Some(Time::now().minus_ns(std::time::Duration::from(since_boot).as_nanos() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_instance_id_is_one() {
        assert_eq!(
            instance_id_in("i-0123456789abcdef0\n").as_deref(),
            Some("i-0123456789abcdef0")
        );
        for other in ["", "i-", "i-xyz", "Not Specified", "i-0123456789abcdef0; rm"] {
            assert_eq!(instance_id_in(other), None, "{other}");
        }
    }
}
