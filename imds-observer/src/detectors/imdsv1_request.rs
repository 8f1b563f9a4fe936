//! A client sends requests without a token (IMDSv1), and they succeed.
//!
//! ## Detects
//!
//! The first answer 200 to a request without `X-aws-ec2-metadata-token`. One finding per client, which counts all further
//! requests. `HEAD` and `OPTIONS` are not counted: they read nothing, and such a probe survives a 401.
//!
//! If the client had requested a token before and got none, the request is a fallback, and `cause` names the reason:
//!
//! - the token response was lost at most 16 s before (`token-response-lost`),
//! - the token request was refused at most an hour before, with 403 (`access-forbidden`, `proxied-request`), 400
//!   (`bad-token-request`), 429 (`server-errors`) or another status (`token-request-refused`),
//! - the token request was not answered, for an unknown reason.
//!
//! In the first two cases this finding is `info`, because the other finding is the alarm.
//!
//! If a program other than IMDS answers all of a client's requests without a token, this finding is `info` too (cause
//! `other-program`, `answered_by`): a redirection of this host leads to it, or (in captures) its responses don't have IMDS's
//! `Server` header. Whether the requests fail once tokens are required depends on that program.
//!
//! ## Why it matters
//!
//! These requests fail with 401 once `--http-tokens required` is set. Find and fix all such callers before you set it.
//! Requests without a token also make server-side request forgery against IMDS easy.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:14:20.000300000Z",
//!   "host": "node-1",
//!   "code": "imdsv1-request",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//user.slice/user-1000.slice/session-3.scope/curl/bash 4100","name":"curl (parent bash 4100)","process":{"ancestors":[{"comm":"bash","pid":4100},{"comm":"systemd","pid":1}],"cgroup":"/user.slice/user-1000.slice/session-3.scope","cmdline":["curl"],"comm":"curl","exe":"/usr/bin/curl","namespace_pid":null,"netns":4026531840,"pid":5002,"start_time":"2023-11-14T22:14:20.000000000Z","tid":5002,"uid":1000},"workload":"curl"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:14:20.000000000Z",
//!   "count": 3,
//!   "summary": "curl (parent bash 4100) uses IMDSv1: its requests without a token succeed",
//!   "evidence": {"answered_by":null,"breaks_when_tokens_are_required":true,"cause":"client","client":"curl","first_path":"/latest/meta-data/instance-id","last_path":"/latest/meta-data/instance-id","requests":3,"user_agent":"curl/7.88.1"},
//!   "remedy": {"commands":[],"text":"Get a token first: TOKEN=$(curl -sX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 21600'), then send it as X-aws-ec2-metadata-token."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! None known. Requests in the dialects of other clouds on the same address are not counted. Some tools (s3fs, older
//! Datadog agents) first send a request without a token and then one with a token. They are reported, because the first
//! request succeeds.
//!
//! ## Options
//!
//! `[detectors.imdsv1-request]`
//!
//! - `quiet_s` (7200): seconds without such a request until the finding is resolved. Long, because credentials are
//!   refreshed about once an hour.
//! - `hold_s` (3): seconds that a first detection waits for the end of a token request that began before it.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>
//! - CloudWatch metric `MetadataNoToken` counts the same requests for the instance as a whole.

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{V1Cause, is_probe, status, sufficient_hop_limit};
use super::proxied_request::{OtherServer, other_server};
use super::remedy::{self, MetadataOption, Sdk};
use super::table::bounded;
use super::{Client, Context, Details, Detector, Exchanges, Limits, Observation, Sighting, Sightings};
use crate::host_facts::nat_target;
use crate::record::{Code, Exchange, ImdsVersion, Remedy, SECOND, Severity, Subject, Time};

/// Clients that are remembered, with the process that was seen last: up to 5 KiB each.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub quiet_s: u64,
    pub hold_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            quiet_s: 7200,
            hold_s: 3,
        }
    }
}

/// A client that was answered without a token.
struct Caller {
    requests: u64,
    first_path: String,
    /// As of the newest request that was reported.
    path: String,
    subject: Subject,
    first_time: Time,
    last_time: Time,
    /// Not reported yet: held back since then.
    held: Option<Time>,
    /// Number of `requests` that another program than IMDS answered, and that program.
    elsewhere: u64,
    other: Option<Box<str>>,
}

pub(super) struct Imdsv1Request {
    config: Config,
    callers: LruCache<u64, Caller>,
    held: usize,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> Imdsv1Request {
    Imdsv1Request {
        config: config.clone(),
        callers: bounded(limits.clients(MAX_CLIENTS)),
        held: 0,
        evicted: 0,
    }
}

impl Detector for Imdsv1Request {
    fn code(&self) -> Code {
        Code::Imdsv1Request
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s.saturating_mul(SECOND)
    }

    fn wants(&self) -> Exchanges {
        Exchanges::V1
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        if exchange.request.imds_version != Some(ImdsVersion::V1)
            || is_probe(exchange)
            || !status(exchange).is_some_and(|status| (200..300).contains(&status))
        {
            return;
        }
        if let Some(caller) = self.callers.get_mut(&client.handle) {
            caller.requests += 1;
            caller.note_answer(exchange, context);
            caller.last_time = caller.last_time.max(exchange.time);
            if caller.held.is_some() {
                caller.first_time = caller.first_time.min(exchange.time);
            } else {
                caller.report(client, 1, context, true, sightings);
            }
            return;
        }
        let path = context.path;
        // With its cause known, nothing that is still under way could change the verdict.
        let certain = client.v1_cause.is_some();
        let mut caller = Caller {
            requests: 1,
            first_path: path.to_owned(),
            path: path.to_owned(),
            subject: context.client_subject(),
            first_time: exchange.time,
            last_time: exchange.time,
            held: (!certain).then_some(context.now),
            elsewhere: 0,
            other: None,
        };
        caller.note_answer(exchange, context);
        if certain {
            caller.report(client, 1, context, false, sightings);
        }
        self.held += usize::from(!certain);
        if let Some((_, gone)) = self.callers.push(client.handle, caller) {
            self.evicted += 1;
            self.held -= usize::from(gone.held.is_some());
        }
    }

    fn tick(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        self.release(context, last, sightings);
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Imdsv1Request {
    /// Reports those that were held back for long enough, or have a cause by now.
    fn release(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        if self.held == 0 {
            return;
        }
        for (handle, caller) in &mut self.callers {
            let (Some(since), Some(client)) = (caller.held, context.knowledge.client(*handle)) else {
                continue;
            };
            if last
                || client.v1_cause.is_some()
                || context.now.since(since) >= self.config.hold_s.saturating_mul(SECOND)
            {
                caller.held = None;
                self.held -= 1;
                caller.report(client, caller.requests, context, false, sightings);
            }
        }
    }
}

impl Caller {
    /// A forwarding proxy passes IMDS's own `Server` header on; without that header, or behind a redirection, another program answers.
    fn note_answer(&mut self, exchange: &Exchange, context: &Context<'_>) {
        let by_rule = || context.host.nat_rule_of_forwarded(exchange).and_then(nat_target);
        let other = match exchange.connection.redirected_to.as_deref().or_else(by_rule) {
            Some(target) => Some(OtherServer::At(target)),
            None => other_server(exchange, &context.knowledge.imds_server),
        };
        let Some(other) = other else {
            return;
        };
        self.elsewhere += 1;
        if self.other.is_none() {
            self.other = Some(other.to_string().into());
        }
    }

    /// The program that answers all requests, if it isn't IMDS.
    fn other(&self) -> Option<&str> {
        self.other.as_deref().filter(|_| self.elsewhere == self.requests)
    }

    /// `newest`: the current request is the one reported from now on. It is looked at only when something is to be written.
    fn report(
        &mut self,
        client: &Client,
        count: u64,
        context: &Context<'_>,
        newest: bool,
        sightings: &mut Sightings<'_>,
    ) {
        let sighting = Sighting {
            key: &client.key,
            severity: match client.v1_cause {
                // Another finding names the cause, at its own weight.
                Some(
                    V1Cause::HopLimit { .. }
                    | V1Cause::Proxy
                    | V1Cause::Throttled(_)
                    | V1Cause::BadRequest
                    | V1Cause::Refused(_),
                ) => Severity::Info,
                Some(V1Cause::TokenUnanswered) | None if self.other().is_some() => Severity::Info,
                Some(V1Cause::TokenUnanswered) | None => Severity::Warning,
            },
            time: self.last_time,
            count,
            news: false,
        };
        if !newest {
            sightings.since(self.first_time);
        }
        sightings.report(sighting, || {
            if newest {
                context.path.clone_into(&mut self.path);
                self.subject = context.client_subject();
            }
            self.details(client, context)
        });
    }

    fn details(&self, client: &Client, context: &Context<'_>) -> Details {
        let name = &self.subject.name;
        let agent = client.user_agent.as_deref();
        let sdk = Sdk::of(agent);
        let (cause, summary, remedy) = match client.v1_cause {
            Some(V1Cause::HopLimit { request_ttl }) => {
                let limit = request_ttl.map(sufficient_hop_limit);
                let suffices = limit.map_or_else(|| "that suffices".to_owned(), |limit| format!("of {limit}"));
                let change = limit.map(|limit| remedy::change_option(context.host, MetadataOption::HopLimit(limit)));
                (
                    "token-response-lost",
                    format!("{name} falls back to IMDSv1 because the hop limit is too small for its token responses"),
                    Remedy {
                        text: if remedy::options_are_fixed(context.host) {
                            "The hop limit of this host can't be changed: see token-response-lost for what the client can do."
                                .to_owned()
                        } else {
                            format!(
                                "Fix the hop limit: see token-response-lost. With a hop limit {suffices} the client gets a token and \
                                 uses IMDSv2."
                            )
                        },
                        commands: change.map(|(_, commands)| commands).unwrap_or_default(),
                    },
                )
            }
            Some(V1Cause::Proxy) => (
                "token-request-forbidden",
                format!("{name} falls back to IMDSv1 because its token request failed with 403"),
                remedy::text(
                    "Fix the refused token request: see access-forbidden or proxied-request. Once the client gets a token, it uses IMDSv2.",
                ),
            ),
            Some(V1Cause::Throttled(status)) => (
                "token-request-throttled",
                format!("{name} falls back to IMDSv1 because its token request failed with {status}"),
                remedy::text(
                    "IMDS throttled the token request. Reduce the request rate of this host; the client gets a token when it retries later.",
                ),
            ),
            Some(V1Cause::BadRequest) => (
                "bad-token-request",
                format!("{name} falls back to IMDSv1 because its token request failed with 400"),
                remedy::text("Fix the token request: see bad-token-request. Once it is valid, the client uses IMDSv2."),
            ),
            Some(V1Cause::Refused(status)) => (
                "token-request-refused",
                format!("{name} falls back to IMDSv1 because its token request failed with {status}"),
                remedy::text(
                    "The failed token request is the cause, not the client; token-request-refused reports it if it persists. Once the client gets a token, it uses IMDSv2.",
                ),
            ),
            Some(V1Cause::TokenUnanswered) => (
                "token-request-unanswered",
                format!("{name} falls back to IMDSv1 because its token request was not answered"),
                remedy::text(
                    "Find out where the token response is lost. If the client is in a container, the hop limit is the usual cause.",
                ),
            ),
            None if let Some(other) = self.other() => (
                "other-program",
                format!("{name} sends requests without a token, and {other} answers them instead of IMDS"),
                remedy::text(
                    "Find out what answers: see proxied-request or redirected-locally. Whether these requests fail once tokens are required depends on that program. Update the client only if the program passes its requests on to IMDS as they are.",
                ),
            ),
            None => (
                "client",
                format!("{name} uses IMDSv1: its requests without a token succeed"),
                remedy::text(sdk.without_v1()),
            ),
        };
        Details {
            subject: self.subject.clone(),
            summary,
            evidence: evidence! {
                "cause": cause,
                "requests": self.requests,
                "first_path": self.first_path,
                "last_path": self.path,
                "user_agent": agent,
                "client": sdk.name(),
                "answered_by": self.other(),
                "breaks_when_tokens_are_required": self.other().is_none().then_some(true),
            },
            remedy,
        }
    }
}
