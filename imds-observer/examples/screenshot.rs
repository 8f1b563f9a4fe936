//! Draws the live view over records from stdin, as `analyze -o ndjson` writes them, and prints it as SVG.
//!
//! `cargo xtask screenshot` makes `docs/watch.svg` with it.

use std::io::{self, BufRead as _, Write as _};
use std::sync::Arc;

use imds_observer::source::ndjson;
use imds_observer::watch::state::State;
use imds_observer::watch::ui::Ui;
use imds_observer::watch::view::{self, Theme};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::{Color, Modifier};

const SIZE: (u16, u16) = (110, 32);
/// Of a cell, in pixels.
const CELL: (u16, u16) = (9, 19);
const BACKGROUND: &str = "#1c1f26";
const FOREGROUND: &str = "#d8dbe2";

fn main() -> anyhow::Result<()> {
    let mut state = State::default();
    for line in io::stdin().lock().lines() {
        let record = ndjson::parse(line?.as_bytes()).map_err(|skip| anyhow::anyhow!("read a record: {skip}"))?;
        state.apply(&Arc::new(record));
    }
    let mut terminal = Terminal::new(TestBackend::new(SIZE.0, SIZE.1))?;
    terminal.draw(|frame| {
        view::draw(frame, &state, &Ui::default(), Theme { colour: true });
    })?;
    let (width, height) = (SIZE.0 * CELL.0, SIZE.1 * CELL.1);
    let mut out = io::stdout().lock();
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1}" width="{0}" height="{1}" font-family="ui-monospace, 'DejaVu Sans Mono', monospace" font-size="15" xml:space="preserve"><rect width="100%" height="100%" rx="8" fill="{BACKGROUND}"/>"#,
        width + 16,
        height + 16
    )?;
    let buffer = terminal.backend().buffer();
    for y in 0..SIZE.1 {
        let mut x = 0;
        while x < SIZE.0 {
            let cell = &buffer[(x, y)];
            let mut text = String::new();
            let begin = x;
            while x < SIZE.0 && buffer[(x, y)].style() == cell.style() {
                text.push_str(buffer[(x, y)].symbol());
                x += 1;
            }
            let (left, top) = (8 + begin * CELL.0, 8 + y * CELL.1);
            let mut fill = match cell.fg {
                Color::Red => "#ff6b68",
                Color::Yellow => "#e5c07b",
                Color::Blue => "#61afef",
                _ => FOREGROUND,
            };
            if cell.modifier.contains(Modifier::REVERSED) {
                writeln!(
                    out,
                    r#"<rect x="{left}" y="{top}" width="{}" height="{}" fill="{fill}"/>"#,
                    (x - begin) * CELL.0,
                    CELL.1
                )?;
                fill = BACKGROUND;
            }
            if text.trim().is_empty() {
                continue;
            }
            let weight = if cell.modifier.contains(Modifier::BOLD) {
                r#" font-weight="bold""#
            } else {
                ""
            };
            let dim = if cell.modifier.contains(Modifier::DIM) {
                r#" opacity="0.6""#
            } else {
                ""
            };
            let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            writeln!(
                out,
                r#"<text x="{left}" y="{}" textLength="{}" fill="{fill}"{weight}{dim}>{text}</text>"#,
                top + 14,
                (x - begin) * CELL.0
            )?;
        }
    }
    writeln!(out, "</svg>")?;
    Ok(())
}
