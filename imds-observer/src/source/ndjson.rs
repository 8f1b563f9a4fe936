//! Our own records, read back line by line.

use std::fmt;
use std::io;
use std::sync::Arc;

use serde::Deserialize;

use super::input::{Buffered, Input};
use crate::record::{Kind, Record, SCHEMA};

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
}
