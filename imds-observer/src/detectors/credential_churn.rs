//! A client repeatedly fetches the role's credentials, long after start-up.
//!
//! ## Detects
//!
//! More than `fetches` successful requests for `iam/security-credentials/ROLE` within 10 min by a client older than
//! `min_age_s` (`warning`), or more than `high_per_min` per minute over that time (`high`). Short-lived processes of one
//! loop count together.
//!
//! ## Why it matters
//!
//! Credentials are valid for about six hours, and SDKs refresh them minutes before they expire. A client that fetches
//! them every minute doesn't cache them: it creates an SDK client for each call, or a loop starts a command. Each fetch
//! costs two or three requests.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:20:21.000300000Z",
//!   "host": "node-1",
//!   "code": "credential-churn",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:21.000000000Z",
//!   "last_seen": "2023-11-14T22:20:21.000000000Z",
//!   "count": 8,
//!   "summary": "python3.11 app.py (app.service, pid 4242) fetched the credentials of app-role 8 times in 10 min: 7 unnecessary requests",
//!   "evidence": {"client":"botocore (boto3, AWS CLI)","client_age_s":4021,"fetches_in_10_min":8,"per_min":0.8,"processes":1,"requests_wasted":7,"role":"app-role","user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":[],"text":"Create one boto3/botocore Session and reuse it: each new Session loads credentials with a new token. The AWS CLI does so at each start: run it less often, or provide credentials through credential_process."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! The .NET SDK fetches every 2 min (5 in 10 min), which is below the limit. Shortly before credentials expire, some
//! clients fetch more often because IMDS still returns the old ones.
//!
//! ## Options
//!
//! `[detectors.credential-churn]`
//!
//! - `fetches` (6): highest allowed number within 10 min.
//! - `high_per_min` (1.0): fetches per minute above which the finding is `high`.
//! - `min_age_s` (300): age of a client below which it may still be starting.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::remedy::{self, Sdk};
use super::table::{bounded, entry};
use super::window::{Bins, Dated};
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Sighting, Sightings};
use crate::imds::role_of;
use crate::record::{Code, ImdsVersion, SECOND, Severity, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
const WINDOW_MIN: f64 = 10.0;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub fetches: u64,
    pub high_per_min: f64,
    pub min_age_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            fetches: 6,
            high_per_min: 1.0,
            min_age_s: 300,
        }
    }
}

/// A client's requests of the last 10 min.
struct Asked {
    fetches: Dated<20, { 30 * SECOND }>,
    /// Tokens, the role's name and the credentials: what fetching them takes.
    requests: Bins<20, { 30 * SECOND }>,
}

impl Asked {
    fn new() -> Self {
        Self {
            fetches: Dated::new(),
            requests: Bins::new(),
        }
    }

    /// Requests that one fetch in that time would have spared.
    fn wasted(&mut self, now: Time) -> u64 {
        let (fetches, requests) = (self.fetches.newest(20).0, self.requests.total(now));
        requests - requests.div_ceil(fetches.max(1))
    }
}

pub(super) struct CredentialChurn {
    config: Config,
    clients: LruCache<u64, Asked>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> CredentialChurn {
    CredentialChurn {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

impl Detector for CredentialChurn {
    fn code(&self) -> Code {
        Code::CredentialChurn
    }

    fn quiet_ns(&self) -> u64 {
        1200 * SECOND
    }

    fn wants(&self) -> Exchanges {
        Exchanges::TOKEN | Exchanges::CREDENTIALS
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let is_token = exchange.request.imds_version == Some(ImdsVersion::Token);
        if !(is_token || context.credentials) || status(exchange) != Some(200) {
            return;
        }
        let asked = entry(&mut self.clients, client.handle, &mut self.evicted, Asked::new);
        asked.requests.add(exchange.time, 1);
        // A response without credentials is the reason for fetching again: credentials-unusable reports it.
        if role_of(context.below).is_none() || client.has_unusable_credentials() {
            return;
        }
        asked.fetches.add(exchange.time);
        let (fetches, first) = asked.fetches.newest(20);
        let age_ns = exchange.time.since(client.started);
        if fetches <= self.config.fetches || age_ns < self.config.min_age_s.saturating_mul(SECOND) {
            return;
        }
        let per_min = fetches as f64 / WINDOW_MIN;
        let wasted = asked.wasted(exchange.time);
        let sighting = Sighting {
            key: &client.key,
            severity: if per_min > self.config.high_per_min {
                Severity::High
            } else {
                Severity::Warning
            },
            time: exchange.time,
            count: if sightings.is_open(&client.key) { 1 } else { fetches },
            news: false,
        };
        if sighting.count > 1
            && let Some(first) = first
        {
            sightings.since(first);
        }
        sightings.keep(sighting, || {
            let (who, path) = (context.who(), context.shared_path.clone());
            let (processes, user_agent) = (client.processes, client.user_agent.clone());
            move || {
                let subject = who.subject();
                let role = role_of(path.below()).unwrap_or_default();
                let sdk = Sdk::of(user_agent.as_deref());
                Details {
                    summary: format!(
                        "{} fetched the credentials of {role} {fetches} times in 10 min: {wasted} unnecessary requests",
                        subject.name
                    ),
                    evidence: evidence! {
                        "role": role,
                        "fetches_in_10_min": fetches,
                        "requests_wasted": wasted,
                        "per_min": per_min,
                        "client_age_s": age_ns / SECOND,
                        "processes": processes,
                        "user_agent": user_agent,
                        "client": sdk.name(),
                    },
                    remedy: remedy::text(sdk.reuse()),
                    subject,
                }
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
