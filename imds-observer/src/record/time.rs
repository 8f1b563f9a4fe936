//! Points in time, as records carry them.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::fmt::temporal::DateTimePrinter;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Nanoseconds since the Unix epoch. Written as RFC 3339 in UTC with nine digits.
///
/// In a live run it is continuous: a step of the wall clock changes how it is written, see [`Self::unix_ns`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(pub u64);

const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(9));

/// One second in nanoseconds.
pub const SECOND: u64 = 1_000_000_000;

impl Time {
    /// The wall clock, for sources and sinks only: from `flow` to `detectors` time is an argument. While observing, it doesn't leap:
    /// `record/steady.rs`.
    pub fn now() -> Self {
        #[cfg(live)]
        if let Some(now) = super::steady::now() {
            return now;
        }
        Self::wall()
    }

    /// The wall clock as it is set now.
    pub(super) fn wall() -> Self {
        Self(Timestamp::now().as_nanosecond() as u64)
    }

    /// As it is written: differs from the value only in a live run whose wall clock was stepped.
    pub fn unix_ns(self) -> u64 {
        #[cfg(live)]
        return super::steady::written_ns(self);
        #[cfg(not(live))]
        self.0
    }

    /// Nanoseconds from `earlier` to this; 0 if it isn't earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    #[must_use]
    pub fn plus_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    #[must_use]
    pub fn minus_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_sub(ns))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let timestamp = Timestamp::from_nanosecond(i128::from(self.unix_ns())).unwrap_or_default();
        PRINTER
            .print_timestamp(&timestamp, jiff::fmt::StdFmtWrite(f))
            .map_err(|_| fmt::Error)
    }
}

impl FromStr for Time {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, jiff::Error> {
        text.parse::<Timestamp>()
            .map(|timestamp| Self(u64::try_from(timestamp.as_nanosecond()).unwrap_or(0)))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Time;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an RFC 3339 time")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time", "description": "RFC 3339, UTC, nanoseconds"})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_digits_and_back() {
        let time = Time(1_700_000_000_000_000_500);
        assert_eq!(time.to_string(), "2023-11-14T22:13:20.000000500Z");
        assert_eq!(time.to_string().parse::<Time>().unwrap(), time);
        assert_eq!(
            serde_json::to_string(&time).unwrap(),
            "\"2023-11-14T22:13:20.000000500Z\""
        );
    }
}
