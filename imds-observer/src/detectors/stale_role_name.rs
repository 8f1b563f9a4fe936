//! A client requests credentials of a role that the instance doesn't have, while it has another role.
//!
//! ## Detects
//!
//! A client gets 404 for `iam/security-credentials/ROLE` several times in a row (`misses`), while the listing
//! `iam/security-credentials/` or the credentials of another role return 200. A 200 for another role counts if it is later
//! than the client's last 200, because the role may have been replaced hours before the client needs new credentials. A
//! listing that precedes the first 404 counts only if it is recent: at most a tenth of the time between the last 200 and
//! the first 404. An older listing may contain the old role.
//!
//! A client that never got credentials for this name is reported only if the same client also reads the listing: its role
//! name was wrong from the start. If no role is listed, `path-disappeared` or `no-instance-role` reports it.
//!
//! ## Why it matters
//!
//! The instance's role was replaced, and the client keeps the name that it read at start-up. It has no credentials once
//! its current ones expire, while other clients on the host work. The instance has a role: don't attach one.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:44:35.000300000Z",
//!   "host": "node-1",
//!   "code": "stale-role-name",
//!   "severity": "high",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:43:20.000000000Z",
//!   "last_seen": "2023-11-14T22:44:35.000000000Z",
//!   "count": 6,
//!   "summary": "python3.11 app.py (app.service, pid 4242) requests role old-role, which the instance no longer has, while IMDS has another role (new-role)",
//!   "evidence": {"client":"AWS SDK for Rust","first_404":"2023-11-14T22:43:20.000000000Z","had_credentials":true,"last_200":"2023-11-14T22:13:20.020000000Z","misses":6,"other_role":"new-role","role":"old-role","user_agent":"aws-sdk-rust/1.3.0 api/imds/1.3.0 os/linux lang/rust/1.80"},
//!   "remedy": {"commands":[],"text":"Restart the client so that it reads the new role name. Update its SDK to a version that reads the name at each refresh. Don't attach a role: the instance has one."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A proxy that gives pods their own roles (kube2iam, kiam) and answers 404 for a role that it doesn't allow.
//!
//! ## Options
//!
//! `[detectors.stale-role-name]`
//!
//! - `misses` (3): answers 404 in a row.
//!
//! ## References
//!
//! - <https://github.com/awslabs/aws-sdk-rust/issues/384>, <https://github.com/aws/aws-sdk-kotlin/issues/492>
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-metadata-security-credentials.html>

use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::remedy::{self, Sdk};
use super::table::{bounded, entry};
use super::{Client, Context, Details, Detector, Exchanges, Limits, Observation, Path, Sighting, Sightings, Who};
use crate::imds::role_of;
use crate::record::{Code, SECOND, Severity, Time};

/// Names of roles that clients ask for.
const MAX_ROLES: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub misses: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { misses: 3 }
    }
}

/// One name that one client asks for.
#[derive(Default)]
struct Asked {
    last_200: Option<Time>,
    /// Since then.
    missing: Option<Missing>,
}

struct Missing {
    path: Arc<Path>,
    who: Who,
    first: Time,
    last: Time,
    misses: u64,
    /// Not reported yet, and when the first of them was.
    pending: u64,
    pending_from: Time,
}

pub(super) struct StaleRoleName {
    config: Config,
    roles: LruCache<(u64, u64), Asked>,
    evicted: u64,
    pending: bool,
}

pub(super) fn new(config: &Config, limits: &Limits) -> StaleRoleName {
    StaleRoleName {
        config: config.clone(),
        roles: bounded(limits.paths(MAX_ROLES)),
        evicted: 0,
        pending: false,
    }
}

impl Detector for StaleRoleName {
    fn code(&self) -> Code {
        Code::StaleRoleName
    }

    fn quiet_ns(&self) -> u64 {
        3600 * SECOND
    }

    fn wants(&self) -> Exchanges {
        Exchanges::CREDENTIALS
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let (Some(status @ (200 | 404)), Some(_)) = (status(exchange), role_of(context.below)) else {
            return;
        };
        let (id, time) = (context.below_id, exchange.time);
        let asked = entry(&mut self.roles, (client.handle, id), &mut self.evicted, Asked::default);
        if status == 200 {
            asked.last_200 = asked.last_200.max(Some(time));
            if asked.missing.take_if(|missing| missing.first <= time).is_some() {
                sightings.clear(&client.key, time);
            }
            return;
        }
        if asked.last_200.is_some_and(|answered| answered >= time) {
            return;
        }
        let missing = asked.missing.get_or_insert_with(|| Missing {
            path: context.shared_path.clone(),
            who: context.who(),
            first: time,
            last: time,
            misses: 0,
            pending: 0,
            pending_from: time,
        });
        missing.first = missing.first.min(time);
        missing.last = missing.last.max(time);
        missing.misses += 1;
        if missing.pending == 0 {
            missing.pending_from = time;
        }
        missing.pending_from = missing.pending_from.min(time);
        missing.pending += 1;
        self.pending = true;
    }

    fn tick(&mut self, context: &Context<'_>, _: bool, sightings: &mut Sightings<'_>) {
        if !std::mem::take(&mut self.pending) {
            return;
        }
        for ((handle, _), Asked { last_200, missing }) in &mut self.roles {
            let (Some(missing), Some(client)) = (missing, context.knowledge.client(*handle)) else {
                continue;
            };
            if missing.pending == 0 {
                continue;
            }
            // Undecided cases are checked again.
            self.pending = true;
            let role = role_of(missing.path.below()).unwrap_or_default();
            let Some(other) = context.knowledge.other_role(client, role, *last_200, missing.first) else {
                continue;
            };
            if missing.misses < self.config.misses.max(1) {
                continue;
            }
            let sighting = Sighting {
                key: &client.key,
                severity: Severity::High,
                time: missing.last,
                count: missing.pending,
                news: false,
            };
            missing.pending = 0;
            let missing = &*missing;
            sightings
                .since(missing.pending_from)
                .report(sighting, || missing.details(*last_200, other.name, client));
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Missing {
    fn details(&self, last_200: Option<Time>, other: Option<&str>, client: &Client) -> Details {
        let subject = self.who.subject();
        let role = role_of(self.path.below()).unwrap_or_default();
        let agent = client.user_agent.as_deref();
        let had = last_200.is_some();
        let known = match other {
            Some(other) => format!("IMDS has another role ({other})"),
            None => "IMDS lists another role".to_owned(),
        };
        Details {
            summary: if had {
                format!(
                    "{} requests role {role}, which the instance no longer has, while {known}",
                    subject.name
                )
            } else {
                format!(
                    "{} requests role {role}, which the instance doesn't have, while {known}",
                    subject.name
                )
            },
            evidence: evidence! {
                "role": role,
                "other_role": other,
                "had_credentials": had,
                "last_200": last_200,
                "first_404": self.first,
                "misses": self.misses,
                "user_agent": agent,
                "client": Sdk::of(agent).name(),
            },
            remedy: if had {
                remedy::text(
                    "Restart the client so that it reads the new role name. Update its SDK to a version that reads the name at each refresh. Don't attach a role: the instance has one.",
                )
            } else {
                remedy::text(format!(
                    "Correct the role name in the client's configuration, or read the name from /latest/meta-data/iam/security-credentials/. If a metadata proxy for pods (kube2iam, kiam) answers, check whether it allows {role} for this client.",
                ))
            },
            subject,
        }
    }
}
