//! An on-link route covers IMDS, and ARP or neighbor discovery for it is unanswered.
//!
//! ## Detects
//!
//! A connection attempt whose packet was dropped because the hardware address of its next hop could not be resolved
//! (`NEIGH_FAILED`, or `neigh_invalidate` before kernel 5.17), or that failed with `EHOSTUNREACH` after about 3 s: the
//! kernel sends three requests, one second apart. One finding per pod, and one for the host's own processes.
//!
//! The remedy states how to make the route permanent with what sets up this host's network: netplan, NetworkManager,
//! systemd-networkd, the network scripts of Red Hat, or ifupdown. Offline it is known from the `start` record.
//!
//! ## Why it matters
//!
//! A route such as `169.254.0.0/16 dev eth1` (zeroconf, a second interface, a CNI's link-local range) sends IMDS traffic
//! to a link on which IMDS isn't reachable. Each attempt waits 3 s and fails.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:33.049000000Z",
//!   "host": "node-1",
//!   "code": "neighbor-unresolved",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:33.049000000Z",
//!   "count": 2,
//!   "summary": "ARP or neighbor discovery for IMDS (169.254.169.254) is unanswered when host connects",
//!   "evidence": {"at":null,"attempts":2,"cause":"neighbor","cgroups":["/system.slice/app.service"],"client":"10.0.1.5:33832","drop":"NEIGH_FAILED@neigh_invalidate","endpoint":"169.254.169.254:80","errno":113,"icmp":"3/1","programs":["python3.11 app.py"],"redirected_to":null,"seconds_lost":3.05,"syns":1,"uids":[1000],"wire_syns":0},
//!   "remedy": {"commands":["ip route get 169.254.169.254","ip neigh show 169.254.169.254","ip route add 169.254.169.254/32 via GATEWAY dev INTERFACE"],"text":"An on-link route covers the endpoint. Delete that route, or add a more specific host route through the gateway. To make it permanent, add the route to this host's network configuration. The usual sources of an on-link route for 169.254.0.0/16 are zeroconf in Red Hat's network scripts (set NOZEROCONF=yes in /etc/sysconfig/network) and avahi-autoipd (remove the package)."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Attempts in the first 120 s after boot are ignored. A gateway that is down for a moment causes the same symptoms.
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

use super::connectivity::{Cause, CauseDetector, Failure};
use super::remedy::route_add;
use super::{Context, Limits};
use crate::record::{Code, NetworkTool, Remedy};

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

pub(super) fn new(config: &Config, limits: &Limits) -> CauseDetector {
    CauseDetector::new(limits, Code::NeighborUnresolved, config.quiet_s, accepts, describe).excused_at_boot()
}

fn accepts(cause: Cause) -> Option<()> {
    (cause == Cause::Neighbor).then_some(())
}

fn describe((): (), failure: &Failure, subject: &str, context: &Context<'_>) -> (String, Remedy) {
    let endpoint = failure.endpoint();
    let family = if failure.v6 { "-6 " } else { "" };
    let summary = format!("ARP or neighbor discovery for IMDS ({endpoint}) is unanswered when {subject} connects");
    let (lasting, command) = permanent(failure, context);
    let mut commands = vec![
        format!("ip {family}route get {endpoint}"),
        format!("ip {family}neigh show {endpoint}"),
        route_add(failure, context),
    ];
    commands.extend(command);
    let remedy = Remedy {
        text: format!(
            "An on-link route covers the endpoint. Delete that route, or add a more specific host route through the gateway. {lasting} The usual sources of an on-link route for 169.254.0.0/16 are zeroconf in Red Hat's network scripts (set NOZEROCONF=yes in /etc/sysconfig/network) and avahi-autoipd (remove the package)."
        ),
        commands,
    };
    (summary, remedy)
}

/// How the route survives a restart of this host, and a command for it.
fn permanent(failure: &Failure, context: &Context<'_>) -> (String, Option<String>) {
    let host = context.host;
    let interface = host.uplink.as_deref().unwrap_or("INTERFACE");
    let gateway = host.gateway.as_deref().filter(|_| !failure.v6).unwrap_or("GATEWAY");
    let route = format!("{}/{}", failure.endpoint(), if failure.v6 { 128 } else { 32 });
    let family = if failure.v6 { "ipv6" } else { "ipv4" };
    match host.network_tool {
        Some(NetworkTool::Netplan) => (
            format!(
                "To make it permanent, add it to the routes of {interface} in a file of /etc/netplan (to: {route}, via: {gateway})."
            ),
            Some("netplan apply".to_owned()),
        ),
        Some(NetworkTool::NetworkManager) => (
            "To make it permanent, add it to the connection of the interface in NetworkManager.".to_owned(),
            Some(format!(
                "nmcli connection modify CONNECTION +{family}.routes '{route} {gateway}'"
            )),
        ),
        Some(NetworkTool::SystemdNetworkd) => (
            format!(
                "To make it permanent, add a section [Route] with Destination={route} and Gateway={gateway} to the .network file of {interface}, and set LinkLocalAddressing=no or ipv6 for links that need no IPv4 link-local address."
            ),
            Some("networkctl reload".to_owned()),
        ),
        Some(NetworkTool::Ifcfg) => (
            "To make it permanent, add it to the interface's route file.".to_owned(),
            Some(format!(
                "echo '{route} via {gateway} dev {interface}' >> /etc/sysconfig/network-scripts/{}-{interface}",
                if failure.v6 { "route6" } else { "route" }
            )),
        ),
        Some(NetworkTool::Ifupdown) => (
            format!(
                "To make it permanent, add `up ip route add {route} via {gateway} dev {interface}` to the interface in /etc/network/interfaces."
            ),
            None,
        ),
        None => (
            "To make it permanent, add the route to this host's network configuration.".to_owned(),
            None,
        ),
    }
}
