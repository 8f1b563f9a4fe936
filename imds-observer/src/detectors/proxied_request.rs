//! Requests to IMDS pass through a proxy, or something other than IMDS answers them.
//!
//! ## Detects
//!
//! A request with an absolute target (`GET http://169.254.169.254/...`), or with `Via` or `X-Forwarded-For`. A response
//! with `Via` or `X-Cache`, or (visible in captures) without a `Server` header or with one other than IMDS's own `EC2ws`.
//! A response TTL that IMDS doesn't send (it sends 255, and the hop limit for token responses) supports such evidence.
//! Severity: `high` if IMDS rejected such a request with 403, `info` if only the `Server` header differs or is missing,
//! else `warning`. One finding per client.
//!
//! A proxy that the client itself uses (absolute target, `Via`) is bypassed with `no_proxy`. If NAT or a sidecar
//! redirects the connection, no setting of the client helps: find the redirection.
//!
//! ## Why it matters
//!
//! IMDS refuses tokens to forwarded requests, so the client falls back to IMDSv1 or fails. A proxy can also read the
//! credentials that pass through it, cache them for other clients, or return the credentials of its own role.
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
//!   "evidence": {"answers_of_other_server":0,"answers_via_proxy":0,"answers_with_foreign_ttl":0,"answers_without_server":0,"forwarded_requests":2,"path":"/latest/meta-data/instance-id","redirected_to":null,"refused":0,"response_ttl":null,"server":null,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["export no_proxy='169.254.169.254,[fd00:ec2::254]'"],"text":"Exclude IMDS from the proxy in the environment of the client. Also configure the proxy never to forward to link-local addresses."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! IMDS mocks (moto, LocalStack, amazon-ec2-metadata-mock) have their own `Server` header: `info`.
//!
//! ## Options
//!
//! `[detectors.proxied-request]`
//!
//! - `server` ("EC2ws"): text that `Server` must contain; empty accepts any.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (X-Forwarded-For is refused)
//! - <https://docs.aws.amazon.com/sdkref/latest/guide/feature-imds-credentials.html>

use std::fmt;
use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{answered, status};
use super::table::bounded;
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Sighting, Sightings};
use crate::record::{Code, Dialect, Exchange, ImdsVersion, Remedy, Severity};

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
            server: IMDS_SERVER.to_owned(),
        }
    }
}

#[derive(Default)]
struct Signs {
    no_server: u64,
    foreign_ttl: u64,
    response_ttl: Option<u8>,
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

/// Routers between IMDS and where a response is captured, at most: more would be another sender.
const MAX_HOPS: u8 = 15;
/// IMDS sends all responses but those to token requests with this TTL.
const IMDS_TTL: u8 = 255;

/// A TTL that IMDS doesn't send: its responses come with 255, but for those with a token, which have the hop limit.
pub(super) fn foreign_ttl(exchange: &Exchange) -> bool {
    exchange.request.dialect == Dialect::Aws
        && exchange.request.imds_version != Some(ImdsVersion::Token)
        && exchange.response.as_ref().is_some_and(|response| {
            response.status == Some(200) && response.ttl.is_some_and(|ttl| ttl < IMDS_TTL - MAX_HOPS)
        })
}

/// Characters of a `Server` header in a sentence.
const MAX_SHOWN: usize = 64;
/// The `Server` header of IMDS.
pub(super) const IMDS_SERVER: &str = "EC2ws";

/// Whether the response shows that a program other than IMDS made it, and which.
pub(super) fn other_server<'a>(exchange: &'a Exchange, expected: &str) -> Option<OtherServer<'a>> {
    let response = exchange
        .response
        .as_ref()
        .filter(|_| exchange.request.dialect == Dialect::Aws)?;
    match response.server.as_deref() {
        Some(server) => (!server.contains(expected)).then_some(OtherServer::Named(server)),
        // The whole head was read, and IMDS names itself in each.
        None => {
            let unnamed =
                !expected.is_empty() && answered(exchange) && response.via_proxy.is_some() && response.status.is_some();
            unnamed.then_some(OtherServer::Unnamed)
        }
    }
}

/// A program that answers in the place of IMDS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OtherServer<'a> {
    /// With this `Server` header.
    Named(&'a str),
    /// Without one.
    Unnamed,
    /// At this address, to which the connection is redirected.
    At(&'a str),
}

impl fmt::Display for OtherServer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(server) => {
                let shown: String = server.chars().take(MAX_SHOWN).collect();
                write!(f, "a server with the Server header {shown:?}")
            }
            Self::Unnamed => f.write_str("a server that doesn't send IMDS's Server header"),
            Self::At(target) => write!(f, "a program at {target}"),
        }
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
        let other = other_server(exchange, &self.config.server);
        let other_server = matches!(other, Some(OtherServer::Named(_)));
        let no_server = other == Some(OtherServer::Unnamed);
        let forwarded = exchange.request.forwarded;
        if !forwarded && !via && !other_server && !no_server {
            // A TTL alone may be that of a stand-in behind routers: beside another sign it counts.
            return;
        }
        let foreign_ttl = foreign_ttl(exchange);
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
        signs.no_server += u64::from(no_server);
        signs.foreign_ttl += u64::from(foreign_ttl);
        if foreign_ttl {
            signs.response_ttl = response.and_then(|response| response.ttl);
        }
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
                            ", and IMDS rejects them"
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
                    "answers_without_server": signs.no_server,
                    "answers_with_foreign_ttl": signs.foreign_ttl,
                    "response_ttl": signs.response_ttl,
                    "redirected_to": exchange.connection.redirected_to,
                    "server": server,
                    "path": context.path,
                    "user_agent": client.user_agent,
                },
                remedy: signs.remedy(exchange.connection.redirected_to.is_some()),
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Signs {
    /// A proxy that was configured shows in the request; interception shows only in the answers.
    fn remedy(&self, redirected: bool) -> Remedy {
        let intercepted = self.other_server + self.no_server + self.foreign_ttl > 0;
        if redirected || intercepted {
            return Remedy {
                text: "Find the program that answers instead of IMDS: a metadata proxy behind a NAT rule (kube2iam, kiam, metadataproxy), a service mesh sidecar, an IMDS mock, or an intercepting network proxy. If it is intended, diagnose that program rather than IMDS. Otherwise remove the redirection; proxy settings of the client have no effect on it."
                    .to_owned(),
                commands: vec![
                    "iptables-save -t nat | grep -nE '169\\.254|REDIRECT|DNAT'".to_owned(),
                    "imds-observer doctor".to_owned(),
                ],
            };
        }
        Remedy {
            text: "Exclude IMDS from the proxy in the environment of the client. Also configure the proxy never to forward to link-local addresses."
                .to_owned(),
            commands: vec!["export no_proxy='169.254.169.254,[fd00:ec2::254]'".to_owned()],
        }
    }
}
