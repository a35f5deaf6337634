//! HCL in its first version, which is what Consul reads.
//!
//! It is much freer than the second: keys may be quoted, `=` may be left out before a `{`, and whether commas or line
//! ends or nothing stands between two items does not matter. `connect { sidecar_service {} }`, which Consul's manual
//! writes, is no HCL of the second version. What looks like a template, `${...}`, is text.

use std::collections::HashMap;

use serde_json::Number;

use super::{
    json,
    value::{Fault, Kind, Value},
};

/// Reads a document. As in Consul, one that begins with `{` is JSON.
pub(super) fn read(text: &str) -> Result<Value, Fault> {
    if text.trim_start().starts_with('{') {
        return json::read(text);
    }
    let mut reader = Reader { rest: text, line: 1 };
    let fields = reader.fields(None, 0)?;
    Ok(Value::new(1, Kind::Table(fields)))
}

struct Reader<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Reader<'a> {
    /// The items up to `}` or, in the outermost body, to the end. Those of the same key become a list.
    fn fields(&mut self, opened: Option<usize>, depth: usize) -> Result<Vec<(String, Value)>, Fault> {
        let mut fields: Vec<(String, Value)> = Vec::new();
        // Where each key is, once there are many.
        let mut places = HashMap::new();
        loop {
            self.skip_blanks()?;
            match (self.peek(), opened) {
                (None, None) => return Ok(fields),
                (None, Some(line)) => return Err(Fault::at(line, "the { is never closed; add }")),
                (Some('}'), Some(_)) => {
                    self.take();
                    return Ok(fields);
                }
                (Some(','), _) if !fields.is_empty() => drop(self.take()),
                _ => {
                    let (key, value) = self.item(depth)?;
                    let known = if fields.len() < FEW {
                        fields.iter().position(|(known, _)| *known == key)
                    } else {
                        if places.is_empty() {
                            places = fields.iter().zip(0..).map(|((key, _), place)| (key.clone(), place)).collect();
                        }
                        places.get(&key).copied()
                    };
                    match known.and_then(|place| fields.get_mut(place)) {
                        Some((_, known)) => append(known, value),
                        None => {
                            if !places.is_empty() {
                                places.insert(key.clone(), fields.len());
                            }
                            fields.push((key, value));
                        }
                    }
                }
            }
        }
    }

    /// A key with its value: `key = value`, `key { ... }` or `key "label" { ... }`.
    fn item(&mut self, depth: usize) -> Result<(String, Value), Fault> {
        let line = self.line;
        let key = self.key()?;
        self.skip_blanks()?;
        let value = match self.peek() {
            Some('=' | ':') => {
                self.take();
                self.value(depth + 1)?
            }
            Some('{') => self.value(depth + 1)?,
            Some(first) if is_key(first) || first == '"' => {
                if depth > MAX_DEPTH {
                    return Err(Fault::at(line, TOO_DEEP));
                }
                Value::new(line, Kind::Table(vec![self.item(depth + 1)?]))
            }
            _ => return Err(self.fault(&format!("`=` or {{ is missing behind {key}"))),
        };
        Ok((key, value))
    }

    fn key(&mut self) -> Result<String, Fault> {
        match self.peek() {
            Some('"') => self.text(),
            Some(first) if is_key(first) => Ok(self.word().to_owned()),
            _ => Err(self.fault("a key is missing here")),
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, Fault> {
        self.skip_blanks()?;
        let line = self.line;
        if depth > MAX_DEPTH {
            return Err(Fault::at(line, TOO_DEEP));
        }
        let kind = match self.peek() {
            Some('"') => Kind::Text(self.text()?),
            Some('{') => {
                self.take();
                Kind::Table(self.fields(Some(line), depth)?)
            }
            Some('[') => {
                self.take();
                Kind::List(self.items(line, depth)?)
            }
            Some('<') if self.rest.starts_with("<<") => Kind::Text(self.heredoc()?),
            Some(first) if is_key(first) || first == '+' => {
                let word = self.word();
                match word {
                    "true" => Kind::Flag(true),
                    "false" => Kind::Flag(false),
                    _ => match read_number(word) {
                        Some(number) => Kind::Number(number),
                        None => return Err(Fault::at(line, format!("`{word}` is no value; put text into quotes"))),
                    },
                }
            }
            _ => return Err(self.fault("a value is missing here")),
        };
        Ok(Value::new(line, kind))
    }

    /// The values up to `]`.
    fn items(&mut self, opened: usize, depth: usize) -> Result<Vec<Value>, Fault> {
        let mut items = Vec::new();
        loop {
            self.skip_blanks()?;
            match self.peek() {
                None => return Err(Fault::at(opened, "the [ is never closed; add ]")),
                Some(']') => {
                    self.take();
                    return Ok(items);
                }
                _ => items.push(self.value(depth + 1)?),
            }
            self.skip_blanks()?;
            match self.peek() {
                Some(',') => drop(self.take()),
                None | Some(']') => {}
                Some(_) => return Err(self.fault("a comma is missing between two values")),
            }
        }
    }

    /// Text in quotes.
    fn text(&mut self) -> Result<String, Fault> {
        let line = self.line;
        let open = || Fault::at(line, "a quotation mark is not closed on its line; close it, or write \\\"");
        let mut text = String::new();
        // How many braces of `${` are open: quotes within are part of the text.
        let mut braces = 0_usize;
        self.take();
        loop {
            match self.take().ok_or_else(open)? {
                '"' if braces == 0 => return Ok(text),
                '\n' => return Err(open()),
                '$' if self.peek() == Some('{') => {
                    braces += 1;
                    self.take();
                    text.push_str("${");
                }
                '{' if braces > 0 => {
                    braces += 1;
                    text.push('{');
                }
                '}' if braces > 0 => {
                    braces -= 1;
                    text.push('}');
                }
                '\\' if braces == 0 => {
                    text.push(self.escape().ok_or_else(|| Fault::at(line, "unknown escape; write \\\\"))?)
                }
                plain => text.push(plain),
            }
        }
    }

    fn escape(&mut self) -> Option<char> {
        let (digits, radix) = match self.take()? {
            'n' => return Some('\n'),
            't' => return Some('\t'),
            'r' => return Some('\r'),
            'a' => return Some('\x07'),
            'b' => return Some('\x08'),
            'f' => return Some('\x0c'),
            'v' => return Some('\x0b'),
            same @ ('"' | '\\') => return Some(same),
            'x' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            _ => return None,
        };
        let code = u32::from_str_radix(self.rest.get(..digits)?, radix).ok()?;
        self.rest = self.rest.get(digits..)?;
        char::from_u32(code)
    }

    /// Lines up to one that holds nothing but a word: `<<WORD`; with `<<-WORD` without their common indentation.
    fn heredoc(&mut self) -> Result<String, Fault> {
        let line = self.line;
        let fault = || Fault::at(line, "the text never ends; close it by a line with its word alone");
        let (head, mut body) = self.rest.split_once('\n').ok_or_else(fault)?;
        let (word, is_indented) = match head.trim().strip_prefix("<<-") {
            Some(word) => (word, true),
            None => (head.trim().trim_start_matches('<'), false),
        };
        let mut lines = Vec::new();
        loop {
            self.line += 1;
            let (next, rest) = body.split_once('\n').unwrap_or((body, ""));
            if next.trim() == word && !word.is_empty() {
                // The line end behind the word remains.
                self.rest = &body[next.len()..];
                break;
            }
            if body.is_empty() {
                return Err(fault());
            }
            lines.push(next);
            body = rest;
        }
        let margin = |line: &&str| line.len() - line.trim_start_matches([' ', '\t']).len();
        let common = if is_indented { lines.iter().map(margin).min().unwrap_or(0) } else { 0 };
        Ok(lines.iter().flat_map(|line| [&line[common..], "\n"]).collect())
    }

    /// Blanks, line ends and comments.
    fn skip_blanks(&mut self) -> Result<(), Fault> {
        loop {
            if self.rest.starts_with('#') || self.rest.starts_with("//") {
                self.rest = self.rest.find('\n').map_or("", |end| &self.rest[end..]);
            } else if self.rest.starts_with("/*") {
                let line = self.line;
                let end = self.rest.find("*/").ok_or_else(|| Fault::at(line, "the comment is never closed; add */"))?;
                let (comment, rest) = self.rest.split_at(end + 2);
                self.line += comment.matches('\n').count();
                self.rest = rest;
            } else if self.peek().is_some_and(|next| next.is_whitespace() || next == '\u{feff}') {
                self.take();
            } else {
                return Ok(());
            }
        }
    }

    fn word(&mut self) -> &'a str {
        let end = self.rest.find(|next| !is_key(next) && next != '+').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.rest = &self.rest[next.len_utf8()..];
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn fault(&self, message: &str) -> Fault {
        let found = match self.peek() {
            Some(next) => format!("there is `{next}`"),
            None => "the file ends".to_owned(),
        };
        Fault::at(self.line, format!("this is not HCL: {message}, {found}"))
    }
}

/// Adds what a key says for another time.
fn append(known: &mut Value, value: Value) {
    let mut items = match std::mem::replace(&mut known.kind, Kind::Null) {
        Kind::List(items) => items,
        kind => vec![Value::new(known.line, kind)],
    };
    match value.kind {
        Kind::List(more) => items.extend(more),
        kind => items.push(Value::new(value.line, kind)),
    }
    known.kind = Kind::List(items);
}

fn is_key(letter: char) -> bool {
    letter.is_alphanumeric() || matches!(letter, '_' | '-' | '.')
}

fn read_number(word: &str) -> Option<Number> {
    if let Some(digits) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        return i64::from_str_radix(digits, 16).ok().map(Number::from);
    }
    let is_octal = word.len() > 1 && word.starts_with('0') && word.bytes().all(|octet| octet.is_ascii_digit());
    match word.parse::<i64>() {
        Ok(_) if is_octal => i64::from_str_radix(word, 8).ok().map(Number::from),
        Ok(number) => Some(number.into()),
        Err(_) if word.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '.')) => {
            word.parse().ok().and_then(Number::from_f64)
        }
        Err(_) => None,
    }
}

/// So many keys are found by looking at each.
const FEW: usize = 32;
/// No definition nests its values any deeper.
const MAX_DEPTH: usize = 64;
const TOO_DEEP: &str = "values are nested too deep; nobody needs that";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same in JSON, which is easier to compare.
    fn to_json(value: &Value) -> String {
        let list = |parts: Vec<String>| parts.join(",");
        match &value.kind {
            Kind::Null => "null".into(),
            Kind::Flag(flag) => flag.to_string(),
            Kind::Number(number) => number.to_string(),
            Kind::Text(text) => format!("{text:?}"),
            Kind::List(items) => format!("[{}]", list(items.iter().map(to_json).collect())),
            Kind::Table(fields) => {
                let fields = fields.iter().map(|(key, value)| format!("{key:?}:{}", to_json(value)));
                format!("{{{}}}", list(fields.collect()))
            }
        }
    }

    #[test]
    fn all_forms_that_consul_reads_are_read() {
        for (text, expected) in [
            ("", "{}"),
            ("a = 1", r#"{"a":1}"#),
            ("connect { sidecar_service {} }", r#"{"connect":{"sidecar_service":{}}}"#),
            ("check { tcp = \"a:1\" interval = \"10s\" }", r#"{"check":{"tcp":"a:1","interval":"10s"}}"#),
            ("ttl { \"*\" = \"5s\", \"a-b\" = \"1s\" }", r#"{"ttl":{"*":"5s","a-b":"1s"}}"#),
            ("\"service\" = {\n\"name\" = \"x\",\n}\n", r#"{"service":{"name":"x"}}"#),
            ("service: { name: \"x\" }", r#"{"service":{"name":"x"}}"#),
            ("check { a = 1 }\ncheck { a = 2 }", r#"{"check":[{"a":1},{"a":2}]}"#),
            ("x = [1, 2]\nx = [3]", r#"{"x":[1,2,3]}"#),
            ("x = [\n \"a\", # one\n \"b\", // two\n /* three\n */\n]", r#"{"x":["a","b"]}"#),
            ("s \"label\" { a = true }", r#"{"s":{"label":{"a":true}}}"#),
            ("a = 0x1F\nb = 1e3\nc = -5\nd = 010\ne = .5", r#"{"a":31,"b":1000.0,"c":-5,"d":8,"e":0.5}"#),
            (r#"a = "q\"\\\n\u00e9""#, r#"{"a":"q\"\\\né"}"#),
            (r#"a = "x ${env "HOME"} y""#, r#"{"a":"x ${env \"HOME\"} y"}"#),
            ("a = <<EOF\n one\n  two\nEOF\nb = 1", r#"{"a":" one\n  two\n","b":1}"#),
            ("a = <<-EOF\n  one\n   two\n  EOF\n", r#"{"a":"one\n two\n"}"#),
            ("{\"a\": 1}", r#"{"a":1}"#),
        ] {
            let value = read(text).unwrap_or_else(|fault| panic!("{text:?}: {fault}"));
            assert_eq!(to_json(&value), expected, "{text:?}");
        }
    }

    #[test]
    fn faults_are_found_at_their_lines() {
        for (text, line, expected) in [
            ("a = 1\nb =\n", 3, "a value is missing"),
            ("a = 1\nb 1 {", 2, "never closed"),
            ("a {\n b = 1\n", 1, "never closed"),
            ("a = [1\n", 1, "never closed"),
            ("a = [1 2]", 1, "comma"),
            ("\n}", 2, "a key is missing"),
            ("a = \"x\nb = 1", 1, "quotation mark"),
            ("a = \"\\q\"", 1, "escape"),
            ("a = <<EOF\nx\n", 1, "never ends"),
            ("a = yes", 1, "`yes` is no value"),
            ("/* x", 1, "comment"),
            ("a", 1, "the file ends"),
        ] {
            let fault = read(text).unwrap_err();
            assert_eq!(fault.line, Some(line), "{text:?}: {fault}");
            assert!(fault.message.contains(expected), "{text:?}: {fault}");
        }
    }

    #[test]
    fn lines_are_counted_through_comments_and_texts() {
        let value = read("/*\n*/\na = <<E\nx\nE\n# c\nb = 1\nc = \"\"\nd {\n}").unwrap();
        let lines: Vec<usize> = value.table().unwrap().iter().map(|(_, value)| value.line).collect();
        assert_eq!(lines, [3, 7, 8, 9]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a{}\\[\\]=:,\"\\\\$<\\-E\n#/* 0.]{0,60}") {
            let _ = read(&text);
        }

        #[test]
        fn nothing_is_nested_too_deep_for_the_stack(depth in 1usize..5000) {
            let _ = read(&"a{".repeat(depth));
            let _ = read(&format!("a={}", "[".repeat(depth)));
            let _ = read(&"a ".repeat(depth));
        }
    }
}
