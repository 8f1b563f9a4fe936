//! The report that people pass on: one HTML file that needs nothing else, no script and no network.
//!
//! Everything from a trace goes through askama's escaping, and before through [`Escaped`], so that no path can leave its place or turn a line around.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use askama::Template;
use serde_json::Value;

use super::escape::Escaped;
use super::groups::{Group as CauseGroup, groups};
use super::history::{Bucket, LATENCIES, Line, Picture, latency_from};
use super::text::{self, counted};
use crate::record::{
    Finding, FindingState, Host, InterfaceSummary, LossCounts, ProcessSummary, SECOND, Severity, Summary, Time,
};

/// Packets per second and interface (see imds quota in `docs/`): the line that the quota picture is drawn against.
const QUOTA: u64 = 1024;
/// Lines of a picture and rows of a table; the rest is one line.
const MAX_ROWS: usize = 40;
/// Findings that are shown; the page must stay one that a browser likes to open.
const MAX_FINDINGS: usize = 250;
/// Of the pictures, in their own units.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 40.0;
const TALL: f64 = 140.0;
const SMALL: f64 = 160.0;
/// Marks on a time axis.
const TICKS: u64 = 4;
/// Bars of the latency picture, at least.
const LEAST_LATENCIES: usize = 16;
/// Forwarding hops that the TTL picture has room for.
const MAX_HOPS: u8 = 8;
/// Colors that distinguish requests, from the axis up: class and index in the order of `ImdsVersion`, then unknown.
const COLOURS: [(&str, usize); 5] = [("v2", 1), ("token", 0), ("v1", 2), ("other", 3), ("other", 4)];

/// What the report is made of.
pub struct Input<'a> {
    pub host: &'a Host,
    pub files: u64,
    pub records: u64,
    pub skipped: u64,
    pub period: Option<(Time, Time)>,
    pub summary: Option<&'a Summary>,
    pub findings: &'a [Finding],
    pub loss: LossCounts,
    /// Coverage gaps as text.
    pub missing: Vec<String>,
    pub picture: &'a Picture,
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    title: String,
    host: String,
    input: String,
    period: String,
    verdict: String,
    verdict_class: &'static str,
    tiles: Vec<Tile>,
    groups: Vec<Cause>,
    hidden_findings: String,
    rows: Vec<Row>,
    hidden_rows: String,
    timeline: Vec<Strip>,
    hidden_lines: String,
    ticks: Vec<String>,
    bucket: String,
    latency: Vec<Bar>,
    latency_axis: Vec<String>,
    latency_marks: Vec<Mark>,
    latency_caption: String,
    /// What handshakes cost, which no latency holds.
    handshakes: Vec<String>,
    latency_label: String,
    versions: Vec<Share>,
    statuses: Vec<Share>,
    hops: Vec<Hops>,
    quota: Vec<Peaks>,
    quota_line: f64,
    gaps: Vec<String>,
    version: &'static str,
    width: f64,
    height: f64,
    tall: f64,
    small: f64,
}

struct Tile {
    name: &'static str,
    number: String,
    what: &'static str,
    class: &'static str,
}

/// Findings with one cause.
struct Cause {
    severity: &'static str,
    code: &'static str,
    /// The subject, or how many there are.
    title: String,
    /// Empty if there is only one finding, which contains it.
    cause: String,
    findings: Vec<Verdict>,
    remedy: String,
    commands: Vec<String>,
}

struct Verdict {
    severity: &'static str,
    subject: String,
    state: &'static str,
    summary: String,
    seen: String,
    evidence: Vec<(String, String)>,
}

struct Row {
    workload: String,
    caller: String,
    requests: String,
    rate: String,
    versions: String,
    shares: Vec<Piece>,
    statuses: String,
    tokens: String,
    lost: String,
    failed_connects: String,
    paths: Vec<String>,
    latency: Option<Spread>,
}

/// Latencies of one caller.
struct Spread {
    p50: String,
    p90: String,
    p99: String,
    max: String,
    /// On a logarithmic scale: from the median to the worst, with a mark at p99.
    from: f64,
    to: f64,
    p99_at: f64,
}

struct Strip {
    name: String,
    caption: String,
    label: String,
    bars: Vec<Bar>,
}

/// A bar of a picture.
struct Bar {
    label: String,
    pieces: Vec<Piece>,
}

struct Piece {
    class: &'static str,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// A line across a picture.
struct Mark {
    x: f64,
    label: String,
}

struct Share {
    name: String,
    class: &'static str,
    count: String,
    percent: String,
    bar: f64,
}

struct Hops {
    workload: String,
    hops: String,
    needed: String,
    ttls: String,
    lost: String,
    verdict: String,
    class: &'static str,
    picture: Vec<Hop>,
    /// How far an answer comes.
    reach: f64,
    label: String,
}

/// A place on the way from IMDS to a caller.
struct Hop {
    x: f64,
    class: &'static str,
}

struct Peaks {
    interface: String,
    caption: String,
    points: String,
    area: String,
}

/// Writes the page.
pub fn page(input: &Input<'_>) -> anyhow::Result<String> {
    let picture = input.picture;
    let mut findings: Vec<&Finding> = input.findings.iter().collect();
    findings.sort_by(|a, b| b.severity.cmp(&a.severity).then(a.first_seen.cmp(&b.first_seen)));
    let processes = input.summary.map_or(&[][..], |summary| &summary.processes);
    let (period, span) = match input.period {
        Some((from, to)) => (format!("{} to {}", moment(from), moment(to)), long_span(to.since(from))),
        None => ("no traffic observed".to_owned(), "0 s".to_owned()),
    };
    let gaps = gaps(input);
    let (verdict, verdict_class) = verdict(&findings, !gaps.is_empty());
    let hidden: u64 = processes.iter().skip(MAX_ROWS).map(|row| row.requests).sum();
    let others = input.summary.map_or(0, |summary| summary.other_requests) + hidden;
    let hidden_lines = picture.lines.len().saturating_sub(MAX_ROWS);
    let hidden_findings = findings.len().saturating_sub(MAX_FINDINGS);
    let interfaces = input.summary.map_or(&[][..], |summary| &summary.interfaces);
    let (latency, latency_axis, latency_marks) = latency(picture);
    let page = Page {
        title: format!("IMDS report, {period}"),
        host: clean(input.host),
        input: format!(
            "{}, {}, {} skipped",
            counted(input.files, "file"),
            counted(input.records, "record"),
            input.skipped
        ),
        period: format!("{period} ({span})"),
        verdict,
        verdict_class,
        tiles: tiles(input.summary, &findings),
        hidden_findings: match hidden_findings {
            0 => String::new(),
            hidden => format!(
                "and {} more; use -o json to list all",
                counted(hidden as u64, "finding")
            ),
        },
        groups: causes(&findings),
        rows: rows(processes),
        hidden_rows: match others {
            0 => String::new(),
            others => format!("and {} from callers without a row", counted(others, "request")),
        },
        timeline: timeline(picture),
        hidden_lines: match hidden_lines {
            0 => String::new(),
            hidden => format!("and {} with fewer requests", counted(hidden as u64, "workload")),
        },
        ticks: ticks(picture),
        bucket: long_span(picture.width_ns.max(SECOND)),
        latency,
        latency_axis,
        latency_marks,
        latency_caption: latency_caption(picture),
        handshakes: handshakes(processes),
        latency_label: format!("Distribution of latencies: {}", latency_caption(picture)),
        versions: shares(&picture.versions, |name| match name {
            "token" => "token",
            "v1" => "v1",
            "v2" => "v2",
            _ => "other",
        }),
        statuses: shares(&picture.statuses, |name| match name.as_bytes() {
            [b'2' | b'3', _, _] => "v2",
            [b'1'..=b'9', _, _] => "v1",
            _ => "failed",
        }),
        hops: hops(picture),
        quota: quota(picture, interfaces),
        quota_line: quota_y(QUOTA, quota_top(picture)),
        gaps,
        version: env!("CARGO_PKG_VERSION"),
        width: WIDTH,
        height: HEIGHT,
        tall: TALL,
        small: SMALL,
    };
    Ok(page.render()?)
}

fn clean(text: &str) -> String {
    Escaped(text).to_string()
}

fn verdict(findings: &[&Finding], gaps: bool) -> (String, &'static str) {
    let Some(worst) = findings.first() else {
        let text = if gaps {
            "No findings; see \"Coverage gaps\"."
        } else {
            "No findings."
        };
        return (text.to_owned(), "fine");
    };
    let of = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let severities = [Severity::Critical, Severity::High, Severity::Warning, Severity::Info];
    let counts: Vec<String> = severities
        .into_iter()
        .filter(|severity| of(*severity) > 0)
        .map(|severity| format!("{} {}", of(severity), severity.as_str()))
        .collect();
    let text = format!(
        "{} ({}). The worst: {}",
        counted(findings.len() as u64, "finding"),
        counts.join(", "),
        clean(&worst.summary)
    );
    (text, worst.severity.as_str())
}

fn tiles(summary: Option<&Summary>, findings: &[&Finding]) -> Vec<Tile> {
    let processes = summary.map_or(&[][..], |summary| &summary.processes);
    let sum = |of: fn(&ProcessSummary) -> u64| processes.iter().map(of).sum::<u64>();
    let requests = sum(|row| row.requests) + summary.map_or(0, |summary| summary.other_requests);
    let workloads: BTreeSet<&str> = processes.iter().map(workload).collect();
    let v1 = sum(|row| row.by_version.get("v1").copied().unwrap_or(0));
    let serious = findings
        .iter()
        .filter(|finding| finding.severity >= Severity::High)
        .count() as u64;
    let tile = |name, number: u64, one, more, bad: bool| Tile {
        name,
        number: grouped(number),
        what: if number == 1 { one } else { more },
        class: if bad && number > 0 { "bad" } else { "" },
    };
    vec![
        tile("requests", requests, "request", "requests", false),
        tile("workloads", workloads.len() as u64, "workload", "workloads", false),
        tile(
            "v1",
            v1,
            "request without a token (v1)",
            "requests without a token (v1)",
            false,
        ),
        tile("lost", sum(|row| row.lost), "lost response", "lost responses", true),
        tile(
            "connects",
            sum(|row| row.failed_connects),
            "failed connection",
            "failed connections",
            true,
        ),
        tile("findings", findings.len() as u64, "finding", "findings", false),
        tile(
            "serious",
            serious,
            "of them high or critical",
            "of them high or critical",
            true,
        ),
    ]
}

fn gaps(input: &Input<'_>) -> Vec<String> {
    let mut gaps = Vec::new();
    let lost = text::loss(&input.loss);
    if !lost.is_empty() {
        gaps.push(lost.trim().to_owned());
    }
    if input.skipped > 0 {
        gaps.push(format!(
            "{} of the input could not be read",
            counted(input.skipped, "piece")
        ));
    }
    gaps.extend(input.missing.iter().map(|what| clean(what)));
    gaps
}

/// The worst findings, up to the bound, by cause.
fn causes(findings: &[&Finding]) -> Vec<Cause> {
    let shown = &findings[..findings.len().min(MAX_FINDINGS)];
    let groups = groups(shown.iter().copied());
    groups.iter().map(cause).collect()
}

fn cause(group: &CauseGroup<'_>) -> Cause {
    let remedy = group.remedy();
    let alone = group.findings.len() == 1;
    Cause {
        severity: group.severity().as_str(),
        code: group.code().as_str(),
        title: if alone {
            clean(&group.first().subject.name)
        } else {
            counted(group.findings.len() as u64, "subject")
        },
        cause: if alone { String::new() } else { clean(&group.cause()) },
        findings: group.findings.iter().map(|finding| shown(finding)).collect(),
        remedy: clean(&remedy.text),
        commands: remedy.commands.iter().map(|command| clean(command)).collect(),
    }
}

fn shown(finding: &Finding) -> Verdict {
    Verdict {
        severity: finding.severity.as_str(),
        subject: clean(&finding.subject.name),
        state: match finding.state {
            FindingState::Resolved => "resolved",
            FindingState::Open | FindingState::Update => "still open at the end",
        },
        summary: clean(&finding.summary),
        seen: format!(
            "seen {}, first {}, last {}",
            counted(finding.count, "time"),
            moment(finding.first_seen),
            moment(finding.last_seen)
        ),
        evidence: finding
            .evidence
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (clean(&name.replace('_', " ")), clean(&plain(value))))
            .collect(),
    }
}

/// A value of the evidence as people write it.
fn plain(value: &Value) -> String {
    let all = |parts: Vec<String>| {
        if parts.is_empty() {
            "none".to_owned()
        } else {
            parts.join(", ")
        }
    };
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Array(values) => all(values.iter().map(plain).collect()),
        Value::Object(fields) => {
            let fields = fields.iter().filter(|(_, value)| !value.is_null());
            all(fields.map(|(name, value)| format!("{name} {}", plain(value))).collect())
        }
        other => other.to_string(),
    }
}

fn workload(row: &ProcessSummary) -> &str {
    row.workload.as_deref().unwrap_or("unknown")
}

fn rows(processes: &[ProcessSummary]) -> Vec<Row> {
    let shown = &processes[..processes.len().min(MAX_ROWS)];
    let bounds = |row: &ProcessSummary| Some((row.latency_ns.p50?, row.latency_ns.max?));
    let least = shown.iter().filter_map(bounds).map(|(p50, _)| p50).min().unwrap_or(1);
    let most = shown.iter().filter_map(bounds).map(|(_, max)| max).max().unwrap_or(1);
    let scale = Logarithmic::new(least, most, SMALL);
    shown.iter().map(|process| row(process, &scale)).collect()
}

fn row(row: &ProcessSummary, scale: &Logarithmic) -> Row {
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
struct Logarithmic {
    least: f64,
    span: f64,
    width: f64,
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

fn timeline(picture: &Picture) -> Vec<Strip> {
    let mut lines: Vec<_> = picture.lines.iter().collect();
    lines.sort_by(|a, b| b.1.requests.cmp(&a.1.requests).then_with(|| a.0.cmp(b.0)));
    lines
        .into_iter()
        .take(MAX_ROWS)
        .map(|(name, line)| strip(picture, name, line))
        .collect()
}

fn strip(picture: &Picture, name: &str, line: &Line) -> Strip {
    let step = WIDTH / picture.shown() as f64;
    let peak = line.buckets.iter().map(Bucket::requests).max().unwrap_or(0);
    let of = |count: u64| HEIGHT * count as f64 / peak.max(1) as f64;
    let bars = line
        .buckets
        .iter()
        .enumerate()
        .filter(|(_, bucket)| bucket.requests() > 0);
    let bars = bars.map(|(at, bucket)| {
        let (x, width) = (round(at as f64 * step), round(step * 0.88));
        let mut pieces = Vec::new();
        let mut y = HEIGHT;
        let answered = COLOURS
            .iter()
            .map(|(class, version)| (*class, bucket.answered[*version]));
        for (class, count) in answered.chain([("failed", bucket.failed)]) {
            if count > 0 {
                let height = of(count).max(1.5);
                y = (y - height).max(0.0);
                pieces.push(Piece {
                    class,
                    x,
                    y: round(y),
                    width,
                    height: round(height),
                });
            }
        }
        let time = moment(picture.from.plus_ns(picture.width_ns.saturating_mul(at as u64)));
        Bar {
            label: format!(
                "{time}: {}, {} unanswered",
                counted(bucket.requests(), "request"),
                bucket.failed
            ),
            pieces,
        }
    });
    let names = ["token", "v2", "v1", "other", "unknown"];
    let versions = names.iter().zip(line.versions).filter(|(_, count)| *count > 0);
    let mut caption: Vec<String> = versions
        .map(|(name, count)| format!("{name} {}", grouped(count)))
        .collect();
    if line.failed > 0 {
        caption.push(format!("{} unanswered", grouped(line.failed)));
    }
    let caption = format!(
        "{}: {}; at most {} a bar",
        counted(line.requests, "request"),
        caption.join(", "),
        grouped(peak)
    );
    Strip {
        name: clean(name),
        label: format!("{}: {caption}", clean(name)),
        caption,
        bars: bars.collect(),
    }
}

/// Times below the pictures that have one for their axis.
fn ticks(picture: &Picture) -> Vec<String> {
    let whole = picture.width_ns.saturating_mul(picture.shown() as u64);
    let ticks = (0..=TICKS).map(|tick| {
        let text = moment(
            picture
                .from
                .plus_ns((u128::from(whole) * u128::from(tick) / u128::from(TICKS)) as u64),
        );
        // The date is in the head; days are shown if there are several, seconds where they matter.
        match whole / SECOND {
            0..86_400 => text.get(11..19),
            _ => text.get(5..16),
        }
        .unwrap_or_default()
        .to_owned()
    });
    ticks.collect()
}

fn latency(picture: &Picture) -> (Vec<Bar>, Vec<String>, Vec<Mark>) {
    let used = |count: &u64| *count > 0;
    let (Some(first), Some(last)) = (
        picture.latencies.iter().position(used),
        picture.latencies.iter().rposition(used),
    ) else {
        return (Vec::new(), Vec::new(), Vec::new());
    };
    // Some room on both sides.
    let from = first.saturating_sub(2);
    let to = (last + 3).max(from + LEAST_LATENCIES).min(LATENCIES);
    let peak = picture.latencies.iter().copied().max().unwrap_or(0);
    let step = WIDTH / (to - from) as f64;
    let bars = (from..to).filter(|place| picture.latencies[*place] > 0).map(|place| {
        let count = picture.latencies[place];
        let height = (TALL * count as f64 / peak.max(1) as f64).max(1.5);
        let low = text::span(latency_from(place));
        let range = if place + 1 == LATENCIES {
            format!("above {low}")
        } else {
            format!("{low} to {}", text::span(latency_from(place + 1)))
        };
        Bar {
            label: format!("{range}: {}", counted(count, "answer")),
            pieces: vec![Piece {
                class: "v2",
                x: round((place - from) as f64 * step),
                y: round(TALL - height),
                width: round(step * 0.92),
                height: round(height),
            }],
        }
    });
    let axis = (0..=4).map(|part| text::span(latency_from(from + (to - from) * part / 4)));
    let at = |ns: u64| {
        let place = if ns < 1000 {
            0.0
        } else {
            1.0 + (ns as f64 / 1000.0).log2() * 4.0
        };
        round(((place - from as f64) * step).clamp(0.0, WIDTH))
    };
    let marks = [("median", 0.5), ("p99", 0.99)].map(|(name, quantile)| {
        let ns = picture.latency.value_at_quantile(quantile).min(picture.latency.max());
        Mark {
            x: at(ns),
            label: format!("{name} {}", text::span(ns)),
        }
    });
    (bars.collect(), axis.collect(), marks.into())
}

/// A line for each caller whose handshakes were slow.
fn handshakes(rows: &[ProcessSummary]) -> Vec<String> {
    let rows = rows.iter();
    rows.filter_map(|row| {
        Some(format!(
            "{}: {}, before these latencies begin.",
            clean(&row.caller()),
            text::handshakes(row)?
        ))
    })
    .take(MAX_ROWS)
    .collect()
}

fn latency_caption(picture: &Picture) -> String {
    let latency = &picture.latency;
    if latency.is_empty() {
        return "no responses".to_owned();
    }
    let at = |quantile| text::span(latency.value_at_quantile(quantile).min(latency.max()));
    format!(
        "{}, median {}, 90 % within {}, 99 % within {}",
        counted(latency.len(), "answer"),
        at(0.5),
        at(0.9),
        at(0.99)
    )
}

fn shares(counts: &BTreeMap<String, u64>, class: fn(&str) -> &'static str) -> Vec<Share> {
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

fn hops(picture: &Picture) -> Vec<Hops> {
    let lines = picture.lines.iter().filter(|(_, line)| !line.hops.is_empty());
    let farthest = |line: &Line| line.hops.keys().flatten().copied().max();
    let limit = |line: &Line| line.response_ttls.keys().copied().max();
    let shown = lines
        .clone()
        .filter_map(|(_, line)| farthest(line).max(limit(line).map(|limit| limit.saturating_sub(1))))
        .max()
        .unwrap_or(0)
        .clamp(2, MAX_HOPS);
    let mut hops: Vec<(bool, u8, Hops)> = lines
        .map(|(name, line)| {
            let (most, limit) = (farthest(line), limit(line));
            let beyond = most.zip(limit).map(|(hops, limit)| hops >= limit);
            let (verdict, class) = match (beyond, line.lost) {
                (Some(true), _) => ("out of range", "bad"),
                (_, 1..) => ("responses lost", "bad"),
                (Some(false), 0) => ("in range", "fine"),
                (None, 0) => ("unknown", "muted"),
            };
            let x = |hop: u8| round(10.0 + (SMALL - 20.0) * f64::from(hop.min(shown)) / f64::from(shown));
            let picture = (0..=shown).map(|hop| Hop {
                x: x(hop),
                class: match most {
                    Some(most) if most.min(shown) == hop && class == "bad" => "here bad",
                    Some(most) if most.min(shown) == hop => "here",
                    _ => "stop",
                },
            });
            let counts = |of: Vec<(String, u64)>| {
                let parts: Vec<String> = of
                    .iter()
                    .map(|(what, count)| format!("{what}: {}", grouped(*count)))
                    .collect();
                if parts.is_empty() {
                    "–".to_owned()
                } else {
                    parts.join(", ")
                }
            };
            let hop = |hops: &Option<u8>| hops.map_or_else(|| "unknown".to_owned(), |hops| hops.to_string());
            let row = Hops {
                workload: clean(name),
                hops: counts(line.hops.iter().map(|(hops, count)| (hop(hops), *count)).collect()),
                needed: most.map_or_else(|| "–".to_owned(), |most| most.saturating_add(1).to_string()),
                ttls: counts(
                    line.response_ttls
                        .iter()
                        .map(|(ttl, count)| (ttl.to_string(), *count))
                        .collect(),
                ),
                lost: grouped(line.lost),
                verdict: verdict.to_owned(),
                class,
                picture: picture.collect(),
                reach: x(limit.map_or(0, |limit| limit.saturating_sub(1))),
                label: match (most, limit) {
                    (Some(most), Some(limit)) => format!(
                        "{} away; with a TTL of {limit} the response can cross {}",
                        counted(u64::from(most), "hop"),
                        counted(u64::from(limit.saturating_sub(1)), "hop")
                    ),
                    _ => "unknown".to_owned(),
                },
            };
            (class == "bad", most.unwrap_or(0), row)
        })
        .collect();
    hops.sort_by(|a, b| {
        (b.0, b.1)
            .cmp(&(a.0, a.1))
            .then_with(|| a.2.workload.cmp(&b.2.workload))
    });
    hops.truncate(MAX_ROWS);
    hops.into_iter().map(|(_, _, row)| row).collect()
}

/// The picture's upper edge: the quota, or what goes beyond it.
fn quota_top(picture: &Picture) -> u64 {
    let peak = picture.quota.values().flatten().copied().max().unwrap_or(0);
    peak.max(QUOTA).saturating_mul(11) / 10
}

fn quota_y(packets: u64, top: u64) -> f64 {
    round(TALL - TALL * packets as f64 / top.max(1) as f64)
}

fn quota(picture: &Picture, interfaces: &[InterfaceSummary]) -> Vec<Peaks> {
    let top = quota_top(picture);
    let step = WIDTH / picture.shown() as f64;
    let drawn = picture.quota.iter().map(|(name, peaks)| {
        let mut points = String::new();
        for (at, packets) in peaks.iter().enumerate() {
            let (x, y) = (round(at as f64 * step), quota_y(*packets, top));
            let _ = write!(points, "{x},{y} {},{y} ", round((at + 1) as f64 * step));
        }
        let end = round(peaks.len() as f64 * step);
        let peak = peaks.iter().copied().max().unwrap_or(0);
        let mut caption = format!(
            "at most {} packets/s = {:.0} % of the quota",
            grouped(peak),
            peak as f64 * 100.0 / QUOTA as f64
        );
        if let Some(interface) = interfaces.iter().find(|interface| interface.name == *name) {
            let _ = write!(
                caption,
                "; {} out, {} in",
                counted(interface.egress_packets, "packet"),
                grouped(interface.ingress_packets)
            );
            match interface.allowance_exceeded {
                Some(count) => {
                    let _ = write!(caption, "; {} dropped over the quota", grouped(count));
                }
                None => caption.push_str("; the driver has no counter for drops over the quota"),
            }
        }
        Peaks {
            interface: clean(name),
            caption,
            area: format!("0,{TALL} {points}{end},{TALL}"),
            points,
        }
    });
    drawn.collect()
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

/// To the millisecond, which suffices in a page.
fn moment(time: Time) -> String {
    let text = time.to_string();
    match (text.get(..10), text.get(11..23)) {
        (Some(date), Some(clock)) => format!("{date} {} UTC", clock.strip_suffix(".000").unwrap_or(clock)),
        _ => text,
    }
}

/// Digits by threes.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
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
            host: &"".into(),
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
        assert!(page.contains("No findings") && page.contains("no traffic observed"));
        assert!(!page.contains("NaN") && !page.contains("inf,"));
    }

    #[test]
    fn numbers_and_times_read_well() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!(moment(Time(1_700_000_000 * SECOND)), "2023-11-14 22:13:20 UTC");
        assert_eq!(
            moment(Time(1_700_000_000 * SECOND + 5_000_000)),
            "2023-11-14 22:13:20.005 UTC"
        );
    }
}
