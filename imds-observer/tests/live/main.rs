//! Does the whole program hold its promises on real packets of real clients?
//!
//! Each test makes a lab of network namespaces without a way out, starts the built program in the node's, and reads what it writes.
//! Needs root and a kernel that takes eBPF: `cargo xtask test` runs these one at a time; a machine that can't is an error, not a skip.

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
