//! The sink that feeds the metrics.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::series::Transfers;
use super::state::Totals;
use super::{Limits, server};
use crate::filter::Kinds;
use crate::record::{Body, Record};
use crate::sinks::Sink;

/// State that the pipeline writes and the server reads.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: std::sync::Mutex<Totals>,
    /// Limit on simultaneous connections of scrapers.
    pub(super) connections: usize,
    /// Hooks are attached.
    pub(super) ready: AtomicBool,
    pub(super) begin: Instant,
    /// Last iteration of the pipeline loop, in milliseconds since `begin`.
    pub(super) alive_ms: AtomicU64,
    /// Results of transfers, if there is a collector.
    pub(super) transfers: std::sync::Mutex<Option<Transfers>>,
}

impl Shared {
    pub(super) fn transfers(&self) -> Option<Transfers> {
        *self.transfers.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Feeds the metrics.
#[derive(Debug)]
pub struct MetricsSink {
    pub(super) shared: Arc<Shared>,
}

impl MetricsSink {
    /// When all are used, series of workloads that were idle for this long are dropped.
    pub fn new(limits: Limits, silence: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                connections: limits.connections,
                state: std::sync::Mutex::new(Totals::new(limits, silence)),
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
        if matches!(record.body, Body::Start(_)) {
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
