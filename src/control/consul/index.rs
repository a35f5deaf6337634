//! Indexes: what was known when something was said, so that whoever knows it can wait for something else.
//!
//! They are versions of the snapshot, counted from the time at which the catalog began, so that they go on growing when
//! the process is another. That of a service is the version in which it, or one that shares its slot, changed last. That of
//! anything else is the version in which it was first seen to be as it is.

use std::{
    hash::{BuildHasher, Hash},
    num::NonZeroUsize,
};

use foldhash::fast::RandomState;
use lru::LruCache;
use parking_lot::Mutex;

use super::Served;
use crate::catalog::Slot;

/// What responses were like when they were last made.
pub(super) struct Memory {
    noted: Mutex<LruCache<u64, Noted>>,
    hasher: RandomState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Noted {
    /// Of the response's body.
    hash: u64,
    /// Of the snapshot that it was last made of.
    version: u32,
    /// Since which it is the same.
    since: u32,
}

impl Default for Memory {
    fn default() -> Self {
        Self { noted: Mutex::new(LruCache::new(MOST_NOTED)), hasher: RandomState::default() }
    }
}

impl Memory {
    /// Since which version the response to a request is what it is, with this body of this version. Nothing if a later
    /// version was seen already.
    pub fn since(&self, request: &impl Hash, body: &[u8], version: u32) -> Option<u32> {
        let (request, hash) = (self.hasher.hash_one(request), self.hasher.hash_one(body));
        let mut noted = self.noted.lock();
        let since = match noted.get(&request) {
            Some(before) if before.version > version => return None,
            Some(before) if before.hash == hash => before.since,
            // Of one that was forgotten nobody knows whether it has changed.
            _ => version,
        };
        noted.put(request, Noted { hash, version, since });
        Some(since)
    }

    /// The same, if the response of this version or a later one was made already.
    pub fn known(&self, request: &impl Hash, version: u32) -> Option<u32> {
        let request = self.hasher.hash_one(request);
        self.noted.lock().get(&request).filter(|noted| noted.version >= version).map(|noted| noted.since)
    }
}

impl Served {
    /// The index of a version.
    pub(super) fn index(&self, version: u32) -> u64 {
        self.first_index + u64::from(version)
    }

    /// The index of what is in a slot, in a snapshot of this version: a later change is none yet.
    pub(super) fn slot_index(&self, slot: Slot, version: u32) -> u64 {
        self.index(self.live.last_change(slot.index()).min(version))
    }
}

/// More requests than tools have kinds of; one that is forgotten costs a response that tells nothing new.
const MOST_NOTED: NonZeroUsize = NonZeroUsize::new(1024).expect("it is not zero");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_the_version_since_which_all_is_the_same() {
        let memory = Memory::default();
        for (request, body, version, since) in [
            (1, 7, 3, Some(3)),
            (1, 7, 4, Some(3)), // what changed was something else
            (1, 8, 6, Some(6)),
            (1, 7, 5, None), // somebody is late
            (1, 7, 9, Some(9)),
            (2, 7, 9, Some(9)),
        ] {
            assert_eq!(memory.since(&request, &[body], version), since, "{request} {body} {version}");
        }
        for (request, version, since) in [(1, 9, Some(9)), (1, 8, Some(9)), (1, 10, None), (3, 9, None)] {
            assert_eq!(memory.known(&request, version), since, "{request} {version}");
        }
    }
}
