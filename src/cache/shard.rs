//! A part of the cache behind one lock: the entries of some names, bounded in bytes, the least recently used evicted.

use std::mem;

use foldhash::fast::RandomState;
use lru::LruCache;

use super::{
    Basis, Epoch, Found, Origin, State, Usage,
    entry::{Draft, Entry},
    key::Key,
    packed::{Scratch, Standings},
    snapshot::Saved,
    tick::Tick,
};
use crate::wire::Response;

/// The entries of those names whose hash leads here.
///
/// `lru` shows a key only to those who promote it, so the key lies in the value, and what the table is keyed by is the
/// key's print, 64 bits of a seeded hash. Two keys with one print displace each other, and are never taken for one
/// another.
pub(super) struct Shard {
    entries: LruCache<u64, Entry, RandomState>,
    standings: Standings,
    bytes: usize,
    bound_bytes: usize,
    evictions: u64,
    /// All failures end by then: until then, and only until then, a NODATA has to ask for its sister.
    failing_until: Tick,
}

/// Where an entry is looked for.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    /// The key.
    pub(super) key: &'a Key,
    /// The hash of its qname.
    pub(super) name_hash: u64,
}

impl Shard {
    pub(super) fn new(bound_bytes: usize) -> Self {
        Self {
            entries: LruCache::unbounded_with_hasher(RandomState::default()),
            standings: Standings::default(),
            bytes: 0,
            bound_bytes,
            evictions: 0,
            failing_until: Tick::ORIGIN,
        }
    }

    pub(super) fn find<R>(
        &mut self,
        place: Place<'_>,
        now: Tick,
        epoch: Epoch,
        f: impl FnOnce(Found<'_>) -> R,
    ) -> Option<R> {
        let mut scratch = Scratch::EMPTY;
        if let Some(failure) = self.sister_failure(place, now, epoch)
            && let Some(nodata) = self.peek(place).filter(|entry| entry.is_nodata())
            && nodata.is_servable(now, &self.standings)
        {
            let found = failure.found(State::SisterFails, now, &self.standings, &mut scratch);
            return Some(f(Found { belied: nodata.marks(), ..found }));
        }
        let print = place.print();
        let entry = self.entries.peek_mut(&print).filter(|entry| entry.is_of(place.key))?;
        let state = entry.hit(now, epoch, &self.standings)?;
        let promote = entry.take_promotion(now);
        let reply = f(entry.found(state, now, &self.standings, &mut scratch));
        if promote {
            self.entries.promote(&print);
        }
        Some(reply)
    }

    /// The failure that stands for A if the key is AAAA's, and the reverse.
    pub(super) fn sister_failure(&self, place: Place<'_>, now: Tick, epoch: Epoch) -> Option<&Entry> {
        if now >= self.failing_until {
            return None;
        }
        let sister = place.key.sister()?;
        self.peek(Place { key: &sister, ..place }).filter(|entry| entry.is_failing(now, epoch))
    }

    pub(super) fn insert(&mut self, place: Place<'_>, draft: Draft) {
        let entry = draft.settle(&mut self.standings);
        self.put(place, entry);
    }

    fn put(&mut self, place: Place<'_>, entry: Entry) {
        let cost = entry.cost_bytes();
        if cost > self.bound_bytes {
            // What it would have replaced is outdated all the same.
            self.remove(place);
            return;
        }
        self.bytes += cost;
        if let Some(replaced) = self.entries.put(place.print(), entry) {
            self.bytes -= replaced.cost_bytes();
        }
        self.evict();
    }

    pub(super) fn fail(&mut self, place: Place<'_>, response: &Response, basis: &Basis, now: Tick) {
        let before = self.entries.peek_mut(&place.print()).filter(|entry| entry.is_of(place.key));
        if let Some(answer) = before
            && answer.outlasts_failures(now, &self.standings)
        {
            self.bytes -= answer.cost_bytes();
            answer.note_failure(now, &self.standings);
            self.bytes += answer.cost_bytes();
            self.evict();
            return;
        }
        let failure = Entry::failure(place.key, response, basis, self.peek(place), now);
        self.failing_until = self.failing_until.max(failure.failing_until(&self.standings));
        self.put(place, failure);
    }

    /// Inserts an entry unless its key has one; says whether it did.
    pub(super) fn insert_new(&mut self, place: Place<'_>, draft: Draft) -> bool {
        let is_new = self.peek(place).is_none();
        if is_new {
            self.insert(place, draft);
        }
        is_new
    }

    /// Lends each entry that outlives the process, from the least recently used on.
    pub(super) fn save(&self, now: Tick, mut f: impl FnMut(&Saved<'_>)) {
        self.entries.iter().rev().for_each(|(_, entry)| entry.save(now, &self.standings, &mut f));
    }

    pub(super) fn confirm(&mut self, place: Place<'_>, doubted: Origin, epoch: Epoch) {
        let entry = self.entries.peek_mut(&place.print()).filter(|entry| entry.is_of(place.key));
        if let Some(entry) = entry
            && entry.origin(&self.standings) == doubted
        {
            self.bytes -= entry.cost_bytes();
            entry.confirm(epoch, &mut self.standings);
            self.bytes += entry.cost_bytes();
            self.evict();
        }
    }

    pub(super) fn remove(&mut self, place: Place<'_>) -> bool {
        if self.peek(place).is_none() {
            return false;
        }
        let removed = self.entries.pop(&place.print());
        self.bytes -= removed.map_or(0, |entry| entry.cost_bytes());
        true
    }

    /// Keeps the entries for which `keep` is true. Gives back how many it dropped.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Entry) -> bool) -> usize {
        self.walk(None, |entry, _| keep(entry))
    }

    /// Takes entries of other epochs over into `epoch` if `keep` is true, and drops the rest of them. Gives back how
    /// many it dropped.
    pub(super) fn retire(&mut self, epoch: Epoch, mut keep: impl FnMut(&Key, Origin) -> bool) -> usize {
        self.walk(Some(epoch), |entry, standings| {
            let origin = entry.origin(standings);
            origin.epoch == epoch || keep(&entry.key(), origin)
        })
    }

    /// Drops the entries for which `keep` is false, takes the others over into `epoch` if there is one, and forgets
    /// the standings that no entry has any longer.
    fn walk(&mut self, epoch: Option<Epoch>, mut keep: impl FnMut(&Entry, &Standings) -> bool) -> usize {
        let count = self.entries.len();
        let before = mem::take(&mut self.standings);
        self.bytes = 0;
        self.entries.retain(|_, entry| {
            let kept = keep(entry, &before);
            if kept {
                entry.take_over(epoch, &before, &mut self.standings);
                self.bytes += entry.cost_bytes();
            }
            kept
        });
        let dropped = count - self.entries.len();
        self.evict();
        dropped
    }

    pub(super) fn resize(&mut self, bound_bytes: usize) {
        self.bound_bytes = bound_bytes;
        self.evict();
    }

    pub(super) fn usage(&self) -> Usage {
        Usage { entries: self.entries.len(), bytes: self.bytes, evictions: self.evictions }
    }

    fn peek(&self, place: Place<'_>) -> Option<&Entry> {
        self.entries.peek(&place.print()).filter(|entry| entry.is_of(place.key))
    }

    fn evict(&mut self) {
        while self.bytes > self.bound_bytes
            && let Some((_, entry)) = self.entries.pop_lru()
        {
            self.bytes -= entry.cost_bytes();
            self.evictions += 1;
        }
    }
}

impl Place<'_> {
    fn print(&self) -> u64 {
        self.key.print(self.name_hash)
    }
}
