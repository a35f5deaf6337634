//! Reads the fields of RDATA from words.

use std::{
    borrow::Cow,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use data_encoding::{BASE32HEX_NOPAD, BASE64, HEXLOWER_PERMISSIVE};

use super::{
    Fault, Field, bad,
    names::{ALGORITHMS, CERT_TYPES, DIGESTS, KEY_FLAGS, PROTOCOLS, lookup, rtype},
};
use crate::{
    wire::{Name, NameError},
    zone::Problem,
};

/// The words of a record behind its type.
pub(super) struct Words<'a> {
    words: &'a [&'a str],
    origin: &'a Name,
    is_empty: bool,
}

impl<'a> Words<'a> {
    pub fn new(words: &'a [&'a str], origin: &'a Name) -> Self {
        Self { words, origin, is_empty: words.is_empty() }
    }

    /// The next word.
    pub fn next(&mut self) -> Result<&'a str, Fault> {
        let Some((word, rest)) = self.words.split_first() else {
            return Err(bad(if self.is_empty { "it is missing" } else { "it ends too early" }));
        };
        self.words = rest;
        Ok(word)
    }

    /// The next word if there is one.
    pub fn peek(&self) -> Option<&'a str> {
        self.words.first().copied()
    }

    /// All that is left.
    pub fn take_rest(&mut self) -> Vec<&'a str> {
        std::mem::take(&mut self.words).to_vec()
    }

    /// An error if anything is left.
    pub fn end(self) -> Result<(), Fault> {
        match self.words.first() {
            Some(word) => Err(bad(format!("there is too much, from `{word}` on"))),
            None => Ok(()),
        }
    }

    /// A number that is not above the maximum of its type.
    pub fn number<T: FromStr>(&mut self) -> Result<T, Fault> {
        let word = self.next()?;
        number(word).ok_or_else(|| bad(format!("`{word}` is not a number in the range of its field")))
    }

    fn mnemonic<T: Copy + FromStr>(&mut self, table: &[(&str, T)]) -> Result<T, Fault> {
        let word = self.next()?;
        let read = number(word).or_else(|| lookup(table, word));
        read.ok_or_else(|| bad(format!("`{word}` is neither a number in range nor a known mnemonic")))
    }

    /// The flags of a KEY record: a number, or mnemonics with bars between them.
    pub fn flags(&mut self) -> Result<u16, Fault> {
        let word = self.next()?;
        let hexadecimal = word.strip_prefix("0x").and_then(|digits| u16::from_str_radix(digits, 16).ok());
        let mnemonics = || word.split('|').try_fold(0, |flags, word| Some(flags | lookup(KEY_FLAGS, word)?));
        let flags = number(word).or(hexadecimal).or_else(mnemonics);
        flags.ok_or_else(|| bad(format!("`{word}` is neither a number in range nor flags")))
    }

    /// A name, made absolute.
    pub fn name(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let word = self.next()?;
        if is_quoted(word) {
            return Err(bad(format!("{word} is not a name; remove the quotation marks")));
        }
        out.extend_from_slice(name(word, self.origin).map_err(Fault::Other)?.wire());
        Ok(())
    }

    /// A length of one octet and the octets of a string.
    pub fn string(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        let octets = octets(self.next()?).map_err(bad)?;
        let length = u8::try_from(octets.len()).map_err(|_| bad("a string is longer than 255 octets"))?;
        out.push(length);
        out.extend_from_slice(&octets);
        Ok(())
    }

    /// Reads a field. The RDATA begins at `start` of `out`.
    pub fn field(&mut self, field: Field, out: &mut Vec<u8>, start: usize) -> Result<(), Fault> {
        match field {
            Field::U8 => out.push(self.number()?),
            Field::U16 => out.extend(self.number::<u16>()?.to_be_bytes()),
            Field::U32 => out.extend(self.number::<u32>()?.to_be_bytes()),
            Field::Seconds => {
                let word = self.next()?;
                out.extend(seconds(word).ok_or_else(|| Fault::Other(Problem::BadTtl(word.into())))?.to_be_bytes());
            }
            Field::Time => out.extend(time(self.next()?)?.to_be_bytes()),
            Field::Rtype => out.extend(any_rtype(self.next()?)?.to_be_bytes()),
            Field::Flags => out.extend(self.flags()?.to_be_bytes()),
            Field::Algorithm => out.push(self.mnemonic(ALGORITHMS)?),
            Field::Digest => out.push(self.mnemonic(DIGESTS)?),
            Field::Protocol => out.push(self.mnemonic(PROTOCOLS)?),
            Field::CertType => out.extend(self.mnemonic(CERT_TYPES)?.to_be_bytes()),
            Field::Name => self.name(out)?,
            Field::Ipv4 => {
                let address: Ipv4Addr = self.next()?.parse().map_err(|_| bad("not an IPv4 address"))?;
                out.extend(address.octets());
            }
            Field::Ipv6 => {
                let address: Ipv6Addr = self.next()?.parse().map_err(|_| bad("not an IPv6 address"))?;
                out.extend(address.octets());
            }
            Field::String => self.string(out)?,
            Field::OptionalString => {
                if self.peek().is_some() {
                    self.string(out)?;
                }
            }
            Field::Digits => {
                let at = out.len() + 1;
                self.string(out)?;
                if out.len() < at + 4 || !out[at..].iter().all(u8::is_ascii_digit) {
                    return Err(bad("an address is not four or more digits"));
                }
            }
            Field::Tag => {
                let at = out.len() + 1;
                let is_quoted = self.peek().is_some_and(is_quoted);
                self.string(out)?;
                if is_quoted || out.len() == at || !out[at..].iter().all(u8::is_ascii_alphanumeric) {
                    return Err(bad("the tag is not letters and digits"));
                }
            }
            Field::Strings => {
                self.string(out)?;
                while self.peek().is_some() {
                    self.string(out)?;
                }
            }
            Field::Rest => out.extend_from_slice(&octets(self.next()?).map_err(bad)?),
            Field::Target => {
                let word = self.next()?;
                let octets = octets(word).map_err(bad)?;
                if !is_quoted(word) {
                    return Err(bad("the target is not in quotation marks"));
                }
                out.extend_from_slice(&octets);
            }
            Field::Hex => {
                let first = self.next()?;
                hex(&[&[first], &*self.take_rest()].concat(), out)?;
            }
            Field::Hash(lengths, least) => {
                let kind = out[start..].last().copied();
                let at = out.len();
                self.field(Field::Hex, out, start)?;
                let found = out.len() - at;
                match lengths.iter().find(|(known, _)| Some(*known) == kind) {
                    Some(&(_, length)) if length != found => {
                        return Err(bad(format!("the digest has {found} octets, not {length}")));
                    }
                    None if found < least => return Err(bad(format!("the digest has {found} octets, not {least}"))),
                    _ => {}
                }
            }
            Field::Base64 => {
                let words = self.take_rest();
                if words.is_empty() {
                    return Err(bad("it ends too early"));
                }
                base64(&words.concat(), out)?;
            }
            Field::OptionalBase64 => match self.take_rest().as_slice() {
                [] => {}
                words => base64(&words.concat(), out)?,
            },
            Field::Base64OrDash => match self.peek() {
                Some("-") => drop(self.next()?),
                _ => self.field(Field::Base64, out, start)?,
            },
            Field::Salt => {
                let word = self.next()?;
                let at = out.len();
                out.push(0);
                if word != "-" {
                    hex(&[word], out)?;
                }
                out[at] = u8::try_from(out.len() - at - 1).map_err(|_| bad("the salt is longer than 255 octets"))?;
            }
            Field::NextHash => {
                let word = self.next()?.to_ascii_uppercase();
                let hash = BASE32HEX_NOPAD.decode(word.as_bytes()).map_err(|_| bad("the hash is not base 32"))?;
                let length = u8::try_from(hash.len()).ok().filter(|&length| length > 0);
                out.push(length.ok_or_else(|| bad("the hash is empty or longer than 255 octets"))?);
                out.extend(hash);
            }
            Field::Types | Field::TypesOrNone => {
                let words = self.take_rest();
                if words.is_empty() && field == Field::Types {
                    return Err(bad("it ends too early"));
                }
                types(&words, out)?;
            }
            Field::Eui(count) => eui(self.next()?, count, out)?,
            Field::Locator => locator(self.next()?, out)?,
        }
        Ok(())
    }
}

/// Whether a word stands in quotation marks.
pub(in crate::zone) fn is_quoted(word: &str) -> bool {
    word.starts_with('"')
}

/// The octets that a word stands for: without its quotation marks, and with `\DDD` and `\X` resolved.
pub(in crate::zone) fn octets(word: &str) -> Result<Cow<'_, [u8]>, &'static str> {
    let text = match word.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').unwrap_or(rest),
        None => word,
    };
    if !text.contains('\\') {
        return Ok(Cow::Borrowed(text.as_bytes()));
    }
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&octet, tail)) = rest.split_first() {
        rest = tail;
        if octet != b'\\' {
            octets.push(octet);
            continue;
        }
        match rest {
            [a, b, c, tail @ ..] if [a, b, c].iter().all(|digit| digit.is_ascii_digit()) => {
                let value = [a, b, c].iter().fold(0u16, |value, digit| value * 10 + u16::from(**digit - b'0'));
                octets.push(u8::try_from(value).map_err(|_| "\\DDD is above 255")?);
                rest = tail;
            }
            [digit, ..] if digit.is_ascii_digit() => return Err("a backslash is followed by fewer than three digits"),
            [escaped, tail @ ..] => {
                octets.push(*escaped);
                rest = tail;
            }
            [] => return Err("it ends with a backslash"),
        }
    }
    Ok(Cow::Owned(octets))
}

/// A name, relative to `origin` unless it ends with a dot.
pub(in crate::zone) fn name(word: &str, origin: &Name) -> Result<Name, Problem> {
    if word == "@" {
        return Ok(origin.clone());
    }
    let bad_name = |error| Problem::BadName { text: word.to_string(), error };
    let name: Name = word.parse().map_err(bad_name)?;
    let is_absolute = word.strip_suffix('.').is_some_and(|rest| {
        let backslashes = rest.len() - rest.trim_end_matches('\\').len();
        backslashes % 2 == 0
    });
    if is_absolute {
        return Ok(name);
    }
    let labels = &name.wire()[..name.wire().len() - 1];
    Name::from_wire(&[labels, origin.wire()].concat()).map_err(|_| bad_name(NameError::LongName))
}

/// Digits alone.
pub(super) fn number<T: FromStr>(word: &str) -> Option<T> {
    word.starts_with(|first: char| first.is_ascii_digit()).then(|| word.parse().ok())?
}

/// Seconds, or numbers with units as in `1h30m`.
pub(in crate::zone) fn seconds(word: &str) -> Option<u32> {
    if let Some(seconds) = number(word) {
        return Some(seconds);
    }
    let mut rest = word;
    let mut total = 0u32;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let unit_seconds = match rest.as_bytes().get(digits)?.to_ascii_lowercase() {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => 86_400,
            b'w' => 604_800,
            _ => return None,
        };
        let number: u32 = rest[..digits].parse().ok()?;
        total = total.checked_add(number.checked_mul(unit_seconds)?)?;
        rest = &rest[digits + 1..];
    }
    Some(total)
}

/// Hexadecimal digits, pairs of which may lie in two words.
pub(super) fn hex(words: &[&str], out: &mut Vec<u8>) -> Result<(), Fault> {
    let digits = words.concat();
    out.extend(HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).map_err(|_| bad("not pairs of hexadecimal digits"))?);
    Ok(())
}

pub(super) fn base64(text: &str, out: &mut Vec<u8>) -> Result<(), Fault> {
    out.extend(BASE64.decode(text.as_bytes()).map_err(|_| bad("not base 64"))?);
    Ok(())
}

/// The number of a type in RDATA, where types for queries may stand, too.
pub(super) fn any_rtype(word: &str) -> Result<u16, Fault> {
    match rtype(word) {
        Ok(rtype) | Err(Problem::QueryType(rtype)) => Ok(rtype.0),
        Err(problem) => Err(Fault::Other(problem)),
    }
}

/// A set of types (RFC 4034 §4.1.2).
fn types(words: &[&str], out: &mut Vec<u8>) -> Result<(), Fault> {
    let mut numbers = words.iter().map(|word| any_rtype(word)).collect::<Result<Vec<_>, _>>()?;
    numbers.sort_unstable();
    for window in numbers.chunk_by(|a, b| a >> 8 == b >> 8) {
        let mut bitmap = [0u8; 32];
        let mut length = 0;
        for number in window {
            let low = usize::from(number & 0xff);
            bitmap[low / 8] |= 0x80 >> (low % 8);
            length = low / 8 + 1;
        }
        out.extend([(window[0] >> 8) as u8, length as u8]);
        out.extend_from_slice(&bitmap[..length]);
    }
    Ok(())
}

/// Seconds since 1970, or a date (RFC 4034 §3.2).
fn time(word: &str) -> Result<u32, Fault> {
    let malformed = || bad(format!("`{word}` is not a time; write YYYYMMDDHHMMSS"));
    if word.len() != 14 {
        return number(word).ok_or_else(malformed);
    }
    if !word.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(malformed());
    }
    let part = |range: std::ops::Range<usize>| word[range].parse::<i64>().unwrap_or_default();
    let (year, month, day) = (part(0..4), part(4..6), part(6..8));
    let (hour, minute, second) = (part(8..10), part(10..12), part(12..14));
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        _ => return Err(malformed()),
    };
    if !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return Err(malformed());
    }
    // Days since 1970-01-01, with years that begin in March.
    let (shifted, moved) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * shifted + shifted / 4 - shifted / 100 + shifted / 400 + (153 * moved + 2) / 5 + day - 719_469;
    // It is the low half of a number: BIND prints times after 2106 as if they were before 1970.
    Ok((days * 86_400 + hour * 3600 + minute * 60 + second) as u32)
}

/// Pairs of hexadecimal digits with hyphens between them (RFC 7043 §3.2).
fn eui(word: &str, count: usize, out: &mut Vec<u8>) -> Result<(), Fault> {
    let pairs: Vec<&str> = word.split('-').collect();
    if pairs.len() != count || pairs.iter().any(|pair| !matches!(pair.len(), 1 | 2)) {
        return Err(bad(format!("not {count} pairs of hexadecimal digits with hyphens between them")));
    }
    let pairs: Vec<String> = pairs.iter().map(|pair| format!("{pair:0>2}")).collect();
    hex(&[&pairs.concat()], out)
}

/// Four groups of hexadecimal digits with colons between them (RFC 6742 §2.1.2).
fn locator(word: &str, out: &mut Vec<u8>) -> Result<(), Fault> {
    let malformed = || bad("not four groups of hexadecimal digits with colons between them");
    let groups: Vec<&str> = word.split(':').collect();
    if groups.len() != 4 {
        return Err(malformed());
    }
    for group in groups {
        let is_group = (1..=4).contains(&group.len()) && group.bytes().all(|digit| digit.is_ascii_hexdigit());
        let value = u16::from_str_radix(group, 16).ok().filter(|_| is_group).ok_or_else(malformed)?;
        out.extend(value.to_be_bytes());
    }
    Ok(())
}

/// Largest TTL (RFC 2181 §8).
pub(in crate::zone) const MAX_TTL: u32 = i32::MAX as u32;
