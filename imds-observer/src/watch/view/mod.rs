//! State and choices become a picture: pure functions, one file a pane.
//!
//! Whatever came from an observed process goes through [`safe`] on its way here. Backgrounds are left to the terminal, and colors are
//! the sixteen that it names itself, so that a light theme stays one; bold, dim and reverse carry the meaning without them.

mod detail;
mod findings;
mod headline;
mod help;
mod processes;
mod status;
mod waterfall;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;

use super::state::State;
use super::ui::{Pane, Screen, Ui};
use crate::record::{Severity, Time};
use crate::report::escape::Escaped;

/// Whether to use colors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    pub colour: bool,
}

impl Theme {
    fn severity(self, severity: Severity) -> Style {
        // Blue can't be read on black, yellow and cyan can't on white.
        match severity {
            Severity::Info => Style::new(),
            Severity::Warning => self.fg(Color::Magenta).add_modifier(Modifier::BOLD),
            Severity::High => self.bad(),
            Severity::Critical => self.bad().add_modifier(Modifier::REVERSED),
        }
    }

    fn fg(self, colour: Color) -> Style {
        if self.colour {
            Style::new().fg(colour)
        } else {
            Style::new()
        }
    }

    fn bad(self) -> Style {
        self.fg(Color::Red).add_modifier(Modifier::BOLD)
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

/// Draws everything. Returns how far what is shown can be scrolled, in lines.
pub fn draw(frame: &mut Frame<'_>, state: &State, ui: &Ui, theme: Theme) -> usize {
    let area = frame.area();
    if area.height < 3 || area.width < 10 {
        return 0;
    }
    let headline = headline::lines(state, ui, theme, area.width);
    let height = (headline.len() as u16).min(area.height / 3).max(1);
    let [top, middle, bottom] =
        Layout::vertical([Constraint::Length(height), Constraint::Min(0), Constraint::Length(1)]).areas(area);
    let buffer = frame.buffer_mut();
    put_lines(buffer, top, &headline, 0);
    status::draw(buffer, bottom, ui);
    if ui.help {
        let missing = state.start.as_ref().map_or(&[][..], |start| &start.missing);
        let lines = help::lines(missing, theme, middle.width);
        let last = lines.len().saturating_sub(usize::from(middle.height));
        put_lines(buffer, middle, &lines, ui.help_scroll.min(last));
        return last;
    }
    let lines = match &ui.screen {
        Screen::Overview => {
            overview(buffer, middle, state, ui, theme);
            return 0;
        }
        Screen::Process(key) => detail::process(state, *key, theme, middle.width),
        Screen::Finding(_) => detail::findings(ui.group_in_view(state).as_ref(), theme, middle.width),
    };
    let last = lines.len().saturating_sub(usize::from(middle.height));
    put_lines(buffer, middle, &lines, ui.scroll.min(last));
    last
}

fn overview(buffer: &mut Buffer, area: Rect, state: &State, ui: &Ui, theme: Theme) {
    let workloads = state.workloads(ui.sort, &ui.filter);
    let groups = state.groups(&ui.filter);
    let wanted = processes::height(&workloads);
    let least = findings::height(groups.len());
    // Findings get what they need up to half, processes what is left; an empty rest is at the bottom.
    let lower = least.min((area.height / 2).max(area.height.saturating_sub(wanted)));
    let upper = wanted.min(area.height.saturating_sub(lower));
    let [upper, lower] = Layout::vertical([Constraint::Length(upper), Constraint::Min(0)]).areas(area);
    let focus = |pane| ui.pane == pane;
    processes::draw(buffer, upper, &workloads, ui, theme, focus(Pane::Processes), state);
    findings::draw(buffer, lower, &groups, ui, theme, focus(Pane::Findings));
}

/// Text of an observed process, made harmless.
fn safe(text: &str) -> String {
    Escaped(text).to_string()
}

fn put_lines(buffer: &mut Buffer, area: Rect, lines: &[Line<'_>], skip: usize) {
    for (y, line) in (area.top()..area.bottom()).zip(lines.iter().skip(skip)) {
        buffer.set_line(area.left(), y, line, area.width);
    }
}

fn put(buffer: &mut Buffer, area: Rect, x: u16, text: &str, style: Style) {
    let x = area.left() + x.min(area.width);
    buffer.set_stringn(x, area.top(), text, usize::from(area.right() - x), style);
}

/// One line of an area.
fn row(area: Rect, y: u16) -> Rect {
    Rect {
        y: area.y + y,
        height: 1,
        ..area
    }
}

/// A title over a pane; distinguished by a mark, not by color alone.
fn title(buffer: &mut Buffer, area: Rect, text: &str, focus: bool) {
    let line = format!("{} {text} ", if focus { "▌" } else { " " });
    let style = if focus { BOLD.patch(REVERSED) } else { BOLD };
    put(buffer, area, 0, &line, style);
}

fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// `12:00:02`, UTC.
fn clock(time: Time) -> String {
    time.to_string().get(11..19).unwrap_or("-").to_owned()
}

/// `12:00:02.345`, UTC.
fn clock_ms(time: Time) -> String {
    time.to_string().get(11..23).unwrap_or("-").to_owned()
}

/// Breaks at spaces, or where a word is longer than a line.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(8);
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let mut rest: Vec<char> = word.chars().collect();
        if used > 0 && used + 1 + rest.len() > width {
            lines.push(String::new());
            used = 0;
        }
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().min(width));
            if let Some(line) = lines.last_mut() {
                if used > 0 {
                    line.push(' ');
                    used += 1;
                }
                used += rest.len();
                line.extend(rest);
            }
            rest = tail;
            if !rest.is_empty() {
                lines.push(String::new());
                used = 0;
            }
        }
    }
    lines
}

/// A bar chart in one line of text; its highest value fills the cell.
fn sparkline(values: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let bar = |value: &u64| match value {
        0 => ' ',
        value => BARS[((u128::from(*value) * 8).div_ceil(u128::from(most)) as usize).clamp(1, 8) - 1],
    };
    values.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_keeps_every_character_and_the_width() {
        assert_eq!(wrap("a bb ccc dddd", 8), ["a bb ccc", "dddd"]);
        assert_eq!(wrap("x abcdefghijklmnop", 8), ["x", "abcdefgh", "ijklmnop"]);
        assert_eq!(wrap("", 8), [""]);
    }

    #[test]
    fn sparklines_show_nothing_for_nothing() {
        assert_eq!(sparkline(&[0, 1, 4, 8]), " ▁▄█");
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&[u64::MAX, u64::MAX / 2]), "█▄");
    }
}
