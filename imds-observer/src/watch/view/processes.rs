//! The table of processes, grouped by workload.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::{BOLD, DIM, REVERSED, Theme, clip, put, row, safe, title};
use crate::report::text::span;
use crate::watch::state::{Numbers, Sort, State, Workload};
use crate::watch::ui::Ui;

/// Columns besides the name, the most useful first; each is 8 wide.
const COLUMNS: [Column; 6] = [
    Column::Sorted(Sort::Rate),
    Column::Sorted(Sort::Lost),
    Column::Sorted(Sort::Errors),
    Column::Sorted(Sort::V1),
    Column::Sorted(Sort::P99),
    Column::Requests,
];
const WIDTH: u16 = 8;
/// The name's share is at least this.
const LEAST_NAME: u16 = 16;

#[derive(Clone, Copy, PartialEq)]
enum Column {
    Sorted(Sort),
    Requests,
}

impl Column {
    fn header(self) -> &'static str {
        match self {
            Self::Requests => "REQ",
            Self::Sorted(Sort::Rate) => "RATE/S",
            Self::Sorted(Sort::Errors) => "ERR",
            Self::Sorted(Sort::Lost) => "LOST",
            Self::Sorted(Sort::P99) => "P99",
            Self::Sorted(Sort::V1) => "V1",
        }
    }

    fn cell(self, numbers: &Numbers) -> String {
        let count = |count: u64| {
            if count == 0 { "-".to_owned() } else { count.to_string() }
        };
        match self {
            Self::Requests => count(numbers.requests),
            Self::Sorted(Sort::Rate) => format!("{:.1}", numbers.rate_per_s),
            Self::Sorted(Sort::Errors) => count(numbers.errors),
            Self::Sorted(Sort::Lost) => count(numbers.lost),
            Self::Sorted(Sort::P99) => numbers.p99_ns.map_or_else(|| "-".to_owned(), span),
            Self::Sorted(Sort::V1) => count(numbers.v1),
        }
    }

    fn is_bad(self, numbers: &Numbers) -> bool {
        match self {
            Self::Sorted(Sort::Errors) => numbers.errors > 0,
            Self::Sorted(Sort::Lost) => numbers.lost > 0,
            Self::Sorted(Sort::V1) => numbers.v1 > 0,
            _ => false,
        }
    }
}

/// Lines that all of it would take.
pub(super) fn height(workloads: &[Workload<'_>]) -> u16 {
    let rows: usize = workloads.iter().map(lines).sum();
    (rows.max(1) + 2).min(usize::from(u16::MAX)) as u16
}

fn lines(workload: &Workload<'_>) -> usize {
    if workload.rows.len() == 1 {
        1
    } else {
        workload.rows.len() + 1
    }
}

pub(super) fn draw(
    buffer: &mut Buffer,
    area: Rect,
    workloads: &[Workload<'_>],
    ui: &Ui,
    theme: Theme,
    focus: bool,
    state: &State,
) {
    if area.height < 2 {
        return;
    }
    let count: usize = workloads.iter().map(|workload| workload.rows.len()).sum();
    title(
        buffer,
        row(area, 0),
        &format!("PROCESSES {count}, by {}", ui.sort.as_str()),
        focus,
    );
    let columns = columns(area.width, ui.sort);
    let name = area.width - WIDTH * columns.len() as u16;
    put(buffer, row(area, 1), 2, "WORKLOAD", DIM);
    for (index, column) in columns.iter().enumerate() {
        let style = if *column == Column::Sorted(ui.sort) { BOLD } else { DIM };
        let x = name + WIDTH * index as u16;
        put(buffer, row(area, 1), x, &format!("{:>8}", column.header()), style);
    }
    if workloads.is_empty() {
        let text = match (state.start.is_some(), ui.filter.is_empty()) {
            (_, false) => "no process matches the filter (Esc clears it)",
            (true, _) => "no requests to IMDS yet",
            (false, _) => "not attached yet",
        };
        if area.height > 2 {
            put(buffer, row(area, 2), 2, text, Style::new());
        }
        return;
    }
    let selected = ui.selected_process(state);
    let mut all: Vec<(String, Numbers, Option<u64>)> = Vec::new();
    for workload in workloads {
        if let [(only, numbers)] = workload.rows.as_slice() {
            let process = only.name();
            // The name of a lone process usually repeats its workload.
            let label = if process.contains(workload.name) {
                process
            } else {
                format!("{}: {process}", workload.name)
            };
            all.push((label, *numbers, Some(only.key)));
            continue;
        }
        all.push((
            format!("{} ({})", workload.name, workload.rows.len()),
            workload.numbers,
            None,
        ));
        for (index, (row, numbers)) in workload.rows.iter().enumerate() {
            let branch = if index + 1 == workload.rows.len() { "└" } else { "├" };
            all.push((format!("{branch} {}", row.name()), *numbers, Some(row.key)));
        }
    }
    let room = usize::from(area.height - 2);
    let at = all
        .iter()
        .position(|(_, _, key)| key.is_some() && *key == selected)
        .unwrap_or(0);
    let skip = (at + 1).saturating_sub(room);
    for (y, (label, numbers, key)) in (2..area.height).zip(all.iter().skip(skip)) {
        let line = row(area, y);
        let chosen = key.is_some() && *key == selected;
        let base = match (chosen && focus, key.is_none()) {
            (true, _) => REVERSED,
            (false, true) => BOLD,
            (false, false) => Style::new(),
        };
        buffer.set_style(line, base);
        put(buffer, line, 0, if chosen { ">" } else { " " }, base);
        put(
            buffer,
            line,
            2,
            &clip(&safe(label), usize::from(name.saturating_sub(2))),
            base,
        );
        for (index, column) in columns.iter().enumerate() {
            let style = if column.is_bad(numbers) {
                base.patch(theme.bad())
            } else {
                base
            };
            let x = name + WIDTH * index as u16;
            put(buffer, line, x, &format!("{:>8}", column.cell(numbers)), style);
        }
    }
    let hidden = all.len().saturating_sub(skip + room);
    if hidden > 0 {
        put(
            buffer,
            row(area, 0),
            area.width.saturating_sub(12),
            &format!("{hidden} more ↓"),
            DIM,
        );
    }
}

/// The columns that fit. The sort column is always included.
fn columns(width: u16, sort: Sort) -> Vec<Column> {
    let fit = usize::from(width.saturating_sub(LEAST_NAME) / WIDTH).min(COLUMNS.len());
    let mut columns = COLUMNS[..fit].to_vec();
    let sorted = Column::Sorted(sort);
    if !columns.contains(&sorted)
        && let Some(last) = columns.last_mut()
    {
        *last = sorted;
    }
    columns
}
