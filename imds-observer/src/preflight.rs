//! Whether a change of the instance's metadata options would break anybody, judged by what callers were seen to do.
//!
//! Says *safe* only where it saw everything: with loss, blind spots, unknown callers or too short a time it can't say. Who would break is told in any case.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::filter::Kinds;
use crate::hosts::RecordedHosts;
use crate::record::workload::workload;
use crate::record::{Dialect, Exchange, ExchangeOutcome, ImdsVersion, Kind, LossCounts, Record, Summary, Time};
use crate::report::history::hops;
use crate::report::text::{self, counted};
use crate::sinks::Sink;

/// Capabilities that a verdict names one by one.
const MAX_MISSING: usize = 32;

/// What is going to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `--http-tokens required`
    TokensRequired,
    /// `--http-put-response-hop-limit N`
    HopLimit(u8),
    /// `--http-endpoint disabled`
    EndpointDisabled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Safe,
    NotSafe,
    CannotSay,
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::NotSafe => "not-safe",
            Self::CannotSay => "cannot-say",
        }
    }
}

/// A workload that would break.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Break {
    pub workload: String,
    /// Requests that would have failed.
    pub count: u64,
    pub last_seen: Time,
    pub why: String,
}

/// The answer, with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    /// Most requests first.
    pub breaks: Vec<Break>,
}

/// A sink that judges; its other end is held by whoever asks for the verdict.
#[derive(Clone, Debug)]
pub struct Preflight {
    changes: Arc<[Change]>,
    seen: Arc<Mutex<Seen>>,
}

/// A workload that would break, while it is added up.
#[derive(Debug, Default)]
struct Broken {
    count: u64,
    last_seen: Time,
    /// By change, as last seen.
    why: [Option<String>; 3],
}

#[derive(Debug, Default)]
struct Seen {
    /// Workloads that are told apart; beyond, the verdict says that it can't.
    max_workloads: usize,
    breaks: BTreeMap<String, Broken>,
    exchanges: u64,
    /// Requests of which it can't be told whether they would have failed.
    undecided: u64,
    unattributed: u64,
    /// Requests of workloads beyond the bound.
    overflow: u64,
    missing: Vec<String>,
    loss: LossCounts,
    summary: Option<Summary>,
}

impl Preflight {
    /// All of these changes at once, for as many workloads.
    pub fn new(changes: Vec<Change>, max_workloads: usize) -> Self {
        let seen = Seen {
            max_workloads,
            ..Seen::default()
        };
        Self {
            changes: changes.into(),
            seen: Arc::new(Mutex::new(seen)),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `at_least`: shorter observation, in nanoseconds, is too short. `unread`: lines of the input that could not be read.
    pub fn judge(&self, recorded: Option<&RecordedHosts>, at_least: u64, unread: u64) -> Judgement {
        let seen = self.seen();
        let mut breaks: Vec<Break> = seen
            .breaks
            .iter()
            .map(|(workload, broken)| Break {
                workload: workload.clone(),
                count: broken.count,
                last_seen: broken.last_seen,
                why: broken.why.iter().flatten().cloned().collect::<Vec<_>>().join("; "),
            })
            .collect();
        breaks.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.workload.cmp(&b.workload)));
        let doubts = seen.doubts(recorded, at_least, unread);
        let mut reasons = Vec::new();
        let verdict = if !breaks.is_empty() {
            let requests: u64 = breaks.iter().map(|broken| broken.count).sum();
            reasons.push(format!(
                "{} would break, by {}",
                counted(breaks.len() as u64, "workload"),
                counted(requests, "request")
            ));
            Verdict::NotSafe
        } else if doubts.is_empty() {
            let period = seen.summary.as_ref().map_or(0, |summary| summary.interval_ns);
            let told = format!(
                "none of {} in {} would have failed",
                counted(seen.exchanges, "request"),
                text::span(period)
            );
            reasons.push(told);
            Verdict::Safe
        } else {
            Verdict::CannotSay
        };
        reasons.extend(doubts);
        Judgement {
            verdict,
            reasons,
            breaks,
        }
    }
}

impl Seen {
    fn doubts(&self, recorded: Option<&RecordedHosts>, at_least: u64, unread: u64) -> Vec<String> {
        let mut doubts = Vec::new();
        let period = self.summary.as_ref().map_or(0, |summary| summary.interval_ns);
        if self.exchanges == 0 {
            doubts.push("no request was seen".to_owned());
        }
        if period < at_least {
            let (saw, wanted) = (text::span(period), text::span(at_least));
            doubts.push(format!(
                "only {saw} were observed, not {wanted} (observe longer, or say --min-duration)"
            ));
        }
        if let Some((host, watched)) = recorded.and_then(RecordedHosts::shortest)
            && watched < at_least
            && period >= at_least
        {
            let (saw, wanted) = (text::span(watched), text::span(at_least));
            doubts.push(format!("{host} was observed for {saw} only, not {wanted}"));
        }
        let unattributed = LossCounts {
            unattributed: 0,
            unknown_containers: 0,
            ..self.loss
        };
        let lost = text::loss(&unattributed);
        if !lost.is_empty() {
            doubts.push(lost.trim_end().to_owned());
        }
        let counts = [
            (self.unattributed, "request", "of unknown processes"),
            (self.undecided, "request", "whose head or TTL was not seen whole"),
            (self.overflow, "request", "of workloads beyond the bound"),
            (unread, "line", "of the input could not be read"),
        ];
        doubts.extend(
            counts
                .iter()
                .filter(|(count, ..)| *count > 0)
                .map(|(count, one, what)| format!("{} {what}", counted(*count, one))),
        );
        let restarts = recorded.map_or(0, RecordedHosts::restarts_seen);
        if restarts > 0 {
            doubts.push(format!(
                "the observer restarted {}: what happened in between was not seen",
                counted(restarts, "time")
            ));
        }
        let missing = self
            .missing
            .iter()
            .map(String::as_str)
            .chain(recorded.into_iter().flat_map(RecordedHosts::missing));
        doubts.extend(missing.map(|what| format!("blind spot: {what}")));
        doubts
    }

    fn exchange(&mut self, exchange: &Exchange, changes: &[Change]) {
        let request = &exchange.request;
        if !matches!(request.dialect, Dialect::Aws | Dialect::Unknown)
            || request.imds_version == Some(ImdsVersion::Other)
        {
            return;
        }
        self.exchanges += 1;
        let name = workload(exchange.process.as_deref(), exchange.container.as_deref());
        self.unattributed += u64::from(name.is_none());
        let Some(version) = request.imds_version else {
            self.undecided += 1;
            return;
        };
        // What failed before can't be broken by the change.
        let works = exchange.outcome == ExchangeOutcome::Answered
            && exchange
                .response
                .as_ref()
                .and_then(|response| response.status)
                .is_some_and(|status| status < 400 || status == 404);
        if !works {
            return;
        }
        let reads_nothing = matches!(request.method.as_deref(), Some("HEAD" | "OPTIONS"));
        let mut why = [None, None, None];
        let mut undecided = false;
        for change in changes {
            match change {
                // A probe reads nothing, and survives a 401.
                Change::TokensRequired if version == ImdsVersion::V1 && !reads_nothing => {
                    why[0] = Some("asks without a token and is answered".to_owned());
                }
                Change::HopLimit(limit) if version == ImdsVersion::Token => match request.wire_ttl().map(hops) {
                    Some(hops) if *limit <= hops => {
                        why[1] = Some(format!(
                            "its token responses cross {} and need a hop limit of {}",
                            counted(u64::from(hops), "hop"),
                            hops.saturating_add(1)
                        ));
                    }
                    Some(_) => {}
                    None => undecided = true,
                },
                Change::EndpointDisabled => why[2] = Some("asks IMDS and is answered".to_owned()),
                Change::TokensRequired | Change::HopLimit(_) => {}
            }
        }
        self.undecided += u64::from(undecided);
        if why.iter().all(Option::is_none) {
            return;
        }
        let local = exchange
            .connection
            .local
            .as_deref()
            .and_then(|local| local.rsplit_once(':'));
        let name = name.unwrap_or_else(|| {
            format!(
                "unknown process at {}",
                local.map_or("an unknown address", |(ip, _)| ip)
            )
        });
        if !self.breaks.contains_key(&name) && self.breaks.len() >= self.max_workloads {
            self.overflow += 1;
            return;
        }
        let broken = self.breaks.entry(name).or_default();
        broken.count += 1;
        broken.last_seen = broken.last_seen.max(exchange.time);
        for (known, new) in broken.why.iter_mut().zip(why) {
            if new.is_some() {
                *known = new;
            }
        }
    }
}

impl Sink for Preflight {
    fn kinds(&self) -> Kinds {
        [Kind::Start, Kind::Exchange, Kind::Summary, Kind::Loss]
            .into_iter()
            .collect()
    }

    fn write(&mut self, record: &Arc<Record>) {
        let changes = self.changes.clone();
        let mut seen = self.seen();
        match record.as_ref() {
            Record::Start(start) => {
                let missing = start.missing.iter().take(MAX_MISSING);
                seen.missing = missing
                    .map(|missing| format!("{}: {}", missing.capability, missing.blinds))
                    .collect();
            }
            Record::Exchange(exchange) => seen.exchange(exchange, &changes),
            Record::Loss(loss) => seen.loss = loss.counts(),
            Record::Summary(summary) if summary.total => seen.summary = Some(summary.clone()),
            _ => {}
        }
    }
}
