//! An eBPF program or traffic control on this host denies the traffic to IMDS.
//!
//! ## Detects
//!
//! - `EPERM` from `connect()` before any SYN: a cgroup `connect4`/`connect6` program (systemd's `IPAddressDeny=`, Cilium,
//!   a sandbox policy).
//! - Drop reason `BPF_CGROUP_EGRESS`: a `cgroup_skb` program.
//! - Drop reason `TC_EGRESS` or `TC_INGRESS`: a traffic control program or filter, which some CNIs use for network
//!   policies.
//! - Drop reason `XDP`: an XDP program.
//! - Drop reason `QDISC_DROP`: a queueing discipline that is full or limits the rate.
//!
//! The finding names the hook. A policy that drops responses is `response-dropped`. One finding per pod, and one for the host's own processes.
//!
//! ## Why it matters
//!
//! The process gets no credentials. With any hook other than `connect()` it also waits for its timeout.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:21.000010000Z",
//!   "host": "node-1",
//!   "code": "denied-by-policy",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:21.000000000Z",
//!   "count": 2,
//!   "summary": "a policy (cgroup connect program) denies host access to IMDS (169.254.169.254)",
//!   "evidence": {"at":"cgroup connect program","attempts":2,"cause":"policy","cgroups":["/system.slice/app.service"],"client":"10.0.1.5:49783","drop":null,"endpoint":"169.254.169.254:80","errno":1,"icmp":null,"programs":["python3.11 app.py"],"redirected_to":null,"seconds_lost":0.0,"syns":0,"uids":[1000],"wire_syns":0},
//!   "remedy": {"commands":["bpftool cgroup tree","systemctl show --property=IPAddressDeny --property=IPAddressAllow '*.service'"],"text":"Allow the endpoint in the policy that denies it (the egress rule of a network policy, or IPAddressAllow= of a systemd unit). If the policy is intended, set AWS_EC2_METADATA_DISABLED=true so that the SDK stops trying."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A network policy may block pods from IMDS on purpose. The finding then confirms that it works. `QDISC_DROP` also
//! occurs when a traffic shaper is under load.
//!
//! ## Options
//!
//! `[detectors.denied-by-policy]`
//!
//! - `quiet_s` (300): seconds without a failure until the finding is resolved. A success of the client that failed
//!   resolves it sooner.
//!
//! ## References
//!
//! - `man 5 systemd.resource-control` (IPAddressDeny=)
//! - <https://docs.cilium.io/en/stable/security/policy/>

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connectivity::{Cause, CauseDetector, Failure, Policy};
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

pub(super) fn new(config: &Config, limits: &Limits) -> CauseDetector<Policy> {
    CauseDetector::new(limits, Code::DeniedByPolicy, config.quiet_s, accepts, describe)
}

fn accepts(cause: Cause) -> Option<Policy> {
    match cause {
        Cause::Policy(policy) => Some(policy),
        _ => None,
    }
}

fn describe(policy: Policy, failure: &Failure, subject: &str, _: &Context<'_>) -> (String, Remedy) {
    let endpoint = failure.endpoint();
    let summary = format!("a policy ({policy}) denies {subject} access to IMDS ({endpoint})");
    let commands = if matches!(
        policy,
        Policy::CgroupConnect | Policy::CgroupEgress | Policy::CgroupIngress
    ) {
        vec![
            "bpftool cgroup tree".to_owned(),
            "systemctl show --property=IPAddressDeny --property=IPAddressAllow '*.service'".to_owned(),
        ]
    } else {
        vec!["bpftool net show".to_owned(), "tc -s qdisc show".to_owned()]
    };
    let remedy = Remedy {
        text: "Allow the endpoint in the policy that denies it (the egress rule of a network policy, or IPAddressAllow= of a systemd unit). If the policy is intended, set AWS_EC2_METADATA_DISABLED=true so that the SDK stops trying."
            .to_owned(),
        commands,
    };
    (summary, remedy)
}
