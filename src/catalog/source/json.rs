//! JSON with the lines of its values.
//!
//! serde_json reads the text level by level: what is within is kept as a slice of the text, whose place tells its line.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::value::{Fault, Kind, Value};

/// Reads a document.
pub(super) fn read(text: &str) -> Result<Value, Fault> {
    let whole: &RawValue = serde_json::from_str(text).map_err(|error| fault(&error, 1))?;
    let ends = text.bytes().enumerate().filter(|(_, octet)| *octet == b'\n').map(|(place, _)| place).collect();
    Document { start: text.as_ptr() as usize, ends }.value(whole, 0)
}

struct Document {
    /// Where the text lies in memory; what is read of it are slices of it.
    start: usize,
    /// The places of the ends of its lines.
    ends: Vec<usize>,
}

impl Document {
    fn value(&self, raw: &RawValue, depth: usize) -> Result<Value, Fault> {
        let text = raw.get();
        let place = (text.as_ptr() as usize).saturating_sub(self.start);
        let line = 1 + self.ends.partition_point(|end| *end < place);
        if depth > MAX_DEPTH {
            return Err(Fault::at(line, "values are nested too deep; nobody needs that"));
        }
        let at_line = |error: serde_json::Error| fault(&error, line);
        let kind = match text.as_bytes().first() {
            Some(b'{') => {
                let Fields(fields) = serde_json::from_str(text).map_err(at_line)?;
                let read = |(key, raw)| Ok((key, self.value(raw, depth + 1)?));
                Kind::Table(fields.into_iter().map(read).collect::<Result<_, Fault>>()?)
            }
            Some(b'[') => {
                let items: Vec<&RawValue> = serde_json::from_str(text).map_err(at_line)?;
                Kind::List(items.into_iter().map(|raw| self.value(raw, depth + 1)).collect::<Result<_, _>>()?)
            }
            Some(b'"') => Kind::Text(serde_json::from_str(text).map_err(at_line)?),
            Some(b't' | b'f') => Kind::Flag(text == "true"),
            Some(b'n') | None => Kind::Null,
            Some(_) => Kind::Number(serde_json::from_str(text).map_err(at_line)?),
        };
        Ok(Value::new(line, kind))
    }
}

/// The parser counts lines from 1, from the line in which its text begins.
fn fault(error: &serde_json::Error, first_line: usize) -> Fault {
    let text = error.to_string();
    let message = text.split(" at line ").next().unwrap_or_default();
    Fault::at(first_line + error.line().saturating_sub(1), format!("this is not JSON: {message}"))
}

/// The keys and values of an object in their order, whatever is there twice.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

/// No definition nests its values any deeper.
const MAX_DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines() {
        let value = read("{\n \"a\": [1,\n  {\"b\": \"\\u00e9\\n\"}],\n \"c\": null}").unwrap();
        let fields = value.table().unwrap();
        assert_eq!((value.line, fields[0].1.line, fields[1].1.line), (1, 2, 4));
        let items = fields[0].1.items();
        assert_eq!((items[0].line, items[1].line), (2, 3));
        assert_eq!(items[1].table().unwrap()[0].1.kind, Kind::Text("é\n".into()));
    }

    #[test]
    fn faults_are_found_at_their_lines() {
        for (text, line) in [
            ("", 1),
            ("{\n\"a\": 1,\n}", 3),
            ("{\n\n\"a\" 1}", 3),
            ("{} {}", 1),
            ("{\n// no\n}", 2),
            ("{\n\"a\": 01}", 2),
        ] {
            let fault = read(text).unwrap_err();
            assert_eq!(fault.line, Some(line), "{text:?}: {fault}");
        }
        assert!(read(&"[".repeat(100_000)).is_err());
        assert!(read(&format!("{}{}", "[".repeat(100), "]".repeat(100))).is_err());
    }
}
