//! Messages as hickory-proto reads them, and as nothing can break them.

use hickory_proto::{op::Message, rr::RecordType};
use proptest::prelude::*;

use super::*;
use crate::wire::{
    Asker, ClientEdns, Cookie, Query, Rcode, ReplyOptions, ReplySize, Response, Section, Ttls, write_error, write_reply,
};

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn question(qname: &str, qtype: Rtype) -> Question {
    Question { qname: name(qname), qtype, qclass: Class::IN }
}

fn sample() -> Answer {
    let mx = [&10u16.to_be_bytes()[..], name("mail.www.example").wire()].concat();
    let srv = [&[0, 1, 0, 1, 0x1f, 0x90][..], name("node.www.example").wire()].concat();
    Answer {
        answer: vec![
            Record::new(name("www.example"), Rtype::CNAME, 60, name("other.example").wire()),
            Record::new(name("other.example"), Rtype::MX, 60, mx),
            Record::new(name("other.example"), Rtype::SRV, 60, srv),
            Record::new(name("other.example"), Rtype(65_280), 60, *b"\x01\x02"),
            Record::new(name("other.example"), Rtype(65_281), 60, *b""),
        ],
        authority: vec![Record::new(name("example"), Rtype::NS, 3600, name("ns.example").wire())],
        additional: vec![Record::new(name("ns.example"), Rtype::A, 3600, [192, 0, 2, 1])],
        ..Answer::default()
    }
}

fn asker(limit_bytes: usize, edns: bool) -> Asker {
    Asker {
        id: 0x1234,
        recursion_desired: true,
        checking_disabled: false,
        wants_ad: false,
        edns: edns.then_some(ClientEdns { udp_size: 1232, version: 0, dnssec_ok: false }),
        options: Default::default(),
        limit_bytes,
    }
}

fn reply(response: &Response, asker: &Asker, ttls: Ttls) -> Vec<u8> {
    let mut out = Vec::new();
    write_reply(response.view(), asker, response.question_bytes(), ttls, &mut rand::rng(), &mut out);
    out
}

#[test]
fn what_no_longer_fits_when_it_is_written_anew_is_not_counted() {
    // Each target is a pointer to a long name, which is to be spelled out (RFC 3597 §4).
    let qname = name(&[&"a".repeat(63); 3].map(String::as_str).join("."));
    let srv = Record::new(qname.clone(), Rtype::SRV, 60, *b"\0\0\0\0\0\0\xc0\x0c");
    let authority = vec![Record::new(name("a"), Rtype::NS, 60, name("ns").wire())];
    let answer = Answer { answer: vec![srv; 3000], authority: authority.clone(), additional: authority, ..sample() };
    let response = answer.encode(&Question { qname, qtype: Rtype::SRV, qclass: Class::IN });
    assert_eq!(response.counts(), [3000, 1, 1]);
    let rest = response.retain(|record| record.section != Section::Additional).unwrap().unwrap();
    assert!(rest.has_flag(flag::TC));
    assert_eq!(rest.counts(), [rest.records().count() as u16, 0, 0]);
    assert!(Response::read(rest.message()).is_ok());
}

#[test]
fn records_are_compressed_and_read_back_equal() {
    let question = question("www.example", Rtype::MX);
    let answer = sample();
    let response = answer.encode(&question);
    let received = Response::read(response.message()).unwrap();
    let read: Vec<Vec<Record>> = [Section::Answer, Section::Authority, Section::Additional]
        .map(|section| {
            let records = received.response.records().filter(|r| r.section == section);
            records.map(|r| received.response.record(&r).unwrap()).collect()
        })
        .into();
    assert_eq!(read, [answer.answer, answer.authority, answer.additional]);
    // Only the types of RFC 1035 may be compressed in their RDATA: SRV's target is written out.
    assert!(response.message().windows(18).any(|w| w == name("node.www.example").wire()));
    assert!(response.message().len() < 190, "{}", response.message().len());
}

#[test]
fn hickory_reads_what_we_encode() {
    let mut answer = sample();
    answer.answer.pop(); // hickory refuses empty RDATA; we pass it on
    let response = answer.encode(&question("www.example", Rtype::MX));
    let message = Message::from_vec(&reply(&response, &asker(1232, true), Ttls::Aged(10))).unwrap();
    assert_eq!(message.metadata.id, 0x1234);
    assert!(message.metadata.authoritative && message.metadata.recursion_available);
    let types: Vec<RecordType> = message.answers.iter().map(|record| record.record_type()).collect();
    assert_eq!(types.len(), 4);
    assert_eq!(types[..3], [RecordType::CNAME, RecordType::MX, RecordType::SRV]);
    assert!(message.answers.iter().all(|record| record.ttl == 50));
    assert_eq!(message.authorities[0].ttl, 3590);
    assert!(message.edns.is_some());
}

#[test]
fn a_reply_that_does_not_fit_is_cut_at_a_record() {
    let many = Answer {
        answer: (0..60).map(|i| Record::new(name("www.example"), Rtype::A, 60, [192, 0, 2, i])).collect(),
        ..sample()
    };
    let response = many.encode(&question("www.example", Rtype::A));
    for limit in [512, 600, 1000, 1100] {
        for edns in [false, true] {
            let wire = reply(&response, &asker(limit, edns), Ttls::Aged(0));
            assert!(wire.len() <= limit, "{limit} {edns}: {}", wire.len());
            let message = Message::from_vec(&wire).unwrap();
            let cut = message.answers.len() < 60 || message.authorities.is_empty();
            assert_eq!(message.metadata.truncation, cut, "{limit} {edns}");
            assert!(message.answers.len() > 20, "{limit} {edns}");
        }
    }
    // What is only additional goes without TC.
    let whole = reply(&response, &asker(4096, false), Ttls::Aged(0)).len();
    let wire = reply(&response, &asker(whole - 1, false), Ttls::Aged(0));
    let message = Message::from_vec(&wire).unwrap();
    assert!(!message.metadata.truncation && message.additionals.is_empty() && message.authorities.len() == 1);
}

/// RFC 7830 §4, RFC 8467 §4.1.
#[test]
fn a_padded_reply_is_of_whole_blocks_if_there_is_room() {
    let mut answer = sample();
    answer.answer.pop(); // hickory refuses empty RDATA
    let response = answer.encode(&question("www.example", Rtype::MX));
    let cookie = Some(Cookie { data: [7; 24], is_proof: false });
    let written = |limit: usize, cookie: Option<Cookie>, padded: bool| {
        let options = ReplyOptions { cookie, keepalive: Some(300), padded };
        reply(&response, &Asker { options, ..asker(limit, true) }, Ttls::Aged(0))
    };
    let bare = written(65_535, cookie, false).len();
    for (limit, cookie, expected) in [
        (65_535, None, Some(468)),
        (65_535, cookie, Some(468)),
        (468, cookie, Some(468)),
        (bare + 20, cookie, Some(bare + 20)), // no further than it may be
        (bare + 4, cookie, Some(bare + 4)),
        (bare + 3, cookie, None), // what has to be said goes before
    ] {
        let wire = written(limit, cookie, true);
        assert_eq!(wire.len(), expected.unwrap_or(bare), "{limit}");
        let edns = Message::from_vec(&wire).unwrap().edns.unwrap();
        let has = |code: u16| edns.option(code.into()).is_some();
        assert_eq!((has(10), has(11), has(12)), (cookie.is_some(), true, expected.is_some()), "{limit}");
    }
}

#[test]
fn an_opt_record_between_others_is_taken_out_and_the_rest_kept() {
    let mut message = sample().encode(&question("www.example", Rtype::MX)).message().to_vec();
    let additional = message.split_off(message.len() - 16); // a pointer and 14 octets of record
    message.extend(b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00\x00\x07\x00\x0f\x00\x03\x00\x16x");
    message.extend(additional);
    message[11] = 2;
    let received = Response::read(&message).unwrap();
    assert!(received.has_edns);
    assert_eq!(received.response.extended_errors(), b"\x00\x0f\x00\x03\x00\x16x");
    assert_eq!(received.response.counts(), [5, 1, 1]);
    let last = received.response.records().last().unwrap();
    assert_eq!(received.response.record(&last).unwrap(), sample().additional[0]);
}

#[test]
fn an_owner_that_would_be_another_in_a_reply_is_malformed() {
    let message = |owner: &[u8]| {
        let first = b"\xc0\x0c\x00\x01\x00\x01\x01x\x00\x00\x00\x04\xc0\x00\x02\x01";
        let second = [owner, b"\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\xc0\x00\x02\x01"].concat();
        let head = b"\x00\x01\x81\x80\x00\x01\x00\x02\x00\x00\x00\x00\x03www\x07example\x00\x00\x01\x00\x01";
        [&head[..], first, &second].concat()
    };
    let first_at = 29;
    for (owner, is_good) in [
        (b"\xc0\x10".to_vec(), true), // of the question
        (b"\x01a\xc0\x0c".to_vec(), true),
        (vec![0xc0, first_at], true),      // of the record before
        (vec![0xc0, first_at + 2], true),  // its type, which stays: the root
        (vec![0xc0, first_at + 6], false), // its TTL
        (vec![0xc0, first_at + 8], false),
        (vec![0xc0, first_at - 1], false), // a label that begins in its class
        (b"\xc0\x00".to_vec(), false),     // the id
        (b"\xc0\x04".to_vec(), false),     // a count
    ] {
        assert_eq!(Response::read(&message(&owner)).is_ok(), is_good, "{owner:x?}");
    }
}

/// A message of so many addresses, each at the name that starts at `target` in the RDATA of a first record of an unknown type.
fn pointing_into(rdata: &[u8], target: u16, records: u16) -> Vec<u8> {
    let mut message = b"\x00\x01\x81\x80\x00\x01".to_vec();
    message.extend((records + 1).to_be_bytes());
    message.extend(b"\x00\x00\x00\x00\x03www\x07example\x00\x00\x01\x00\x01");
    message.extend(b"\xc0\x0c\xff\x01\x00\x01\x00\x00\x00\x00");
    message.extend((rdata.len() as u16).to_be_bytes());
    let rdata_at = message.len() as u16;
    message.extend(rdata);
    for _ in 0..records {
        message.extend((0xc000 | (rdata_at + target)).to_be_bytes());
        message.extend(b"\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01");
    }
    message
}

#[test]
fn labels_and_pointers_of_all_names_are_bounded() {
    // Each label is followed by a pointer to the one before.
    let rdata_at = 12 + 13 + 4 + 12;
    let mut slow = b"\x01a\x00".to_vec();
    let mut start = 0u16;
    for _ in 0..125 {
        let at = slow.len() as u16;
        slow.extend(b"\x01a");
        slow.extend((0xc000 | (rdata_at + start)).to_be_bytes());
        start = at;
    }
    // As long, and written out.
    let plain = [&b"\x01a".repeat(126)[..], b"\x00"].concat();
    // Ten labels, as a long name in use has.
    let usual = b"\x04host\x02eu\x04west\x03api\x04prod\x05cloud\x07example\x03net\x02co\x02uk\x00";
    for (name, target, records, is_good) in [
        (&slow[..], start, 10, true),
        (&slow, start, 3900, false),
        (&plain, 0, 10, true),
        (&plain, 0, 3900, false),
        (usual, 0, 3900, true),
    ] {
        let message = pointing_into(name, target, records);
        assert!(message.len() <= 65_535);
        assert_eq!(Response::read(&message).is_ok(), is_good, "{} octets, {records} records", name.len());
    }
}

#[test]
fn letters_of_the_question_and_its_owners_are_restored() {
    let address = Record::new(name("WwW.eXaMpLe"), Rtype::A, 60, [192, 0, 2, 1]);
    let answer = Answer { answer: vec![address], ..Answer::default() };
    let mut message = answer.encode(&question("WwW.eXaMpLe", Rtype::A)).message().to_vec();
    // An upstream that spells the owner out instead of pointing at the question.
    let records_at = 12 + 13 + 4;
    message.splice(records_at..records_at + 2, *b"\x03WwW\x07eXaMpLe\x00");
    let mut response = Response::read(&message).unwrap().response;
    response.set_letters(&name("www.example"));
    assert_eq!(response.question_bytes()[..13], *name("www.example").wire());
    let first = response.records().next().unwrap();
    assert_eq!(response.owner(&first).unwrap().to_string(), "www.example.");
}

fn any_name() -> impl Strategy<Value = Name> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..8)
        .prop_map(|labels| labels.iter().rev().fold(Name::root(), |name, label| name.child(label).unwrap()))
}

/// A name that shares labels with others, in letters of either case.
fn related_name() -> impl Strategy<Value = Name> {
    prop::collection::vec(prop::sample::select(vec!["a", "A", "b", "ab"]), 0..80)
        .prop_map(|labels| labels.iter().fold(Name::root(), |name, label| name.child(label.as_bytes()).unwrap()))
}

/// One with names that are compressed.
fn related_record() -> impl Strategy<Value = Record> {
    let rtype = prop::sample::select(vec![Rtype::A, Rtype::NS, Rtype::CNAME, Rtype::PTR, Rtype::MX, Rtype::SOA]);
    (related_name(), rtype, related_name(), related_name()).prop_map(|(owner, rtype, first, second)| {
        let rdata = match rtype {
            Rtype::A => vec![192, 0, 2, 1],
            Rtype::MX => [&[0, 10], first.wire()].concat(),
            Rtype::SOA => [first.wire(), second.wire(), &[7; 20]].concat(),
            _ => first.wire().to_vec(),
        };
        Record::new(owner, rtype, 60, rdata)
    })
}

/// How long a message is in which every name ends in a pointer as soon as there is something to point at.
fn shortest(question: &Question, records: &[Record]) -> usize {
    let mut known: std::collections::HashMap<Vec<u8>, usize> = Default::default();
    let mut write = |name: &Name, at: usize| {
        let mut end = at;
        for suffix in name.suffixes().filter(|suffix| suffix.len() > 1) {
            if known.get(&suffix.to_ascii_lowercase()).is_some_and(|&place| place < at) {
                return end + 2;
            }
            if end < 0x4000 {
                known.insert(suffix.to_ascii_lowercase(), end);
            }
            end += 1 + usize::from(suffix[0]);
        }
        end + 1
    };
    let mut at = write(&question.qname, 12) + 4;
    for record in records {
        at = write(&record.owner, at) + 10;
        // Octets, names, and octets behind them.
        let (before, names, after) = match record.rtype {
            Rtype::NS | Rtype::CNAME | Rtype::PTR => (0, 1, 0),
            Rtype::MX => (2, 1, 0),
            Rtype::SOA => (0, 2, 20),
            _ => (0, 0, record.rdata.len()),
        };
        let mut rest = &record.rdata[before..];
        at += before;
        for _ in 0..names {
            let (name, end) = Name::read(rest, 0).unwrap();
            rest = &rest[end..];
            at = write(&name, at);
        }
        at += after;
    }
    at
}

fn any_record() -> impl Strategy<Value = Record> {
    (
        any_name(),
        prop_oneof![Just(1u16), Just(16), 1024..32_768u16],
        any::<u32>(),
        prop::collection::vec(any::<u8>(), 0..40),
    )
        .prop_map(|(owner, rtype, ttl, rdata)| {
            let rdata = match rtype {
                1 => vec![192, 0, 2, rdata.len() as u8],
                16 => [&[rdata.len() as u8], &*rdata].concat(),
                _ => rdata,
            };
            Record::new(owner, Rtype(rtype), ttl, rdata)
        })
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Query::parse(&bytes);
        let mut error = Vec::new();
        write_error(&bytes, Rcode::NOTAUTH, &mut error);
        prop_assert!(Response::read(&error).is_ok());
        if let Ok(received) = Response::read(&bytes) {
            for record in received.response.records() {
                let _ = received.response.record(&record);
            }
            let _ = reply(&received.response, &asker(512, true), Ttls::Aged(5));
        }
    }

    #[test]
    fn a_query_with_any_octets_changed_is_answered_with_little(
        changes in prop::collection::vec((0usize..200, any::<u8>()), 0..4),
    ) {
        let mut query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x02\x03www\x07example\0\0\x01\0\x01".to_vec();
        query.extend(b"\0\0\x29\x04\xd0\0\0\x80\0\0\x0c\0\x0a\0\x08abcdefgh");
        query.extend(b"\x01k\0\0\xfa\0\xff\0\0\0\0\0\x16\x01h\0\0\0\0\0\0\x01\x01\x2c\0\x03mac\x12\x34\0\0\0\0");
        if changes.is_empty() {
            prop_assert_eq!(Query::parse(&query).err(), Some(crate::wire::Reject::Reply(Rcode::NOTAUTH)));
        }
        for (at, value) in changes {
            if let Some(octet) = query.get_mut(at) {
                *octet = value;
            }
        }
        let _ = Query::parse(&query);
        for rcode in [Rcode::FORMERR, Rcode::NOTIMP, Rcode::NOTAUTH] {
            let mut error = Vec::new();
            write_error(&query, rcode, &mut error);
            prop_assert!(Response::read(&error).is_ok());
            prop_assert!(error.len() <= query.len(), "{} octets for {}", error.len(), query.len());
        }
    }

    #[test]
    fn a_message_with_any_octets_changed_is_read_without_panic(
        changes in prop::collection::vec((0usize..200, any::<u8>()), 1..8),
        limit in 12usize..300,
    ) {
        let mut message = sample().encode(&question("www.example", Rtype::MX)).message().to_vec();
        for (at, value) in changes {
            if let Some(octet) = message.get_mut(at) {
                *octet = value;
            }
        }
        if let Ok(mut received) = Response::read(&message) {
            received.response.set_letters(&name("www.example"));
            received.response.map_ttls(|record| record.ttl / 2);
            let _ = received.response.soa();
            for record in received.response.records() {
                let _ = received.response.record(&record);
            }
            let _ = reply(&received.response, &asker(limit, true), Ttls::Fixed(30));
        }
    }

    #[test]
    fn what_we_encode_we_read_back(
        qname in any_name(),
        records in prop::collection::vec(any_record(), 0..20),
    ) {
        let question = Question { qname, qtype: Rtype::ANY, qclass: Class::IN };
        let answer = Answer { answer: records.clone(), ..Answer::default() };
        let response = Response::read(answer.encode(&question).message()).unwrap().response;
        let read: Vec<Record> = response.records().map(|r| response.record(&r).unwrap()).collect();
        prop_assert_eq!(read, records);
    }

    #[test]
    fn names_are_compressed_to_the_least_and_read_back(
        qname in related_name(),
        records in prop::collection::vec(related_record(), 0..12),
        filling in prop_oneof![Just(None), (15_000usize..16_500).prop_map(Some)],
        at in 0usize..12,
    ) {
        let question = Question { qname, qtype: Rtype::ANY, qclass: Class::IN };
        let mut records = records;
        if let Some(filling) = filling {
            // So that names lie before, across and behind the end of what can be pointed at.
            records.insert(at.min(records.len()), Record::new(Name::root(), Rtype(65_280), 60, vec![7; filling]));
        }
        let response = Answer { answer: records.clone(), ..Answer::default() }.encode(&question);
        prop_assert_eq!(response.message().len(), shortest(&question, &records));
        let response = Response::read(response.message()).unwrap().response;
        let lower = |record: Record| (record.owner.clone(), record.rtype, record.rdata.to_ascii_lowercase());
        let read: Vec<_> = response.records().map(|r| lower(response.record(&r).unwrap())).collect();
        prop_assert_eq!(read, records.into_iter().map(lower).collect::<Vec<_>>());
    }

    #[test]
    fn a_datagram_never_exceeds_its_limit(
        records in prop::collection::vec(any_record(), 0..40),
        udp_size in any::<u16>(),
    ) {
        let answer = Answer { answer: records, ..Answer::default() };
        let response = answer.encode(&question("www.example", Rtype::TXT));
        let edns = Some(ClientEdns { udp_size, version: 0, dnssec_ok: false });
        let limit_bytes = ReplySize::Datagram { ceiling_bytes: 1232 }.limit_bytes(edns);
        let asker = Asker { edns, limit_bytes, ..asker(0, true) };
        prop_assert!(reply(&response, &asker, Ttls::Aged(1)).len() <= limit_bytes);
    }
}
