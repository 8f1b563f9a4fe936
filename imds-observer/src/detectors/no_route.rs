//! The host, or the pod's network namespace, has no usable route to IMDS.
//!
//! ## Detects
//!
//! `connect()` that failed before any SYN left: `ENETUNREACH` (no route), `EHOSTUNREACH` at once (an `unreachable`
//! route), `EACCES` (`prohibit`) or `EINVAL` (`blackhole`). For pods also: the host dropped the packet because it had no
//! route (`IP_INNOROUTES`), answered with ICMP 3/0, dropped the packet in its reverse path filter, or dropped it because
//! its TTL was used up (a routing loop). One finding per pod, and one for the host's own processes.
//!
//! ## Why it matters
//!
//! Workloads get neither credentials nor instance facts until the route exists. Attempts fail at once, so retry loops run
//! fast.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:30.000010000Z",
//!   "host": "node-1",
//!   "code": "no-route",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:30.000000000Z",
//!   "count": 3,
//!   "summary": "host has no route to IMDS (169.254.169.254)",
//!   "evidence": {"at":"missing","attempts":3,"cause":"route","cgroups":["/system.slice/app.service"],"client":"10.0.1.5:58783","drop":null,"endpoint":"169.254.169.254:80","errno":101,"icmp":null,"programs":["python3.11 app.py"],"redirected_to":null,"seconds_lost":0.0,"syns":0,"uids":[1000],"wire_syns":0},
//!   "remedy": {"commands":["ip route get 169.254.169.254","ip route add 169.254.169.254/32 via GATEWAY dev INTERFACE"],"text":"Add a route to the endpoint through the default gateway of the primary interface."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Attempts in the first 120 s after boot and those of cloud-init are ignored: the network may come up later. If only
//! IPv6 has no route and IPv4 works, `ipv6-endpoint-silent` reports it instead.
//!
//! ## Options
//!
//! `[detectors.no-route]`
//!
//! - `quiet_s` (300): seconds without a failure until the finding is resolved. A success of the client that failed
//!   resolves it sooner.
//!
//! ## References
//!
//! - `man 8 ip-route`
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html>

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connectivity::{Cause, CauseDetector, Failure, RouteFault};
use super::remedy::route_add;
use super::{Context, Limits};
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

pub(super) fn new(config: &Config, limits: &Limits) -> CauseDetector<RouteFault> {
    CauseDetector::new(limits, Code::NoRoute, config.quiet_s, accepts, describe).excused_at_boot()
}

fn accepts(cause: Cause) -> Option<RouteFault> {
    match cause {
        Cause::Route(fault) => Some(fault),
        _ => None,
    }
}

fn describe(fault: RouteFault, failure: &Failure, subject: &str, context: &Context<'_>) -> (String, Remedy) {
    let endpoint = failure.endpoint();
    let family = if failure.v6 { "-6 " } else { "" };
    let summary = match fault {
        RouteFault::Missing => format!("{subject} has no route to IMDS ({endpoint})"),
        RouteFault::MissingOrRefusing => {
            format!("{subject} has no route to IMDS ({endpoint}), or a route that rejects it")
        }
        RouteFault::ReversePathFilter => {
            format!("the reverse path filter drops the packets of {subject} to IMDS ({endpoint})")
        }
        RouteFault::Loop => format!(
            "the TTL of the packets of {subject} to IMDS ({endpoint}) is used up on this host: a routing loop, or a client that sends with a small TTL"
        ),
        kind @ (RouteFault::Blackhole | RouteFault::Prohibit | RouteFault::Unreachable) => {
            format!("a route of type {kind} blocks {subject} from IMDS ({endpoint})")
        }
    };
    let look = format!("ip {family}route get {endpoint}");
    let remedy = match fault {
        RouteFault::Missing => Remedy {
            text: "Add a route to the endpoint through the default gateway of the primary interface.".to_owned(),
            commands: vec![look, route_add(failure, context)],
        },
        RouteFault::MissingOrRefusing => Remedy {
            text: "Find the route or rule that rejects the packets (unreachable, prohibit, blackhole) and delete it; `imds-observer doctor` names the rule. If there is none, add a route to the endpoint."
                .to_owned(),
            commands: vec![look, format!("ip {family}rule show"), route_add(failure, context)],
        },
        RouteFault::ReversePathFilter => Remedy {
            text: "Packets arrive on an interface that isn't the route back to their source. Set rp_filter to 2 (loose) on that interface, or fix the route back to the pod."
                .to_owned(),
            commands: vec![look, "sysctl -a --pattern 'net.ipv4.conf.*.rp_filter'".to_owned()],
        },
        RouteFault::Loop => Remedy {
            text: "Look up the route in each network namespace on the path. If two namespaces route the packets to each other, that is the loop. If there is no loop, the client sends with a small TTL (IP_TTL, or net.ipv4.ip_default_ttl in its namespace)."
                .to_owned(),
            commands: vec![
                look,
                format!("lsns -t net -n -o PID | xargs -I{{}} nsenter -t {{}} -n ip {family}route get {endpoint}"),
                "sysctl net.ipv4.ip_default_ttl".to_owned(),
            ],
        },
        kind @ (RouteFault::Blackhole | RouteFault::Prohibit | RouteFault::Unreachable) => Remedy {
            text: format!("Delete the {kind} route, or add a more specific one to the endpoint."),
            commands: vec![
                format!("ip {family}route show table all type {kind}"),
                route_add(failure, context),
            ],
        },
    };
    (summary, remedy)
}
