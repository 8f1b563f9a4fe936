//! State of the live view, built from records only, in their time.
//!
//! Knows nothing of terminals, keys or the wall clock. Every part is bounded; what a bound pushed out is counted in [`State::evicted`].

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::rate::Rate;
use crate::record::workload::{Group, workload};
use crate::record::{
    Body, Container, Exchange, ExchangeOutcome, Finding, FindingState, Host, ImdsVersion, InterfaceSummary, LossCounts,
    Of, PacketDirection, Process, Record, SECOND, Start, Time,
};
use crate::report::groups::{Group as CauseGroup, groups};
use crate::summary::distinct::Budget;
use crate::summary::tally::Tally;

/// Bounds of what the live view holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Groups of processes that are kept apart; the one unseen for longest goes.
    pub rows: usize,
    /// Records of each that its waterfall can show.
    pub last: usize,
    /// Paths that are counted for each.
    pub paths: usize,
    /// Tokens, and processes, distinguished in each; beyond, these counts stop. 32 times as many in all, and 128 more in each.
    pub distinct: usize,
    /// Findings that are kept; resolved ones go first.
    pub findings: usize,
    /// Interfaces whose packets are shown.
    pub interfaces: usize,
    /// Intervals whose packets the sparkline can show.
    pub packets: usize,
    /// Bytes of log lines that are kept until the terminal is given back.
    pub log_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            rows: 512,
            last: 24,
            paths: 16,
            distinct: 4_096,
            findings: 500,
            interfaces: 16,
            packets: 120,
            log_bytes: 64 << 10,
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Latest time of any record.
    pub now: Time,
    pub from: Option<Time>,
    pub start: Option<Record<Start>>,
    pub requests: u64,
    pub rate: Rate,
    /// Requests in the order of `ImdsVersion`, then unknown.
    pub by_version: [u64; 5],
    /// Lowest and highest TTL that answers to token requests arrived with: the instance's hop limit.
    pub hop_limit: Option<(u8, u8)>,
    /// Packets per second of the busiest interface, interval by interval, newest last.
    pub packets: VecDeque<u64>,
    /// Interfaces of the latest interval.
    pub interfaces: Vec<InterfaceSummary>,
    /// Packets that the provider dropped for the quota, as the driver counts them.
    pub allowance_exceeded: u64,
    pub loss: LossCounts,
    pub rows: FxHashMap<u64, Row>,
    /// The hash is a row's identity, and its key is random: two callers with one hash can't be computed.
    hashing: RandomState,
    pub findings: Vec<Record<Finding>>,
    pub evicted: u64,
    /// Playback: the trace has come to its end.
    pub ended: bool,
    limits: Limits,
    distinct: Budget,
}

/// The processes that one verdict is about, as summaries have them.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: u64,
    pub host: Host,
    pub workload: String,
    /// Newest member.
    pub process: Option<Arc<Process>>,
    pub container: Option<Arc<Container>>,
    local: Option<String>,
    pub(crate) tally: Tally,
    pub rate: Rate,
    pub errors: u64,
    pub dropped: u64,
    pub retransmits: u64,
    /// Lowest and highest.
    pub request_ttl: Option<(u8, u8)>,
    pub response_ttl: Option<(u8, u8)>,
    pub first_seen: Time,
    pub last_seen: Time,
    /// Exchanges, connects and drops, oldest first.
    pub last: VecDeque<Arc<Record>>,
}

/// The numbers of a row, or of a workload's rows together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Numbers {
    pub rate_per_s: f64,
    pub requests: u64,
    /// 4xx but for 404, 5xx, no answer, no connection. A lost answer counts as lost only.
    pub errors: u64,
    pub lost: u64,
    /// 99th percentile of the latency; for a workload, that of its worst row.
    pub p99_ns: Option<u64>,
    pub v1: u64,
}

/// Key by which rows are sorted, in descending order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    #[default]
    Rate,
    Errors,
    Lost,
    P99,
    V1,
}

impl Sort {
    pub const ALL: [Self; 5] = [Self::Rate, Self::Errors, Self::Lost, Self::P99, Self::V1];

    #[must_use]
    pub fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Errors => "errors",
            Self::Lost => "lost",
            Self::P99 => "p99",
            Self::V1 => "v1",
        }
    }
}

/// A workload with its rows, in the order asked for.
#[derive(Debug)]
pub struct Workload<'a> {
    pub name: &'a str,
    pub numbers: Numbers,
    pub rows: Vec<(&'a Row, Numbers)>,
}

impl State {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            distinct: Budget::new(limits.distinct),
            ..Self::default()
        }
    }

    pub fn apply(&mut self, record: &Arc<Record>) {
        let last = self.limits.last;
        self.advance(record.settled());
        match &record.body {
            Body::Start(start) => {
                self.from.get_or_insert(record.time);
                self.start = Some(record.with(start).cloned());
            }
            Body::Exchange(exchange) => {
                self.from.get_or_insert(record.time);
                self.exchange(exchange, record);
            }
            Body::Connect(connect) => {
                let local = connect.connection.local.as_deref();
                let row = self.row(
                    &record.host,
                    connect.process.as_ref(),
                    connect.container.as_ref(),
                    local,
                    record.time,
                );
                row.tally.failed_connects += 1;
                row.errors += 1;
                row.keep(record, last);
            }
            Body::Drop(drop) => {
                let local = drop.connection.local.as_deref();
                let row = self.row(
                    &record.host,
                    drop.process.as_ref(),
                    drop.container.as_ref(),
                    local,
                    record.time,
                );
                row.dropped += 1;
                if let (PacketDirection::Response, Some(ttl)) = (drop.direction, drop.ttl) {
                    widen(&mut row.response_ttl, ttl);
                }
                row.keep(record, last);
            }
            Body::Finding(finding) => self.finding(record.with(finding)),
            Body::Summary(summary) if !summary.total => {
                let peak = summary.interfaces.iter().map(|interface| interface.peak_packets_per_s);
                if let Some(peak) = peak.max() {
                    if self.packets.len() >= self.limits.packets {
                        self.packets.pop_front();
                    }
                    self.packets.push_back(peak);
                }
                let exceeded = summary.interfaces.iter().filter_map(|row| row.allowance_exceeded);
                self.allowance_exceeded = exceeded.fold(self.allowance_exceeded, u64::saturating_add);
                if !summary.interfaces.is_empty() {
                    self.interfaces = summary
                        .interfaces
                        .iter()
                        .take(self.limits.interfaces)
                        .cloned()
                        .collect();
                }
            }
            Body::Summary(_) => {}
            Body::Loss(loss) => self.loss = *loss,
        }
    }

    /// It is `now` at least.
    pub fn advance(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// Workloads with their rows, sorted; only what `filter` is part of, whatever its case.
    pub fn workloads(&self, sort: Sort, filter: &str) -> Vec<Workload<'_>> {
        let filter = filter.to_lowercase();
        let mut by_name: FxHashMap<&str, Workload<'_>> = FxHashMap::default();
        for row in self.rows.values().filter(|row| row.matches(&filter)) {
            let numbers = row.numbers(self.now);
            let workload = by_name.entry(&row.workload).or_insert_with(|| Workload {
                name: &row.workload,
                numbers: Numbers::default(),
                rows: Vec::new(),
            });
            workload.numbers.add(&numbers);
            workload.rows.push((row, numbers));
        }
        let mut workloads: Vec<_> = by_name.into_values().collect();
        for workload in &mut workloads {
            workload.rows.sort_by_key(|(row, numbers)| {
                (
                    Reverse(numbers.rank(sort)),
                    row.first_seen,
                    row.process.as_ref().map(|process| process.pid),
                    row.key,
                )
            });
        }
        workloads.sort_by_key(|workload| (Reverse(workload.numbers.rank(sort)), workload.name));
        workloads
    }

    /// Worst first, those that are over last.
    pub fn findings(&self, filter: &str) -> Vec<&Record<Finding>> {
        let filter = filter.to_lowercase();
        let mut findings: Vec<&Record<Finding>> = self
            .findings
            .iter()
            .filter(|finding| {
                [finding.code.as_str(), &finding.subject.name, &finding.summary]
                    .iter()
                    .any(|text| contains(text, &filter))
            })
            .collect();
        findings.sort_by_key(|finding| {
            let over = finding.state == FindingState::Resolved;
            (over, Reverse(finding.severity), finding.first_seen, finding.code)
        });
        findings
    }

    /// Findings by cause: worst first, those that are over last.
    pub fn groups(&self, filter: &str) -> Vec<CauseGroup<'_>> {
        let mut groups = groups(self.findings(filter));
        groups.sort_by_key(CauseGroup::is_resolved);
        groups
    }

    /// Requests per second over the last seconds.
    pub fn rate_per_s(&self) -> f64 {
        self.rate.per_s(self.now)
    }

    fn exchange(&mut self, exchange: &Exchange, record: &Arc<Record>) {
        let last = self.limits.last;
        let response = exchange.response.as_ref();
        let response_ttl = response.and_then(|response| response.ttl);
        self.requests += 1;
        self.rate.add(record.time);
        self.by_version[exchange.request.imds_version.map_or(4, |version| version as usize)] += 1;
        if exchange.request.imds_version == Some(ImdsVersion::Token)
            && response.and_then(|response| response.status) == Some(200)
            && let Some(ttl) = response_ttl
        {
            widen(&mut self.hop_limit, ttl);
        }
        let local = exchange.connection.local.as_deref();
        let row = self.row(
            &record.host,
            exchange.process.as_ref(),
            exchange.container.as_ref(),
            local,
            record.time,
        );
        row.rate.add(record.time);
        row.tally.exchange(exchange);
        row.errors += u64::from(is_error(exchange));
        row.retransmits +=
            u64::from(exchange.request.retransmits) + response.map_or(0, |response| u64::from(response.retransmits));
        if let Some(ttl) = exchange.request.wire_ttl() {
            widen(&mut row.request_ttl, ttl);
        }
        if let Some(ttl) = response_ttl {
            widen(&mut row.response_ttl, ttl);
        }
        row.keep(record, last);
    }

    fn finding(&mut self, finding: Of<'_, Finding>) {
        let same = |known: &&mut Record<Finding>| {
            known.code == finding.code && known.subject.key == finding.subject.key && known.host == *finding.host
        };
        if let Some(known) = self.findings.iter_mut().find(same) {
            *known = finding.cloned();
            return;
        }
        if self.findings.len() >= self.limits.findings {
            self.evicted += 1;
            let oldest = (0..self.findings.len()).min_by_key(|at| {
                let finding = &self.findings[*at];
                (
                    finding.state != FindingState::Resolved,
                    finding.severity,
                    finding.last_seen,
                )
            });
            if let Some(at) = oldest {
                self.findings.swap_remove(at);
            }
        }
        self.findings.push(finding.cloned());
    }

    fn row(
        &mut self,
        host: &Host,
        process: Option<&Arc<Process>>,
        container: Option<&Arc<Container>>,
        local: Option<&str>,
        time: Time,
    ) -> &mut Row {
        let (known, known_container) = (process.map(Arc::as_ref), container.map(Arc::as_ref));
        let local = local.filter(|_| known.is_none() && known_container.is_none());
        let mut hasher = self.hashing.build_hasher();
        host.hash(&mut hasher);
        Group::of(known, known_container, local).hash_into(&mut hasher);
        let key = hasher.finish();
        if self.rows.len() >= self.limits.rows && !self.rows.contains_key(&key) {
            let oldest = self.rows.values().min_by_key(|row| row.last_seen).map(|row| row.key);
            if let Some(oldest) = oldest {
                self.rows.remove(&oldest);
                self.evicted += 1;
            }
        }
        let limits = self.limits;
        let row = self.rows.entry(key).or_insert_with(|| Row {
            key,
            host: host.clone(),
            workload: workload(known, known_container).unwrap_or_else(|| "unknown".to_owned()),
            process: None,
            container: None,
            local: local.map(str::to_owned),
            tally: Tally::new(limits.paths, &self.distinct),
            rate: Rate::default(),
            errors: 0,
            dropped: 0,
            retransmits: 0,
            request_ttl: None,
            response_ttl: None,
            first_seen: time,
            last_seen: time,
            last: VecDeque::new(),
        });
        if process.is_some() {
            row.process = process.cloned();
        }
        if container.is_some() {
            row.container = container.cloned();
        }
        row.first_seen = row.first_seen.min(time);
        row.last_seen = row.last_seen.max(time);
        row
    }
}

impl Row {
    /// For people: `pod payments/api-7c9d`, `curl (parent bash 4100)`.
    pub fn name(&self) -> String {
        Group::of(
            self.process.as_deref(),
            self.container.as_deref(),
            self.local.as_deref(),
        )
        .name(self.tally.instances())
    }

    pub fn numbers(&self, now: Time) -> Numbers {
        Numbers {
            rate_per_s: self.rate.per_s(now),
            requests: self.tally.requests,
            errors: self.errors,
            lost: self.tally.lost,
            p99_ns: self.tally.quantiles().p99,
            v1: self.tally.by_version[ImdsVersion::V1 as usize],
        }
    }

    fn keep(&mut self, record: &Arc<Record>, limit: usize) {
        if self.last.len() >= limit {
            self.last.pop_front();
        }
        self.last.push_back(record.clone());
    }

    fn matches(&self, filter: &str) -> bool {
        filter.is_empty()
            || contains(&self.workload, filter)
            || contains(&self.name(), filter)
            || self.process.as_ref().is_some_and(|process| {
                contains(&process.comm, filter)
                    || process.exe.as_ref().is_some_and(|exe| contains(exe, filter))
                    || process.pid.to_string() == filter
            })
    }
}

impl Numbers {
    fn add(&mut self, more: &Self) {
        self.rate_per_s += more.rate_per_s;
        self.requests += more.requests;
        self.errors += more.errors;
        self.lost += more.lost;
        self.p99_ns = self.p99_ns.max(more.p99_ns);
        self.v1 += more.v1;
    }

    /// Ties fall to the one that asks more.
    fn rank(&self, sort: Sort) -> (u64, u64) {
        let first = match sort {
            Sort::Rate => (self.rate_per_s * 1000.0) as u64,
            Sort::Errors => self.errors,
            Sort::Lost => self.lost,
            Sort::P99 => self.p99_ns.unwrap_or(0),
            Sort::V1 => self.v1,
        };
        (first, self.requests)
    }
}

/// 404 is no error: it is the normal answer on many paths.
fn is_error(exchange: &Exchange) -> bool {
    match exchange.outcome {
        ExchangeOutcome::Unanswered | ExchangeOutcome::Reset | ExchangeOutcome::Closed => true,
        ExchangeOutcome::Lost | ExchangeOutcome::Open => false,
        ExchangeOutcome::Answered => exchange
            .response
            .as_ref()
            .and_then(|response| response.status)
            .is_some_and(|status| status >= 400 && status != 404),
    }
}

fn contains(text: &str, lower: &str) -> bool {
    lower.is_empty() || text.to_lowercase().contains(lower)
}

fn widen(range: &mut Option<(u8, u8)>, value: u8) {
    let (low, high) = range.unwrap_or((value, value));
    *range = Some((low.min(value), high.max(value)));
}

impl State {
    /// Since the beginning.
    pub fn elapsed_s(&self) -> u64 {
        self.from.map_or(0, |from| self.now.since(from) / SECOND)
    }
}
