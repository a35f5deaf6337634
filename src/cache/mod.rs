//! The response cache: responses as bytes, each for its question and variant, bounded in memory.
//!
//! Nothing in a response is ever used for another question. The cache knows bytes and time, not where they come from:
//! the time is passed in, and what a rule or an epoch is only its callers know.
//!
//! A name's entries lie in one shard, so A and AAAA are looked at together: glibc asks both, and takes a failure of
//! the one beside an empty answer to the other for "no such host". While the one fails, the other's NODATA is not given.

mod entry;
mod key;
mod lifetime;
mod packed;
mod shard;
mod snapshot;
mod tick;
mod whole;

use std::time::Duration;

use bytesize::ByteSize;
use humantime_serde::re::humantime::format_duration;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use key::{Key, Variant};
pub use lifetime::{Life, Policy, STALE_TTL_SECS, clamp, is_nodata, lifetime};
pub use snapshot::SnapshotError;

use crate::{
    clock::Moment,
    wire::{Class, Name, Response, Rtype, Ttls, View},
};
use entry::Draft;
use shard::Shard;

/// All cached responses, to be shared by all threads. No call takes more than one lock at a time.
pub struct Cache {
    /// A power of two.
    shards: Box<[Mutex<Shard>]>,
}

/// A found response, lent while its shard is locked.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// What the reply is written from.
    pub view: View<'a>,
    /// What its TTLs are by now.
    pub ttls: Ttls,
    /// What may be done with it.
    pub state: State,
    /// Where it comes from.
    pub origin: Origin,
    /// What it was made of.
    pub marks: MarksView<'a>,
    /// What the NODATA was made of that it stands for, if its sister fails.
    pub belied: MarksView<'a>,
    /// It says that the name lacks the type that was asked for.
    pub is_nodata: bool,
}

/// What may be done with a found response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Reply with it.
    Fresh {
        /// It is popular and its life ends soon: ask for it again beside replying. Said once in each life.
        prefetch_due: bool,
    },
    /// Its life is over. Ask the upstreams first, and reply with it if they fail or take long (RFC 8767 §5).
    Stale,
    /// The same, but the upstreams have failed a moment ago: reply with it at once.
    StaleNow,
    /// This is the failure that stands for the sister query, in place of a NODATA that would belie it: reply with it.
    SisterFails,
    /// It was inserted in another epoch. [`Cache::confirm`] it, if its rule is still the one, or remove it.
    Doubtful,
}

/// By whose word an entry holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The rule that it came by.
    pub rule: RuleId,
    /// The epoch whose tables were asked.
    pub epoch: Epoch,
    /// Other rules had a part in it, so it cannot outlive a change of any.
    pub chained: bool,
    /// It may be given to loopback clients only.
    pub loopback_only: bool,
}

/// On what a response rests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basis {
    /// By whose word it holds.
    pub origin: Origin,
    /// While this is as it was.
    pub marks: Marks,
}

impl From<Origin> for Basis {
    fn from(origin: Origin) -> Self {
        Self { origin, marks: Marks::default() }
    }
}

/// What a response was made of, by numbers that only those understand who made it; nothing for most.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Marks {
    /// Of which version.
    pub version: u32,
    /// The places of the parts, each once.
    pub places: Vec<u16>,
}

impl Marks {
    /// Adds what another part was made of.
    pub fn add(&mut self, version: u32, places: impl IntoIterator<Item = u16>) {
        // Of parts of several versions each is at least of the smallest.
        self.version = if self.places.is_empty() { version } else { self.version.min(version) };
        self.places.extend(places);
        self.places.sort_unstable();
        self.places.dedup();
    }
}

/// [`Marks`], lent while their shard is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MarksView<'a> {
    /// Of which version.
    pub version: u32,
    places: &'a [u8],
}

impl MarksView<'_> {
    /// The places of the parts.
    pub fn places(&self) -> impl Iterator<Item = u16> {
        self.places.chunks_exact(2).map(|place| u16::from_be_bytes([place[0], place[1]]))
    }
}

/// The identity of a rule: another number once the rule would answer otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RuleId(pub u64);

/// The number of a set of tables: the next reload's is another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch(pub u32);

/// How full the cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Entries, expired ones included.
    pub entries: usize,
    /// The memory they take, estimated with all overhead.
    pub bytes: usize,
    /// How many have ever been dropped for space.
    pub evictions: u64,
}

impl Cache {
    /// An empty cache that takes at most `size_bytes` of memory.
    ///
    /// It has so many shards that none holds more than some thousand entries: walks lock one after the other.
    pub fn new(size_bytes: usize) -> Self {
        let shards = 1 << (size_bytes / SHARD_BYTES).clamp(1, MAX_SHARDS).ilog2();
        let shard = || Mutex::new(Shard::new(size_bytes / shards));
        Self { shards: (0..shards).map(|_| shard()).collect() }
    }

    /// Looks for an entry, and lends it to `f` while its shard is locked. Allocates nothing.
    pub fn find<R>(&self, key: &Key, now: Moment, epoch: Epoch, f: impl FnOnce(Found<'_>) -> R) -> Option<R> {
        self.shard(key).lock().find(key, now.into(), epoch, f)
    }

    /// Keeps an answer in place of whatever the key had. One that is too large for a shard is not kept.
    pub fn insert(&self, key: &Key, response: &Response, life: Life, basis: &Basis, now: Moment) {
        let draft = Draft::answer(key, response, life, basis, now.into());
        self.shard(key).lock().insert(key, draft);
    }

    /// Keeps a failure for 1 to 5 s, the longer the more there were in a row (RFC 9520 §3.2).
    ///
    /// An answer that can still be served is not displaced: past its life it is [`State::StaleNow`] for that time.
    pub fn fail(&self, key: &Key, response: &Response, basis: &Basis, now: Moment) {
        self.shard(key).lock().fail(key, response, basis, now.into());
    }

    /// Whether `response`, which need not be in the cache, is a NODATA that a failure of its sister belies, one that
    /// `holds`: then it is to be answered as a failure too.
    pub fn sister_fails(
        &self,
        key: &Key,
        response: &Response,
        now: Moment,
        epoch: Epoch,
        holds: impl FnOnce(MarksView<'_>) -> bool,
    ) -> bool {
        lifetime::is_nodata(response)
            && self
                .shard(key)
                .lock()
                .sister_failure(key, now.into(), epoch)
                .is_some_and(|failure| holds(failure.marks()))
    }

    /// Takes a doubtful entry over into `epoch`, unless it is no longer the one of the origin that was doubted.
    pub fn confirm(&self, key: &Key, doubted: Origin, epoch: Epoch) {
        self.shard(key).lock().confirm(key, doubted, epoch);
    }

    /// Drops the entry of `key`, and says whether there was one.
    pub fn remove(&self, key: &Key) -> bool {
        self.shard(key).lock().remove(key)
    }

    /// Walks the entries of other epochs: takes those over into `epoch` for which `keep` is true, and drops the rest.
    /// Gives back how many it dropped.
    pub fn retire(&self, epoch: Epoch, mut keep: impl FnMut(&Key, Origin) -> bool) -> usize {
        self.shards.iter().map(|shard| shard.lock().retire(epoch, &mut keep)).sum()
    }

    /// Drops all entries of a name, whatever their type, class and variant. Gives back how many there were.
    pub fn flush(&self, name: &Name) -> usize {
        let key = Key::new(name.wire(), Rtype::ANY, Class::ANY, Variant::default());
        self.shard(&key).lock().retain(|entry| entry.qname() != key.qname())
    }

    /// Drops everything. Gives back how many entries there were.
    pub fn flush_all(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().retain(|_| false)).sum()
    }

    /// Changes the bound, and evicts what is beyond the new one.
    pub fn resize(&self, size_bytes: usize) {
        for shard in &self.shards {
            shard.lock().resize(size_bytes / self.shards.len());
        }
    }

    /// How full it is.
    pub fn usage(&self) -> Usage {
        self.shards.iter().map(|shard| shard.lock().usage()).fold(Usage::default(), |sum, shard| Usage {
            entries: sum.entries + shard.entries,
            bytes: sum.bytes + shard.bytes,
            evictions: sum.evictions + shard.evictions,
        })
    }

    fn shard(&self, key: &Key) -> &Mutex<Shard> {
        // Bits that the table within the shard uses last.
        &self.shards[(key.name_hash() >> 32) as usize & (self.shards.len() - 1)]
    }
}

/// The response cache, section `[cache]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The memory that cached responses take, all overhead included; beyond it the least recently used are dropped.
    /// Default "64MiB", from "1MiB" to "1TiB". Applies at reload.
    pub size: ByteSize,
    /// Longest life of an answer, whatever its TTL says. Default "1d", from "1s" to "7d" (RFC 8767 §4). Applies at
    /// reload, to what is cached from then on.
    #[serde(with = "humantime_serde")]
    pub max_ttl: Duration,
    /// Longest life of a negative answer, whatever its SOA minimum says. Default "1h", from "0s" to "1d" (RFC 2308
    /// §5). Applies at reload, to what is cached from then on.
    #[serde(with = "humantime_serde")]
    pub max_negative_ttl: Duration,
    /// Shortest life of a positive answer; more than "0s" serves data that its owner has declared outdated. Default
    /// "0s", up to "1h" and to `max_ttl`. Applies at reload, to what is cached from then on.
    #[serde(with = "humantime_serde")]
    pub min_ttl: Duration,
    /// Whether a popular answer is asked for again in the last tenth of its life. Default true. Applies at reload.
    pub prefetch: bool,
}

/// What is wrong with the section `[cache]`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// A value that would not serve.
    #[error("{key} is {value}; choose from {least} to {most}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The smallest that is allowed.
        least: &'static str,
        /// The largest that is allowed.
        most: &'static str,
    },
    /// The bounds leave nothing between them.
    #[error("min_ttl is longer than max_ttl; lower the one or raise the other")]
    Crossed,
}

impl Config {
    /// All that is wrong with it.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut check = |key, in_range: bool, value: String, [least, most]: [&'static str; 2]| {
            if !in_range {
                problems.push(Problem::OutOfRange { key, value, least, most });
            }
        };
        let size = ByteSize::mib(1)..=ByteSize::tib(1);
        check("size", size.contains(&self.size), self.size.to_string(), ["1MiB", "1TiB"]);
        for (key, value, least, most, range) in [
            ("max_ttl", self.max_ttl, 1, 7 * DAY_SECS, ["1s", "7d"]),
            ("max_negative_ttl", self.max_negative_ttl, 0, DAY_SECS, ["0s", "1d"]),
            ("min_ttl", self.min_ttl, 0, 3600, ["0s", "1h"]),
        ] {
            let allowed = Duration::from_secs(least)..=Duration::from_secs(most);
            check(key, allowed.contains(&value), format_duration(value).to_string(), range);
        }
        if problems.is_empty() && self.min_ttl > self.max_ttl {
            problems.push(Problem::Crossed);
        }
        problems
    }

    /// The bounds of a rule that sets none of its own but for serve-stale.
    pub fn policy(&self, serve_stale: Duration) -> Policy {
        Policy { min_ttl: self.min_ttl, max_ttl: self.max_ttl, max_negative_ttl: self.max_negative_ttl, serve_stale }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            size: ByteSize::mib(64),
            max_ttl: Duration::from_secs(DAY_SECS),
            max_negative_ttl: Duration::from_secs(3600),
            min_ttl: Duration::ZERO,
            prefetch: true,
        }
    }
}

/// How large a shard is about: enough for the longest message, little enough to be walked while a client waits.
const SHARD_BYTES: usize = 256 << 10;
/// A cache of a gigabyte has so many; a larger one has larger shards.
const MAX_SHARDS: usize = 4096;
const DAY_SECS: u64 = 24 * 3600;

#[cfg(test)]
mod packed_tests;
#[cfg(test)]
mod tests;
