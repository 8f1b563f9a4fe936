//! The lines at the top: how much, how close to the quota, which versions, what is missing.

use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{BOLD, DIM, Theme, safe, sparkline};
use crate::record::{ImdsVersion, Mode};
use crate::report::text;
use crate::watch::state::State;
use crate::watch::ui::Ui;

/// Packets per second and interface that the provider lets through to link-local services.
const QUOTA: u64 = 1024;
/// Seconds, or intervals, of a sparkline.
const SPARKS: usize = 20;

type Part = (String, Style);

pub(super) fn lines(state: &State, ui: &Ui, theme: Theme, width: u16) -> Vec<Line<'static>> {
    let mut lines = flow(first(state, ui, theme), width);
    lines.extend(flow(traffic(state, theme), width));
    lines.extend(flow(versions(state, theme), width));
    lines.extend(flow(blind(state, theme), width));
    lines
}

fn first(state: &State, ui: &Ui, theme: Theme) -> Vec<Part> {
    let mut parts = vec![("imds-observer".to_owned(), BOLD)];
    let Some(start) = &state.start else {
        parts.push(("attaching ...".to_owned(), DIM));
        return parts;
    };
    parts.push((safe(&start.host), BOLD));
    let (seconds, mode) = (state.elapsed_s(), start.mode);
    let what = match mode {
        Mode::Live => "live",
        Mode::Offline if state.ended => "trace, at its end",
        Mode::Offline => "recorded",
    };
    parts.push((format!("{what}, {}", elapsed(seconds)), Style::new()));
    parts.push((format!("{} UTC", super::clock(state.now)), DIM));
    if ui.paused {
        parts.push(("PAUSED".to_owned(), BOLD));
    }
    if let Some(file) = &ui.writing {
        parts.push((format!("writing {file}"), theme.bad()));
    }
    parts
}

fn traffic(state: &State, theme: Theme) -> Vec<Part> {
    let rate = format!(
        "{:.1} req/s {}",
        state.rate_per_s(),
        sparkline(&state.rate.last(state.now, SPARKS))
    );
    let mut parts = vec![(rate, BOLD)];
    if let Some(now) = state.packets.back() {
        let share = *now as f64 / QUOTA as f64;
        let style = if share >= 0.5 { theme.bad() } else { Style::new() };
        let skip = state.packets.len().saturating_sub(SPARKS);
        let recent: Vec<u64> = state.packets.iter().skip(skip).copied().collect();
        parts.push((
            format!(
                "packets {now}/s = {:.0} % of {QUOTA} {}",
                share * 100.0,
                sparkline(&recent)
            ),
            style,
        ));
    }
    if state.allowance_exceeded > 0 {
        parts.push((
            format!("{} dropped over the quota", state.allowance_exceeded),
            theme.bad(),
        ));
    }
    parts
}

fn versions(state: &State, theme: Theme) -> Vec<Part> {
    let mut parts = vec![(text::counted(state.requests, "request"), Style::new())];
    let names = ImdsVersion::ALL.iter().map(|version| version.as_str());
    for (index, (name, count)) in names.chain(["unknown"]).zip(state.by_version).enumerate() {
        if count > 0 {
            let share = count as f64 * 100.0 / state.requests.max(1) as f64;
            let v1 = index == ImdsVersion::V1 as usize;
            parts.push((
                format!("{name} {share:.0} %"),
                if v1 { theme.bad() } else { Style::new() },
            ));
        }
    }
    if let Some((low, high)) = state.hop_limit {
        let text = if low == high {
            format!("hop limit {low}")
        } else {
            format!("hop limit {low}-{high}")
        };
        parts.push((text, Style::new()));
    }
    parts
}

fn blind(state: &State, theme: Theme) -> Vec<Part> {
    let lost = text::loss(&state.loss);
    let mut parts = Vec::new();
    if !lost.is_empty() {
        parts.push((lost.trim_end().to_owned(), theme.bad()));
    }
    let missing = state.start.as_ref().map_or(0, |start| start.missing.len());
    if missing > 0 {
        let word = if missing == 1 { "capability" } else { "capabilities" };
        parts.push((format!("{missing} {word} missing (see ?)"), Style::new()));
    }
    if state.evicted > 0 {
        parts.push((format!("{} not shown (over this view's limits)", state.evicted), DIM));
    }
    parts
}

fn elapsed(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

/// Parts side by side, as many lines as that takes.
fn flow(parts: Vec<Part>, width: u16) -> Vec<Line<'static>> {
    let mut lines: Vec<Line<'static>> = Vec::new();
    let mut used = 0;
    for (text, style) in parts {
        let length = text.chars().count();
        match lines.last_mut() {
            Some(line) if used + 3 + length <= usize::from(width) => {
                line.push_span(Span::styled(" · ", DIM));
                line.push_span(Span::styled(text, style));
                used += 3 + length;
            }
            _ => {
                lines.push(Line::from(Span::styled(text, style)));
                used = length;
            }
        }
    }
    lines
}
