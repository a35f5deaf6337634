//! The cache over time, in its order and within its bound.

use proptest::prelude::*;

use super::*;
use crate::wire::{Answer, Rcode, Record, Soa, View};

pub(super) const NOW: Moment = Moment::from_millis(1_000_000_300);
pub(super) const EPOCH: Epoch = Epoch(1);
pub(super) const ORIGIN: Origin = Origin { rule: RuleId(7), epoch: EPOCH, chained: false, loopback_only: false };
const VARIANT: Variant = Variant { dnssec_ok: false, checking_disabled: false, view: 0 };

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn key(qname: &str, qtype: Rtype) -> Key {
    Key::new(name(qname).wire(), qtype, Class::IN, VARIANT)
}

pub(super) fn timed(fresh: u64, stale: u64) -> Life {
    Life::Timed { fresh: Duration::from_secs(fresh), stale: Duration::from_secs(stale) }
}

fn after(millis: u64) -> Moment {
    NOW + Duration::from_millis(millis)
}

pub(super) fn address(octet: u8) -> Response {
    let record = Record::new(name("www.example"), Rtype::A, 60, [192, 0, 2, octet]);
    Answer { answer: vec![record], ..Answer::default() }.encode(&key("www.example", Rtype::A).question())
}

fn nodata(qtype: Rtype) -> Response {
    let [mname, rname] = ["ns.example", "root.example"].map(name);
    let soa = Soa { mname, rname, serial: 1, refresh: 2, retry: 3, expire: 4, minimum: 60 };
    let denial = Answer::negative(Rcode::NOERROR, soa.record(name("example")));
    denial.encode(&key("www.example", qtype).question())
}

pub(super) fn servfail(key: &Key) -> Response {
    Response::error(&key.question(), Rcode::SERVFAIL, &[])
}

pub(super) fn cache() -> Cache {
    Cache::new(1 << 20)
}

/// A cache of one shard, whose order of eviction can be told.
pub(super) fn single() -> Cache {
    Cache::new(SHARD_BYTES)
}

fn state(cache: &Cache, key: &Key, now: Moment) -> Option<State> {
    cache.find(key, now, EPOCH, |found| found.state)
}

fn rcode(cache: &Cache, key: &Key, now: Moment) -> Option<Rcode> {
    cache.find(key, now, EPOCH, |found| found.view.rcode)
}

const FRESH: Option<State> = Some(State::Fresh { prefetch_due: false });

#[test]
fn what_is_found_is_what_was_inserted() {
    let cache = cache();
    let key = key("www.example", Rtype::A);
    let mut response = address(1);
    response.add_error(&crate::wire::ExtendedError { code: 22, text: "why".into() });
    cache.insert(&key, &response, timed(60, 0), &ORIGIN.into(), NOW);
    let origin = cache.find(&key, after(0), EPOCH, |found| {
        let View { flags, rcode, counts, records, extended_errors, .. } = response.view();
        assert_eq!((found.view.flags, found.view.rcode, found.view.counts), (flags, rcode, counts));
        assert_eq!((found.view.records, found.view.extended_errors), (records, extended_errors));
        found.origin
    });
    assert_eq!(origin, Some(ORIGIN));
}

#[test]
fn variants_of_a_question_never_mix() {
    let cache = cache();
    let www = name("www.example");
    let mut keys = Vec::new();
    for qname in [&www, &name("ww.example"), &name("example"), &Name::root()] {
        for (qtype, qclass) in [(Rtype::A, Class::IN), (Rtype::AAAA, Class::IN), (Rtype::A, Class::CH)] {
            for (dnssec_ok, checking_disabled, view) in
                [(false, false, 0), (true, false, 0), (false, true, 0), (true, true, 0), (false, false, 1)]
            {
                let variant = Variant { dnssec_ok, checking_disabled, view };
                keys.push(Key::new(qname.wire(), qtype, qclass, variant));
            }
        }
    }
    for (octet, key) in keys.iter().enumerate() {
        cache.insert(key, &address(octet as u8), timed(60, 0), &ORIGIN.into(), NOW);
    }
    for (octet, key) in keys.iter().enumerate() {
        let last = cache.find(key, NOW, EPOCH, |found| found.view.records.last().copied());
        assert_eq!(last, Some(Some(octet as u8)), "{key:?}");
    }
    assert_eq!(cache.usage().entries, keys.len());
    let shouted = Key::new(name("WWW.EXAMPLE").wire(), Rtype::A, Class::IN, VARIANT);
    assert_eq!(state(&cache, &shouted, NOW), FRESH);
}

#[test]
fn an_answer_is_fresh_then_stale_then_gone() {
    let cache = cache();
    let key = key("www.example", Rtype::A);
    cache.insert(&key, &address(1), timed(60, 600), &ORIGIN.into(), NOW);
    let seen = |millis| cache.find(&key, after(millis), EPOCH, |found| (found.state, found.ttls));
    let fresh = State::Fresh { prefetch_due: false };
    for (millis, expected) in [
        (0, Some((fresh, Ttls::Aged(0)))),
        (875, Some((fresh, Ttls::Aged(0)))),
        (1000, Some((fresh, Ttls::Aged(1)))),
        (59_800, Some((State::Fresh { prefetch_due: true }, Ttls::Aged(59)))),
        (60_000, Some((State::Stale, Ttls::Fixed(30)))),
        (659_800, Some((State::Stale, Ttls::Fixed(30)))),
        (660_000, None),
    ] {
        assert_eq!(seen(millis), expected, "{millis} ms");
    }
}

#[test]
fn without_a_stale_span_an_answer_ends_with_its_life() {
    let cache = cache();
    let key = key("www.example", Rtype::A);
    cache.insert(&key, &address(1), timed(60, 0), &ORIGIN.into(), NOW);
    assert_eq!(state(&cache, &key, after(60_000)), None);
}

#[test]
fn local_data_does_not_age() {
    let cache = cache();
    let key = key("www.example", Rtype::A);
    cache.insert(&key, &address(1), Life::Local { until: None }, &ORIGIN.into(), NOW);
    for secs in [0, 60, 90 * DAY_SECS] {
        let seen = cache.find(&key, after(secs * 1000), EPOCH, |found| (found.state, found.ttls));
        assert_eq!(seen, Some((State::Fresh { prefetch_due: false }, Ttls::Aged(0))), "{secs} s");
    }
}

#[test]
fn a_prefetch_is_signalled_once_in_each_life_of_a_popular_name() {
    let cache = cache();
    let key = key("www.example", Rtype::A);
    let due = |millis| state(&cache, &key, after(millis)) == Some(State::Fresh { prefetch_due: true });
    cache.insert(&key, &address(1), timed(100, 0), &ORIGIN.into(), NOW);
    assert_eq!([1000, 2000, 89_000, 90_000, 91_000, 99_000].map(due), [false, false, false, true, false, false]);
    cache.insert(&key, &address(1), timed(100, 0), &ORIGIN.into(), after(99_000));
    assert_eq!([190_000, 190_000, 190_000, 190_000].map(due), [false, false, true, false]);
}

#[test]
fn a_failure_is_kept_longer_the_more_follow() {
    let cache = cache();
    let key = key("www.example", Rtype::A);
    let mut at = 0;
    for (consecutive, secs) in [(1, 1), (2, 2), (3, 4), (4, 5), (5, 5)] {
        cache.fail(&key, &servfail(&key), &ORIGIN.into(), after(at));
        assert_eq!(rcode(&cache, &key, after(at + secs * 1000 - 200)), Some(Rcode::SERVFAIL), "{consecutive}");
        assert_eq!(state(&cache, &key, after(at + secs * 1000)), None, "{consecutive}");
        at += secs * 1000 + 3000;
    }
    // An answer ends the row, and so does a while without a failure.
    cache.insert(&key, &address(1), timed(1, 0), &ORIGIN.into(), after(at));
    for _ in 0..2 {
        at += 40_000;
        cache.fail(&key, &servfail(&key), &ORIGIN.into(), after(at));
        assert_eq!(state(&cache, &key, after(at + 900)), FRESH);
        assert_eq!(state(&cache, &key, after(at + 1000)), None);
    }
}

#[test]
fn a_failure_leaves_what_can_be_served_stale() {
    let cache = cache();
    let key = key("www.example", Rtype::A);
    let fail = |millis| cache.fail(&key, &servfail(&key), &ORIGIN.into(), after(millis));
    cache.insert(&key, &address(1), timed(60, 60), &ORIGIN.into(), NOW);
    fail(59_500);
    for (millis, expected) in [
        (59_500, FRESH),
        (60_000, Some(State::StaleNow)), // a prefetch failed
        (60_500, Some(State::Stale)),    // it may be tried again
    ] {
        assert_eq!(state(&cache, &key, after(millis)), expected, "{millis} ms");
    }
    fail(61_000);
    assert_eq!(state(&cache, &key, after(62_500)), Some(State::StaleNow), "the second in a row stands for 2 s");
    assert_eq!(state(&cache, &key, after(63_000)), Some(State::Stale));
    fail(120_000);
    assert_eq!(rcode(&cache, &key, after(120_000)), Some(Rcode::SERVFAIL), "its stale span is over");
    cache.insert(&key, &address(1), timed(60, 60), &ORIGIN.into(), after(120_000));
    assert_eq!(state(&cache, &key, after(180_000)), Some(State::Stale), "an answer ends the failure");
}

#[test]
fn nodata_fails_while_its_sister_does() {
    let [a, aaaa] = [Rtype::A, Rtype::AAAA].map(|qtype| key("www.example", qtype));
    for nodata_first in [true, false] {
        let cache = cache();
        let insert = || cache.insert(&aaaa, &nodata(Rtype::AAAA), timed(60, 60), &ORIGIN.into(), NOW);
        if nodata_first {
            insert();
        }
        cache.fail(&a, &servfail(&a), &ORIGIN.into(), NOW);
        if !nodata_first {
            insert();
        }
        assert_eq!(state(&cache, &aaaa, NOW), Some(State::SisterFails));
        assert_eq!(rcode(&cache, &aaaa, NOW), Some(Rcode::SERVFAIL));
        assert_eq!(state(&cache, &a, NOW), FRESH);
        assert_eq!(
            state(&cache, &aaaa, after(1100)),
            Some(State::SisterFails),
            "asked beside one that was told the failure"
        );
        assert_eq!(rcode(&cache, &aaaa, after(1250)), Some(Rcode::NOERROR), "the failure has ended");
        cache.fail(&a, &servfail(&a), &ORIGIN.into(), after(60_000));
        assert_eq!(state(&cache, &aaaa, after(60_000)), Some(State::SisterFails), "stale, and yet belied");
        cache.insert(&a, &address(1), timed(60, 0), &ORIGIN.into(), after(60_000));
        assert_eq!(state(&cache, &aaaa, after(60_000)), Some(State::Stale), "the sister has an answer");
    }
}

#[test]
fn only_nodata_is_belied_by_a_sister() {
    let cache = cache();
    let [a, aaaa] = [Rtype::A, Rtype::AAAA].map(|qtype| key("www.example", qtype));
    let fails = |response: &Response, key: &Key, epoch| cache.sister_fails(key, response, NOW, epoch, |_| true);
    cache.insert(&a, &address(1), timed(60, 60), &ORIGIN.into(), NOW);
    cache.fail(&a, &servfail(&a), &ORIGIN.into(), NOW);
    assert!(!fails(&nodata(Rtype::AAAA), &aaaa, EPOCH), "the sister can be served stale");
    cache.remove(&a);
    cache.fail(&aaaa, &servfail(&aaaa), &ORIGIN.into(), NOW);
    assert!(fails(&nodata(Rtype::A), &a, EPOCH));
    assert!(!fails(&address(1), &a, EPOCH));
    assert!(!fails(&nodata(Rtype::A), &a, Epoch(2)), "a reload voids the failure");
    assert!(!fails(&nodata(Rtype::MX), &key("www.example", Rtype::MX), EPOCH));
    assert!(!fails(&nodata(Rtype::A), &key("ww.example", Rtype::A), EPOCH));
    let secure = Variant { dnssec_ok: true, ..VARIANT };
    let other = Key::new(a.qname(), Rtype::A, Class::IN, secure);
    assert!(!fails(&nodata(Rtype::A), &other, EPOCH), "another client's queries");
}

#[test]
fn an_entry_of_another_epoch_is_doubtful_until_confirmed() {
    let cache = cache();
    let key = key("www.example", Rtype::A);
    let later = Epoch(2);
    let seen = || cache.find(&key, NOW, later, |found| (found.state, found.origin));
    cache.insert(&key, &address(1), timed(60, 0), &ORIGIN.into(), NOW);
    assert_eq!(seen(), Some((State::Doubtful, ORIGIN)));
    // In between another response of the old epoch came in, by another rule.
    let other = Origin { rule: RuleId(8), ..ORIGIN };
    cache.insert(&key, &address(2), timed(60, 0), &other.into(), NOW);
    cache.confirm(&key, ORIGIN, later);
    assert_eq!(seen(), Some((State::Doubtful, other)));
    cache.confirm(&key, other, later);
    assert_eq!(seen(), Some((State::Fresh { prefetch_due: false }, Origin { epoch: later, ..other })));
    assert!(cache.remove(&key));
    assert!(!cache.remove(&key));
    assert_eq!((seen(), cache.usage()), (None, Usage::default()));
}

#[test]
fn a_reload_retires_what_its_rules_no_longer_say() {
    let cache = cache();
    let keys: Vec<Key> = (0..300).map(|number| key(&format!("host{number}.example"), Rtype::A)).collect();
    for (number, key) in keys.iter().enumerate() {
        let origin = Origin { rule: RuleId(number as u64 % 3), chained: number % 2 == 1, ..ORIGIN };
        cache.insert(key, &address(1), timed(60, 0), &origin.into(), NOW);
    }
    let later = Epoch(2);
    let new = key("new.example", Rtype::A);
    cache.insert(&new, &address(1), timed(60, 0), &Origin { epoch: later, ..ORIGIN }.into(), NOW);
    let dropped = cache.retire(later, |key, origin| {
        assert!(keys.contains(key));
        origin.rule != RuleId(1) && !origin.chained
    });
    assert_eq!(dropped, 200);
    for (number, key) in keys.iter().enumerate() {
        let state = cache.find(key, NOW, later, |found| found.state);
        let kept = number % 3 != 1 && number % 2 == 0;
        assert_eq!(state, kept.then_some(State::Fresh { prefetch_due: false }), "{number}");
    }
    assert_eq!(cache.usage().entries, 101);
}

#[test]
fn a_flush_takes_a_name_with_all_its_types() {
    let cache = cache();
    let secure = Variant { dnssec_ok: true, ..VARIANT };
    let kept = key("x.www.example", Rtype::A);
    for key in [
        key("www.example", Rtype::A),
        key("www.example", Rtype::MX),
        Key::new(name("www.example").wire(), Rtype::A, Class::IN, secure),
        kept.clone(),
    ] {
        cache.insert(&key, &address(1), timed(60, 0), &ORIGIN.into(), NOW);
    }
    assert_eq!(cache.flush(&name("WWW.example")), 3);
    assert_eq!((cache.usage().entries, state(&cache, &kept, NOW)), (1, FRESH));
    assert_eq!(cache.flush_all(), 1);
    assert_eq!(cache.usage(), Usage::default());
}

#[test]
fn the_least_recently_used_is_evicted() {
    let cache = single();
    let keys: Vec<Key> = (0..5000).map(|number| key(&format!("host{number}.example"), Rtype::A)).collect();
    let insert = |key| cache.insert(key, &address(1), timed(60, 0), &ORIGIN.into(), NOW);
    let mut keys = keys.iter();
    let first: Vec<&Key> = keys.by_ref().take(3).collect();
    first.iter().for_each(|key| insert(key));
    // Within the second of its insertion an entry is not promoted: that would buy nothing.
    assert_eq!(state(&cache, first[0], NOW), FRESH);
    assert_eq!(state(&cache, first[1], after(1000)), FRESH);
    while cache.usage().evictions < 2 {
        insert(keys.next().unwrap());
    }
    let left = first.iter().map(|key| state(&cache, key, NOW).is_some()).collect::<Vec<_>>();
    assert_eq!(left, [false, true, false]);
}

#[test]
fn an_answer_too_large_to_keep_displaces_the_old_one_all_the_same() {
    let cache = Cache::new(32 << 10);
    let key = key("www.example", Rtype::A);
    cache.insert(&key, &address(1), timed(60, 0), &ORIGIN.into(), NOW);
    let many = Record::new(name("www.example"), Rtype::A, 60, vec![0; 40_000]);
    let large = Answer { answer: vec![many], ..Answer::default() }.encode(&key.question());
    cache.insert(&key, &large, timed(60, 0), &ORIGIN.into(), NOW);
    assert_eq!((state(&cache, &key, NOW), cache.usage()), (None, Usage::default()));
}

#[test]
fn a_smaller_bound_evicts_at_once() {
    let cache = cache();
    for number in 0..2000 {
        cache.insert(&key(&format!("host{number}.example"), Rtype::A), &address(1), timed(60, 0), &ORIGIN.into(), NOW);
    }
    assert_eq!((cache.usage().entries, cache.usage().evictions), (2000, 0));
    cache.resize(100_000);
    assert!(cache.usage().bytes <= 100_000 && cache.usage().entries > 400, "{:?}", cache.usage());
}

proptest! {
    #[test]
    fn the_bound_holds_whatever_comes(
        steps in prop::collection::vec((0u8..5, 0u16..60, 0usize..4000), 1..400),
        size_bytes in 4_000usize..600_000,
    ) {
        let cache = Cache::new(size_bytes);
        let mut now = NOW;
        for (step, number, length) in steps {
            now = now + Duration::from_millis(length as u64);
            let key = key(&format!("host{number}.example"), Rtype::A);
            let record = Record::new(name("www.example"), Rtype::TXT, 60, vec![0; length]);
            let response = Answer { answer: vec![record], ..Answer::default() }.encode(&key.question());
            match step {
                0 => cache.fail(&key, &response, &ORIGIN.into(), now),
                1 => drop(cache.remove(&key)),
                2 => drop(state(&cache, &key, now)),
                _ => cache.insert(&key, &response, timed(4, 4), &ORIGIN.into(), now),
            }
            prop_assert!(cache.usage().bytes <= size_bytes);
        }
        let usage = cache.usage();
        prop_assert_eq!(cache.flush_all(), usage.entries);
        prop_assert_eq!(cache.usage(), Usage { evictions: usage.evictions, ..Usage::default() });
    }
}

#[test]
fn a_configuration_out_of_range_is_told_with_every_fault() {
    assert_eq!(Config::default().problems(), []);
    let config: Config =
        toml::from_str("size = \"64KiB\"\nmax_ttl = \"8d\"\nmax_negative_ttl = \"25h\"\nmin_ttl = \"61m\"").unwrap();
    let messages: Vec<String> = config.problems().iter().map(ToString::to_string).collect();
    assert_eq!(
        messages,
        [
            "size is 64.0 KiB; choose from 1MiB to 1TiB",
            "max_ttl is 8days; choose from 1s to 7d",
            "max_negative_ttl is 1day 1h; choose from 0s to 1d",
            "min_ttl is 1h 1m; choose from 0s to 1h",
        ]
    );
    let crossed = Config { min_ttl: Duration::from_secs(60), max_ttl: Duration::from_secs(59), ..Config::default() };
    assert_eq!(crossed.problems(), [Problem::Crossed]);
}

#[test]
fn the_default_configuration_is_read_as_written() {
    let text = toml::to_string(&Config::default()).unwrap();
    assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    let written = "size = \"64MiB\"\nmax_ttl = \"1d\"\nmax_negative_ttl = \"1h\"\nmin_ttl = \"0s\"\nprefetch = true";
    assert_eq!(toml::from_str::<Config>(written).unwrap(), Config::default());
}
