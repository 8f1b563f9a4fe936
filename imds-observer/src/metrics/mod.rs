//! What do monitoring systems see? Counters by workload, never by process or raw path, over HTTP for Prometheus, and sent to an
//! OpenTelemetry collector.
//!
//! Bounded: [`Limits::workloads`] workloads have series of their own, the rest share the workload `other`; one that was silent for long
//! gives its place up when another one needs it. So there are at most some 60 series a workload, and most have ten.

mod exposition;
#[cfg(feature = "otlp")]
pub mod otlp;
mod series;
mod server;
mod state;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::filter::Kinds;
use crate::record::Record;
use crate::sinks::Sink;
use series::Transfers;
use state::State;

/// Bounds of the metrics and of what is sent to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Workloads with series of their own; all others share one.
    pub workloads: usize,
    /// Status codes that are told apart, per workload: a hostile server may send a thousand.
    pub statuses: usize,
    /// Drop reasons, interfaces and missing capabilities that are told apart.
    pub names: usize,
    /// Findings that are known to be open.
    pub open_findings: usize,
    /// Connections of scrapers at a time. They need two or three; a stranger who opens more has to wait.
    pub connections: usize,
    /// Findings that wait while a transfer to the collector takes its time, and as many that wait for it to come back.
    pub collector_findings: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workloads: 256,
            statuses: 16,
            names: 64,
            open_findings: 4_096,
            connections: 16,
            collector_findings: 1_024,
        }
    }
}

/// What the pipeline writes and the server reads.
#[derive(Debug)]
struct Shared {
    state: std::sync::Mutex<State>,
    /// Of scrapers at a time.
    connections: usize,
    /// Hooks are attached.
    ready: AtomicBool,
    begin: Instant,
    /// When the pipeline last came round, milliseconds since `begin`.
    alive_ms: AtomicU64,
    /// What became of transfers, if there is a collector.
    transfers: std::sync::Mutex<Option<Transfers>>,
}

impl Shared {
    fn transfers(&self) -> Option<Transfers> {
        *self.transfers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Feeds the metrics.
#[derive(Debug)]
pub struct MetricsSink {
    shared: Arc<Shared>,
}

impl MetricsSink {
    /// When all of them are taken, the series of workloads that were silent for this long are let go.
    pub fn new(limits: Limits, silence: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                connections: limits.connections,
                state: std::sync::Mutex::new(State::new(limits, silence)),
                ready: AtomicBool::new(false),
                begin: Instant::now(),
                alive_ms: AtomicU64::new(0),
                transfers: std::sync::Mutex::default(),
            }),
        }
    }

    /// Listens and serves from now on, on a thread of its own. Returns where it listens: with port 0, the one that was chosen.
    pub fn serve(&self, address: SocketAddr) -> anyhow::Result<SocketAddr> {
        self.serve_on(Self::listen(address)?)
    }

    /// Takes the address; the connections that come wait until they are served.
    pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
        server::listen(address)
    }

    /// The rest of [`Self::serve`].
    pub fn serve_on(&self, listener: TcpListener) -> anyhow::Result<SocketAddr> {
        server::start(listener, &self.shared)
    }
}

impl Sink for MetricsSink {
    fn kinds(&self) -> Kinds {
        Kinds::ALL
    }

    fn write(&mut self, record: &Arc<Record>) {
        if matches!(**record, Record::Start(_)) {
            self.shared.ready.store(true, Ordering::Relaxed);
        }
        self.shared
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .observe(record);
    }

    fn flush(&mut self) {
        let now = self.shared.begin.elapsed().as_millis() as u64;
        self.shared.alive_ms.store(now, Ordering::Relaxed);
    }
}
