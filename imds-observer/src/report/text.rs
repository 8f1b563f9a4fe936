//! Summaries, findings and loss as lines for people.

use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::escape::Escaped;
use super::groups::Group as CauseGroup;
use crate::record::{Finding, FindingState, LossCounts, ProcessSummary, Remedy, Severity, Summary};

/// Rows of a table; the rest is one line.
const MAX_ROWS: usize = 30;
/// Subjects of a group that have a line; the rest is one line.
const MAX_SUBJECTS: usize = 10;
/// Characters of a cell.
const MAX_CELL: usize = 48;

/// Whether to use colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(pub bool);

impl Colour {
    /// On a terminal, unless NO_COLOR is set to anything.
    pub fn on(terminal: bool) -> Self {
        Self(terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    fn paint(self, style: Style, text: &str) -> String {
        if self.0 {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    pub fn bold(self, text: &str) -> String {
        self.paint(Style::new().bold(), text)
    }
}

/// The table of processes and the line of each interface. `unread`: packets or events that could not be read; any may have been a request.
pub fn summary(summary: &Summary, unread: u64, colour: Colour) -> String {
    let mut text = String::new();
    if summary.processes.is_empty() && unread > 0 {
        let _ = writeln!(
            text,
            "no requests could be evaluated: {} could not be read",
            counted(unread, "packet")
        );
    } else if summary.processes.is_empty() {
        text.push_str("no requests to IMDS observed\n");
    } else {
        let header = [
            "WORKLOAD", "CALLER", "REQUESTS", "RATE/S", "VERSIONS", "STATUS", "LOST", "P50", "P99",
        ];
        let mut rows = vec![header.map(str::to_owned)];
        rows.extend(summary.processes.iter().take(MAX_ROWS).map(row));
        text.push_str(&table(&rows, colour));
        for row in summary.processes.iter().take(MAX_ROWS) {
            if let Some(handshakes) = handshakes(row) {
                let _ = writeln!(
                    text,
                    "{}: {handshakes}, not included in the latencies above",
                    cell(&row.caller())
                );
            }
        }
        let hidden = summary.processes.len().saturating_sub(MAX_ROWS);
        if hidden > 0 {
            let requests: u64 = summary.processes[MAX_ROWS..].iter().map(|row| row.requests).sum();
            let _ = writeln!(text, "and {hidden} more callers with {}", counted(requests, "request"));
        }
    }
    if summary.other_requests > 0 {
        let _ = writeln!(
            text,
            "and {} of callers beyond the table's limit",
            counted(summary.other_requests, "request")
        );
    }
    for interface in &summary.interfaces {
        let _ = write!(
            text,
            "{}: {} out, {} in; peak {}/s = {:.0} % of the quota",
            Escaped(&interface.name),
            counted(interface.egress_packets, "packet"),
            interface.ingress_packets,
            interface.peak_packets_per_s,
            interface.quota_share * 100.0,
        );
        match interface.allowance_exceeded {
            Some(count) => {
                let _ = writeln!(text, "; {count} dropped over the quota");
            }
            None => text.push('\n'),
        }
    }
    text
}

/// A handshake without a lost packet takes microseconds, and the first retry of a SYN a second; between networks some 10 ms.
const SLOW_HANDSHAKE_NS: u64 = 100_000_000;

/// Cost of handshakes, if they were slow.
pub fn handshakes(row: &ProcessSummary) -> Option<String> {
    let longest = row.longest_connect_ns.filter(|longest| *longest >= SLOW_HANDSHAKE_NS)?;
    Some(format!(
        "TCP handshakes took {} in total (longest {})",
        span(row.total_connect_ns),
        span(longest)
    ))
}

fn row(row: &ProcessSummary) -> [String; 9] {
    let caller = row.caller();
    let counts = |counts: &std::collections::BTreeMap<String, u64>| {
        let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{name}:{count}")).collect();
        if parts.is_empty() {
            "-".to_owned()
        } else {
            cell(&parts.join(" "))
        }
    };
    let mut statuses = row.by_status.clone();
    if row.failed_connects > 0 {
        statuses.insert("no-connection".to_owned(), row.failed_connects);
    }
    [
        cell(row.workload.as_deref().unwrap_or("unknown")),
        cell(&caller),
        row.requests.to_string(),
        format!("{:.2}", row.rate_per_s),
        counts(&row.by_version),
        counts(&statuses),
        row.lost.to_string(),
        row.latency_ns.p50.map_or_else(|| "-".to_owned(), span),
        row.latency_ns.p99.map_or_else(|| "-".to_owned(), span),
    ]
}

fn cell(text: &str) -> String {
    let text = Escaped(text).to_string();
    if text.chars().count() <= MAX_CELL {
        return text;
    }
    text.chars().take(MAX_CELL - 1).chain(['…']).collect()
}

/// Columns as wide as their widest cell; the first two are text, and so are versions and statuses, the rest is aligned right.
fn table<const N: usize>(rows: &[[String; N]], colour: Colour) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            if column > 0 {
                line.push_str("  ");
            }
            if matches!(column, 2 | 3 | 6..) {
                let _ = write!(line, "{cell:>width$}");
            } else {
                let _ = write!(line, "{cell:<width$}");
            }
        }
        let line = line.trim_end();
        text.push_str(&if index == 0 { colour.bold(line) } else { line.to_owned() });
        text.push('\n');
    }
    text
}

/// A finding with what to do about it.
pub fn finding(finding: &Finding, colour: Colour) -> String {
    let label = severity(finding.severity, colour);
    let state = match finding.state {
        FindingState::Open => "",
        FindingState::Update => " (still open)",
        FindingState::Resolved => " (resolved)",
    };
    let mut text = format!(
        "{label} {} {}{state}\n",
        colour.bold(finding.code.as_str()),
        Escaped(&finding.subject.name)
    );
    let _ = writeln!(text, "    {}", Escaped(&finding.summary));
    let _ = writeln!(
        text,
        "    seen {}, first {}, last {}",
        counted(finding.count, "time"),
        finding.first_seen,
        finding.last_seen
    );
    if finding.state != FindingState::Resolved {
        remedy(&finding.remedy, &mut text);
    }
    text
}

/// A finding whose cause another one has shown already, with its remedy.
pub fn one_more(finding: &Finding, shown: &Finding, colour: Colour) -> String {
    format!(
        "{} {} {}\n    {}\n    same cause and remedy as {} above\n",
        severity(finding.severity, colour),
        colour.bold(finding.code.as_str()),
        Escaped(&finding.subject.name),
        Escaped(&finding.summary),
        Escaped(&shown.subject.name),
    )
}

/// Findings with one cause: the cause and the remedy once, and a line for each subject.
pub fn group(group: &CauseGroup<'_>, colour: Colour) -> String {
    if let [only] = group.findings[..] {
        return finding(only, colour);
    }
    let mut text = format!(
        "{} {} {}{}\n",
        severity(group.severity(), colour),
        colour.bold(group.code().as_str()),
        counted(group.findings.len() as u64, "subject"),
        if group.is_resolved() { " (resolved)" } else { "" }
    );
    let _ = writeln!(text, "    cause: {}", Escaped(&group.cause()));
    for finding in group.findings.iter().take(MAX_SUBJECTS) {
        let _ = writeln!(
            text,
            "    - {} (seen {}{})",
            Escaped(&finding.summary),
            counted(finding.count, "time"),
            if finding.state == FindingState::Resolved {
                ", resolved"
            } else {
                ""
            }
        );
    }
    let hidden = group.findings.len().saturating_sub(MAX_SUBJECTS);
    if hidden > 0 {
        let _ = writeln!(text, "    - and {hidden} more");
    }
    let (first, last) = group.seen();
    let _ = writeln!(
        text,
        "    seen {}, first {first}, last {last}",
        counted(group.count(), "time")
    );
    if !group.is_resolved() {
        remedy(group.remedy(), &mut text);
    }
    text
}

fn remedy(remedy: &Remedy, text: &mut String) {
    if !remedy.text.is_empty() {
        let _ = writeln!(text, "    remedy: {}", Escaped(&remedy.text));
    }
    for command in &remedy.commands {
        let _ = writeln!(text, "      $ {}", Escaped(command));
    }
}

fn severity(severity: Severity, colour: Colour) -> String {
    let style = match severity {
        // Blue can't be read on black, yellow not on white.
        Severity::Info => Style::new(),
        Severity::Warning => AnsiColor::Magenta.on_default(),
        Severity::High => AnsiColor::Red.on_default(),
        Severity::Critical => AnsiColor::Red.on_default().bold().invert(),
    };
    colour.paint(style, &severity.as_str().to_uppercase())
}

/// One line about what was lost; empty if nothing was.
pub fn loss(counts: &LossCounts) -> String {
    let LossCounts {
        ring_buffer,
        unparsed,
        truncated,
        evicted,
        unattributed,
        shed,
        unknown_containers,
        detached,
        preempted,
        clock_step_ns: _,
    } = *counts;
    let named = [
        (
            ring_buffer,
            if ring_buffer == 1 {
                "event lost in the ring buffer"
            } else {
                "events lost in the ring buffer"
            },
        ),
        (unparsed, "unreadable"),
        (truncated, "cut"),
        (evicted, "evicted"),
        (unattributed, "not attributed to a process"),
        (shed, "dropped because the output was too slow"),
        (
            unknown_containers,
            "in containers whose names were not resolved in time",
        ),
        (
            detached,
            if detached == 1 {
                "hook detached by another tool"
            } else {
                "hooks detached by another tool"
            },
        ),
        (
            preempted,
            if preempted == 1 {
                "program of another tool that may rewrite addresses first"
            } else {
                "programs of other tools that may rewrite addresses first"
            },
        ),
    ];
    let parts: Vec<String> = named
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!("incomplete: {}\n", parts.join(", "))
    }
}

/// `1 request`, `2 requests`.
pub fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

/// Nanoseconds in the unit that suits.
pub fn span(ns: u64) -> String {
    let scaled = |unit: u64, name: &str| {
        let value = ns as f64 / unit as f64;
        if value < 10.0 {
            format!("{value:.2} {name}")
        } else {
            format!("{value:.0} {name}")
        }
    };
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => scaled(1_000, "µs"),
        1_000_000..1_000_000_000 => scaled(1_000_000, "ms"),
        _ => scaled(1_000_000_000, "s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_well() {
        let wanted = [
            (999, "999 ns"),
            (1_500, "1.50 µs"),
            (310_000, "310 µs"),
            (1_000_000_000, "1.00 s"),
        ];
        for (ns, text) in wanted {
            assert_eq!(span(ns), text);
        }
    }

    #[test]
    fn one_is_one() {
        assert_eq!(
            [0, 1, 2].map(|count| counted(count, "hop")),
            ["0 hops", "1 hop", "2 hops"]
        );
        let lost = |ring_buffer| {
            loss(&LossCounts {
                ring_buffer,
                ..LossCounts::default()
            })
        };
        assert_eq!(lost(1), "incomplete: 1 event lost in the ring buffer\n");
        assert_eq!(lost(2), "incomplete: 2 events lost in the ring buffer\n");
    }

    #[test]
    fn colour_only_when_asked_for() {
        assert_eq!(severity(Severity::High, Colour(false)), "HIGH");
        assert!(severity(Severity::High, Colour(true)).starts_with("\x1b["));
    }
}
