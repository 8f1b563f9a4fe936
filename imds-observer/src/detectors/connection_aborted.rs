//! Something other than IMDS accepts connections, and closes or resets them without a response.
//!
//! ## Detects
//!
//! Requests on an established connection that the server closed or reset (`closed_by: server`, or outcome `reset`) before
//! the first byte of a response. A finding needs three such requests of one client within 15 minutes, or two if the
//! client sent only two. Severity: `high` if at least a quarter of the client's requests since the first of them end this
//! way, else `warning`. One finding per client.
//!
//! Not counted: a later request on a keep-alive connection that ends at once. The server had closed the idle connection
//! while the request was in flight, and clients retry.
//!
//! ## Why it matters
//!
//! The connection is established, so routes, firewalls and the hop limit are not the cause. IMDS itself answers every
//! request. The program that accepts the connection is a service mesh sidecar that isn't ready or whose egress rules deny
//! the address, or a failing metadata agent (kube2iam, kiam, ECS agent, Pod Identity agent).
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:40.000250000Z",
//!   "host": "node-1",
//!   "code": "connection-aborted",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:40.000000000Z",
//!   "count": 3,
//!   "summary": "another program instead of IMDS accepts the connections of python3.11 app.py (app.service, pid 4242) and closes or resets them without a response (3 of 3 requests)",
//!   "evidence": {"client":"10.0.1.5:40003","closed":2,"methods":{"GET":3},"of_requests":3,"path":"/latest/meta-data/placement/region","recent":3,"redirected_to":null,"reset":1,"seconds_lost":0.001},
//!   "remedy": {"commands":["iptables-save -t nat | grep -nE '169\\.254|REDIRECT|DNAT'","ss -tlnp"],"text":"Find the program that accepts the connections: IMDS itself answers every request. In a service mesh, exclude 169.254.169.254/32 from the sidecar's redirection (Istio: traffic.sidecar.istio.io/excludeOutboundIPRanges; App Mesh: APPMESH_EGRESS_IGNORED_IP), or start the application after the sidecar. If a metadata agent answers for IMDS, check its log and restart it."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! An IMDS mock that restarts closes its connections.
//!
//! ## Options
//!
//! `[detectors.connection-aborted]`
//!
//! - `quiet_s` (600): seconds without an aborted request until the finding is resolved.
//!
//! ## References
//!
//! - <https://istio.io/latest/docs/reference/config/annotations/> (`traffic.sidecar.istio.io/excludeOutboundIPRanges`)
//! - <https://docs.aws.amazon.com/app-mesh/latest/userguide/troubleshoot-connectivity.html>

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::share::Share;
use super::table::{bounded, entry};
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings};
use crate::record::{Code, End, Exchange, ExchangeOutcome, Remedy, SECOND, Severity};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// A kept connection that ends sooner after a request was closed while the request was on its way.
const CROSSING_NS: u64 = 50_000_000;
/// Older records don't have `closed_by`. Their unanswered requests whose end is known sooner than this were ended by the server.
const IDLE_NS: u64 = 20 * SECOND;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub quiet_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { quiet_s: 600 }
    }
}

#[derive(Default)]
struct Aborts {
    share: Share,
    closed: u64,
    reset: u64,
    waited_ns: u64,
    redirected_to: Option<String>,
    methods: BTreeMap<String, u64>,
}

pub(super) struct ConnectionAborted {
    config: Config,
    clients: LruCache<u64, Aborts>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> ConnectionAborted {
    ConnectionAborted {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

/// The server's side ended the connection in place of an answer.
pub(super) fn is_aborted(exchange: &Exchange) -> bool {
    let waited = exchange.waited_ns;
    let by_server = match (exchange.outcome, exchange.closed_by) {
        (ExchangeOutcome::Reset, _) | (ExchangeOutcome::Unanswered | ExchangeOutcome::Closed, Some(End::Server)) => {
            true
        }
        (ExchangeOutcome::Unanswered, None) => waited.is_some_and(|waited| waited < IDLE_NS),
        _ => false,
    };
    by_server && exchange.response.is_none()
}

/// The end and the request crossed each other on a connection that was kept.
fn crossed(exchange: &Exchange) -> bool {
    exchange.connection.exchange > 1 && exchange.waited_ns.is_none_or(|waited| waited < CROSSING_NS)
}

impl Detector for ConnectionAborted {
    fn code(&self) -> Code {
        Code::ConnectionAborted
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s.saturating_mul(SECOND)
    }

    fn wants(&self) -> Exchanges {
        Exchanges::FAILED
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        if !is_aborted(exchange) || crossed(exchange) {
            return;
        }
        let aborts = entry(&mut self.clients, client.handle, &mut self.evicted, Aborts::default);
        let recent = aborts.share.add(exchange.time, client.requests);
        if exchange.outcome == ExchangeOutcome::Reset {
            aborts.reset += 1;
        } else {
            aborts.closed += 1;
        }
        aborts.waited_ns = aborts.waited_ns.saturating_add(exchange.waited_ns.unwrap_or(0));
        aborts.redirected_to = exchange
            .connection
            .redirected_to
            .clone()
            .or(aborts.redirected_to.take());
        if let Some(method) = &exchange.request.method
            && (aborts.methods.len() < 4 || aborts.methods.contains_key(method))
        {
            *aborts.methods.entry(method.clone()).or_default() += 1;
        }
        let open = sightings.is_open(&client.key);
        if !recent.is_pattern() && !open {
            return;
        }
        let sighting = Sighting {
            key: &client.key,
            severity: if recent.is_large() {
                Severity::High
            } else {
                Severity::Warning
            },
            time: exchange.time,
            count: if open { 1 } else { recent.occurrences },
            news: false,
        };
        let aborts = &*aborts;
        sightings.since(recent.since).report(sighting, || {
            let subject = context.client_subject();
            let how = match (aborts.closed, aborts.reset) {
                (_, 0) => "closes",
                (0, _) => "resets",
                _ => "closes or resets",
            };
            let who = aborts.redirected_to.as_deref().map_or_else(
                || "another program instead of IMDS".to_owned(),
                |target| format!("{target}, to which this host redirects IMDS requests,"),
            );
            Details {
                summary: format!(
                    "{who} accepts the connections of {} and {how} them without a response ({} of {} requests)",
                    subject.name, recent.occurrences, recent.of
                ),
                evidence: evidence! {
                    "closed": aborts.closed,
                    "reset": aborts.reset,
                    "recent": recent.occurrences,
                    "of_requests": recent.of,
                    "seconds_lost": (aborts.waited_ns as f64 / 1e6).round() / 1e3,
                    "methods": aborts.methods,
                    "path": context.path,
                    "redirected_to": aborts.redirected_to,
                    "client": exchange.connection.local,
                },
                remedy: Remedy {
                    text: "Find the program that accepts the connections: IMDS itself answers every request. In a service mesh, exclude 169.254.169.254/32 from the sidecar's redirection (Istio: traffic.sidecar.istio.io/excludeOutboundIPRanges; App Mesh: APPMESH_EGRESS_IGNORED_IP), or start the application after the sidecar. If a metadata agent answers for IMDS, check its log and restart it."
                        .to_owned(),
                    commands: vec![
                        "iptables-save -t nat | grep -nE '169\\.254|REDIRECT|DNAT'".to_owned(),
                        "ss -tlnp".to_owned(),
                    ],
                },
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
