//! The detectors on whole traces: scenarios, days of simulated time, fixtures, manual pages.

mod evidence_times;
mod fixtures;
mod manuals;
mod order;
mod scenario;
mod scenarios;
mod simulations;
