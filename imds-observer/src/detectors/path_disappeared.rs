//! A path that IMDS used to answer is gone, while others are still there.
//!
//! ## Detects
//!
//! A path that gave 200, and then `misses` answers 404 and no 200 over at least `spread_s`, while another path was
//! answered in that time. Whoever asks: it is one finding for the path, with all of `iam/` taken together. Paths whose
//! 404 is part of their meaning (`spot/`, rebalance recommendations, interfaces that come and go, SSH keys) are left out.
//!
//! ## Why it matters
//!
//! Something about the instance has changed. `autoscaling/target-lifecycle-state` disappears after a live migration, and
//! a node termination handler that polls it is then blind. `iam/` disappears when the instance's role is detached: what
//! runs on the host loses its credentials when the current ones expire.
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
//!   "evidence": {"first_404":"2023-11-14T22:13:31.020000000Z","last_200":"2023-11-14T22:13:29.020000000Z","likely_cause":"live-migration","misses":35,"path":"/latest/meta-data/autoscaling/target-lifecycle-state"},
//!   "remedy": {"commands":[],"text":"Restart the client so that it stops relying on the path, or take the state from EventBridge (node termination handler: queue mode). Stopping and starting the instance brings the path back."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A tag or a public address that was taken away on purpose.
//!
//! ## Options
//!
//! `[detectors.path-disappeared]`
//!
//! - `misses` (3): answers 404 that make a finding.
//! - `spread_s` (30): the least time from the first to the last of them.
//! - `ignore` (empty): beginnings of further paths to leave out, below the version: `meta-data/tags/`.
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
use super::{Context, Details, Detector, Limits, Observation, Sighting, Sightings};
use crate::imds::is_natural_404;
use crate::record::{Code, Remedy, SECOND, Severity, Time};

/// Paths that gave 200 and are remembered, 40 bytes each.
const MAX_PATHS: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// Longest part of a path that stands in a key.
const MAX_KEY: usize = 200;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub misses: u64,
    pub spread_s: u64,
    pub ignore: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            misses: 3,
            spread_s: 30,
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
    paths: LruCache<u64, Known>,
    /// The newest two answers 200, by path: one of them is of another path than any that is asked about.
    answered: [(u64, Time); 2],
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> PathDisappeared {
    PathDisappeared {
        config: config.clone(),
        paths: bounded(limits.paths(MAX_PATHS)),
        answered: [(0, Time(0)); 2],
        evicted: 0,
    }
}

/// Paths that go together, for one cause.
fn cause_path(below: &str) -> &str {
    let iam = "meta-data/iam";
    let path = if below.starts_with("meta-data/iam/") {
        iam
    } else {
        below
    };
    let mut end = path.len().min(MAX_KEY);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    &path[..end]
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
        let Observation::Exchange(exchange) = observation else {
            return;
        };
        let (Some(status @ (200 | 404)), time) = (status(exchange), exchange.time) else {
            return;
        };
        let path = context.path;
        let below = context.below;
        let id = context.below_id;
        if status == 200 {
            if self.answered[0].0 == id {
                self.answered[0].1 = self.answered[0].1.max(time);
            } else {
                self.answered = [(id, time), self.answered[0]];
            }
            let known = Known {
                last_200: time,
                first_404: None,
                misses: 0,
            };
            if let Some(before) = self.paths.get_mut(&id) {
                before.last_200 = before.last_200.max(time);
                if before.first_404.is_some_and(|first| first <= time) {
                    *before = known;
                    sightings.clear(&format!("path/{}", cause_path(below)), time);
                }
            } else if !self.is_ignored(below) {
                self.evicted += u64::from(self.paths.push(id, known).is_some());
            }
            return;
        }
        let answered = self.answered;
        let Some(known) = self.paths.get_mut(&id).filter(|known| known.last_200 < time) else {
            return;
        };
        let first = *known.first_404.get_or_insert(time);
        known.misses += 1;
        let others = answered
            .iter()
            .any(|(other, answered)| *other != id && *answered >= first);
        if known.misses < self.config.misses.max(1)
            || time.since(first) < self.config.spread_s.saturating_mul(SECOND)
            || !others
        {
            return;
        }
        let known = *known;
        let cause = cause_path(below);
        let iam = cause == "meta-data/iam";
        let key = format!("path/{cause}");
        let sighting = Sighting {
            key: &key,
            severity: if iam { Severity::High } else { Severity::Warning },
            time,
            count: if sightings.is_open(&key) { 1 } else { known.misses },
            news: false,
        };
        sightings.since(first).report(sighting, || {
            let lifecycle = below == "meta-data/autoscaling/target-lifecycle-state";
            Details {
                subject: context.subject(key.clone(), format!("path {path}")),
                summary: if iam {
                    "the instance's role is gone from IMDS: it was detached".to_owned()
                } else if lifecycle {
                    format!("{path} is gone: the instance was probably live-migrated")
                } else {
                    format!("{path} was there and is gone")
                },
                evidence: evidence! {
                    "path": path,
                    "last_200": known.last_200,
                    "first_404": first,
                    "misses": known.misses,
                    "likely_cause": if iam { "role-detached" } else if lifecycle { "live-migration" } else { "changed" },
                },
                remedy: if iam {
                    Remedy {
                        text: "Attach the instance profile again; until then what runs here has the credentials it holds, and \
                               none after they expire."
                            .to_owned(),
                        commands: vec![format!(
                            "aws ec2 associate-iam-instance-profile --instance-id {} --iam-instance-profile Name=PROFILE",
                            remedy::instance_id(context.host)
                        )],
                    }
                } else if lifecycle {
                    remedy::text(
                        "Restart the client so that it stops relying on the path, or take the state from EventBridge \
                         (node termination handler: queue mode). Stopping and starting the instance brings the path back.",
                    )
                } else {
                    remedy::text("See what changed on the instance (tags, addresses, interfaces), and tell the client that asks.")
                },
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
