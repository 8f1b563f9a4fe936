//! Something other than IMDS refuses connections to the IMDS address.
//!
//! ## Detects
//!
//! A connection attempt whose SYN was answered with RST: `ECONNREFUSED` after a SYN left the socket, without a netfilter
//! drop or an ICMP error. Those two indicate a rule on this host, which `blocked-by-firewall` reports. One finding per
//! pod, and one for the host's own processes.
//!
//! ## Why it matters
//!
//! IMDS itself never refuses connections. The address leads elsewhere: to a redirection whose proxy is down (kiam,
//! kube2iam, an ECS credential agent), to the target of a DNAT rule, or to an address of this host.
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
//!   "summary": "the connection of host to IMDS (169.254.169.254) is refused by something other than IMDS",
//!   "evidence": {"at":null,"attempts":3,"cause":"refused","cgroups":["/system.slice/app.service"],"client":"10.0.1.5:58783","drop":null,"endpoint":"169.254.169.254:80","errno":111,"icmp":null,"programs":["python3.11 app.py"],"redirected_to":null,"seconds_lost":0.001,"syns":1,"uids":[1000],"wire_syns":1},
//!   "remedy": {"commands":["iptables-save -t nat | grep -nE '169\\.254|fd00:ec2|REDIRECT|DNAT'","ip addr show to 169.254.169.254","ip route get 169.254.169.254"],"text":"Look for a NAT rule that redirects the address to a local agent (kiam, kube2iam); start that agent or delete the rule. Also check whether the address is assigned to an interface of this host."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A local IMDS mock or proxy refuses connections for a moment while it restarts.
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

use super::connectivity::{Cause, CauseDetector, Failure};
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

pub(super) fn new(config: &Config, limits: &Limits) -> CauseDetector {
    CauseDetector::new(limits, Code::ConnectionRefused, config.quiet_s, accepts, describe)
}

fn accepts(cause: Cause) -> Option<()> {
    (cause == Cause::Refused).then_some(())
}

fn describe((): (), failure: &Failure, subject: &str, _: &Context<'_>) -> (String, Remedy) {
    let (endpoint, iptables) = (failure.endpoint(), failure.iptables());
    if let Some(target) = failure.redirected_to.as_deref().or(failure.nat_target()) {
        let summary = format!(
            "this host redirects the connection of {subject} to IMDS ({endpoint}) to {target}, where no program listens"
        );
        let rule = failure
            .nat_rule
            .as_ref()
            .map_or_else(String::new, |rule| format!(" ({rule})"));
        let remedy = Remedy {
            text: format!(
                "Start the program that should listen on {target} (a metadata agent such as kube2iam or kiam, or a sidecar), or delete the NAT rule that redirects to it{rule}."
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
        || format!("the connection of {subject} to IMDS ({endpoint}) is refused by something other than IMDS"),
        |rule| format!("the connection of {subject} to IMDS ({endpoint}) is refused; a NAT rule redirects it: {rule}"),
    );
    let remedy = Remedy {
        text: "Look for a NAT rule that redirects the address to a local agent (kiam, kube2iam); start that agent or delete the rule. Also check whether the address is assigned to an interface of this host."
            .to_owned(),
        commands: vec![
            format!("{iptables}-save -t nat | grep -nE '169\\.254|fd00:ec2|REDIRECT|DNAT'"),
            format!("ip addr show to {endpoint}"),
            format!("ip route get {endpoint}"),
        ],
    };
    (summary, remedy)
}
