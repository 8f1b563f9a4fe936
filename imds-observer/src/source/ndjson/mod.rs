//! Our own records, read back: what a line holds, or why it holds none.

mod batch;
mod chunks;
pub(super) mod file;
mod fuzz;
pub(super) mod turns;
pub(super) mod written;

use std::fmt;
use std::io;

use serde::Deserialize;

#[doc(hidden)]
pub use fuzz::fuzz_lines;

use crate::record::{Kind, Record, SCHEMA};

/// Longest line that is read; what is longer is no record of ours.
pub(super) const MAX_LINE_BYTES: usize = 1 << 20;

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
            Self::NotARecord => f.write_str("not an imds-observer record (no `record` and `schema`)"),
            Self::UnknownKind(kind) => write!(f, "unknown record kind {kind:?} (a newer imds-observer may support it)"),
            Self::NewerSchema(schema) => {
                write!(
                    f,
                    "schema {schema} is not supported, only up to {SCHEMA} (use a newer imds-observer)"
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
            Self::CutOff => f.write_str("last line is incomplete, skipped"),
            Self::Unreadable(kind) => write!(f, "read error: {kind}; using the records read so far"),
        }
    }
}

/// Reads one record.
pub fn parse(line: &[u8]) -> Result<Record, Skip> {
    let kind = match peek(line) {
        Some(kind) => kind,
        None => identify(line)?,
    };
    kind.read(line).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Skip::WrongShape {
            kind,
            column: error.column(),
        },
        _ => Skip::NotJson { column: error.column() },
    })
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
