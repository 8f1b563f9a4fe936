//! Where records are written. In a live run each sink has a [`queue::Queue`], so that a slow sink never blocks the reader.

mod backlog;
pub mod collect;
pub mod destination;
mod history;
pub mod ndjson;
#[cfg(unix)]
mod open;
#[cfg(not(unix))]
#[path = "open_elsewhere.rs"]
mod open;
pub mod queue;
pub mod text;

use std::io;
use std::sync::Arc;

use crate::filter::Kinds;
use crate::record::{Kind, Record};

/// Takes records from the pipeline.
pub trait Sink: Send {
    /// The kinds that it wants; others are not even made for it.
    fn kinds(&self) -> Kinds;

    fn write(&mut self, record: &Arc<Record>);

    /// The source may pause now.
    fn flush(&mut self) {}

    /// Records dropped so far.
    fn shed(&self) -> u64 {
        0
    }

    /// The reader has closed: a normal end.
    fn is_closed(&self) -> bool {
        false
    }

    /// Writes what is still held back.
    fn finish(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Item that an output accepts: a record, or its serialized form, which is produced on the pipeline thread while the record is in its
/// cache.
pub trait Item: Send + 'static {
    fn of(record: &Arc<Record>) -> Self;

    fn kind(&self) -> Kind;

    /// Bytes that it holds while it waits.
    fn bytes(&self) -> usize;
}

impl Item for Arc<Record> {
    fn of(record: &Arc<Record>) -> Self {
        record.clone()
    }

    fn kind(&self) -> Kind {
        self.body.kind()
    }

    /// Without what records of one caller share. A finding's evidence, and a summary's rows, are not looked into: few of them wait.
    fn bytes(&self) -> usize {
        size_of::<Record>()
    }
}

/// Writes items, on any thread.
pub trait Output: Send {
    type Item: Item;

    /// Writes and flushes. Returns the number of dropped items; `BrokenPipe` means that the reader has closed.
    fn write(&mut self, items: &[Self::Item]) -> io::Result<u64>;

    /// A way past [`Self::write`], where there is one that never waits.
    fn express(&mut self) -> Option<Box<dyn Express<Self::Item>>> {
        None
    }

    /// Called now and then while nothing is to be written.
    fn idle(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The last call.
    fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what can be written without waiting.
pub trait Express<I>: Send {
    /// Takes away from `items` those that it has written, from the first on. Only a reader that is gone is an error.
    fn write(&mut self, items: &mut Vec<I>) -> io::Result<()>;
}

/// Writes on the caller's thread: for traces, where waiting is right and shedding would be wrong.
pub struct Direct<O: Output> {
    output: O,
    kinds: Kinds,
    waiting: Vec<O::Item>,
    shed: u64,
    closed: bool,
    failed: Option<io::Error>,
}

/// Records that are written at once.
const BATCH: usize = 256;

impl<O: Output> Direct<O> {
    pub fn new(output: O, kinds: Kinds) -> Self {
        Self {
            output,
            kinds,
            waiting: Vec::with_capacity(BATCH),
            shed: 0,
            closed: false,
            failed: None,
        }
    }

    fn write_waiting(&mut self) {
        if self.closed {
            self.waiting.clear();
            return;
        }
        match self.output.write(&self.waiting) {
            Ok(shed) => self.shed += shed,
            Err(error) => self.fail(error),
        }
        self.waiting.clear();
    }

    fn fail(&mut self, error: io::Error) {
        self.closed = true;
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.failed = Some(error);
        }
    }
}

impl<O: Output> Sink for Direct<O> {
    fn kinds(&self) -> Kinds {
        self.kinds
    }

    fn write(&mut self, record: &Arc<Record>) {
        self.waiting.push(O::Item::of(record));
        if self.waiting.len() >= BATCH {
            self.write_waiting();
        }
    }

    fn flush(&mut self) {
        self.write_waiting();
    }

    fn shed(&self) -> u64 {
        self.shed
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.write_waiting();
        if !self.closed
            && let Err(error) = self.output.close()
        {
            self.fail(error);
        }
        match self.failed.take() {
            Some(error) => Err(anyhow::Error::new(error).context("write the output")),
            None => Ok(()),
        }
    }
}
