//! IMDS answers 401 again and again: a token that no longer holds is kept in use, or none is sent where one is required.
//!
//! ## Detects
//!
//! Per client: `rejections` answers 401 within `window_s` to requests with the same token, or without any; or as many in
//! a row, however slowly, without a new token being asked for. A single 401 that is followed by a new token is how clients
//! renew, and is no finding.
//!
//! ## Why it matters
//!
//! The client gets nothing. With an old token it will go on like this until it is restarted; without a token it will,
//! until it is updated, since the instance requires tokens (`--http-tokens required`).
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:14:05.000300000Z",
//!   "host": "node-1",
//!   "code": "token-rejected",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:14:05.000000000Z",
//!   "count": 4,
//!   "summary": "python3.11 app.py (app.service, pid 4242) keeps using a token that IMDS rejects",
//!   "evidence": {"cause":"same-token","client":"botocore (boto3, AWS CLI)","path":"/latest/meta-data/instance-id","rejections":4,"token":"9f2c51d0","user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":[],"text":"Ask for a new token after a 401. Make one boto3/botocore Session and keep it: each new Session loads credentials with a new token. The AWS CLI does so at each start: call it less often, or hand it credentials through credential_process. Until then a restart of the client helps."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Many threads that share a token may see it expire all at once: more than two requests before one of them renews it
//! look the same. fluent-bit asks once with an invalid token to learn whether IMDSv2 exists; that is not reported.
//!
//! ## Options
//!
//! `[detectors.token-rejected]`
//!
//! - `rejections` (3): answers 401 that make a finding.
//! - `window_s` (60): the time within which they must come, unless they come in a row.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (HTTP status 401)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::remedy::{self, Sdk};
use super::table::bounded;
use super::{Context, Details, Detector, Limits, Observation, Sighting, Sightings};
use crate::record::{Code, ImdsVersion, Remedy, SECOND, Severity, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Rejections further apart than this are no row.
const ROW_NS: u64 = 3600 * SECOND;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub rejections: u64,
    pub window_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rejections: 3,
            window_s: 60,
        }
    }
}

/// Rejections of one token (or of none) by one client.
struct Row {
    token: Option<String>,
    /// In the current window.
    in_window: u64,
    window_from: Time,
    /// Since the last success or token request.
    unbroken: u64,
    unbroken_from: Time,
    last: Time,
    all: u64,
}

pub(super) struct TokenRejected {
    config: Config,
    clients: LruCache<u64, Row>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> TokenRejected {
    TokenRejected {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

impl Detector for TokenRejected {
    fn code(&self) -> Code {
        Code::TokenRejected
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let time = exchange.time;
        let version = exchange.request.imds_version;
        if version == Some(ImdsVersion::Token) || status(exchange) != Some(401) {
            if let Some(row) = self.clients.get_mut(&client.handle)
                && (version == Some(ImdsVersion::Token) || status(exchange).is_some_and(|status| status < 300))
            {
                row.unbroken = 0;
                if version != Some(ImdsVersion::Token) {
                    sightings.clear(&client.key, time);
                }
            }
            return;
        }
        if !matches!(version, Some(ImdsVersion::V1 | ImdsVersion::V2)) {
            return;
        }
        let token = exchange.request.token.clone();
        if self.clients.peek(&client.handle).is_none_or(|row| row.token != token) {
            let row = Row {
                token: token.clone(),
                in_window: 0,
                window_from: time,
                unbroken: 0,
                unbroken_from: time,
                last: time,
                all: 0,
            };
            let gone = self.clients.push(client.handle, row);
            self.evicted += u64::from(gone.is_some_and(|(handle, _)| handle != client.handle));
        }
        let Some(row) = self.clients.get_mut(&client.handle) else {
            return;
        };
        if time.since(row.last) > ROW_NS {
            row.unbroken = 0;
        }
        if time.since(row.window_from) > self.config.window_s.saturating_mul(SECOND) {
            row.in_window = 0;
            row.window_from = time;
        }
        if row.unbroken == 0 {
            row.unbroken_from = time;
        }
        row.in_window += 1;
        row.unbroken += 1;
        row.all += 1;
        row.last = row.last.max(time);
        if row.in_window.max(row.unbroken) < self.config.rejections.max(1) && !sightings.is_open(&client.key) {
            return;
        }
        let rejections = row.all;
        let sighting = Sighting {
            key: &client.key,
            severity: Severity::Warning,
            time,
            count: if sightings.is_open(&client.key) {
                1
            } else {
                row.in_window.max(row.unbroken)
            },
            news: false,
        };
        if sighting.count > 1 {
            sightings.since(if row.unbroken >= row.in_window {
                row.unbroken_from
            } else {
                row.window_from
            });
        }
        sightings.report(sighting, || {
            let subject = context.client_subject();
            let agent = client.user_agent.as_deref();
            let sdk = Sdk::of(agent);
            let (cause, summary, remedy) = if token.is_some() {
                (
                    "same-token",
                    format!("{} keeps using a token that IMDS rejects", subject.name),
                    remedy::text(format!(
                        "Ask for a new token after a 401. {} Until then a restart of the client helps.",
                        sdk.reuse()
                    )),
                )
            } else {
                (
                    "no-token",
                    format!("{} asks without a token where one is required", subject.name),
                    Remedy {
                        text: format!(
                            "{} Until then tokens can be made optional again, which weakens the instance for everybody on it.",
                            if sdk == Sdk::Curl { sdk.without_v1() } else {
                                "Update the client or its SDK to a version that uses IMDSv2 (a token from PUT /latest/api/token)."
                            }
                        ),
                        commands: vec![remedy::modify_options(context.host, "--http-tokens optional")],
                    },
                )
            };
            Details {
                summary,
                evidence: evidence! {
                    "cause": cause,
                    "rejections": rejections,
                    "token": token,
                    "path": context.path,
                    "user_agent": agent,
                    "client": sdk.name(),
                },
                remedy,
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
