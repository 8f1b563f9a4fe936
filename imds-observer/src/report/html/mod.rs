//! The report that people pass on: one HTML file that needs nothing else, no script and no network.
//!
//! Everything from a trace goes through askama's escaping, and before through [`Escaped`], so that no path can leave its place or turn a line around.

mod callers;
mod figure;
mod findings;
mod hops;
mod latency;
mod quota;
mod timeline;

use std::collections::BTreeSet;

use askama::Template;

use super::history::Picture;
use super::text::{self, counted};
use crate::record::{Finding, Host, LossCounts, ProcessSummary, Record, SECOND, Severity, Summary, Time};
use callers::{MAX_ROWS, Row, Share, handshakes, rows, shares, workload};
use figure::{Bar, Mark, SMALL, TALL, WIDTH, clean, grouped, long_span, moment};
use findings::{Cause, causes};
use hops::{Hops, hops};
use latency::{latency, latency_caption};
use quota::{Peaks, QUOTA, quota, quota_top, quota_y};
use timeline::{HEIGHT, Strip, ticks, timeline};

/// Findings that are shown; the page must stay one that a browser likes to open.
const MAX_FINDINGS: usize = 250;

/// Input of the report.
pub struct Input<'a> {
    pub host: &'a Host,
    pub files: u64,
    pub records: u64,
    pub skipped: u64,
    pub period: Option<(Time, Time)>,
    pub summary: Option<&'a Record<Summary>>,
    pub findings: &'a [Record<Finding>],
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
    /// Cost of handshakes, which no latency includes.
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

/// Writes the page.
pub fn page(input: &Input<'_>) -> anyhow::Result<String> {
    let picture = input.picture;
    let mut findings: Vec<&Record<Finding>> = input.findings.iter().collect();
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

fn verdict(findings: &[&Record<Finding>], gaps: bool) -> (String, &'static str) {
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

fn tiles(summary: Option<&Record<Summary>>, findings: &[&Record<Finding>]) -> Vec<Tile> {
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
