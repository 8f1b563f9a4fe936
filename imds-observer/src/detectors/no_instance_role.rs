//! The instance has no role, and a client keeps looking for one.
//!
//! ## Detects
//!
//! A client gets 404 for the listing `iam/security-credentials/` several times (`misses`), over at least `spread_s` seconds,
//! never got the listing before, and no other client on the host gets it. One finding for the host (`info`), regardless of the number of
//! clients. If other clients get the listing, `not-found` reports the 404. If this client got it before,
//! `path-disappeared` does.
//!
//! ## Why it matters
//!
//! It explains why a client has no credentials. Often this is intended, and costs only requests.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:38:20.010300000Z",
//!   "host": "node-1",
//!   "code": "no-instance-role",
//!   "severity": "info",
//!   "state": "update",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.010000000Z",
//!   "last_seen": "2023-11-14T22:38:20.010000000Z",
//!   "count": 6,
//!   "summary": "the instance has no role, and python3.11 app.py (app.service, pid 4242) keeps looking for one",
//!   "evidence": {"clients":1,"last_client":"python3.11 app.py (app.service, pid 4242)","misses":6,"path":"/latest/meta-data/iam/security-credentials/","since":"2023-11-14T22:13:20.010000000Z","user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["aws ec2 describe-iam-instance-profile-associations --filters Name=instance-id,Values=i-0123456789abcdef0"],"text":"Attach an instance profile if the client needs the instance's credentials. If it needs none or has other credentials, set AWS_EC2_METADATA_DISABLED=true to stop the requests of its SDK."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A role that is attached after start-up. The finding is resolved once the listing is answered.
//!
//! ## Options
//!
//! `[detectors.no-instance-role]`
//!
//! - `misses` (3): answers 404 to one client.
//! - `spread_s` (60): shortest time from the first to the last of them.
//!
//! ## References
//!
//! - <https://github.com/aws/amazon-ssm-agent/issues/292>
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/iam-roles-for-amazon-ec2.html>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{HOST, status};
use super::remedy;
use super::table::{bounded, entry};
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Sighting, Sightings};
use crate::imds::is_role_listing;
use crate::record::{Code, Remedy, SECOND, Severity, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Longer than the longest pause between two looks that count together.
const ROW_NS: u64 = 4 * 3600 * SECOND;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub misses: u64,
    pub spread_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            misses: 3,
            spread_s: 60,
        }
    }
}

#[derive(Clone, Copy)]
struct Looks {
    first: Time,
    last: Time,
    misses: u64,
    /// It had the listing: that it is gone is not this detector's.
    had: bool,
}

pub(super) struct NoInstanceRole {
    config: Config,
    clients: LruCache<u64, Looks>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> NoInstanceRole {
    NoInstanceRole {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

impl Detector for NoInstanceRole {
    fn code(&self) -> Code {
        Code::NoInstanceRole
    }

    fn quiet_ns(&self) -> u64 {
        ROW_NS
    }

    fn wants(&self) -> Exchanges {
        Exchanges::CREDENTIALS
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let (Some(status @ (200 | 404)), true) = (status(exchange), is_role_listing(context.below)) else {
            return;
        };
        let time = exchange.time;
        if context.booting(time) {
            return;
        }
        let looks = entry(&mut self.clients, client.handle, &mut self.evicted, || Looks {
            first: time,
            last: time,
            misses: 0,
            had: false,
        });
        if status == 200 {
            looks.had = true;
            sightings.clear(HOST, time);
            return;
        }
        if time.since(looks.last) > ROW_NS {
            looks.first = time;
            looks.misses = 0;
        }
        looks.first = looks.first.min(time);
        looks.last = looks.last.max(time);
        looks.misses += 1;
        let looks = *looks;
        let listed = context
            .knowledge
            .role_listed
            .is_some_and(|listed| listed >= looks.first);
        if looks.had
            || listed
            || looks.misses < self.config.misses.max(1)
            || time.since(looks.first) < self.config.spread_s.saturating_mul(SECOND)
        {
            return;
        }
        let sighting = Sighting {
            key: HOST,
            severity: Severity::Info,
            time,
            count: sightings.counted(HOST, looks.misses, looks.first),
            news: false,
        };
        let clients = self
            .clients
            .iter()
            .filter(|(_, looks)| looks.misses > 0 && !looks.had)
            .count();
        sightings.report(sighting, || Details {
            subject: context.host_subject(),
            summary: format!(
                "the instance has no role, and {} keeps looking for one",
                context.client_subject().name
            ),
            evidence: evidence! {
                "path": exchange.request.path,
                "misses": looks.misses,
                "since": looks.first,
                "clients": clients,
                "last_client": context.client_subject().name,
                "user_agent": client.user_agent,
            },
            remedy: Remedy {
                text: "Attach an instance profile if the client needs the instance's credentials. If it needs none or has other credentials, set AWS_EC2_METADATA_DISABLED=true to stop the requests of its SDK."
                    .to_owned(),
                commands: vec![format!(
                    "aws ec2 describe-iam-instance-profile-associations --filters Name=instance-id,Values={}",
                    remedy::instance_id(context.host)
                )],
            },
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
