//! The report that people pass on: one HTML file that needs nothing else, no script and no network.
//!
//! Everything from a trace goes through askama's escaping, and before through [`Escaped`], so that no path can leave its place or turn a line around.

use std::fmt::Write as _;

use askama::Template;

use super::escape::Escaped;
use super::history::{LATENCIES, Picture};
use super::text;
use crate::record::{Finding, FindingState, LossCounts, ProcessSummary, SECOND, Severity, Summary, Time};

/// Packets per second and interface (see imds quota in `docs/`): the line that the quota picture is drawn against.
const QUOTA: u64 = 1024;
/// Lines of a picture and rows of a table; the rest is one line.
const MAX_ROWS: usize = 40;
/// Of the pictures, in their own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 36.0;
const TALL: f64 = 120.0;

/// What the report is made of.
pub struct Input<'a> {
    pub files: u64,
    pub records: u64,
    pub skipped: u64,
    pub period: Option<(Time, Time)>,
    pub summary: Option<&'a Summary>,
    pub findings: &'a [Finding],
    pub loss: LossCounts,
    /// What nobody could see, in words.
    pub missing: Vec<String>,
    pub picture: &'a Picture,
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    title: String,
    input: String,
    period: String,
    tiles: Vec<Tile>,
    findings: Vec<Verdict>,
    rows: Vec<Row>,
    hidden_rows: String,
    timeline: Vec<Strip>,
    timeline_from: String,
    timeline_to: String,
    bucket: String,
    latency: Vec<Bar>,
    latency_total: u64,
    versions: Vec<Share>,
    statuses: Vec<Share>,
    hops: Vec<Hops>,
    quota: Vec<Peaks>,
    quota_line: f64,
    gaps: Vec<String>,
    width: f64,
    height: f64,
    tall: f64,
}

struct Tile {
    number: String,
    what: &'static str,
}

struct Verdict {
    severity: &'static str,
    code: &'static str,
    subject: String,
    state: &'static str,
    summary: String,
    seen: String,
    evidence: Vec<(String, String)>,
    remedy: String,
    commands: Vec<String>,
}

struct Row {
    workload: String,
    caller: String,
    requests: u64,
    rate: String,
    versions: String,
    statuses: String,
    lost: u64,
    failed_connects: u64,
    p50: String,
    p99: String,
    paths: String,
}

struct Strip {
    name: String,
    requests: u64,
    peak: u64,
    bars: Vec<Bar>,
}

/// A bar of a picture: a piece may be marked as failed.
struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    failed: f64,
    label: String,
}

struct Share {
    name: String,
    count: u64,
    percent: String,
}

struct Hops {
    workload: String,
    hops: String,
    needed: String,
    ttls: String,
    lost: u64,
}

struct Peaks {
    interface: String,
    peak: u64,
    percent: String,
    points: String,
}

/// Writes the page.
pub fn page(input: &Input<'_>) -> anyhow::Result<String> {
    let picture = input.picture;
    let clean = |text: &str| Escaped(text).to_string();
    let mut findings: Vec<&Finding> = input.findings.iter().collect();
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.first_seen.cmp(&b.first_seen)));
    let processes = input.summary.map_or(&[][..], |summary| &summary.processes);
    let requests: u64 = processes.iter().map(|row| row.requests).sum();
    let lost: u64 = processes.iter().map(|row| row.lost).sum();
    let serious = findings
        .iter()
        .filter(|finding| finding.severity >= Severity::High)
        .count();
    let (period, span) = match input.period {
        Some((from, to)) => (format!("{from} to {to}"), long_span(to.since(from))),
        None => ("nothing was observed".to_owned(), "0 s".to_owned()),
    };
    let tile = |number: String, what| Tile { number, what };
    let shares = |counts: &std::collections::BTreeMap<String, u64>| {
        let total: u64 = counts.values().sum();
        counts
            .iter()
            .map(|(name, count)| Share {
                name: clean(name),
                count: *count,
                percent: format!("{:.0}", *count as f64 * 100.0 / total.max(1) as f64),
            })
            .collect()
    };
    let mut gaps = Vec::new();
    let lost_evidence = text::loss(&input.loss);
    if !lost_evidence.is_empty() {
        gaps.push(lost_evidence.trim().to_owned());
    }
    if input.skipped > 0 {
        gaps.push(format!(
            "{} lines or blocks of the input could not be read",
            input.skipped
        ));
    }
    gaps.extend(input.missing.iter().map(|what| clean(what)));
    let hidden: u64 = processes.iter().skip(MAX_ROWS).map(|row| row.requests).sum();
    let others = input.summary.map_or(0, |summary| summary.other_requests) + hidden;
    let page = Page {
        title: format!("IMDS report, {period}"),
        input: format!(
            "{} file(s), {} records, {} skipped",
            input.files, input.records, input.skipped
        ),
        period: format!("{period} ({span})"),
        tiles: vec![
            tile(requests.to_string(), "requests"),
            tile(processes.len().to_string(), "groups of callers"),
            tile(lost.to_string(), "lost responses"),
            tile(findings.len().to_string(), "findings"),
            tile(serious.to_string(), "high or critical"),
        ],
        findings: findings.iter().map(|finding| verdict(finding)).collect(),
        rows: processes.iter().take(MAX_ROWS).map(row).collect(),
        hidden_rows: if others > 0 {
            format!("and {others} requests of callers without a row")
        } else {
            String::new()
        },
        timeline: timeline(picture),
        timeline_from: picture.from.to_string(),
        timeline_to: picture
            .from
            .plus_ns(picture.width_ns.saturating_mul(picture.shown() as u64))
            .to_string(),
        bucket: long_span(picture.width_ns),
        latency: latency(picture),
        latency_total: picture.latencies.iter().sum(),
        versions: shares(&picture.versions),
        statuses: shares(&picture.statuses),
        hops: hops(picture),
        quota: quota(picture),
        quota_line: quota_y(QUOTA, quota_top(picture)),
        gaps,
        width: WIDTH,
        height: HEIGHT,
        tall: TALL,
    };
    Ok(page.render()?)
}

fn verdict(finding: &Finding) -> Verdict {
    let clean = |text: &str| Escaped(text).to_string();
    Verdict {
        severity: finding.severity.as_str(),
        code: finding.code.as_str(),
        subject: clean(&finding.subject.name),
        state: match finding.state {
            FindingState::Resolved => "resolved",
            FindingState::Open | FindingState::Update => "going on at the end",
        },
        summary: clean(&finding.summary),
        seen: format!(
            "{} time(s), first {}, last {}",
            finding.count, finding.first_seen, finding.last_seen
        ),
        evidence: finding
            .evidence
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                (clean(name), clean(&value))
            })
            .collect(),
        remedy: clean(&finding.remedy.text),
        commands: finding.remedy.commands.iter().map(|command| clean(command)).collect(),
    }
}

fn row(row: &ProcessSummary) -> Row {
    let clean = |text: &str| Escaped(text).to_string();
    let counts = |counts: &std::collections::BTreeMap<String, u64>| {
        let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{name}: {count}")).collect();
        clean(&parts.join(", "))
    };
    let span = |ns: Option<u64>| ns.map_or("–".to_owned(), text::span);
    let caller = match (&row.container, &row.process) {
        (Some(container), _) if container.pod.as_ref().is_some_and(|pod| pod.name.is_some()) => container
            .pod
            .as_ref()
            .map(crate::record::workload::pod_name)
            .unwrap_or_default(),
        (_, Some(process)) => format!("{} (pid {})", process.comm, process.pid),
        (Some(container), None) => container.name.clone().unwrap_or_else(|| container.id.clone()),
        (None, None) => "unknown".to_owned(),
    };
    let paths: Vec<String> = row
        .top_paths
        .iter()
        .take(3)
        .map(|path| format!("{} ({})", path.path, path.requests))
        .collect();
    Row {
        workload: clean(row.workload.as_deref().unwrap_or("unknown")),
        caller: clean(&caller),
        requests: row.requests,
        rate: format!("{:.2}", row.rate_per_s),
        versions: counts(&row.by_version),
        statuses: counts(&row.by_status),
        lost: row.lost,
        failed_connects: row.failed_connects,
        p50: span(row.latency_ns.p50),
        p99: span(row.latency_ns.p99),
        paths: clean(&paths.join(", ")),
    }
}

fn timeline(picture: &Picture) -> Vec<Strip> {
    let step = WIDTH / picture.shown() as f64;
    let mut lines: Vec<_> = picture.lines.iter().collect();
    lines.sort_by(|a, b| b.1.requests.cmp(&a.1.requests).then_with(|| a.0.cmp(b.0)));
    lines
        .into_iter()
        .take(MAX_ROWS)
        .map(|(name, line)| {
            let peak = line.buckets.iter().map(|bucket| bucket.requests).max().unwrap_or(0);
            let bars = line
                .buckets
                .iter()
                .enumerate()
                .filter(|(_, bucket)| bucket.requests > 0);
            let bars = bars.map(|(at, bucket)| {
                let height = (HEIGHT * bucket.requests as f64 / peak.max(1) as f64).max(1.5);
                let time = picture.from.plus_ns(picture.width_ns * at as u64);
                Bar {
                    x: round(at as f64 * step),
                    y: round(HEIGHT - height),
                    width: round(step * 0.85),
                    height: round(height),
                    failed: round(height * bucket.failed as f64 / bucket.requests as f64),
                    label: format!(
                        "{time}: {} requests, {} without an answer",
                        bucket.requests, bucket.failed
                    ),
                }
            });
            Strip {
                name: Escaped(name).to_string(),
                requests: line.requests,
                peak,
                bars: bars.collect(),
            }
        })
        .collect()
}

fn latency(picture: &Picture) -> Vec<Bar> {
    let peak = picture.latencies.iter().copied().max().unwrap_or(0);
    let step = WIDTH / LATENCIES as f64;
    let bars = picture.latencies.iter().enumerate().map(|(power, count)| {
        let (from, to) = (if power == 0 { 0 } else { 1000 << (power - 1) }, 1000_u64 << power);
        let height = TALL * *count as f64 / peak.max(1) as f64;
        Bar {
            x: round(power as f64 * step),
            y: round(TALL - height),
            width: round(step * 0.9),
            height: round(if *count > 0 { height.max(1.5) } else { 0.0 }),
            failed: 0.0,
            label: if power + 1 == LATENCIES {
                format!("above {}: {count}", text::span(from))
            } else {
                format!("{} to {}: {count}", text::span(from), text::span(to))
            },
        }
    });
    bars.filter(|bar| bar.height > 0.0).collect()
}

fn hops(picture: &Picture) -> Vec<Hops> {
    let lines = picture.lines.iter().filter(|(_, line)| !line.hops.is_empty());
    let mut hops: Vec<(u8, Hops)> = lines
        .map(|(name, line)| {
            let most = line.hops.keys().flatten().copied().max();
            let mut crossed = String::new();
            for (hops, count) in &line.hops {
                let separator = if crossed.is_empty() { "" } else { ", " };
                let _ = match hops {
                    Some(hops) => write!(crossed, "{separator}{hops}: {count}"),
                    None => write!(crossed, "{separator}unknown: {count}"),
                };
            }
            let ttls: Vec<String> = line
                .response_ttls
                .iter()
                .map(|(ttl, count)| format!("{ttl}: {count}"))
                .collect();
            let row = Hops {
                workload: Escaped(name).to_string(),
                hops: crossed,
                needed: most.map_or("–".to_owned(), |most| most.saturating_add(1).to_string()),
                ttls: ttls.join(", "),
                lost: line.lost,
            };
            (most.unwrap_or(0), row)
        })
        .collect();
    hops.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.workload.cmp(&b.1.workload)));
    hops.truncate(MAX_ROWS);
    hops.into_iter().map(|(_, row)| row).collect()
}

/// The picture's upper edge: the quota, or what goes beyond it.
fn quota_top(picture: &Picture) -> u64 {
    picture.quota.values().flatten().copied().max().unwrap_or(0).max(QUOTA) * 11 / 10
}

fn quota_y(packets: u64, top: u64) -> f64 {
    round(TALL - TALL * packets as f64 / top.max(1) as f64)
}

fn quota(picture: &Picture) -> Vec<Peaks> {
    let top = quota_top(picture);
    let step = WIDTH / picture.shown() as f64;
    let interfaces = picture.quota.iter().map(|(name, peaks)| {
        let peak = peaks.iter().copied().max().unwrap_or(0);
        let mut points = String::new();
        for (at, packets) in peaks.iter().enumerate() {
            let (x, y) = (round(at as f64 * step), quota_y(*packets, top));
            let _ = write!(points, "{x},{y} {},{y} ", round((at + 1) as f64 * step));
        }
        Peaks {
            interface: Escaped(name).to_string(),
            peak,
            percent: format!("{:.0}", peak as f64 * 100.0 / QUOTA as f64),
            points,
        }
    });
    interfaces.collect()
}

/// Hours and days, where seconds are too many to read.
fn long_span(ns: u64) -> String {
    let hours = ns as f64 / (3600.0 * SECOND as f64);
    match hours {
        0.0..2.0 => text::span(ns),
        2.0..72.0 => format!("{hours:.1} h"),
        _ => format!("{:.1} days", hours / 24.0),
    }
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_without_anything_says_so() {
        let input = Input {
            files: 0,
            records: 0,
            skipped: 0,
            period: None,
            summary: None,
            findings: &[],
            loss: LossCounts::default(),
            missing: Vec::new(),
            picture: &Picture::default(),
        };
        let page = page(&input).unwrap();
        assert!(page.contains("No findings") && page.contains("nothing was observed"));
        assert!(!page.contains("NaN") && !page.contains("inf,"));
    }
}
