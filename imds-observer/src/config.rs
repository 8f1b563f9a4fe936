//! What can be set, from a TOML file (`--config`) and from flags, of which flags win.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use serde::Deserialize;

use crate::detectors::DetectorConfig;
use crate::filter::Filter;
use crate::record::Kind;

/// The file behind `--config`. Every key is optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name that records bear; this host's if not given.
    pub host: Option<String>,
    pub interfaces: Vec<String>,
    pub cgroup: Option<PathBuf>,
    pub endpoints: Vec<IpAddr>,
    /// Where the host's root directory is mounted; `/` if not given.
    pub host_root: Option<PathBuf>,
    /// Time between summaries.
    pub interval: Option<Span>,
    pub records: Option<Vec<Kind>>,
    /// Keep all rights after start, to look for faults.
    pub unconfined: bool,
    pub filter: Filter,
    pub limits: Limits,
    pub otlp: Otlp,
    pub detectors: DetectorConfig,
}

/// To an OpenTelemetry collector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// Nothing is sent without one.
    pub endpoint: Option<String>,
    /// Time between two transfers of the metrics.
    pub interval: Option<Span>,
}

/// Bounds on what is held in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Process images that are remembered (about 1 KiB each).
    pub processes: usize,
    /// Rows of a summary (about 16 KiB each).
    pub groups: usize,
    /// Paths that are tracked per row.
    pub paths: usize,
    /// Records that may wait for a slow sink (about 1 KiB each).
    pub queue: usize,
    /// Bytes of the kernel's ring buffer, a power of two; what the program was built with if not given.
    pub ring_bytes: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            processes: 4096,
            groups: 512,
            paths: 32,
            queue: 16_384,
            ring_bytes: None,
        }
    }
}

impl Config {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read configuration {}", path.display()))?;
        let config: Self = text
            .parse()
            .with_context(|| format!("configuration {}", path.display()))?;
        Ok(config)
    }
}

impl FromStr for Config {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            anyhow!("line {line}: {}", error.message().replace('\n', " "))
        })?;
        let Limits {
            processes,
            groups,
            paths,
            queue,
            ring_bytes,
        } = config.limits;
        if [processes, groups, paths, queue].contains(&0) {
            return Err(anyhow!("[limits]: each must be at least 1"));
        }
        // Page-sized at least, as the kernel wants it.
        if ring_bytes.is_some_and(|bytes| bytes < 4096 || !bytes.is_power_of_two()) {
            return Err(anyhow!("[limits]: ring_bytes must be a power of two from 4096"));
        }
        Ok(config)
    }
}

/// A time span as people write it: `30s`, `5m`, `1h 30m`, `500ms`; a bare number is seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
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
            _ => Err("not a size such as 100 (millions of bytes), 512k, 64m or 1g".to_owned()),
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

    #[test]
    fn the_example_shows_the_defaults() {
        let example = include_str!("../../deploy/imds-observer.toml");
        let given: Config = example.parse().unwrap();
        assert_eq!(given.limits, Limits::default());
        assert_eq!(given.otlp, Otlp::default());
        // Every line that begins like a setting is one.
        let settings: String = example
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|rest| !rest.starts_with(' '))
                    .unwrap_or(line)
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let all: Config = settings.parse().unwrap();
        let defaults = Limits {
            ring_bytes: Some(4 << 20),
            ..Limits::default()
        };
        assert_eq!(all.limits, defaults);
        assert_eq!(all.detectors, DetectorConfig::default());
        assert_eq!(all.filter.pid, [4242]);
        assert_eq!(all.endpoints, crate::bpf::DEFAULT_ENDPOINTS);
        assert_eq!(all.otlp.endpoint.as_deref(), Some("http://127.0.0.1:4318"));
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let error = "interval = '5s'\ncolour = 1\n"
            .parse::<Config>()
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2") && error.contains("colour"), "{error}");
        assert!("[limits]\nqueue = 0\n".parse::<Config>().is_err());
        let config: Config =
            "interval = '5s'\nrecords = ['finding']\nendpoints = ['10.0.0.1']\n[filter]\npod = ['a/b']\n"
                .parse()
                .unwrap();
        assert_eq!(config.interval, Some(Span(Duration::from_secs(5))));
        assert_eq!(config.records, Some(vec![Kind::Finding]));
        assert_eq!(config.filter.pod[0].name, "b");
    }
}
