//! IMDS answers 401 repeatedly: the client keeps using an expired token, or sends none where one is required.
//!
//! ## Detects
//!
//! A client gets 401 several times (`rejections`). `cause` is
//!
//! - `same-token`, `no-token`: the requests have the same token, or none. They are within `window_s` seconds, or follow
//!   each other over any time without a request for a new token.
//! - `fresh-token`, `many-tokens`: that many different tokens are rejected, and none is accepted in between. With
//!   `fresh-token` most of them were just issued; with `many-tokens` they come from elsewhere.
//! - `unknown`: the capture truncates the requests before the header that holds the token.
//!
//! A client that sends no token because its token request failed is reported as `info`, with that failure as the cause. A
//! single 401 followed by a new token is how clients renew tokens, and is not reported. `HEAD` and `OPTIONS` are not
//! counted.
//!
//! ## Why it matters
//!
//! The client's requests fail. With an expired token they fail until the client restarts. Without a token they fail until
//! the client is updated, because the instance requires tokens (`--http-tokens required`).
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
//!   "evidence": {"cause":"same-token","client":"botocore (boto3, AWS CLI)","path":"/latest/meta-data/instance-id","rejections":4,"token":"9f2c51d0","tokens":1,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":[],"text":"Request a new token after a 401. Create one boto3/botocore Session and reuse it: each new Session loads credentials with a new token. The AWS CLI does so at each start: run it less often, or provide credentials through credential_process. Until then restart the client."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! When many threads share a token that expires, more than two requests may fail before one thread renews it. fluent-bit
//! sends one request with an invalid token to test for IMDSv2; that is not reported.
//!
//! ## Options
//!
//! `[detectors.token-rejected]`
//!
//! - `rejections` (3): answers 401 that make a finding.
//! - `window_s` (60): time within which they must occur, unless they come in a row.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (HTTP status 401)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{is_probe, status};
use super::remedy::{self, Sdk};
use super::table::{bounded, entry};
use super::{Client, Context, Details, Detector, Limits, Observation, Scope, Sighting, Sightings};
use crate::record::{Code, Dialect, ImdsVersion, Remedy, SECOND, Severity, Time};

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

/// Rejections of one client.
struct Row {
    /// Token of the newest rejected request.
    token: Option<String>,
    /// Whether that one could be seen at all.
    cut: bool,
    /// With this token, or without any, in the current window.
    in_window: u64,
    window_from: Time,
    /// The same since the last success or token request.
    unbroken: u64,
    unbroken_from: Time,
    /// Tokens rejected since the last success, and how many of them were the first after a token had been granted.
    tokens: u64,
    fresh: u64,
    tokens_from: Time,
    /// A token was granted since the newest rejection.
    granted: bool,
    last: Time,
    all: u64,
}

impl Row {
    fn new(time: Time) -> Self {
        Self {
            token: None,
            cut: false,
            in_window: 0,
            window_from: time,
            unbroken: 0,
            unbroken_from: time,
            tokens: 0,
            fresh: 0,
            tokens_from: time,
            granted: false,
            last: time,
            all: 0,
        }
    }

    /// `cut`: the capture has not the part of the request in which a token would be.
    fn rejected(&mut self, token: Option<&str>, cut: bool, time: Time, window_ns: u64) {
        if time.since(self.last) > ROW_NS {
            self.unbroken = 0;
            self.tokens = 0;
            self.fresh = 0;
        }
        let changed = self.token.as_deref() != token || self.cut != cut;
        self.cut = cut;
        if changed || self.all == 0 {
            self.token = token.map(str::to_owned);
            self.in_window = 0;
            self.window_from = time;
            self.unbroken = 0;
            if self.tokens == 0 {
                self.tokens_from = time;
            }
            self.tokens += u64::from(token.is_some());
            self.fresh += u64::from(token.is_some() && self.granted);
        }
        if time.since(self.window_from) > window_ns {
            self.in_window = 0;
            self.window_from = time;
        }
        if self.unbroken == 0 {
            self.unbroken_from = time;
        }
        self.granted = false;
        self.in_window += 1;
        self.unbroken += 1;
        self.all += 1;
        self.last = self.last.max(time);
    }

    /// Why it is rejected, once so many rejections show it.
    fn cause(&self, least: u64) -> Option<Cause> {
        if self.in_window.max(self.unbroken) >= least {
            Some(self.newest())
        } else if self.tokens < least {
            None
        } else if self.fresh * 2 > self.tokens {
            Some(Cause::FreshToken)
        } else {
            Some(Cause::ManyTokens)
        }
    }

    /// How many rejections show it, and when the first of them was.
    fn evidence(&self, cause: Cause) -> (u64, Time) {
        match cause {
            Cause::FreshToken | Cause::ManyTokens => (self.tokens, self.tokens_from),
            Cause::SameToken | Cause::NoToken | Cause::Unknown if self.unbroken >= self.in_window => {
                (self.unbroken, self.unbroken_from)
            }
            Cause::SameToken | Cause::NoToken | Cause::Unknown => (self.in_window, self.window_from),
        }
    }

    /// Cause that the newest rejection alone shows.
    fn newest(&self) -> Cause {
        if self.token.is_some() {
            Cause::SameToken
        } else if self.cut {
            Cause::Unknown
        } else {
            Cause::NoToken
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    SameToken,
    NoToken,
    FreshToken,
    ManyTokens,
    Unknown,
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

    fn scope(&self) -> Scope {
        Scope::Tokens
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let time = exchange.time;
        let version = exchange.request.imds_version;
        let status = status(exchange);
        if version == Some(ImdsVersion::Token) {
            if let Some(row) = self.clients.get_mut(&client.handle) {
                row.unbroken = 0;
                row.granted |= status == Some(200);
            } else if status == Some(200) {
                self.row(client, time).granted = true;
            }
            return;
        }
        if status != Some(401) {
            if let Some(row) = self.clients.get_mut(&client.handle)
                && let Some(200..=299 | 404) = status
            {
                // A path that isn't there proves the token too.
                row.tokens = 0;
                row.fresh = 0;
                if status != Some(404) {
                    row.unbroken = 0;
                    sightings.clear(&client.key, time);
                }
            }
            return;
        }
        let cut = version.is_none() && exchange.request.method.as_deref() == Some("GET");
        if !cut && !matches!(version, Some(ImdsVersion::V1 | ImdsVersion::V2)) || is_probe(exchange) {
            return;
        }
        let token = exchange.request.token.as_deref();
        let window_ns = self.config.window_s.saturating_mul(SECOND);
        let least = self.config.rejections.max(1);
        let row = self.row(client, time);
        row.rejected(token, cut, time, window_ns);
        let open = sightings.is_open(&client.key);
        let Some(cause) = row.cause(least).or_else(|| open.then(|| row.newest())) else {
            return;
        };
        let (rejections, tokens) = (row.all, row.tokens);
        let (count, first) = if open { (1, time) } else { row.evidence(cause) };
        let sighting = Sighting {
            key: &client.key,
            severity: if cause == Cause::NoToken && client.v1_cause.is_some() {
                // It did ask for one: what became of that is another finding's.
                Severity::Info
            } else {
                Severity::Warning
            },
            time,
            count,
            news: false,
        };
        sightings
            .since(first)
            .report(sighting, || details(cause, rejections, tokens, client, context));
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl TokenRejected {
    fn row(&mut self, client: &Client, time: Time) -> &mut Row {
        entry(&mut self.clients, client.handle, &mut self.evicted, || Row::new(time))
    }
}

fn details(cause: Cause, rejections: u64, tokens: u64, client: &Client, context: &Context<'_>) -> Details {
    let subject = context.client_subject();
    let name = &subject.name;
    let agent = client.user_agent.as_deref();
    let sdk = Sdk::of(agent);
    let protocol = context.protocol;
    let is_aws = protocol.dialect == Dialect::Aws;
    let (cause, summary, remedy) = match (cause, client.v1_cause) {
        // Each cloud's tokens have a path and headers of their own.
        (Cause::NoToken | Cause::ManyTokens | Cause::Unknown, _) if !is_aws => (
            if cause == Cause::ManyTokens {
                "many-tokens"
            } else {
                "no-token"
            },
            format!(
                "{} refuses requests of {name} with 401: they have no valid token",
                protocol.service
            ),
            remedy::text(format!(
                "{}{}",
                protocol.token.map_or("", |token| token.request),
                remedy::documented(protocol)
            )),
        ),
        (Cause::SameToken, _) => (
            "same-token",
            format!("{name} keeps using a token that IMDS rejects"),
            remedy::text(format!(
                "Request a new token after a 401. {} Until then restart the client.",
                sdk.reuse()
            )),
        ),
        (Cause::FreshToken, _) => (
            "fresh-token",
            format!("IMDS rejects tokens of {name} right after they were issued"),
            remedy::text(
                "Check whether only the token request or only the other requests go through a proxy, and whether a token of another instance is reused: a token is valid only on the instance that issued it. Send the token exactly as received, without quotes or a line end.",
            ),
        ),
        (Cause::ManyTokens, _) => (
            "many-tokens",
            format!("{name} sends many different tokens, and IMDS rejects all of them"),
            remedy::text(
                "These tokens were not issued by this instance's IMDS. Request the token with PUT /latest/api/token on this instance, and check whether the client uses tokens of another service or instance.",
            ),
        ),
        (Cause::Unknown, _) => (
            "unknown",
            format!(
                "{name} repeatedly gets 401; its requests are truncated in the capture, so it is unknown whether they have a token"
            ),
            remedy::text(
                "Capture whole packets (tcpdump -s 0). If the requests have a token, the client must ask for a new one after a 401; if \
                 they have none, it needs a version that uses IMDSv2.",
            ),
        ),
        (Cause::NoToken, Some(refused)) => {
            let (cause, what) = refused.name();
            (
                cause,
                format!("{name} sends requests without a token where one is required: {what}"),
                remedy::text(format!(
                    "Fix the token request; this client's version is not the cause (see {cause}). With a token its requests succeed."
                )),
            )
        }
        (Cause::NoToken, None) => (
            "no-token",
            format!("{name} sends requests without a token where one is required"),
            Remedy {
                text: format!(
                    "{} Until then tokens can be made optional again. Trade-off: this weakens the protection of all workloads on the instance.",
                    if sdk == Sdk::Curl {
                        sdk.without_v1()
                    } else {
                        "Update the client or its SDK to a version that uses IMDSv2 (a token from PUT /latest/api/token)."
                    }
                ),
                commands: remedy::modify_options(context.host, "--http-tokens optional"),
            },
        ),
    };
    Details {
        summary,
        evidence: evidence! {
            "cause": cause,
            "rejections": rejections,
            "tokens": tokens,
            "token": context.token(),
            "path": context.path,
            "user_agent": agent,
            "client": sdk.name(),
        },
        remedy,
        subject,
    }
}
