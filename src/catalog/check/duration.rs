//! Durations as Go writes them, which is how Consul's files do: `10s`, `1m30s`, `1.5h`.

use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, de};

/// A duration in a definition; a bare number counts nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    /// Reads numbers with units, one after the other; a lone `0` needs no unit. Nothing of ours can be negative.
    pub fn parse(text: &str) -> Option<Self> {
        let mut rest = text.strip_prefix('+').unwrap_or(text);
        if rest == "0" {
            return Some(Self(Duration::ZERO));
        }
        let mut total = None;
        while !rest.is_empty() {
            let (number, tail) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
            let (unit, tail) = tail.split_at(tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len()));
            let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
            let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
            total = Some(total.unwrap_or(Duration::ZERO).checked_add(part)?);
            rest = tail;
        }
        total.map(Self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

impl de::Visitor<'_> for Visitor {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a duration such as \"10s\" or \"1m30s\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
        GoDuration::parse(text).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
        Ok(GoDuration(Duration::from_nanos(nanos)))
    }

    fn visit_i64<E: de::Error>(self, nanos: i64) -> Result<GoDuration, E> {
        let nanos = u64::try_from(nanos).map_err(|_| E::invalid_value(de::Unexpected::Signed(nanos), &self))?;
        self.visit_u64(nanos)
    }

    fn visit_f64<E: de::Error>(self, nanos: f64) -> Result<GoDuration, E> {
        let duration = Duration::try_from_secs_f64(nanos / 1e9);
        duration.map(GoDuration).map_err(|_| E::invalid_value(de::Unexpected::Float(nanos), &self))
    }
}

const UNITS: [(&str, f64); 8] =
    [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("μs", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("10s", Some(10_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
            (".5s", Some(500)),
            ("+250ms", Some(250)),
            ("2000us", Some(2)),
            ("3000µs", Some(3)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("", None),
            ("10", None), // no unit
            ("s", None),
            (".s", None),
            ("1d", None), // Go has no days
            ("-1s", None),
            ("1 s", None),
            ("1s2", None),
            ("99999999999999999999h", None),
        ] {
            let expected = millis.map(|millis| GoDuration(Duration::from_millis(millis)));
            assert_eq!(GoDuration::parse(text), expected, "{text}");
        }
    }

    #[test]
    fn bare_numbers_count_nanoseconds() {
        for (json, expected) in
            [("1000000000", Some(Duration::from_secs(1))), ("1.5e9", Some(Duration::from_millis(1500))), ("-1", None)]
        {
            assert_eq!(serde_json::from_str::<GoDuration>(json).ok(), expected.map(GoDuration), "{json}");
        }
    }
}
