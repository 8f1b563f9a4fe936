//! Records as lines of JSON.

use std::io;
use std::sync::Arc;

use super::Output;
use super::destination::Destination;
use crate::record::Record;

/// Bytes gathered before they are handed to the destination; a batch's rest is handed over at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// One JSON object a line. Only whole lines are handed on.
pub struct NdjsonOutput {
    destination: Destination,
    lines: Vec<u8>,
}

impl NdjsonOutput {
    pub fn new(destination: Destination) -> Self {
        Self {
            destination,
            lines: Vec::with_capacity(CHUNK_BYTES * 2),
        }
    }

    fn hand_over(&mut self) -> io::Result<u64> {
        if self.lines.is_empty() {
            return Ok(0);
        }
        let result = self.destination.write_lines(&self.lines);
        self.lines.clear();
        result
    }
}

impl Output for NdjsonOutput {
    fn write(&mut self, records: &[Arc<Record>]) -> io::Result<u64> {
        let mut shed = 0;
        for record in records {
            serde_json::to_writer(&mut self.lines, record.as_ref())?;
            self.lines.push(b'\n');
            if self.lines.len() >= CHUNK_BYTES {
                shed += self.hand_over()?;
            }
        }
        Ok(shed + self.hand_over()?)
    }

    fn idle(&mut self) -> io::Result<()> {
        self.destination.check()
    }

    fn close(&mut self) -> io::Result<()> {
        self.destination.close()
    }
}
