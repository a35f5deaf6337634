//! Local data: master files and hosts files.

use std::path::Path;

use watershed::{
    wire::{Answer, Class, Name, Question, Response, Rtype, flag},
    zone::{Client, Hosts, Overlay, Overlays, Ruling, Zone},
};

use super::octets::name;

/// A master file is refused with all its faults, or what it says of its names can be sent and read.
pub(crate) fn zone(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    // What other files hold is no part of the input.
    if text.to_ascii_uppercase().contains("$INCLUDE") {
        return;
    }
    let (file, apex) = (Path::new("fuzz.zone"), name("example"));
    let zone = Zone::parse(file, text, &apex);
    let overlay = Overlay::parse(file, text, &Name::root());
    for faults in [zone.as_ref().err(), overlay.as_ref().err()].into_iter().flatten() {
        assert!(!faults.is_empty());
        assert!(faults.iter().all(|fault| fault.to_string().starts_with("fuzz.zone")), "{faults:?}");
    }
    if let Ok(zone) = zone {
        for question in questions(text, &apex).filter(|question| question.qname.is_at_or_below(&apex)) {
            can_be_sent(&question, &zone.answer(&question));
        }
    }
    if let Ok(overlay) = overlay {
        rule(&Overlays::new(vec![overlay.into()], Vec::new()), text);
    }
}

/// A hosts file says of each name only what stands beside it, and passes over what it cannot read.
pub(crate) fn hosts(octets: &[u8]) {
    let hosts = Hosts::parse(Path::new("hosts"), octets);
    assert!(hosts.warnings().iter().all(|warning| warning.to_string().starts_with("hosts:")));
    let text = String::from_utf8_lossy(octets);
    for question in questions(&text, &Name::root()) {
        for client in [Client::Loopback, Client::Remote] {
            let Some(answer) = hosts.answer(&question, client) else { continue };
            can_be_sent(&question, &answer);
            for record in &answer.answer {
                assert_eq!((&record.owner, record.rtype), (&question.qname, question.qtype));
                let is_loopback = record.rtype == Rtype::A && record.rdata[0] == 127;
                assert!(client == Client::Loopback || !is_loopback, "a loopback address for others");
            }
        }
    }
    rule(&Overlays::new(Vec::new(), vec![hosts.into()]), &text);
}

fn rule(overlays: &Overlays, text: &str) {
    for question in questions(text, &Name::root()) {
        if let Some(Ruling::Answer { answer, .. }) = overlays.answer(&question, Client::Remote) {
            can_be_sent(&question, &answer);
        }
    }
}

/// Questions for what a text speaks of: its words as names, and names below and above them.
fn questions(text: &str, origin: &Name) -> impl Iterator<Item = Question> {
    let words = text.split_ascii_whitespace().take(40).filter_map(|word| word.parse::<Name>().ok());
    let relative = words.flat_map(|name| {
        let below = name
            .labels()
            .collect::<Vec<_>>()
            .iter()
            .rev()
            .try_fold(origin.clone(), |name, label| name.child(label).ok());
        [below.clone(), below.and_then(|name| name.child(b"x").ok()), Some(name)]
    });
    let names: Vec<Name> = relative.flatten().map(|name| name.to_lower()).collect();
    names.into_iter().flat_map(|qname| {
        [Rtype::A, Rtype::TXT, Rtype::PTR, Rtype::CNAME].map(|qtype| Question {
            qname: qname.clone(),
            qtype,
            qclass: Class::IN,
        })
    })
}

/// An answer can be encoded, and read as it was meant.
pub(crate) fn can_be_sent(question: &Question, answer: &Answer) {
    let response = answer.encode(question);
    let read = Response::read(response.message()).expect("we write responses that we read").response;
    assert_eq!((read.rcode(), read.question_bytes()), (answer.rcode, response.question_bytes()));
    if read.has_flag(flag::TC) {
        return;
    }
    let back = read.to_answer().expect("and their records");
    for (given, read) in
        [(&answer.answer, &back.answer), (&answer.authority, &back.authority), (&answer.additional, &back.additional)]
    {
        assert_eq!(given.len(), read.len());
        for (given, read) in given.iter().zip(read) {
            assert_eq!((&given.owner, given.rtype, given.ttl), (&read.owner, read.rtype, read.ttl));
            assert!(given.rdata.eq_ignore_ascii_case(&read.rdata), "{given:?} {read:?}");
            assert!(given.ttl <= i32::MAX as u32, "RFC 2181 §8: {given:?}");
        }
    }
}
