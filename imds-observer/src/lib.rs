//! Traces traffic to the EC2 instance metadata service (IMDS), attributes it to processes and containers, and diagnoses failures.
//!
//! As a library it reads and judges the records that the program writes: [`record`] has their types, [`source::ndjson`] reads a line,
//! [`detectors`] find failures. All other modules are the program's own, and may change in any release.
//!
//! Reads a record:
//!
//! ```
//! use imds_observer::record::Body;
//! use imds_observer::source::ndjson;
//!
//! let line = br#"{"record":"loss","schema":1,"time":"2026-03-01T12:00:00.000000000Z","host":"node-1",
//!     "ring_buffer":2,"unparsed":0,"truncated":0,"evicted":0,"unattributed":0}"#;
//! let record = ndjson::parse(line).expect("a record");
//! assert_eq!(&*record.host, "node-1");
//! assert!(matches!(record.body, Body::Loss(loss) if loss.ring_buffer == 2));
//! assert!(ndjson::parse(b"{}").is_err());
//! ```
//!
//! Judges a trace:
//!
//! ```
//! use imds_observer::detectors::{DetectorConfig, Detectors, Observation};
//! use imds_observer::host_facts::HostFacts;
//! use imds_observer::source::ndjson;
//!
//! # let trace = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traces/tight-loop.ndjson"));
//! let mut detectors = Detectors::new(&DetectorConfig::default(), HostFacts::default());
//! let mut findings = Vec::new();
//! for line in trace.lines() {
//!     let record = ndjson::parse(line.as_bytes()).expect("a record");
//!     if let Some(observation) = Observation::of(&record) {
//!         detectors.observe(&observation, &mut findings);
//!     }
//!     detectors.advance(record.settled(), &mut findings);
//! }
//! assert_eq!(findings[0].code.as_str(), "tight-polling");
//! ```
//!
//! In the sources, start at `pipeline`: source -> flow -> exchange -> attribution -> detectors -> sinks. ARCHITECTURE.md has the map and
//! the invariants. `cfg(live)`: what observes this host. It is the cargo feature `live` on Linux; the rest reads recordings and builds
//! everywhere.

#[doc(hidden)]
pub mod attribution;
#[doc(hidden)]
pub mod bpf;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod config;
pub mod detectors;
#[cfg(live)]
#[doc(hidden)]
pub mod doctor;
pub mod event;
#[doc(hidden)]
pub mod exchange;
#[cfg(live)]
#[doc(hidden)]
pub mod exec;
#[doc(hidden)]
pub mod filter;
#[doc(hidden)]
pub mod flow;
#[cfg(live)]
#[doc(hidden)]
pub mod host;
pub mod host_facts;
#[doc(hidden)]
pub mod hosts;
#[doc(hidden)]
pub mod http;
#[doc(hidden)]
pub mod imds;
#[cfg(live)]
#[doc(hidden)]
pub mod live;
mod memo;
#[doc(hidden)]
pub mod metrics;
#[doc(hidden)]
pub mod pipeline;
#[doc(hidden)]
pub mod preflight;
#[doc(hidden)]
pub mod quantity;
pub mod record;
#[doc(hidden)]
pub mod redact;
#[doc(hidden)]
pub mod report;
#[cfg(live)]
#[doc(hidden)]
pub mod sandbox;
#[doc(hidden)]
pub mod sinks;
pub mod source;
#[doc(hidden)]
pub mod stop;
#[doc(hidden)]
pub mod story;
#[doc(hidden)]
pub mod summary;
#[doc(hidden)]
pub mod watch;
#[cfg(live)]
#[doc(hidden)]
pub mod wipe;
