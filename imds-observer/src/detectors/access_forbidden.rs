//! IMDS answers 403: to all clients because the endpoint is disabled, or to some clients because of a proxy.
//!
//! ## Detects
//!
//! A 403 answer. The verdict waits `hold_s` after a client's first 403, so that answers to other clients are taken into
//! account.
//!
//! - All clients: since then no client got another answer, and before it none did or those clients get 403 now too. The
//!   endpoint is disabled. One finding for the host.
//! - One client: other clients get answers. One finding for the client.
//! - Token requests only: the client's other requests succeed. Such a request was forwarded (IMDS refuses token requests
//!   that carry `X-Forwarded-For`), or it asks for a token under a dated version, which IMDS refuses too. A request on
//!   which the header was observed is reported by `proxied-request` instead.
//! - One path: the client's other requests succeed, and `cause` is `path`.
//!
//! The summary mentions that tokens may be required only if no request without a token succeeded recently.
//!
//! Other 4xx statuses without a detector of their own (400, 405, 406, 411, 417 and so on, to requests other than token
//! requests) make a finding of the client at the `other_statuses`-th within 10 min. Its `cause` is `status`.
//!
//! On other clouds a refusal has the causes of that cloud's service (`imds/dialect/`), such as a missing header, a missing
//! permission or a disabled version. One finding for the client at the `other_statuses`-th within 10 min, with that cloud's remedy.
//!
//! ## Why it matters
//!
//! With the endpoint disabled, no workload on the host gets credentials from the instance's role. With a proxy in
//! between, clients can't use IMDSv2 and fall back to IMDSv1, which fails once tokens are required.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:14:08.000300000Z",
//!   "host": "node-1",
//!   "code": "access-forbidden",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/amazon-ssm-agent.service","cmdline":["amazon-ssm-agent"],"comm":"amazon-ssm-agen","exe":"/usr/bin/amazon-ssm-agent","namespace_pid":null,"netns":4026531840,"pid":900,"start_time":"2023-11-14T21:13:20.000000000Z","tid":900,"uid":1000},"workload":"amazon-ssm-agent.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:14:08.000000000Z",
//!   "count": 12,
//!   "summary": "IMDS answers every request with 403: the endpoint is disabled for this instance",
//!   "evidence": {"cause":"endpoint-disabled","clients":2,"last_client":"amazon-ssm-agent (amazon-ssm-agent.service, pid 900)","last_path":"/latest/api/token"},
//!   "remedy": {"commands":["aws ec2 describe-instances --instance-ids i-0123456789abcdef0 --query 'Reservations[].Instances[].MetadataOptions'","aws ec2 modify-instance-metadata-options --instance-id i-0123456789abcdef0 --http-endpoint enabled"],"text":"Enable the endpoint if workloads need it. Otherwise set AWS_EC2_METADATA_DISABLED=true for SDKs, so that they stop trying. If an Auto Scaling group, Karpenter or another tool creates this host's instances (unknown here), change its launch template too: the next instance has the old value otherwise."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! With only one client on the host, its own 403 can't be distinguished from a disabled endpoint. If one client gets 403
//! and others send requests rarely, the verdict takes up to a minute.
//!
//! ## Options
//!
//! `[detectors.access-forbidden]`
//!
//! - `hold_s` (5): seconds from a client's first 403 to the verdict.
//! - `quiet_s` (900): seconds without a 403 until the finding is resolved. A successful answer resolves it sooner.
//! - `other_statuses` (3): answers with the same other status within 10 min.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (HTTP status 403)
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-IMDS-existing-instances.html> (turning it on and off)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::cloud_refusals::CloudRefusals;
use super::knowledge::{is_probe, status, wrong_token_method};
use super::remedy::{self, MetadataOption, Sdk};
use super::table::{bounded, entry};
use super::window::Bins;
use super::{Client, Context, Details, Detector, Limits, Observation, Scope, Sighting, Sightings};
use crate::imds::is_dated_token_path;
use crate::record::{Code, Dialect, Exchange, ImdsVersion, Of, Remedy, SECOND, Severity, Subject, Time};

/// Clients that are remembered, with the process that was seen last: up to 5 KiB each.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// An answer this recent, before the first 403, speaks against a disabled endpoint until a second client is refused.
const RECENT_NS: u64 = 600 * SECOND;
/// The longest wait for a second client.
const UNDECIDED_NS: u64 = 60 * SECOND;
const HOST: &str = "host";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub hold_s: u64,
    pub quiet_s: u64,
    pub other_statuses: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hold_s: 5,
            quiet_s: 900,
            other_statuses: 3,
        }
    }
}

/// One client that was refused.
struct Refused {
    first: Time,
    last: Time,
    /// Not yet reported, and when the first of them was.
    pending: u64,
    pending_from: Time,
    all: u64,
    tokens: u64,
    without_token: u64,
    /// It had another answer after its first 403.
    answered_since: bool,
    subject: Subject,
    /// Path of the newest refused request, as it was sent.
    path: String,
    server: Option<String>,
}

pub(super) struct AccessForbidden {
    config: Config,
    clouds: CloudRefusals,
    others: LruCache<u64, OtherStatus>,
    clients: LruCache<u64, Refused>,
    /// Newest answer other than 403, and the one before the current run of 403.
    answered: Option<Time>,
    pending: usize,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> AccessForbidden {
    AccessForbidden {
        config: config.clone(),
        clouds: CloudRefusals::new(config.other_statuses, limits),
        others: bounded(limits.clients(MAX_CLIENTS)),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        answered: None,
        pending: 0,
        evicted: 0,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Host,
    Client,
    Undecided,
}

impl Detector for AccessForbidden {
    fn code(&self) -> Code {
        Code::AccessForbidden
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s.saturating_mul(SECOND)
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let (Some(status), time) = (status(exchange), exchange.time) else {
            return;
        };
        if context.protocol.dialect != Dialect::Aws {
            self.clouds.observe(status, exchange, context, client, sightings);
            return;
        }
        if is_other_refusal(status, exchange) {
            self.other_status(status, exchange, context, client, sightings);
        }
        let refused = self.clients.get_mut(&client.handle);
        if status != 403 {
            self.answered = self.answered.max(Some(time));
            if sightings.any_open() {
                sightings.clear(HOST, time);
            }
            if let Some(refused) = refused
                && time >= refused.first
            {
                refused.answered_since = true;
                let token = exchange.request.imds_version == Some(ImdsVersion::Token);
                if token || refused.tokens == 0 {
                    sightings.clear(&client.key, time);
                }
            }
            return;
        }
        if exchange.request.forwarded {
            return;
        }
        let subject = context.client_subject();
        let path = exchange.request.path.clone().unwrap_or_default();
        let server = exchange.response.as_ref().and_then(|response| response.server.clone());
        if let Some(refused) = refused {
            if time.since(refused.last) > self.config.quiet_s.saturating_mul(SECOND) {
                refused.first = time;
                refused.answered_since = false;
            }
            refused.last = refused.last.max(time);
            refused.subject = subject;
            refused.path = path;
            refused.server = server;
        } else {
            let refused = Refused {
                first: time,
                last: time,
                pending: 0,
                pending_from: time,
                all: 0,
                tokens: 0,
                without_token: 0,
                answered_since: false,
                subject,
                path,
                server,
            };
            if let Some((_, gone)) = self.clients.push(client.handle, refused) {
                self.evicted += 1;
                self.pending -= usize::from(gone.pending > 0);
            }
        }
        let Some(refused) = self.clients.get_mut(&client.handle) else {
            return;
        };
        self.pending += usize::from(refused.pending == 0);
        if refused.pending == 0 {
            refused.pending_from = time;
        }
        refused.pending_from = refused.pending_from.min(time);
        refused.pending += 1;
        refused.all += 1;
        match exchange.request.imds_version {
            Some(ImdsVersion::Token) => refused.tokens += 1,
            Some(ImdsVersion::V1) => refused.without_token += 1,
            _ => {}
        }
    }

    fn tick(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        if self.pending == 0 {
            return;
        }
        // It has turned out that this host is in another cloud.
        if context.protocol.dialect != Dialect::Aws && context.protocol.dialect != Dialect::Unknown {
            self.clients.clear();
            self.pending = 0;
            return;
        }
        let hold_ns = self.config.hold_s.saturating_mul(SECOND);
        let recently = |refused: &Refused| context.now.since(refused.last) <= RECENT_NS;
        let first = self
            .clients
            .iter()
            .map(|(_, refused)| refused)
            .filter(|refused| recently(refused));
        let clients = first.clone().count();
        let since = first.map(|refused| refused.first).min().unwrap_or(context.now);
        let (answered, host_open) = (self.answered, sightings.is_open(HOST));
        for (handle, refused) in &mut self.clients {
            if refused.pending == 0 || !(last || context.now.since(refused.first) >= hold_ns) {
                continue;
            }
            let whose = if refused.answered_since || answered.is_some_and(|answered| answered > refused.first) {
                Whose::Client
            } else if host_open || clients > 1 || answered.is_none_or(|answered| since.since(answered) > RECENT_NS) {
                Whose::Host
            } else if last || context.now.since(refused.first) >= UNDECIDED_NS {
                Whose::Client
            } else {
                Whose::Undecided
            };
            let client = context.knowledge.client(*handle);
            let key = match (whose, client) {
                (Whose::Undecided, _) => continue,
                (Whose::Host, _) => HOST,
                (Whose::Client, Some(client)) => &*client.key,
                (Whose::Client, None) => &*refused.subject.key,
            };
            let sighting = Sighting {
                key,
                severity: if whose == Whose::Host {
                    Severity::High
                } else {
                    Severity::Warning
                },
                time: refused.last,
                count: refused.pending,
                news: false,
            };
            refused.pending = 0;
            self.pending -= 1;
            let refused = &*refused;
            sightings.since(refused.pending_from).report(sighting, || match whose {
                Whose::Host => of_host(refused, clients, context),
                _ => refused.of_client(client, context),
            });
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted + self.clouds.evicted()
    }
}

fn of_host(refused: &Refused, clients: usize, context: &Context<'_>) -> Details {
    let (lasting, change) = remedy::change_option(context.host, MetadataOption::EndpointEnabled);
    Details {
        subject: Subject {
            key: HOST.to_owned(),
            name: "host".to_owned(),
            ..refused.subject.clone()
        },
        summary: "IMDS answers every request with 403: the endpoint is disabled for this instance".to_owned(),
        evidence: evidence! {
            "cause": "endpoint-disabled",
            "clients": clients,
            "last_client": refused.subject.name,
            "last_path": refused.path,
        },
        remedy: Remedy {
            text: if remedy::options_are_fixed(context.host) {
                lasting.trim_start().to_owned()
            } else {
                format!(
                    "Enable the endpoint if workloads need it. Otherwise set AWS_EC2_METADATA_DISABLED=true for SDKs, so that they stop \
                 trying.{lasting}"
                )
            },
            commands: [remedy::describe_options(context.host)]
                .into_iter()
                .chain(change)
                .collect(),
        },
    }
}

impl Refused {
    /// Whether a request was answered at about the time of these.
    fn recently(&self, read: Option<Time>) -> bool {
        read.is_some_and(|read| self.first.since(read) <= RECENT_NS)
    }

    fn of_client(&self, client: Option<&Client>, context: &Context<'_>) -> Details {
        let name = &self.subject.name;
        let agent = client.and_then(|client| client.user_agent.as_deref());
        let path = &self.path;
        let own_v1 = self.recently(client.and_then(|client| client.v1_read));
        let own = self.recently(client.and_then(|client| client.read));
        let v1_works = own_v1 || self.recently(context.knowledge.v1_read);
        let (cause, summary, remedy) = if self.tokens > 0 && is_dated_token_path(path) {
            (
                "token-path",
                format!("token requests of {name} for {path} fail with 403: IMDS issues tokens only under /latest/"),
                remedy::text(
                    "Request the token with PUT /latest/api/token. It is valid for dated versions of other paths too.",
                ),
            )
        } else if self.tokens > 0 && (self.answered_since || self.tokens == self.all) {
            (
                "proxy",
                format!("token requests of {name} fail with 403: a proxy adds X-Forwarded-For"),
                Remedy {
                    text: "A proxy or metadata agent (such as kiam) forwards the requests, and IMDS refuses tokens to forwarded requests. Exclude IMDS from the proxy."
                        .to_owned(),
                    commands: vec!["export no_proxy='169.254.169.254,[fd00:ec2::254]'".to_owned()],
                },
            )
        } else if own && (own_v1 || self.without_token < self.all) {
            (
                "path",
                format!("requests of {name} for {path} fail with 403, while its other requests succeed"),
                remedy::text(format!(
                    "The responding server refuses this path to this client. Check the rules of the proxy or metadata agent in front of IMDS.{}",
                    if path.ends_with('/') {
                        " The path ends with a slash, which IMDS accepts and some proxies (kube2iam) reject: request it without the slash."
                    } else {
                        ""
                    }
                )),
            )
        } else if self.without_token == self.all && !v1_works {
            (
                "no-token",
                format!("requests of {name} without a token fail with 403, while other requests succeed"),
                remedy::text(format!(
                    "Tokens may be required on this instance, and this client sends none. {}",
                    Sdk::of(agent).without_v1()
                )),
            )
        } else {
            (
                "client",
                format!("requests of {name} fail with 403, while other clients succeed"),
                remedy::text(
                    "Check whether the client uses a proxy or a metadata agent, and whether the rules of that proxy or agent allow the request.",
                ),
            )
        };
        Details {
            subject: self.subject.clone(),
            summary,
            evidence: evidence! {
                "cause": cause,
                "refused": self.all,
                "token_requests_refused": self.tokens,
                "other_requests_answered": self.answered_since,
                "last_path": path,
                "answered_without_token": v1_works,
                "server": self.server,
                "user_agent": agent,
            },
            remedy,
        }
    }
}

/// A client whose requests are refused with another status than 403.
struct OtherStatus {
    status: u16,
    recent: Bins<10, { 60 * SECOND }>,
    all: u64,
    first: Time,
}

/// Statuses 4xx that are no other detector's.
fn is_other_refusal(status: u16, exchange: &Exchange) -> bool {
    let metadata = matches!(exchange.request.imds_version, Some(ImdsVersion::V1 | ImdsVersion::V2));
    matches!(status, 400 | 402 | 405..=409 | 411..=428 | 430..=499)
        && metadata
        && !is_probe(exchange)
        && wrong_token_method(exchange).is_none()
}

impl AccessForbidden {
    fn other_status(
        &mut self,
        status: u16,
        exchange: &Of<'_, Exchange>,
        context: &Context<'_>,
        client: &Client,
        sightings: &mut Sightings<'_>,
    ) {
        let row = entry(&mut self.others, client.handle, &mut self.evicted, || OtherStatus {
            status,
            recent: Bins::new(),
            all: 0,
            first: exchange.time,
        });
        if row.status != status || row.recent.total(exchange.time) == 0 {
            *row = OtherStatus {
                status,
                recent: Bins::new(),
                all: 0,
                first: exchange.time,
            };
        }
        row.recent.add(exchange.time, 1);
        row.all += 1;
        let (all, first) = (row.all, row.first);
        if row.recent.total(exchange.time) < self.config.other_statuses.max(1) {
            return;
        }
        let sighting = Sighting {
            key: &client.key,
            severity: Severity::Warning,
            time: exchange.time,
            count: sightings.counted(&client.key, all, first),
            news: false,
        };
        sightings.report(sighting, || {
            let subject = context.client_subject();
            let (method, path) = (&exchange.request.method, &exchange.request.path);
            let server = exchange.response.as_ref().and_then(|response| response.server.as_deref());
            Details {
                summary: format!(
                    "{} gets status {status} for {} {}",
                    subject.name,
                    method.as_deref().unwrap_or_default(),
                    path.as_deref().unwrap_or_default()
                ),
                evidence: evidence! {
                    "cause": "status",
                    "status": status,
                    "refused": all,
                    "method": method,
                    "last_path": path,
                    "server": server,
                    "user_agent": client.user_agent,
                },
                remedy: remedy::text(match status {
                    405 => "Use GET: IMDS supports no other method on this path.",
                    411 => "Send no body and no Transfer-Encoding header. If a proxy requires a length, send Content-Length: 0.",
                    417 => "Remove the Expect header.",
                    413 | 414 | 431 => "Shorten the request: a line or a header is too long for the responding server.",
                    400 => "Compare the request with one from curl: the responding server rejects a header or the path as malformed.",
                    _ => {
                        "IMDS itself never returns this status: find out what answers instead (curl -si shows the Server header), and let the client reach IMDS directly."
                    }
                }),
                subject,
            }
        });
    }
}
