//! The cache: what is kept of a response, and what outlives the process.

use std::time::Duration;

use siphasher::sip::SipHasher13;
use watershed::{
    cache::{Cache, Epoch, Key, Life, Origin, RuleId, SnapshotError, State, Variant},
    clock::Moment,
    wire::{Answer, Class, Query, Question, Record, Response, Rtype, Ttls},
};

use super::octets::name;

/// What is found is what was kept, packed or whole, and so is what comes back after a restart.
pub(crate) fn cache(octets: &[u8]) {
    let Ok(received) = Response::read(octets) else { return };
    let response = received.response;
    let query = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], response.question_bytes()].concat();
    let Ok(query) = Query::parse(&query) else { return };
    let variant = Variant { dnssec_ok: octets[0] & 1 == 1, checking_disabled: octets[0] & 2 == 2, view: 0 };
    let key = Key::new(query.qname(), query.qtype(), query.qclass(), variant);
    let ttl = response.records().map(|record| record.ttl).min().unwrap_or(0).min(WEEK_SECS);
    let life = Life::Timed { fresh: Duration::from_secs(ttl.into()), stale: Duration::from_secs(3600) };
    let origin =
        Origin { rule: RuleId(octets[0].into()), epoch: EPOCH, chained: false, loopback_only: octets[0] & 4 == 4 };

    let kept = Cache::new(SIZE_BYTES);
    kept.insert(&key, &response, life, &origin.into(), NOW);
    let usage = kept.usage();
    assert!(usage.bytes <= SIZE_BYTES && usage.entries <= 1, "{usage:?}");
    if usage.entries == 1 {
        for (later, aged) in [(0, Ttls::Aged(0)), (u64::from(ttl / 2), Ttls::Aged(ttl / 2)), (ttl.into(), STALE)] {
            assert_found(&kept, &key, &response, origin, NOW + Duration::from_secs(later), aged);
        }
        let over = NOW + Duration::from_secs(u64::from(ttl) + 3600);
        assert!(kept.find(&key, over, EPOCH, |_| ()).is_none(), "past all its lives");
        let other = Key::new(query.qname(), Rtype(query.qtype().0 ^ 1), query.qclass(), variant);
        assert!(kept.find(&other, NOW, EPOCH, |_| ()).is_none(), "another type");
    }

    let restored = Cache::new(SIZE_BYTES);
    let saved = kept.save(NOW, UNIX_NOW);
    assert_eq!(restored.restore(&saved, NOW, UNIX_NOW), Ok(usage.entries));
    if usage.entries == 1 {
        let doubted = restored.find(&key, NOW, EPOCH, |found| (found.state, found.origin)).expect("it comes back");
        assert_eq!((doubted.0, doubted.1.rule), (State::Doubtful, origin.rule));
        restored.confirm(&key, doubted.1, EPOCH);
        let aged = if ttl == 0 { STALE } else { Ttls::Aged(0) };
        assert_found(&restored, &key, &response, origin, NOW, aged);
    }
}

fn assert_found(cache: &Cache, key: &Key, response: &Response, origin: Origin, now: Moment, ttls: Ttls) {
    let found = cache.find(key, now, EPOCH, |found| {
        let (kept, given) = (found.view, response.view());
        assert_eq!((kept.flags, kept.rcode, kept.counts), (given.flags, given.rcode, given.counts));
        assert_eq!((kept.records, kept.extended_errors), (given.records, given.extended_errors));
        assert_eq!((found.origin.rule, found.origin.loopback_only), (origin.rule, origin.loopback_only));
        (found.ttls, found.state)
    });
    let (found, state) = found.expect("it is there");
    let is_fresh = matches!(state, State::Fresh { .. });
    assert!(is_fresh && found == ttls || state == State::Stale && found == STALE, "{state:?} {found:?} {ttls:?}");
}

/// A snapshot of any octets is taken in or refused, and what was taken in can be saved and taken in again.
pub(crate) fn snapshot(octets: &[u8]) {
    let genuine = genuine();
    // Otherwise all that follows would try nothing but the checksum.
    let (payload, sum) = genuine.split_last_chunk::<8>().expect("a checksum");
    assert_eq!(checksum(payload).to_be_bytes(), *sum, "the checksum of snapshots is another than it was");
    let magic_bytes = genuine.iter().position(|&octet| octet == b'\n').expect("the first line") + 1;
    let mut saved = [&genuine[..magic_bytes + 8], octets].concat();
    let sum = checksum(&saved);
    saved.extend(sum.to_be_bytes());

    let cache = Cache::new(SIZE_BYTES);
    let count = match cache.restore(&saved, NOW, UNIX_NOW) {
        Ok(count) => count,
        Err(error) => {
            assert_eq!(error, SnapshotError::Damaged);
            return;
        }
    };
    assert!(cache.usage().entries <= count && cache.usage().bytes <= SIZE_BYTES, "{count} {:?}", cache.usage());
    let again = Cache::new(SIZE_BYTES);
    let once_more = cache.save(NOW, UNIX_NOW);
    assert_eq!(again.restore(&once_more, NOW, UNIX_NOW), Ok(cache.usage().entries));
}

/// A snapshot with an answer in it.
pub(crate) fn genuine() -> Vec<u8> {
    let cache = Cache::new(SIZE_BYTES);
    let question = Question { qname: name("www.example"), qtype: Rtype::A, qclass: Class::IN };
    let record = Record::new(question.qname.clone(), Rtype::A, 300, [192, 0, 2, 1]);
    let response = Answer { answer: vec![record], ..Answer::default() }.encode(&question);
    let key = Key::new(question.qname.wire(), Rtype::A, Class::IN, Variant::default());
    let life = Life::Timed { fresh: Duration::from_secs(300), stale: Duration::from_secs(3600) };
    let origin = Origin { rule: RuleId(7), epoch: EPOCH, chained: false, loopback_only: false };
    cache.insert(&key, &response, life, &origin.into(), NOW);
    cache.save(NOW, UNIX_NOW)
}

fn checksum(octets: &[u8]) -> u64 {
    SipHasher13::new().hash(octets)
}

const SIZE_BYTES: usize = 1 << 20;
const NOW: Moment = Moment::from_millis(2_000_000_000);
const UNIX_NOW: u64 = 1_700_000_000;
const EPOCH: Epoch = Epoch(3);
const WEEK_SECS: u32 = 7 * 86_400;
const STALE: Ttls = Ttls::Fixed(30);
