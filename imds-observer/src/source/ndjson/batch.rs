//! Results of a chunk's lines: records, and reasons for skipped lines.

use std::sync::Arc;

use super::chunks::Chunk;
use super::written::Written;
use super::{MAX_LINE_BYTES, Skip, parse};
use crate::record::Record;

/// Skipped lines that are logged one by one, per file.
const REPORTED_PER_FILE: u64 = 5;

/// Results of a chunk's lines.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) records: Vec<Arc<Record>>,
    skipped: Vec<Skipped>,
    lines: u64,
}

struct Skipped {
    skip: Skip,
    /// Byte at which the line begins, after decompression.
    offset: u64,
    /// Lines of the chunk before it.
    line: u64,
}

/// Lines of one file without a record: logged and counted.
pub(super) struct Skips {
    name: Arc<str>,
    /// Lines of the batches before.
    lines: u64,
    /// Lines that gave no record.
    pub(super) skipped: u64,
    /// Without last lines that were merely cut off.
    pub(super) broken: u64,
}

impl Skips {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            lines: 0,
            skipped: 0,
            broken: 0,
        }
    }

    /// Takes the batches in their order.
    pub(super) fn of(&mut self, batch: &Batch) {
        for Skipped { skip, offset, line } in &batch.skipped {
            self.skipped += 1;
            self.broken += u64::from(*skip != Skip::CutOff);
            if self.skipped <= REPORTED_PER_FILE {
                let line = self.lines + line + 1;
                tracing::warn!("{}:{offset}: line {line}: {skip}", self.name);
            }
        }
        self.lines += batch.lines;
    }

    /// The file has ended.
    pub(super) fn end(&self) {
        if let Some(more @ 1..) = self.skipped.checked_sub(REPORTED_PER_FILE) {
            tracing::warn!("{}: skipped {more} more lines", self.name);
        }
    }
}

impl Batch {
    /// Reads a chunk, into spare records as long as there are some.
    pub(super) fn read(chunk: &Chunk, written: &mut Written, spare: &mut Vec<Arc<Record>>) -> Self {
        let mut batch = Self {
            // Rather too many: a line of ours has 600 bytes at least.
            records: Vec::with_capacity(chunk.bytes().len() / 512),
            ..Self::default()
        };
        let mut offset = chunk.offset;
        let mut rest = chunk.bytes();
        while !rest.is_empty() {
            // Nearly all lines.
            if let Some((record, length)) = written.first_exchange(rest, spare)
                && let Some((b'\n', behind)) = rest.get(length..).and_then(<[u8]>::split_first)
                && length <= MAX_LINE_BYTES
            {
                batch.records.push(record);
                rest = behind;
                offset += length as u64 + 1;
                batch.lines += 1;
                continue;
            }
            let end = memchr::memchr(b'\n', rest);
            let (line, behind) = rest.split_at(end.unwrap_or(rest.len()));
            match line.trim_ascii() {
                _ if line.len() > MAX_LINE_BYTES => batch.skip(Skip::TooLong, offset),
                [] => {}
                trimmed => match written
                    .exchange(trimmed, spare)
                    .map_or_else(|| parse(trimmed).map(Arc::new), Ok)
                {
                    // A complete record without its newline is a record.
                    Ok(record) => batch.records.push(record),
                    Err(_) if end.is_none() => batch.skip(Skip::CutOff, offset),
                    Err(skip) => batch.skip(skip, offset),
                },
            }
            rest = behind.get(1..).unwrap_or_default();
            offset += line.len() as u64 + 1;
            batch.lines += 1;
        }
        if let Some(kind) = chunk.failed {
            batch.skip(Skip::Unreadable(kind), offset);
        }
        batch
    }

    fn skip(&mut self, skip: Skip, offset: u64) {
        let line = self.lines;
        self.skipped.push(Skipped { skip, offset, line });
    }
}
