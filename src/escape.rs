//! Text of others, made safe for terminals and logs.

use std::{
    borrow::Cow,
    fmt::{self, Write},
};

/// The text with all control characters written as escape sequences, so that it stays one line and moves no cursor.
/// Characters that change the direction of text are among them: they can make a line read as another.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_unsafe) {
        return text.into();
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    let _ = Escaper(&mut escaped).write_str(text);
    escaped.into()
}

/// The first `most` characters of a text without the white space around it, with an ellipsis if there are more.
pub fn shorten(text: &str, most: usize) -> String {
    let text = text.trim();
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Writes all text as [`escape`] does.
pub struct Escaper<W>(pub W);

impl<W: Write> Write for Escaper<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some(at) = rest.find(is_unsafe) {
            let (before, behind) = rest.split_at(at);
            self.0.write_str(before)?;
            let mut chars = behind.chars();
            for unsafe_char in chars.by_ref().take(1) {
                write!(self.0, "{}", unsafe_char.escape_default())?;
            }
            rest = chars.as_str();
        }
        self.0.write_str(rest)
    }
}

fn is_unsafe(char: char) -> bool {
    char.is_control() || matches!(char, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_written_out() {
        for (text, expected) in [
            ("plain \"text\" with ümläuts \\", "plain \"text\" with ümläuts \\"),
            ("two\nlines\r\n", "two\\nlines\\r\\n"),
            ("\x1b[31mred\x07", "\\u{1b}[31mred\\u{7}"),
            ("\u{9b}2J\x7f", "\\u{9b}2J\\u{7f}"),
            ("a\u{202e}b\u{2066}", "a\\u{202e}b\\u{2066}"),
            ("", ""),
        ] {
            assert_eq!(escape(text), expected);
        }
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(shorten("  äöü\n", 3), "äöü");
        assert_eq!(shorten("äöüß", 3), "äöü...");
    }
}
