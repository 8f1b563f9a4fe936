//! What can be set, from a TOML file (`--config`) and from flags, of which flags win.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::detectors::{self, DetectorConfig};
use crate::filter::Filter;
use crate::imds::Selection;
use crate::quantity::Span;
use crate::record::Kind;
use crate::redact::Cmdline;
use crate::{attribution, bpf, exchange, metrics, report, source, summary, watch};

/// The file behind `--config`. Every key is optional.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name that records bear; this host's if not given.
    pub host: Option<String>,
    pub interfaces: Vec<String>,
    pub cgroup: Option<PathBuf>,
    /// Names of services or addresses.
    pub endpoints: Vec<Selection>,
    /// Where the host's root directory is mounted; `/` if not given.
    pub host_root: Option<PathBuf>,
    /// Time between summaries.
    pub interval: Option<Span>,
    pub records: Option<Vec<Kind>>,
    /// How much of command lines records hold.
    pub cmdline: Option<Cmdline>,
    /// Keep all privileges after start, to look for faults.
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

/// Bounds on what is held in memory: see `docs/limits.md`. Each table is read into the type of the module that keeps the bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Records that may wait for a slow output.
    pub queue: usize,
    /// Bytes of them.
    pub queue_bytes: usize,
    /// Bytes of lines that matter (findings, losses) and wait for a disk that is full.
    pub held_bytes: usize,
    /// Silence after which a workload's row in summaries, or its series, makes room for another one.
    pub silence: Span,
    pub kernel: bpf::Limits,
    pub flow: exchange::Limits,
    pub attribution: attribution::Limits,
    pub detectors: detectors::Limits,
    pub summary: summary::Limits,
    pub metrics: metrics::Limits,
    pub traces: source::Limits,
    pub report: report::Limits,
    pub watch: watch::state::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queue: 16_384,
            queue_bytes: 16 << 20,
            held_bytes: 1 << 20,
            silence: Span(Duration::from_hours(1)),
            kernel: bpf::Limits::default(),
            flow: exchange::Limits::default(),
            attribution: attribution::Limits::default(),
            detectors: detectors::Limits::default(),
            summary: summary::Limits::default(),
            metrics: metrics::Limits::default(),
            traces: source::Limits::default(),
            report: report::Limits::default(),
            watch: watch::state::Limits::default(),
        }
    }
}

/// Limit on all entry counts. A larger value is a typing error: no table of this program is worth the memory.
const MAX_ENTRIES: i64 = 1 << 24;
const MAX_BYTES: i64 = 1 << 30;

impl Limits {
    /// Every key below `[limits]` with what it is set to: `kernel.flows`, `queue` and so on.
    pub fn keys(&self) -> anyhow::Result<Vec<(String, toml::Value)>> {
        fn walk(prefix: &str, table: toml::Table, keys: &mut Vec<(String, toml::Value)>) {
            for (name, value) in table {
                let key = format!("{prefix}{name}");
                match value {
                    toml::Value::Table(table) => walk(&format!("{key}."), table, keys),
                    value => keys.push((key, value)),
                }
            }
        }
        let mut keys = Vec::new();
        walk("", toml::Table::try_from(self)?, &mut keys);
        Ok(keys)
    }

    fn check(&self) -> anyhow::Result<()> {
        for (key, value) in self.keys()? {
            let most = if key.ends_with("_bytes") {
                MAX_BYTES
            } else {
                MAX_ENTRIES
            };
            match value {
                toml::Value::Integer(number) if !(1..=most).contains(&number) => {
                    bail!("[limits] {key} = {number}: must be from 1 to {most}");
                }
                _ => {}
            }
        }
        let ring_bytes = self.kernel.ring_bytes;
        let page_bytes = page_bytes();
        if ring_bytes < page_bytes || !ring_bytes.is_power_of_two() {
            bail!("[limits] kernel.ring_bytes = {ring_bytes}: must be a power of two from {page_bytes}");
        }
        Ok(())
    }
}

/// The kernel makes a ring buffer of whole pages.
fn page_bytes() -> u32 {
    #[cfg(unix)]
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    #[cfg(not(unix))]
    let size: Option<i64> = None;
    size.and_then(|size| u32::try_from(size).ok()).unwrap_or(4096)
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
        config.limits.check()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(all.limits, Limits::default());
        let shown: toml::Table = settings.parse().unwrap();
        for (key, default) in Limits::default().keys().unwrap() {
            let value = key.split('.').try_fold(&shown["limits"], |table, name| table.get(name));
            assert_eq!(value, Some(&default), "deploy/imds-observer.toml: limits.{key}");
        }
        assert_eq!(all.detectors, DetectorConfig::default());
        assert_eq!(all.filter.pid, [4242]);
        assert_eq!(Selection::addresses(&all.endpoints), crate::imds::DEFAULT_ENDPOINTS);
        assert_eq!(all.otlp.endpoint.as_deref(), Some("http://127.0.0.1:4318"));
    }

    #[test]
    fn the_page_of_limits_has_every_key_with_its_default() {
        let page = include_str!("../../docs/limits.md");
        let reported: Vec<(String, String)> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|row| {
                let mut cells = row.split(" | ");
                let key = cells.next().unwrap().trim_end_matches('`').to_owned();
                assert_eq!(cells.clone().count(), 4, "{key}");
                (key, cells.next().unwrap().to_owned())
            })
            .collect();
        let mut keys: Vec<_> = Limits::default()
            .keys()
            .unwrap()
            .into_iter()
            .map(|(key, value)| (key, value.to_string()))
            .collect();
        let mut sorted = reported.clone();
        sorted.sort();
        keys.sort();
        assert_eq!(sorted, keys);
    }

    /// Resident memory of the idle program, MiB.
    const IDLE_MIB: f64 = 20.0;

    #[test]
    fn all_limits_of_the_service_together_are_below_its_memory_limit() {
        let unit = include_str!("../../deploy/systemd/imds-observer.service");
        let max = unit
            .lines()
            .find_map(|line| line.strip_prefix("MemoryMax=")?.strip_suffix('M'));
        let max: f64 = max.unwrap().parse().unwrap();
        let page = include_str!("../../docs/benchmarks.md");
        let table = page.split("<!-- bench memory -->").nth(1).unwrap();
        let table = table.split("<!-- end of bench memory -->").next().unwrap();
        let rows: Vec<(&str, f64)> = table
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"))
            .map(|row| {
                let cells: Vec<&str> = row.split(" | ").collect();
                (cells[0].trim_end_matches('`'), cells[2].parse().unwrap())
            })
            .collect();
        // Parts of a row or a connection are in another line of the table; traces and views are read by other commands.
        let parts = [
            "queue",
            "flow.flows",
            "flow.pending",
            "flow.stream.pieces",
            "summary.paths",
        ];
        let is_of_service = |name: &str| {
            let other = ["traces.", "report.", "watch.", "detectors."];
            !parts.contains(&name) && !other.iter().any(|prefix| name.starts_with(prefix))
        };
        let of_service = rows.iter().filter(|(name, _)| is_of_service(name));
        let sum: f64 = of_service.map(|(_, mib)| mib).sum();
        assert!(rows.len() > 40 && sum > 100.0, "the table was read: {rows:?}");
        assert!(
            sum + IDLE_MIB < max,
            "{sum} MiB of limits and {IDLE_MIB} MiB, of {max} MiB"
        );
        // The page states the same sum.
        let reported = include_str!("../../docs/limits.md");
        let together = reported
            .lines()
            .find_map(|line| line.strip_prefix("| together | "))
            .unwrap();
        let together: f64 = together.trim_end_matches(" |").parse().unwrap();
        assert!(
            (together - sum).abs() < 1.0,
            "docs/limits.md: {together}, docs/benchmarks.md: {sum}"
        );
    }

    #[test]
    fn limits_out_of_range_are_refused_by_name() {
        let refused = |text: &str| text.parse::<Config>().unwrap_err().to_string();
        for (key, _) in Limits::default().keys().unwrap() {
            if key == "silence" {
                continue;
            }
            for number in ["0", "-1", "99999999999"] {
                let error = refused(&format!("limits.{key} = {number}\n"));
                let name = key.rsplit('.').next().unwrap();
                // Below zero, and beyond what the type holds, the parser refuses, with the line.
                assert!(
                    error.contains(name) || error.contains("line 1"),
                    "{key} = {number}: {error}"
                );
            }
        }
        assert_eq!(
            refused("[limits.kernel]\nflows = 0\n"),
            "[limits] kernel.flows = 0: must be from 1 to 16777216"
        );
        assert!(refused("[limits.kernel]\nring_bytes = 5000000\n").contains("must be a power of two from"));
        assert!(refused("[limits.kernel]\nring_bytes = 1024\n").contains("must be a power of two from"));
        assert!(refused("[limits]\nsilence = '0s'\n").contains("line 2"));
        let error = refused("[limits.flow]\nflow = 1\n");
        assert!(
            error.contains("line 2") && error.contains("expected one of `flows`"),
            "{error}"
        );
        let config: Config = "[limits.kernel]\nring_bytes = 8388608\n[limits.flow.stream]\npieces = 9\n"
            .parse()
            .unwrap();
        assert_eq!(
            (config.limits.kernel.ring_bytes, config.limits.flow.stream.pieces),
            (8 << 20, 9)
        );
        assert_eq!(config.limits.flow.stream.head_bytes, 8 << 10);
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let error = "interval = '5s'\ncolour = 1\n"
            .parse::<Config>()
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2") && error.contains("colour"), "{error}");
        let config: Config =
            "interval = '5s'\nrecords = ['finding']\nendpoints = ['10.0.0.1']\n[filter]\npod = ['a/b']\n"
                .parse()
                .unwrap();
        assert_eq!(config.interval, Some(Span(Duration::from_secs(5))));
        assert_eq!(config.records, Some(vec![Kind::Finding]));
        assert_eq!(config.filter.pod[0].name, "b");
    }
}
