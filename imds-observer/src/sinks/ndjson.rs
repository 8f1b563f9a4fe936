//! Records as lines of JSON.
//!
//! While the destination takes nothing (disk full), lines that matter are held back, up to a bound, and written
//! first when it can be written again; the others are dropped.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::Arc;

use super::destination::Destination;
use super::{Express, Item, Output};
use crate::record::{Kind, Record};
use crate::report::escape;

/// Bytes gathered before they are handed to the destination; a batch's rest is handed over at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// A record as a line, its end included.
pub struct Line {
    kind: Kind,
    text: Vec<u8>,
}

/// Initial capacity of a line buffer; many lines are shorter.
const LINE_BYTES: usize = 1024;

/// Rooms of lines that a thread keeps for the next ones: for that size the allocator tidies up all of its memory.
const SPARE: usize = 64;

/// Bytes of the largest room that is kept.
const SPARE_BYTES: usize = 4096;

thread_local! {
    static ROOMS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut room = std::mem::take(&mut self.text);
        // At thread exit the free list may be gone.
        let _ = ROOMS.try_with(|rooms| {
            let mut rooms = rooms.borrow_mut();
            if rooms.len() < SPARE && room.capacity() <= SPARE_BYTES {
                room.clear();
                rooms.push(room);
            }
        });
    }
}

impl Item for Line {
    fn of(record: &Arc<Record>) -> Self {
        let room = ROOMS.with_borrow_mut(Vec::pop);
        let mut text = room.unwrap_or_else(|| Vec::with_capacity(LINE_BYTES));
        #[expect(
            clippy::expect_used,
            reason = "memory takes everything, and a record's keys are strings"
        )]
        serde_json::to_writer(&mut text, record.as_ref()).expect("write a record as JSON");
        if !text.is_ascii()
            && let Ok(plain) = String::from_utf8(std::mem::take(&mut text))
        {
            text = escape::json(plain).into_bytes();
        }
        text.push(b'\n');
        Self {
            kind: record.kind(),
            text,
        }
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn bytes(&self) -> usize {
        self.text.capacity()
    }
}

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
    /// `max_held_bytes`: limit of held lines; the oldest is dropped first.
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

    /// Returns the number of dropped lines.
    fn hand_over(&mut self) -> io::Result<u64> {
        let mut written = 0;
        // The lines that were held back are older.
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
    type Item = Line;

    fn write(&mut self, lines: &[Line]) -> io::Result<u64> {
        let mut shed = 0;
        for Line { kind, text } in lines {
            self.lines.extend_from_slice(text);
            let matters = matches!(kind, Kind::Start | Kind::Finding | Kind::Loss);
            self.ends.push((self.lines.len(), matters));
            if self.lines.len() >= CHUNK_BYTES {
                shed += self.hand_over()?;
            }
        }
        Ok(shed + self.hand_over()?)
    }

    fn express(&mut self) -> Option<Box<dyn Express<Line>>> {
        let pipe = self.destination.express()?;
        Some(Box::new(ExpressLines {
            pipe,
            lines: Vec::with_capacity(PIPE_BUF),
        }))
    }

    fn idle(&mut self) -> io::Result<()> {
        self.write_held()?;
        self.destination.check()
    }

    fn close(&mut self) -> io::Result<()> {
        if !self.write_held()? {
            tracing::warn!("dropped {} buffered lines", self.held.len());
        }
        self.destination.close()
    }
}

/// Lines into a non-blocking pipe.
struct ExpressLines {
    pipe: File,
    lines: Vec<u8>,
}

/// Bytes that go into a pipe whole or not at all.
#[cfg(unix)]
const PIPE_BUF: usize = libc::PIPE_BUF;
/// As much as POSIX promises.
#[cfg(not(unix))]
const PIPE_BUF: usize = 512;
/// So much at once is worth waking the writer: the pipeline has more to do then.
const MUCH: usize = 4 * PIPE_BUF;

impl Express<Line> for ExpressLines {
    fn write(&mut self, items: &mut Vec<Line>) -> io::Result<()> {
        if items.iter().map(|line| line.text.len()).sum::<usize>() > MUCH {
            return Ok(());
        }
        while !items.is_empty() {
            let fits = |sum: &mut usize, line: &Line| {
                *sum += line.text.len();
                (*sum <= PIPE_BUF).then_some(())
            };
            let count = items.iter().scan(0, fits).count();
            self.lines.clear();
            for line in &items[..count] {
                self.lines.extend_from_slice(&line.text);
            }
            match self.pipe.write(&self.lines) {
                Ok(written) if count > 0 && written == self.lines.len() => {
                    items.drain(..count);
                }
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(error),
                // The writer has the time to wait, and meets every other error again.
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    const HELD_BYTES: usize = 1 << 20;

    use std::io::{PipeReader, PipeWriter, Read as _};
    use std::os::fd::AsFd as _;
    use std::path::Path;

    use super::super::destination::reopen;
    use super::*;
    use crate::record::{Body, LossCounts, Time};

    fn loss(host: &str) -> Line {
        Line::of(&Arc::new(Record {
            time: Time(0),
            host: host.into(),
            body: Body::Loss(LossCounts::default()),
        }))
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

    /// A pipe, and the way into it that never waits.
    fn pipe() -> (PipeReader, PipeWriter, ExpressLines) {
        let (reader, writer) = io::pipe().unwrap();
        let express = ExpressLines {
            pipe: reopen(writer.as_fd()).unwrap(),
            lines: Vec::new(),
        };
        (reader, writer, express)
    }

    fn read(mut reader: PipeReader) -> Vec<String> {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_pipe_with_room_is_written_to_at_once() {
        let (reader, writer, mut express) = pipe();
        let mut lines: Vec<Line> = (0..20).map(|n| loss(&format!("host-{n:0500}"))).collect();
        express.write(&mut lines).unwrap();
        assert!(lines.is_empty());
        drop((writer, express));
        let read = read(reader);
        assert_eq!(read.len(), 20);
        assert!(
            read.iter()
                .enumerate()
                .all(|(n, line)| line.contains(&format!("host-{n:0500}")))
        );
    }

    #[test]
    fn a_full_pipe_is_not_waited_for_and_no_line_is_torn() {
        let (reader, writer, mut express) = pipe();
        let (mut sent, mut lines) = (0, Vec::new());
        while lines.is_empty() {
            lines = vec![loss(&"x".repeat(3_000)), loss(&"x".repeat(900))];
            sent += 2;
            express.write(&mut lines).unwrap();
        }
        sent -= lines.len();
        drop((writer, express));
        let read = read(reader);
        assert_eq!(read.len(), sent);
        assert!(read.iter().all(|line| line.ends_with('}')));
    }

    #[test]
    fn what_does_not_go_whole_into_a_pipe_is_the_writers() {
        let (reader, writer, mut express) = pipe();
        let mut lines = vec![loss("a"), loss(&"x".repeat(PIPE_BUF)), loss("b")];
        express.write(&mut lines).unwrap();
        assert_eq!(lines.len(), 2);
        let mut much: Vec<Line> = (0..200).map(|_| loss("c")).collect();
        express.write(&mut much).unwrap();
        assert_eq!(much.len(), 200);
        drop((writer, express));
        assert_eq!(read(reader).len(), 1);
    }

    #[test]
    fn a_reader_that_is_gone_is_reported() {
        let (reader, _writer, mut express) = pipe();
        drop(reader);
        let error = express.write(&mut vec![loss("a")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
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
