//! The list of findings, worst first, each with what to do.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::{BOLD, DIM, REVERSED, Theme, clip, clock, put, row, safe, title};
use crate::record::FindingState;
use crate::report::groups::Group;
use crate::watch::ui::Ui;

/// Code, summary, remedy.
const LINES: u16 = 3;

pub(super) fn height(findings: usize) -> u16 {
    (findings.clamp(1, 1000) as u16) * if findings == 0 { 1 } else { LINES } + 1
}

pub(super) fn draw(buffer: &mut Buffer, area: Rect, groups: &[Group<'_>], ui: &Ui, theme: Theme, focus: bool) {
    if area.height < 2 {
        return;
    }
    let (mut open, mut causes) = (0, 0);
    for group in groups {
        let of_group = group
            .findings
            .iter()
            .filter(|finding| finding.state != FindingState::Resolved);
        open += of_group.count();
        causes += usize::from(!group.is_resolved());
    }
    let of = match causes {
        _ if causes == open => String::new(),
        1 => " with one cause".to_owned(),
        _ => format!(" with {causes} causes"),
    };
    title(
        buffer,
        row(area, 0),
        &format!("FINDINGS {open}{of}, worst first"),
        focus,
    );
    if groups.is_empty() {
        let text = if ui.filter.is_empty() {
            "no findings so far"
        } else {
            "no finding matches the filter"
        };
        put(buffer, row(area, 1), 2, text, Style::new());
        return;
    }
    let at = ui.selected_of(groups);
    let room = usize::from(((area.height - 1) / LINES).max(1));
    let skip = (at + 1).saturating_sub(room);
    let mut y = 1;
    for (index, group) in groups.iter().enumerate().skip(skip) {
        let chosen = index == at;
        for (number, (text, style)) in lines(group, theme, usize::from(area.width)).into_iter().enumerate() {
            if y >= area.height {
                return;
            }
            let line = row(area, y);
            let base = if chosen && focus && number == 0 {
                REVERSED
            } else {
                Style::new()
            };
            buffer.set_style(line, base);
            if number == 0 {
                put(buffer, line, 0, if chosen { ">" } else { " " }, base);
            }
            let mut x = 2;
            for (text, style) in [(text.0, style), (text.1, Style::new())] {
                put(buffer, line, x, &text, style.patch(base));
                x += text.chars().count().min(1000) as u16;
            }
            y += 1;
        }
    }
}

type Parts = ((String, String), Style);

fn lines(group: &Group<'_>, theme: Theme, width: usize) -> Vec<Parts> {
    let finding = group.first();
    let over = group.is_resolved();
    let (subject, says) = match group.findings.len() {
        1 => (finding.subject.name.clone(), finding.summary.clone()),
        subjects => (
            format!("{subjects} subjects"),
            format!("{}, and {} more", finding.summary, subjects - 1),
        ),
    };
    let label = if over {
        "over".to_owned()
    } else {
        finding.severity.as_str().to_uppercase()
    };
    let style = if over { DIM } else { theme.severity(finding.severity) };
    let rest = format!(
        " {} {} ×{} since {}",
        finding.code,
        safe(&subject),
        group.count(),
        clock(group.seen().0)
    );
    let room = width.saturating_sub(4);
    let rest = clip(&rest, width.saturating_sub(2 + label.len()));
    let mut lines = vec![((label, rest), style)];
    let indent = "  ";
    lines.push((
        (format!("{indent}{}", clip(&safe(&says), room)), String::new()),
        if over { DIM } else { Style::new() },
    ));
    if !over && !group.remedy().text.is_empty() {
        let remedy = clip(&safe(&group.remedy().text), room.saturating_sub(4));
        lines.push(((format!("{indent}do: "), remedy), BOLD));
    }
    lines
}
