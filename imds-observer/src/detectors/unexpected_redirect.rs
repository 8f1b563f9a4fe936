//! IMDS, or another server that answers instead, redirects a request (3xx), and the client doesn't follow.
//!
//! ## Detects
//!
//! A client's metadata requests are answered with 3xx (other than 304) several times (`redirects`), and no 2xx for the same
//! path follows within `hold_s` seconds. IMDS redirects a directory path without a trailing slash to the path with one; clients that
//! follow are not reported. `token-request-refused` reports a redirected token request.
//!
//! ## Why it matters
//!
//! Most SDKs don't follow redirects of metadata requests, so the client gets no data although every request is answered.
//! A redirect to another address indicates a gateway, a login page or an IMDS mock.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:14:50.010300000Z",
//!   "host": "node-1",
//!   "code": "unexpected-redirect",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.010000000Z",
//!   "last_seen": "2023-11-14T22:14:50.010000000Z",
//!   "count": 4,
//!   "summary": "python3.11 app.py (app.service, pid 4242) is redirected (301) for /latest/meta-data/iam/security-credentials and doesn't follow",
//!   "evidence": {"answered_by_imds":null,"path":"/latest/meta-data/iam/security-credentials","redirects":4,"server":null,"status":301,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":[],"text":"Request the path with a trailing slash if it is a directory. If that is redirected too, something answers instead of IMDS: curl -si shows Location and Server."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! A client that follows the redirect to an address that is not observed.
//!
//! ## Options
//!
//! `[detectors.unexpected-redirect]`
//!
//! - `redirects` (2): redirects in a row that are not followed.
//! - `hold_s` (5): seconds within which the client may follow.
//!
//! ## References
//!
//! - <https://github.com/awslabs/aws-sdk-kotlin/issues/1303>, <https://github.com/uswitch/kiam/issues/116>

use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{is_probe, status};
use super::remedy;
use super::table::bounded;
use super::{Client, Context, Details, Detector, Limits, Observation, Sighting, Sightings, Who};
use crate::record::{Code, Exchange, ImdsVersion, Of, SECOND, Severity, Time};

/// Clients that are remembered, with the process that was seen last.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Redirects further apart than this are no row.
const ROW_NS: u64 = 3600 * SECOND;
/// How IMDS names itself in `Server`.
const IMDS: &str = "EC2ws";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub redirects: u64,
    pub hold_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            redirects: 2,
            hold_s: 5,
        }
    }
}

/// Redirects of one client that led to nothing so far.
struct Redirected {
    path_id: u64,
    status: u16,
    path: Box<str>,
    server: Option<Box<str>>,
    who: Who,
    all: u64,
    pending: u64,
    /// When the newest was observed.
    held: Time,
    pending_from: Time,
    last: Time,
}

pub(super) struct UnexpectedRedirect {
    config: Config,
    clients: LruCache<u64, Redirected>,
    pending: usize,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> UnexpectedRedirect {
    UnexpectedRedirect {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        pending: 0,
        evicted: 0,
    }
}

impl Detector for UnexpectedRedirect {
    fn code(&self) -> Code {
        Code::UnexpectedRedirect
    }

    fn quiet_ns(&self) -> u64 {
        2 * ROW_NS
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let Some(status) = status(exchange) else { return };
        if matches!(status, 200..=299) {
            if !self.clients.is_empty() {
                self.answered(exchange.time, context, client, sightings);
            }
            return;
        }
        let metadata = matches!(exchange.request.imds_version, Some(ImdsVersion::V1 | ImdsVersion::V2));
        if matches!(status, 300..=303 | 305..=399) && metadata && !is_probe(exchange) {
            self.redirected(status, exchange, context, client);
        }
    }

    fn tick(&mut self, context: &Context<'_>, last: bool, sightings: &mut Sightings<'_>) {
        if self.pending == 0 {
            return;
        }
        let hold_ns = self.config.hold_s.saturating_mul(SECOND);
        for (handle, row) in &mut self.clients {
            let Some(client) = context.knowledge.client(*handle) else {
                continue;
            };
            let due = last || context.now.since(row.held) >= hold_ns || row.all > self.config.redirects;
            if row.pending == 0 || !due || row.all < self.config.redirects.max(1) {
                continue;
            }
            let sighting = Sighting {
                key: &client.key,
                severity: Severity::Warning,
                time: row.last,
                count: row.pending,
                news: false,
            };
            row.pending = 0;
            self.pending -= 1;
            let row = &*row;
            sightings
                .since(row.pending_from)
                .report(sighting, || row.details(client));
        }
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl UnexpectedRedirect {
    /// An answer for the path that was redirected: the client has followed, or the redirect is gone.
    fn answered(&mut self, time: Time, context: &Context<'_>, client: &Client, sightings: &mut Sightings<'_>) {
        let followed = |row: &Redirected| row.path_id == context.below_id && time >= row.last;
        if self.clients.peek(&client.handle).is_some_and(followed)
            && let Some(row) = self.clients.pop(&client.handle)
        {
            self.pending -= usize::from(row.pending > 0);
            sightings.clear(&client.key, time);
        }
    }

    fn redirected(&mut self, status: u16, exchange: &Of<'_, Exchange>, context: &Context<'_>, client: &Client) {
        let response = exchange.response.as_ref();
        let mut row = Redirected {
            path_id: context.below_id,
            status,
            path: exchange.request.path.as_deref().unwrap_or_default().into(),
            server: response.and_then(|response| response.server.as_deref()).map(Into::into),
            who: context.who(),
            all: 1,
            pending: 1,
            held: context.now,
            pending_from: exchange.time,
            last: exchange.time,
        };
        if let Some(before) = self.clients.pop(&client.handle) {
            self.pending -= usize::from(before.pending > 0);
            if row.last.since(before.last) <= ROW_NS {
                row.all += before.all;
                row.pending += before.pending;
                if before.pending > 0 {
                    row.pending_from = before.pending_from.min(row.pending_from);
                }
                row.last = row.last.max(before.last);
            }
        }
        self.pending += 1;
        if let Some((_, gone)) = self.clients.push(client.handle, row) {
            self.evicted += 1;
            self.pending -= usize::from(gone.pending > 0);
        }
    }
}

impl Redirected {
    fn details(&self, client: &Client) -> Details {
        let subject = self.who.subject();
        let (status, path) = (self.status, &self.path);
        let by_imds = self.server.as_deref().map(|server| server.contains(IMDS));
        Details {
            summary: format!(
                "{} is redirected ({status}) for {path} and doesn't follow",
                subject.name
            ),
            evidence: evidence! {
                "status": status,
                "path": path,
                "redirects": self.all,
                "server": self.server,
                "answered_by_imds": by_imds,
                "user_agent": client.user_agent,
            },
            remedy: remedy::text(if by_imds == Some(true) {
                "Request the path with a trailing slash: IMDS redirects directories without one, and this client doesn't follow redirects."
            } else if by_imds == Some(false) || path.ends_with('/') {
                "IMDS doesn't redirect this path. Find out what answers instead (curl -si shows Location and Server), and let the client reach IMDS directly."
            } else {
                "Request the path with a trailing slash if it is a directory. If that is redirected too, something answers instead of IMDS: curl -si shows Location and Server."
            }),
            subject,
        }
    }
}
