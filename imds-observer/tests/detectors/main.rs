//! The detectors on whole traces: scenarios, days of simulated time, fixtures, manual pages.

mod fixtures;
mod manuals;
mod order;
mod scenario;
mod scenarios;
mod simulations;
