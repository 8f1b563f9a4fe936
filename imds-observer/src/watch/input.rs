//! Which key means what.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// Command of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Quit,
    Help,
    Pause,
    Write,
    Sort,
    Copy,
    Enter,
    Back,
    Pane,
    /// Down this many lines; up if negative.
    Move(isize),
    /// Begins a filter.
    Filter,
    Type(char),
    Erase,
    /// The filter is complete.
    Done,
}

/// Lines of a page key.
const PAGE: isize = 10;
/// More lines than there ever are.
const ALL: isize = 1 << 30;

/// `typing`: a filter is being typed, so that letters are letters.
pub fn action(key: KeyEvent, typing: bool) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return match key.code {
            KeyCode::Char('c' | 'd') => Some(Action::Quit),
            _ => None,
        };
    }
    if typing {
        return match key.code {
            KeyCode::Char(character) if !character.is_control() => Some(Action::Type(character)),
            KeyCode::Backspace => Some(Action::Erase),
            KeyCode::Enter => Some(Action::Done),
            KeyCode::Esc => Some(Action::Back),
            _ => None,
        };
    }
    Some(match key.code {
        KeyCode::Char('q') => Action::Quit,
        KeyCode::Char('?' | 'h') => Action::Help,
        KeyCode::Char('p' | ' ') => Action::Pause,
        KeyCode::Char('w') => Action::Write,
        KeyCode::Char('s') => Action::Sort,
        KeyCode::Char('y') => Action::Copy,
        KeyCode::Char('/') => Action::Filter,
        KeyCode::Enter | KeyCode::Right => Action::Enter,
        KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => Action::Back,
        KeyCode::Tab | KeyCode::BackTab => Action::Pane,
        KeyCode::Down | KeyCode::Char('j') => Action::Move(1),
        KeyCode::Up | KeyCode::Char('k') => Action::Move(-1),
        KeyCode::PageDown => Action::Move(PAGE),
        KeyCode::PageUp => Action::Move(-PAGE),
        KeyCode::Home | KeyCode::Char('g') => Action::Move(-ALL),
        KeyCode::End | KeyCode::Char('G') => Action::Move(ALL),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(code: KeyCode) -> KeyEvent {
        KeyEvent::new(code, KeyModifiers::NONE)
    }

    #[test]
    fn letters_are_letters_while_a_filter_is_typed() {
        assert_eq!(action(key(KeyCode::Char('q')), false), Some(Action::Quit));
        assert_eq!(action(key(KeyCode::Char('q')), true), Some(Action::Type('q')));
        let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        for typing in [false, true] {
            assert_eq!(action(interrupt, typing), Some(Action::Quit));
        }
    }
}
