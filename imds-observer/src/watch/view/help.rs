//! What the keys do and the columns mean.

use ratatui::text::Line;

use super::BOLD;

pub(super) fn lines() -> Vec<Line<'static>> {
    const KEYS: [(&str, &str); 11] = [
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
        ("", ""),
    ];
    const COLUMNS: [(&str, &str); 6] = [
        ("RATE/S", "requests a second, of the last 10 s"),
        ("ERR", "no answer, no connection, 4xx (not 404), 5xx"),
        ("LOST", "answers that arrived and died here"),
        ("P99", "99 of 100 answers took at most this"),
        ("V1", "requests without a token"),
        ("REQ", "requests in all"),
    ];
    KEYS.iter()
        .chain(&COLUMNS)
        .map(|(key, what)| {
            Line::from(vec![
                ratatui::text::Span::styled(format!(" {key:<8}"), BOLD),
                (*what).into(),
            ])
        })
        .collect()
}
