//! What do monitoring systems see? Counters by workload, never by process or raw path, over HTTP for Prometheus, and sent to an
//! OpenTelemetry collector.
//!
//! Bounded: [`Limits::workloads`] workloads have series of their own, the rest share the workload `other`; one that was silent for long
//! gives its place up when another one needs it. So there are at most some 60 series a workload, and most have ten.

#[cfg(live)]
mod exposition;
#[cfg(feature = "otlp")]
pub mod otlp;
#[cfg(live)]
mod series;
#[cfg(live)]
mod server;
#[cfg(live)]
mod sink;
#[cfg(live)]
mod state;

use serde::{Deserialize, Serialize};

#[cfg(live)]
pub use sink::MetricsSink;
#[cfg(live)]
use sink::Shared;

/// Bounds of the metrics and of what is sent to a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Workloads with series of their own; all others share one.
    pub workloads: usize,
    /// Status codes distinguished per workload: a hostile server may send a thousand.
    pub statuses: usize,
    /// Drop reasons, interfaces and missing capabilities that are distinguished.
    pub names: usize,
    /// Findings that are known to be open.
    pub open_findings: usize,
    /// Connections of scrapers at a time. They need two or three; further connections wait.
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
