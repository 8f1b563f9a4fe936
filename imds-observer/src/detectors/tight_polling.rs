//! A client requests one path at a rate that no legitimate use needs.
//!
//! ## Detects
//!
//! Per client and path, regardless of the status:
//!
//! - more than `rate_per_s` over a whole minute (`warning`),
//! - more than `high_rate_per_s` over 10 s, or 50 identical requests within 10 s with a median gap below
//!   `high_median_gap_ms` (`high`),
//! - more than `client_rate_per_s` over a minute on all paths together (`warning`), for clients that vary the path.
//!
//! Short-lived processes with the same executable, cgroup and parent count together: a shell loop around `curl` is one
//! client, named with its parent.
//!
//! ## Why it matters
//!
//! Each request costs about ten packets of the 1024 per second that IMDS, DNS and NTP share on an interface. A client
//! that polls without a pause breaks DNS for all workloads on the host.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:22.960300000Z",
//!   "host": "node-1",
//!   "code": "tight-polling",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.010000000Z",
//!   "last_seen": "2023-11-14T22:13:22.960000000Z",
//!   "count": 60,
//!   "summary": "python3.11 app.py (app.service, pid 4242) requests /latest/meta-data/instance-id 20.0 times per second",
//!   "evidence": {"median_gap_ms":50,"method":"GET","parent":{"comm":"systemd","pid":1},"path":"/latest/meta-data/instance-id","processes":1,"quota_share":0.2,"rate_per_s":20.0,"requests":60,"rule":"50 identical requests within 10 s","user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":[],"text":"Request the value once and cache it: instance facts never change, and credentials are valid until their Expiration. Create one boto3/botocore Session and reuse it: each new Session loads credentials with a new token. The AWS CLI does so at each start: run it less often, or provide credentials through credential_process."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Agents that poll once per second (ECS agent, node termination handler) stay below the limits. cloud-init and the first
//! 120 s after boot are ignored. The 10 s rate doesn't apply during the first `startup_s` of a client.
//!
//! ## Options
//!
//! `[detectors.tight-polling]`
//!
//! - `rate_per_s` (1.1): rate of one path, over 60 s. The highest legitimate rate is 1 per second, and timers jitter.
//! - `high_rate_per_s` (5.0): rate of one path, over 10 s.
//! - `high_median_gap_ms` (100): median gap of 50 identical requests within 10 s.
//! - `client_rate_per_s` (5.0): rate of one client on all paths, over 60 s.
//! - `startup_s` (30): age of a client below which the 10 s rate doesn't apply.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (query throttling)

use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::remedy::Sdk;
use super::table::{bounded, entry};
use super::window::{Bins, Recent, Run};
use super::{Client, Context, Details, Detector, Limits, Observation, Path, Scope, Sighting, Sightings, Who};
use crate::record::workload::nearest_parent;
use crate::record::{Code, ImdsVersion, Remedy, SECOND, Severity, Time};

/// Paths of clients that are followed; at most about 700 bytes each.
const MAX_PATHS: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// Clients that are followed.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Identical requests that make a tight loop.
const IDENTICAL: usize = 50;
/// A longer pause begins another loop.
const PAUSE_NS: u64 = 2 * SECOND;
/// Packets of a request on its own connection, in both directions: handshake, request, response, acknowledgements, close.
const PACKETS_PER_REQUEST: f64 = 10.0;
/// Packets a second that an interface may send to link-local services.
const QUOTA: f64 = 1024.0;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub rate_per_s: f64,
    pub high_rate_per_s: f64,
    pub high_median_gap_ms: u32,
    pub client_rate_per_s: f64,
    pub startup_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rate_per_s: 1.1,
            high_rate_per_s: 5.0,
            high_median_gap_ms: 100,
            client_rate_per_s: 5.0,
            startup_s: 30,
        }
    }
}

/// Requests in each of the last 60 seconds.
type Minute = Bins<60, SECOND>;

/// Requests of one client to one path.
struct PathTrack {
    minute: Minute,
    recent: Recent<IDENTICAL>,
    run: Run,
    first: Time,
}

struct ClientTrack {
    minute: Minute,
    run: Run,
    first: Time,
    /// Requests that made up findings.
    counted: u64,
}

pub(super) struct TightPolling {
    config: Config,
    paths: LruCache<(u64, u64), PathTrack>,
    clients: LruCache<u64, ClientTrack>,
    hasher: RandomState,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> TightPolling {
    TightPolling {
        config: config.clone(),
        paths: bounded(limits.paths(MAX_PATHS)),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        hasher: RandomState::new(),
        evicted: 0,
    }
}

/// Which rule was broken, and how.
struct Breach {
    severity: Severity,
    rule: &'static str,
    rate_per_s: f64,
    /// Requests in the rule's window.
    requests: u64,
    /// When the window begins.
    from: Time,
}

impl Breach {
    /// When the loop began, and its requests since: often before the window.
    fn began(&self, of_path: &PathTrack, of_client: &ClientTrack) -> (Time, u64) {
        let run = if self.is_of_client() {
            &of_client.run
        } else {
            &of_path.run
        };
        run.widen(self.from, self.requests)
    }

    fn is_of_client(&self) -> bool {
        self.rule.ends_with("all paths")
    }
}

impl Detector for TightPolling {
    fn code(&self) -> Code {
        Code::TightPolling
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        if exchange.request.imds_version == Some(ImdsVersion::Other) && exchange.request.path.is_none() {
            return;
        }
        let time = exchange.time;
        // Number of a usual method, or an unpredictable hash of another one.
        let method = match exchange.request.method.as_deref() {
            Some("GET") => 1,
            Some("PUT") => 2,
            other => self.hasher.hash_one(other),
        };
        let path_key = (client.handle, context.path_id.wrapping_add(method));
        let of_path = entry(&mut self.paths, path_key, &mut self.evicted, || PathTrack {
            minute: Bins::new(),
            recent: Recent::new(),
            run: Run::new(),
            first: time,
        });
        let of_client = entry(&mut self.clients, client.handle, &mut self.evicted, || ClientTrack {
            minute: Bins::new(),
            run: Run::new(),
            first: time,
            counted: 0,
        });
        of_path.minute.add(time, 1);
        of_path.recent.add(time);
        of_path.run.add(time, PAUSE_NS);
        of_client.minute.add(time, 1);
        of_client.run.add(time, PAUSE_NS);
        if context.booting(time) {
            return;
        }
        let Some(breach) = breach(&self.config, of_path, of_client, client, time) else {
            return;
        };
        let fresh = !sightings.is_open(&client.key);
        let (since, requests) = breach.began(of_path, of_client);
        let count = if fresh { requests } else { 1 };
        of_client.counted = if fresh { count } else { of_client.counted + 1 };
        let counted = of_client.counted;
        let sighting = Sighting {
            key: &client.key,
            severity: breach.severity,
            time,
            count,
            news: false,
        };
        if fresh {
            sightings.since(since);
        }
        sightings.keep(sighting, || {
            let facts = Facts {
                breach,
                recent: of_path.recent.clone(),
                counted,
                who: context.who(),
                path: context.shared_path.clone(),
                method: exchange.request.method.clone(),
                user_agent: client.user_agent.clone(),
                processes: client.processes,
                short_lived: client.short_lived(),
            };
            move || facts.details()
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

fn breach(
    config: &Config,
    of_path: &PathTrack,
    of_client: &ClientTrack,
    client: &Client,
    time: Time,
) -> Option<Breach> {
    // The newest second has only begun.
    let window = |seconds: u64| Time(time.0 - time.0 % SECOND).minus_ns((seconds - 1) * SECOND);
    if of_path.recent.span_ms().is_some_and(|span| span <= 10_000) {
        let span_s = f64::from(of_path.recent.span_ms().unwrap_or(1).max(1)) / 1000.0;
        if of_path.recent.median_gap_is_below(config.high_median_gap_ms) {
            return Some(Breach {
                severity: Severity::High,
                rule: "50 identical requests within 10 s",
                rate_per_s: (IDENTICAL - 1) as f64 / span_s,
                requests: IDENTICAL as u64,
                from: of_path.recent.oldest().map_or(time, |oldest| oldest.max(of_path.first)),
            });
        }
    }
    if time.since(client.started.min(of_path.first)) >= config.startup_s.saturating_mul(SECOND)
        && let Some((rate_per_s, requests)) =
            sustained(&of_path.minute, 10, of_path.first, config.high_rate_per_s, time)
    {
        return Some(Breach {
            severity: Severity::High,
            rule: "rate over 10 s",
            rate_per_s,
            requests,
            from: window(10).max(of_path.first),
        });
    }
    sustained(&of_path.minute, 60, of_path.first, config.rate_per_s, time)
        .map(|(rate_per_s, requests)| Breach {
            severity: Severity::Warning,
            rule: "rate over 60 s",
            rate_per_s,
            requests,
            from: window(60).max(of_path.first),
        })
        .or_else(|| {
            sustained(&of_client.minute, 60, of_client.first, config.client_rate_per_s, time).map(
                |(rate_per_s, requests)| Breach {
                    severity: Severity::Warning,
                    rule: "rate over 60 s, all paths",
                    rate_per_s,
                    requests,
                    from: window(60).max(of_client.first),
                },
            )
        })
}

/// More than `limit` a second over `seconds`, without a long pause in it: a burst is no polling.
fn sustained(minute: &Minute, seconds: usize, first: Time, limit: f64, time: Time) -> Option<(f64, u64)> {
    let all = minute.sum();
    // Nearly always: no part of the minute can hold more than all of it.
    if all as f64 <= limit * seconds as f64 {
        return None;
    }
    if time.since(first) < (seconds as u64 - 1) * SECOND {
        return None;
    }
    let (requests, least) = minute.newest(seconds, seconds / 5);
    // The newest second has only begun.
    let covered_s = (seconds - 1) as f64 + (time.0 % SECOND) as f64 / 1e9;
    let rate = requests as f64 / covered_s.max(1.0);
    // A fifth of the window must hold half of what an even rate would put there.
    let even = limit * seconds as f64 / 5.0;
    (requests as f64 > limit * seconds as f64 && least as f64 >= even / 2.0).then_some((rate, requests))
}

/// Facts of the latest sighting that a finding shows.
struct Facts {
    breach: Breach,
    /// On that path.
    recent: Recent<IDENTICAL>,
    counted: u64,
    who: Who,
    path: Arc<Path>,
    method: Option<String>,
    user_agent: Option<Arc<str>>,
    processes: u64,
    short_lived: bool,
}

impl Facts {
    fn details(&self) -> Details {
        let Self { breach, path, .. } = self;
        let path = &*path.normal;
        let subject = self.who.subject();
        let parent = self.who.process().and_then(nearest_parent);
        let sdk = Sdk::of(self.user_agent.as_deref());
        let quota_share = breach.rate_per_s * PACKETS_PER_REQUEST / QUOTA;
        let summary = format!(
            "{} requests {} {:.1} times per second",
            subject.name,
            if breach.is_of_client() { "IMDS paths" } else { path },
            breach.rate_per_s,
        );
        let text = if self.short_lived {
            format!(
                "A loop starts a new process for each request{}. Request the value once, cache it, and sleep between iterations. Credentials are valid for hours; instance facts never change.",
                parent.map_or_else(String::new, |parent| format!(
                    " (its parent is {}, pid {})",
                    parent.comm, parent.pid
                )),
            )
        } else {
            format!(
                "Request the value once and cache it: instance facts never change, and credentials are valid until their Expiration. {}",
                sdk.reuse()
            )
        };
        Details {
            subject,
            summary,
            evidence: evidence! {
                "rule": breach.rule,
                "path": path,
                "method": self.method,
                "rate_per_s": round(breach.rate_per_s),
                "median_gap_ms": self.recent.median_gap_ms(),
                "requests": self.counted,
                "processes": self.processes,
                "parent": parent,
                "quota_share": round(quota_share),
                "user_agent": self.user_agent,
            },
            remedy: Remedy {
                text,
                commands: Vec::new(),
            },
        }
    }
}

/// Two digits: a record need not be finer.
fn round(number: f64) -> f64 {
    (number * 100.0).round() / 100.0
}
