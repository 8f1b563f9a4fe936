//! A pod with a role of its own read the credentials of the node's role.
//!
//! ## Detects
//!
//! A request for `iam/security-credentials/ROLE` that is answered with 200, by a pod into which Kubernetes projects a
//! token for a role: IAM roles for service accounts (IRSA) or EKS Pod Identity (`high`). Requests for the list of roles,
//! for `iam/info` or for the identity document are not reported. The token's mount is read from the container runtime's
//! configuration; where that can't be read, `container.pod.identity` is null and nothing is reported.
//!
//! ## Why it matters
//!
//! The application works, but with the permissions of the node instead of its own: it can do what the node can, and the
//! audit log names the node's role. It fails as soon as pods can't reach IMDS (hop limit 1, a network policy).
//!
//! The usual causes are an SDK that is too old for the pod's kind of role, a client that is configured with the instance
//! profile as its only provider, and an agent that gives no credentials. The cause is `agent-failed` if requests of the
//! same client to the EKS Pod Identity Agent failed before, else `unknown`.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:22.000300000Z",
//!   "host": "node-1",
//!   "code": "node-role-used",
//!   "severity": "high",
//!   "state": "open",
//!   "subject": {"container":{"id":"000000000000000000000000000000000000000000000000000000000000141f","image":null,"name":"app","pod":{"identity":"irsa","name":"api-7c9d8b6f5d-x2x4z","namespace":"payments","uid":"00000000-0000-4000-8000-000000005151"},"runtime":"containerd"},"key":"pod/payments/api-7c9d8b6f5d-x2x4z/app/python3.11 app.py","name":"pod payments/api-7c9d8b6f5d-x2x4z","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/kubepods/burstable/pod5151/000000000000000000000000000000000000000000000000000000000000141f","cmdline":["python3","app.py"],"comm":"python3.11","exe":"/usr/local/bin/python3.11","namespace_pid":1,"netns":4026537151,"pid":5151,"start_time":"2023-11-14T21:13:20.000000000Z","tid":5151,"uid":1000},"workload":"payments/api"},
//!   "first_seen": "2023-11-14T22:13:22.000000000Z",
//!   "last_seen": "2023-11-14T22:13:22.000000000Z",
//!   "count": 1,
//!   "summary": "pod payments/api-7c9d8b6f5d-x2x4z has a role of its own (IRSA), but read the credentials of the node's role node-role",
//!   "evidence": {"agent_failures":0,"cause":"unknown","client":"botocore (boto3, AWS CLI)","identity":"irsa","reads":1,"role":"node-role","user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["kubectl -n payments get pod api-7c9d8b6f5d-x2x4z -o jsonpath='{.spec.serviceAccountName}{\"\\n\"}'"],"text":"Update the client's SDK to a version that supports IRSA, and let it use its default chain of credential providers instead of the instance profile alone. Then set the hop limit to 1, or deny pods access to 169.254.169.254, so that pods can't fall back to the node's role. Trade-off: pods without a role of their own then get no credentials."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A program that needs the node's role on purpose, in a pod that also has a role of its own.
//!
//! ## Options
//!
//! `[detectors.node-role-used]`
//!
//! - `reads` (1): successful reads of one client that make a finding.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/eks/latest/userguide/iam-roles-for-service-accounts-minimum-sdk.html>
//! - <https://docs.aws.amazon.com/eks/latest/userguide/pod-id-minimum-sdk.html>
//! - <https://docs.aws.amazon.com/sdkref/latest/guide/standardized-credentials.html>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::remedy::{Sdk, options_are_fixed};
use super::table::{bounded, entry};
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings};
use crate::imds::role_of;
use crate::record::{Code, Dialect, Endpoint, PodIdentity, Remedy, Severity, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub reads: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { reads: 1 }
    }
}

/// Requests of one client.
struct Row {
    reads: u64,
    first: Time,
    /// Requests to the EKS Pod Identity Agent that failed since its last success.
    agent_failures: u64,
}

pub(super) struct NodeRoleUsed {
    config: Config,
    clients: LruCache<u64, Row>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> NodeRoleUsed {
    NodeRoleUsed {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

impl Detector for NodeRoleUsed {
    fn code(&self) -> Code {
        Code::NodeRoleUsed
    }

    fn scope(&self) -> Scope {
        Scope::All
    }

    fn wants(&self) -> Exchanges {
        Exchanges::CREDENTIALS | Exchanges::FAILED
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let pod = exchange.container.as_ref().and_then(|container| container.pod.as_ref());
        let Some((pod, identity)) = pod.and_then(|pod| Some((pod, pod.identity?))) else {
            return;
        };
        let (time, answered) = (exchange.time, status(exchange) == Some(200));
        let new = || Row {
            reads: 0,
            first: time,
            agent_failures: 0,
        };
        if exchange.endpoint() == Endpoint::EksPodIdentity {
            let row = entry(&mut self.clients, client.handle, &mut self.evicted, new);
            row.agent_failures = if answered { 0 } else { row.agent_failures + 1 };
            return;
        }
        let delivered = exchange
            .response
            .as_ref()
            .is_some_and(|response| response.delivered != Some(false));
        let is_aws = exchange.endpoint() == Endpoint::Imds && exchange.request.dialect == Dialect::Aws;
        if !(is_aws && answered && delivered) || role_of(context.below).is_none() || client.has_unusable_credentials() {
            return;
        }
        let row = entry(&mut self.clients, client.handle, &mut self.evicted, new);
        if row.reads == 0 {
            row.first = time;
        }
        row.reads += 1;
        let (reads, first, failures) = (row.reads, row.first, row.agent_failures);
        if reads < self.config.reads {
            return;
        }
        let sighting = Sighting {
            key: &client.key,
            severity: Severity::High,
            time,
            count: sightings.counted(&client.key, reads, first),
            news: false,
        };
        sightings.report(sighting, || {
            let subject = context.client_subject();
            let role = role_of(context.below).unwrap_or_default();
            let (kind, cause, why) = match (identity, failures) {
                (PodIdentity::EksPodIdentity, 1..) => (
                    "EKS Pod Identity",
                    "agent-failed",
                    format!(": the agent failed {failures} of its requests before"),
                ),
                (PodIdentity::EksPodIdentity, 0) => ("EKS Pod Identity", "unknown", String::new()),
                (PodIdentity::Irsa, _) => ("IRSA", "unknown", String::new()),
            };
            let first = if cause == "agent-failed" {
                "Repair the Pod Identity agent's responses first: see container-credentials-failed.".to_owned()
            } else {
                format!(
                    "Update the client's SDK to a version that supports {kind}, and let it use its default chain of \
                     credential providers instead of the instance profile alone."
                )
            };
            let limit = if options_are_fixed(context.host) {
                ""
            } else {
                "set the hop limit to 1, or "
            };
            let object = match (&pod.namespace, &pod.name) {
                (Some(namespace), Some(name)) => format!("-n {namespace} get pod {name}"),
                _ => "get pod POD".to_owned(),
            };
            Details {
                summary: format!(
                    "{} has a role of its own ({kind}), but read the credentials of the node's role {role}{why}",
                    subject.name
                ),
                evidence: evidence! {
                    "cause": cause,
                    "identity": identity,
                    "role": role,
                    "reads": reads,
                    "agent_failures": failures,
                    "client": Sdk::of(client.user_agent.as_deref()).name(),
                    "user_agent": client.user_agent,
                },
                remedy: Remedy {
                    text: format!(
                        "{first} Then {limit}deny pods access to 169.254.169.254, so that pods can't fall back to the node's role. \
                         Trade-off: pods without a role of their own then get no credentials."
                    ),
                    commands: vec![format!(
                        "kubectl {object} -o jsonpath='{{.spec.serviceAccountName}}{{\"\\n\"}}'"
                    )],
                },
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
