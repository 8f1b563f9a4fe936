//! The types that the kernel programs and the user-space loader exchange, and nothing else.
//!
//! Every event starts with an [`EventHeader`], whose `kind` identifies the struct of the event. All structs are `repr(C)` without padding,
//! so both sides read the same bytes on every architecture with the same byte order. User space decodes with zerocopy and never transmutes.
//! It counts and skips an event with an unknown kind, direction or length.
#![no_std]

mod config;
mod connect;
mod counters;
mod drop;
mod flow;
mod header;
mod process;
mod redirect;
mod segment;
pub mod sizes;
mod socket;
mod tuple;
mod wire;

pub use config::{Endpoints, KernelOffsets, MAX_ENDPOINTS, NO_OFFSET};
pub use connect::ConnectEvent;
pub use counters::{InterfaceCounters, LossCounters, TRAFFIC_CLASSES, TrafficClass};
pub use drop::DropEvent;
pub use flow::{Connecting, Flow};
pub use header::{Direction, EventHeader, EventKind};
pub use process::{
    Ancestor, CGROUP_BYTES, CMDLINE_BYTES, COMM_BYTES, EXE_BYTES, MAX_ANCESTORS, ProcessEvent, ProcessKey,
};
pub use redirect::RedirectEvent;
pub use segment::{HEAD_BYTES, HEADS_PER_PACKET, SegmentEvent, SegmentFlags};
pub use socket::SocketEvent;
pub use tuple::{Tuple, mapped_v4};
pub use wire::{STATUS_LINE_BYTES, WireEvent};
