//! The numbers of one group over one time.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::distinct::{Budget, Distinct};
use super::paths::TopPaths;
use crate::record::{Exchange, ExchangeOutcome, ImdsVersion, Process, ProcessSummary, Quantiles, SECOND};

/// Status codes that are distinguished; HTTP has about sixty.
const MAX_STATUSES: usize = 64;
/// Resolution and longest latency of the histogram: 1 us to 120 s, 1 % apart.
const LATENCY_NS: (u64, u64, u8) = (1_000, 120 * SECOND, 2);

#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) requests: u64,
    pub(crate) lost: u64,
    pub(crate) failed_connects: u64,
    /// In the order of `ImdsVersion`, then unknown.
    pub(crate) by_version: [u64; 5],
    by_status: BTreeMap<u16, u64>,
    by_outcome: [u64; 6],
    other_status: u64,
    /// Token PUTs that were answered with 200.
    issued: u64,
    tokens: Distinct,
    instances: Distinct,
    latency: Option<Histogram<u32>>,
    /// Exact, where the histogram has only its bucket's edge.
    max_latency: u64,
    longest_connect: Option<u64>,
    total_connect: u64,
    paths: TopPaths,
}

impl Tally {
    /// `distinct`: for tokens, and for processes; beyond, the counts stop.
    pub(crate) fn new(max_paths: usize, distinct: &Budget) -> Self {
        Self {
            requests: 0,
            lost: 0,
            failed_connects: 0,
            by_version: [0; 5],
            by_status: BTreeMap::new(),
            by_outcome: [0; 6],
            other_status: 0,
            issued: 0,
            tokens: Distinct::new(distinct.clone()),
            instances: Distinct::new(distinct.clone()),
            latency: None,
            max_latency: 0,
            longest_connect: None,
            total_connect: 0,
            paths: TopPaths::new(max_paths),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests == 0 && self.failed_connects == 0
    }

    pub(crate) fn exchange(&mut self, exchange: &Exchange) {
        let request = &exchange.request;
        // A response that never reached the process counts by its outcome, because the process has no status.
        let status = exchange
            .response
            .as_ref()
            .filter(|response| response.delivered != Some(false))
            .and_then(|response| response.status);
        self.requests += 1;
        self.lost += u64::from(exchange.outcome == ExchangeOutcome::Lost);
        self.by_version[request.imds_version.map_or(4, |version| version as usize)] += 1;
        match status {
            Some(status) if self.by_status.len() < MAX_STATUSES || self.by_status.contains_key(&status) => {
                *self.by_status.entry(status).or_default() += 1;
            }
            Some(_) => self.other_status += 1,
            None => self.by_outcome[exchange.outcome as usize] += 1,
        }
        if request.imds_version == Some(ImdsVersion::Token) && status == Some(200) {
            self.issued += 1;
        }
        if let Some(token) = &request.token {
            self.tokens.insert(token);
        }
        if let Some(process) = exchange.process.as_deref() {
            let Process { pid, start_time, .. } = process;
            self.instances.insert(&(pid, start_time));
        }
        if let Some(latency) = exchange.latency_ns {
            let histogram = self.latency.get_or_insert_with(|| {
                let (low, high, digits) = LATENCY_NS;
                Histogram::new_with_bounds(low, high, digits)
                    .unwrap_or_else(|_| unreachable!("constant bounds are valid"))
            });
            histogram.saturating_record(latency);
            self.max_latency = self.max_latency.max(latency);
        }
        // Each of a connection's exchanges has it.
        if let Some(connect) = exchange.connect_ns.filter(|_| exchange.connection.exchange <= 1) {
            self.longest_connect = self.longest_connect.max(Some(connect));
            self.total_connect = self.total_connect.saturating_add(connect);
        }
        if let Some(path) = &request.path {
            self.paths.add(path);
        }
    }

    /// Forgets the numbers and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.requests = 0;
        self.lost = 0;
        self.failed_connects = 0;
        self.by_version = [0; 5];
        self.by_status.clear();
        self.by_outcome = [0; 6];
        self.other_status = 0;
        self.issued = 0;
        self.tokens.clear();
        self.instances.clear();
        self.max_latency = 0;
        self.longest_connect = None;
        self.total_connect = 0;
        if let Some(latency) = &mut self.latency {
            latency.reset();
        }
        self.paths.clear();
    }

    /// Without the names of process, container and workload.
    pub(crate) fn summary(&self, interval_ns: u64) -> ProcessSummary {
        let mut by_status: BTreeMap<String, u64> = self
            .by_status
            .iter()
            .map(|(status, count)| (status.to_string(), *count))
            .collect();
        for outcome in OUTCOMES {
            let count = self.by_outcome[outcome as usize];
            if count > 0 {
                by_status.insert(outcome.as_str().to_owned(), count);
            }
        }
        if self.other_status > 0 {
            by_status.insert("other".to_owned(), self.other_status);
        }
        let versions = ImdsVersion::ALL
            .iter()
            .map(|version| version.as_str())
            .chain(["unknown"]);
        ProcessSummary {
            process: None,
            container: None,
            address: None,
            workload: None,
            instances: self.instances.count(),
            requests: self.requests,
            rate_per_s: if interval_ns == 0 {
                0.0
            } else {
                self.requests as f64 * SECOND as f64 / interval_ns as f64
            },
            by_version: versions
                .zip(self.by_version)
                .filter(|(_, count)| *count > 0)
                .map(|(version, count)| (version.to_owned(), count))
                .collect(),
            by_status,
            // Issued tokens that are unused yet are tokens too, as are used ones issued before the start.
            tokens: self.issued.max(self.tokens.count()),
            latency_ns: self.quantiles(),
            top_paths: self.paths.top(),
            lost: self.lost,
            failed_connects: self.failed_connects,
            longest_connect_ns: self.longest_connect,
            total_connect_ns: self.total_connect,
        }
    }

    /// Distinct process images.
    pub(crate) fn instances(&self) -> u64 {
        self.instances.count()
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        match &self.latency {
            Some(latency) if !latency.is_empty() => {
                // The bucket's upper edge may lie above what was ever measured.
                let at = |quantile| Some(latency.value_at_quantile(quantile).min(self.max_latency));
                Quantiles {
                    p50: at(0.5),
                    p90: at(0.9),
                    p99: at(0.99),
                    max: Some(self.max_latency),
                }
            }
            _ => Quantiles::default(),
        }
    }
}

const OUTCOMES: [ExchangeOutcome; 6] = [
    ExchangeOutcome::Answered,
    ExchangeOutcome::Lost,
    ExchangeOutcome::Unanswered,
    ExchangeOutcome::Reset,
    ExchangeOutcome::Closed,
    ExchangeOutcome::Open,
];
