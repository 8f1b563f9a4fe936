//! A client repeatedly requests a path that never existed.
//!
//! ## Detects
//!
//! A client gets 404 or 410 for one path several times (`misses`) within 10 min, spread over at least `spread_s` seconds.
//! Slow clients, and clients that are restarted repeatedly, get it at least `slow_misses` times, less than an hour apart
//! and spread over at least `slow_spread_s` seconds. The client never got a 200 for the path. If other clients did, a proxy answers clients differently,
//! and the finding states it.
//!
//! Ignored: paths for which 404 is a normal answer (`spot/`, rebalance recommendations, IPv6 addresses of an interface
//! and similar). `no-instance-role` reports the list of roles.
//!
//! Severity: `info` for paths that IMDS has but this instance may lack (`tags/`, `autoscaling/`, `iam/`, an interface);
//! `warning` for other paths, and for a client that gets only 404 at each start.
//!
//! ## Why it matters
//!
//! The client waits for data that will not appear: tags that are not enabled in IMDS, a role that was never attached, or
//! a mistyped path. Its requests use the shared packet quota. If the path existed before the observer started, the real
//! cause is the one of `path-disappeared`.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:15:46.000300000Z",
//!   "host": "node-1",
//!   "code": "not-found",
//!   "severity": "info",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:21.000000000Z",
//!   "last_seen": "2023-11-14T22:15:46.000000000Z",
//!   "count": 30,
//!   "summary": "python3.11 app.py (app.service, pid 4242) repeatedly requests /latest/meta-data/tags/instance/Environment, which does not exist",
//!   "evidence": {"known_category":true,"misses":30,"others_are_answered":false,"path":"/latest/meta-data/tags/instance/Environment","processes":1,"since":"2023-11-14T22:13:21.000000000Z","status":404,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["aws ec2 modify-instance-metadata-options --instance-id i-0123456789abcdef0 --instance-metadata-tags enabled"],"text":"Enable instance tags in IMDS."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! nodeadm and cloud-init retry at boot until the instance's role and tags appear. cloud-init and the first 120 s after
//! boot are ignored, except for paths that every instance has (`meta-data/instance-id` and others).
//!
//! ## Options
//!
//! `[detectors.not-found]`
//!
//! - `misses` (20): answers 404 within 10 min.
//! - `spread_s` (60): shortest time from the first to the last of them.
//! - `slow_misses` (8): answers 404 to a slow client.
//! - `slow_spread_s` (1800): shortest time from the first to the last of those.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::remedy;
use super::table::{bounded, entry};
use super::window::Bins;
use super::{Context, Details, Detector, Limits, Observation, Scope, Sighting, Sightings};
use crate::imds::{is_role_listing, is_token_path, may_be_absent};
use crate::record::{Code, Dialect, Remedy, SECOND, Severity, Time};

/// Paths of clients that are followed, about 100 bytes each.
const MAX_PATHS: NonZeroUsize = NonZeroUsize::new(8192).unwrap();
/// Paths that exist, 16 bytes each, for each client and for all.
const MAX_FOUND: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();

/// Categories that IMDS knows though an instance may lack them.
const OPTIONAL: &[&str] = &[
    "meta-data/tags",
    "meta-data/autoscaling",
    "meta-data/iam",
    "meta-data/identity-credentials",
    "meta-data/events",
    "meta-data/ipv6",
    "meta-data/local-hostname",
    "meta-data/network/interfaces/macs",
    "user-data",
];
/// Paths that every instance has from its start.
const ALWAYS: &[&str] = &[
    "meta-data",
    "meta-data/ami-id",
    "meta-data/instance-id",
    "meta-data/instance-type",
    "meta-data/local-ipv4",
    "meta-data/mac",
    "meta-data/placement/availability-zone",
    "dynamic/instance-identity/document",
];
/// A longer pause than this ends a row of slow misses.
const SLOW_NS: u64 = 3600 * SECOND;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub misses: u64,
    pub spread_s: u64,
    pub slow_misses: u64,
    pub slow_spread_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            misses: 20,
            spread_s: 60,
            slow_misses: 8,
            slow_spread_s: 1800,
        }
    }
}

struct Misses {
    recent: Bins<10, { 60 * SECOND }>,
    first: Time,
    last: Time,
    all: u64,
    /// The same with pauses of up to [`SLOW_NS`].
    slow_first: Time,
    slow: u64,
}

pub(super) struct NotFound {
    config: Config,
    paths: LruCache<(u64, u64), Misses>,
    /// By client and path, and by path: the newest 200.
    own: LruCache<(u64, u64), ()>,
    found: LruCache<u64, Time>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> NotFound {
    NotFound {
        config: config.clone(),
        paths: bounded(limits.paths(MAX_PATHS)),
        own: bounded(limits.paths(MAX_FOUND)),
        found: bounded(limits.paths(MAX_FOUND)),
        evicted: 0,
    }
}

impl Detector for NotFound {
    fn code(&self) -> Code {
        Code::NotFound
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn quiet_ns(&self) -> u64 {
        1200 * SECOND
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let (Some(status @ (200 | 404 | 410)), time) = (status(exchange), exchange.time) else {
            return;
        };
        let path = context.path;
        let below = context.below;
        let id = context.below_id;
        if status == 200 {
            let own = (client.handle, id);
            if self.own.get(&own).is_none() && self.own.push(own, ()).is_some() {
                self.evicted += 1;
            }
            if let Some(newest) = self.found.get_mut(&id) {
                *newest = time.max(*newest);
            } else if self.found.push(id, time).is_some() {
                self.evicted += 1;
            }
            return;
        }
        // Paths that IMDS always has are not excused at boot.
        let excused = context.booting(time) && !ALWAYS.contains(&below);
        let protocol = context.protocol;
        let absent = if protocol.dialect == Dialect::Aws {
            may_be_absent(below)
        } else {
            // A 404 with a meaning of its own is access-forbidden's.
            protocol.may_be_absent(path) || is_token_path(path) || protocol.refusal(status, path, false).is_some()
        };
        if self.own.contains(&(client.handle, id)) || excused || absent {
            return;
        }
        let found = self.found.peek(&id).copied();
        let misses = entry(&mut self.paths, (client.handle, id), &mut self.evicted, || Misses {
            recent: Bins::new(),
            first: time,
            last: time,
            all: 0,
            slow_first: time,
            slow: 0,
        });
        if time.since(misses.last) > SLOW_NS {
            misses.slow_first = time;
            misses.slow = 0;
        }
        misses.slow_first = misses.slow_first.min(time);
        misses.slow += 1;
        if time.since(misses.last) > 600 * SECOND {
            misses.first = time;
            misses.all = 0;
        }
        misses.last = misses.last.max(time);
        misses.first = misses.first.min(time);
        misses.all += 1;
        misses.recent.add(time, 1);
        let fast = misses.recent.total(time) >= self.config.misses
            && time.since(misses.first) >= self.config.spread_s.saturating_mul(SECOND);
        let slow = misses.slow >= self.config.slow_misses.max(2)
            && time.since(misses.slow_first) >= self.config.slow_spread_s.saturating_mul(SECOND);
        if !(fast || slow) {
            return;
        }
        // Answered before this client asked, and not since: it is gone for all.
        let others = match found {
            Some(found) if found < misses.slow_first => return,
            found => found.is_some(),
        };
        if is_role_listing(below) && !others {
            return;
        }
        let (all, since) = if fast {
            (misses.all, misses.first)
        } else {
            (misses.slow, misses.slow_first)
        };
        let starts = client.short_lived();
        let optional = OPTIONAL.iter().any(|prefix| below.starts_with(prefix));
        let sighting = Sighting {
            key: &client.key,
            severity: if optional && !others && !starts {
                Severity::Info
            } else {
                Severity::Warning
            },
            time,
            count: sightings.counted(&client.key, all, since),
            news: false,
        };
        sightings.report(sighting, || {
            let subject = context.client_subject();
            Details {
                summary: if others {
                    format!("{} gets {status} for {path}, which exists for other clients", subject.name)
                } else {
                    format!("{} repeatedly requests {path}, which does not exist", subject.name)
                },
                evidence: evidence! {
                    "path": path,
                    "status": status,
                    "misses": all,
                    "since": since,
                    "others_are_answered": others,
                    "processes": client.processes,
                    "known_category": optional,
                    "user_agent": client.user_agent,
                },
                remedy: if others {
                    remedy::text(
                        "Find out which server answers this client: a metadata proxy for pods (such as kube2iam or kiam) may not know its address or its role. IMDS itself answers all clients of an instance in the same way.",
                    )
                } else if protocol.dialect != Dialect::Aws {
                    remedy::text(format!(
                        "Correct the path, or make the client stop after the first 404.{}",
                        remedy::documented(protocol)
                    ))
                } else if below.starts_with("meta-data/tags") {
                    Remedy {
                        text: "Enable instance tags in IMDS.".to_owned(),
                        commands: remedy::modify_options(context.host, "--instance-metadata-tags enabled"),
                    }
                } else if below.starts_with("meta-data/iam") {
                    remedy::text(
                        "The instance has no role. Attach an instance profile if the client needs one. Otherwise set AWS_EC2_METADATA_DISABLED=true for the client.",
                    )
                } else if ALWAYS.contains(&below) {
                    remedy::text(
                        "Find out which server answers, and read its log. IMDS has this path on every instance, so it may be a \
                         proxy, or a private cloud's metadata service that isn't configured.",
                    )
                } else {
                    remedy::text("Correct the path, or make the client stop after the first 404.")
                },
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
