//! A client requests a new token for nearly every request instead of reusing one.
//!
//! ## Detects
//!
//! Per client within 10 min: at least `tokens` tokens issued, at most `max_reuse` other requests per token, and a median
//! gap between token requests below half of the requested lifetime. Lost and refused token requests are not counted. If
//! each process requests only one token (a worker pool that starts, or a loop of short-lived commands), the requests must
//! be spread over at least `loop_s`.
//!
//! ## Why it matters
//!
//! Each token costs one more request and connection: about ten packets of the 1024 per second that IMDS, DNS and NTP
//! share. It also doubles the client's latency, and the cost of a lost token response.
//!
//! ## Example record
//!
//! ```json
//! {
//!   "record": "finding",
//!   "schema": 1,
//!   "time": "2023-11-14T22:17:20.010300000Z",
//!   "host": "node-1",
//!   "code": "token-not-reused",
//!   "severity": "warning",
//!   "state": "update",
//!   "subject": {"container":null,"key":"process//system.slice/app.service/python3.11 app.py","name":"python3.11 app.py (app.service, pid 4242)","process":{"ancestors":[{"comm":"systemd","pid":1}],"cgroup":"/system.slice/app.service","cmdline":["python3","/srv/app.py"],"comm":"python3.11","exe":"/usr/bin/python3.11","namespace_pid":null,"netns":4026531840,"pid":4242,"start_time":"2023-11-14T21:13:20.000000000Z","tid":4242,"uid":1000},"workload":"app.service"},
//!   "first_seen": "2023-11-14T22:13:20.000000000Z",
//!   "last_seen": "2023-11-14T22:17:20.000000000Z",
//!   "count": 25,
//!   "summary": "python3.11 app.py (app.service, pid 4242) requests a new token every 10.0 s although each is valid for 21600 s",
//!   "evidence": {"client":"botocore (boto3, AWS CLI)","median_gap_s":10.0,"processes":1,"requests_per_token":0.96,"requests_wasted":24,"token_ttl_s":21600,"tokens":25,"user_agent":"Boto3/1.34.0 md/Botocore#1.34.0 ua/2.0 os/linux#6.12 md/arch#x86_64 lang/python#3.11.2"},
//!   "remedy": {"commands":[],"text":"Create one boto3/botocore Session and reuse it: each new Session loads credentials with a new token. The AWS CLI does so at each start: run it less often, or provide credentials through credential_process."}
//! }
//! ```
//!
//! ## Known false positives
//!
//! The .NET SDK (10 tokens in 10 min), the Go SDK (2) and scripts that request a lifetime of 5 or 60 s stay below the
//! limits. A test suite that starts hundreds of short SDK programs is reported, although it may be harmless.
//!
//! ## Options
//!
//! `[detectors.token-not-reused]`
//!
//! - `tokens` (20): tokens within 10 min; at most 64.
//! - `max_reuse` (2.0): highest number of other requests per token.
//! - `loop_s` (30): shortest time between the first and the last token if each process requests one.
//!
//! ## References
//!
//! - <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> (token lifetime up to 6 hours)

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::knowledge::{status, token_fate};
use super::remedy::{self, Sdk};
use super::table::bounded;
use super::window::Bins;
use super::{Context, Details, Detector, Limits, Observation, Scope, Sighting, Sightings, TokenFate};
use crate::record::{Code, ImdsVersion, SECOND, Severity, Time};

/// Clients that are remembered.
const MAX_CLIENTS: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
const WINDOW_NS: u64 = 600 * SECOND;
/// Token requests of one client that are remembered.
const MAX_TOKENS: usize = 64;
/// Lifetime of a token whose request doesn't state one: what most clients ask for.
const USUAL_TTL_S: u32 = 21_600;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub tokens: usize,
    pub max_reuse: f64,
    pub loop_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tokens: 20,
            max_reuse: 2.0,
            loop_s: 30,
        }
    }
}

struct Track {
    /// When tokens were granted, and to which process; oldest first.
    tokens: VecDeque<(Time, u32)>,
    uses: Bins<10, { 60 * SECOND }>,
    /// Uses that returned nothing.
    failed: Bins<10, { 60 * SECOND }>,
    ttl_s: u32,
    wasted: u64,
}

pub(super) struct TokenNotReused {
    config: Config,
    clients: LruCache<u64, Track>,
    evicted: u64,
}

pub(super) fn new(config: &Config, limits: &Limits) -> TokenNotReused {
    TokenNotReused {
        config: config.clone(),
        clients: bounded(limits.clients(MAX_CLIENTS)),
        evicted: 0,
    }
}

struct Habit {
    tokens: usize,
    uses: u64,
    median_gap_s: f64,
}

impl Detector for TokenNotReused {
    fn code(&self) -> Code {
        Code::TokenNotReused
    }

    fn scope(&self) -> Scope {
        Scope::Tokens
    }

    /// As long as the window, so that a client that slows down a little causes no new finding.
    fn quiet_ns(&self) -> u64 {
        2 * WINDOW_NS
    }

    fn observe(&mut self, observation: &Observation<'_>, context: &Context<'_>, sightings: &mut Sightings<'_>) {
        let (Observation::Exchange(exchange), Some(client)) = (observation, context.client()) else {
            return;
        };
        let token = exchange.request.imds_version == Some(ImdsVersion::Token);
        if context.booting(exchange.time)
            || client.has_unusable_credentials()
            || token && token_fate(exchange) != TokenFate::Granted
        {
            return;
        }
        if !token {
            if let Some(track) = self.clients.get_mut(&client.handle) {
                track.uses.add(exchange.time, 1);
                let gave = matches!(status(exchange), Some(200..=299 | 404));
                track.failed.add(exchange.time, u32::from(!gave));
            }
            return;
        }
        if !self.clients.contains(&client.handle) {
            let track = Track {
                tokens: VecDeque::new(),
                uses: Bins::new(),
                failed: Bins::new(),
                ttl_s: USUAL_TTL_S,
                wasted: 0,
            };
            self.evicted += u64::from(self.clients.push(client.handle, track).is_some());
        }
        let Some(track) = self.clients.get_mut(&client.handle) else {
            return;
        };
        track.ttl_s = exchange.request.token_ttl_s.unwrap_or(USUAL_TTL_S);
        // Nearly always at the end.
        let position = if track.tokens.back().is_none_or(|(last, _)| *last <= exchange.time) {
            track.tokens.len()
        } else {
            track.tokens.partition_point(|(time, _)| *time <= exchange.time)
        };
        track.tokens.insert(
            position,
            (
                exchange.time,
                exchange.process.as_ref().map_or(0, |process| process.pid),
            ),
        );
        while track.tokens.len() > MAX_TOKENS
            || track
                .tokens
                .front()
                .is_some_and(|(time, _)| exchange.time.since(*time) > WINDOW_NS)
        {
            track.tokens.pop_front();
        }
        let Some(habit) = track.habit(&self.config, exchange.time) else {
            return;
        };
        let count = if sightings.is_open(&client.key) {
            1
        } else {
            habit.tokens as u64
        };
        track.wasted = if count == 1 { track.wasted + 1 } else { count - 1 };
        let sighting = Sighting {
            key: &client.key,
            severity: Severity::Warning,
            time: exchange.time,
            count,
            news: false,
        };
        let (ttl_s, wasted) = (track.ttl_s, track.wasted);
        if count > 1
            && let Some((first, _)) = track.tokens.front()
        {
            sightings.since(*first);
        }
        sightings.keep(sighting, || {
            let (who, processes, user_agent) = (context.who(), client.processes, client.user_agent.clone());
            move || {
                let subject = who.subject();
                let sdk = Sdk::of(user_agent.as_deref());
                let reuse = habit.uses as f64 / habit.tokens as f64;
                Details {
                    summary: format!(
                        "{} requests a new token every {:.1} s although each is valid for {ttl_s} s",
                        subject.name, habit.median_gap_s
                    ),
                    evidence: evidence! {
                        "tokens": habit.tokens,
                        "requests_per_token": (reuse * 100.0).round() / 100.0,
                        "median_gap_s": (habit.median_gap_s * 1000.0).round() / 1000.0,
                        "token_ttl_s": ttl_s,
                        "requests_wasted": wasted,
                        "processes": processes,
                        "user_agent": user_agent,
                        "client": sdk.name(),
                    },
                    remedy: remedy::text(sdk.reuse()),
                    subject,
                }
            }
        });
    }

    fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Track {
    /// The bad habit, if it is one.
    fn habit(&mut self, config: &Config, time: Time) -> Option<Habit> {
        let tokens = self.tokens.len();
        if tokens < config.tokens.clamp(2, MAX_TOKENS) {
            return None;
        }
        let (first, last) = (self.tokens.front()?.0, self.tokens.back()?.0);
        // Only what came in the same time as the remembered tokens can be compared with them.
        let minutes = (time.since(first) / (60 * SECOND) + 1).min(10) as usize;
        self.uses.total(time);
        let (uses, _) = self.uses.newest(minutes, usize::MAX);
        if uses as f64 > config.max_reuse * tokens as f64 {
            return None;
        }
        // A client that gets nothing starts again with a token. Another finding reports why it gets nothing.
        self.failed.total(time);
        let (failed, _) = self.failed.newest(minutes, usize::MAX);
        if failed * 2 >= uses && failed > 0 {
            return None;
        }
        let mut gaps: Vec<u64> = (1..tokens)
            .map(|n| self.tokens[n].0.since(self.tokens[n - 1].0))
            .collect();
        let middle = gaps.len() / 2;
        let median_gap_ns = *gaps.select_nth_unstable(middle).1;
        if median_gap_ns >= u64::from(self.ttl_s) * SECOND / 2 {
            return None;
        }
        let mut pids: Vec<u32> = self.tokens.iter().map(|(_, pid)| *pid).collect();
        pids.sort_unstable();
        pids.dedup();
        let one_each = pids.len() * 2 > tokens;
        if one_each && last.since(first) < config.loop_s.saturating_mul(SECOND) {
            return None;
        }
        Some(Habit {
            tokens,
            uses,
            median_gap_s: median_gap_ns as f64 / 1e9,
        })
    }
}
