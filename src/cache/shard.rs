//! A part of the cache behind one lock: the entries of some names, bounded in bytes, the least recently used evicted.

use std::mem;

use foldhash::fast::RandomState;
use lru::LruCache;

use super::{
    Basis, Epoch, Found, Origin, State, Usage,
    entry::{Draft, Entry, Saved},
    key::Key,
    packed::{Scratch, Standings},
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
    /// No failure belies its sister after that: until then, and only until then, a NODATA has to ask for its sister.
    belied_until: Tick,
}

impl Shard {
    pub(super) fn new(bound_bytes: usize) -> Self {
        Self {
            entries: LruCache::unbounded_with_hasher(RandomState::default()),
            standings: Standings::default(),
            bytes: 0,
            bound_bytes,
            evictions: 0,
            belied_until: Tick::ORIGIN,
        }
    }

    pub(super) fn find<R>(&mut self, key: &Key, now: Tick, epoch: Epoch, f: impl FnOnce(Found<'_>) -> R) -> Option<R> {
        let mut scratch = Scratch::EMPTY;
        if let Some(failure) = self.sister_failure(key, now, epoch)
            && let Some(nodata) = self.peek(key).filter(|entry| entry.is_nodata())
            && nodata.is_servable(now, &self.standings)
        {
            let found = failure.found(State::SisterFails, now, &self.standings, &mut scratch);
            return Some(f(Found { belied: nodata.marks(), ..found }));
        }
        let print = key.print();
        let entry = self.entries.peek_mut(&print).filter(|entry| entry.is_of(key))?;
        let state = entry.hit(now, epoch, &self.standings)?;
        let promote = entry.take_promotion(now);
        let reply = f(entry.found(state, now, &self.standings, &mut scratch));
        if promote {
            self.entries.promote(&print);
        }
        Some(reply)
    }

    /// The failure that stands for A if the key is AAAA's, and the reverse.
    pub(super) fn sister_failure(&self, key: &Key, now: Tick, epoch: Epoch) -> Option<&Entry> {
        if now >= self.belied_until {
            return None;
        }
        let sister = key.sister()?;
        self.peek(&sister).filter(|entry| entry.belies_its_sister(now, epoch))
    }

    pub(super) fn insert(&mut self, key: &Key, draft: Draft) {
        let entry = draft.settle(&mut self.standings);
        self.put(key, entry);
    }

    fn put(&mut self, key: &Key, entry: Entry) {
        let cost = entry.cost_bytes();
        if cost > self.bound_bytes {
            // What it would have replaced is outdated all the same.
            self.remove(key);
            return;
        }
        self.bytes += cost;
        if let Some(replaced) = self.entries.put(key.print(), entry) {
            self.bytes -= replaced.cost_bytes();
        }
        self.evict();
    }

    pub(super) fn fail(&mut self, key: &Key, response: &Response, basis: &Basis, now: Tick) {
        let before = self.entries.peek_mut(&key.print()).filter(|entry| entry.is_of(key));
        if let Some(answer) = before
            && answer.outlasts_failures(now, &self.standings)
        {
            self.bytes -= answer.cost_bytes();
            answer.note_failure(now, &self.standings);
            self.bytes += answer.cost_bytes();
            self.evict();
            return;
        }
        let failure = Entry::failure(key, response, basis, self.peek(key), now);
        self.belied_until = self.belied_until.max(failure.belies_until(&self.standings));
        self.put(key, failure);
    }

    /// Inserts an entry unless its key has one; says whether it did.
    pub(super) fn insert_new(&mut self, key: &Key, draft: Draft) -> bool {
        let is_new = self.peek(key).is_none();
        if is_new {
            self.insert(key, draft);
        }
        is_new
    }

    /// Lends each entry that outlives the process, from the least recently used on.
    pub(super) fn save(&self, now: Tick, mut f: impl FnMut(&Saved<'_>)) {
        self.entries.iter().rev().for_each(|(_, entry)| entry.save(now, &self.standings, &mut f));
    }

    pub(super) fn confirm(&mut self, key: &Key, doubted: Origin, epoch: Epoch) {
        let entry = self.entries.peek_mut(&key.print()).filter(|entry| entry.is_of(key));
        if let Some(entry) = entry
            && entry.origin(&self.standings) == doubted
        {
            self.bytes -= entry.cost_bytes();
            entry.confirm(epoch, &mut self.standings);
            self.bytes += entry.cost_bytes();
            self.evict();
        }
    }

    pub(super) fn remove(&mut self, key: &Key) -> bool {
        if self.peek(key).is_none() {
            return false;
        }
        let removed = self.entries.pop(&key.print());
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

    fn peek(&self, key: &Key) -> Option<&Entry> {
        self.entries.peek(&key.print()).filter(|entry| entry.is_of(key))
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
