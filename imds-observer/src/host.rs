//! What the detectors' remedies should know of this host, without asking IMDS.

use std::fs;

use nix::time::{ClockId, clock_gettime};

use crate::detectors::HostFacts;
use crate::record::{Host, Time};
use crate::route;

/// On Nitro instances, firmware tells the instance's id here.
const ASSET_TAG: &str = "/sys/devices/virtual/dmi/id/board_asset_tag";

/// Reads what this host tells of itself; what it doesn't tell stays unknown.
pub fn facts(name: Host) -> HostFacts {
    let route = route::default().ok();
    HostFacts {
        name,
        instance_id: fs::read_to_string(ASSET_TAG).ok().and_then(|tag| instance_id(&tag)),
        boot_time: boot_time(),
        gateway: route
            .as_ref()
            .and_then(|route| route.gateway)
            .map(|gateway| gateway.to_string()),
        netns: netns(),
        uplink: route.and_then(|route| route.interface),
    }
}

/// Other makers write other things into the tag.
fn instance_id(tag: &str) -> Option<String> {
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
            instance_id("i-0123456789abcdef0\n").as_deref(),
            Some("i-0123456789abcdef0")
        );
        for other in ["", "i-", "i-xyz", "Not Specified", "i-0123456789abcdef0; rm"] {
            assert_eq!(instance_id(other), None, "{other}");
        }
    }
}
