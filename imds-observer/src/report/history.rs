//! Data that a report shows over time: requests by workload, latencies, TTLs, the quota. It gets the same records as every other sink
//! (`sinks/history.rs`).
//!
//! Memory doesn't grow with the trace: time is cut into at most [`BUCKETS`] pieces, which are joined by twos when the trace outgrows them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use hdrhistogram::Histogram;

use crate::record::workload::{Group, workload};
use crate::record::{Body, Exchange, ExchangeOutcome, ImdsVersion, Record, SECOND, Summary, Time};
use crate::report::Limits;

/// Pieces of time, at most.
pub const BUCKETS: usize = 120;
/// Latencies by quarters of powers of two, from 1 µs on; the last takes all above 23 s.
pub const LATENCIES: usize = 1 + 4 * 25;
/// Bounds and digits of the histogram that quantiles are taken from.
const LATENCY_NS: (u64, u64, u8) = (1_000, 120 * SECOND, 2);
/// The workload of all that have no line of their own.
pub const OTHERS: &str = "others";

/// One piece of time of one workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Requests whose answer reached the client, in the order of [`ImdsVersion`], then unknown.
    pub answered: [u64; 5],
    /// Without an answer that reached its client, whatever the reason.
    pub failed: u64,
}

impl Bucket {
    pub fn requests(&self) -> u64 {
        self.answered.iter().sum::<u64>() + self.failed
    }

    fn plus(self, other: Self) -> Self {
        Self {
            answered: std::array::from_fn(|version| self.answered[version] + other.answered[version]),
            failed: self.failed + other.failed,
        }
    }
}

/// Data of one workload.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub buckets: Vec<Bucket>,
    pub requests: u64,
    /// In the order of [`ImdsVersion`], then unknown.
    pub versions: [u64; 5],
    /// Without an answer that reached its client.
    pub failed: u64,
    /// Token requests by forwarding hops before the TTL was read; `None`: not seen.
    pub hops: BTreeMap<Option<u8>, u64>,
    /// TTLs of token responses on arrival.
    pub response_ttls: BTreeMap<u8, u64>,
    pub lost: u64,
}

/// Everything that the report draws.
#[derive(Clone, Debug)]
pub struct Picture {
    pub from: Time,
    pub width_ns: u64,
    pub lines: BTreeMap<String, Line>,
    pub latencies: [u64; LATENCIES],
    /// Latencies of all workloads together.
    pub latency: Histogram<u64>,
    pub versions: BTreeMap<String, u64>,
    pub statuses: BTreeMap<String, u64>,
    /// Highest packets per second in each piece of time.
    pub quota: BTreeMap<String, Vec<u64>>,
    started: bool,
    limits: Limits,
}

impl Default for Picture {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Picture {
    pub fn new(limits: Limits) -> Self {
        let (low, high, digits) = LATENCY_NS;
        Self {
            from: Time::default(),
            width_ns: 0,
            lines: BTreeMap::new(),
            latencies: [0; LATENCIES],
            latency: Histogram::new_with_bounds(low, high, digits)
                .unwrap_or_else(|_| unreachable!("constant bounds are valid")),
            versions: BTreeMap::new(),
            statuses: BTreeMap::new(),
            quota: BTreeMap::new(),
            started: false,
            limits,
        }
    }
}

/// A sink whose other end the report holds.
#[derive(Clone, Debug)]
pub struct History(Arc<Mutex<Picture>>);

impl History {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(Mutex::new(Picture::new(limits))))
    }

    pub fn take(&self) -> Picture {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl History {
    pub(crate) fn observe(&self, record: &Record) {
        let mut picture = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &record.body {
            Body::Exchange(exchange) => picture.exchange(record.time, exchange),
            Body::Summary(summary) if !summary.total => picture.summary(summary),
            _ => {}
        }
    }
}

/// Forwarding hops between a sender and where its TTL was read: systems start at 64, 128 or 255.
pub fn hops(ttl: u8) -> u8 {
    [64, 128, 255]
        .into_iter()
        .find(|initial| ttl <= *initial)
        .map_or(0, |initial| initial - ttl)
}

impl Picture {
    /// The piece of time that `time` falls into. What is earlier than the first falls into the first.
    fn place(&mut self, time: Time) -> usize {
        if !self.started {
            self.started = true;
            self.from = Time(time.0 - time.0 % SECOND);
            self.width_ns = SECOND;
        }
        let since = time.since(self.from);
        while since / self.width_ns >= BUCKETS as u64 {
            self.width_ns = self.width_ns.saturating_mul(2);
            for line in self.lines.values_mut() {
                join(&mut line.buckets, Bucket::plus);
            }
            for peaks in self.quota.values_mut() {
                join(peaks, u64::max);
            }
        }
        (since / self.width_ns) as usize
    }

    /// Pieces of time that the pictures show: up to the last with anything in it.
    pub fn shown(&self) -> usize {
        let lines = self.lines.values().map(|line| line.buckets.len());
        lines.chain(self.quota.values().map(Vec::len)).max().unwrap_or(0).max(1)
    }

    fn exchange(&mut self, time: Time, exchange: &Exchange) {
        let at = self.place(time);
        let (process, container) = (exchange.process.as_deref(), exchange.container.as_deref());
        let name = workload(process, container)
            .unwrap_or_else(|| Group::of(process, container, exchange.connection.local.as_deref()).name(1));
        let name = if self.lines.len() < self.limits.workloads || self.lines.contains_key(&name) {
            name
        } else {
            OTHERS.to_owned()
        };
        let line = self.lines.entry(name).or_default();
        if line.buckets.len() <= at {
            line.buckets.resize(at + 1, Bucket::default());
        }
        let version = exchange.request.imds_version.map_or(4, |version| version as usize);
        line.requests += 1;
        line.versions[version] += 1;
        line.lost += u64::from(exchange.outcome == ExchangeOutcome::Lost);
        if exchange.outcome == ExchangeOutcome::Answered {
            line.buckets[at].answered[version] += 1;
        } else {
            line.failed += 1;
            line.buckets[at].failed += 1;
        }
        if exchange.request.imds_version == Some(ImdsVersion::Token) {
            *line.hops.entry(exchange.request.wire_ttl().map(hops)).or_default() += 1;
            if let Some(ttl) = exchange.response.as_ref().and_then(|response| response.ttl) {
                *line.response_ttls.entry(ttl).or_default() += 1;
            }
        }
        if let Some(latency) = exchange.latency_ns {
            self.latencies[latency_place(latency)] += 1;
            self.latency.saturating_record(latency);
        }
        let version = exchange.request.imds_version.map_or("unknown", ImdsVersion::as_str);
        *self.versions.entry(version.to_owned()).or_default() += 1;
        // A status that never reached the client is no status of its requests.
        let response = exchange.response.as_ref();
        let response = response.filter(|response| response.delivered != Some(false));
        let status = response.and_then(|response| response.status);
        let status = status.map_or_else(|| exchange.outcome.as_str().to_owned(), |status| status.to_string());
        *self.statuses.entry(status).or_default() += 1;
    }

    fn summary(&mut self, summary: &Summary) {
        let at = self.place(summary.from);
        for interface in &summary.interfaces {
            if self.quota.len() >= self.limits.interfaces && !self.quota.contains_key(&interface.name) {
                continue;
            }
            let peaks = self.quota.entry(interface.name.clone()).or_default();
            if peaks.len() <= at {
                peaks.resize(at + 1, 0);
            }
            peaks[at] = peaks[at].max(interface.peak_packets_per_s);
        }
    }
}

/// Index of the piece of [`LATENCIES`] to which a latency belongs.
fn latency_place(ns: u64) -> usize {
    if ns < 1_000 {
        return 0;
    }
    let place = 1.0 + ((ns as f64 / 1000.0).log2() * 4.0).floor();
    (place as usize).min(LATENCIES - 1)
}

/// The least latency, in nanoseconds, that falls into this piece.
pub fn latency_from(place: usize) -> u64 {
    match place {
        0 => 0,
        _ => (1000.0 * ((place - 1) as f64 / 4.0).exp2()).ceil() as u64,
    }
}

fn join<T: Copy + Default>(buckets: &mut Vec<T>, both: impl Fn(T, T) -> T) {
    let joined = buckets
        .chunks(2)
        .map(|pair| both(pair[0], pair.get(1).copied().unwrap_or_default()))
        .collect();
    *buckets = joined;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_joined_by_twos_and_nothing_is_forgotten() {
        let mut picture = Picture::default();
        for second in 0..1000 {
            let at = picture.place(Time(1_000_000 * SECOND + second * SECOND));
            let line = picture.lines.entry("a".to_owned()).or_default();
            line.buckets.resize(line.buckets.len().max(at + 1), Bucket::default());
            line.buckets[at].failed += 1;
        }
        let buckets = &picture.lines["a"].buckets;
        assert!(buckets.len() <= BUCKETS);
        assert_eq!(buckets.iter().map(Bucket::requests).sum::<u64>(), 1000);
        assert_eq!(picture.width_ns, 16 * SECOND);
        assert!(buckets[..62].iter().all(|bucket| bucket.requests() == 16));
        assert_eq!(picture.place(Time(0)), 0);
    }

    #[test]
    fn each_latency_falls_into_the_piece_that_says_so() {
        for place in 0..LATENCIES {
            assert_eq!(latency_place(latency_from(place)), place);
            assert_eq!(latency_place(latency_from(place + 1) - 1), place);
        }
        assert_eq!(latency_place(u64::MAX), LATENCIES - 1);
    }

    #[test]
    fn hops_are_reported_from_the_nearest_initial_ttl() {
        assert_eq!([64, 63, 62, 128, 127, 255, 1].map(hops), [0, 1, 2, 0, 1, 0, 63]);
    }
}
