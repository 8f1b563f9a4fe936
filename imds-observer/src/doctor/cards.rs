//! What do the uplinks' drivers count of the link-local quota?

use super::check::{Check, CheckState};
use crate::host::Uplink;
use crate::host::ethtool::Ethtool;
use crate::record::Code;

const NAME: &str = "link-local-allowance";

pub(super) fn checks(uplinks: &[Uplink]) -> Vec<Check> {
    let mut ethtool = match Ethtool::open() {
        Ok(ethtool) => ethtool,
        Err(error) => return vec![Check::unread(NAME, error)],
    };
    let mut check = |uplink: &Uplink| {
        let driver = ethtool.driver(&uplink.name).unwrap_or_else(|_| "unknown".to_owned());
        match ethtool.allowance_exceeded(&uplink.name) {
            Ok(count) => of(&driver, count),
            Err(error) => Check::unread(NAME, error),
        }
        .about(&uplink.name)
    };
    uplinks.iter().map(&mut check).collect()
}

fn of(driver: &str, exceeded: Option<u64>) -> Check {
    match exceeded {
        Some(0) => Check::ok(
            NAME,
            format!("driver {driver} reports no packets dropped over the quota"),
        ),
        Some(count) => Check::new(
            NAME,
            CheckState::Note,
            format!("driver {driver} reports {count} packets dropped over the quota since it was loaded"),
        )
        .meaning("requests to IMDS, DNS and NTP were dropped silently; live observation shows whether it still happens")
        .remedied(
            "Find the callers with the highest request rates, and reduce their rates.",
            ["imds-observer watch".to_owned()],
        )
        .reported_as(Code::PacketQuota),
        None => Check::new(
            NAME,
            CheckState::Unknown,
            format!("driver {driver} doesn't count packets dropped over the quota"),
        )
        .blinding("drops over the packet quota; the packet rate itself is measured at the uplink"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_reported_and_none_is_no_fault() {
        assert_eq!(of("ena", Some(0)).state, CheckState::Ok);
        assert_eq!(of("ena", Some(412)).state, CheckState::Note);
        assert_eq!(of("veth", None).state, CheckState::Unknown);
    }
}
