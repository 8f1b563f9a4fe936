//! IMDS answers with 429 or a server error.
//!
//! ## Detects
//!
//! Within `window_s` seconds, IMDS answers all clients together with 429 or 5xx at least `errors` times (`warning`), or at
//! least `high_errors` times (`high`). One finding for the host, which names the client with most of the recent errors.
//!
//! ## Why it matters
//!
//! 429 and 503 mean that IMDS throttles the instance: one client's requests make those of all clients on the host fail.
//! 500 and 502 to 504 can also come from a proxy that answers instead of IMDS.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:13:37.000300000Z",
//!   "host": "node-1",
//!   "code": "server-errors",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"host","name":"host","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:21.000000000Z",
//!   "last_seen": "2023-11-14T22:13:37.000000000Z",
//!   "count": 5,
//!   "summary": "IMDS throttles this host: 5 responses with status 429 or 5xx within 60 s",
//!   "evidence": {"by_status":{"503":5},"errors_in_window":5,"last_path":"/latest/meta-data/instance-id","most_met_by":"python3.11 app.py (app.service, pid 4242)"},
//!   "remedy": {"commands":[],"text":"Reduce the request rate of the busiest client (see tight-polling, token-not-reused and packet-quota), and retry with exponential backoff and jitter."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! None known. An occasional 5xx is normal and stays below the limit.
//!
//! ## Options
//!
//! `[detectors.server-errors]`
//!
//! - `errors` (3): errors within the window for `warning`.
//! - `high_errors` (10): errors within the window for `high`.
//! - `window_s` (60): length of the window, at most 120.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (query throttling, HTTP status 503)

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::status;
use super::remedy;
use super::window::Bins;
use super::{Context, Details, Detector, Exchanges, Limits, Observation, Scope, Sighting, Sightings};
use crate::record::{Code, Dialect, SECOND, Severity, Time};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub errors: u64,
    pub high_errors: u64,
    pub window_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            errors: 3,
            high_errors: 10,
            window_s: 60,
        }
    }
}

pub(super) struct ServerErrors {
    config: Config,
    recent: Bins<120, SECOND>,
    /// Answers since the finding opened, by status: at most 101.
    by_status: BTreeMap<String, u64>,
    /// When the first of them was.
    from: Time,
    /// Client that a majority of the errors met, if there is one (Boyer and Moore's vote).
    most: Option<(u64, String)>,
    votes: u64,
}

pub(super) fn new(config: &Config, _: &Limits) -> ServerErrors {
    ServerErrors {
        config: config.clone(),
        recent: Bins::new(),
        by_status: BTreeMap::new(),
        from: Time(0),
        most: None,
        votes: 0,
    }
}

impl Detector for ServerErrors {
    fn code(&self) -> Code {
        Code::ServerErrors
    }

    fn scope(&self) -> Scope {
        Scope::Clouds
    }

    fn wants(&self) -> Exchanges {
        Exchanges::FAILED
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let Observation::Exchange(exchange) = observation else {
            return;
        };
        let Some(status @ (429 | 500..=599)) = status(exchange) else {
            return;
        };
        let open = sightings.any_open();
        self.recent.add(exchange.time, 1);
        let (errors, _) = self.recent.newest(self.config.window_s as usize, usize::MAX);
        if !open && errors <= 1 {
            self.by_status.clear();
            self.from = exchange.time;
            self.most = None;
            self.votes = 0;
        }
        *self.by_status.entry(status.to_string()).or_default() += 1;
        if let Some(client) = context.client() {
            match &self.most {
                Some((most, _)) if *most == client.handle => self.votes += 1,
                _ if self.votes == 0 => {
                    self.most = Some((client.handle, context.client_subject().name));
                    self.votes = 1;
                }
                _ => self.votes -= 1,
            }
        }
        if errors < self.config.errors.max(1) {
            return;
        }
        let sighting = Sighting {
            key: "host",
            severity: if errors >= self.config.high_errors {
                Severity::High
            } else {
                Severity::Warning
            },
            time: exchange.time,
            count: if open { 1 } else { self.by_status.values().sum() },
            news: false,
        };
        let throttled = self.by_status.contains_key("429") || self.by_status.contains_key("503");
        let most = self.most.as_ref().map(|(_, name)| name);
        let by_status = &self.by_status;
        let service = context.protocol.service;
        sightings.since(self.from).report(sighting, || Details {
            subject: context.host_subject(),
            summary: if throttled {
                format!("{service} throttles this host: {errors} responses with status 429 or 5xx within {} s", self.config.window_s)
            } else {
                format!("{service} returned {errors} server errors within {} s", self.config.window_s)
            },
            evidence: evidence! {
                "errors_in_window": errors,
                "by_status": by_status,
                "most_met_by": most,
                "last_path": exchange.request.path,
            },
            remedy: remedy::text(if context.protocol.dialect != Dialect::Aws {
                context.protocol.overload
            } else if throttled {
                "Reduce the request rate of the busiest client (see tight-polling, token-not-reused and packet-quota), and retry with exponential backoff and jitter."
            } else {
                "Check whether a proxy answers instead of IMDS (proxied-request). If not, retry with exponential backoff and jitter, and check the instance's status checks."
            }),
        });
    }
}
