//! A path that IMDS used to answer is gone, while other paths still exist.
//!
//! ## Detects
//!
//! A path returned 200 to a client, and then only 404: at least `misses` times, over at least `spread_s` seconds, while
//! another path was answered. (`target-lifecycle-state` needs no other path, because some clients poll only that
//! one.) One finding per path. If the path still works for another client, the finding belongs to the client that gets
//! 404: a proxy answers clients differently.
//!
//! Ignored: paths for which 404 is a normal answer (`spot/`, rebalance recommendations, interfaces that are attached and
//! detached, SSH keys).
//!
//! The cause is `role-detached` only if the list of roles itself is gone. If only a role's credentials are gone,
//! `stale-role-name` reports it when the list is answered. If no request for the list is observed, the cause is
//! `role-detached-or-replaced` after `role_spread_s`.
//!
//! ## Why it matters
//!
//! The instance has changed. `autoscaling/target-lifecycle-state` disappears after a live migration, and a node
//! termination handler that polls it misses terminations. `iam/` disappears when the instance's role is detached:
//! workloads lose their credentials when the current ones expire.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:14:39.020300000Z",
//!   "host": "node-1",
//!   "code": "path-disappeared",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":{"id":"0000000000000000000000000000000000000000000000000000000000000384","image":null,"name":"app","pod":{"name":"aws-node-termination-handler-4jk2b","namespace":"kube-system","uid":"00000000-0000-4000-8000-000000000900"},"runtime":"containerd"},"key":"path/meta-data/autoscaling/target-lifecycle-state","name":"path /latest/meta-data/autoscaling/target-lifecycle-state","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/kubepods/burstable/pod900/0000000000000000000000000000000000000000000000000000000000000384","cmdline":["node-termination-handler"],"comm":"node-terminatio","exe":"/node-termination-handler","namespace_pid":1,"netns":4026532900,"pid":900,"start_time":"2023-11-14T21:13:20.000000000Z","tid":900,"uid":1000},"workload":"kube-system/aws-node-termination-handler"},
//!   "first_seen": "2023-11-14T22:13:31.020000000Z",
//!   "last_seen": "2023-11-14T22:14:39.020000000Z",
//!   "count": 35,
//!   "summary": "/latest/meta-data/autoscaling/target-lifecycle-state is gone: the instance was probably live-migrated",
//!   "evidence": {"first_404":"2023-11-14T22:13:31.020000000Z","last_200":"2023-11-14T22:13:29.020000000Z","likely_cause":"live-migration","misses":35,"path":"/latest/meta-data/autoscaling/target-lifecycle-state","user_agent":null},
//!   "remedy": {"commands":[],"text":"Restart the client so that it stops relying on the path, or read the state from EventBridge (node termination handler: queue mode). Stopping and starting the instance restores the path."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A tag or a public address that was removed on purpose.
//!
//! ## Options
//!
//! `[detectors.path-disappeared]`
//!
//! - `misses` (3): answers 404 that make a finding.
//! - `spread_s` (30): shortest time from the first to the last of them.
//! - `role_spread_s` (300): the same for a role's credentials, so that a request for the list of roles may occur
//!   meanwhile.
//! - `ignore` (empty): prefixes of further paths to ignore, without the version, such as `meta-data/tags/`.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html>
//! - <https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::remedy;
use super::table::bounded;
use super::{Client, Context, Details, Detector, Limits, Observation, Sighting, Sightings};
use crate::imds::{is_natural_404, is_role_listing, role_of};
use crate::record::{Code, Remedy, SECOND, Severity, Time};

/// Paths that gave 200 and are remembered, 48 bytes each for a client and 24 for all.
const MAX_PATHS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// Longest part of a path in a key.
const MAX_KEY: usize = 200;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub misses: u64,
    pub spread_s: u64,
    pub role_spread_s: u64,
    pub ignore: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            misses: 3,
            spread_s: 30,
            role_spread_s: 300,
            ignore: Vec::new(),
        }
    }
}

/// A path that exists or existed.
#[derive(Clone, Copy)]
struct Known {
    last_200: Time,
    first_404: Option<Time>,
    misses: u64,
}

pub(super) struct PathDisappeared {
    config: Config,
    /// By client and path.
    paths: LruCache<(u64, u64), Known>,
    /// By path: the newest 200, and who had it.
    given: LruCache<u64, (Time, u64)>,
    /// The newest two answers 200, by path: one of them is of another path than any that is asked about.
    answered: [(u64, Time); 2],
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> PathDisappeared {
    PathDisappeared {
        config: config.clone(),
        paths: bounded(limits.paths(MAX_PATHS)),
        given: bounded(limits.paths(MAX_PATHS)),
        answered: [(0, Time(0)); 2],
        evicted: 0,
    }
}

/// Key of the finding about a detached role.
const ROLE: &str = "path/meta-data/iam";

/// Meaning of a missing path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    LiveMigration,
    RoleDetached,
    /// A role's credentials, and no client has asked for the list of roles since.
    Role,
    /// Others are answered.
    Client,
    Unknown,
}

fn key_of(below: &str) -> String {
    if is_role_listing(below) {
        return ROLE.to_owned();
    }
    let mut end = below.len().min(MAX_KEY);
    while !below.is_char_boundary(end) {
        end -= 1;
    }
    format!("path/{}", &below[..end])
}

impl PathDisappeared {
    fn is_ignored(&self, below: &str) -> bool {
        is_natural_404(below)
            || self
                .config
                .ignore
                .iter()
                .any(|prefix| below.starts_with(prefix.as_str()))
    }
}

impl Detector for PathDisappeared {
    fn code(&self) -> Code {
        Code::PathDisappeared
    }

    fn quiet_ns(&self) -> u64 {
        3600 * SECOND
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        match status(exchange) {
            Some(200) => self.answered(exchange.time, context, client, sightings),
            Some(404 | 410) => self.missing(exchange.time, context, client, sightings),
            _ => {}
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl PathDisappeared {
    fn answered(&mut self, time: Time, context: &Context<'_>, client: &Client, sightings: &mut Sightings<'_>) {
        let (id, below) = (context.below_id, context.below);
        if self.answered[0].0 == id {
            self.answered[0].1 = self.answered[0].1.max(time);
        } else {
            self.answered = [(id, time), self.answered[0]];
        }
        if let Some(given) = self.given.get_mut(&id) {
            if given.0 <= time {
                *given = (time, client.handle);
            }
        } else if !self.is_ignored(below) {
            self.evicted += u64::from(self.given.push(id, (time, client.handle)).is_some());
        }
        if sightings.any_open() {
            sightings.clear(&key_of(below), time);
        }
        let known = Known {
            last_200: time,
            first_404: None,
            misses: 0,
        };
        if let Some(before) = self.paths.get_mut(&(client.handle, id)) {
            before.last_200 = before.last_200.max(time);
            if before.first_404.is_some_and(|first| first <= time) {
                *before = known;
                sightings.clear(&client.key, time);
            }
        } else if !self.is_ignored(below) {
            self.evicted += u64::from(self.paths.push((client.handle, id), known).is_some());
        }
    }

    fn missing(&mut self, time: Time, context: &Context<'_>, client: &Client, sightings: &mut Sightings<'_>) {
        let (id, below) = (context.below_id, context.below);
        let answered = self.answered;
        let Some(known) = self
            .paths
            .get_mut(&(client.handle, id))
            .filter(|known| known.last_200 < time)
        else {
            return;
        };
        let first = *known.first_404.get_or_insert(time);
        known.misses += 1;
        let known = *known;
        let others = answered
            .iter()
            .any(|(other, answered)| *other != id && *answered >= first);
        let listing = context.knowledge.role_listed.is_some_and(|listed| listed >= first);
        let own_listing = client.role_listing.filter(|(time, _)| *time >= first);
        let cause = if self
            .given
            .peek(&id)
            .is_some_and(|(given, to)| *to != client.handle && *given >= first)
        {
            Cause::Client
        } else if is_role_listing(below) {
            Cause::RoleDetached
        } else if let Some(role) = role_of(below) {
            let replaced = || context.knowledge.other_role(client, role, Some(known.last_200), first);
            // Listed: the role's name is stale. Not listed: the list itself is the evidence.
            if listing || own_listing.is_some() || replaced().is_some() {
                return;
            }
            Cause::Role
        } else if below == "meta-data/autoscaling/target-lifecycle-state" {
            Cause::LiveMigration
        } else {
            Cause::Unknown
        };
        let spread_s = match cause {
            Cause::Role => self.config.role_spread_s,
            _ => self.config.spread_s,
        };
        // For the list of roles and the lifecycle state no other path must be answered, because some clients request only these.
        let others = others || matches!(cause, Cause::RoleDetached | Cause::Client | Cause::LiveMigration);
        if known.misses < self.config.misses.max(1) || time.since(first) < spread_s.saturating_mul(SECOND) || !others {
            return;
        }
        let key = if cause == Cause::Client {
            client.key.to_string()
        } else {
            key_of(below)
        };
        let sighting = Sighting {
            key: &key,
            severity: if cause == Cause::RoleDetached {
                Severity::High
            } else {
                Severity::Warning
            },
            time,
            count: if sightings.is_open(&key) { 1 } else { known.misses },
            news: false,
        };
        sightings
            .since(first)
            .report(sighting, || details(cause, known, first, &key, context, client));
    }
}

fn details(cause: Cause, known: Known, first: Time, key: &str, context: &Context<'_>, client: &Client) -> Details {
    let path = context.path;
    let subject = if cause == Cause::Client {
        context.client_subject()
    } else {
        context.subject(key.to_owned(), format!("path {path}"))
    };
    let (likely_cause, summary, remedy) = match cause {
        Cause::RoleDetached => (
            "role-detached",
            "the instance's role was detached".to_owned(),
            Remedy {
                text: "Attach the instance profile again. Until then workloads on this instance lose their credentials when the current ones expire."
                    .to_owned(),
                commands: vec![format!(
                    "aws ec2 associate-iam-instance-profile --instance-id {} --iam-instance-profile Name=PROFILE",
                    remedy::instance_id(context.host)
                )],
            },
        ),
        Cause::Role => (
            "role-detached-or-replaced",
            format!("{path} no longer exists: the role was detached or replaced"),
            remedy::text(
                "Check whether /latest/meta-data/iam/security-credentials/ lists another role. If it does, restart the client so that it reads the new role name. If the list is empty, the instance no longer has a role: attach the instance profile again.",
            ),
        ),
        Cause::Client => (
            "answered-differently",
            format!(
                "{} gets 404 for {path}, which worked before and still works for other clients",
                subject.name
            ),
            remedy::text(
                "Find out what answers this client: a metadata proxy for pods (such as kube2iam or kiam) may no longer know its address or its role. IMDS itself answers all clients of an instance in the same way.",
            ),
        ),
        Cause::LiveMigration => (
            "live-migration",
            format!("{path} is gone: the instance was probably live-migrated"),
            remedy::text(
                "Restart the client so that it stops relying on the path, or read the state from EventBridge (node termination handler: queue mode). Stopping and starting the instance restores the path.",
            ),
        ),
        Cause::Unknown => (
            "changed",
            format!("{path} no longer exists"),
            remedy::text(
                "Check what changed on the instance (tags, addresses, interfaces), and correct the requests of the client.",
            ),
        ),
    };
    Details {
        subject,
        summary,
        evidence: evidence! {
            "path": path,
            "last_200": known.last_200,
            "first_404": first,
            "misses": known.misses,
            "likely_cause": likely_cause,
            "user_agent": client.user_agent,
        },
        remedy,
    }
}
