//! Text from untrusted processes, made harmless for a terminal.

use std::fmt::{self, Write as _};

/// Shows a string with control and format characters escaped, so that a path can't move the cursor or turn the line around.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() || is_format(character) {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}

/// Invisible, or changes the direction of what follows.
fn is_format(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_the_terminal_that_it_would_obey() {
        assert_eq!(
            Escaped("a\x1b[2Jb\r\n\u{9b}1m").to_string(),
            "a\\u{1b}[2Jb\\r\\n\\u{9b}1m"
        );
        assert_eq!(Escaped("\u{202e}gpj").to_string(), "\\u{202e}gpj");
        assert_eq!(Escaped("/latest/ü").to_string(), "/latest/ü");
    }
}
