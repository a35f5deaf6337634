//! A response of any shape: some numbers, and one allocation that holds all its octets.

use super::{
    Basis, Epoch, Life, Marks, MarksView, Origin, RuleId,
    key::{HEAD_BYTES, Key},
    lifetime::{FAILURE_MEMORY, failure_life, is_nodata},
    packed::{Packed, Scratch, Standing},
    tick::{Tick, Times},
};
use crate::wire::{Rcode, Response, View, read_u32};

/// A response with its key. Header and question are not kept: each reply is given its own.
pub(super) struct Whole {
    /// The key, the notes if there are any, the extended errors, the records.
    octets: Box<[u8]>,
    rule: RuleId,
    pub(super) epoch: Epoch,
    pub(super) times: Times,
    counts: [u16; 3],
    flags: u16,
    rcode: Rcode,
    errors_bytes: u16,
    qname_bytes: u8,
    pub(super) kind: Kind,
    /// Of the constants below, those that hold.
    traits: u8,
    /// How many failures in a row there were.
    failures: u8,
    pub(super) hits: u8,
    pub(super) promoted: u8,
}

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Records of the type asked for, or NXDOMAIN.
    Answer,
    /// The name lacks the type.
    Nodata,
    /// Nothing: no upstream answered.
    Failure,
}

impl Whole {
    /// An answer.
    pub(super) fn answer(key: &Key, response: &Response, life: Life, basis: &Basis, now: Tick) -> Self {
        let whole = Self::new(key, response.view(), basis, now);
        let (expires, stale_until, local) = match life {
            Life::Local { until } => {
                let expires = until.map_or(Tick::NEVER, Tick::from);
                (expires, expires, LOCAL)
            }
            Life::Timed { fresh, stale } => (now.after(fresh), now.after(fresh).after(stale), 0),
        };
        let kind = if is_nodata(response) { Kind::Nodata } else { Kind::Answer };
        let times = Times { expires, stale_until, ..whole.times };
        Self { times, kind, traits: whole.traits | local, ..whole }
    }

    /// A failure, which follows those that `before` knows of.
    pub(super) fn failure(key: &Key, response: &Response, basis: &Basis, before: Option<&Self>, now: Tick) -> Self {
        let mut whole = Self::new(key, response.view(), basis, now);
        whole.failures = before.map_or(0, |before| before.failures_in_row(now));
        whole.note_failure(now);
        let end = whole.times.failing_until;
        whole.times = Times { expires: end, stale_until: end, ..whole.times };
        Self { kind: Kind::Failure, ..whole }
    }

    /// What a packed answer stands for.
    pub(super) fn unpacked(packed: &Packed, standing: Standing) -> Self {
        let mut scratch = Scratch::EMPTY;
        let whole = Self::new(&packed.key(), packed.view(&mut scratch), &standing.origin.into(), packed.inserted);
        Self { times: packed.times(standing), hits: packed.hits, promoted: packed.promoted, ..whole }
    }

    fn new(key: &Key, view: View<'_>, Basis { origin, marks }: &Basis, now: Tick) -> Self {
        let notes = notes(marks, view.plan);
        let trait_if = |holds: bool, bit| if holds { bit } else { 0 };
        // Errors longer than any OPT record could carry are left out.
        let (errors, errors_bytes) = match u16::try_from(view.extended_errors.len()) {
            Ok(length) => (view.extended_errors, length),
            Err(_) => (&[][..], 0),
        };
        Self {
            octets: [key.as_bytes(), &notes, errors, view.records].concat().into(),
            rule: origin.rule,
            epoch: origin.epoch,
            times: Times { inserted: now, expires: now, stale_until: now, failing_until: now },
            counts: view.counts,
            flags: view.flags,
            rcode: view.rcode,
            errors_bytes,
            qname_bytes: key.qname().len() as u8,
            kind: Kind::Answer,
            traits: trait_if(origin.chained, CHAINED)
                | trait_if(origin.loopback_only, LOOPBACK_ONLY)
                | trait_if(!notes.is_empty(), NOTED),
            failures: 0,
            hits: 0,
            promoted: now.second(),
        }
    }

    /// Whether this is the entry of `key`.
    pub(super) fn is_of(&self, key: &Key) -> bool {
        // No key is the beginning of another.
        self.octets.starts_with(key.as_bytes())
    }

    /// The key.
    pub(super) fn key(&self) -> Key {
        Key::from_bytes(&self.octets[..self.key_bytes()])
    }

    /// The qname in wire form and lower case.
    pub(super) fn qname(&self) -> &[u8] {
        &self.octets[HEAD_BYTES..self.key_bytes()]
    }

    fn key_bytes(&self) -> usize {
        HEAD_BYTES + usize::from(self.qname_bytes)
    }

    /// How many octets there are, the key's among them.
    pub(super) fn octets_bytes(&self) -> usize {
        self.octets.len()
    }

    /// Where the entry comes from.
    pub(super) fn origin(&self) -> Origin {
        let (chained, loopback_only) = (self.is(CHAINED), self.is(LOOPBACK_ONLY));
        Origin { rule: self.rule, epoch: self.epoch, chained, loopback_only }
    }

    /// Whether it is local data, whose TTLs stand still.
    pub(super) fn is_local(&self) -> bool {
        self.is(LOCAL)
    }

    /// Whether it outlives the process: not local data, failures, and what rests on more than its rule.
    pub(super) fn is_lasting(&self) -> bool {
        self.kind != Kind::Failure && self.traits & (LOCAL | CHAINED | NOTED) == 0
    }

    /// Another failure; it stands for longer if it follows others.
    pub(super) fn note_failure(&mut self, now: Tick) {
        self.failures = self.failures_in_row(now).saturating_add(1);
        self.times.failing_until = now.after(failure_life(self.failures));
    }

    /// The failures in a row, as far as they are not forgotten.
    fn failures_in_row(&self, now: Tick) -> u8 {
        if now < self.times.failing_until.after(FAILURE_MEMORY) { self.failures } else { 0 }
    }

    /// The response, and what it was made of.
    pub(super) fn view(&self) -> (View<'_>, MarksView<'_>) {
        let (notes, rest) = self.octets[self.key_bytes()..].split_at(self.notes_bytes());
        let (extended_errors, records) = rest.split_at(self.errors_bytes.into());
        let (marks, plan) = read_notes(notes);
        let (flags, rcode, counts) = (self.flags, self.rcode, self.counts);
        (View { flags, rcode, counts, records, extended_errors, plan }, marks)
    }

    fn is(&self, one: u8) -> bool {
        self.traits & one != 0
    }

    /// How long the notes are, their length included.
    fn notes_bytes(&self) -> usize {
        if self.is(NOTED) { read_u32(&self.octets, self.key_bytes()).unwrap_or(0) as usize } else { 0 }
    }
}

/// What few responses have: what they were made of, and how their records rotate. Empty for all others.
fn notes(marks: &Marks, plan: &[u8]) -> Vec<u8> {
    if marks.places.is_empty() && plan.is_empty() {
        return Vec::new();
    }
    let marks_bytes = marks.places.len() * 2;
    let length = NOTES_HEAD_BYTES + marks_bytes + plan.len();
    let head = [length as u32, marks.version, marks_bytes as u32].map(u32::to_be_bytes);
    [&head.concat(), &marks.places.iter().flat_map(|place| place.to_be_bytes()).collect::<Vec<_>>(), plan].concat()
}

/// Reads what [`notes`] wrote.
fn read_notes(notes: &[u8]) -> (MarksView<'_>, &[u8]) {
    let Some((head, rest)) = notes.split_at_checked(NOTES_HEAD_BYTES) else { return Default::default() };
    let number = |at| read_u32(head, at).unwrap_or(0);
    let (places, plan) = rest.split_at_checked(number(8) as usize).unwrap_or_default();
    (MarksView { version: number(4), places }, plan)
}

/// Other names' rules had a part in it.
const CHAINED: u8 = 1;
/// For loopback clients only.
const LOOPBACK_ONLY: u8 = 2;
/// Its TTLs stand still.
const LOCAL: u8 = 4;
/// It has notes.
const NOTED: u8 = 8;
/// The notes' length, the version of the marks and their length.
const NOTES_HEAD_BYTES: usize = 12;
