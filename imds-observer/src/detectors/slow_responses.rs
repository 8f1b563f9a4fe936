//! IMDS responds slowly.
//!
//! ## Detects
//!
//! Time from the first byte of the request to the first byte of the response, over the last 10 min and at most 128
//! responses: a 95th percentile above `p95_ms` with at least `min_answers` responses (`warning`), or at least
//! `slow_count` responses above `slow_ms` (`high`). Lost responses are not counted. One finding per pod, and one for the
//! host's own processes.
//!
//! ## Why it matters
//!
//! Normal is 0.24 to 0.31 ms. SDKs time out after 1 s (Go v2: 0.5 s, Datadog: 0.3 s), so slow responses become failures
//! under load. Common reasons: packets dropped over the quota and retransmitted (0.2 s and more), a proxy, or a host
//! short of CPU.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:15:16.090000000Z",
//!   "host": "node-1",
//!   "code": "slow-responses",
//!   "severity": "warning",
//!   "state": "open",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:46.000000000Z",
//!   "last_seen": "2023-11-14T22:15:16.000000000Z",
//!   "count": 4,
//!   "summary": "IMDS answers host slowly: 95th percentile 90 ms, slowest 90 ms",
//!   "evidence": {"answers":25,"max_ms":90.0,"p50_ms":0.3,"p95_ms":90.0,"quota_exceeded":false,"very_slow":0},
//!   "remedy": {"commands":["ethtool -S INTERFACE | grep linklocal_allowance_exceeded"],"text":"Check whether a proxy answers instead of IMDS (proxied-request), whether packets are dropped over the quota (packet-quota), and whether the host or the pod is short of CPU. Longer timeouts only hide the delay: AWS_METADATA_SERVICE_TIMEOUT and AWS_METADATA_SERVICE_NUM_ATTEMPTS (botocore)."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! On hosts that aren't EC2 instances, an IMDS mock may always be slower.
//!
//! ## Options
//!
//! `[detectors.slow-responses]`
//!
//! - `p95_ms` (50): highest allowed 95th percentile.
//! - `min_answers` (20): responses needed for a percentile.
//! - `slow_ms` (250): a response above it is very slow.
//! - `slow_count` (3): very slow responses that make a finding.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (query throttling)

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::answered;
use super::remedy;
use super::table::{bounded, entry};
use super::{Context, Details, Detector, Limits, Observation, Scope, Sighting, Sightings};
use crate::imds::service;
use crate::record::{Code, Dialect, Remedy, SECOND, Severity, Subject, Time};

/// Places that are remembered.
const MAX_PLACES: NonZeroUsize = NonZeroUsize::new(512).unwrap();
/// Answers of one location that are remembered.
const MAX_ANSWERS: usize = 128;
const WINDOW_NS: u64 = 600 * SECOND;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub p95_ms: u64,
    pub min_answers: usize,
    pub slow_ms: u64,
    pub slow_count: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            p95_ms: 50,
            min_answers: 20,
            slow_ms: 250,
            slow_count: 3,
        }
    }
}

pub(super) struct SlowResponses {
    config: Config,
    /// When an answer came and how long it took, oldest first.
    locations: LruCache<u64, VecDeque<(Time, u64)>>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> SlowResponses {
    SlowResponses {
        config: config.clone(),
        locations: bounded(limits.places(MAX_PLACES)),
        evicted: 0,
    }
}

impl Detector for SlowResponses {
    fn code(&self) -> Code {
        Code::SlowResponses
    }

    fn scope(&self) -> Scope {
        Scope::All
    }

    fn quiet_ns(&self) -> u64 {
        WINDOW_NS
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let Observation::Exchange(exchange) = observation else {
            return;
        };
        let Some(latency_ns) = exchange.latency_ns.filter(|_| answered(exchange)) else {
            return;
        };
        if exchange
            .request
            .path
            .as_deref()
            .is_some_and(|path| context.protocol.hangs(path))
        {
            return;
        }
        let endpoint = exchange.endpoint();
        let norm = service(endpoint).and_then(|service| service.norm);
        let slow_ms = norm.map_or(self.config.slow_ms, |norm| norm.slow_ms.max(self.config.slow_ms));
        let limit_ms = norm.map_or(self.config.p95_ms, |norm| norm.p95_ms.max(self.config.p95_ms));
        let (slow_ns, limit_ns) = (slow_ms.saturating_mul(1_000_000), limit_ms.saturating_mul(1_000_000));
        // An agent is as slow as it is, whatever IMDS does.
        let of_agent;
        let (key, location) = if endpoint.is_agent() {
            of_agent = format!("{}/{}", context.location_key(), endpoint.as_str());
            (of_agent.as_str(), context.place_id.rotate_left(endpoint as u32))
        } else {
            (context.location_key(), context.place_id)
        };
        let answers = entry(&mut self.locations, location, &mut self.evicted, VecDeque::new);
        answers.push_back((exchange.time, latency_ns));
        while answers.len() > MAX_ANSWERS
            || answers
                .front()
                .is_some_and(|(time, _)| exchange.time.since(*time) > WINDOW_NS)
        {
            answers.pop_front();
        }
        if latency_ns <= limit_ns {
            // Only a slow answer can make the matter worse.
            return;
        }
        let mut latencies: Vec<u64> = answers.iter().map(|(_, latency)| *latency).collect();
        latencies.sort_unstable();
        let at =
            |share: f64| latencies[((latencies.len() as f64 * share).ceil() as usize).clamp(1, latencies.len()) - 1];
        let p95_ns = at(0.95);
        let very_slow = latencies.iter().filter(|latency| **latency > slow_ns).count();
        let severity = if very_slow >= self.config.slow_count.max(1) && latency_ns > slow_ns {
            Severity::High
        } else if latencies.len() >= self.config.min_answers && p95_ns > limit_ns {
            Severity::Warning
        } else {
            return;
        };
        let slow = answers
            .iter()
            .filter(|(_, latency)| *latency > limit_ns)
            .map(|(time, _)| *time);
        let fresh = !sightings.is_open(key);
        if fresh && let Some(first) = slow.clone().min() {
            sightings.since(first);
        }
        let sighting = Sighting {
            key,
            severity,
            time: exchange.time,
            count: if fresh { slow.count() as u64 } else { 1 },
            news: false,
        };
        let quota = context.knowledge.quota_at_limit(exchange.time);
        sightings.report(sighting, || {
            let subject = Subject {
                key: key.to_owned(),
                ..context.location_subject()
            };
            let ms = |ns: u64| (ns as f64 / 1e4).round() / 1e2;
            Details {
                summary: format!(
                    "{} answers {} slowly: 95th percentile {} ms, slowest {} ms",
                    context.protocol.service, subject.name,
                    ms(p95_ns),
                    ms(at(1.0)),
                ),
                evidence: evidence! {
                    "p50_ms": ms(at(0.5)),
                    "p95_ms": ms(p95_ns),
                    "max_ms": ms(at(1.0)),
                    "answers": latencies.len(),
                    "very_slow": very_slow,
                    "quota_exceeded": quota,
                },
                remedy: if endpoint.is_agent() {
                    remedy::text(
                        "Check the agent's log on this node, the latency of its calls to the EKS Auth or ECS API, and whether the host is short of CPU.",
                    )
                } else if context.protocol.dialect != Dialect::Aws {
                    remedy::text(
                        "Check whether a proxy answers instead of the metadata service, and whether the host or the pod is short of CPU. Longer timeouts of clients only hide the delay.",
                    )
                } else { Remedy {
                    text: if quota {
                        "The interface exceeds its packet quota, and packets are retransmitted: see packet-quota.".to_owned()
                    } else {
                        "Check whether a proxy answers instead of IMDS (proxied-request), whether packets are dropped over the quota (packet-quota), and whether the host or the pod is short of CPU. Longer timeouts only hide the delay: AWS_METADATA_SERVICE_TIMEOUT and AWS_METADATA_SERVICE_NUM_ATTEMPTS (botocore)."
                            .to_owned()
                    },
                    commands: vec![format!(
                        "ethtool -S {} | grep linklocal_allowance_exceeded",
                        context.host.uplink.as_deref().unwrap_or("INTERFACE")
                    )],
                } },
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
