use std::collections::BTreeSet;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::wire::{Asker, Class, ClientEdns, Name, Record, ReplySize, Ttls, write_reply};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn question() -> Question {
    Question { qname: name("web.service.consul"), qtype: Rtype::SRV, qclass: Class::IN }
}

fn srv(target: &Name) -> Record {
    Record::new(question().qname, Rtype::SRV, 0, [&[0, 1, 0, 1, 0, 80][..], target.wire()].concat())
}

/// An answer of so many instances with the addresses of their targets and a piece of meta; its names are of various lengths.
fn instances(count: usize) -> (Answer, Shape) {
    let target = |i: usize| name(&format!("{}{i}.node.dc1.consul", "n".repeat(1 + i % 7)));
    let address = |i: usize| Record::new(target(i), Rtype::A, 0, [192, 0, (i >> 8) as u8, i as u8]);
    let mut additional: Vec<_> = (0..count).map(address).collect();
    for text in [*b"\x04meta", *b"\x04more"] {
        additional.push(Record::new(target(0), Rtype::TXT, 0, text));
    }
    let answer = Answer { answer: (0..count).map(|i| srv(&target(i))).collect(), additional, ..Answer::default() };
    let glue = (0..count).map(Some).collect();
    (answer, Shape { rotating: 0..count, glue, admits_cuts: true, ..Shape::default() })
}

fn asker(limit_bytes: usize) -> Asker {
    let edns = Some(ClientEdns { udp_size: limit_bytes as u16, version: 0, dnssec_ok: false });
    Asker {
        id: 7,
        recursion_desired: true,
        checking_disabled: false,
        wants_ad: false,
        edns,
        options: Default::default(),
        limit_bytes,
    }
}

/// The reply to a client that takes so many octets, as values; and whether it is cut.
fn reply(response: &Response, limit_bytes: usize, seed: u64) -> (Answer, bool) {
    let mut out = Vec::new();
    let mut rng = StdRng::seed_from_u64(seed);
    let asker = asker(limit_bytes);
    write_reply(response.view(), &asker, response.question_bytes(), Ttls::Aged(0), &mut rng, &mut out);
    assert!(out.len() <= limit_bytes, "{} octets of {limit_bytes}", out.len());
    let reply = Response::read(&out).expect("a reply is well-formed").response;
    (reply.to_answer().unwrap(), reply.has_flag(flag::TC))
}

fn sorted(records: &[Record]) -> BTreeSet<String> {
    records.iter().map(|record| format!("{record:?}")).collect()
}

#[test]
fn each_is_first_equally_often_and_none_is_there_twice() {
    for count in [1usize, 2, 3, 10, 60] {
        let mut first = vec![0; count];
        for random in 0..(count * 100) as u64 {
            let mut places: Vec<usize> = Order::new(count, random).collect();
            first[places[0]] += 1;
            places.sort_unstable();
            assert_eq!(places, (0..count).collect::<Vec<_>>(), "{random}");
        }
        assert_eq!(first, vec![100; count]);
    }
    assert_eq!(Order::new(0, 7).next(), None);
}

#[test]
fn what_fits_is_given_whole_in_any_order() {
    let (answer, shape) = instances(20);
    let response = answer.encode_rotating(&question(), &shape).unwrap();
    assert_eq!(response.to_answer().unwrap(), answer, "as a message it is one like any other");
    let mut orders = BTreeSet::new();
    for seed in 0..50 {
        let (given, is_cut) = reply(&response, 4096, seed);
        assert_eq!((sorted(&given.answer), is_cut), (sorted(&answer.answer), false));
        assert_eq!(given.additional, answer.additional, "every pointer leads to its record, wherever that is");
        orders.insert(format!("{:?}", given.answer));
    }
    assert!(orders.len() > 40, "{}", orders.len());
}

#[test]
fn of_instances_that_do_not_fit_as_many_as_do_are_given_with_their_addresses() {
    let (answer, shape) = instances(60);
    let response = answer.encode_rotating(&question(), &shape).unwrap();
    let mut first = BTreeSet::new();
    for seed in 0..400 {
        let (given, is_cut) = reply(&response, 512, seed);
        assert!(is_cut && (6..11).contains(&given.answer.len()), "{}", given.answer.len());
        let targets: BTreeSet<_> = given.answer.iter().map(|srv| srv.rdata[6..].to_vec()).collect();
        let owners: BTreeSet<_> = given.additional.iter().map(|record| record.owner.wire().to_vec()).collect();
        assert_eq!((targets.len(), &targets), (given.answer.len(), &owners));
        assert!(sorted(&given.additional).is_subset(&sorted(&answer.additional)));
        first.insert(given.answer[0].rdata.clone());
    }
    assert_eq!(first.len(), 60, "each has its turn");
    let silent = answer.encode_rotating(&question(), &Shape { admits_cuts: false, ..shape }).unwrap();
    assert!(!reply(&silent, 512, 3).1);
}

#[test]
fn meta_gives_way_before_instances_do() {
    let (answer, shape) = instances(3);
    let mut long = answer;
    long.additional.push(Record::new(question().qname, Rtype::TXT, 0, [0; 300]));
    let response = long.encode_rotating(&question(), &shape).unwrap();
    let (given, is_cut) = reply(&response, 512, 1);
    assert_eq!((given.answer.len(), given.additional.len(), is_cut), (3, 3, false));
}

#[test]
fn limits_hold_whatever_the_room() {
    let (answer, shape) = instances(10);
    let shape = Shape { most: Some(5), most_small: Some(3), ..shape };
    let response = answer.encode_rotating(&question(), &shape).unwrap();
    for (room_bytes, expected, cut) in [(512, 3, true), (1232, 5, false), (65_535, 5, false)] {
        let (given, is_cut) = reply(&response, room_bytes, 3);
        assert_eq!((given.answer.len(), given.additional.len(), is_cut), (expected, expected, cut));
    }
}

#[test]
fn instances_of_one_target_share_its_address() {
    let (target, other) = (name("a.node.dc1.consul"), name("b.node.dc1.consul"));
    let mut answer = Answer { answer: (0..40).map(|_| srv(&target)).collect(), ..Answer::default() };
    answer.answer.push(srv(&other));
    answer.additional =
        vec![Record::new(target, Rtype::A, 0, [192, 0, 2, 1]), Record::new(other, Rtype::A, 0, [192, 0, 2, 2])];
    let glue = (0..40).map(|_| Some(0)).chain([Some(1)]).collect();
    let shape = Shape { rotating: 0..41, glue, admits_cuts: true, ..Shape::default() };
    let response = answer.encode_rotating(&question(), &shape).unwrap();
    for seed in 0..100 {
        let (given, _) = reply(&response, 512, seed);
        let targets: BTreeSet<_> = given.answer.iter().map(|srv| srv.rdata[6..].to_vec()).collect();
        assert_eq!(given.additional.len(), targets.len());
    }
}

#[test]
fn what_stands_before_the_instances_stays_there() {
    let (mut answer, mut shape) = instances(3);
    let alias = Record::new(question().qname, Rtype::CNAME, 0, name("a.consul").wire());
    answer.answer.insert(0, alias.clone());
    shape.rotating = 1..4;
    let response = answer.encode_rotating(&question(), &shape).unwrap();
    for seed in 0..20 {
        let (given, is_cut) = reply(&response, 1232, seed);
        assert_eq!((given.answer.len(), &given.answer[0], is_cut), (4, &alias, false));
    }
}

#[test]
fn what_cannot_rotate_is_encoded_as_it_stands() {
    let (answer, shape) = instances(3);
    let with = |change: &dyn Fn(&mut Answer, &mut Shape)| {
        let (mut answer, mut shape) = (answer.clone(), shape.clone());
        change(&mut answer, &mut shape);
        answer.encode_rotating(&question(), &shape)
    };
    assert!(with(&|_, shape| shape.rotating = 0..2).is_none(), "something stands behind them");
    assert!(with(&|answer, _| answer.authority.push(answer.additional[0].clone())).is_none());
    let single = |most| {
        with(&move |answer, shape| {
            answer.answer.truncate(1);
            *shape = Shape { rotating: 0..1, most, ..shape.clone() };
        })
    };
    assert!(single(None).is_none() && single(Some(1)).is_some());
    let (many, shape) = instances(3000);
    assert!(many.encode_rotating(&question(), &shape).is_none(), "longer than a message");
}

#[test]
fn beyond_the_reach_of_pointers_names_are_spelled_out() {
    let (answer, shape) = instances(600);
    let response = answer.encode_rotating(&question(), &shape).unwrap();
    assert!(response.message().len() > 0x4000);
    for (room_bytes, expected) in [(65_535, 600..601), (4096, 50..80)] {
        let (given, _) = reply(&response, room_bytes, 5);
        assert!(expected.contains(&given.answer.len()), "{}", given.answer.len());
        assert!(sorted(&given.additional).is_subset(&sorted(&answer.additional)));
    }
    assert_eq!(ReplySize::Stream.limit_bytes(None), 65_535);
}

proptest! {
    #[test]
    fn any_shape_makes_well_formed_replies(
        count in 0usize..40,
        glue in prop::collection::vec(prop::option::of(0usize..45), 0..45),
        start in 0usize..3,
        most in prop::option::of(1u16..50),
        room_bytes in 512usize..3000,
        seed: u64,
    ) {
        let (answer, shape) = instances(count);
        let shape = Shape { rotating: start..count, glue, most, most_small: most, ..shape };
        if let Some(response) = answer.encode_rotating(&question(), &shape) {
            let (given, _) = reply(&response, room_bytes, seed);
            prop_assert!(given.answer.len() <= count);
            prop_assert!(sorted(&given.answer).is_subset(&sorted(&answer.answer)));
        }
    }
}
