//! The answers of upstreams as octets, so that they outlive the process.
//!
//! Each answer goes with its age and the identity of its rule. They come back with an epoch that no tables have, so that none is
//! given to a client before the tables of the new process have confirmed that the same rule would still answer. Local data
//! and failures stay behind: the new process has its own.
//!
//! What is damaged, written by another version, older than the longest life, or from the future, is refused as a whole.

use std::time::Duration;

use siphasher::sip::SipHasher13;

use super::{
    Cache, Epoch, Key, Life, Origin, RuleId,
    entry::{Draft, Saved},
};
use crate::{
    clock::Moment,
    wire::{Response, View},
};

/// Why a snapshot is not taken in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Not a snapshot at all.
    #[error("it is not a snapshot")]
    Foreign,
    /// One of another version of this program.
    #[error("it is not a snapshot of this version")]
    OtherVersion,
    /// Its checksum is wrong.
    #[error("it is damaged")]
    Damaged,
    /// Nothing in it can be of use any more, or the clock was set back.
    #[error("it is too old, or from the future")]
    Outdated,
}

impl Cache {
    /// All answers of upstreams that can still be served. `unix_now` is the time on the wall clock.
    pub fn save(&self, now: Moment, unix_now: u64) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(unix_now.to_be_bytes());
        for shard in &self.shards {
            // From the least recently used on, so that they come back in the same order.
            shard.lock().save(now.into(), |saved| write(saved, &mut out));
        }
        let sum = checksum(&out);
        out.extend(sum.to_be_bytes());
        out
    }

    /// Takes in what [`save`](Self::save) has given, and returns how many answers that were. None takes the place of
    /// what has been cached since.
    pub fn restore(&self, snapshot: &[u8], now: Moment, unix_now: u64) -> Result<usize, SnapshotError> {
        if !snapshot.starts_with(MAGIC) {
            let is_snapshot = snapshot.starts_with(ANY_MAGIC);
            return Err(if is_snapshot { SnapshotError::OtherVersion } else { SnapshotError::Foreign });
        }
        let (payload, sum) = snapshot.split_last_chunk().ok_or(SnapshotError::Damaged)?;
        if checksum(payload) != u64::from_be_bytes(*sum) {
            return Err(SnapshotError::Damaged);
        }
        let mut rest = Reader(&payload[MAGIC.len()..]);
        let saved_at = rest.number::<8>().ok_or(SnapshotError::Damaged)?;
        let away = unix_now.checked_sub(saved_at).filter(|&away| away < LONGEST_AWAY_SECS);
        let away = away.ok_or(SnapshotError::Outdated)?;
        let mut count = 0;
        while !rest.0.is_empty() {
            let saved = rest.saved().ok_or(SnapshotError::Damaged)?;
            count += usize::from(self.take_back(&saved, now, away).ok_or(SnapshotError::Damaged)?);
        }
        Ok(count)
    }

    /// Whether the answer is of use; `None` if it cannot be read.
    fn take_back(&self, saved: &Saved<'_>, now: Moment, away: u64) -> Option<bool> {
        let age_secs = u64::from(saved.age_secs) + away;
        if age_secs >= u64::from(saved.fresh_secs) + u64::from(saved.stale_secs) {
            return Some(false);
        }
        let key = Key::read(saved.key)?;
        // This process has not checked the records yet, and an earlier version may have saved what this one refuses.
        let Ok(response) = Response::from_view(saved.view, &key.question()).checked() else { return Some(false) };
        let inserted = now - Duration::from_secs(age_secs);
        let seconds = |secs: u32| Duration::from_secs(secs.into());
        let life = Life::Timed { fresh: seconds(saved.fresh_secs), stale: seconds(saved.stale_secs) };
        let origin = Origin { rule: saved.rule, epoch: NO_EPOCH, chained: false, loopback_only: saved.loopback_only };
        Some(
            self.shard(&key)
                .lock()
                .insert_new(&key, Draft::answer(&key, &response, life, &origin.into(), inserted.into())),
        )
    }
}

fn write(saved: &Saved<'_>, out: &mut Vec<u8>) {
    let View { flags, rcode, counts: [an, ns, ar], records, extended_errors, .. } = saved.view;
    out.extend(saved.rule.0.to_be_bytes());
    for number in [saved.age_secs, saved.fresh_secs, saved.stale_secs] {
        out.extend(number.to_be_bytes());
    }
    for word in [flags, rcode.0, an, ns, ar, u16::from(saved.loopback_only)] {
        out.extend(word.to_be_bytes());
    }
    for octets in [saved.key, records, extended_errors] {
        out.extend((octets.len() as u32).to_be_bytes());
        out.extend_from_slice(octets);
    }
}

/// What is left of a snapshot.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn saved(&mut self) -> Option<Saved<'a>> {
        let rule = RuleId(self.number::<8>()?);
        let [age_secs, fresh_secs, stale_secs] = [self.number::<4>()?, self.number::<4>()?, self.number::<4>()?];
        let mut word = || self.number::<2>().map(|word| word as u16);
        let [flags, rcode, an, ns, ar, loopback_only] = [word()?, word()?, word()?, word()?, word()?, word()?];
        let [key, records, extended_errors] = [self.octets()?, self.octets()?, self.octets()?];
        let rcode = crate::wire::Rcode(rcode);
        Some(Saved {
            key,
            view: View { flags, rcode, counts: [an, ns, ar], records, extended_errors, plan: &[] },
            rule,
            loopback_only: loopback_only != 0,
            age_secs: age_secs as u32,
            fresh_secs: fresh_secs as u32,
            stale_secs: stale_secs as u32,
        })
    }

    fn number<const BYTES: usize>(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk::<BYTES>()?;
        self.0 = rest;
        Some(number.iter().fold(0, |sum, &octet| sum << 8 | u64::from(octet)))
    }

    fn octets(&mut self) -> Option<&'a [u8]> {
        let length = self.number::<4>()? as usize;
        let (octets, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(octets)
    }
}

/// Against accidents, not against forgers: the file is ours alone.
fn checksum(octets: &[u8]) -> u64 {
    SipHasher13::new().hash(octets)
}

const MAGIC: &[u8] = b"watershed cache 1\n";
/// What snapshots of every version begin with.
const ANY_MAGIC: &[u8] = b"watershed cache ";
/// No tables have it.
const NO_EPOCH: Epoch = Epoch(0);
/// The longest life of any answer, and as long again stale.
const LONGEST_AWAY_SECS: u64 = 14 * 24 * 3600;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cache::{State, Variant},
        wire::{Answer, Class, Name, Record, Rtype, Ttls},
    };

    const NOW: Moment = Moment::from_millis(5_000_000_000);
    const UNIX: u64 = 1_800_000_000;

    fn key(qname: &str) -> Key {
        Key::new(qname.parse::<Name>().unwrap().wire(), Rtype::A, Class::IN, Variant::default())
    }

    fn insert(cache: &Cache, qname: &str, life: Life, now: Moment) {
        let question = key(qname).question();
        let record = Record::new(question.qname.clone(), Rtype::A, 100, [192, 0, 2, 1]);
        let response = Answer { answer: vec![record], ..Answer::default() }.encode(&question);
        let origin = Origin { rule: RuleId(7), epoch: Epoch(3), chained: false, loopback_only: false };
        cache.insert(&key(qname), &response, life, &origin.into(), now);
    }

    fn timed(fresh: u64, stale: u64) -> Life {
        Life::Timed { fresh: Duration::from_secs(fresh), stale: Duration::from_secs(stale) }
    }

    fn saved() -> Vec<u8> {
        let cache = Cache::new(1 << 20);
        insert(&cache, "www.example", timed(100, 1000), NOW - Duration::from_secs(10));
        insert(&cache, "short.example", timed(15, 0), NOW - Duration::from_secs(10));
        insert(&cache, "over.example", timed(5, 0), NOW - Duration::from_secs(10));
        insert(&cache, "local.example", Life::Local { until: None }, NOW);
        cache.save(NOW, UNIX)
    }

    #[test]
    fn answers_come_back_older_and_doubtful() {
        let cache = Cache::new(1 << 20);
        let later = Moment::from_millis(2_700_000_000);
        insert(&cache, "new.example", timed(100, 0), later);
        assert_eq!(cache.restore(&saved(), later, UNIX + 20), Ok(1), "one was over, one is by now, one is local");
        let state = |epoch| cache.find(&key("www.example"), later, epoch, |found| (found.state, found.ttls)).unwrap();
        assert_eq!(state(Epoch(1)).0, State::Doubtful);
        let origin = cache.find(&key("www.example"), later, Epoch(1), |found| found.origin).unwrap();
        assert_eq!(origin.rule, RuleId(7));
        cache.confirm(&key("www.example"), origin, Epoch(1));
        assert_eq!(state(Epoch(1)), (State::Fresh { prefetch_due: false }, Ttls::Aged(30)));
        let stale = cache.find(&key("www.example"), later + Duration::from_secs(71), Epoch(1), |found| found.state);
        assert_eq!(stale, Some(State::Stale));
    }

    #[test]
    fn what_is_cached_already_stays() {
        let cache = Cache::new(1 << 20);
        insert(&cache, "www.example", timed(100, 0), NOW);
        assert_eq!(cache.restore(&saved(), NOW, UNIX), Ok(1));
        assert_eq!(cache.find(&key("www.example"), NOW, Epoch(3), |found| found.ttls), Some(Ttls::Aged(0)));
    }

    #[test]
    fn a_snapshot_that_cannot_be_trusted_is_refused_as_a_whole() {
        let good = saved();
        let mut damaged = good.clone();
        damaged[40] ^= 1;
        let other_version = [b"watershed cache 9\n", &good[MAGIC.len()..]].concat();
        for (fault, snapshot, unix_now, error) in [
            ("empty", &[][..], UNIX, SnapshotError::Foreign),
            ("another version", &other_version, UNIX, SnapshotError::OtherVersion),
            ("an octet changed", &damaged, UNIX, SnapshotError::Damaged),
            ("cut short", &good[..good.len() - 3], UNIX, SnapshotError::Damaged),
            ("from the future", &good, UNIX - 1, SnapshotError::Outdated),
            ("a month old", &good, UNIX + 30 * 86_400, SnapshotError::Outdated),
        ] {
            let cache = Cache::new(1 << 20);
            assert_eq!(cache.restore(snapshot, NOW, unix_now), Err(error), "{fault}");
            assert_eq!(cache.usage().entries, 0, "{fault}");
        }
    }

    #[test]
    fn no_octet_of_a_snapshot_can_be_changed_and_no_end_be_missing() {
        let good = saved();
        let refused = |snapshot: &[u8]| {
            let cache = Cache::new(1 << 20);
            cache.restore(snapshot, NOW, UNIX).is_err() && cache.usage().entries == 0
        };
        for at in 0..good.len() {
            assert!(refused(&good[..at]), "cut at {at}");
            for bit in 0..8 {
                let mut damaged = good.clone();
                damaged[at] ^= 1 << bit;
                assert!(refused(&damaged), "bit {bit} of octet {at}");
            }
        }
        assert!(refused(&[&good[..], &[0]].concat()), "an octet more");
        assert!(!refused(&good));
    }

    /// A snapshot is read by a daemon that another compiler built.
    #[test]
    fn the_checksum_is_the_same_in_every_build() {
        assert_eq!(checksum(b"watershed"), 4_126_322_408_420_844_209);
    }

    proptest::proptest! {
        #[test]
        fn any_octets_with_a_right_checksum_are_read_without_panic(
            octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300),
        ) {
            let mut snapshot = [MAGIC, &UNIX.to_be_bytes(), &octets].concat();
            let sum = checksum(&snapshot);
            snapshot.extend(sum.to_be_bytes());
            let _ = Cache::new(1 << 20).restore(&snapshot, NOW, UNIX);
        }
    }
}
