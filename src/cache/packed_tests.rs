//! What is packed is what was inserted, and takes less; what cannot be packed is kept all the same.

use proptest::prelude::*;

use super::{
    tests::{EPOCH, NOW, ORIGIN, address, cache, key, name, servfail, single, timed},
    *,
};
use crate::wire::{Answer, ExtendedError, Question, Rcode, Record, flag};

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
                    record.rdata = formed(&record).into();
                    record
                });
                records.collect()
            });
            let (authoritative, rcode, flagged, error) = head;
            let answer = Answer { rcode: Rcode(rcode), authoritative, answer, authority, additional };
            let mut response = answer.encode(&question);
            response.set_flag(flag::AD, flagged);
            if error == 0 {
                response.add_error(&ExtendedError { code: 3, text: "why".into() });
            }
            let variant = Variant { dnssec_ok, checking_disabled, view };
            (Key::new(qname.wire(), qtype, qclass, variant), response)
        },
    )
}

/// RDATA that a record of its type and class can have: what has not, a restart would not take back.
fn formed(record: &Record) -> Vec<u8> {
    let mut rdata = record.rdata.to_vec();
    match record.rtype {
        Rtype::A if record.class == Class::IN => rdata.resize(4, 7),
        Rtype::AAAA if record.class == Class::IN => rdata.resize(16, 7),
        Rtype::TXT => rdata.insert(0, rdata.len() as u8),
        _ => {}
    }
    rdata
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
        let restarted = super::tests::cache();
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
