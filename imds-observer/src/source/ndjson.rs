//! Our own records, read back line by line.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::Deserialize;

use rustc_hash::FxHashMap;

use super::input::{Buffered, Input};
use crate::record::{Caller, Container, Exchange, Host, Kind, Process, Record, SCHEMA};

/// Longest line that is read; what is longer is no record of ours.
pub(super) const MAX_LINE_BYTES: usize = 1 << 20;
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

/// Reads one file.
pub struct Reader {
    name: Arc<str>,
    input: Box<dyn Buffered + Send>,
    line: Vec<u8>,
    /// Byte at which the current line begins, after decompression.
    offset: u64,
    next_offset: u64,
    /// Of the current line, from 1.
    number: u64,
    skipped: u64,
    ended: bool,
    callers: Callers,
}

impl Reader {
    pub fn new(input: Input) -> Self {
        Self {
            name: input.name,
            input: input.reader,
            line: Vec::new(),
            offset: 0,
            next_offset: 0,
            number: 0,
            skipped: 0,
            ended: false,
            callers: Callers::default(),
        }
    }

    /// Whether a whole line is there already. A pipe may take its time for the next.
    pub fn is_ready(&self) -> bool {
        self.ended || memchr::memchr(b'\n', self.input.buffered()).is_some()
    }

    /// The next record, or why a line gave none, which has been told. Empty lines are passed over.
    pub fn next_record(&mut self) -> Option<Result<Record, Skip>> {
        let next = self.next_line();
        if let Some(Err(skip)) = &next {
            self.tell(skip);
        }
        next
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
            return Some(match self.callers.parse(line) {
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

/// Callers that are remembered by what is written of them.
const MAX_CALLERS: usize = 4096;
/// Where a caller begins and ends in a line as this program writes it. A quote behind a comma ends no string and stands in none,
/// because there it would be escaped: in JSON, this can only be a key.
const CALLER: &[u8] = b",\"process\":";
const BEHIND_CALLER: &[u8] = b",\"connection\":{";
const NO_CALLER: &[u8] = b",\"process\":null,\"container\":null";

/// Reads exchanges whose caller is known already without parsing the caller again: half of a line is the same in all lines of a process.
/// What is anything else goes the plain way, so the result is the same.
#[derive(Default)]
struct Callers {
    known: FxHashMap<Box<[u8]>, Caller>,
    host: Option<Host>,
    short: Vec<u8>,
}

impl Callers {
    fn parse(&mut self, line: &[u8]) -> Result<Record, Skip> {
        if let Some(exchange) = self.exchange(line) {
            return Ok(Record::Exchange(exchange));
        }
        parse(line)
    }

    fn exchange(&mut self, line: &[u8]) -> Option<Exchange> {
        if peek(line)? != Kind::Exchange {
            return None;
        }
        let from = memchr::memmem::find(line, CALLER)?;
        let to = from + memchr::memmem::find(&line[from..], BEHIND_CALLER)?;
        let written = &line[from..to];
        if !self.known.contains_key(written) {
            let caller = caller(written)?;
            if self.known.len() >= MAX_CALLERS {
                self.known.clear();
            }
            self.known.insert(written.into(), caller);
        }
        self.short.clear();
        self.short.extend_from_slice(&line[..from]);
        self.short.extend_from_slice(NO_CALLER);
        self.short.extend_from_slice(&line[to..]);
        let mut exchange: Exchange = serde_json::from_slice(&self.short).ok()?;
        let known = self.known.get(written)?;
        exchange.process.clone_from(&known.process);
        exchange.container.clone_from(&known.container);
        match &self.host {
            Some(host) if *host == exchange.host => exchange.host = host.clone(),
            _ => self.host = Some(exchange.host.clone()),
        }
        Some(exchange)
    }
}

fn caller(written: &[u8]) -> Option<Caller> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Part {
        process: Option<Arc<Process>>,
        container: Option<Arc<Container>>,
    }
    let object = [b"{", written.get(1..)?, b"}"].concat();
    let Part { process, container } = serde_json::from_slice(&object).ok()?;
    Some(Caller { process, container })
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
    fn a_remembered_caller_changes_nothing() {
        let traces = ["healthy-botocore", "lost-token-pod", "tight-loop"];
        let mut callers = Callers::default();
        for name in traces {
            let path = format!("{}/tests/traces/{name}.ndjson", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            for line in text.lines() {
                let hostile = line.replace("python3", r#"x\",\"connection\":{\"process\":"#);
                for line in [
                    line,
                    &hostile,
                    &line.replace("\"outcome\"", "\"income\""),
                    &line[..line.len() / 2],
                ] {
                    let (fast, plain) = (callers.parse(line.as_bytes()), parse(line.as_bytes()));
                    assert_eq!(fast, plain, "{line}");
                    assert_eq!(callers.parse(line.as_bytes()), plain);
                }
            }
        }
        assert!(callers.known.len() > 2);
    }

    #[test]
    fn key_order_and_spacing_are_free() {
        let spaced = LOSS
            .replace("\"record\":\"loss\",", "")
            .replace('}', ", \"record\": \"loss\"}");
        assert_eq!(parse(spaced.as_bytes()), parse(LOSS.as_bytes()));
        assert!(parse(LOSS.as_bytes()).is_ok());
    }
}
