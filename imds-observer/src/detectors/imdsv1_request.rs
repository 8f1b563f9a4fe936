//! A client asks without a token and is answered.
//!
//! ## Detects
//!
//! The first answer 200 to a request without `X-aws-ec2-metadata-token`, per client. One finding per client, however many
//! requests follow; it counts them.
//!
//! Where the client had asked for a token at most 16 s before and did not get it, the request is a fallback and the
//! finding names the cause: the response was lost (`token-response-lost` says more), or it was refused with 403
//! (`access-forbidden` or `proxied-request` say more). Then this finding is only `info`: the other one is the alarm. If
//! the token request was not answered for a reason that can't be seen, that is named too.
//!
//! ## Why it matters
//!
//! When `--http-tokens required` is set, these requests get 401. Whoever wants to set it needs every such caller first.
//! And a request without a token is what makes server-side request forgery against IMDS easy.
//!
//! ## Example record
//!
//! ## Known false positives
//!
//! None known: other clouds' dialects on the same address are not counted. Some tools (s3fs, older Datadog agents) ask
//! without a token first and then with one; they are reported, since they do get answers that way.
//!
//! ## Options
//!
//! `[detectors.imdsv1-request]`
//!
//! - `quiet_s` (7200): seconds without such a request until the finding is resolved. Long, because credentials are
//!   refreshed about once an hour.
//! - `hold_s` (3): seconds that a first sighting waits for the end of a token request that began before it.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>
//! - CloudWatch metric `MetadataNoToken` counts the same requests for the instance as a whole.

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{V1Cause, normal_path, status, sufficient_hop_limit};
use super::remedy::{self, Sdk};
use super::{Client, Context, Details, Detector, Observation, Sighting, Sightings};
use crate::record::{Code, ImdsVersion, Remedy, SECOND, Severity, Subject, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

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
    last: Last,
    /// Not reported yet: since when it is held back, and what was seen of it.
    held: Option<Time>,
}

/// The newest request, as the finding tells it.
struct Last {
    time: Time,
    subject: Subject,
    path: String,
}

pub(super) struct Imdsv1Request {
    config: Config,
    callers: LruCache<u64, Caller>,
    held: usize,
    evicted: u64,
}

pub(super) fn new(config: &Config) -> Imdsv1Request {
    Imdsv1Request {
        config: config.clone(),
        callers: LruCache::new(MAX_CLIENTS),
        held: 0,
        evicted: 0,
    }
}

impl Detector for Imdsv1Request {
    fn code(&self) -> Code {
        Code::Imdsv1Request
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s * SECOND
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        if exchange.request.imds_version != Some(ImdsVersion::V1)
            || !status(exchange).is_some_and(|status| (200..300).contains(&status))
        {
            return;
        }
        let path = normal_path(exchange.request.path.as_deref().unwrap_or_default());
        let last = Last {
            time: exchange.time,
            subject: context.client_subject(),
            path,
        };
        if let Some(caller) = self.callers.get_mut(&client.handle) {
            caller.requests += 1;
            caller.last = last;
            if caller.held.is_none() {
                caller.report(client, 1, context, sightings);
            }
            return;
        }
        let caller = Caller {
            requests: 1,
            first_path: last.path.clone(),
            last,
            held: Some(context.now),
        };
        self.held += 1;
        if let Some((_, gone)) = self.callers.push(client.handle, caller) {
            self.evicted += 1;
            self.held -= usize::from(gone.held.is_some());
        }
        // Nothing that is still under way could change the verdict: it has its cause.
        if client.v1_cause.is_some() {
            self.release(context, true, sightings);
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
            if last || client.v1_cause.is_some() || context.now.since(since) >= self.config.hold_s * SECOND {
                caller.held = None;
                self.held -= 1;
                caller.report(client, caller.requests, context, sightings);
            }
        }
    }
}

impl Caller {
    fn report(&self, client: &Client, count: u64, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let sighting = Sighting {
            key: &client.key,
            severity: match client.v1_cause {
                // Another finding names the cause, at its own weight.
                Some(V1Cause::HopLimit { .. } | V1Cause::Proxy) => Severity::Info,
                _ => Severity::Warning,
            },
            time: self.last.time,
            count,
            news: false,
        };
        sightings.report(sighting, || self.details(client, context));
    }

    fn details(&self, client: &Client, context: &Context<'_>) -> Details {
        let name = &self.last.subject.name;
        let agent = client.user_agent.as_deref();
        let sdk = Sdk::of(agent);
        let (cause, summary, remedy) = match client.v1_cause {
            Some(V1Cause::HopLimit { request_ttl }) => {
                let limit = sufficient_hop_limit(request_ttl);
                (
                    "token-response-lost",
                    format!("{name} falls back to IMDSv1 because the hop limit is too small for its token responses"),
                    Remedy {
                        text: format!(
                            "The cause is the hop limit: see token-response-lost. With a hop limit of {limit} the client \
                             gets its token and asks with it."
                        ),
                        commands: vec![remedy::modify_options(
                            context.host,
                            &format!("--http-put-response-hop-limit {limit}"),
                        )],
                    },
                )
            }
            Some(V1Cause::Proxy) => (
                "token-request-forbidden",
                format!("{name} falls back to IMDSv1 because its token request was answered 403"),
                Remedy {
                    text: "IMDS answers 403 to a token request that was forwarded: take the proxy out of the way.".into(),
                    commands: vec!["export no_proxy='169.254.169.254,[fd00:ec2::254]'".into()],
                },
            ),
            Some(V1Cause::TokenUnanswered) => (
                "token-request-unanswered",
                format!("{name} falls back to IMDSv1 because its token request was not answered"),
                remedy::text(
                    "Find out what became of the token response; if the client is in a container, the hop limit is the \
                     usual cause.",
                ),
            ),
            None => (
                "client",
                format!("{name} uses IMDSv1: it asks without a token and is answered"),
                remedy::text(sdk.without_v1()),
            ),
        };
        Details {
            subject: self.last.subject.clone(),
            summary,
            evidence: evidence! {
                "cause": cause,
                "requests": self.requests,
                "first_path": self.first_path,
                "last_path": self.last.path,
                "user_agent": agent,
                "client": sdk.name(),
                "breaks_when_tokens_are_required": true,
            },
            remedy,
        }
    }
}
