//! Reads a capture's packets ahead of the pipeline, on a thread of its own.
//!
//! What waits is bounded: batches by their number, events of a batch by the memory that all files may take together.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::vec::IntoIter;

use super::{Capture, Next};
use crate::source::Limits;

/// Batches that wait, besides the one that is being read and the one that is being handled.
const WAITING: usize = 4;
const BATCH_EVENTS: usize = 512;
const LEAST_BATCH_EVENTS: usize = 16;

#[derive(Default)]
struct Batch {
    events: IntoIter<Next>,
    /// Packets read by its end, of whatever kind.
    packets: u64,
}

/// Events of one capture.
pub(in crate::source) struct Ahead {
    pub(in crate::source) name: Arc<str>,
    batches: Receiver<Batch>,
    current: Batch,
    reader: Option<JoinHandle<()>>,
}

impl Ahead {
    /// `files`: how many are read at once, which share memory.
    pub(in crate::source) fn new(capture: Capture, files: usize, limits: &Limits) -> Self {
        let share = limits.read_ahead_bytes / files.max(1) / (WAITING + 2) / size_of::<Next>();
        let most = share.clamp(LEAST_BATCH_EVENTS, BATCH_EVENTS);
        let (sender, batches) = sync_channel(WAITING);
        Self {
            name: capture.name.clone(),
            batches,
            current: Batch::default(),
            reader: Some(thread::spawn(move || read(capture, most, &sender))),
        }
    }

    /// Packets of what was handed on so far, of whatever kind.
    pub(in crate::source) fn packets(&self) -> u64 {
        self.current.packets
    }

    pub(in crate::source) fn next_event(&mut self) -> Next {
        loop {
            if let Some(next) = self.current.events.next() {
                return next;
            }
            match self.batches.recv() {
                Ok(batch) => self.current = batch,
                Err(_) => {
                    self.end();
                    return Next::End;
                }
            }
        }
    }

    /// Whether the next event is there already, or none will come.
    pub(in crate::source) fn is_ready(&mut self) -> bool {
        while self.current.events.len() == 0 {
            match self.batches.try_recv() {
                Ok(batch) => self.current = batch,
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => return true,
            }
        }
        true
    }

    /// A reader that panicked has not read the capture to its end.
    fn end(&mut self) {
        if let Some(Err(panic)) = self.reader.take().map(JoinHandle::join) {
            resume_unwind(panic);
        }
    }
}

/// Until the capture ends or nobody wants its events any more.
fn read(mut capture: Capture, most: usize, batches: &SyncSender<Batch>) {
    loop {
        let mut events = Vec::with_capacity(most);
        let mut ended = false;
        // What has been read is handed on before a pipe is waited for.
        while events.len() < most && (events.is_empty() || capture.is_ready()) {
            match capture.next_event() {
                Next::End => {
                    ended = true;
                    break;
                }
                next => events.push(next),
            }
        }
        let batch = Batch {
            events: events.into_iter(),
            packets: capture.packets(),
        };
        if batches.send(batch).is_err() || ended {
            return;
        }
    }
}
