//! The response to a credentials request has status 200 but is too short to hold credentials.
//!
//! ## Detects
//!
//! A client gets several responses in a row (`answers`), over at least `spread_s` seconds, to requests for
//! `iam/security-credentials/ROLE` that have status 200 and fewer than `max_bytes` bytes (head and body together). Real credentials take about 1,500 bytes: the session token
//! alone is several hundred. A shorter response is a JSON error whose `Code` is not `Success`. The length comes from the
//! TCP stream or from the response head; no byte of the body is read. A single short response is not reported, because it
//! may be truncated.
//!
//! Severity: `high` if IMDS itself answers (captures show the `Server` header) or the client had real credentials for the
//! role before, else `warning`. If IMDS itself answers, responses over `imds_spread_s` seconds are enough for a `warning`: a
//! short response of IMDS is an error of EC2, not the made-up credentials of a mock. Shorter sequences are not reported,
//! because a change in IAM takes seconds to propagate.
//!
//! ## Why it matters
//!
//! The instance has a role, and EC2 can't assume it: the trust policy doesn't allow EC2, or the role was deleted and
//! re-created. The client has no credentials and keeps requesting them. Neither its cache nor its tokens are the cause.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:15:50.020300000Z",
//!   "host": "node-1",
//!   "code": "credentials-unusable",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.020000000Z",
//!   "last_seen": "2023-11-14T22:15:50.020000000Z",
//!   "count": 6,
//!   "summary": "the credentials response for role app-role to python3.11 app.py (app.service, pid 4242) has status 200 but only 498 bytes, too few for credentials: EC2 can't assume the role",
//!   "evidence": {"answered_by_imds":null,"answers":6,"had_credentials":null,"length":498,"role":"app-role","server":null,"shortest_for_credentials":700,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":["aws iam get-role --role-name ROLE --query Role.AssumeRolePolicyDocument","TOKEN=$(curl -sX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60'); curl -s -H \"X-aws-ec2-metadata-token: $TOKEN\" http://169.254.169.254/latest/meta-data/iam/security-credentials/ROLE | grep '\"Code\"'"],"text":"Read the Code field in the response. If it is AssumeRoleUnauthorizedAccess, allow sts:AssumeRole for ec2.amazonaws.com in the role's trust policy. If the policy already allows it, the role was deleted and re-created: remove it from the instance profile and add it again. If either was changed within the last minute, wait until the change has propagated. Changing the client doesn't help."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! IMDS mocks return made-up credentials that may be shorter. They are not reported while each process reads them once or
//! in a burst. Otherwise set `max_bytes` to 0. A mock that sends IMDS's own `Server` header counts as IMDS.
//!
//! ## Options
//!
//! `[detectors.credentials-unusable]`
//!
//! - `answers` (3): short responses in a row, less than an hour apart.
//! - `spread_s` (45): shortest time from the first to the last of them.
//! - `imds_spread_s` (15): the same where IMDS itself answers.
//! - `max_bytes` (700): responses with fewer bytes (head and body) can't hold credentials.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_iam-ec2.html> (AssumeRoleUnauthorizedAccess)
//! - <https://github.com/aws/aws-cli/issues/2060>, <https://github.com/boto/botocore/issues/1519>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{CREDENTIALS_BYTES, SHORT_ANSWERS, SHORT_ROW_NS, SHORT_SPREAD_S, status};
use super::proxied_request::IMDS_SERVER;
use super::table::{bounded, entry};
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Sighting, Sightings};
use crate::imds::role_of;
use crate::record::{Code, Remedy, SECOND, Severity, Time};

/// Roles of clients that are followed.
const MAX_ROLES: NonZeroUsize = NonZeroUsize::new(2048).unwrap();

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub answers: u64,
    pub spread_s: u64,
    pub imds_spread_s: u64,
    pub max_bytes: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            answers: SHORT_ANSWERS,
            spread_s: SHORT_SPREAD_S,
            imds_spread_s: 15,
            max_bytes: CREDENTIALS_BYTES,
        }
    }
}

/// Answers to one client about one role.
#[derive(Clone, Copy)]
struct Row {
    /// Short ones since the last that was long enough.
    short: u64,
    first: Time,
    last: Time,
    /// When the client last had credentials.
    good: Option<Time>,
}

pub(super) struct CredentialsUnusable {
    config: Config,
    roles: LruCache<(u64, u64), Row>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> CredentialsUnusable {
    CredentialsUnusable {
        config: config.clone(),
        roles: bounded(limits.clients(MAX_ROLES)),
        evicted: 0,
    }
}

impl Detector for CredentialsUnusable {
    fn code(&self) -> Code {
        Code::CredentialsUnusable
    }

    fn quiet_ns(&self) -> u64 {
        2 * SHORT_ROW_NS
    }

    fn wants(&self) -> Exchanges {
        Exchanges::CREDENTIALS
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let Some(response) = exchange.response.as_ref().filter(|_| status(exchange) == Some(200)) else {
            return;
        };
        let (Some(length), Some(role)) = (response.length, role_of(context.below)) else {
            return;
        };
        if exchange.request.method.as_deref() != Some("GET") {
            return;
        }
        let time = exchange.time;
        let row = entry(
            &mut self.roles,
            (client.handle, context.below_id),
            &mut self.evicted,
            || Row {
                short: 0,
                first: time,
                last: time,
                good: None,
            },
        );
        if length >= self.config.max_bytes {
            row.short = 0;
            row.good = row.good.max(Some(time));
            sightings.clear(&client.key, time);
            return;
        }
        if row.short == 0 || time.since(row.last) > SHORT_ROW_NS {
            row.short = 0;
            row.first = time;
        }
        row.short += 1;
        row.last = row.last.max(time);
        let row = *row;
        let by_imds = response.server.as_deref().map(|server| server.contains(IMDS_SERVER));
        let spread_s = row.last.since(row.first) / SECOND;
        let brief = spread_s < self.config.spread_s;
        let by_imds_for_long = by_imds == Some(true) && spread_s >= self.config.imds_spread_s;
        if row.short < self.config.answers.max(1) || brief && !by_imds_for_long {
            return;
        }
        let sighting = Sighting {
            key: &client.key,
            severity: if !brief && (by_imds == Some(true) || row.good.is_some()) {
                Severity::High
            } else {
                Severity::Warning
            },
            time,
            count: sightings.counted(&client.key, row.short, row.first),
            news: false,
        };
        sightings.report(sighting, || {
            let subject = context.client_subject();
            Details {
                summary: format!(
                    "the credentials response for role {role} to {} has status 200 but only {length} bytes, too few for credentials: EC2 can't assume the role",
                    subject.name
                ),
                evidence: evidence! {
                    "role": role,
                    "answers": row.short,
                    "length": length,
                    "shortest_for_credentials": self.config.max_bytes,
                    "had_credentials": row.good,
                    "server": response.server,
                    "answered_by_imds": by_imds,
                    "user_agent": client.user_agent,
                },
                remedy: Remedy {
                    text: "Read the Code field in the response. If it is AssumeRoleUnauthorizedAccess, allow sts:AssumeRole for ec2.amazonaws.com in the role's trust policy. If the policy already allows it, the role was deleted and re-created: remove it from the instance profile and add it again. If either was changed within the last minute, wait until the change has propagated. Changing the client doesn't help."
                        .to_owned(),
                    commands: vec![
                        "aws iam get-role --role-name ROLE --query Role.AssumeRolePolicyDocument".to_owned(),
                        "TOKEN=$(curl -sX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: \
                         60'); curl -s -H \"X-aws-ec2-metadata-token: $TOKEN\" \
                         http://169.254.169.254/latest/meta-data/iam/security-credentials/ROLE | grep '\"Code\"'"
                            .to_owned(),
                    ],
                },
                subject,
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}
