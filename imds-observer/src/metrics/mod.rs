//! What do monitoring systems see? Counters by workload, never by process or raw path, over HTTP for Prometheus, and sent to an
//! OpenTelemetry collector.
//!
//! Bounded: [`MAX_WORKLOADS`] workloads have series of their own, the rest share the workload `other`; one that was silent for
//! [`FORGET_NS`] gives its place up. So there are at most some 60 series a workload, and most have ten.

mod exposition;
#[cfg(feature = "otlp")]
pub mod otlp;
mod series;
mod server;
mod state;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::filter::Kinds;
use crate::record::Record;
use crate::sinks::Sink;
use series::Transfers;
use state::State;

/// Workloads with series of their own.
pub const MAX_WORKLOADS: usize = 256;
/// Silence after which a workload's series may go, nanoseconds.
const FORGET_NS: u64 = 3_600_000_000_000;

/// What the pipeline writes and the server reads.
#[derive(Debug)]
struct Shared {
    state: std::sync::Mutex<State>,
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

impl Default for MetricsSink {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: std::sync::Mutex::default(),
                ready: AtomicBool::new(false),
                begin: Instant::now(),
                alive_ms: AtomicU64::new(0),
                transfers: std::sync::Mutex::default(),
            }),
        }
    }
}

impl MetricsSink {
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
