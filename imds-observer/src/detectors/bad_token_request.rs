//! A token request has a missing or invalid lifetime.
//!
//! ## Detects
//!
//! `PUT /latest/api/token` that IMDS answers with 400. The header `X-aws-ec2-metadata-token-ttl-seconds` must be a number
//! from 1 to 21600. One finding per client.
//!
//! ## Why it matters
//!
//! The client gets no token. It then fails or falls back to IMDSv1.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:21.000300000Z",
//!   "host": "node-1",
//!   "code": "bad-token-request",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:21.000000000Z",
//!   "count": 2,
//!   "summary": "python3.11 app.py (app.service, pid 4242) requests a token with a lifetime of 86400 s, outside the range 1 to 21600",
//!   "evidence": {"requests":2,"token_ttl_s":86400,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["curl -sX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600' -o /dev/null -w '%{http_code}\\n'"],"text":"Set the header X-aws-ec2-metadata-token-ttl-seconds to a number from 1 to 21600."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! None known.
//!
//! ## Options
//!
//! `[detectors.bad-token-request]`
//!
//! - `requests` (1): answers 400 that make a finding.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (HTTP status 400)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::table::bounded;
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Sighting, Sightings};
use crate::record::{Code, ImdsVersion, Remedy, Severity, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(2048).unwrap();
/// Longest lifetime of a token.
const MAX_TTL_S: u32 = 21_600;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub requests: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { requests: 1 }
    }
}

pub(super) struct BadTokenRequest {
    config: Config,
    /// Bad requests, and when the first one was.
    clients: LruCache<u64, (u64, Time)>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> BadTokenRequest {
    BadTokenRequest {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

impl Detector for BadTokenRequest {
    fn code(&self) -> Code {
        Code::BadTokenRequest
    }

    fn wants(&self) -> Exchanges {
        Exchanges::TOKEN
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        if exchange.request.imds_version != Some(ImdsVersion::Token) {
            return;
        }
        match status(exchange) {
            Some(400) => {}
            Some(200) => return sightings.clear(&client.key, exchange.time),
            _ => return,
        }
        if !self.clients.contains(&client.handle) {
            self.evicted += u64::from(self.clients.push(client.handle, (0, exchange.time)).is_some());
        }
        let Some((requests, first)) = self.clients.get_mut(&client.handle) else {
            return;
        };
        *requests += 1;
        let (requests, first) = (*requests, *first);
        if requests < self.config.requests {
            return;
        }
        let sighting = Sighting {
            key: &client.key,
            severity: Severity::Warning,
            time: exchange.time,
            count: if sightings.is_open(&client.key) { 1 } else { requests },
            news: false,
        };
        if sighting.count > 1 {
            sightings.since(first);
        }
        sightings.report(sighting, || {
            let subject = context.client_subject();
            let ttl_s = exchange.request.token_ttl_s;
            let why = match ttl_s {
                None => "without a lifetime".to_owned(),
                Some(ttl_s) if ttl_s == 0 || ttl_s > MAX_TTL_S => {
                    format!("with a lifetime of {ttl_s} s, outside the range 1 to {MAX_TTL_S}")
                }
                Some(_) => "in a way that IMDS rejects".to_owned(),
            };
            Details {
                summary: format!("{} requests a token {why}", subject.name),
                evidence: evidence! {
                    "requests": requests,
                    "token_ttl_s": ttl_s,
                    "user_agent": client.user_agent,
                },
                remedy: Remedy {
                    text: "Set the header X-aws-ec2-metadata-token-ttl-seconds to a number from 1 to 21600.".to_owned(),
                    commands: vec![
                        "curl -sX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: \
                         21600' -o /dev/null -w '%{http_code}\\n'"
                            .to_owned(),
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
