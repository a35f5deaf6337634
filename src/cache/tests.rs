//! The cache over time, in its order and within its bound.

use proptest::prelude::*;

use super::*;
use crate::wire::{Answer, Question, Rcode, Record, Soa, View};

const NOW: Moment = Moment::from_millis(1_000_000_300);
const EPOCH: Epoch = Epoch(1);
const ORIGIN: Origin = Origin { rule: RuleId(7), epoch: EPOCH, chained: false, loopback_only: false };
const VARIANT: Variant = Variant { dnssec_ok: false, checking_disabled: false, view: 0 };

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn key(qname: &str, qtype: Rtype) -> Key {
    Key::new(name(qname).wire(), qtype, Class::IN, VARIANT)
}

fn timed(fresh: u64, stale: u64) -> Life {
    Life::Timed { fresh: Duration::from_secs(fresh), stale: Duration::from_secs(stale) }
}

fn after(millis: u64) -> Moment {
    NOW + Duration::from_millis(millis)
}

fn address(octet: u8) -> Response {
    let record = Record::new(name("www.example"), Rtype::A, 60, [192, 0, 2, octet]);
    Answer { answer: vec![record], ..Answer::default() }.encode(&key("www.example", Rtype::A).question())
}

fn nodata(qtype: Rtype) -> Response {
    let [mname, rname] = ["ns.example", "root.example"].map(name);
    let soa = Soa { mname, rname, serial: 1, refresh: 2, retry: 3, expire: 4, minimum: 60 };
    let denial = Answer::negative(Rcode::NOERROR, soa.record(name("example")));
    denial.encode(&key("www.example", qtype).question())
}

fn servfail(key: &Key) -> Response {
    Response::error(&key.question(), Rcode::SERVFAIL, &[])
}

fn cache() -> Cache {
    Cache::new(1 << 20)
}

/// A cache of one shard, whose order of eviction can be told.
fn single() -> Cache {
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

/// Responses near the border of what can be packed: short and long names and records, alike or not in all respects.
fn any_response() -> impl Strategy<Value = (Key, Response)> {
    let rtypes = || prop::sample::select(vec![Rtype::A, Rtype::AAAA, Rtype::TXT, Rtype(65_280)]);
    let rdata = prop::collection::vec(any::<u8>(), 0..30);
    // Owner, class, type, TTL and RDATA of a record: mostly as the others have it.
    let record = (0u8..12, 0u8..12, 0u8..12, 0u8..12, prop_oneof![4 => Just(None), 1 => rdata.prop_map(Some)]);
    let sections = [
        prop::collection::vec(record.clone(), 0..6).boxed(),
        prop_oneof![8 => Just(Vec::new()), 1 => prop::collection::vec(record.clone(), 1..3)].boxed(),
        prop_oneof![8 => Just(Vec::new()), 1 => prop::collection::vec(record, 1..3)].boxed(),
    ];
    let common =
        (rtypes(), prop_oneof![4 => Just(60u32), 1 => any::<u32>()], prop::collection::vec(any::<u8>(), 0..24));
    let variant = (any::<bool>(), any::<bool>(), any::<u8>(), 0u8..10);
    let head = (any::<bool>(), prop_oneof![6 => Just(0u16), 1 => 0u16..16], any::<bool>(), 0u8..8);
    ("[a-zA-Z0-9]{0,40}", sections, common, variant, head).prop_map(
        |(label, sections, (qtype, ttl, rdata), (dnssec_ok, checking_disabled, view, class), head)| {
            let qname = if label.is_empty() { Name::root() } else { name(&format!("{label}.eX")) };
            let qclass = if class == 0 { Class::CH } else { Class::IN };
            let question = Question { qname: qname.clone(), qtype, qclass };
            let [answer, authority, additional] = sections.map(|section| {
                let records = section.into_iter().map(|(owner, class, rtype, own_ttl, own_rdata)| {
                    let owner = if owner == 0 { name("other.eX") } else { qname.clone() };
                    let rtype = if rtype == 0 { Rtype(65_281) } else { qtype };
                    let own_rdata = own_rdata.unwrap_or_else(|| rdata.clone());
                    let mut record = Record::new(owner, rtype, if own_ttl == 0 { 61 } else { ttl }, own_rdata);
                    record.class = if class == 0 { Class::CH } else { qclass };
                    record
                });
                records.collect()
            });
            let (authoritative, rcode, flagged, error) = head;
            let answer = Answer { rcode: Rcode(rcode), authoritative, answer, authority, additional };
            let mut response = answer.encode(&question);
            response.set_flag(crate::wire::flag::AD, flagged);
            if error == 0 {
                response.add_error(&crate::wire::ExtendedError { code: 3, text: "why".into() });
            }
            let variant = Variant { dnssec_ok, checking_disabled, view };
            (Key::new(qname.wire(), qtype, qclass, variant), response)
        },
    )
}

/// What the cache says of the key, as values.
fn seen(cache: &Cache, key: &Key, now: Moment, epoch: Epoch) -> Option<(Response, Ttls, State, Origin)> {
    let whole =
        |found: Found<'_>| (Response::from_view(found.view, &key.question()), found.ttls, found.state, found.origin);
    cache.find(key, now, epoch, whole)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn packed_or_not_every_octet_comes_back(
        (key, response) in any_response(),
        fresh_secs in prop_oneof![4 => Just(60u64), 1 => 1u64..100_000],
        stale_secs in prop_oneof![Just(0u64), Just(DAY_SECS)],
        (chained, loopback_only) in any::<(bool, bool)>(),
    ) {
        let cache = cache();
        let origin = Origin { rule: RuleId(9), epoch: EPOCH, chained, loopback_only };
        cache.insert(&key, &response, timed(fresh_secs, stale_secs), &origin.into(), NOW);
        let same = Response::from_view(response.view(), &key.question());
        let fresh = State::Fresh { prefetch_due: false };
        let at = |secs: u64| NOW + Duration::from_secs(secs);
        let expected = Some((same.clone(), Ttls::Aged(0), fresh, origin));
        prop_assert_eq!(seen(&cache, &key, NOW, EPOCH), expected);
        // So they do after a reload,
        let later = Epoch(2);
        cache.retire(later, |kept, by| *kept == key && by == origin);
        let origin = Origin { epoch: later, ..origin };
        let expected = Some((same.clone(), Ttls::Aged(1), fresh, origin));
        prop_assert_eq!(seen(&cache, &key, NOW + Duration::from_millis(1000), later), expected);
        // after a restart,
        let restarted = self::cache();
        let count = restarted.restore(&cache.save(NOW, 0), NOW, 0).unwrap();
        prop_assert_eq!(count, usize::from(!chained));
        if count == 1 {
            let origin = Origin { epoch: Epoch(0), ..origin };
            let expected = Some((same.clone(), Ttls::Aged(0), State::Doubtful, origin));
            prop_assert_eq!(seen(&restarted, &key, NOW, later), expected);
        }
        // and when no new answer can be had.
        let bytes = cache.usage().bytes;
        cache.fail(&key, &servfail(&key), &origin.into(), NOW + Duration::from_millis(fresh_secs * 1000 - 500));
        prop_assert!(cache.usage().bytes >= bytes);
        let stale = Some((same, Ttls::Fixed(STALE_TTL_SECS), State::StaleNow, origin));
        let servable = at(fresh_secs + stale_secs);
        prop_assert_eq!(seen(&cache, &key, at(fresh_secs), later), stale.filter(|_| stale_secs > 0));
        prop_assert_eq!(seen(&cache, &key, servable, later), None);
        cache.flush(&key.question().qname);
        prop_assert_eq!(cache.usage(), Usage::default());
    }
}

#[test]
fn a_short_answer_takes_less_than_a_block_of_its_own_would() {
    let cost = |qname: &str, octets: usize| {
        let cache = cache();
        let key = key(qname, Rtype::A);
        let record = Record::new(name(qname), Rtype::A, 60, vec![7; octets]);
        let response = Answer { answer: vec![record], ..Answer::default() }.encode(&key.question());
        cache.insert(&key, &response, timed(60, 60), &ORIGIN.into(), NOW);
        cache.usage().bytes
    };
    let packed = cost("www.example", 4);
    assert!(packed < 137, "{packed}");
    // A name of 36 octets with an address of IPv4, of 24 with one of IPv6; one octet more does not fit.
    for (qname_bytes, octets) in [(36, 4), (24, 16)] {
        let qname = |length: usize| format!("{}.example.com", "a".repeat(length - 14));
        assert_eq!(cost(&qname(qname_bytes), octets), packed, "{octets}");
        assert!(cost(&qname(qname_bytes + 1), octets) > packed, "{octets}");
    }
}

#[test]
fn more_rules_than_a_shard_can_list_lose_no_answer() {
    let cache = single();
    let keys: Vec<Key> = (0..600).map(|number| key(&format!("host{number}.example"), Rtype::A)).collect();
    let origin = |number: usize, epoch| Origin { rule: RuleId(number as u64), epoch, ..ORIGIN };
    for (number, key) in keys.iter().enumerate() {
        cache.insert(key, &address(number as u8), timed(60, 60), &origin(number, EPOCH).into(), NOW);
    }
    let check = |epoch, numbers: &[usize]| {
        for &number in numbers {
            let (response, _, _, by) = seen(&cache, &keys[number], NOW, epoch).unwrap();
            assert_eq!((response.message().last(), by), (Some(&(number as u8)), origin(number, epoch)));
        }
    };
    check(EPOCH, &(0..600).collect::<Vec<_>>());
    let full = cache.usage().bytes;
    // Half of them are confirmed one by one, before the walk that drops what no rule says any longer.
    let later = Epoch(2);
    (0..300).for_each(|number| cache.confirm(&keys[number], origin(number, EPOCH), later));
    check(later, &(0..300).collect::<Vec<_>>());
    assert!(cache.usage().bytes > full, "no longer packed");
    assert_eq!(cache.retire(later, |_, by| by.rule.0 % 2 == 0), 150);
    let left: Vec<usize> = (0..600).filter(|number| *number < 300 || number % 2 == 0).collect();
    check(later, &left);
    // There is room in the list again.
    let before = cache.usage().bytes;
    cache.flush_all();
    cache.insert(&keys[0], &address(0), timed(60, 60), &origin(1000, later).into(), NOW);
    assert!(cache.usage().bytes < before / 450);
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
        assert_eq!(rcode(&cache, &aaaa, after(1000)), Some(Rcode::NOERROR), "the failure has ended");
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
