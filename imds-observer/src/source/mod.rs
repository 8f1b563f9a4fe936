//! Where events come from. Live kernel events and packets from a capture become the same [`Event`]s, so everything behind is one pipeline.

pub mod capture;
pub mod input;
mod merged;
pub mod ndjson;
mod order;
pub mod paced;
mod resolver;
pub mod traces;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(live)]
pub use resolver::configured_resolver;

use crate::event::Event;
use crate::record::{Attached, Confinement, Host, Missing, Mode, Record, Time};

/// Facts about an open source, for the `start` record.
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
    /// Filters of the source, as `start` names them.
    pub filters: Vec<String>,
    /// Remaining privileges of a live run.
    pub confinement: Option<Confinement>,
}

/// Bounds of what is read from files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of files that are read and not yet handled, by all threads together.
    pub read_ahead_bytes: usize,
    /// Capacity of the cache of callers by their JSON. One more clears it.
    pub callers: usize,
    /// Processes from a capture's comments.
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

/// State of a source after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceState {
    /// More events are there already.
    More,
    /// Nothing more came within the wait.
    Idle,
    /// Nothing will come any more.
    End,
}

/// Handles the records of a batch, and returns whether to continue.
pub type Handle<'a> = &'a mut (dyn FnMut(&[Arc<Record>]) -> ControlFlow<()> + Send);

/// Takes the records of a batch.
pub type Then<'a> = &'a mut (dyn FnMut(&[Arc<Record>]) + Send);

/// Live or offline, the pipeline sees only this.
pub trait Source {
    fn start(&self) -> SourceFacts;

    /// Appends events in the order in which they became known; returns early when some are there, and after `wait` at the latest
    /// (a source of files doesn't wait). An error ends the run.
    fn next_batch(&mut self, wait: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState>;

    /// Takes back events that have been handled: their memory may serve those that come.
    fn take_back(&mut self, events: &mut Vec<Event>) {
        events.clear();
    }

    /// Gives all of its records to `handle`, batch by batch in their order, and after it to `then`, each on the thread that has read it.
    /// One may be at work while the other has the batch before. `false`: this source can't, and has given none.
    fn in_turns(&mut self, handle: Handle<'_>, then: Then<'_>) -> bool {
        let _ = (handle, then);
        false
    }

    /// When the oldest event happened that this source holds back. Ends that an event may still explain are not decided before it has come.
    fn held_since(&self) -> Option<Time> {
        None
    }

    /// Events to emit when the run ends before the source.
    fn last_batch(&mut self, out: &mut Vec<Event>) {
        let _ = out;
    }
}
