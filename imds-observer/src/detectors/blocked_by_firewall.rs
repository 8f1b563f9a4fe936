//! A netfilter rule of this host, or of the pod's network, drops or rejects packets to IMDS.
//!
//! ## Detects
//!
//! A connection attempt whose packets netfilter freed: drop reason `NETFILTER_DROP`, or before kernel 5.17 a packet freed in
//! `nft_do_chain` or `nf_hook_slow`. Without a drop record it is told from what the client met: `ECONNREFUSED` though no SYN
//! left the socket (REJECT in OUTPUT), an ICMP error of the "prohibited" or "port unreachable" kind, or an attempt that ran
//! into its timeout though no SYN left the socket (DROP in OUTPUT).
//!
//! The finding names the chain: OUTPUT (before the packet left its own network), POSTROUTING, FORWARD (on the host, on the way
//! from or to a pod) or INPUT (answers). One finding per place: each pod for itself, the host for its own processes. The
//! evidence has the users (`uids`) and `cgroups` of the processes that were hit: a rule may mean one of them, as
//! `--uid-owner` and `-m cgroup` do. `imds-observer doctor` reads the rules and says which one it is.
//!
//! ## Why it matters
//!
//! The process gets no credentials. With DROP it waits for its timeout each time, with REJECT it fails at once.
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
//!   "summary": "a firewall rule in FORWARD keeps pod payments/api-7c9d8b6f5d-x2x4z from IMDS (169.254.169.254)",
//!   "evidence": {"at":"FORWARD","attempts":2,"cause":"firewall","cgroups":["/kubepods/burstable/pod5151/000000000000000000000000000000000000000000000000000000000000141f"],"client":"10.244.0.7:58783","drop":"NETFILTER_DROP@nft_do_chain","endpoint":"169.254.169.254:80","errno":null,"icmp":null,"programs":["python3.11 app.py"],"redirected_to":null,"seconds_lost":2.0,"syns":2,"uids":[1000],"wire_syns":0},
//!   "remedy": {"commands":["iptables-save -c | grep -nE 'FORWARD|169.254.169.254|169\\.254|fd00:ec2'","nft list ruleset","iptables -I FORWARD 1 -d 169.254.169.254 -p tcp --dport 80 -j ACCEPT"],"text":"Find the rule in FORWARD that matches 169.254.169.254 and take it out, or accept this traffic before it. If the block is wanted, give the workload credentials another way (IRSA, EKS Pod Identity) and stop it from asking IMDS: AWS_EC2_METADATA_DISABLED=true."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Blocking pods from IMDS is a common and good policy (`disablePodIMDS`, network policies): then the finding shows that it
//! works, and which workload still tries. Only the dropped packet is seen, not the rule's number.
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
    Verdict::new(limits, Code::BlockedByFirewall, config.quiet_s, accepts, tell)
}

fn accepts(cause: Cause) -> bool {
    matches!(cause, Cause::Firewall(_))
}

fn tell(failure: &Failure, subject: &str, _: &Context<'_>) -> (String, Remedy) {
    let Cause::Firewall(chain) = failure.cause else {
        return (String::new(), Remedy::default());
    };
    let (endpoint, iptables) = (failure.endpoint(), failure.iptables());
    let summary = format!("a firewall rule in {chain} keeps {subject} from IMDS ({endpoint})");
    let direction = if chain == "INPUT" { "-s" } else { "-d" };
    let remedy = Remedy {
        text: format!(
            "Find the rule in {chain} that matches {endpoint} and take it out, or accept this traffic before it. If the \
             block is wanted, give the workload credentials another way (IRSA, EKS Pod Identity) and stop it from asking \
             IMDS: AWS_EC2_METADATA_DISABLED=true."
        ),
        commands: vec![
            format!("{iptables}-save -c | grep -nE '{chain}|{endpoint}|169\\.254|fd00:ec2'"),
            "nft list ruleset".to_owned(),
            format!(
                "{iptables} -I {chain} 1 {direction} {endpoint} -p tcp {}port 80 -j ACCEPT",
                if direction == "-s" { "--s" } else { "--d" }
            ),
        ],
    };
    (summary, remedy)
}
