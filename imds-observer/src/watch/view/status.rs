//! The bottom line: the filter while it is typed, a message, or the keys.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::{BOLD, DIM, put};
use crate::watch::ui::{Screen, Ui};

pub(super) fn draw(buffer: &mut Buffer, area: Rect, ui: &Ui) {
    if ui.typing {
        put(
            buffer,
            area,
            0,
            &format!("/{}▏ Enter applies it, Esc clears it", ui.filter),
            BOLD,
        );
        return;
    }
    if !ui.message.is_empty() {
        put(buffer, area, 0, &super::safe(&ui.message), BOLD);
        return;
    }
    if ui.help {
        put(buffer, area, 0, "↑↓ scroll  any other key closes  q quit", DIM);
        return;
    }
    let keys = match ui.screen {
        Screen::Overview if area.width < 70 => "q quit ? help / filter ↵ open Tab pane",
        Screen::Overview => "q quit ? help / filter s sort p pause w write y copy remedy Tab pane ↵ open",
        _ if area.width < 70 => "Esc back  ↑↓ scroll  q quit",
        _ => "Esc back  ↑↓ scroll  y copy remedy  p pause  w write  ? help  q quit",
    };
    put(buffer, area, 0, keys, DIM);
    if !ui.filter.is_empty() {
        let text = format!(" filter /{} ", ui.filter);
        let width = (text.chars().count() as u16).min(area.width);
        put(buffer, area, area.width - width, &text, Style::new().reversed());
    }
}
