//! A netfilter rule of this host, or of the pod's network namespace, drops or rejects packets to IMDS.
//!
//! ## Detects
//!
//! A connection attempt whose packets netfilter dropped: drop reason `NETFILTER_DROP`, or before kernel 5.17 a packet
//! freed in `nft_do_chain` or `nf_hook_slow`. Without a drop record, the attempt's outcome is the evidence:
//!
//! - `ECONNREFUSED` although no SYN left the socket (REJECT in OUTPUT),
//! - an ICMP error "prohibited" or "port unreachable",
//! - a timeout although no SYN left the socket (DROP in OUTPUT).
//!
//! The finding names the chain: OUTPUT (before the packet left its network namespace), POSTROUTING or FORWARD (on the host,
//! between pod and uplink). A rule that drops responses is `response-dropped`. One finding per pod, and one for the host's own processes. The evidence
//! lists the users (`uids`) and `cgroups` of the affected processes, because a rule may match only one of them
//! (`--uid-owner`, `-m cgroup`). `imds-observer doctor` reads the rules and names the one that matches.
//!
//! ## Why it matters
//!
//! The process gets no credentials. With DROP it waits for its timeout at each attempt. With REJECT it fails at once.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:30.000000000Z",
//!   "host": "node-1",
//!   "code": "blocked-by-firewall",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":{"id":"000000000000000000000000000000000000000000000000000000000000141f","image":null,"name":"app","pod":{"name":"api-7c9d8b6f5d-x2x4z","namespace":"payments","uid":"00000000-0000-4000-8000-000000005151"},"runtime":"containerd"},"key":"pod/payments/api-7c9d8b6f5d-x2x4z","name":"pod payments/api-7c9d8b6f5d-x2x4z","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/kubepods/burstable/pod5151/000000000000000000000000000000000000000000000000000000000000141f","cmdline":["python3","app.py"],"comm":"python3.11","exe":"/usr/local/bin/python3.11","namespace_pid":1,"netns":4026537151,"pid":5151,"start_time":"2023-11-14T21:13:20.000000000Z","tid":5151,"uid":1000},"workload":"payments/api"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:30.000000000Z",
//!   "count": 2,
//!   "summary": "a firewall rule in FORWARD blocks pod payments/api-7c9d8b6f5d-x2x4z from IMDS (169.254.169.254)",
//!   "evidence": {"at":"FORWARD","attempts":2,"cause":"firewall","cgroups":["/kubepods/burstable/pod5151/000000000000000000000000000000000000000000000000000000000000141f"],"client":"10.244.0.7:58783","drop":"NETFILTER_DROP@nft_do_chain","endpoint":"169.254.169.254:80","errno":null,"icmp":null,"programs":["python3.11 app.py"],"redirected_to":null,"seconds_lost":2.0,"syns":2,"uids":[1000],"wire_syns":0},
//!   "remedy": {"commands":["iptables-save -c | grep -nE 'FORWARD|169.254.169.254|169\\.254|fd00:ec2'","nft list ruleset","iptables -I FORWARD 1 -d 169.254.169.254 -p tcp --dport 80 -j ACCEPT"],"text":"Find the rule in FORWARD that matches 169.254.169.254 and delete it, or accept this traffic in an earlier rule. If the rule is intended, provide credentials another way (IRSA, EKS Pod Identity) and set AWS_EC2_METADATA_DISABLED=true for the workload."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Blocking pods from IMDS is common and good practice (`disablePodIMDS`, network policies). The finding then confirms
//! that the block works, and names the workloads that still try. It can't name the rule: only the dropped packet is
//! visible.
//!
//! ## Options
//!
//! `[detectors.blocked-by-firewall]`
//!
//! - `quiet_s` (300): seconds without a failure until the finding is resolved. A success of the client that failed
//!   resolves it sooner.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (limiting access with iptables)
//! - `man 8 iptables`, `man 8 nft`

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connectivity::{Cause, CauseDetector, Failure, Hook};
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

pub(super) fn new(config: &Config, limits: &Limits) -> CauseDetector<Hook> {
    CauseDetector::new(limits, Code::BlockedByFirewall, config.quiet_s, accepts, describe)
}

fn accepts(cause: Cause) -> Option<Hook> {
    match cause {
        Cause::Firewall(chain) => Some(chain),
        _ => None,
    }
}

fn describe(chain: Hook, failure: &Failure, subject: &str, _: &Context<'_>) -> (String, Remedy) {
    let (endpoint, iptables) = (failure.endpoint(), failure.iptables());
    let summary = format!("a firewall rule in {chain} blocks {subject} from IMDS ({endpoint})");
    let remedy = Remedy {
        text: format!(
            "Find the rule in {chain} that matches {endpoint} and delete it, or accept this traffic in an earlier rule. If the rule is intended, provide credentials another way (IRSA, EKS Pod Identity) and set AWS_EC2_METADATA_DISABLED=true for the workload."
        ),
        commands: vec![
            format!("{iptables}-save -c | grep -nE '{chain}|{endpoint}|169\\.254|fd00:ec2'"),
            "nft list ruleset".to_owned(),
            format!("{iptables} -I {chain} 1 -d {endpoint} -p tcp --dport 80 -j ACCEPT"),
        ],
    };
    (summary, remedy)
}
