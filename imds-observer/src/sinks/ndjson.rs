//! Records as lines of JSON.
//!
//! While the destination takes nothing (disk full), lines that matter are held back, up to a bound, and written
//! first when it can be written again; the others are given up.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::Output;
use super::destination::Destination;
use crate::record::{Kind, Record};

/// Bytes gathered before they are handed to the destination; a batch's rest is handed over at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// One JSON object a line. Only whole lines are handed on.
pub struct NdjsonOutput {
    destination: Destination,
    lines: Vec<u8>,
    /// Where each of these lines ends, and whether it is held on to.
    ends: Vec<(usize, bool)>,
    held: VecDeque<Box<[u8]>>,
    held_bytes: usize,
    max_held_bytes: usize,
}

impl NdjsonOutput {
    /// `max_held_bytes`: of lines that are held back; the oldest gives way.
    pub fn new(destination: Destination, max_held_bytes: usize) -> Self {
        Self {
            destination,
            lines: Vec::with_capacity(CHUNK_BYTES * 2),
            ends: Vec::new(),
            held: VecDeque::new(),
            held_bytes: 0,
            max_held_bytes,
        }
    }

    /// Returns how many lines were given up.
    fn hand_over(&mut self) -> io::Result<u64> {
        let mut written = 0;
        // What was held back is older.
        if self.write_held()? && !self.lines.is_empty() {
            written = self.destination.write_lines(&self.lines)?;
        }
        let mut begin = written;
        let mut shed = 0;
        for (end, matters) in std::mem::take(&mut self.ends) {
            if end <= written {
                continue;
            }
            if matters {
                let line = Box::from(&self.lines[begin..end]);
                shed += self.hold(line);
            } else {
                shed += 1;
            }
            begin = end;
        }
        self.lines.clear();
        self.destination.gave_up(shed);
        Ok(shed)
    }

    fn hold(&mut self, line: Box<[u8]>) -> u64 {
        let mut shed = 0;
        self.held_bytes += line.len();
        self.held.push_back(line);
        while self.held_bytes > self.max_held_bytes {
            let Some(oldest) = self.held.pop_front() else { break };
            self.held_bytes -= oldest.len();
            shed += 1;
        }
        shed
    }

    /// Whether nothing is held back any more.
    fn write_held(&mut self) -> io::Result<bool> {
        while let Some(line) = self.held.front() {
            if self.destination.write_lines(line)? < line.len() {
                return Ok(false);
            }
            self.held_bytes -= line.len();
            self.held.pop_front();
        }
        Ok(true)
    }
}

impl Output for NdjsonOutput {
    fn write(&mut self, records: &[Arc<Record>]) -> io::Result<u64> {
        let mut shed = 0;
        for record in records {
            serde_json::to_writer(&mut self.lines, record.as_ref())?;
            self.lines.push(b'\n');
            let matters = matches!(record.kind(), Kind::Start | Kind::Finding | Kind::Loss);
            self.ends.push((self.lines.len(), matters));
            if self.lines.len() >= CHUNK_BYTES {
                shed += self.hand_over()?;
            }
        }
        Ok(shed + self.hand_over()?)
    }

    fn idle(&mut self) -> io::Result<()> {
        self.write_held()?;
        self.destination.check()
    }

    fn close(&mut self) -> io::Result<()> {
        if !self.write_held()? {
            tracing::warn!("{} lines that were held back are given up", self.held.len());
        }
        self.destination.close()
    }
}

#[cfg(test)]
mod tests {
    const HELD_BYTES: usize = 1 << 20;

    use std::path::Path;

    use super::*;
    use crate::record::{Loss, LossCounts, Time};

    fn loss(host: &str) -> Arc<Record> {
        Arc::new(Record::Loss(Loss::new(Time(0), host.into(), &LossCounts::default())))
    }

    #[test]
    fn what_matters_is_held_back_while_nothing_can_be_written() {
        let full = Destination::file(Path::new("/dev/full"), None).unwrap();
        let mut output = NdjsonOutput::new(full, HELD_BYTES);
        assert_eq!(output.write(&[loss("a"), loss("b")]).unwrap(), 0);
        assert_eq!(output.held.len(), 2);
        // There is space again.
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("trace");
        output.destination = Destination::file(&path, None).unwrap();
        output.idle().unwrap();
        output.write(&[loss("c")]).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        let hosts: Vec<_> = text
            .lines()
            .map(|line| line.contains("\"a\"") || line.contains("\"b\""))
            .collect();
        assert_eq!(hosts, [true, true, false]);
    }

    #[test]
    fn what_is_held_back_is_bounded() {
        let full = Destination::file(Path::new("/dev/full"), None).unwrap();
        let mut output = NdjsonOutput::new(full, HELD_BYTES);
        let long = loss(&"x".repeat(10_000));
        let shed: u64 = (0..200)
            .map(|_| output.write(std::slice::from_ref(&long)).unwrap())
            .sum();
        assert!(output.held_bytes <= HELD_BYTES && shed > 0);
        assert_eq!(output.held.len() as u64 + shed, 200);
    }
}
