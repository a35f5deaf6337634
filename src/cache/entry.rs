//! One cached response: some numbers, and one allocation that holds all its octets.

use std::time::Duration;

use super::{
    Basis, Epoch, Found, Life, Marks, MarksView, Origin, RuleId, State,
    key::{HEAD_BYTES, Key},
    lifetime::{FAILURE_MEMORY, STALE_TTL_SECS, failure_life, is_nodata},
    snapshot::Saved,
};
use crate::{
    clock::Moment,
    wire::{Rcode, Response, Ttls, View, read_u32},
};

/// A response with its key. Header and question are not kept: each reply is given its own.
///
/// Millions of these may be kept, so the numbers are no wider than they need to be.
pub(super) struct Entry {
    /// The key, the notes if there are any, the extended errors, the records.
    octets: Box<[u8]>,
    rule: RuleId,
    epoch: Epoch,
    inserted: Tick,
    /// [`Tick::NEVER`] for most local data.
    expires: Tick,
    stale_until: Tick,
    /// The last failure to get another response stands until then.
    failing_until: Tick,
    counts: [u16; 3],
    flags: u16,
    rcode: Rcode,
    errors_bytes: u16,
    qname_bytes: u8,
    kind: Kind,
    /// Of the constants below, those that hold.
    traits: u8,
    /// How many failures in a row there were.
    failures: u8,
    /// Hits of this life as far as they matter: up to [`POPULAR_HITS`], or [`SIGNALLED`].
    hits: u8,
    /// The low bits of the second in which the entry was last promoted.
    promoted: u8,
}

/// A moment in eighths of a second since the clock's origin: 32 bits last for 17 years, and whole seconds stay exact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tick(u32);

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Records of the type asked for, or NXDOMAIN.
    Answer,
    /// The name lacks the type.
    Nodata,
    /// Nothing: no upstream answered.
    Failure,
}

impl Entry {
    /// An entry for an answer.
    pub(super) fn answer(key: &Key, response: &Response, life: Life, basis: &Basis, now: Tick) -> Self {
        let (expires, stale_until, local) = match life {
            Life::Local { until } => {
                let expires = until.map_or(Tick::NEVER, Tick::from);
                (expires, expires, LOCAL)
            }
            Life::Timed { fresh, stale } => (now.after(fresh), now.after(fresh).after(stale), 0),
        };
        let kind = if is_nodata(response) { Kind::Nodata } else { Kind::Answer };
        let entry = Self::new(key, response, basis, now);
        Self { expires, stale_until, kind, traits: entry.traits | local, ..entry }
    }

    /// An entry for a failure, which follows those that `before` knows of.
    pub(super) fn failure(key: &Key, response: &Response, basis: &Basis, before: Option<&Self>, now: Tick) -> Self {
        let mut entry = Self::new(key, response, basis, now);
        entry.failures = before.map_or(0, |before| before.failures_in_row(now));
        entry.note_failure(now);
        let end = entry.failing_until;
        Self { expires: end, stale_until: end, kind: Kind::Failure, ..entry }
    }

    fn new(key: &Key, response: &Response, Basis { origin, marks }: &Basis, now: Tick) -> Self {
        let view = response.view();
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
            inserted: now,
            expires: now,
            stale_until: now,
            failing_until: now,
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

    /// Whether this is the entry of `key`: a print may be that of two.
    pub(super) fn is_of(&self, key: &Key) -> bool {
        // No key is the beginning of another.
        self.octets.starts_with(key.as_bytes())
    }

    /// The key, as octets.
    pub(super) fn key_octets(&self) -> &[u8] {
        &self.octets[..self.key_bytes()]
    }

    /// The qname in wire form and lower case.
    pub(super) fn qname(&self) -> &[u8] {
        &self.octets[HEAD_BYTES..self.key_bytes()]
    }

    fn key_bytes(&self) -> usize {
        HEAD_BYTES + usize::from(self.qname_bytes)
    }

    /// Where the entry comes from.
    pub(super) fn origin(&self) -> Origin {
        let (chained, loopback_only) = (self.is(CHAINED), self.is(LOOPBACK_ONLY));
        Origin { rule: self.rule, epoch: self.epoch, chained, loopback_only }
    }

    /// Its origin is good in `epoch` too.
    pub(super) fn confirm(&mut self, epoch: Epoch) {
        self.epoch = epoch;
    }

    /// Whether it may be served, even if only stale.
    pub(super) fn is_servable(&self, now: Tick) -> bool {
        now < self.expires || now < self.stale_until
    }

    /// Whether it says that the name lacks the type.
    pub(super) fn is_nodata(&self) -> bool {
        self.kind == Kind::Nodata
    }

    /// Whether it is a failure that stands, and not void by a reload.
    pub(super) fn is_failing(&self, now: Tick, epoch: Epoch) -> bool {
        self.kind == Kind::Failure && now < self.expires && self.epoch == epoch
    }

    /// Whether it is an answer, which no failure may displace while it can be served.
    pub(super) fn outlasts_failures(&self, now: Tick) -> bool {
        self.kind != Kind::Failure && self.is_servable(now)
    }

    /// Another failure; it stands for longer if it follows others.
    pub(super) fn note_failure(&mut self, now: Tick) {
        self.failures = self.failures_in_row(now).saturating_add(1);
        self.failing_until = now.after(failure_life(self.failures));
    }

    /// When the last failure ends.
    pub(super) fn failing_until(&self) -> Tick {
        self.failing_until
    }

    /// The failures in a row, as far as they are not forgotten.
    fn failures_in_row(&self, now: Tick) -> u8 {
        if now < self.failing_until.after(FAILURE_MEMORY) { self.failures } else { 0 }
    }

    /// Counts a hit, and says in what state the entry is; `None` past all its lives.
    pub(super) fn hit(&mut self, now: Tick, epoch: Epoch) -> Option<State> {
        if !self.is_servable(now) {
            None
        } else if self.epoch != epoch {
            Some(State::Doubtful)
        } else if now < self.expires {
            Some(State::Fresh { prefetch_due: self.is_prefetch_due(now) })
        } else if now < self.failing_until {
            Some(State::StaleNow)
        } else {
            Some(State::Stale)
        }
    }

    /// Whether a popular answer is in the last tenth of its life: true once in each.
    fn is_prefetch_due(&mut self, now: Tick) -> bool {
        if self.hits == SIGNALLED || self.kind == Kind::Failure || self.is(LOCAL) {
            return false;
        }
        self.hits = (self.hits + 1).min(POPULAR_HITS);
        let due = self.hits == POPULAR_HITS && self.expires.0 - now.0 <= (self.expires.0 - self.inserted.0) / 10;
        if due {
            self.hits = SIGNALLED;
        }
        due
    }

    /// Whether it is to become the youngest in the order of eviction: true once a second.
    pub(super) fn take_promotion(&mut self, now: Tick) -> bool {
        let due = self.promoted != now.second();
        self.promoted = now.second();
        due
    }

    /// What a reply is written from.
    pub(super) fn found(&self, state: State, now: Tick) -> Found<'_> {
        let (notes, rest) = self.octets[self.key_bytes()..].split_at(self.notes_bytes());
        let (errors, records) = rest.split_at(self.errors_bytes.into());
        let (marks, plan) = read_notes(notes);
        let (flags, rcode, counts) = (self.flags, self.rcode, self.counts);
        let view = View { flags, rcode, counts, records, extended_errors: errors, plan };
        let ttls = if self.is(LOCAL) {
            Ttls::Aged(0)
        } else if now < self.expires {
            Ttls::Aged(now.seconds_since(self.inserted))
        } else {
            Ttls::Fixed(STALE_TTL_SECS)
        };
        Found { view, ttls, state, origin: self.origin(), marks, is_nodata: self.is_nodata() }
    }

    /// What it was made of.
    pub(super) fn marks(&self) -> MarksView<'_> {
        read_notes(&self.octets[self.key_bytes()..][..self.notes_bytes()]).0
    }

    /// As a snapshot keeps it; `None` for what does not outlive the process.
    pub(super) fn saved(&self, now: Tick) -> Option<Saved<'_>> {
        if self.kind == Kind::Failure || self.traits & (LOCAL | CHAINED | NOTED) != 0 || !self.is_servable(now) {
            return None;
        }
        Some(Saved {
            key: self.key_octets(),
            view: self.found(State::Doubtful, now).view,
            rule: self.rule,
            loopback_only: self.is(LOOPBACK_ONLY),
            age_secs: now.seconds_since(self.inserted),
            fresh_secs: self.expires.seconds_since(self.inserted),
            stale_secs: self.stale_until.seconds_since(self.expires),
        })
    }

    fn is(&self, one: u8) -> bool {
        self.traits & one != 0
    }

    /// How long the notes are, their length included.
    fn notes_bytes(&self) -> usize {
        if self.is(NOTED) { read_u32(&self.octets, self.key_bytes()).unwrap_or(0) as usize } else { 0 }
    }

    /// The memory that the entry takes, with all that it takes for it to be found and ordered.
    pub(super) fn cost_bytes(&self) -> usize {
        // The table's slots are two pointers and an octet, and at the worst 7 in 16 of them are in use.
        const SLOT_BYTES: usize = 17 * 16 / 7;
        // The node of `lru`: its key, the entry, and two pointers.
        const NODE_BYTES: usize = allocated(size_of::<(u64, Entry, [usize; 2])>());
        SLOT_BYTES + NODE_BYTES + allocated(self.octets.len())
    }
}

impl Tick {
    /// The clock's origin.
    pub(super) const ORIGIN: Self = Self(0);
    /// Past all others.
    const NEVER: Self = Self(u32::MAX);

    fn after(self, span: Duration) -> Self {
        let ticks = u32::try_from(span.as_millis() / TICK_MS).unwrap_or(u32::MAX);
        Self(self.0.saturating_add(ticks).min(u32::MAX - 1))
    }

    fn seconds_since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0) / TICKS_PER_SECOND
    }

    fn second(self) -> u8 {
        (self.0 / TICKS_PER_SECOND) as u8
    }
}

impl From<Moment> for Tick {
    fn from(moment: Moment) -> Self {
        let ticks = u128::from(moment.as_millis()) / TICK_MS;
        Self(u32::try_from(ticks).unwrap_or(u32::MAX).min(u32::MAX - 1))
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

/// What the allocator takes for so many octets: glibc's, whose blocks are a length and multiples of 16, 32 at least.
const fn allocated(bytes: usize) -> usize {
    let block = (bytes + 8).next_multiple_of(16);
    if block < 32 { 32 } else { block }
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
const TICK_MS: u128 = 1000 / TICKS_PER_SECOND as u128;
const TICKS_PER_SECOND: u32 = 8;
/// An answer asked for so often in one life is worth a prefetch.
const POPULAR_HITS: u8 = 3;
/// In place of the hits: the prefetch of this life has been signalled.
const SIGNALLED: u8 = u8::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_an_entry_stay_few() {
        assert_eq!(size_of::<Entry>(), 64);
    }

    #[test]
    fn whole_seconds_are_exact_and_the_end_of_time_is_not_never() {
        for start_ms in [0, 124, 125, 999, 1000, 2_592_000_001] {
            let start = Moment::from_millis(start_ms);
            for secs in [0, 1, 10, 86_400] {
                let later = Tick::from(start + Duration::from_secs(secs));
                assert_eq!(later, Tick::from(start).after(Duration::from_secs(secs)));
                assert_eq!(u64::from(later.seconds_since(start.into())), secs);
            }
        }
        assert!(Tick::from(Moment::from_millis(u64::MAX)) < Tick::NEVER);
        assert!(Tick(5).after(Duration::MAX) < Tick::NEVER);
    }
}
