//! Pairs requests with responses on one connection and determines the outcome of each.
//!
//! IMDS answers in order, so a queue suffices. A gap in the bytes resets the pair: a missing exchange is better than a wrong one.

mod attempt;
mod connection;
mod errno;
mod facts;
mod fuzz;
mod pending;
mod shares;
mod sightings;
mod table;
#[cfg(test)]
mod tests;

pub use facts::Fact;
#[doc(hidden)]
pub use fuzz::fuzz_flow_table;
pub use table::{FlowTable, Limits, Scope};
