//! Reads a file's records ahead of the pipeline, which has enough to do, on threads of their own.
//!
//! Whoever of them is free takes the next chunk of lines and a place in the queue. So several read one file, and their records come in
//! its order all the same. What waits is bounded: chunks by their size and number, spare records by their number and size.

use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::super::input::Input;
use super::chunks::{Chunk, Chunks};
use super::written::{Callers, Written};
use super::{MAX_LINE_BYTES, Skip, parse};
use crate::record::Record;
use crate::source::Limits;

/// Bytes that are read at once: half of that, with fewer under way, cost more in handing over than it saved in caches (measured).
const CHUNK_BYTES: usize = 128 * 1024;
const LEAST_CHUNK_BYTES: usize = 16 * 1024;
/// Chunks of one file that wait.
const WAITING: usize = 4;
/// Skipped lines that are told one by one, per file.
const TOLD_PER_FILE: u64 = 5;
/// Records of handled batches that are kept to be filled again: batches, and records in each.
const SPARE_BATCHES: usize = 16;
const SPARE_RECORDS: usize = 256;

/// What all who read share: callers, and records that were handled and may be filled again.
#[derive(Clone)]
pub(in crate::source) struct Spares {
    records: Arc<Mutex<Vec<Vec<Arc<Record>>>>>,
    callers: Callers,
    /// Of chunks of all files together that are read and wait, about; more only because each file has at least one, and that a least size.
    waiting_bytes: usize,
}

impl Spares {
    pub(in crate::source) fn new(limits: &Limits) -> Self {
        Self {
            records: Arc::default(),
            callers: Callers::new(limits.callers),
            waiting_bytes: limits.read_ahead_bytes,
        }
    }

    /// Keeps what fits.
    pub(in crate::source) fn give(&self, mut records: Vec<Arc<Record>>) {
        records.truncate(SPARE_RECORDS);
        let mut batches = lock(&self.records);
        if batches.len() < SPARE_BATCHES {
            batches.push(records);
        }
    }

    fn take(&self) -> Vec<Arc<Record>> {
        lock(&self.records).pop().unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a chunk's lines gave.
#[derive(Default)]
struct Batch {
    records: std::vec::IntoIter<Result<Arc<Record>, Box<Skipped>>>,
    lines: u64,
}

struct Skipped {
    skip: Skip,
    /// Byte at which the line begins, after decompression.
    offset: u64,
    /// Lines of the chunk before it.
    line: u64,
}

/// What the threads of one file share.
struct Shared {
    chunks: Chunks,
    /// Where a batch will come from, in the order of their chunks.
    order: SyncSender<Receiver<Batch>>,
}

/// Records of one file.
pub(in crate::source) struct Ahead {
    name: Arc<str>,
    order: Receiver<Receiver<Batch>>,
    /// The batch that comes next, once it is being made.
    next: Option<Receiver<Batch>>,
    current: Batch,
    /// Lines of the batches before the current one.
    lines: u64,
    skipped: u64,
    ended: bool,
}

impl Ahead {
    /// `files`: how many are read at once, which share memory and processors.
    pub(in crate::source) fn new(input: Input, files: usize, spares: &Spares) -> Self {
        let name = input.name.clone();
        let chunk_bytes = (spares.waiting_bytes / WAITING / files.max(1)).clamp(LEAST_CHUNK_BYTES, CHUNK_BYTES);
        let (sender, order) = sync_channel(WAITING);
        let shared = Arc::new(Mutex::new(Shared {
            chunks: Chunks::new(input, chunk_bytes),
            order: sender,
        }));
        let processors = thread::available_parallelism().map_or(1, usize::from);
        for _ in 0..(processors / files.max(1)).max(1) {
            let (shared, spares) = (shared.clone(), spares.clone());
            thread::spawn(move || read(&shared, &spares));
        }
        Self {
            name,
            order,
            next: None,
            current: Batch::default(),
            lines: 0,
            skipped: 0,
            ended: false,
        }
    }

    /// The next record, or why a line gave none, which has been told. Empty lines are passed over.
    #[inline]
    pub(in crate::source) fn next_record(&mut self) -> Option<Result<Arc<Record>, Skip>> {
        loop {
            if let Some(record) = self.current.records.next() {
                return Some(record.map_err(|skipped| self.tell(*skipped)));
            }
            let batch = match self.next.take() {
                Some(next) => next.recv(),
                None => self.order.recv().and_then(|next| next.recv()),
            };
            match batch {
                Ok(batch) => self.follow(batch),
                Err(_) => {
                    self.end();
                    return None;
                }
            }
        }
    }

    /// Records (and lines that gave none) that are there already.
    pub(in crate::source) fn buffered(&self) -> usize {
        self.current.records.len()
    }

    /// Whether the next record is there already, or none will come.
    pub(in crate::source) fn is_ready(&mut self) -> bool {
        while self.current.records.len() == 0 {
            let next = match self.next.take() {
                Some(next) => next,
                None => match self.order.try_recv() {
                    Ok(next) => next,
                    Err(TryRecvError::Empty) => return false,
                    Err(TryRecvError::Disconnected) => return true,
                },
            };
            match next.try_recv() {
                Ok(batch) => self.follow(batch),
                Err(TryRecvError::Empty) => {
                    self.next = Some(next);
                    return false;
                }
                Err(TryRecvError::Disconnected) => return true,
            }
        }
        true
    }

    fn follow(&mut self, batch: Batch) {
        self.lines += self.current.lines;
        self.current = batch;
    }

    fn tell(&mut self, Skipped { skip, offset, line }: Skipped) -> Skip {
        self.skipped += 1;
        if self.skipped <= TOLD_PER_FILE {
            let line = self.lines + line + 1;
            tracing::warn!("{}:{offset}: line {line}: {skip}", self.name);
        }
        skip
    }

    fn end(&mut self) {
        if !self.ended
            && let Some(more @ 1..) = self.skipped.checked_sub(TOLD_PER_FILE)
        {
            tracing::warn!("{}: {more} more lines skipped", self.name);
        }
        self.ended = true;
    }
}

/// Until the file ends or nobody wants its records any more.
fn read(shared: &Mutex<Shared>, spares: &Spares) {
    let mut written = Written::new(spares.callers.clone());
    let mut spare = Vec::new();
    let mut buffer = None;
    loop {
        let (chunk, sender) = {
            let mut shared = lock(shared);
            if let Some(buffer) = buffer.take() {
                shared.chunks.take_back(buffer);
            }
            let Some(chunk) = shared.chunks.next_chunk() else {
                return;
            };
            let (sender, batch) = sync_channel(1);
            if shared.order.send(batch).is_err() {
                return;
            }
            (chunk, sender)
        };
        // About as many as the chunk has lines, so that no record is made while others wait to be filled.
        if spare.len() < lines_of(&chunk) {
            spare.append(&mut spares.take());
        }
        let batch = batch(&chunk, &mut written, &mut spare);
        buffer = Some(chunk.into_buffer());
        if sender.send(batch).is_err() {
            return;
        }
    }
}

/// About as many as it has, rather too many: a line of ours has 600 bytes at least.
fn lines_of(chunk: &Chunk) -> usize {
    chunk.bytes().len() / 512
}

fn batch(chunk: &Chunk, written: &mut Written, spare: &mut Vec<Arc<Record>>) -> Batch {
    let mut records = Vec::with_capacity(lines_of(chunk));
    let (mut offset, mut lines) = (chunk.offset, 0);
    let mut rest = chunk.bytes();
    while !rest.is_empty() {
        // Nearly all lines.
        if let Some((record, length)) = written.first_exchange(rest, spare)
            && let Some((b'\n', behind)) = rest.get(length..).and_then(<[u8]>::split_first)
            && length <= MAX_LINE_BYTES
        {
            records.push(Ok(record));
            rest = behind;
            offset += length as u64 + 1;
            lines += 1;
            continue;
        }
        let end = memchr::memchr(b'\n', rest);
        let (line, behind) = rest.split_at(end.unwrap_or(rest.len()));
        let record = match line.trim_ascii() {
            _ if line.len() > MAX_LINE_BYTES => Some(Err(Skip::TooLong)),
            [] => None,
            trimmed => Some(match written.exchange(trimmed, spare) {
                Some(record) => Ok(record),
                // A complete record without its newline is a record.
                None => parse(trimmed)
                    .map(Arc::new)
                    .map_err(|skip| if end.is_some() { skip } else { Skip::CutOff }),
            }),
        };
        let at = |skip| Skipped {
            skip,
            offset,
            line: lines,
        };
        records.extend(record.map(|record| record.map_err(|skip| Box::new(at(skip)))));
        rest = behind.get(1..).unwrap_or_default();
        offset += line.len() as u64 + 1;
        lines += 1;
    }
    if let Some(kind) = chunk.failed {
        records.push(Err(Box::new(Skipped {
            skip: Skip::Unreadable(kind),
            offset,
            line: lines,
        })));
    }
    Batch {
        records: records.into_iter(),
        lines,
    }
}
