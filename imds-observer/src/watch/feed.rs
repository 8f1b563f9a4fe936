//! The sinks of the live view: one hands records to the screen's thread, one writes the trace while that is switched on.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;

use crate::filter::Kinds;
use crate::record::{Kind, Record};
use crate::sinks::Sink;
use crate::sinks::destination::Destination;
use crate::sinks::ndjson::{Line, NdjsonOutput};
use crate::sinks::queue::Queue;

/// Hands records on without waiting, live; what the screen can't take is shed and counted. A trace waits instead.
pub struct Feed {
    sender: SyncSender<Arc<Record>>,
    waits: bool,
    shed: u64,
    closed: Arc<AtomicBool>,
}

/// The screen's end.
pub struct Records {
    pub receiver: Receiver<Arc<Record>>,
    closed: Arc<AtomicBool>,
}

impl Drop for Records {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

impl Feed {
    /// At most `limit` records wait for the screen.
    pub fn new(limit: usize, waits: bool) -> (Self, Records) {
        let (sender, receiver) = sync_channel(limit);
        let closed = Arc::new(AtomicBool::new(false));
        let records = Records {
            receiver,
            closed: closed.clone(),
        };
        let feed = Self {
            sender,
            waits,
            shed: 0,
            closed,
        };
        (feed, records)
    }
}

impl Sink for Feed {
    fn kinds(&self) -> Kinds {
        Kinds::ALL
    }

    fn write(&mut self, record: &Arc<Record>) {
        if self.waits {
            // Fails only when the screen is gone.
            let _ = self.sender.send(record.clone());
        } else if let Err(TrySendError::Full(_)) = self.sender.try_send(record.clone()) {
            self.shed += 1;
        }
    }

    fn shed(&self) -> u64 {
        self.shed
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }
}

/// Writes records to a file once recording starts. Clones are the same trace.
#[derive(Clone)]
pub struct Trace {
    shared: Arc<Shared>,
    kinds: Kinds,
    limit: usize,
    held_bytes: usize,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Option<Queue<Line>>>,
    start: Mutex<Option<Arc<Record>>>,
    /// Dropped records of traces that are closed.
    shed: AtomicU64,
    files: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Trace {
    /// At most `limit` records wait, and `held_bytes` of lines while the disk is full.
    pub fn new(kinds: Kinds, limit: usize, held_bytes: usize) -> Self {
        Self {
            shared: Arc::default(),
            kinds,
            limit,
            held_bytes,
        }
    }

    /// Begins a new file. An existing one is never written over.
    pub fn begin(&self, path: &Path) -> anyhow::Result<()> {
        let name = path.display().to_string();
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .with_context(|| format!("create {name}"))?;
        let output = NdjsonOutput::new(Destination::file(path, None)?, self.held_bytes);
        let mut queue = Queue::new(output, self.kinds, self.limit)?;
        if let Some(start) = lock(&self.shared.start).as_ref()
            && self.kinds.has(Kind::Start)
        {
            queue.write(start);
        }
        *lock(&self.shared.queue) = Some(queue);
        lock(&self.shared.files).push(name);
        Ok(())
    }

    /// Ends the file.
    pub fn end(&self) -> anyhow::Result<()> {
        let Some(mut queue) = lock(&self.shared.queue).take() else {
            return Ok(());
        };
        let result = queue.finish();
        self.shared.shed.fetch_add(queue.shed(), Ordering::Relaxed);
        result
    }

    /// Names of all files so far.
    pub fn files(&self) -> Vec<String> {
        lock(&self.shared.files).clone()
    }
}

impl Sink for Trace {
    fn kinds(&self) -> Kinds {
        self.kinds.with(Kind::Start)
    }

    fn write(&mut self, record: &Arc<Record>) {
        if record.kind() == Kind::Start {
            *lock(&self.shared.start) = Some(record.clone());
        }
        if let Some(queue) = lock(&self.shared.queue).as_mut()
            && self.kinds.has(record.kind())
        {
            queue.write(record);
        }
    }

    fn flush(&mut self) {
        if let Some(queue) = lock(&self.shared.queue).as_mut() {
            queue.flush();
        }
    }

    fn shed(&self) -> u64 {
        let open = lock(&self.shared.queue).as_ref().map_or(0, Sink::shed);
        open + self.shared.shed.load(Ordering::Relaxed)
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        self.end()
    }
}
