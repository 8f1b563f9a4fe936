//! Our own records, read back: many files at once, merged by time.
//!
//! An exchange is written when it has ended but bears the time at which it began, so lines are not sorted by `time`. Within a file their
//! order is kept as it is: it is the order in which the live observer learnt things, and detectors must see the same. Between files, the one
//! whose next record *ended* first goes first; a file's clock never runs backwards. So one record a file is all that is held in memory.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::input::{Buffered, Input};
use super::{Event, Source, SourceFacts, SourceState};
use crate::record::{Host, Kind, Mode, Record, SCHEMA, Time};

/// Longest line that is read; what is longer is no record of ours.
const MAX_LINE_BYTES: usize = 1 << 20;
/// Records handed on at once.
const BATCH: usize = 1024;
/// Skipped lines that are told one by one, per file.
const TOLD_PER_FILE: u64 = 5;

/// Why a line gave no record. Never holds the line's content: a foreign trace may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    NotJson {
        column: usize,
    },
    NotARecord,
    UnknownKind(String),
    NewerSchema(u32),
    WrongShape {
        kind: Kind,
        column: usize,
    },
    TooLong,
    /// The last line has no end: its writer was killed, or is still writing.
    CutOff,
    /// The file can't be read on.
    Unreadable(io::ErrorKind),
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotJson { column } => write!(f, "not JSON (at column {column})"),
            Self::NotARecord => f.write_str("not a record of imds-observer (no `record` and `schema`)"),
            Self::UnknownKind(kind) => write!(f, "unknown kind of record {kind:?} (a newer imds-observer may know it)"),
            Self::NewerSchema(schema) => {
                write!(
                    f,
                    "schema {schema} is unknown, this program reads up to {SCHEMA} (use a newer imds-observer)"
                )
            }
            Self::WrongShape { kind, column } => {
                write!(
                    f,
                    "not a valid `{}` record of schema {SCHEMA} (at column {column})",
                    kind.as_str()
                )
            }
            Self::TooLong => write!(f, "longer than {MAX_LINE_BYTES} bytes"),
            Self::CutOff => f.write_str("last line is cut off, left out"),
            Self::Unreadable(kind) => write!(f, "can't be read on: {kind}; what came before is used"),
        }
    }
}

/// What was read so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InputCounts {
    pub files: u64,
    pub records: u64,
    /// Lines that gave no record.
    pub skipped: u64,
    /// Skipped lines without those that were merely cut off at the end of a file.
    pub broken: u64,
}

/// Reads records from all of its inputs.
pub struct NdjsonSource {
    readers: Vec<Reader>,
    /// Next record of each reader that has one.
    next: Vec<Option<Record>>,
    order: BinaryHeap<Reverse<(Time, usize)>>,
    /// Whose next record is still to be read, because reading it might have meant waiting.
    behind: Option<usize>,
    counts: InputCounts,
    host: Option<Host>,
    from: Option<Time>,
}

impl NdjsonSource {
    /// Reads each input's first record.
    pub fn new(inputs: Vec<Input>) -> Self {
        let mut source = Self {
            next: inputs.iter().map(|_| None).collect(),
            counts: InputCounts {
                files: inputs.len() as u64,
                ..InputCounts::default()
            },
            readers: inputs.into_iter().map(Reader::new).collect(),
            order: BinaryHeap::new(),
            behind: None,
            host: None,
            from: None,
        };
        for index in 0..source.readers.len() {
            source.refill(index);
        }
        let first = || source.next.iter().flatten();
        source.from = first().map(Record::time).min();
        source.host = first().next().map(|record| record.host().clone());
        if first().any(|record| Some(record.host()) != source.host.as_ref()) {
            source.host = Some("several".into());
        }
        source
    }

    pub fn counts(&self) -> InputCounts {
        self.counts
    }

    fn refill(&mut self, index: usize) {
        let reader = &mut self.readers[index];
        let record = loop {
            match reader.next_line() {
                None => break None,
                Some(Ok(record)) => {
                    self.counts.records += 1;
                    break Some(record);
                }
                Some(Err(skip)) => {
                    self.counts.skipped += 1;
                    self.counts.broken += u64::from(skip != Skip::CutOff);
                    reader.tell(&skip);
                }
            }
        };
        if let Some(record) = &record {
            reader.clock = reader.clock.max(record.settled());
            self.order.push(Reverse((reader.clock, index)));
        }
        self.next[index] = record;
    }
}

impl Source for NdjsonSource {
    fn start(&self) -> SourceFacts {
        SourceFacts {
            mode: Mode::Offline,
            host: self.host.clone(),
            time: self.from,
            kernel: None,
            endpoints: Vec::new(),
            interfaces: Vec::new(),
            attached: Vec::new(),
            missing: Vec::new(),
        }
    }

    fn next_batch(&mut self, _: Duration, out: &mut Vec<Event>) -> anyhow::Result<SourceState> {
        if let Some(index) = self.behind.take() {
            self.refill(index);
        }
        for _ in 0..BATCH {
            let Some(Reverse((_, index))) = self.order.pop() else {
                return Ok(SourceState::End);
            };
            if let Some(record) = self.next[index].take() {
                out.push(Event::Record(Box::new(record)));
            }
            if !self.readers[index].is_ready() {
                self.behind = Some(index);
                break;
            }
            self.refill(index);
        }
        Ok(SourceState::More)
    }
}

struct Reader {
    name: Arc<str>,
    input: Box<dyn Buffered + Send>,
    line: Vec<u8>,
    /// Byte at which the current line begins, after decompression.
    offset: u64,
    next_offset: u64,
    /// Of the current line, from 1.
    number: u64,
    clock: Time,
    skipped: u64,
    ended: bool,
}

impl Reader {
    fn new(input: Input) -> Self {
        Self {
            name: input.name,
            input: input.reader,
            line: Vec::new(),
            offset: 0,
            next_offset: 0,
            number: 0,
            clock: Time::default(),
            skipped: 0,
            ended: false,
        }
    }

    /// Whether a whole line is there already. A pipe may take its time for the next.
    fn is_ready(&self) -> bool {
        self.ended || memchr::memchr(b'\n', self.input.buffered()).is_some()
    }

    fn next_line(&mut self) -> Option<Result<Record, Skip>> {
        while !self.ended {
            self.offset = self.next_offset;
            self.number += 1;
            let complete = match self.read_line() {
                Ok(Line::End) => {
                    self.end();
                    return None;
                }
                Ok(Line::TooLong) => return Some(Err(Skip::TooLong)),
                Ok(Line::Complete) => true,
                Ok(Line::CutOff) => false,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(Skip::Unreadable(error.kind())));
                }
            };
            let line = self.line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            return Some(match parse(line) {
                // A complete record without its newline is a record.
                Err(_) if !complete => Err(Skip::CutOff),
                result => result,
            });
        }
        None
    }

    fn read_line(&mut self) -> io::Result<Line> {
        self.line.clear();
        let mut too_long = false;
        loop {
            let buffer = match self.input.fill_buf() {
                Ok(buffer) => buffer,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if buffer.is_empty() {
                return Ok(match (too_long, self.line.is_empty()) {
                    (true, _) => Line::TooLong,
                    (false, true) => Line::End,
                    (false, false) => Line::CutOff,
                });
            }
            let end = memchr::memchr(b'\n', buffer);
            let part = &buffer[..end.unwrap_or(buffer.len())];
            if self.line.len() + part.len() > MAX_LINE_BYTES {
                too_long = true;
                self.line.clear();
            }
            if !too_long {
                self.line.extend_from_slice(part);
            }
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            self.next_offset += used as u64;
            if end.is_some() {
                return Ok(if too_long { Line::TooLong } else { Line::Complete });
            }
        }
    }

    fn tell(&mut self, skip: &Skip) {
        self.skipped += 1;
        if self.skipped <= TOLD_PER_FILE {
            tracing::warn!("{}:{}: line {}: {skip}", self.name, self.offset, self.number);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(more @ 1..) = self.skipped.checked_sub(TOLD_PER_FILE) {
            tracing::warn!("{}: {more} more lines skipped", self.name);
        }
    }
}

enum Line {
    Complete,
    CutOff,
    TooLong,
    End,
}

/// Reads one record.
pub fn parse(line: &[u8]) -> Result<Record, Skip> {
    let kind = match peek(line) {
        Some(kind) => kind,
        None => identify(line)?,
    };
    match kind {
        Kind::Start => typed(line, kind, Record::Start),
        Kind::Exchange => typed(line, kind, Record::Exchange),
        Kind::Connect => typed(line, kind, Record::Connect),
        Kind::Drop => typed(line, kind, Record::Drop),
        Kind::Finding => typed(line, kind, Record::Finding),
        Kind::Summary => typed(line, kind, Record::Summary),
        Kind::Loss => typed(line, kind, Record::Loss),
    }
}

/// The kind of a line as this program writes it, without parsing the whole line twice.
fn peek(line: &[u8]) -> Option<Kind> {
    let rest = line.strip_prefix(b"{\"record\":\"")?;
    let (kind, rest) = rest.split_at_checked(memchr::memchr(b'"', rest)?)?;
    let rest = rest.strip_prefix(b"\",\"schema\":1")?;
    matches!(rest.first(), Some(b',' | b'}')).then_some(())?;
    kind_named(kind)
}

fn kind_named(name: &[u8]) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| kind.as_str().as_bytes() == name)
}

/// The kind of a line that may be anything: other key order, other spacing, other version, other program.
fn identify(line: &[u8]) -> Result<Kind, Skip> {
    #[derive(Deserialize)]
    struct Head {
        record: Option<String>,
        schema: Option<u32>,
    }
    let head: Head = serde_json::from_slice(line).map_err(|error| {
        if error.is_data() {
            Skip::NotARecord
        } else {
            Skip::NotJson { column: error.column() }
        }
    })?;
    let (Some(name), Some(schema)) = (head.record, head.schema) else {
        return Err(Skip::NotARecord);
    };
    if schema > SCHEMA {
        return Err(Skip::NewerSchema(schema));
    }
    kind_named(name.as_bytes()).ok_or_else(|| {
        let plain = name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
        if plain {
            Skip::UnknownKind(name)
        } else {
            Skip::NotARecord
        }
    })
}

fn typed<'a, T: Deserialize<'a>>(line: &'a [u8], kind: Kind, wrap: fn(T) -> Record) -> Result<Record, Skip> {
    serde_json::from_slice(line)
        .map(wrap)
        .map_err(|error| match error.classify() {
            serde_json::error::Category::Data => Skip::WrongShape {
                kind,
                column: error.column(),
            },
            _ => Skip::NotJson { column: error.column() },
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOSS: &str = r#"{"record":"loss","schema":1,"time":"2026-01-01T00:00:01.000000000Z","host":"a","ring_buffer":0,"unparsed":0,"truncated":0,"evicted":0,"unattributed":0}"#;

    fn loss(host: &str, second: u32) -> String {
        LOSS.replace("00:01.", &format!("00:{second:02}."))
            .replace("\"a\"", &format!("\"{host}\""))
    }

    fn source(files: &[String]) -> NdjsonSource {
        NdjsonSource::new(
            files
                .iter()
                .map(|text| Input::new("t".into(), Box::new(io::Cursor::new(text.clone()))).unwrap())
                .collect(),
        )
    }

    fn times(source: &mut NdjsonSource) -> Vec<u64> {
        let mut out = Vec::new();
        while source.next_batch(Duration::ZERO, &mut out).unwrap() != SourceState::End {}
        let second = |event: &Event| event.time().unwrap().0 / 1_000_000_000 % 60;
        out.iter().map(second).collect()
    }

    #[test]
    fn files_are_merged_and_each_keeps_its_order() {
        let one = [loss("a", 1), loss("a", 5), loss("a", 4), loss("a", 9)].join("\n");
        let two = [loss("a", 2), loss("a", 3), loss("a", 8)].join("\n");
        let mut source = source(&[one, two]);
        assert_eq!(times(&mut source), [1, 2, 3, 5, 4, 8, 9]);
        assert_eq!(source.counts().records, 7);
        assert_eq!(source.counts().skipped, 0);
    }

    #[test]
    fn what_is_no_record_is_counted_and_passed_over() {
        let lines = [
            loss("a", 1),
            "nonsense".into(),
            "{\"record\":\"novelty\",\"schema\":1}".into(),
            loss("a", 2).replace("\"schema\":1", "\"schema\":7"),
            loss("a", 2).replace("\"evicted\":0,", ""),
            "x".repeat(MAX_LINE_BYTES + 10),
            "{\"Records\":[]}".into(),
            String::new(),
            loss("a", 3),
            LOSS[..60].to_owned(),
        ]
        .join("\n");
        let mut source = source(&[lines]);
        assert_eq!(times(&mut source), [1, 3]);
        let wanted = InputCounts {
            files: 1,
            records: 2,
            skipped: 7,
            broken: 6,
        };
        assert_eq!(source.counts(), wanted);
    }

    #[test]
    fn reasons_never_quote_the_line() {
        let secret = "AQAEsecretsecret==";
        for line in [
            format!("{{\"record\":\"{secret}\",\"schema\":1}}"),
            format!("{{\"record\":\"loss\",\"schema\":1,\"{secret}\":1}}"),
            LOSS.replace("2026-01-01T00:00:01.000000000Z", secret),
            format!("{{{secret}"),
        ] {
            let skip = parse(line.as_bytes()).unwrap_err();
            assert!(!format!("{skip} {skip:?}").contains("secret"), "{skip}");
        }
    }

    #[test]
    fn key_order_and_spacing_are_free() {
        let spaced = LOSS
            .replace("\"record\":\"loss\",", "")
            .replace('}', ", \"record\": \"loss\"}");
        assert_eq!(parse(spaced.as_bytes()), parse(LOSS.as_bytes()));
        assert!(parse(LOSS.as_bytes()).is_ok());
    }

    #[test]
    fn trace_of_one_host_bears_its_name() {
        assert_eq!(source(&[loss("a", 1), loss("a", 2)]).start().host.as_deref(), Some("a"));
        assert_eq!(
            source(&[loss("a", 1), loss("b", 2)]).start().host.as_deref(),
            Some("several")
        );
        assert_eq!(source(&[String::new()]).start().host, None);
    }
}
