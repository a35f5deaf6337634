//! DNS messages: clients' queries, upstreams' responses, the replies made of them, and their frames on a stream.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};
use watershed::{
    cache::{self, Key, Life, Policy, Variant},
    wire::{
        Asker, ExtendedError, HEADER_BYTES, MAX_NAME_BYTES, Name, Query, Rcode, Record, Reject, ReplySize, Response,
        Section, Ttls, UpstreamEdns, UpstreamQuery, View, flag, read_frame, write_error, write_frame, write_reply,
    },
};

use super::octets::{DATAGRAM, Octets};

/// A query is read whatever is behind it, and a query of ours that asks the same is read as the same.
pub(crate) fn query(octets: &[u8]) {
    let mut out = Vec::new();
    let query = match Query::parse(octets) {
        Ok(query) => query,
        Err(Reject::Drop) => {
            assert!(octets.len() < HEADER_BYTES || octets[2] & 0x80 != 0, "a query is dropped");
            return;
        }
        Err(Reject::Reply(rcode)) => {
            write_error(octets, rcode, &mut out);
            assert_eq!((&out[..2], out[2] & 0x80), (&octets[..2], 0x80));
            assert!((HEADER_BYTES..=octets.len()).contains(&out.len()), "a refusal is longer than what it refuses");
            return;
        }
    };
    let question = query.question();
    let longer = [octets, &[0]].concat();
    let longer = Query::parse(&longer).expect("octets behind a query are passed over");
    assert_eq!((longer.question(), longer.edns()), (question.clone(), query.edns()));

    assert!(query.qname().eq_ignore_ascii_case(question.qname.wire()) && query.qname().len() <= MAX_NAME_BYTES);
    assert_eq!(question.qname.to_string().parse::<Name>().as_ref(), Ok(&question.qname), "presentation form");
    let variant =
        Variant { dnssec_ok: query.dnssec_ok(), checking_disabled: query.checking_disabled(), view: octets[0] };
    let key = Key::new(query.qname(), query.qtype(), query.qclass(), variant);
    assert_eq!((key.question(), key.variant()), (question.clone(), variant));

    let edns = query.edns().map(|edns| UpstreamEdns {
        udp_size: edns.udp_size,
        dnssec_ok: edns.dnssec_ok,
        cookie: b"12345678",
    });
    let asked = UpstreamQuery {
        id: 7,
        qname: &question.qname,
        qtype: question.qtype,
        qclass: question.qclass,
        checking_disabled: query.checking_disabled(),
        edns,
    };
    asked.write(&mut out);
    let again = Query::parse(&out).expect("we write queries that we read");
    assert_eq!((again.question(), again.checking_disabled()), (question, query.checking_disabled()));
    assert_eq!(again.edns().map(|e| (e.udp_size, e.dnssec_ok)), query.edns().map(|e| (e.udp_size, e.dnssec_ok)));

    for size in [DATAGRAM, ReplySize::Datagram { ceiling_bytes: 0 }, ReplySize::Stream] {
        let asker = query.asker(size);
        assert!((512..=65_535).contains(&asker.limit_bytes), "{size:?} {}", asker.limit_bytes);
        let mut out = Vec::new();
        let view = View::bare(Rcode::REFUSED, STALE);
        write_reply(view, &asker, query.question_bytes(), Ttls::Aged(0), &mut StdRng::seed_from_u64(1), &mut out);
        check_reply(&out, &asker, query.question_bytes());
    }
}

/// A response is taken apart into records that lie in it, and what is made of them again is read as the same.
pub(crate) fn response(octets: &[u8]) {
    let Ok(received) = Response::read(octets) else { return };
    let response = received.response;
    let mut end = HEADER_BYTES + response.question_bytes().len();
    for record in response.records() {
        assert_eq!(record.owner_at, end, "records stand side by side");
        assert!(record.owner_at < record.ttl_at && record.ttl_at < record.rdata.start, "{record:?}");
        assert!(record.rdata.end <= record.end && record.end <= response.message().len(), "{record:?}");
        response.owner(&record).expect("owners have been looked at");
        end = record.end;
    }
    assert_eq!(end, response.message().len(), "nothing stands behind the last record");
    assert_eq!(response.records().count(), response.counts().map(usize::from).iter().sum::<usize>());

    let again = Response::read(response.message()).expect("what is kept can be read");
    assert!(!again.has_edns, "the OPT record is gone");
    assert_eq!((again.response.message(), again.response.counts()), (response.message(), response.counts()));

    changed(response.clone());
    if let Ok(answer) = response.to_answer()
        && received.has_question
    {
        let query = octets_of_query(response.question_bytes());
        let question = Query::parse(&query).expect("the question of a response is one").question();
        let encoded = answer.encode(&question);
        let read = Response::read(encoded.message()).expect("we write responses that we read").response;
        let back = read.to_answer().expect("and their records");
        let is_whole = !read.has_flag(flag::TC);
        for (sections, name) in [
            ([&answer.answer, &back.answer], "answer"),
            ([&answer.authority, &back.authority], "authority"),
            ([&answer.additional, &back.additional], "additional"),
        ] {
            assert_same(sections, name, is_whole);
        }
        assert_eq!(back.authoritative, answer.authoritative);
    }
}

/// What is done to responses before they are kept.
fn changed(mut response: Response) {
    let policy = Policy {
        min_ttl: Duration::ZERO,
        max_ttl: Duration::from_secs(86_400),
        max_negative_ttl: Duration::from_secs(3600),
        serve_stale: Duration::from_secs(10),
    };
    let life = cache::lifetime(&response, &policy);
    if let Some(Life::Timed { fresh, stale }) = life {
        assert!(fresh <= policy.max_ttl && !fresh.is_zero() && stale <= policy.serve_stale, "{life:?}");
    }
    let (length, counts) = (response.message().len(), response.counts());
    cache::clamp(&mut response, &policy);
    assert_eq!(cache::lifetime(&response, &policy), life, "bounds that are obeyed change nothing");
    let query = octets_of_query(response.question_bytes());
    if let Ok(query) = Query::parse(&query) {
        response.set_letters(&query.question().qname);
    }
    response.soa();
    response.set_flag(flag::AD, false);
    assert_eq!((response.message().len(), response.counts()), (length, counts));
    Response::read(response.message()).expect("what was changed can be read");
    let said = response.to_answer().expect("names in RDATA have been looked at");
    response.expand_names().expect("and so can be written out");
    let expanded = Response::read(response.message()).expect("what was expanded can be read").response;
    if !expanded.has_flag(flag::TC) {
        let expanded = expanded.to_answer().expect("with the same names");
        let sections = [(&expanded.answer, &said.answer), (&expanded.authority, &said.authority)];
        for (expanded, said) in sections.into_iter().chain([(&expanded.additional, &said.additional)]) {
            assert_eq!(expanded, said);
        }
    }
}

/// A reply is no longer than its client takes, answers the question in its letters, and holds what the response does.
pub(crate) fn reply(octets: &[u8]) {
    let mut octets = Octets(octets);
    let asker = octets.asker();
    let ttls = if octets.bit() { Ttls::Fixed(30) } else { Ttls::Aged(octets.word().into()) };
    let Ok(received) = Response::read(octets.0) else { return };
    if !received.has_question {
        return;
    }
    let mut response = received.response;
    response.add_error(&ExtendedError { code: 22, text: "tried".into() });
    let question = response.question_bytes().to_ascii_uppercase();
    let mut out = Vec::new();
    write_reply(response.view(), &asker, &question, ttls, &mut StdRng::seed_from_u64(1), &mut out);
    let replied = check_reply(&out, &asker, &question);
    assert_eq!(replied.has_flag(flag::AD), response.has_flag(flag::AD) && asker.wants_ad);
    let kept: Vec<_> = replied.records().collect();
    for section in [Section::Answer, Section::Authority, Section::Additional] {
        let of_section = |all: &Response| all.records().filter(|record| record.section == section).count();
        let (left, all) = (of_section(&replied), of_section(&response));
        let may_be_less = section == Section::Additional || replied.has_flag(flag::TC);
        assert!(left == all || left < all && may_be_less, "{section:?}: {left} of {all}");
    }
    // A record is in the reply as it was in the response, but for its TTL; those that are not are the last.
    let mut sources = response.records();
    for record in kept {
        let source = sources.find(|source| source.section == record.section).expect("a record of the response");
        let ttl = match ttls {
            Ttls::Fixed(ttl) => ttl,
            Ttls::Aged(age) => source.ttl.saturating_sub(age),
        };
        assert_eq!((record.rtype, record.class, record.ttl), (source.rtype, source.class, ttl));
        assert_eq!(replied.message()[record.rdata], response.message()[source.rdata]);
    }
}

/// Reads a reply as its client does.
pub(crate) fn check_reply(reply: &[u8], asker: &Asker, question: &[u8]) -> Response {
    assert!(reply.len() <= asker.limit_bytes, "{} octets for one who takes {}", reply.len(), asker.limit_bytes);
    let received = Response::read(reply).expect("a reply can be read");
    assert_eq!((received.id, received.has_edns), (asker.id, asker.edns.is_some()));
    let response = received.response;
    assert_eq!(response.question_bytes(), question);
    assert_eq!(response.has_flag(flag::RD), asker.recursion_desired);
    assert_eq!(response.has_flag(flag::CD), asker.checking_disabled);
    assert!(response.has_flag(flag::RA) && (asker.wants_ad || !response.has_flag(flag::AD)));
    response
}

/// Frames are read as they were written, in whatever pieces they come.
pub(crate) fn frames(octets: &[u8]) {
    let mut octets = Octets(octets);
    let piece = usize::from(octets.byte()) + 1;
    let stream = octets.0;
    let (mut at, mut written, mut messages) = (0, Vec::new(), Vec::new());
    while let Some((message, end)) = read_frame(stream, at) {
        assert!(end > at && end <= stream.len() && message.len() + 2 == end - at);
        write_frame(message, &mut written);
        messages.push(message.to_vec());
        at = end;
    }
    assert_eq!(written, stream[..at]);
    assert!(read_frame(stream, stream.len()).is_none() && read_frame(stream, stream.len() + 7).is_none());

    let (mut buffer, mut in_pieces) = (Vec::new(), Vec::new());
    for piece in stream.chunks(piece) {
        buffer.extend_from_slice(piece);
        let mut at = 0;
        while let Some((message, end)) = read_frame(&buffer, at) {
            in_pieces.push(message.to_vec());
            at = end;
        }
        buffer.drain(..at);
    }
    assert_eq!(in_pieces, messages);
}

/// Records as they were given and as they were read, but for letters, which compression does not keep. Where not all found
/// room, the first did.
fn assert_same([given, read]: [&Vec<Record>; 2], section: &str, is_whole: bool) {
    assert!(given.len() == read.len() || read.len() < given.len() && !is_whole, "{section}");
    for (given, read) in given.iter().zip(read) {
        assert_eq!(
            (&given.owner, given.rtype, given.class, given.ttl),
            (&read.owner, read.rtype, read.class, read.ttl)
        );
        assert!(given.rdata.eq_ignore_ascii_case(&read.rdata), "{given:?} {read:?}");
    }
}

/// A query with this question.
fn octets_of_query(question: &[u8]) -> Vec<u8> {
    [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], question].concat()
}

/// An extended error, as it is kept.
const STALE: &[u8] = &[0, 15, 0, 2, 0, 3];
