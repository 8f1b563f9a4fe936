//! The table of callers: requests, versions, statuses and latencies of each.

use std::collections::BTreeMap;

use super::super::text;
use super::figure::{Piece, SMALL, clean, grouped, round};
use crate::record::ProcessSummary;

/// Lines of a picture and rows of a table; the rest is one line.
pub(super) const MAX_ROWS: usize = 40;

pub(super) struct Row {
    pub(super) workload: String,
    pub(super) caller: String,
    pub(super) requests: String,
    pub(super) rate: String,
    pub(super) versions: String,
    pub(super) shares: Vec<Piece>,
    pub(super) statuses: String,
    pub(super) tokens: String,
    pub(super) lost: String,
    pub(super) failed_connects: String,
    pub(super) paths: Vec<String>,
    pub(super) latency: Option<Spread>,
}

/// Latencies of one caller.
pub(super) struct Spread {
    pub(super) p50: String,
    pub(super) p90: String,
    pub(super) p99: String,
    pub(super) max: String,
    /// On a logarithmic scale: from the median to the worst, with a mark at p99.
    pub(super) from: f64,
    pub(super) to: f64,
    pub(super) p99_at: f64,
}

pub(super) struct Share {
    pub(super) name: String,
    pub(super) class: &'static str,
    pub(super) count: String,
    pub(super) percent: String,
    pub(super) bar: f64,
}

pub(super) fn workload(row: &ProcessSummary) -> &str {
    row.workload.as_deref().unwrap_or("unknown")
}

pub(super) fn rows(processes: &[ProcessSummary]) -> Vec<Row> {
    let shown = &processes[..processes.len().min(MAX_ROWS)];
    let bounds = |row: &ProcessSummary| Some((row.latency_ns.p50?, row.latency_ns.max?));
    let least = shown.iter().filter_map(bounds).map(|(p50, _)| p50).min().unwrap_or(1);
    let most = shown.iter().filter_map(bounds).map(|(_, max)| max).max().unwrap_or(1);
    let scale = Logarithmic::new(least, most, SMALL);
    shown.iter().map(|process| row(process, &scale)).collect()
}

pub(super) fn row(row: &ProcessSummary, scale: &Logarithmic) -> Row {
    let counts = |counts: &BTreeMap<String, u64>| {
        let parts: Vec<String> = counts
            .iter()
            .map(|(name, count)| format!("{name} {}", grouped(*count)))
            .collect();
        clean(&parts.join(", "))
    };
    let caller = row.caller();
    let paths: Vec<String> = row
        .top_paths
        .iter()
        .take(3)
        .map(|path| clean(&format!("{} ({})", path.path, grouped(path.requests))))
        .collect();
    let mut shares = Vec::new();
    let mut x = 0.0;
    for (class, name) in [
        ("v2", "v2"),
        ("token", "token"),
        ("v1", "v1"),
        ("other", "other"),
        ("other", "unknown"),
    ] {
        let count = row.by_version.get(name).copied().unwrap_or(0);
        let width = SMALL * count as f64 / row.requests.max(1) as f64;
        if count > 0 {
            shares.push(Piece {
                class,
                x: round(x),
                y: 0.0,
                width: round(width),
                height: 8.0,
            });
        }
        x += width;
    }
    let quantiles = row.latency_ns;
    let latency = match (quantiles.p50, quantiles.p90, quantiles.p99, quantiles.max) {
        (Some(p50), Some(p90), Some(p99), Some(max)) => {
            let (from, to) = (scale.at(p50), scale.at(max));
            Some(Spread {
                p50: text::span(p50),
                p90: text::span(p90),
                p99: text::span(p99),
                max: text::span(max),
                from,
                to: round((to - from).max(2.0)),
                p99_at: scale.at(p99),
            })
        }
        _ => None,
    };
    Row {
        workload: clean(workload(row)),
        caller: clean(&caller),
        requests: grouped(row.requests),
        rate: format!("{:.2}", row.rate_per_s),
        versions: counts(&row.by_version),
        shares,
        statuses: counts(&row.by_status),
        tokens: grouped(row.tokens),
        lost: grouped(row.lost),
        failed_connects: grouped(row.failed_connects),
        paths,
        latency,
    }
}

/// Places latencies between the least and the most that are shown.
pub(super) struct Logarithmic {
    pub(super) least: f64,
    pub(super) span: f64,
    pub(super) width: f64,
}

impl Logarithmic {
    fn new(least: u64, most: u64, width: f64) -> Self {
        let log = |ns: u64| (ns.max(1) as f64).log2();
        Self {
            least: log(least),
            span: (log(most) - log(least)).max(1.0),
            width,
        }
    }

    fn at(&self, ns: u64) -> f64 {
        let place = ((ns.max(1) as f64).log2() - self.least) / self.span;
        round(place.clamp(0.0, 1.0) * self.width)
    }
}

/// A line for each caller whose handshakes were slow.
pub(super) fn handshakes(rows: &[ProcessSummary]) -> Vec<String> {
    let rows = rows.iter();
    rows.filter_map(|row| {
        Some(format!(
            "{}: {}, not included in the latencies.",
            clean(&row.caller()),
            text::handshakes(row)?
        ))
    })
    .take(MAX_ROWS)
    .collect()
}

pub(super) fn shares(counts: &BTreeMap<String, u64>, class: fn(&str) -> &'static str) -> Vec<Share> {
    let total: u64 = counts.values().sum();
    let mut counts: Vec<_> = counts.iter().collect();
    counts.sort_by(|a, b| b.1.cmp(a.1).then_with(|| a.0.cmp(b.0)));
    let share = |(name, count): (&String, &u64)| {
        let part = *count as f64 / total.max(1) as f64;
        Share {
            name: clean(name),
            class: class(name),
            count: grouped(*count),
            percent: format!("{:.1}", part * 100.0),
            bar: round((part * SMALL).max(1.0)),
        }
    };
    counts.into_iter().map(share).collect()
}
