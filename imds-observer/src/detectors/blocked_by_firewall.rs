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
//! from or to a pod) or INPUT (answers). One finding per place: each pod for itself, the host for its own processes.
//!
//! ## Why it matters
//!
//! The process gets no credentials. With DROP it waits for its timeout each time, with REJECT it fails at once.
//!
//! ## Example record
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

use super::Context;
use super::connectivity::{Cause, Failure, Verdict};

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
    Verdict::new(Code::BlockedByFirewall, config.quiet_s, accepts, tell)
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
            format!("{iptables} -I {chain} 1 {direction} {endpoint} -p tcp {}port 80 -j ACCEPT", if direction == "-s" { "--s" } else { "--d" }),
        ],
    };
    (summary, remedy)
}
