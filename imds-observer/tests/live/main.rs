//! Tests the whole program on real packets of real clients.
//!
//! Each test creates a lab of network namespaces without a route to the outside, starts the built program in the node's namespace, and
//! reads its output. Needs root and a kernel with eBPF. `cargo xtask test` runs these tests one at a time; a machine that can't run them is
//! an error, not a skip.

#![cfg(live)]

mod callers;
mod clock;
mod command_line;
mod confined;
mod containers;
mod detached;
mod devices;
mod doctor;
mod exec;
mod faults;
mod harmless;
mod hostile;
mod hosts;
mod main_job;
mod networks;
mod reduced;
mod scenarios;
mod scope;
mod secrets;
mod service;
mod short_lived;
mod stuck_sinks;
mod support;
mod terminal;
