//! A TOML file, read so that all its faults are found, each at its line.
//!
//! serde stops at the first fault. So whatever is at fault is noted and taken out of the document, and the rest is
//! read again, until it reads; what is missing only on that account is no fault of its own.

use std::{ops::Range, path::Path};

use serde::de::DeserializeOwned;
use toml::{
    Spanned,
    de::{DeTable, DeValue, Error, ValueDeserializer},
};

use super::{Fault, Problem};
use crate::location::Location;

/// A parsed file.
pub struct Document<'a> {
    file: &'a Path,
    text: &'a str,
    root: DeValue<'a>,
    /// What has been taken out: each key with the place of the table that it was in.
    taken: Vec<(Span, String)>,
}

/// Bytes of the file.
type Span = Range<usize>;

impl<'a> Document<'a> {
    /// Parses the text; the faults are those of its syntax.
    pub fn parse(file: &'a Path, text: &'a str) -> Result<Self, Vec<Fault>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        let document = Self { file, text, root: DeValue::Table(root.into_inner()), taken: Vec::new() };
        if errors.is_empty() {
            return Ok(document);
        }
        let faults = errors.iter().map(|error| document.fault(error, Problem::Syntax));
        Err(faults.collect())
    }

    /// Reads the document and notes all faults. Where there are some, the value is what it would be had they not been
    /// written; `None` if that is no value at all.
    pub fn read<T: DeserializeOwned>(&mut self, faults: &mut Vec<Fault>) -> Option<T> {
        loop {
            let root = ValueDeserializer::from(Spanned::new(ROOT, self.root.clone()));
            let error = match T::deserialize(root) {
                Ok(value) => return Some(value),
                Err(error) => error,
            };
            let culprit = error.span().unwrap_or(ROOT);
            let fault = self.fault(&error, Problem::Value);
            if !self.is_consequence(&culprit, error.message()) && !faults.contains(&fault) {
                faults.push(fault);
            }
            self.taken.push(take_out(&mut self.root, &ROOT, &culprit)?);
        }
    }

    /// The line in which these bytes begin.
    pub fn locate(&self, span: &Span) -> Location {
        Location::at_offset(self.file, self.text, span.start)
    }

    /// The line of a key of a section, or of the section where it lacks the key. `index` counts the sections of a name
    /// from 0.
    pub fn locate_key(&self, section: &str, index: usize, key: &str) -> Location {
        let Some(section) = self.section(section, index) else { return Location::file(self.file) };
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

/// The place of what was never in the file.
pub const UNWRITTEN: Span = 0..0;
/// The place of the whole.
const ROOT: Span = 0..0;
