//! Something answers for the IMDS address, and refuses the connection.
//!
//! ## Detects
//!
//! A connection attempt whose SYN was answered with RST: `ECONNREFUSED` after a SYN left the socket, and no netfilter drop and
//! no ICMP error that would point to a rule of this host (that is `blocked-by-firewall`). One finding per place.
//!
//! ## Why it matters
//!
//! The real service does not refuse connections. So the address leads to something else: a local redirect to a proxy that is down
//! (kiam, kube2iam, ECS credential agents), a DNAT rule, or an address of this host.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:30.000400000Z",
//!   "host": "node-1",
//!   "code": "connection-refused",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:30.000000000Z",
//!   "count": 3,
//!   "summary": "the connection of host to IMDS (169.254.169.254) is refused: something else holds the address",
//!   "evidence": {"at":null,"attempts":3,"cause":"refused","cgroups":["/system.slice/app.service"],"client":"10.0.1.5:58783","drop":null,"endpoint":"169.254.169.254:80","errno":111,"icmp":null,"programs":["python3.11 app.py"],"redirected_to":null,"seconds_lost":0.001,"syns":1,"uids":[1000],"wire_syns":1},
//!   "remedy": {"commands":["iptables-save -t nat | grep -nE '169\\.254|fd00:ec2|REDIRECT|DNAT'","ip addr show to 169.254.169.254","ip route get 169.254.169.254"],"text":"Look for a NAT rule that redirects the address to a local agent (kiam, kube2iam), and start that agent or take the rule out; look whether an interface of this host carries the address."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A local stand-in or proxy that restarts refuses for a moment.
//!
//! ## Options
//!
//! `[detectors.connection-refused]`
//!
//! - `quiet_s` (300): seconds without a failure until the finding is resolved. A success of the client that failed
//!   resolves it sooner.
//!
//! ## References
//!
//! - `man 8 iptables-extensions` (DNAT, REDIRECT)
//! - <https://github.com/uswitch/kiam> (redirects 169.254.169.254 to an agent of its own)

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connectivity::{Cause, Failure, Verdict};
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
    Verdict::new(limits, Code::ConnectionRefused, config.quiet_s, accepts, tell)
}

fn accepts(cause: Cause) -> bool {
    matches!(cause, Cause::Refused)
}

fn tell(failure: &Failure, subject: &str, _: &Context<'_>) -> (String, Remedy) {
    let (endpoint, iptables) = (failure.endpoint(), failure.iptables());
    if let Some(target) = &failure.redirected_to {
        let summary = format!(
            "the connection of {subject} to IMDS ({endpoint}) is redirected on this host to {target} and refused there: nothing \
             listens"
        );
        let remedy = Remedy {
            text: format!(
                "Start the program that {target} belongs to (a metadata agent such as kube2iam or kiam, a sidecar), or delete the NAT \
                 rule that leads there."
            ),
            commands: vec![
                format!("{iptables}-save -t nat | grep -nE '169\\.254|fd00:ec2|REDIRECT|DNAT'"),
                "nft list ruleset".to_owned(),
                "ss -tlnp".to_owned(),
            ],
        };
        return (summary, remedy);
    }
    let summary = failure.nat_rule.as_ref().map_or_else(
        || format!("the connection of {subject} to IMDS ({endpoint}) is refused: something else holds the address"),
        |rule| {
            format!(
                "the connection of {subject} to IMDS ({endpoint}) is refused, and a NAT rule sends it elsewhere: {rule}"
            )
        },
    );
    let remedy = Remedy {
        text: "Look for a NAT rule that redirects the address to a local agent (kiam, kube2iam), and start that agent or take \
               the rule out; look whether an interface of this host carries the address."
            .to_owned(),
        commands: vec![
            format!("{iptables}-save -t nat | grep -nE '169\\.254|fd00:ec2|REDIRECT|DNAT'"),
            format!("ip addr show to {endpoint}"),
            format!("ip route get {endpoint}"),
        ],
    };
    (summary, remedy)
}
