//! What do monitoring systems see? Counters by workload, never by process or raw path, over HTTP for Prometheus.
//!
//! Bounded: [`MAX_WORKLOADS`] workloads have series of their own, the rest share the workload `other`; one that was silent for
//! [`FORGET_NS`] gives its place up. So there are at most some 60 series a workload, and most have ten.

mod exposition;
mod server;
mod state;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::filter::Kinds;
use crate::record::Record;
use crate::sinks::Sink;
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
}

/// Feeds the metrics that it serves.
#[derive(Debug)]
pub struct MetricsSink {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl MetricsSink {
    /// Listens and serves from now on, on a thread of its own.
    pub fn serve(address: SocketAddr) -> anyhow::Result<Self> {
        Self::serve_on(Self::listen(address)?)
    }

    /// Takes the address; the connections that come wait until they are served.
    pub fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
        server::listen(address)
    }

    pub fn serve_on(listener: TcpListener) -> anyhow::Result<Self> {
        let shared = Arc::new(Shared {
            state: std::sync::Mutex::default(),
            ready: AtomicBool::new(false),
            begin: Instant::now(),
            alive_ms: AtomicU64::new(0),
        });
        let address = server::start(listener, &shared)?;
        Ok(Self { shared, address })
    }

    /// Where it listens: with port 0, the one that was chosen.
    pub fn address(&self) -> SocketAddr {
        self.address
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
