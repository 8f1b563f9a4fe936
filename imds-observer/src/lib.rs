//! Traces traffic to the EC2 instance metadata service (IMDS), attributes it to processes and containers, and diagnoses failures.
//!
//! Start at `pipeline`: source -> flow -> exchange -> attribution -> detectors -> sinks. ARCHITECTURE.md has the map and the invariants.
//!
//! `cfg(live)`: what observes this host. It is the cargo feature `live` on Linux; the rest reads recordings and builds everywhere.

pub mod attribution;
pub mod bpf;
pub mod cli;
pub mod config;
pub mod detectors;
#[cfg(live)]
pub mod doctor;
pub mod event;
pub mod exchange;
pub mod filter;
pub mod flow;
#[cfg(live)]
pub mod host;
pub mod host_facts;
pub mod hosts;
pub mod http;
pub mod imds;
#[cfg(live)]
pub mod live;
mod memo;
pub mod metrics;
pub mod pipeline;
pub mod preflight;
pub mod quantity;
pub mod record;
pub mod redact;
pub mod report;
#[cfg(live)]
pub mod rights;
pub mod sinks;
pub mod source;
pub mod stop;
pub mod summary;
pub mod watch;
#[cfg(live)]
pub mod wipe;
