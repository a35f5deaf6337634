//! TOML files, read as one document so that all its faults are found, each at its file and line.
//!
//! Each file has a range of offsets of its own, as if all stood one after the other, so that a span tells the file as well.
//!
//! serde stops at the first fault. So whatever is at fault is noted and taken out of the document, and the rest is
//! read again, until it reads; what is missing only on that account is no fault of its own. All unknown keys of a section are
//! taken out at once, and the document is read [`MOST_READS`] times at most, so that any number of faults is read in linear
//! time.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue, Error, ValueDeserializer},
};

use super::{Fault, Problem};
use crate::location::Location;

/// A file and what stands in it.
pub struct Text {
    pub file: PathBuf,
    pub text: String,
}

/// Parsed files, the main one first.
pub struct Document<'a> {
    texts: Vec<&'a Text>,
    root: DeValue<'a>,
    /// What has been taken out: each key with the place of the table that it was in.
    taken: Vec<(Span, String)>,
}

/// Bytes of the file.
type Span = Range<usize>;

impl<'a> Document<'a> {
    /// Parses a file; the faults are those of its syntax.
    pub fn parse(text: &'a Text) -> Result<Self, Vec<Fault>> {
        let mut document = Self { texts: vec![text], root: DeValue::Table(DeTable::new()), taken: Vec::new() };
        document.root = DeValue::Table(document.parse_last()?);
        Ok(document)
    }

    /// Adds what another file says. Sections of both are joined, and lists of sections too; what both say otherwise is a
    /// fault.
    pub fn add(&mut self, text: &'a Text) -> Result<(), Vec<Fault>> {
        self.texts.push(text);
        let mut added = self.parse_last()?;
        let nested = added.get_key_value(INCLUDE).map(|(key, _)| self.locate(&key.span()));
        added.remove(INCLUDE);
        let DeValue::Table(root) = &mut self.root else { return Ok(()) };
        let mut twice = Vec::new();
        merge(root, added, "", &mut twice);
        let fault = |(first, second, key): (Span, Span, String)| {
            let first = self.locate(&first);
            Fault { location: self.locate(&second), problem: Problem::KeyTwice { key, first } }
        };
        let nested = nested.map(|location| Fault { location, problem: Problem::NestedInclude });
        let faults: Vec<Fault> = nested.into_iter().chain(twice.into_iter().map(fault)).collect();
        if faults.is_empty() { Ok(()) } else { Err(faults) }
    }

    fn parse_last(&self) -> Result<DeTable<'a>, Vec<Fault>> {
        let Some((last, before)) = self.texts.split_last() else { return Ok(DeTable::new()) };
        let start = before.iter().map(|text| text.room()).sum();
        let (root, errors) = DeTable::parse_recoverable(&last.text);
        let fault = |error: &Error| {
            let span = error.span().unwrap_or(ROOT);
            let location = Location::at_offset(&last.file, &last.text, span.start);
            Fault { location, problem: Problem::Syntax(in_our_words(error.message())) }
        };
        if errors.is_empty() {
            return Ok(moved_table(root.into_inner(), start));
        }
        let more = Fault { location: Location::file(&last.file), problem: Problem::TooManyFaults };
        let more = (errors.len() > MOST_READS).then_some(more);
        Err(errors.iter().take(MOST_READS).map(fault).chain(more).collect())
    }

    /// The further files that it names; what is no text there is left to who reads the document.
    pub fn includes(&self) -> Vec<(Span, String)> {
        let items = self.root.get(INCLUDE).and_then(|value| value.get_ref().as_array());
        let items = items.into_iter().flat_map(|items| items.iter());
        items.filter_map(|item| Some((item.span(), item.get_ref().as_str()?.to_owned()))).collect()
    }

    /// The line of the first text that is this one.
    pub fn locate_text(&self, text: &str) -> Location {
        self.locate(&find_text(&self.root, text).unwrap_or(ROOT))
    }

    /// The place of a file among those that were read; for a file that was not, behind them.
    pub fn order(&self, file: &Path) -> usize {
        self.texts.iter().position(|text| text.file == file).unwrap_or(self.texts.len())
    }

    /// Reads the document and notes its faults: of the unknown keys of a section the first ten, and how many more there are.
    /// Where there are faults, the value is what it would be had they not been written; `None` if that is no value at all, or
    /// if there are too many faults.
    pub fn read<T: DeserializeOwned>(&mut self, faults: &mut Vec<Fault>) -> Option<T> {
        for _ in 0..MOST_READS {
            let root = ValueDeserializer::from(Spanned::new(ROOT, self.root.clone()));
            let error = match T::deserialize(root) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            let culprit = error.span().unwrap_or(ROOT);
            if let Some(known) = known_keys(error.message())
                && let Some(unknown) = take_unknown(&mut self.root, &culprit, &known)
            {
                self.blame_unknown(unknown, &culprit, error.message(), faults);
                continue;
            }
            let fault = self.fault(&error, Problem::Value);
            if !self.is_consequence(&culprit, error.message()) && !faults.contains(&fault) {
                faults.push(fault);
            }
            self.taken.push(take_out(&mut self.root, &ROOT, &culprit)?);
        }
        faults.push(Fault { location: Location::file(&self.texts[0].file), problem: Problem::TooManyFaults });
        None
    }

    /// Notes unknown keys of a section; the message is that of the culprit among them.
    fn blame_unknown(&self, mut unknown: Vec<(Span, String)>, culprit: &Span, message: &str, faults: &mut Vec<Fault>) {
        let known = unknown.iter().find(|(span, _)| span == culprit);
        let expected = known.and_then(|(_, key)| message.strip_prefix(&format!("unknown field `{key}`")));
        let expected = expected.unwrap_or_default().to_owned();
        unknown.sort_by_key(|(span, _)| span.start);
        for (span, key) in unknown.iter().take(MOST_UNKNOWN) {
            let text = in_our_words(&format!("unknown field `{key}`{expected}"));
            faults.push(Fault { location: self.locate(span), problem: Problem::Value(text) });
        }
        if let Some((span, _)) = unknown.get(MOST_UNKNOWN) {
            let problem = Problem::MoreUnknown { count: unknown.len() - MOST_UNKNOWN };
            faults.push(Fault { location: self.locate(span), problem });
        }
    }

    /// The line in which these bytes begin.
    pub fn locate(&self, span: &Span) -> Location {
        let mut start = 0;
        for text in &self.texts {
            if span.start < start + text.room() {
                return Location::at_offset(&text.file, &text.text, span.start - start);
            }
            start += text.room();
        }
        Location::file(&self.texts[0].file)
    }

    /// The line of a key of a section, or of the section where it lacks the key. `index` counts the sections of a name
    /// from 0.
    pub fn locate_key(&self, section: &str, index: usize, key: &str) -> Location {
        let Some(section) = self.section(section, index) else { return Location::file(&self.texts[0].file) };
        self.locate(&section.get_ref().get(key).unwrap_or(section).span())
    }

    /// Whether a key of a section has been taken out for its fault.
    pub fn has_lost(&self, section: &str, index: usize, key: &str) -> bool {
        self.section(section, index).is_some_and(|section| self.taken.contains(&(section.span(), key.to_owned())))
    }

    fn section(&self, name: &str, index: usize) -> Option<&Spanned<DeValue<'a>>> {
        let section = self.root.get(name)?;
        Some(section.get_ref().get(index).unwrap_or(section))
    }

    fn fault(&self, error: &Error, problem: fn(String) -> Problem) -> Fault {
        let location = self.locate(&error.span().unwrap_or(ROOT));
        Fault { location, problem: problem(in_our_words(error.message())) }
    }

    fn is_consequence(&self, table: &Span, message: &str) -> bool {
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        missing.is_some_and(|key| self.taken.contains(&(table.clone(), key.to_owned())))
    }
}

impl Text {
    /// How many offsets it takes: one more than it is long, for what is at its end.
    fn room(&self) -> usize {
        self.text.len() + 1
    }
}

/// Joins a table to another. Of a key that both have otherwise, both places are noted, and the name.
fn merge<'a>(into: &mut DeTable<'a>, from: DeTable<'a>, path: &str, twice: &mut Vec<(Span, Span, String)>) {
    for (key, value) in from {
        let name = if path.is_empty() { key.get_ref().to_string() } else { format!("{path}.{}", key.get_ref()) };
        let first = into.get_key_value(key.get_ref().as_ref()).map(|(first, _)| first.span());
        let (Some(first), Some(known)) = (first, into.get_mut(key.get_ref().as_ref())) else {
            into.insert(key, value);
            continue;
        };
        let second = key.span();
        match (known.get_mut(), value.into_inner()) {
            (DeValue::Table(known), DeValue::Table(added)) => merge(known, added, &name, twice),
            (DeValue::Array(known), DeValue::Array(added)) if is_sections(known) && is_sections(&added) => {
                *known = known.iter().cloned().chain(added.iter().cloned()).collect();
            }
            _ => twice.push((first, second, name)),
        }
    }
}

fn is_sections(items: &DeArray<'_>) -> bool {
    !items.is_empty() && items.iter().all(|item| item.get_ref().is_table())
}

/// The same with offsets from another start.
fn moved_table(table: DeTable<'_>, start: usize) -> DeTable<'_> {
    let moved = |span: Span| span.start + start..span.end + start;
    let entries = table.into_iter().map(|(key, value)| {
        let key = Spanned::new(moved(key.span()), key.into_inner());
        (key, moved_value(value, start))
    });
    entries.collect()
}

fn moved_value(value: Spanned<DeValue<'_>>, start: usize) -> Spanned<DeValue<'_>> {
    let span = value.span();
    let moved = match value.into_inner() {
        DeValue::Table(table) => DeValue::Table(moved_table(table, start)),
        DeValue::Array(items) => DeValue::Array(items.into_iter().map(|item| moved_value(item, start)).collect()),
        other => other,
    };
    Spanned::new(span.start + start..span.end + start, moved)
}

fn find_text(value: &DeValue<'_>, text: &str) -> Option<Span> {
    let find = |value: &Spanned<DeValue<'_>>| match value.get_ref().as_str() {
        Some(found) => (found == text).then(|| value.span()),
        None => find_text(value.get_ref(), text),
    };
    match value {
        DeValue::Table(table) => table.iter().find_map(|(_, value)| find(value)),
        DeValue::Array(items) => items.iter().find_map(find),
        _ => None,
    }
}

/// The keys that a section may have, by serde's message of one that it may not have.
fn known_keys(message: &str) -> Option<Vec<&str>> {
    message.strip_prefix("unknown field `")?;
    // The name of the unknown key may contain anything, but the list of known keys is ours and comes last.
    let expected = match message.rfind("`, expected ") {
        Some(start) => &message[start + 1..],
        None => message.ends_with("`, there are no fields").then_some("")?,
    };
    Some(expected.split('`').skip(1).step_by(2).collect())
}

/// Takes all keys out of the table with this key that are not known; each with its place.
fn take_unknown(value: &mut DeValue<'_>, culprit: &Span, known: &[&str]) -> Option<Vec<(Span, String)>> {
    match value {
        DeValue::Table(table) if table.keys().any(|key| key.span() == *culprit) => {
            let unknown = table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
            let unknown: Vec<_> = unknown.map(|key| (key.span(), key.get_ref().to_string())).collect();
            for (_, key) in &unknown {
                table.remove(key.as_str());
            }
            Some(unknown).filter(|unknown| !unknown.is_empty())
        }
        DeValue::Table(table) => table.iter_mut().find_map(|(_, value)| take_unknown(value.get_mut(), culprit, known)),
        DeValue::Array(items) => items.iter_mut().find_map(|item| take_unknown(item.get_mut(), culprit, known)),
        _ => None,
    }
}

/// Takes the innermost key or item at `culprit` out of `value`, which lies at `place`, and an array that this empties
/// too. Returns the key with the place of its table; an item of an array has no key.
fn take_out(value: &mut DeValue<'_>, place: &Span, culprit: &Span) -> Option<(Span, String)> {
    match value {
        DeValue::Table(table) => {
            let mut found = None;
            for (key, value) in table.iter_mut() {
                let inner = value.span();
                let taken = if key.span() == *culprit { None } else { take_out(value.get_mut(), &inner, culprit) };
                let is_emptied = taken.is_some() && value.get_ref().as_array().is_some_and(|items| items.is_empty());
                if taken.is_some() && !is_emptied {
                    return taken;
                }
                if is_emptied || key.span() == *culprit || inner == *culprit {
                    found = Some(key.get_ref().to_string());
                    break;
                }
            }
            let key = found?;
            table.remove(key.as_str());
            Some((place.clone(), key))
        }
        DeValue::Array(items) => {
            for item in items.iter_mut() {
                let inner = item.span();
                let taken = take_out(item.get_mut(), &inner, culprit);
                if taken.is_some() {
                    return taken;
                }
            }
            let found = items.iter().position(|item| item.span() == *culprit)?;
            let kept = items.iter().enumerate().filter(|(index, _)| *index != found);
            *items = kept.map(|(_, item)| item.clone()).collect();
            Some((place.clone(), String::new()))
        }
        _ => None,
    }
}

/// serde and the parser say what is wrong and what they expected, in words of Rust and of their own.
fn in_our_words(message: &str) -> String {
    let mut words = message.to_owned();
    for (theirs, ours) in [
        (", there are no fields", "; remove it"),
        (", expected ", "; expected "),
        ("map; expected a sequence", "a section; expected a list of sections, each begun by [[...]]"),
        ("type: map", "type: a section"),
        ("type: sequence", "type: a list"),
        ("a sequence", "a list"),
        ("expected a duration", "expected a duration such as \"30s\""),
        ("expected parsable string", "expected a size such as \"64MiB\""),
        ("expected path string", "expected a path"),
        ("expected u16", "expected a number from 0 to 65535"),
        ("expected usize", "expected a number from 0 on"),
        ("wanted string or table", "invalid type; expected a string"),
        ("number overflowed", "number is too large; write a smaller one"),
        ("duplicate key", "this stands here already; remove one"),
    ] {
        words = words.replacen(theirs, ours, 1);
    }
    if let Some((before, _name)) = words.split_once("expected struct ") {
        words = format!("{before}expected a section");
    }
    match (words.strip_prefix("missing field"), words.strip_prefix("unknown field")) {
        (Some(key), _) => format!("the key{key} is missing; add it"),
        (_, Some(key)) => format!("unknown key{key}"),
        _ => words,
    }
}

/// So many unknown keys of a section are named.
const MOST_UNKNOWN: usize = 10;
/// Faults of other kinds, and sections with unknown keys, that are looked for.
const MOST_READS: usize = 100;
/// The key that names further files.
const INCLUDE: &str = "include";
/// The place of what was never in the file.
pub const UNWRITTEN: Span = 0..0;
/// The place of the whole.
const ROOT: Span = 0..0;
