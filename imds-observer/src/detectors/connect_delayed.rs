//! SYNs to IMDS are lost and retransmitted, which costs seconds before the request is sent.
//!
//! ## Detects
//!
//! Connections whose handshake took at least 0.9 s (`connect_ns` of their first exchange). The first SYN or its SYN-ACK
//! was lost, and the kernel retransmitted the SYN after 1, 3 and 7 s. A finding needs three such connections of one
//! client within 15 minutes, or two if the client made only two. Severity: `high` if at least a quarter of the client's
//! requests since the first of them were delayed, else `warning`. One finding per client, with the seconds lost.
//!
//! ## Why it matters
//!
//! `latency_ns` starts with the request, so latency percentiles don't show the delay. A client with a connect timeout of
//! 1 s fails, and its SDK reports that it found no credentials. `no-answer` reports connections that were never
//! established.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:40.000300000Z",
//!   "host": "node-1",
//!   "code": "connect-delayed",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:40.000000000Z",
//!   "count": 3,
//!   "summary": "python3.11 app.py (app.service, pid 4242) lost 3.0 s in 3 TCP handshakes with IMDS: SYNs were lost and retransmitted (3 of its last 3 requests)",
//!   "evidence": {"client":"10.0.1.5:40024","delayed_connections":3,"longest_s":1.0,"of_requests":3,"quota_exceeded":false,"recent":3,"seconds_lost":3.001},
//!   "remedy": {"commands":["nstat -az TcpExtTCPSynRetrans TcpRetransSegs","conntrack -S","imds-observer stream --records drop,connect --duration 60s"],"text":"Find where SYNs or SYN-ACKs are lost. If the interface exceeds its link-local quota (packet-quota), reduce that traffic. If only one pod is affected, check its network: a full conntrack table or port collisions behind SNAT drop SYNs. Until then set the client's connect timeout above 3 s."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A single lost SYN is not reported. It is common when a pod starts while its network is being set up.
//!
//! ## Options
//!
//! `[detectors.connect-delayed]`
//!
//! - `slow_ms` (900): handshakes from this duration up count as delayed.
//! - `quiet_s` (900): seconds without a delayed handshake until the finding is resolved.
//!
//! ## References
//!
//! - RFC 6298 (the first retransmission timeout is 1 s)
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (throttling)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::share::Share;
use super::table::{bounded, entry};
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings};
use crate::record::{Code, Exchange, Remedy, SECOND, Severity};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// The shortest handshake that may count, whatever the option: real ones take below 1 ms.
const DELAYED_NS: u64 = 100_000_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub slow_ms: u64,
    pub quiet_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            slow_ms: 900,
            quiet_s: 900,
        }
    }
}

#[derive(Default)]
struct Delays {
    share: Share,
    connections: u64,
    lost_ns: u64,
    longest_ns: u64,
}

pub(super) struct ConnectDelayed {
    config: Config,
    clients: LruCache<u64, Delays>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> ConnectDelayed {
    ConnectDelayed {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

/// Whether the handshake may have been delayed.
pub(super) fn is_delayed(exchange: &Exchange) -> bool {
    exchange.connect_ns.is_some_and(|took| took >= DELAYED_NS)
}

impl Detector for ConnectDelayed {
    fn code(&self) -> Code {
        Code::ConnectDelayed
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s.saturating_mul(SECOND)
    }

    fn wants(&self) -> Exchanges {
        Exchanges::DELAYED
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let slow_ns = self.config.slow_ms.saturating_mul(1_000_000).max(DELAYED_NS);
        let Some(took) = exchange.connect_ns.filter(|took| *took >= slow_ns) else {
            return;
        };
        if context.booting(exchange.time) {
            return;
        }
        let delays = entry(&mut self.clients, client.handle, &mut self.evicted, Delays::default);
        let recent = delays.share.add(exchange.time, client.requests);
        delays.connections += 1;
        delays.lost_ns = delays.lost_ns.saturating_add(took);
        delays.longest_ns = delays.longest_ns.max(took);
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
            count: if open { 1 } else { delays.connections },
            news: false,
        };
        let delays = &*delays;
        sightings.since(recent.since).report(sighting, || {
            let subject = context.client_subject();
            let seconds = delays.lost_ns as f64 / 1e9;
            Details {
                summary: format!(
                    "{} lost {seconds:.1} s in {} TCP handshakes with IMDS: SYNs were lost and retransmitted ({} of its last {} requests)",
                    subject.name, delays.connections, recent.occurrences, recent.of
                ),
                evidence: evidence! {
                    "delayed_connections": delays.connections,
                    "seconds_lost": (seconds * 1000.0).round() / 1000.0,
                    "longest_s": (delays.longest_ns as f64 / 1e6).round() / 1e3,
                    "recent": recent.occurrences,
                    "of_requests": recent.of,
                    "quota_exceeded": context.knowledge.quota_at_limit(exchange.time),
                    "client": exchange.connection.local,
                },
                remedy: Remedy {
                    text: "Find where SYNs or SYN-ACKs are lost. If the interface exceeds its link-local quota (packet-quota), reduce that traffic. If only one pod is affected, check its network: a full conntrack table or port collisions behind SNAT drop SYNs. Until then set the client's connect timeout above 3 s."
                        .to_owned(),
                    commands: vec![
                        "nstat -az TcpExtTCPSynRetrans TcpRetransSegs".to_owned(),
                        "conntrack -S".to_owned(),
                        "imds-observer stream --records drop,connect --duration 60s".to_owned(),
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
