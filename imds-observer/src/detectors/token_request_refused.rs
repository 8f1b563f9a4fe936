//! A token request fails with an unexpected status.
//!
//! ## Detects
//!
//! Per client: `PUT /latest/api/token` answered with any status other than 200, and no token within `hold_s`. 400, 403
//! and 429 have their own detectors (`bad-token-request`, `access-forbidden`, `server-errors`). A 5xx counts if the
//! client continues without a token, or from the `errors`-th in a row; while other requests also get 5xx or 429,
//! `server-errors` reports it. `cause` is `refused`, or `wrong-method` for at least `wrong_method` requests on the token
//! path with a method other than `PUT`.
//!
//! On a host in another cloud it is information: a client of AWS asks for what that cloud doesn't have. Where that cloud serves
//! EC2's tree without tokens (OpenStack and its relatives), nothing is reported.
//!
//! ## Why it matters
//!
//! Without a token the client falls back to IMDSv1, or has no credentials if tokens are required. A server that answers
//! 404 or 405 usually isn't IMDS: it is a proxy, a mock or another cloud without IMDSv2. Updating the client doesn't
//! help.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:15:20.000300000Z",
//!   "host": "node-1",
//!   "code": "token-request-refused",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:15:20.000000000Z",
//!   "count": 5,
//!   "summary": "token requests of python3.11 app.py (app.service, pid 4242) fail with 405",
//!   "evidence": {"answered_by_imds":null,"cause":"refused","goes_on_without_token":false,"method":"PUT","path":"/latest/api/token","requests":5,"server":null,"status":405,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["curl -sX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' -o /dev/null -D -"],"text":"The responding server doesn't support IMDSv2: it is a proxy, an IMDS mock or another cloud. Update it to a version that supports PUT /latest/api/token, or let the client reach IMDS directly. Until then don't require tokens. The command shows which server answers: IMDS sends the Server header EC2ws."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A client that runs on another cloud on purpose: its metadata service has no token path.
//!
//! ## Options
//!
//! `[detectors.token-request-refused]`
//!
//! - `hold_s` (3): seconds within which the client may still get a token.
//! - `errors` (3): answers 5xx in a row that make a finding by themselves.
//! - `wrong_method` (3): requests with a method other than `PUT` that make a finding. Some programs send one to test
//!   whether IMDS exists.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>
//! - <https://github.com/lyft/metadataproxy/issues/98> (405), <https://github.com/s3fs-fuse/s3fs-fuse/issues/1765> (417)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{V1Cause, status, wrong_token_method};
use super::table::bounded;
use super::{Client, Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings, Who};
use crate::record::{Code, Dialect, Exchange, ImdsVersion, Of, Remedy, SECOND, Severity, Time};

/// Clients that are remembered, with the process that was seen last.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Refusals further apart than this are no row.
const ROW_NS: u64 = 3600 * SECOND;
/// Errors of other requests this recent make a 5xx the service's own.
const SERVICE_NS: u64 = 60 * SECOND;
/// How IMDS names itself in `Server`.
const IMDS: &str = "EC2ws";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub hold_s: u64,
    pub errors: u64,
    pub wrong_method: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hold_s: 3,
            errors: 3,
            wrong_method: 3,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Refused,
    WrongMethod,
}

/// Refusals of one client since its last token.
struct Row {
    cause: Cause,
    status: u16,
    method: Box<str>,
    path: Box<str>,
    server: Option<Box<str>>,
    /// The service that answers, if it is another cloud's.
    cloud: Option<&'static str>,
    who: Who,
    all: u64,
    /// Not reported yet, the oldest since `held`.
    pending: u64,
    held: Time,
    pending_from: Time,
    last: Time,
}

pub(super) struct TokenRequestRefused {
    config: Config,
    clients: LruCache<u64, Row>,
    /// Newest 429 or 5xx to another request than one for a token.
    service_error: Option<Time>,
    pending: usize,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> TokenRequestRefused {
    TokenRequestRefused {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        service_error: None,
        pending: 0,
        evicted: 0,
    }
}

impl Detector for TokenRequestRefused {
    fn code(&self) -> Code {
        Code::TokenRequestRefused
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn quiet_ns(&self) -> u64 {
        2 * ROW_NS
    }

    fn wants(&self) -> Exchanges {
        Exchanges::TOKEN | Exchanges::FAILED
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let Some(answered) = status(exchange) else { return };
        let other_cloud = context.protocol.dialect != Dialect::Aws;
        // Where EC2's tree is served, a client of AWS goes on without a token and gets what it needs.
        if other_cloud && (exchange.request.dialect != Dialect::Aws || context.protocol.ec2_tree) {
            return;
        }
        let (cause, status) = if exchange.request.imds_version == Some(ImdsVersion::Token) {
            match answered {
                200 => return self.granted(client, exchange.time, sightings),
                400 | 403 | 429 => return,
                status => (Cause::Refused, status),
            }
        } else if let Some(status) = wrong_token_method(exchange) {
            (Cause::WrongMethod, status)
        } else {
            if matches!(answered, 429 | 500..=599) {
                self.service_error = self.service_error.max(Some(exchange.time));
            }
            return;
        };
        self.refused(cause, status, exchange, context, client);
    }

    fn tick(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        if self.pending == 0 {
            return;
        }
        let hold_ns = self.config.hold_s.saturating_mul(SECOND);
        for (handle, row) in &mut self.clients {
            let Some(client) = context.knowledge.client(*handle) else {
                continue;
            };
            if row.pending == 0 || !(last || context.now.since(row.held) >= hold_ns) {
                continue;
            }
            let open = sightings.is_open(&client.key);
            if !open && !row.is_a_fault(&self.config, client, self.service_error) {
                continue;
            }
            let sighting = Sighting {
                key: &client.key,
                severity: if row.cloud.is_some() {
                    Severity::Info
                } else {
                    Severity::Warning
                },
                time: row.last,
                count: row.pending,
                news: false,
            };
            row.pending = 0;
            self.pending -= 1;
            let row = &*row;
            sightings
                .since(row.pending_from)
                .report(sighting, || row.details(client));
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl TokenRequestRefused {
    fn granted(&mut self, client: &Client, time: Time, sightings: &mut Sightings<'_>) {
        if let Some(row) = self.clients.get(&client.handle)
            && time >= row.last
        {
            self.pending -= usize::from(row.pending > 0);
            self.clients.pop(&client.handle);
            sightings.clear(&client.key, time);
        }
    }

    fn refused(
        &mut self,
        cause: Cause,
        status: u16,
        exchange: &Of<'_, Exchange>,
        context: &Context<'_>,
        client: &Client,
    ) {
        let time = exchange.time;
        let text = |text: Option<&str>| text.unwrap_or_default().into();
        let mut row = Row {
            cause,
            status,
            method: text(exchange.request.method.as_deref()),
            path: text(exchange.request.path.as_deref()),
            server: exchange
                .response
                .as_ref()
                .and_then(|response| response.server.as_deref())
                .map(Into::into),
            cloud: (context.protocol.dialect != Dialect::Aws).then_some(context.protocol.service),
            who: context.who(),
            all: 1,
            pending: 1,
            held: context.now,
            pending_from: time,
            last: time,
        };
        if let Some(before) = self.clients.pop(&client.handle) {
            self.pending -= usize::from(before.pending > 0);
            if before.cause == cause && time.since(before.last) <= ROW_NS {
                row.all += before.all;
                row.last = row.last.max(before.last);
                if before.pending > 0 {
                    row.pending += before.pending;
                    row.held = before.held;
                    row.pending_from = before.pending_from.min(time);
                }
            }
        }
        self.pending += 1;
        if let Some((_, gone)) = self.clients.push(client.handle, row) {
            self.evicted += 1;
            self.pending -= usize::from(gone.pending > 0);
        }
    }
}

impl Row {
    fn is_a_fault(&self, config: &Config, client: &Client, service_error: Option<Time>) -> bool {
        match (self.cause, self.status) {
            (Cause::WrongMethod, _) => self.all >= config.wrong_method.max(1),
            (Cause::Refused, 500..=599) => {
                let service =
                    service_error.is_some_and(|error| error.since(self.last).max(self.last.since(error)) <= SERVICE_NS);
                let went_on = client.v1_cause == Some(V1Cause::Refused(self.status));
                !service && (went_on || self.all >= config.errors.max(1))
            }
            (Cause::Refused, _) => true,
        }
    }

    fn details(&self, client: &Client) -> Details {
        let subject = self.who.subject();
        let name = &subject.name;
        let (status, method) = (self.status, &self.method);
        let goes_on = matches!(client.v1_cause, Some(V1Cause::Refused(_)));
        let by_imds = self.server.as_deref().map(|server| server.contains(IMDS));
        let (cause, summary) = match self.cause {
            Cause::WrongMethod => (
                "wrong-method",
                format!("{name} requests a token with {method} and gets {status}: a token request must use PUT"),
            ),
            Cause::Refused if goes_on => (
                "refused",
                format!("token requests of {name} fail with {status}, and it continues without a token"),
            ),
            Cause::Refused => ("refused", format!("token requests of {name} fail with {status}")),
        };
        Details {
            summary,
            evidence: evidence! {
                "cause": cause,
                "status": status,
                "requests": self.all,
                "method": method,
                "path": self.path,
                "server": self.server,
                "answered_by_imds": by_imds,
                "goes_on_without_token": goes_on,
                "user_agent": client.user_agent,
            },
            remedy: Remedy {
                text: self.advice(by_imds),
                commands: vec![
                    "curl -sX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' -o \
                     /dev/null -D -"
                        .to_owned(),
                ],
            },
            subject,
        }
    }

    fn advice(&self, by_imds: Option<bool>) -> String {
        if let Some(service) = self.cloud {
            return format!(
                "This host is in another cloud: {service} has neither tokens nor roles of AWS. Give the client credentials of its own, or set AWS_EC2_METADATA_DISABLED=true for its SDK so that it doesn't ask."
            );
        }
        let advice = match (self.cause, self.status) {
            (Cause::WrongMethod, _) => "Request the token with PUT /latest/api/token.",
            (_, 411) => "Send Content-Length: 0 with the token request, and no Transfer-Encoding.",
            (_, 417) => {
                "Send the token request without a body: Content-Length: 0, no Expect, no Transfer-Encoding: chunked."
            }
            (_, 413 | 414 | 431) => {
                "Shorten the token request: a line or a header is too long for the responding server."
            }
            (_, 401 | 407) => {
                "IMDS requires no credentials on this path: a gateway with its own authentication answers. Let the client reach IMDS directly."
            }
            (_, 300..=399) => {
                "IMDS never redirects a token request: something else answers. Let the client reach IMDS directly."
            }
            (_, 404 | 405 | 410 | 501) => {
                "The responding server doesn't support IMDSv2: it is a proxy, an IMDS mock or another cloud. Update it to a version that supports PUT /latest/api/token, or let the client reach IMDS directly. Until then don't require tokens."
            }
            (_, 500..=599) => {
                "Check the log of the responding server: it fails on the token request. The client can only retry."
            }
            _ => "Find out which server answers at the endpoint, and why it rejects PUT /latest/api/token.",
        };
        let who = match (by_imds, self.server.as_deref(), self.cause) {
            (Some(false), Some(server), _) => format!(" The responses name {server:?} in the Server header, not IMDS."),
            (None, _, Cause::Refused) => {
                " The command shows which server answers: IMDS sends the Server header EC2ws.".to_owned()
            }
            _ => String::new(),
        };
        format!("{advice}{who}")
    }
}
