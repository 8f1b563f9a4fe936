//! Findings as logs, and the metrics, to an OpenTelemetry collector (OTLP over HTTP, protobuf).
//!
//! The messages are the opentelemetry project's own types; its SDK is not between: it would keep a second copy of every number, and
//! has no histogram that is read instead of written. So the collector gets what `/metrics` shows, from the same state.
//!
//! Behind a [`Queue`](crate::sinks::queue::Queue), on its thread. A collector that is slow, dead or refuses delays nothing: findings wait
//! here, bounded, the oldest are dropped first, and all of that is counted and reported. Nothing is ever sent to where IMDS is, nor to any
//! other link-local address, whatever a name resolves to; proxies' variables are not read and redirections not followed.

mod message;
mod transfer;

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use prost::Message as _;

use super::series::Transfers;
use super::{MetricsSink, Shared};
use crate::record::{Host, Kind, Record};
use crate::sinks::Output;
use transfer::{Endpoint, Failure};

/// Default time between two transfers of the metrics.
const INTERVAL: Duration = Duration::from_secs(30);
/// Timeout of one transfer, including name resolution as far as it can be interrupted.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same at shutdown.
const LAST_PATIENCE: Duration = Duration::from_secs(1);
/// Findings in one transfer.
const BATCH: usize = 128;
/// Pauses after a failure: the first, doubled each time up to the last.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Parameters of [`Collector::new`].
#[derive(Debug)]
pub struct Options<'a> {
    /// `http://HOST:PORT`, to which `/v1/logs` and `/v1/metrics` are added.
    pub endpoint: &'a str,
    /// Time between two transfers of the metrics.
    pub interval: Option<Duration>,
    pub host: Host,
    /// Where IMDS is: never sent to.
    pub imds: Vec<IpAddr>,
    /// Findings that wait for a collector to come back (a few KiB each).
    pub limit: usize,
}

/// Sends to one collector.
#[derive(Debug)]
pub struct Collector {
    endpoint: Endpoint,
    shared: Arc<Shared>,
    host: Host,
    interval: Duration,
    waiting: VecDeque<Arc<Record>>,
    limit: usize,
    metrics_due: Instant,
    findings_trouble: Trouble,
    metrics_trouble: Trouble,
    /// Dropped and not yet reported to the queue.
    unreported: u64,
}

/// State of one kind of transfer: a collector may accept logs and reject metrics permanently.
#[derive(Debug, Default)]
struct Trouble {
    /// After a failure: not before, and how long the pause was.
    retry: Option<(Instant, Duration)>,
}

impl Trouble {
    fn is_over(&self) -> bool {
        self.retry.is_none_or(|(not_before, _)| Instant::now() >= not_before)
    }

    /// Logs the result of a transfer, once at the onset of an outage and once at recovery; metrics count the rest.
    fn settle(&mut self, what: &str, endpoint: &Endpoint, sent: Result<(), &Failure>) -> bool {
        let Err(failure) = sent else {
            if self.retry.take().is_some() {
                tracing::warn!("the collector at {endpoint} accepts {what} again");
            }
            return true;
        };
        let pause = self.retry.map_or(PAUSE, |(_, pause)| (pause * 2).min(LONGEST_PAUSE));
        if self.retry.is_none() {
            tracing::warn!("the collector at {endpoint} did not accept {what}: {failure}; retrying");
        }
        self.retry = Some((Instant::now() + pause, pause));
        false
    }
}

impl Collector {
    pub const KINDS: [Kind; 1] = [Kind::Finding];

    pub fn new(options: &Options<'_>, metrics: &MetricsSink) -> anyhow::Result<Self> {
        let endpoint = Endpoint::new(options.endpoint, options.imds.clone())
            .with_context(|| format!("send findings and metrics to {}", options.endpoint))?;
        let shared = Arc::clone(&metrics.shared);
        *shared.transfers.lock().unwrap_or_else(PoisonError::into_inner) = Some(Transfers::default());
        let interval = options.interval.unwrap_or(INTERVAL);
        Ok(Self {
            endpoint,
            shared,
            host: options.host.clone(),
            interval,
            waiting: VecDeque::new(),
            limit: options.limit,
            metrics_due: Instant::now() + interval,
            findings_trouble: Trouble::default(),
            metrics_trouble: Trouble::default(),
            unreported: 0,
        })
    }

    /// Sends the records and metrics that are due.
    fn transfer(&mut self, patience: Duration) {
        while !self.waiting.is_empty() && self.findings_trouble.is_over() {
            self.send_findings(patience);
        }
        if Instant::now() >= self.metrics_due && self.metrics_trouble.is_over() {
            self.send_metrics(patience);
        }
    }

    fn send_findings(&mut self, patience: Duration) {
        let batch: Vec<Arc<Record>> = self.waiting.iter().take(BATCH).cloned().collect();
        let body = message::logs(&batch, &self.host, now_ns()).encode_to_vec();
        let sent = self.endpoint.send("v1/logs", body, patience);
        let rejected = match &sent {
            Ok(response) => message::rejected_logs(response).min(batch.len() as u64),
            Err(Failure::Never(_)) => batch.len() as u64,
            Err(Failure::Later(_)) => 0,
        };
        if !matches!(sent, Err(Failure::Later(_))) {
            self.waiting.drain(..batch.len());
            self.give_up(rejected);
            self.count(|transfers| transfers.findings_sent += batch.len() as u64 - rejected);
        }
        let sent = sent.as_ref().map(drop);
        if !self.findings_trouble.settle("findings", &self.endpoint, sent) {
            self.count(|transfers| transfers.failed += 1);
        }
    }

    fn send_metrics(&mut self, patience: Duration) {
        self.metrics_due = Instant::now() + self.interval;
        let transfers = self.shared.transfers();
        let body = {
            let state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            message::metrics(&state, transfers, &self.host, now_ns())
        };
        let sent = self.endpoint.send("v1/metrics", body.encode_to_vec(), patience);
        let sent = sent.as_ref().map(drop);
        if !self.metrics_trouble.settle("metrics", &self.endpoint, sent) {
            self.count(|transfers| transfers.failed += 1);
        }
    }

    fn give_up(&mut self, count: u64) {
        self.unreported += count;
        self.count(|transfers| transfers.findings_lost += count);
    }

    fn count(&self, change: impl FnOnce(&mut Transfers)) {
        let mut transfers = self.shared.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        change(transfers.get_or_insert_default());
    }
}

impl Output for Collector {
    type Item = Arc<Record>;

    fn write(&mut self, records: &[Arc<Record>]) -> io::Result<u64> {
        self.waiting.extend(records.iter().cloned());
        let over = self.waiting.len().saturating_sub(self.limit);
        self.waiting.drain(..over);
        self.give_up(over as u64);
        self.transfer(PATIENCE);
        Ok(std::mem::take(&mut self.unreported))
    }

    fn idle(&mut self) -> io::Result<()> {
        self.transfer(PATIENCE);
        Ok(())
    }

    fn close(&mut self) -> io::Result<()> {
        // Once more, whatever the pause was to be.
        self.findings_trouble.retry = None;
        self.metrics_trouble.retry = None;
        self.metrics_due = Instant::now();
        self.transfer(LAST_PATIENCE);
        if !self.waiting.is_empty() {
            let left = self.waiting.len();
            self.give_up(left as u64);
            tracing::warn!("the collector was not reachable at shutdown: dropped {left} findings");
        }
        Ok(())
    }
}

fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
