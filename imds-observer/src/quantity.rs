//! Time spans and sizes as users write them in options and in the configuration.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A time span as people write it: `30s`, `5m`, `1h 30m`, `500ms`; a bare number is seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse::<u64>().ok().map(Duration::from_secs);
        let span = seconds.or_else(|| text.parse::<jiff::SignedDuration>().ok()?.try_into().ok());
        match span {
            Some(span) if span > Duration::ZERO => Ok(Self(span)),
            _ => Err("not a positive time span such as 30s, 5m or 500ms".to_owned()),
        }
    }
}

impl TryFrom<String> for Span {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> Self {
        let Span(duration) = span;
        match (duration.as_secs(), duration.subsec_millis()) {
            (seconds, 0) if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
            (seconds, 0) => format!("{seconds}s"),
            _ => format!("{}ms", duration.as_millis()),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

/// A size as tcpdump's `-C` takes it: millions of bytes, or with the suffix `k`, `m` or `g` KiB, MiB or GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let stem = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
        let (digits, unit) = match stem.as_bytes().last() {
            Some(b'k') => (&stem[..stem.len() - 1], 1 << 10),
            Some(b'm') => (&stem[..stem.len() - 1], 1 << 20),
            Some(b'g') => (&stem[..stem.len() - 1], 1 << 30),
            _ if stem.len() < lower.len() => (stem, 1),
            _ => (stem, 1_000_000),
        };
        match digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit)) {
            Some(size @ 1..) => Ok(Self(size)),
            _ => Err("not a size such as 100 (in 10^6 bytes), 512k, 64m or 1g".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_sizes() {
        assert_eq!("30s".parse::<Span>().unwrap().0, Duration::from_secs(30));
        assert_eq!("500ms".parse::<Span>().unwrap().0, Duration::from_millis(500));
        assert_eq!("2".parse::<Span>().unwrap().0, Duration::from_secs(2));
        for wrong in ["", "0", "-1s", "0s", "fast", "99999999999999999999h"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert_eq!("100".parse::<Size>().unwrap().0, 100_000_000);
        assert_eq!("4k".parse::<Size>().unwrap().0, 4096);
        assert_eq!("1GiB".parse::<Size>().unwrap().0, 1 << 30);
        assert_eq!("512b".parse::<Size>().unwrap().0, 512);
        for wrong in ["", "0", "k", "-1", "1t", "99999999999999999g"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
