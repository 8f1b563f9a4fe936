//! A route says that IMDS is on the link, but nobody there answers ARP for it.
//!
//! ## Detects
//!
//! A connection attempt whose packet was freed because its next hop's hardware address could not be found
//! (`NEIGH_FAILED`, or `neigh_invalidate` before kernel 5.17), or `EHOSTUNREACH` after about 3 s: the kernel asks three times, a
//! second apart. One finding per place.
//!
//! ## Why it matters
//!
//! A route such as `169.254.0.0/16 dev eth1` (zeroconf, a second interface, a CNI's own link-local range) takes IMDS traffic to a
//! link where IMDS is not. Each attempt waits 3 s and fails.
//!
//! ## Example record
//!
//! ## Known false positives
//!
//! Attempts in the first 120 s after boot are left out. A gateway that is down for a moment shows in the same way.
//!
//! ## Options
//!
//! `[detectors.neighbor-unresolved]`
//!
//! - `quiet_s` (300): seconds without a failure until the finding is resolved. A success of the client that failed
//!   resolves it sooner.
//!
//! ## References
//!
//! - `man 7 arp`, `man 8 ip-neighbour`
//! - NOZEROCONF=yes (Red Hat) and LinkLocalAddressing= (`man 5 systemd.network`) keep such routes away

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Context;
use super::connectivity::{Cause, Failure, Verdict};
use super::remedy::route_add;
use crate::record::{Code, Remedy};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub quiet_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { quiet_s: 300 }
    }
}

pub(super) fn new(config: &Config) -> Verdict {
    Verdict::new(Code::NeighborUnresolved, config.quiet_s, accepts, tell).excused_at_boot()
}

fn accepts(cause: Cause) -> bool {
    matches!(cause, Cause::Neighbor)
}

fn tell(failure: &Failure, subject: &str, context: &Context<'_>) -> (String, Remedy) {
    let endpoint = failure.endpoint();
    let family = if failure.v6 { "-6 " } else { "" };
    let summary = format!("nobody on the link answers for IMDS ({endpoint}) when {subject} connects");
    let remedy = Remedy {
        text: "A route takes the endpoint for a neighbour on the link. Delete that route, or add a host route through the \
               gateway, which is more specific and wins."
            .to_owned(),
        commands: vec![
            format!("ip {family}route get {endpoint}"),
            format!("ip {family}neigh show {endpoint}"),
            route_add(failure, context),
        ],
    };
    (summary, remedy)
}
