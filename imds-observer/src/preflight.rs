//! Whether a change of the instance's metadata options would break anybody, judged by what callers were seen to do.
//!
//! The verdict is *safe* only if every [`Condition`] is proven. One that is not proven makes the verdict *unknown*: what is unknown is not safe.
//! Workloads that would break are named in any case.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::filter::Kinds;
use crate::hosts::RecordedHosts;
use crate::imds::{is_aws_path, normalise};
use crate::record::workload::workload;
use crate::record::{
    Body, Dialect, Exchange, ExchangeOutcome, ImdsVersion, Kind, LossCounts, Mode, Record, Request, Summary, Time,
};
use crate::report::history::hops;
use crate::report::text::{self, counted};
use crate::sinks::Sink;

/// Capabilities that a verdict names one by one.
const MAX_MISSING: usize = 32;

/// A planned change of the metadata options.
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

/// Condition that must be proven before a change is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// At least one request to IMDS was seen.
    RequestsSeen,
    /// Each host was observed for as long as is wanted.
    ObservedLongEnough,
    /// No two records of a host are so far apart that the observer may not have run between them.
    NoGap,
    /// No run was followed by another: what happened between them is unknown.
    NotRestarted,
    /// The start of each host's run is recorded, and so what it could not see.
    StartRecorded,
    /// Each run's record of loss is there, up to its end.
    LossRecorded,
    /// Nothing was lost.
    NothingLost,
    /// All lines of the input were read.
    InputRead,
    /// No filter left callers, kinds of record or hosts out.
    NothingFiltered,
    /// Nothing was hidden from the observer.
    NoBlindSpot,
    /// Each request's process is known.
    CallersKnown,
    /// No workload is beyond the bound.
    WorkloadsBounded,
    /// Each request was read well enough to know whether it has a token.
    RequestsRead,
    /// For each request that would fail, it is known whether it works today.
    AnswersRead,
    /// The distance of each client that asks for a token is known.
    DistancesKnown,
}

impl Condition {
    pub const ALL: [Self; 15] = [
        Self::RequestsSeen,
        Self::ObservedLongEnough,
        Self::NoGap,
        Self::NotRestarted,
        Self::StartRecorded,
        Self::LossRecorded,
        Self::NothingLost,
        Self::InputRead,
        Self::NothingFiltered,
        Self::NoBlindSpot,
        Self::CallersKnown,
        Self::WorkloadsBounded,
        Self::RequestsRead,
        Self::AnswersRead,
        Self::DistancesKnown,
    ];
}

/// Facts besides the records.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'a> {
    /// Facts that the traces report about their runs; `None` live.
    pub recorded: Option<&'a RecordedHosts>,
    /// Shorter observation, in nanoseconds, is too short.
    pub at_least_ns: u64,
    /// Lines of the input that could not be read.
    pub unread: u64,
}

/// The answer, with what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub reasons: Vec<String>,
    /// Conditions that are not proven.
    pub unproven: Vec<Condition>,
    /// Most requests first.
    pub breaks: Vec<Break>,
}

/// A sink that judges; its other end is held by the caller that wants the verdict.
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
    /// Workloads that are distinguished; with more, the verdict is unknown.
    max_workloads: usize,
    breaks: BTreeMap<String, Broken>,
    exchanges: u64,
    /// Requests whose head does not show whether they have a token.
    unread_requests: u64,
    /// Requests that would fail, and of which it is not known whether they work today.
    unread_answers: u64,
    /// Token requests of clients whose distance is not known.
    unknown_distances: u64,
    unattributed: u64,
    /// Requests of workloads over the limit.
    overflow: u64,
    missing: Vec<String>,
    filters: Vec<String>,
    /// This run observes a host; its records have all that this version writes.
    live: bool,
    loss: LossCounts,
    summary: Option<Record<Summary>>,
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

    /// Judges by all that was written so far.
    pub fn judge(&self, circumstances: &Circumstances<'_>) -> Judgement {
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
        let doubts: Vec<(Condition, Vec<String>)> = Condition::ALL
            .into_iter()
            .map(|condition| (condition, seen.doubts(condition, circumstances)))
            .filter(|(_, doubts)| !doubts.is_empty())
            .collect();
        let mut reasons = Vec::new();
        let verdict = if !breaks.is_empty() {
            let requests: u64 = breaks.iter().map(|broken| broken.count).sum();
            reasons.push(format!(
                "{} would break, in {}",
                counted(breaks.len() as u64, "workload"),
                counted(requests, "request")
            ));
            Verdict::NotSafe
        } else if doubts.is_empty() {
            let period = seen.summary.as_ref().map_or(0, |summary| summary.interval_ns);
            let reported = format!(
                "none of {} in {} would have failed",
                counted(seen.exchanges, "request"),
                text::span(period)
            );
            reasons.push(reported);
            Verdict::Safe
        } else {
            Verdict::CannotSay
        };
        let unproven = doubts.iter().map(|(condition, _)| *condition).collect();
        reasons.extend(doubts.into_iter().flat_map(|(_, doubts)| doubts));
        Judgement {
            verdict,
            reasons,
            unproven,
            breaks,
        }
    }
}

impl Seen {
    /// Why the condition is not proven; empty if it is.
    fn doubts(&self, condition: Condition, circumstances: &Circumstances<'_>) -> Vec<String> {
        let Circumstances {
            recorded,
            at_least_ns,
            unread,
        } = *circumstances;
        let if_any = |count: u64, one: &str, what: &str| {
            let doubt = (count > 0).then(|| format!("{} {what}", counted(count, one)));
            doubt.into_iter().collect()
        };
        match condition {
            Condition::RequestsSeen => {
                let none = (self.exchanges == 0).then(|| "no requests were observed".to_owned());
                none.into_iter().collect()
            }
            Condition::ObservedLongEnough => self.too_short(recorded, at_least_ns).into_iter().collect(),
            Condition::NoGap => {
                let gap = recorded.and_then(RecordedHosts::longest_gap);
                let doubt = gap.map(|(host, gap)| {
                    format!(
                        "{host}: gap of {} in the records; requests in it were not observed",
                        text::span(gap)
                    )
                });
                doubt.into_iter().collect()
            }
            Condition::NotRestarted => {
                let restarts = recorded.map_or(0, RecordedHosts::restarts_seen);
                let doubt = (restarts > 0).then(|| {
                    format!(
                        "the observer restarted {}: requests between the runs were not observed",
                        counted(restarts, "time")
                    )
                });
                doubt.into_iter().collect()
            }
            Condition::StartRecorded => {
                let hosts = recorded.into_iter().flat_map(RecordedHosts::without_start);
                hosts
                    .take(MAX_MISSING)
                    .map(|host| format!("{host}: no start record, so the observer's coverage gaps are unknown"))
                    .collect()
            }
            Condition::LossRecorded => {
                let runs = recorded.map_or(0, RecordedHosts::runs_without_loss);
                if_any(
                    runs,
                    "run",
                    "of the observer without a final loss record: the number of lost records is unknown",
                )
            }
            Condition::NothingLost => {
                let counted_elsewhere = LossCounts {
                    unattributed: 0,
                    unknown_containers: 0,
                    ..self.loss
                };
                let lost = text::loss(&counted_elsewhere);
                let lost = (!lost.is_empty()).then(|| lost.trim_end().to_owned());
                lost.into_iter().collect()
            }
            Condition::InputRead => if_any(unread, "line", "of the input could not be read"),
            Condition::NothingFiltered => {
                let recorded = recorded.into_iter().flat_map(RecordedHosts::filters);
                // The filter of this run's output doesn't restrict what it evaluates.
                let own = self
                    .filters
                    .iter()
                    .map(String::as_str)
                    .filter(|filter| !filter.starts_with("records="));
                own.chain(recorded)
                    .filter(|filter| hides_requests(filter))
                    .map(|filter| format!("a filter was set ({filter}): other requests were not checked"))
                    .collect()
            }
            Condition::NoBlindSpot => {
                let recorded = recorded.into_iter().flat_map(RecordedHosts::missing);
                let missing = self.missing.iter().map(String::as_str).chain(recorded);
                missing.map(|what| format!("coverage gap: {what}")).collect()
            }
            Condition::CallersKnown => if_any(self.unattributed, "request", "of unknown processes"),
            Condition::WorkloadsBounded => if_any(self.overflow, "request", "of workloads over the limit"),
            Condition::RequestsRead => if_any(
                self.unread_requests,
                "request",
                "whose head was not captured completely",
            ),
            Condition::AnswersRead => if_any(self.unread_answers, "request", "whose response status is unknown"),
            Condition::DistancesKnown => if_any(
                self.unknown_distances,
                "token request",
                "whose hop count to the uplink is unknown (the TTL was not recorded at both socket and uplink)",
            ),
        }
    }

    fn too_short(&self, recorded: Option<&RecordedHosts>, at_least_ns: u64) -> Option<String> {
        let period = self.summary.as_ref().map_or(0, |summary| summary.interval_ns);
        let wanted = text::span(at_least_ns);
        if period < at_least_ns {
            let saw = text::span(period);
            return Some(format!(
                "observed for only {saw} of the required {wanted} (observe longer, or set --min-duration)"
            ));
        }
        let (host, watched) = recorded.and_then(RecordedHosts::shortest)?;
        (watched < at_least_ns).then(|| {
            format!(
                "{host} was observed for only {} of the required {wanted}",
                text::span(watched)
            )
        })
    }

    fn exchange(&mut self, time: Time, exchange: &Exchange, changes: &[Change]) {
        let request = &exchange.request;
        let works = works(exchange);
        if exchange.endpoint().is_agent() {
            return;
        }
        let foreign = !matches!(request.dialect, Dialect::Aws | Dialect::Unknown)
            || request.imds_version == Some(ImdsVersion::Other);
        if foreign {
            // A request that isn't one to IMDS by its head gets a response of IMDS only if IMDS understands more forms than this program.
            let answered = matches!(works, Works::Yes | Works::Unknown) && !is_other_cloud(request);
            let status = exchange.response.as_ref().and_then(|response| response.status);
            self.unread_requests += u64::from(answered && status != Some(404));
            return;
        }
        self.exchanges += 1;
        let name = workload(exchange.process.as_deref(), exchange.container.as_deref());
        self.unattributed += u64::from(name.is_none());
        let Some(version) = request.imds_version else {
            self.unread_requests += 1;
            return;
        };
        // A request that failed before can't be broken by the change.
        if works == Works::No {
            return;
        }
        let reads_nothing = matches!(request.method.as_deref(), Some("HEAD" | "OPTIONS"));
        let mut why = [None, None, None];
        for change in changes {
            match change {
                // A probe reads nothing, and survives a 401.
                Change::TokensRequired if version == ImdsVersion::V1 && !reads_nothing => {
                    why[0] = Some("sends requests without a token (IMDSv1), which succeed now".to_owned());
                }
                Change::HopLimit(limit) if version == ImdsVersion::Token => match distance(exchange, self.live) {
                    Distance::AtLeast(hops) | Distance::Exactly(hops) if *limit <= hops => {
                        why[1] = Some(format!(
                            "its token responses cross {} and need a hop limit of {}",
                            counted(u64::from(hops), "hop"),
                            hops.saturating_add(1)
                        ));
                    }
                    Distance::Exactly(_) => {}
                    Distance::AtLeast(_) => self.unknown_distances += 1,
                },
                Change::EndpointDisabled => why[2] = Some("sends requests to IMDS, which succeed now".to_owned()),
                Change::TokensRequired | Change::HopLimit(_) => {}
            }
        }
        if why.iter().all(Option::is_none) {
            return;
        }
        if works == Works::Unknown {
            self.unread_answers += 1;
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
        broken.last_seen = broken.last_seen.max(time);
        for (known, new) in broken.why.iter_mut().zip(why) {
            if new.is_some() {
                *known = new;
            }
        }
    }
}

/// Whether a request has the answer that it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Works {
    Yes,
    No,
    Unknown,
}

fn works(exchange: &Exchange) -> Works {
    let status = exchange.response.as_ref().and_then(|response| response.status);
    match (exchange.outcome, status) {
        (_, Some(status)) if status >= 400 && status != 404 => Works::No,
        (ExchangeOutcome::Answered, Some(_)) => Works::Yes,
        // Answered without a status that was seen: a status line in two segments, HTTP/0.9.
        (ExchangeOutcome::Answered, None) => Works::Unknown,
        // A client that has what it wanted may leave before the answer's head was seen.
        (ExchangeOutcome::Closed | ExchangeOutcome::Open, _) if exchange.response.is_some() => Works::Unknown,
        _ => Works::No,
    }
}

/// A path in the tree of another cloud: on EC2, IMDS has nothing there.
fn is_other_cloud(request: &Request) -> bool {
    let path = request.path.as_deref().map(normalise).unwrap_or_default();
    let foreign = !matches!(request.dialect, Dialect::Aws | Dialect::Unknown);
    foreign && (path == "/" || !is_aws_path(&path))
}

/// Hops between client and uplink.
enum Distance {
    Exactly(u8),
    AtLeast(u8),
}

fn distance(exchange: &Exchange, live: bool) -> Distance {
    if let Some(hops) = exchange.request.hops {
        return Distance::Exactly(hops);
    }
    // Traces of older versions have one TTL only, and the client chooses the initial one. A process outside of containers has no reason to.
    let guessed = exchange.request.wire_ttl().map_or(0, hops);
    let uplink_seen = exchange
        .response
        .as_ref()
        .is_some_and(|response| response.ttl.is_some());
    if !live
        && uplink_seen
        && exchange.request.wire_ttl().is_some()
        && exchange.process.is_some()
        && exchange.container.is_none()
    {
        Distance::Exactly(guessed)
    } else {
        Distance::AtLeast(guessed)
    }
}

/// Whether a filter that a start record names leaves requests out.
fn hides_requests(filter: &str) -> bool {
    filter
        .strip_prefix("records=")
        .is_none_or(|kinds| !kinds.split(',').any(|kind| kind == Kind::Exchange.as_str()))
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
        match &record.body {
            Body::Start(start) => {
                let missing = start.missing.iter().take(MAX_MISSING);
                seen.missing = missing
                    .map(|missing| format!("{}: {}", missing.capability, missing.blinds))
                    .collect();
                seen.filters.clone_from(&start.filters);
                seen.live = start.mode == Mode::Live;
            }
            Body::Exchange(exchange) => seen.exchange(record.time, exchange, &changes),
            Body::Loss(loss) => seen.loss = *loss,
            Body::Summary(summary) if summary.total => seen.summary = Some(record.with(summary).cloned()),
            _ => {}
        }
    }
}
