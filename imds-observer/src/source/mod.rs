//! Where events come from. Live kernel events and packets from a capture become the same [`Event`]s, so everything behind is one pipeline.

pub mod capture;
mod event;
pub mod input;
mod live;
pub mod ndjson;
pub mod paced;
pub mod traces;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use imds_observer_common::{Direction, ProcessKey};

pub use event::{
    ConnectAttempt, ConnectResult, Event, FlowId, IcmpError, InterfaceSample, Packet, PacketDrop, Sender, SocketChange,
    SocketState, Vantage,
};
pub use live::LiveSource;

use crate::record::{Attached, Confinement, Host, Missing, Mode, Record, Time};

/// What a source knows of itself once it is open: the `start` record's facts.
#[derive(Clone, Debug)]
pub struct SourceFacts {
    pub mode: Mode,
    /// The host that a trace comes from, if it is one; `None`: this host.
    pub host: Option<Host>,
    /// First event's time of a trace; `None`: now.
    pub time: Option<Time>,
    pub kernel: Option<String>,
    pub endpoints: Vec<String>,
    pub interfaces: Vec<String>,
    pub attached: Vec<Attached>,
    pub missing: Vec<Missing>,
    /// What a live run still may do.
    pub confinement: Option<Confinement>,
}

/// Bounds of what is read from files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of records that are read ahead, of all files together.
    pub read_ahead_bytes: usize,
    /// Callers that are known by what is written of them. One more, and all are read anew.
    pub callers: usize,
    /// Processes that a capture's comments have told of.
    pub processes: usize,
    /// Heads of requests in a capture that go on in the next packet.
    pub unfinished: usize,
    /// Interfaces that one capture may name; packets of others are passed over.
    pub interfaces: usize,
    /// Interfaces of a capture whose packets are counted for the quota.
    pub counted_interfaces: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            read_ahead_bytes: 16 << 20,
            callers: 4_096,
            processes: 4_096,
            unfinished: 4_096,
            interfaces: 4_096,
            counted_interfaces: 256,
        }
    }
}

/// How it stands with a source after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// More events are there already.
    More,
    /// Nothing more came within the wait.
    Idle,
    /// Nothing will come any more.
    End,
}

/// Live or offline, the pipeline sees only this.
pub trait Source {
    fn start(&self) -> SourceFacts;

    /// Appends events in the order in which they became known; returns early when some are there, and after `wait` at the latest
    /// (a source of files doesn't wait). An error ends the run.
    fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState>;

    /// Takes back records that have been handled: their memory may serve those that come.
    fn take_back(&mut self, records: Vec<Arc<Record>>) {
        drop(records);
    }

    /// What is still to be told when the run ends before the source does.
    fn last_batch(&mut self, out: &mut Vec<Event>) {
        let _ = out;
    }
}
