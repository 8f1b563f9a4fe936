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

/// JSON whose strings hold no control or format character as it is: standard output may be a terminal. Outside of strings JSON has none.
pub fn json(text: String) -> String {
    if text.is_ascii() || !text.chars().any(is_raw) {
        return text;
    }
    let mut escaped = String::with_capacity(text.len() + 64);
    for character in text.chars() {
        if is_raw(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(character);
        }
    }
    escaped
}

/// Whether JSON writers leave the character as it is, although terminals obey it.
fn is_raw(character: char) -> bool {
    !character.is_ascii() && (character.is_control() || is_format(character))
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

    #[test]
    fn json_has_no_raw_control_character_and_means_the_same() {
        let value = "a\x1b\u{9b}1mü\u{202e}\u{e0001}\u{feff}";
        let text = json(serde_json::to_string(value).unwrap());
        assert_eq!(text, "\"a\\u001b\\u009b1mü\\u202e\\udb40\\udc01\\ufeff\"");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
    }
}
