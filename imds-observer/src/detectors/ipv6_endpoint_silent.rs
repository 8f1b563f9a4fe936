//! IPv6 attempts fail, because the IPv6 endpoint is disabled or unreachable.
//!
//! ## Detects
//!
//! Connections to the IPv6 endpoint (`fd00:ec2::254`) that are unanswered, refused or have no route, while IPv4 works or
//! is not tried. A client without an answer over IPv4 is reported at its first failure. A client that also uses IPv4
//! (many try both at once) is reported after several failures (`attempts`) over at least `spread_s` seconds. Severity: `info` if IPv4 works
//! on this host, else `warning`. One finding per client. `blocked-by-firewall` and `denied-by-policy` report attempts
//! that a firewall or a policy blocks.
//!
//! ## Why it matters
//!
//! The IPv6 endpoint is disabled by default. A client that is configured to use it
//! (`AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6`, or a list of endpoints) waits for its timeout at each attempt.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:14:02.000000000Z",
//!   "host": "node-1",
//!   "code": "ipv6-endpoint-silent",
//!   "severity": "info",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/modern.service/modern","name":"modern (modern.service, pid 4500)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/modern.service","cmdline":["modern"],"comm":"modern","exe":"/usr/bin/modern","namespace_pid":null,"netns":4026531840,"pid":4500,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4500,"uid":1000},"workload":"modern.service"},
//!   "first_seen": "2023-11-14T22:13:21.000000000Z",
//!   "last_seen": "2023-11-14T22:14:01.000000000Z",
//!   "count": 3,
//!   "summary": "IPv6 connections of modern (modern.service, pid 4500) to IMDS fail; IPv4 works",
//!   "evidence": {"attempts":3,"cause":"no-answer","ipv4_works":true,"seconds_lost":3.0},
//!   "remedy": {"commands":["aws ec2 modify-instance-metadata-options --instance-id i-0123456789abcdef0 --http-protocol-ipv6 enabled --http-endpoint enabled"],"text":"Enable the IPv6 endpoint (Nitro instances in an IPv6 subnet; IPv4 stays enabled), or make the client use IPv4: unset AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE or set it to IPv4."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! cloud-init tries both endpoints at once at boot. It is ignored, like all failures in the first 120 s after boot.
//!
//! ## Options
//!
//! `[detectors.ipv6-endpoint-silent]`
//!
//! - `attempts` (5): failures of a client that has answers over IPv4.
//! - `spread_s` (60): shortest time from the first to the last of them.
//! - `quiet_s` (3600): seconds without a failure until the finding is resolved. An answer over IPv6 resolves it sooner.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-options.html> (IPv6 endpoint)

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connectivity::{self, Cause};
use super::knowledge::{answered, is_v6};
use super::remedy::modify_options;
use super::table::bounded;
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Sighting, Sightings};
use crate::record::{Code, Remedy, SECOND, Severity, Subject, Time};

/// Clients that are remembered, with the process that was seen last: up to 5 KiB each.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(512).unwrap();
/// How long a failure waits for the same client's IPv4 attempt to end.
const HOLD_NS: u64 = 5 * SECOND;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub attempts: u64,
    pub spread_s: u64,
    pub quiet_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            attempts: 5,
            spread_s: 60,
            quiet_s: 3600,
        }
    }
}

/// One client's failures over IPv6.
struct Failures {
    first: Time,
    last: Time,
    attempts: u64,
    waited_ns: u64,
    cause: Cause,
    subject: Subject,
    /// Failures that wait to be judged, and since when.
    held: u64,
    since: Time,
    /// When the first of them was.
    held_from: Time,
}

pub(super) struct Ipv6EndpointSilent {
    config: Config,
    clients: LruCache<u64, Failures>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> Ipv6EndpointSilent {
    Ipv6EndpointSilent {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

impl Detector for Ipv6EndpointSilent {
    fn code(&self) -> Code {
        Code::Ipv6EndpointSilent
    }

    fn quiet_ns(&self) -> u64 {
        self.config.quiet_s.saturating_mul(SECOND)
    }

    fn wants(&self) -> Exchanges {
        Exchanges::NONE
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let Some(client) = context.client() else { return };
        if let Observation::Exchange(exchange) = observation {
            if sightings.any_open() && answered(exchange) && is_v6(&exchange.connection.remote) {
                sightings.clear(&client.key, exchange.time);
            }
            return;
        }
        let Observation::Connect(connect) = observation else {
            return;
        };
        let Some(failure) = connectivity::failure(observation, context)
            .filter(|failure| failure.v6 && failure.cause.usual_without_ipv6())
        else {
            return;
        };
        if context.booting(failure.time) {
            return;
        }
        if !self.clients.contains(&client.handle) {
            let failures = Failures {
                first: failure.time,
                last: failure.time,
                attempts: 0,
                waited_ns: 0,
                cause: failure.cause,
                subject: context.client_subject(),
                held: 0,
                since: context.now,
                held_from: failure.time,
            };
            self.evicted += u64::from(self.clients.push(client.handle, failures).is_some());
        }
        let Some(failures) = self.clients.get_mut(&client.handle) else {
            return;
        };
        if failures.held == 0 {
            failures.since = context.now;
            failures.held_from = failure.time;
        }
        failures.held_from = failures.held_from.min(failure.time);
        failures.held += 1;
        failures.attempts += 1;
        failures.first = failures.first.min(failure.time);
        failures.last = failures.last.max(failure.time);
        failures.waited_ns = failures.waited_ns.saturating_add(connect.elapsed_ns);
        failures.cause = failure.cause;
        failures.subject = context.client_subject();
    }

    fn tick(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        for (handle, failures) in &mut self.clients {
            if failures.held == 0 || !(last || context.now.since(failures.since) >= HOLD_NS) {
                continue;
            }
            let Some(client) = context.knowledge.client(*handle) else {
                failures.held = 0;
                continue;
            };
            let v4_works = context.knowledge.v4_works(failures.last);
            if client.v4_answered.is_some() {
                let often = failures.attempts >= self.config.attempts
                    && failures.last.since(failures.first) >= self.config.spread_s.saturating_mul(SECOND);
                if !often {
                    continue;
                }
            } else if !v4_works && failures.cause != Cause::Silence {
                // Not IPv6's fault alone: no-route or connection-refused reports it.
                failures.held = 0;
                continue;
            }
            let sighting = Sighting {
                key: &client.key,
                severity: if v4_works { Severity::Info } else { Severity::Warning },
                time: failures.last,
                count: failures.held,
                news: false,
            };
            failures.held = 0;
            sightings
                .since(failures.held_from)
                .report(sighting, || failures.details(v4_works, context));
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Failures {
    fn details(&self, v4_works: bool, context: &Context<'_>) -> Details {
        let how = match self.cause {
            Cause::Route(_) => "no-route",
            Cause::Refused => "refused",
            _ => "no-answer",
        };
        let seconds = (self.waited_ns as f64 / 1e6).round() / 1e3;
        Details {
            subject: self.subject.clone(),
            summary: format!(
                "IPv6 connections of {} to IMDS fail{}",
                self.subject.name,
                if v4_works { "; IPv4 works" } else { "" }
            ),
            evidence: evidence! {
                "attempts": self.attempts,
                "cause": how,
                "seconds_lost": seconds,
                "ipv4_works": v4_works,
            },
            remedy: Remedy {
                text: "Enable the IPv6 endpoint (Nitro instances in an IPv6 subnet; IPv4 stays enabled), or make the client use IPv4: unset AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE or set it to IPv4."
                    .to_owned(),
                commands: modify_options(
                    context.host,
                    "--http-protocol-ipv6 enabled --http-endpoint enabled",
                ),
            },
        }
    }
}
