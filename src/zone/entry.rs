//! A master file cut into entries, and entries into words (RFC 1035 §5.1).
//!
//! An entry ends with its line, unless parentheses hold several lines together. Cutting comes before reading, so that
//! a fault in one entry does not hide the faults of the next. Lines end with LF, CR LF
//! or CR, comments with LF alone.

use super::{Problem, error::MAX_WORD_BYTES};

/// The entries of a text, one after the other.
pub(super) struct Entries<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

/// Where an entry begins, and how.
pub(super) struct Entry {
    /// The line of its first word, counted from 1.
    pub line: usize,
    /// Whether the line begins with a blank: the owner is that of the entry before.
    pub indented: bool,
    /// What keeps the entry from being cut into words.
    pub fault: Option<Problem>,
}

impl<'a> Entries<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, at: 0, line: 1 }
    }

    /// The next entry that is not empty; its words go into `words`, quotation marks and escapes as written.
    pub fn next(&mut self, words: &mut Vec<&'a str>) -> Option<Entry> {
        words.clear();
        let bytes = self.text.as_bytes();
        let mut entry = Entry { line: self.line, indented: is_blank(bytes.get(self.at)), fault: None };
        let mut parentheses = 0usize;
        while let Some(&byte) = bytes.get(self.at) {
            let start = self.at;
            self.at += 1;
            match byte {
                b'\n' | b'\r' if !is_half_of_line_end(bytes, start) => {
                    self.line += 1;
                    if parentheses == 0 {
                        if !words.is_empty() || entry.fault.is_some() {
                            return Some(entry);
                        }
                        entry = Entry { line: self.line, indented: is_blank(bytes.get(self.at)), fault: None };
                    }
                }
                b' ' | b'\t' | b'\r' => {}
                b';' => {
                    while bytes.get(self.at).is_some_and(|&byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                b'(' => parentheses += 1,
                b')' => match parentheses.checked_sub(1) {
                    Some(left) => parentheses = left,
                    None => {
                        entry.fault.get_or_insert(Problem::StrayParenthesis);
                    }
                },
                _ => {
                    if words.is_empty() {
                        entry.line = self.line;
                    }
                    match word_end(bytes, start, words) {
                        Ok(end) if end - start > MAX_WORD_BYTES => {
                            entry.fault.get_or_insert(Problem::LongWord);
                            self.at = end;
                        }
                        Ok(end) => {
                            words.push(&self.text[start..end]);
                            self.at = end;
                        }
                        Err(end) => {
                            entry.fault.get_or_insert(Problem::OpenQuote);
                            self.at = end;
                        }
                    }
                }
            }
        }
        if parentheses > 0 {
            entry.fault.get_or_insert(Problem::OpenParenthesis);
        }
        (!words.is_empty() || entry.fault.is_some()).then_some(entry)
    }
}

/// Whether this is the CR of CR LF.
fn is_half_of_line_end(bytes: &[u8], at: usize) -> bool {
    bytes[at] == b'\r' && bytes.get(at + 1) == Some(&b'\n')
}

/// Where the word that begins at `start` ends: always before an ASCII character. An error if a quotation is open there.
///
/// A quotation is a word, or the value behind `key=` of an SVCB or HTTPS record.
fn word_end(bytes: &[u8], start: usize, before: &[&str]) -> Result<usize, usize> {
    let mut at = start;
    let mut quoted = bytes[start] == b'"';
    let ends_with_quote = quoted;
    at += usize::from(quoted);
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'\n' | b'\r' => break,
            // A backslash takes the meaning from the next character, unless that ends the line.
            b'\\' if bytes.get(at + 1).is_some_and(|&next| next != b'\n' && next != b'\r') => at += 1,
            b'"' if quoted && ends_with_quote => return Ok(at + 1),
            b'"' if quoted => quoted = false,
            b'"' if bytes[at - 1] == b'=' && before.iter().any(|word| has_pairs(word)) => quoted = true,
            b'"' => break,
            b' ' | b'\t' | b';' | b'(' | b')' if !quoted => break,
            _ => {}
        }
        at += 1;
    }
    if quoted { Err(at) } else { Ok(at) }
}

/// Whether this is a type whose RDATA has pairs of keys and values.
fn has_pairs(word: &str) -> bool {
    ["SVCB", "HTTPS", "TYPE64", "TYPE65"].iter().any(|known| word.eq_ignore_ascii_case(known))
}

fn is_blank(byte: Option<&u8>) -> bool {
    matches!(byte, Some(b' ' | b'\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_end_with_their_line_unless_held_together() {
        let text = "; comment\n\na 1 IN TXT \"x ; (y\" z\\;w ; rest\n  b (\n c ; d\n) e\r\nf \"open\ng )\nh HTTPS key=\"a b\"\"c\"d\ri x\"y z\"w (\n";
        let mut entries = Entries::new(text);
        let mut words = Vec::new();
        let mut read = Vec::new();
        while let Some(entry) = entries.next(&mut words) {
            read.push((entry.line, entry.indented, words.join("|"), entry.fault));
        }
        let expected = [
            (3, false, "a|1|IN|TXT|\"x ; (y\"|z\\;w", None),
            (4, true, "b|c|e", None),
            (7, false, "f", Some(Problem::OpenQuote)),
            (8, false, "g", Some(Problem::StrayParenthesis)),
            (9, false, "h|HTTPS|key=\"a b\"|\"c\"|d", None),
            (10, false, "i|x|\"y z\"|w", Some(Problem::OpenParenthesis)),
        ];
        assert_eq!(read, expected.map(|(line, indented, words, fault)| (line, indented, words.to_string(), fault)));
    }
}
