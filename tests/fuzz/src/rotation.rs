//! Answers whose records take turns.

use rand::{SeedableRng, rngs::StdRng};
use watershed::wire::{Answer, Class, Name, Question, Record, Rtype, Shape, Ttls, flag, write_reply};

use super::{
    messages::check_reply,
    octets::{Octets, name},
};

/// Whatever takes turns, a reply holds records of the answer, each at most once, and no more than it may.
pub(crate) fn rotation(octets: &[u8]) {
    let mut octets = Octets(octets);
    let (asker, seed) = (octets.asker(), octets.byte());
    let domain = name("service.consul");
    let question = Question { qname: octets.name(&domain), qtype: Rtype::SRV, qclass: Class::IN };
    let fixed: Vec<Record> = (0..octets.byte() % 3)
        .map(|_| Record::new(octets.name(&domain), Rtype::CNAME, 60, octets.name(&domain).wire()))
        .collect();
    let (mut rotating, mut additional, mut glue) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..octets.byte() % 100 {
        let target = octets.name(&domain);
        let record = match octets.byte() % 4 {
            0 => Record::new(question.qname.clone(), Rtype::A, 60, [192, 0, 2, number]),
            1 => Record::new(question.qname.clone(), Rtype::TXT, 60, text(octets.take(200))),
            _ => Record::new(question.qname.clone(), Rtype::SRV, 60, srv(number, &target)),
        };
        rotating.push(record);
        glue.push(None);
        if octets.bit() {
            let place = octets.byte() % 100;
            glue.pop();
            glue.push(Some(usize::from(place).min(additional.len())));
            additional.push(Record::new(target, Rtype::A, 60, [192, 0, 2, number]));
        }
    }
    let limit = |word: u16| (word & 1 == 1).then_some(word >> 1);
    let shape = Shape {
        rotating: fixed.len()..fixed.len() + rotating.len(),
        glue,
        most: limit(octets.word()),
        most_small: limit(octets.word()),
        admits_cuts: octets.bit(),
    };
    let answer = Answer { answer: [fixed, rotating].concat(), additional, ..Answer::default() };
    let Some(response) = answer.encode_rotating(&question, &shape) else { return };

    let mut out = Vec::new();
    let mut rng = StdRng::seed_from_u64(seed.into());
    let asked = response.question_bytes();
    write_reply(response.view(), &asker, asked, Ttls::Aged(0), &mut rng, &mut out);
    let replied = check_reply(&out, &asker, asked);
    let given = replied.to_answer().expect("records of ours can be read");
    assert!(given.authority.is_empty());
    each_is_of(&given.answer, &answer.answer);
    each_is_of(&given.additional, &answer.additional);
    let rotating = given.answer.len().saturating_sub(shape.rotating.start);
    for (limit, is_its) in [(shape.most, true), (shape.most_small, asker.limit_bytes <= 512)] {
        assert!(!is_its || limit.is_none_or(|limit| rotating <= limit.into()), "{rotating} of {limit:?}");
    }
    let wanted = shape.rotating.len().min(shape.most.map_or(usize::MAX, usize::from));
    if shape.admits_cuts && rotating < wanted && !replied.has_flag(flag::TC) {
        panic!("{rotating} of {wanted} records, and nothing is said of the others");
    }
    // Records with names of their own are found by them alone.
    if rotating == shape.rotating.len() && given.answer.len() == answer.answer.len() {
        each_is_of(&answer.answer, &given.answer);
    }
}

/// Each of these records is one of those, and none is there more often than there.
fn each_is_of(given: &[Record], all: &[Record]) {
    let mut left: Vec<&Record> = all.iter().collect();
    for record in given {
        let is_it = |known: &&Record| {
            (&known.owner, known.rtype, known.ttl) == (&record.owner, record.rtype, record.ttl)
                && known.rdata.eq_ignore_ascii_case(&record.rdata)
        };
        let place = left.iter().position(is_it).unwrap_or_else(|| panic!("{record:?} is none of {all:?}"));
        left.swap_remove(place);
    }
}

fn srv(port: u8, target: &Name) -> Vec<u8> {
    [&[0, 1, 0, 1, 0, port][..], target.wire()].concat()
}

fn text(octets: &[u8]) -> Vec<u8> {
    [&[octets.len() as u8], octets].concat()
}
