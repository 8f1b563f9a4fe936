//! EKS Pod Identity or ECS gives a client no credentials.
//!
//! ## Detects
//!
//! One client's requests to the agent's address (169.254.170.23 and fd00:ec2::23, or 169.254.170.2) fail several times (`failures`)
//! within 10 min without a success in between. Refused requests for credentials, requests without a response and failed
//! connections count.
//! `evidence.cause` is
//!
//! - `no-association`: 404 of the Pod Identity Agent. EKS Auth knows no association of the pod's service account.
//! - `bad-token`: 400. Pod Identity: the service account token is missing, malformed or expired, or EKS Auth doesn't accept it. ECS: the
//!   id in the path is unknown.
//! - `wrong-host`: 403. Pod Identity: the `Host` header isn't one of the agent's addresses.
//! - `throttled`: 429.
//! - `not-ready`: 503 of the ECS agent, which knows the id and waits for the credentials. A finding needs such responses over at least `not_ready_s` seconds.
//! - `agent`: no agent listens (the connection is refused), the agent accepts and doesn't answer, or it answers with a server error.
//! - `network`: the connection doesn't reach the agent. `evidence.at` is where it ends.
//! - `proxy`: the failed request was forwarded by a proxy.
//!
//! Other paths are not judged: the Pod Identity Agent's own probe requests `/` and expects 404. `slow-responses` reports
//! slow agents, with separate limits: a cache miss of the agent takes some hundred ms.
//!
//! A client that sends its requests to a proxy (HTTP_PROXY set, the agent's address not in NO_PROXY) never connects to the agent's
//! address, so nothing of it is visible here until the proxy forwards the request. `imds-observer doctor` lists such processes.
//!
//! ## Why it matters
//!
//! The SDK raises an error, or continues with the next provider and uses the node's role, which usually lacks the permissions.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:15:22.000600000Z",
//!   "host": "node-1",
//!   "code": "container-credentials-failed",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":{"id":"abababababababababababababababababababababababababababababababab","image":null,"name":"api","pod":{"name":"api-7c9d5f-x2x2x","namespace":"payments","uid":"0f0f0f0f-1111-4222-8333-444455556666"},"runtime":"containerd"},"key":"pod/payments/api-7c9d5f-x2x2x/api/python3.11 app.py","name":"pod payments/api-7c9d5f-x2x2x","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/kubepods/besteffort/x","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026532900,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"payments/api"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:15:22.000000000Z",
//!   "count": 9,
//!   "summary": "requests of pod payments/api-7c9d5f-x2x2x to the EKS Pod Identity Agent fail with 404: the pod's service account has no Pod Identity association, or the agent runs with the name of another cluster",
//!   "evidence": {"at":null,"cause":"no-association","endpoint":"169.254.170.23:80","errno":null,"failures":9,"had_credentials_before":false,"path":"/v1/credentials","service":"eks-pod-identity","status":404,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["aws eks list-pod-identity-associations --cluster-name CLUSTER --namespace payments --service-account SERVICE_ACCOUNT","aws eks create-pod-identity-association --cluster-name CLUSTER --namespace payments --service-account SERVICE_ACCOUNT --role-arn ROLE_ARN"],"text":"Create an association between the pod's namespace and service account and a role, or correct the existing one. It applies to pods that start afterwards."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A test that asks for credentials without a token, more than once.
//!
//! ## Options
//!
//! `[detectors.container-credentials-failed]`
//!
//! - `failures` (2): failures within 10 min that make a finding.
//! - `not_ready_s` (10): seconds from the first 503 to the newest.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/eks/latest/userguide/pod-identities.html>
//! - <https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html>
//! - <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connectivity::{Cause, of_connect};
use super::knowledge::status;
use super::table::{bounded, entry};
use super::window::Bins;
use super::{Client, Context, Details, Detector, Limits, Observation, Scope, Sighting, Sightings};
use crate::imds::{Protocol, endpoint_of, service};
use crate::record::{
    Code, Connect, Connection, Container, Endpoint, Exchange, ExchangeOutcome, Of, Remedy, SECOND, Severity, Time,
};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub failures: u64,
    pub not_ready_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            failures: 2,
            not_ready_s: 10,
        }
    }
}

/// Failures of one client since its last success.
struct Row {
    recent: Bins<10, { 60 * SECOND }>,
    first: Time,
    all: u64,
    /// It had credentials before.
    succeeded: bool,
}

/// Why one attempt failed.
#[derive(Clone, Debug)]
struct Failure {
    cause: &'static str,
    /// Where a connection ends.
    at: Option<&'static str>,
    /// End of the sentence "requests of CLIENT to SERVICE ...".
    means: String,
    remedy: String,
    commands: Vec<String>,
}

pub(super) struct ContainerCredentialsFailed {
    config: Config,
    clients: LruCache<u64, Row>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> ContainerCredentialsFailed {
    ContainerCredentialsFailed {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

impl Detector for ContainerCredentialsFailed {
    fn code(&self) -> Code {
        Code::ContainerCredentialsFailed
    }

    fn scope(&self) -> Scope {
        Scope::Agents
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let Some(client) = context.client() else { return };
        match observation {
            Observation::Exchange(exchange) => self.exchange(exchange, client, context, sightings),
            Observation::Connect(connect) => {
                let note = context.knowledge.drop_note(&connect.connection.id);
                if let Some(failure) = of_connection(connect, of_connect(connect, note)) {
                    let seen = Seen {
                        time: connect.time,
                        connection: &connect.connection,
                        status: None,
                        path: None,
                        errno: connect.errno,
                    };
                    self.failed(&failure, &seen, client, context, sightings);
                }
            }
            // A drop's connection has a record of its own.
            Observation::Drop(_) | Observation::Interface(_) => {}
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

/// Facts about an attempt that the finding shows.
struct Seen<'a> {
    time: Time,
    connection: &'a Connection,
    status: Option<u16>,
    path: Option<&'a str>,
    errno: Option<i32>,
}

impl ContainerCredentialsFailed {
    fn exchange(
        &mut self,
        exchange: &Of<'_, Exchange>,
        client: &Client,
        context: &Context<'_>,
        sightings: &mut Sightings<'_>,
    ) {
        let protocol = context.protocol;
        let time = exchange.time;
        if !protocol.is_credentials(context.path) {
            return;
        }
        if status(exchange) == Some(200) {
            let row = self.row(client, time);
            row.recent = Bins::new();
            row.all = 0;
            row.succeeded = true;
            sightings.clear(&client.key, time);
            return;
        }
        let Some(failure) = of_exchange(exchange, protocol, context.path) else {
            return;
        };
        let seen = Seen {
            time,
            connection: &exchange.connection,
            status: status(exchange),
            path: Some(context.path),
            errno: None,
        };
        self.failed(&failure, &seen, client, context, sightings);
    }

    fn row(&mut self, client: &Client, time: Time) -> &mut Row {
        entry(&mut self.clients, client.handle, &mut self.evicted, || Row {
            recent: Bins::new(),
            first: time,
            all: 0,
            succeeded: false,
        })
    }

    fn failed(
        &mut self,
        failure: &Failure,
        seen: &Seen<'_>,
        client: &Client,
        context: &Context<'_>,
        sightings: &mut Sightings<'_>,
    ) {
        let time = seen.time;
        let (least, not_ready_ns) = (
            self.config.failures.max(1),
            self.config.not_ready_s.saturating_mul(SECOND),
        );
        let row = self.row(client, time);
        if row.recent.total(time) == 0 {
            row.all = 0;
        }
        if row.all == 0 {
            row.first = time;
        }
        row.first = row.first.min(time);
        row.recent.add(time, 1);
        row.all += 1;
        let starting = failure.cause == "not-ready" && time.since(row.first) < not_ready_ns;
        let (all, first, succeeded) = (row.all, row.first, row.succeeded);
        if row.recent.total(time) < least || starting {
            return;
        }
        let sighting = Sighting {
            key: &client.key,
            severity: match failure.cause {
                // It may pass by itself.
                "throttled" | "not-ready" => Severity::Warning,
                _ => Severity::High,
            },
            time,
            count: sightings.counted(&client.key, all, first),
            news: false,
        };
        sightings.report(sighting, || {
            let subject = context.client_subject();
            let endpoint = endpoint_of(&seen.connection.remote);
            let name = protocol_of(endpoint).service;
            Details {
                summary: format!("requests of {} to {name} {}", subject.name, failure.means),
                evidence: evidence! {
                    "cause": failure.cause,
                    "endpoint": seen.connection.remote,
                    "service": endpoint,
                    "status": seen.status,
                    "path": seen.path,
                    "failures": all,
                    "at": failure.at,
                    "errno": seen.errno,
                    "had_credentials_before": succeeded,
                    "user_agent": client.user_agent,
                },
                remedy: Remedy {
                    text: failure.remedy.clone(),
                    commands: failure
                        .commands
                        .iter()
                        .map(|command| for_pod(command, subject.container.as_deref()))
                        .collect(),
                },
                subject,
            }
        });
    }
}

fn protocol_of(endpoint: Endpoint) -> &'static Protocol {
    let dialect = service(endpoint).and_then(|service| service.dialect);
    dialect.unwrap_or(crate::record::Dialect::Unknown).protocol()
}

/// The command with the pod's namespace, where that is known.
fn for_pod(command: &str, container: Option<&Container>) -> String {
    let pod = container.and_then(|container| container.pod.as_ref());
    match pod.and_then(|pod| pod.namespace.as_deref()) {
        Some(namespace) => command.replace("NAMESPACE", namespace),
        None => command.to_owned(),
    }
}

/// Why a request for credentials failed; `None`: it didn't, or the client left.
fn of_exchange(exchange: &Exchange, protocol: &Protocol, path: &str) -> Option<Failure> {
    let endpoint = exchange.endpoint();
    if let Some(status) = status(exchange) {
        if !(400..600).contains(&status) {
            return None;
        }
        let known = protocol.refusal(status, path, false);
        if exchange.request.forwarded {
            return Some(Failure {
                cause: "proxy",
                at: None,
                means: format!("fail with {status}, and a proxy forwarded them"),
                remedy: "Exclude the agent's address from the proxy: set NO_PROXY in the client's environment."
                    .to_owned(),
                commands: vec![no_proxy(endpoint)],
            });
        }
        return Some(known.map_or_else(
            || Failure {
                cause: "agent",
                at: None,
                means: format!("fail with {status}, which the agent itself does not return for credentials"),
                remedy: "Find out what answers at this address, and check the agent's log.".to_owned(),
                commands: vec![],
            },
            |refusal| Failure {
                cause: refusal.cause,
                at: None,
                means: refusal.means.to_owned(),
                remedy: refusal.remedy.to_owned(),
                commands: refusal.commands.iter().map(|&command| command.to_owned()).collect(),
            },
        ));
    }
    match exchange.outcome {
        ExchangeOutcome::Unanswered | ExchangeOutcome::Reset => Some(agent(
            endpoint,
            if exchange.outcome == ExchangeOutcome::Reset {
                "reset"
            } else {
                "no-answer"
            },
            "are accepted, and not answered".to_owned(),
        )),
        // A client that waited as long as SDKs do.
        ExchangeOutcome::Closed if exchange.waited_ns.is_some_and(|waited| waited >= 9 * SECOND / 10) => Some(agent(
            endpoint,
            "no-answer",
            "are accepted, and not answered in time".to_owned(),
        )),
        _ => None,
    }
}

/// Why a connection failed; `None`: nothing shows it.
fn of_connection(connect: &Connect, cause: Option<Cause>) -> Option<Failure> {
    let endpoint = endpoint_of(&connect.connection.remote);
    let network = |at: &'static str, means: &str| Failure {
        cause: "network",
        at: Some(at),
        means: means.to_owned(),
        remedy: network_remedy(endpoint).to_owned(),
        commands: network_commands(&connect.connection.remote),
    };
    Some(match cause? {
        Cause::Refused | Cause::Redirected => agent(
            endpoint,
            "refused",
            "are refused: no agent listens at the address".to_owned(),
        ),
        Cause::Firewall(hook) => network(hook.as_str(), "are blocked by a firewall rule of this host"),
        Cause::Policy(hook) => network(
            hook.as_str(),
            "are denied by a policy: an eBPF program or traffic control",
        ),
        Cause::Route(kind) => network(kind.as_str(), "have no usable route"),
        Cause::Neighbor => network(
            "neighbor",
            "are not sent: ARP or neighbor discovery for the address is unanswered",
        ),
        Cause::Silence => network("silence", "get no response: their SYNs are dropped"),
        Cause::ResponseDropped => network("response", "are answered, and the response is dropped on this host"),
    })
}

fn agent(endpoint: Endpoint, at: &'static str, means: String) -> Failure {
    let (remedy, commands) = match endpoint {
        Endpoint::Ecs => (
            "Start the ECS agent on this instance, and check its log. It creates the NAT rules that lead from 169.254.170.2 to its port 51679: with `network_mode` host and bridge they must exist. Clients without a task need no AWS_CONTAINER_CREDENTIALS_RELATIVE_URI.",
            vec![
                "systemctl status ecs".to_owned(),
                "iptables-save -t nat | grep -n 169.254.170.2".to_owned(),
                "sysctl net.ipv4.conf.all.route_localnet".to_owned(),
            ],
        ),
        _ => (
            "Check the Pod Identity Agent on this node: the add-on eks-pod-identity-agent must run there (its DaemonSet tolerates all taints; Fargate has none), listen on port 80 of its addresses, and own the link pod-id-link0. Where IPv6 is disabled, it doesn't start unless its bind addresses are set to IPv4 only.",
            vec![
                "kubectl -n kube-system get pods -l app.kubernetes.io/name=eks-pod-identity-agent -o wide".to_owned(),
                "kubectl -n kube-system logs -l app.kubernetes.io/name=eks-pod-identity-agent --tail=50".to_owned(),
                "ip addr show dev pod-id-link0".to_owned(),
            ],
        ),
    };
    Failure {
        cause: "agent",
        at: Some(at),
        means,
        remedy: remedy.to_owned(),
        commands,
    }
}

fn network_remedy(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Ecs => {
            "Allow traffic to 169.254.170.2 port 80 in firewall and network policy, and check the ECS agent's NAT rules."
        }
        _ => {
            "Allow egress to the agent in the network policies that select this pod. The agent is a process of the node: Cilium counts it as the entity host, which an ipBlock (even 0.0.0.0/0) does not cover, so add toEntities: [host] with port 80. Other policy engines need an ipBlock for 169.254.170.23/32 (and fd00:ec2::23/128), port 80."
        }
    }
}

fn network_commands(remote: &str) -> Vec<String> {
    let address = remote
        .rsplit_once(':')
        .map_or(remote, |(address, _)| address)
        .trim_start_matches('[')
        .trim_end_matches(']');
    vec![
        "kubectl -n NAMESPACE get networkpolicies,ciliumnetworkpolicies".to_owned(),
        format!("ip route get {address}"),
    ]
}

fn no_proxy(endpoint: Endpoint) -> String {
    match endpoint {
        Endpoint::Ecs => "export NO_PROXY=\"$NO_PROXY,169.254.170.2\"".to_owned(),
        _ => "export NO_PROXY=\"$NO_PROXY,169.254.170.23,[fd00:ec2::23]\"".to_owned(),
    }
}
