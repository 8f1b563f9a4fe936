//! Records of one file, and of several merged by time, read on the consuming thread.

use std::sync::Arc;
use std::vec;

use super::super::input::Input;
use super::super::order::Order;
use super::batch::{Batch, Skips};
use super::chunks::Chunks;
use super::written::{Callers, Written, is_spare};
use crate::record::Record;
use crate::source::traces::InputCounts;

/// Bytes that are read at once: few enough to be in the caches still when they are understood.
const CHUNK_BYTES: usize = 128 * 1024;
const LEAST_CHUNK_BYTES: usize = 16 * 1024;
/// Size of a reader's free list of records.
const SPARE_RECORDS: usize = 2048;

/// The reader of one thread.
pub(in crate::source) struct Reader {
    written: Written,
    /// Records that were handled.
    spare: Vec<Arc<Record>>,
}

impl Reader {
    pub(in crate::source) fn new(callers: Callers) -> Self {
        Self {
            written: Written::new(callers),
            spare: Vec::new(),
        }
    }

    /// Another one, for another thread, that knows the same callers.
    pub(super) fn another(&self) -> Self {
        Self::new(self.written.callers())
    }

    /// Takes back records that were handled, as many as it can use.
    pub(in crate::source) fn take_back(&mut self, records: impl Iterator<Item = Arc<Record>>) {
        let room = SPARE_RECORDS.saturating_sub(self.spare.len());
        self.spare.extend(records.filter(|record| is_spare(record)).take(room));
    }
}

/// A file of records.
pub(in crate::source) struct File {
    chunks: Chunks,
    /// Reading may wait for the writer.
    waits: bool,
    ended: bool,
    read: vec::IntoIter<Arc<Record>>,
    skips: Skips,
}

impl File {
    /// One of so many, which share memory.
    pub(in crate::source) fn new(input: Input, files: usize, read_ahead_bytes: usize) -> Self {
        let chunk_bytes = (read_ahead_bytes / files.max(1)).clamp(LEAST_CHUNK_BYTES, CHUNK_BYTES);
        Self {
            skips: Skips::new(input.name.clone()),
            waits: input.waits,
            chunks: Chunks::new(input, chunk_bytes),
            ended: false,
            read: Vec::new().into_iter(),
        }
    }

    /// The next record. Lines without one are logged and counted.
    pub(in crate::source) fn next_record(&mut self, reader: &mut Reader) -> Option<Arc<Record>> {
        self.read_on(reader);
        self.read.next()
    }

    /// The next record if it was read already.
    pub(super) fn next(&self) -> Option<&Arc<Record>> {
        self.read.as_slice().first()
    }

    /// Whether the next record can be had without waiting.
    pub(in crate::source) fn is_ready(&self) -> bool {
        !self.waits || self.next().is_some() || self.ended
    }

    /// Adds its lines that gave no record.
    pub(in crate::source) fn count_skipped(&self, counts: &mut InputCounts) {
        counts.skipped += self.skips.skipped;
        counts.broken += self.skips.broken;
    }

    /// Reads until there is a record, or the file ends. Gives the bytes that were read.
    fn read_on(&mut self, reader: &mut Reader) -> usize {
        let mut bytes = 0;
        while self.next().is_none() && !self.ended {
            let Some(chunk) = self.chunks.next_chunk() else {
                self.ended = true;
                self.skips.end();
                break;
            };
            let batch = Batch::read(&chunk, &mut reader.written, &mut reader.spare);
            self.skips.of(&batch);
            self.read = batch.records.into_iter();
            bytes += chunk.bytes().len();
            self.chunks.take_back(chunk.into_buffer());
        }
        bytes
    }
}

/// Files of records, merged by time.
pub(super) struct Files {
    files: Vec<File>,
    order: Order,
    /// Files whose read records are all taken.
    behind: Vec<usize>,
}

impl Files {
    /// Reads the first records of each.
    pub(super) fn new(files: Vec<File>, reader: &mut Reader) -> Self {
        let mut merged = Self {
            order: Order::new(files.len()),
            behind: Vec::new(),
            files,
        };
        for index in 0..merged.files.len() {
            merged.read_on(index, reader);
        }
        merged
    }

    pub(super) fn files(&self) -> &[File] {
        &self.files
    }

    /// Adds what comes next, at least so many bytes if there are, but waits for nothing once it has something. `false`: there is no more.
    pub(super) fn read(&mut self, reader: &mut Reader, least_bytes: usize, out: &mut Vec<Arc<Record>>) -> bool {
        let mut bytes = 0;
        loop {
            while let Some(index) = self.behind.pop() {
                if !out.is_empty() && (bytes >= least_bytes || self.files[index].waits) {
                    self.behind.push(index);
                    return true;
                }
                bytes += self.read_on(index, reader);
            }
            let Some(index) = self.order.pop() else {
                return !out.is_empty();
            };
            let alone = self.files.len() == 1;
            let file = &mut self.files[index];
            if alone {
                out.extend(&mut file.read);
            }
            let last = self.order.is_empty();
            while let Some(next) = file.next()
                && (last || self.order.is_next(index, next))
            {
                self.order.took(index, next);
                out.extend(file.read.next());
            }
            match file.next() {
                Some(next) => self.order.push_record(index, next),
                None => self.behind.push(index),
            }
        }
    }

    fn read_on(&mut self, index: usize, reader: &mut Reader) -> usize {
        let file = &mut self.files[index];
        let bytes = file.read_on(reader);
        if let Some(next) = file.next() {
            self.order.push_record(index, next);
        }
        bytes
    }
}
