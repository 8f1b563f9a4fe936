//! Help on keys and columns, and the coverage gaps of this host.

use ratatui::text::{Line, Span};

use super::{BOLD, DIM, Theme, safe, wrap};
use crate::record::Missing;

const KEYS: [(&str, &str); 10] = [
    ("↑↓ j k", "move; PgUp PgDn page; g G first, last"),
    ("Enter", "open the selection; Esc goes back"),
    ("Tab", "switch between processes and findings"),
    ("/", "filter by text"),
    ("s", "sort: rate, errors, lost, p99, v1"),
    ("p", "pause"),
    ("w", "start or stop recording to a file"),
    ("y", "copy the remedy to the clipboard"),
    ("?", "this"),
    ("q", "quit, with a summary"),
];
const COLUMNS: [(&str, &str); 6] = [
    ("RATE/S", "requests per second, over the last 10 s"),
    ("ERR", "no answer, no connection, 4xx (not 404), 5xx"),
    ("LOST", "responses that arrived but were lost on this host"),
    ("P99", "99th percentile of latency"),
    ("V1", "requests without a token"),
    ("REQ", "total requests"),
];

/// Coverage gaps come first, because they differ between hosts.
pub(super) fn lines(missing: &[Missing], theme: Theme, width: u16) -> Vec<Line<'static>> {
    let columns = usize::from(width);
    let mut lines = Vec::new();
    if !missing.is_empty() {
        lines.push(Line::styled(" COVERAGE GAPS", BOLD));
    }
    for Missing {
        capability,
        why,
        blinds,
    } in missing
    {
        lines.push(Line::styled(format!(" {}", safe(capability)), theme.bad()));
        for (name, text) in [("why", why), ("blinds", blinds)] {
            for (index, part) in wrap(&safe(text), columns.saturating_sub(10)).into_iter().enumerate() {
                let name = if index == 0 { name } else { "" };
                lines.push(Line::from(vec![
                    Span::styled(format!("   {name:<6} "), DIM),
                    Span::raw(part),
                ]));
            }
        }
    }
    for (title, rows) in [(" KEYS", &KEYS[..]), (" COLUMNS", &COLUMNS[..])] {
        lines.push(Line::styled(title, BOLD));
        for (key, what) in rows {
            lines.push(Line::from(vec![
                Span::styled(format!(" {key:<8}"), BOLD),
                Span::raw(*what),
            ]));
        }
    }
    lines
}
