//! Something stands between a client and IMDS: requests are forwarded, or somebody else answers.
//!
//! ## Detects
//!
//! A request with an absolute target (`GET http://169.254.169.254/...`), or with `Via` or `X-Forwarded-For`; an answer with
//! `Via` or `X-Cache`, or (in captures, which show it) with a `Server` other than IMDS's own `EC2ws`. `high` when IMDS
//! refused such a request with 403, `info` when only the `Server` differs. One finding per client.
//!
//! ## Why it matters
//!
//! IMDS refuses tokens to forwarded requests, so the client falls back to IMDSv1 or fails. Worse: a proxy reads the
//! credentials that pass through it, may cache them for others, and its own role may answer instead of the client's.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:21.000300000Z",
//!   "host": "node-1",
//!   "code": "proxied-request",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:13:21.000000000Z",
//!   "count": 2,
//!   "summary": "requests of python3.11 app.py (app.service, pid 4242) reach IMDS through a proxy",
//!   "evidence": {"answers_of_other_server":0,"answers_via_proxy":0,"forwarded_requests":2,"path":"/latest/meta-data/instance-id","refused":0,"server":null,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["export no_proxy='169.254.169.254,[fd00:ec2::254]'"],"text":"Keep IMDS out of the proxy's way, in the environment of the client and in the proxy's own configuration: it must never forward to link-local addresses."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! Stand-ins for tests (moto, LocalStack, amazon-ec2-metadata-mock) name themselves in `Server`: `info`.
//!
//! ## Options
//!
//! `[detectors.proxied-request]`
//!
//! - `server` ("EC2ws"): what `Server` must contain; empty: anything.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (X-Forwarded-For is refused)
//! - <https://docs.aws.amazon.com/sdkref/latest/guide/feature-imds-credentials.html>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::table::bounded;
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Sighting, Sightings};
use crate::record::{Code, Dialect, Remedy, Severity};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub server: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            server: "EC2ws".to_owned(),
        }
    }
}

#[derive(Default)]
struct Signs {
    forwarded: u64,
    via: u64,
    other_server: u64,
    refused: u64,
}

pub(super) struct ProxiedRequest {
    config: Config,
    clients: LruCache<u64, Signs>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> ProxiedRequest {
    ProxiedRequest {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

impl Detector for ProxiedRequest {
    fn code(&self) -> Code {
        Code::ProxiedRequest
    }

    fn wants(&self) -> Exchanges {
        Exchanges::SIGNED
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let response = exchange.response.as_ref();
        let via = response.is_some_and(|response| response.via_proxy == Some(true));
        let server = response.and_then(|response| response.server.as_deref());
        let other_server = exchange.request.dialect == Dialect::Aws
            && server.is_some_and(|server| !server.contains(self.config.server.as_str()));
        let forwarded = exchange.request.forwarded;
        if !forwarded && !via && !other_server {
            return;
        }
        if !self.clients.contains(&client.handle) {
            self.evicted += u64::from(self.clients.push(client.handle, Signs::default()).is_some());
        }
        let Some(signs) = self.clients.get_mut(&client.handle) else {
            return;
        };
        let refused = forwarded && status(exchange) == Some(403);
        signs.forwarded += u64::from(forwarded);
        signs.via += u64::from(via);
        signs.other_server += u64::from(other_server);
        signs.refused += u64::from(refused);
        let sighting = Sighting {
            key: &client.key,
            severity: if refused {
                Severity::High
            } else if forwarded || via {
                Severity::Warning
            } else {
                Severity::Info
            },
            time: exchange.time,
            count: 1,
            news: false,
        };
        let signs = &*signs;
        sightings.report(sighting, || {
            let subject = context.client_subject();
            Details {
                summary: if signs.forwarded > 0 {
                    format!(
                        "requests of {} reach IMDS through a proxy{}",
                        subject.name,
                        if signs.refused > 0 {
                            ", and IMDS refuses them"
                        } else {
                            ""
                        }
                    )
                } else {
                    format!("something other than IMDS answers {}", subject.name)
                },
                evidence: evidence! {
                    "forwarded_requests": signs.forwarded,
                    "refused": signs.refused,
                    "answers_via_proxy": signs.via,
                    "answers_of_other_server": signs.other_server,
                    "server": server,
                    "path": context.path,
                    "user_agent": client.user_agent,
                },
                remedy: Remedy {
                    text: "Keep IMDS out of the proxy's way, in the environment of the client and in the proxy's own \
                           configuration: it must never forward to link-local addresses."
                        .to_owned(),
                    commands: vec!["export no_proxy='169.254.169.254,[fd00:ec2::254]'".to_owned()],
                },
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
