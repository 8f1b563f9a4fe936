//! The host, or the pod's network, has no usable route to IMDS.
//!
//! ## Detects
//!
//! `connect()` that failed before any SYN left: `ENETUNREACH` (no route), `EHOSTUNREACH` at once (an `unreachable` route),
//! `EACCES` (`prohibit`) or `EINVAL` (`blackhole`). For pods: the host dropped the packet for want of a route
//! (`IP_INNOROUTES`), answered with ICMP 3/0, or its reverse path filter dropped it. One finding per place: each pod for itself, the
//! host for its own processes.
//!
//! ## Why it matters
//!
//! Nothing that needs the instance's role or its facts works until the route is there. It fails at once, so retry loops turn
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
//!   "remedy": {"commands":["ip route get 169.254.169.254","ip route add 169.254.169.254/32 via GATEWAY dev INTERFACE"],"text":"Add a route to the endpoint; the default gateway of the primary interface answers for it."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Attempts in the first 120 s after boot and those of cloud-init are left out: the network comes up after them. Where only
//! IPv6 has no route and IPv4 works, `ipv6-endpoint-silent` tells it instead.
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

use super::connectivity::{Cause, Failure, Verdict};
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

pub(super) fn new(config: &Config, limits: &Limits) -> Verdict {
    Verdict::new(limits, Code::NoRoute, config.quiet_s, accepts, tell).excused_at_boot()
}

fn accepts(cause: Cause) -> bool {
    matches!(cause, Cause::Route(_))
}

fn tell(failure: &Failure, subject: &str, context: &Context<'_>) -> (String, Remedy) {
    let Cause::Route(kind) = failure.cause else {
        return (String::new(), Remedy::default());
    };
    let endpoint = failure.endpoint();
    let family = if failure.v6 { "-6 " } else { "" };
    let summary = match kind {
        "missing" => format!("{subject} has no route to IMDS ({endpoint})"),
        "missing or refusing" => format!("{subject} has no route to IMDS ({endpoint}), or one that refuses"),
        "reverse path filter" => format!("the reverse path filter drops the packets of {subject} to IMDS ({endpoint})"),
        kind => format!("a route of type {kind} keeps {subject} from IMDS ({endpoint})"),
    };
    let look = format!("ip {family}route get {endpoint}");
    let remedy = match kind {
        "missing" => Remedy {
            text: "Add a route to the endpoint; the default gateway of the primary interface answers for it.".to_owned(),
            commands: vec![look, route_add(failure, context)],
        },
        "missing or refusing" => Remedy {
            text: "Look for a route or a rule that refuses (unreachable, prohibit, blackhole) and delete it; if there is none, add a \
                   route to the endpoint. `imds-observer doctor` names the rule."
                .to_owned(),
            commands: vec![look, format!("ip {family}rule show"), route_add(failure, context)],
        },
        "reverse path filter" => Remedy {
            text: "Packets arrive at an interface through which their source would not be reached. Loosen the filter (2) \
                   on that interface, or repair the route back to the pod."
                .to_owned(),
            commands: vec![look, "sysctl -a --pattern 'net.ipv4.conf.*.rp_filter'".to_owned()],
        },
        kind => Remedy {
            text: format!("Delete the {kind} route, or add a more specific one to the endpoint."),
            commands: vec![
                format!("ip {family}route show table all type {kind}"),
                route_add(failure, context),
            ],
        },
    };
    (summary, remedy)
}
