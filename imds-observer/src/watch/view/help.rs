//! What the keys do and the columns mean, and what this host doesn't let us see.

use ratatui::text::{Line, Span};

use super::{BOLD, DIM, Theme, safe, wrap};
use crate::record::Missing;

const KEYS: [(&str, &str); 10] = [
    ("↑↓ j k", "move; PgUp PgDn g G further"),
    ("Enter", "open what is selected; Esc back"),
    ("Tab", "processes or findings"),
    ("/", "show only what contains a text"),
    ("s", "sort: rate, errors, lost, p99, v1"),
    ("p", "pause"),
    ("w", "begin or end writing the trace"),
    ("y", "copy the remedy to the clipboard"),
    ("?", "this"),
    ("q", "end, with a summary"),
];
const COLUMNS: [(&str, &str); 6] = [
    ("RATE/S", "requests a second, of the last 10 s"),
    ("ERR", "no answer, no connection, 4xx (not 404), 5xx"),
    ("LOST", "answers that arrived and died here"),
    ("P99", "99 of 100 answers took at most this"),
    ("V1", "requests without a token"),
    ("REQ", "requests in all"),
];

/// What is missing comes first: it isn't the same everywhere.
pub(super) fn lines(missing: &[Missing], theme: Theme, width: u16) -> Vec<Line<'static>> {
    let columns = usize::from(width);
    let mut lines = Vec::new();
    if !missing.is_empty() {
        lines.push(Line::styled(" MISSING HERE", BOLD));
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
