//! Everything about one process, and everything about one finding.

use std::fmt::Write as _;

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{BOLD, DIM, Theme, clip, clock, safe, waterfall, wrap};
use crate::record::{FindingState, Process};
use crate::report::groups::Group;
use crate::report::text::span;
use crate::watch::state::{Row, State};

/// Subjects of one cause that are listed.
const MAX_SUBJECTS: usize = 200;
/// Values of evidence that are shown, each on a line.
const MAX_EVIDENCE: usize = 40;

pub(super) fn process(state: &State, key: u64, theme: Theme, width: u16) -> Vec<Line<'static>> {
    let Some(row) = state.rows.get(&key) else {
        return vec![Line::raw(" no longer shown: no recent requests (Esc)")];
    };
    let columns = usize::from(width);
    let mut lines = vec![Line::styled(format!("▌ {} ", safe(&row.name())), BOLD.reversed())];
    let mut field = |name: &str, text: &str| push_field(&mut lines, name, text, columns);
    field("workload", &row.workload);
    if let Some(process) = &row.process {
        who(process, row, &mut field);
    }
    if let Some(container) = &row.container {
        let name = container.name.as_deref().unwrap_or("-");
        let short = container.id.get(..12).unwrap_or(&container.id);
        let runtime = container.runtime.as_deref().unwrap_or("unknown runtime");
        field("container", &format!("{name} {short} ({runtime})"));
    }
    let numbers = row.numbers(state.now);
    let summary = row.tally.summary(0);
    field(
        "requests",
        &format!(
            "{} ({:.1}/s), {} lost, {} errors, {} without connection",
            numbers.requests, numbers.rate_per_s, numbers.lost, numbers.errors, summary.failed_connects
        ),
    );
    let counts = |counts: &std::collections::BTreeMap<String, u64>| {
        let parts: Vec<String> = counts.iter().map(|(name, count)| format!("{name}:{count}")).collect();
        parts.join("  ")
    };
    field("versions", &counts(&summary.by_version));
    field("statuses", &counts(&summary.by_status));
    if let (Some(p50), Some(p99), Some(max)) = (summary.latency_ns.p50, summary.latency_ns.p99, summary.latency_ns.max)
    {
        let text = format!("p50 {}, p99 {}, longest {}", span(p50), span(p99), span(max));
        field("latency", &text);
    }
    if let Some(handshakes) = crate::report::text::handshakes(&summary) {
        field("connecting", &handshakes);
    }
    let range = |range: Option<(u8, u8)>| match range {
        None => "unknown".to_owned(),
        Some((low, high)) if low == high => low.to_string(),
        Some((low, high)) => format!("{low} to {high}"),
    };
    field(
        "TTL",
        &format!(
            "requests {}, responses {}",
            range(row.request_ttl),
            range(row.response_ttl)
        ),
    );
    if row.retransmits + row.dropped > 0 {
        field(
            "packets",
            &format!(
                "{} retransmitted, {} dropped by this kernel",
                row.retransmits, row.dropped
            ),
        );
    }
    lines.push(Line::styled(" PATHS", BOLD));
    for path in &summary.top_paths {
        let text = format!(
            "{:>8}  {}",
            path.requests,
            clip(&safe(&path.path), columns.saturating_sub(11))
        );
        lines.push(Line::raw(text));
    }
    lines.push(Line::styled(" LAST EXCHANGES (█ answered, ░ no answer)", BOLD));
    lines.extend(waterfall::lines(row, theme, width));
    lines
}

fn who(process: &Process, row: &Row, field: &mut impl FnMut(&str, &str)) {
    let mut name = format!("{} pid {}", process.comm, process.pid);
    if let Some(uid) = process.uid {
        let _ = write!(name, " uid {uid}");
    }
    if row.tally.instances() > 1 {
        let _ = write!(name, ", the newest of {}", row.tally.instances());
    }
    field("process", &name);
    if let Some(exe) = &process.exe {
        field("program", exe);
    }
    if let Some(cmdline) = &process.cmdline {
        field("command", &cmdline.join(" "));
    }
    if !process.ancestors.is_empty() {
        let names: Vec<String> = process
            .ancestors
            .iter()
            .map(|ancestor| format!("{} {}", ancestor.comm, ancestor.pid))
            .collect();
        field("below", &names.join(" < "));
    }
    if let Some(cgroup) = &process.cgroup {
        field("cgroup", cgroup);
    }
}

/// Findings with one cause.
pub(super) fn findings(group: Option<&Group<'_>>, theme: Theme, width: u16) -> Vec<Line<'static>> {
    let Some(group) = group else {
        return vec![Line::raw(" no longer shown (Esc)")];
    };
    let finding = group.first();
    let columns = usize::from(width);
    let mut lines = vec![Line::from(vec![
        Span::styled("▌ ", BOLD),
        Span::styled(
            finding.severity.as_str().to_uppercase(),
            theme.severity(finding.severity),
        ),
        Span::styled(format!(" {}", finding.code), BOLD),
        Span::raw(if group.is_resolved() { " (over)" } else { "" }),
    ])];
    if let [_, _, ..] = group.findings[..] {
        push_field(&mut lines, "cause", &group.cause(), columns);
        for finding in group.findings.iter().take(MAX_SUBJECTS) {
            let over = if finding.state == FindingState::Resolved {
                " (over)"
            } else {
                ""
            };
            push_field(&mut lines, "subject", &format!("{}{over}", finding.summary), columns);
        }
        let hidden = group.findings.len().saturating_sub(MAX_SUBJECTS);
        if hidden > 0 {
            push_field(&mut lines, "", &format!("and {hidden} more"), columns);
        }
    } else {
        push_field(&mut lines, "subject", &finding.subject.name, columns);
        push_field(&mut lines, "says", &finding.summary, columns);
    }
    let (first, last) = group.seen();
    let seen = format!(
        "{} times, first {}, last {} UTC",
        group.count(),
        clock(first),
        clock(last)
    );
    push_field(&mut lines, "seen", &seen, columns);
    lines.push(Line::styled(" REMEDY (y copies it)", BOLD));
    for text in wrap(&safe(&group.remedy().text), columns.saturating_sub(3)) {
        lines.push(Line::raw(format!("  {text}")));
    }
    for command in &group.remedy().commands {
        for (index, text) in wrap(&safe(command), columns.saturating_sub(5)).into_iter().enumerate() {
            lines.push(Line::styled(
                format!("  {}{text}", if index == 0 { "$ " } else { "  " }),
                BOLD,
            ));
        }
    }
    let evidence = if group.findings.len() > 1 {
        format!(" EVIDENCE of {}", safe(&finding.subject.name))
    } else {
        " EVIDENCE".to_owned()
    };
    lines.push(Line::styled(evidence, BOLD));
    for (name, value) in finding.evidence.iter().take(MAX_EVIDENCE) {
        let text = match value {
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        for (index, part) in wrap(&safe(&text), columns.saturating_sub(28)).into_iter().enumerate() {
            let name = if index == 0 { safe(name) } else { String::new() };
            lines.push(Line::from(vec![
                Span::styled(format!("  {name:<24} "), DIM),
                Span::raw(part),
            ]));
        }
    }
    lines
}

fn push_field(lines: &mut Vec<Line<'static>>, name: &str, text: &str, width: usize) {
    for (index, part) in wrap(&safe(text), width.saturating_sub(12)).into_iter().enumerate() {
        let name = if index == 0 { name } else { "" };
        lines.push(Line::from(vec![
            Span::styled(format!(" {name:<10} "), DIM),
            Span::styled(part, Style::new()),
        ]));
    }
}
