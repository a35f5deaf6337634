//! What the catalog says, made into one reply: the order of the instances, and how many of them.
//!
//! Consul shuffles the instances for each answer; here each comes first equally often. Where not all fit, or fewer are
//! wanted, the first of them are given with the addresses of their targets, and TC says so if it is to.

use crate::{
    catalog::{Shape, Snapshot},
    clock::{Moment, unix_seconds},
    wire::{Answer, Asker, HEADER_BYTES, MAX_MESSAGE_BYTES, Question, ReplySize},
};

use super::Client;

/// The reply that the catalog is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Serving {
    random: u64,
    /// For SOA records, where Consul has the time.
    serial: u32,
    room_bytes: usize,
    /// A datagram to a client that takes no more than every client must.
    is_small: bool,
}

/// What the catalog says in it.
#[derive(Debug)]
pub(super) struct Served {
    pub answer: Answer,
    /// Instances are left out, and the reply is to say so.
    pub is_cut: bool,
}

impl Serving {
    /// A reply to this client alone.
    pub fn to(asker: &Asker, client: Client, random: u64) -> Self {
        let opt_bytes = if asker.edns.is_some() { OPT_BYTES } else { 0 };
        Self {
            room_bytes: asker.limit_bytes.saturating_sub(opt_bytes),
            is_small: client.size != ReplySize::Stream && asker.limit_bytes <= SMALL_BYTES,
            ..Self::to_all(random)
        }
    }

    /// A reply to several who wait, each of whom takes what fits.
    pub fn to_all(random: u64) -> Self {
        Self { random, serial: unix_seconds() as u32, room_bytes: MAX_MESSAGE_BYTES, is_small: false }
    }

    /// What the catalog says; `None` if that is for others to say.
    pub fn serve(&self, catalog: &Snapshot, question: &Question) -> Option<Served> {
        let said = catalog.answer(question, self.serial, self.random as u32, Moment::now());
        let shape = said.shape.clone();
        said.answer().map(|answer| self.cast(answer, &shape, question))
    }

    fn cast(&self, answer: Answer, shape: &Shape, question: &Question) -> Served {
        let places = order(shape.rotating.len(), self.random);
        let limits = [shape.most, shape.most_small.filter(|_| self.is_small)];
        let most = limits.into_iter().flatten().map(usize::from).fold(places.len(), usize::min);
        let fits = |answer: &Answer| self.fits(answer, question);
        let whole = pick(&answer, shape, &places, most, Beside::Everything);
        if fits(&whole) || most == 0 {
            return Served { answer: whole, is_cut: shape.admits_cuts && most < places.len() };
        }
        // The more there are, the longer it is: the most that fit lie between none and those that may be there.
        let (mut fitting, mut too_many) = (0, most + 1);
        while fitting + 1 < too_many {
            let count = (fitting + too_many) / 2;
            if fits(&pick(&answer, shape, &places, count, Beside::Targets)) {
                fitting = count
            } else {
                too_many = count
            }
        }
        let answer = pick(&answer, shape, &places, fitting.max(1), Beside::Targets);
        Served { answer, is_cut: shape.admits_cuts && fitting < places.len() }
    }

    fn fits(&self, answer: &Answer, question: &Question) -> bool {
        let head_bytes = HEADER_BYTES + question.qname.wire().len() + 4;
        let sections = [&answer.answer, &answer.authority, &answer.additional];
        let longest: usize = sections.into_iter().flatten().map(|r| r.owner.wire().len() + 10 + r.rdata.len()).sum();
        head_bytes + longest <= self.room_bytes
            || head_bytes + answer.encode(question).view().records.len() <= self.room_bytes
    }
}

/// For those that only look whether there is an answer.
impl Default for Serving {
    fn default() -> Self {
        Self { random: 0, serial: 0, room_bytes: MAX_MESSAGE_BYTES, is_small: false }
    }
}

/// What stands in the additional section.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beside {
    Everything,
    /// The addresses of the targets that are given.
    Targets,
}

/// The answer with the first `count` of its rotating records in this order.
fn pick(answer: &Answer, shape: &Shape, places: &[usize], count: usize, beside: Beside) -> Answer {
    let given = places.get(..count).unwrap_or(places);
    let record = |place: &usize| answer.answer.get(shape.rotating.start + place).cloned();
    let (before, after) =
        (answer.answer.iter().take(shape.rotating.start), answer.answer.iter().skip(shape.rotating.end));
    let records = before.cloned().chain(given.iter().filter_map(record)).chain(after.cloned()).collect();
    let additional = if beside == Beside::Everything && given.len() == places.len() {
        answer.additional.clone()
    } else {
        let mut targets: Vec<usize> = given.iter().filter_map(|&place| *shape.glue.get(place)?).collect();
        targets.sort_unstable();
        targets.dedup();
        targets.into_iter().filter_map(|place| answer.additional.get(place).cloned()).collect()
    };
    Answer { answer: records, additional, authority: answer.authority.clone(), ..*answer }
}

/// The places below `count`, from a random one on in random steps; each is first equally often.
fn order(count: usize, random: u64) -> Vec<usize> {
    let Some(most) = (count as u64).checked_sub(1) else { return Vec::new() };
    let (start, random) = (random % (most + 1), random / (most + 1));
    let mut step = 1 + random.checked_rem(most).unwrap_or(0);
    // A step that shares no divisor with their number passes all of them; 1 is one.
    while gcd(step, most + 1) > 1 {
        step -= 1;
    }
    (0..=most).map(|turn| ((start + turn * step) % (most + 1)) as usize).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// An OPT record without options.
const OPT_BYTES: usize = 11;
/// What every client takes by UDP (RFC 1035 §4.2.1).
const SMALL_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Class, Name, Record, Rtype};

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn question() -> Question {
        Question { qname: name("web.service.consul"), qtype: Rtype::SRV, qclass: Class::IN }
    }

    /// An answer of so many instances with their addresses and a piece of meta.
    fn instances(count: u8) -> (Answer, Shape) {
        let target = |i: u8| name(&format!("node{i}.node.dc1.consul"));
        let srv = |i: u8| {
            let rdata = [&[0, 1, 0, 1, 0, 80][..], target(i).wire()].concat();
            Record::new(question().qname, Rtype::SRV, 0, rdata)
        };
        let mut additional: Vec<_> = (0..count).map(|i| Record::new(target(i), Rtype::A, 0, [192, 0, 2, i])).collect();
        additional.push(Record::new(target(0), Rtype::TXT, 0, *b"\x04meta"));
        let answer = Answer { answer: (0..count).map(srv).collect(), additional, ..Answer::default() };
        let rotating = 0..count.into();
        let glue = rotating.clone().map(Some).collect();
        (answer, Shape { rotating, glue, admits_cuts: true, ..Shape::default() })
    }

    fn serving(room_bytes: usize, random: u64) -> Serving {
        Serving { random, room_bytes, is_small: room_bytes <= SMALL_BYTES, ..Serving::default() }
    }

    #[test]
    fn each_is_first_equally_often_and_none_is_there_twice() {
        for count in [1usize, 2, 3, 10, 60] {
            let mut first = vec![0; count];
            for random in 0..(count * 100) as u64 {
                let mut places = order(count, random);
                first[places[0]] += 1;
                places.sort_unstable();
                assert_eq!(places, (0..count).collect::<Vec<_>>(), "{random}");
            }
            assert_eq!(first, vec![100; count]);
        }
        assert!(order(0, 7).is_empty());
    }

    #[test]
    fn what_fits_is_given_whole() {
        let (answer, shape) = instances(3);
        let served = serving(1232, 0).cast(answer.clone(), &shape, &question());
        assert_eq!((served.answer, served.is_cut), (answer, false));
    }

    #[test]
    fn meta_gives_way_before_instances_do() {
        let (answer, shape) = instances(3);
        let length = |answer: &Answer| HEADER_BYTES + 24 + answer.encode(&question()).view().records.len();
        let served = serving(length(&answer) - 1, 0).cast(answer.clone(), &shape, &question());
        assert_eq!((served.answer.answer.len(), served.answer.additional.len(), served.is_cut), (3, 3, false));
    }

    #[test]
    fn of_instances_that_do_not_fit_as_many_as_do_are_given_with_their_addresses() {
        let (answer, shape) = instances(60);
        let served = serving(512, 41).cast(answer.clone(), &shape, &question());
        let Answer { answer: given, additional, .. } = &served.answer;
        assert!(served.is_cut && given.len() == additional.len() && (4..10).contains(&given.len()), "{}", given.len());
        for (srv, address) in given.iter().map(|r| &r.rdata[6..]).zip(additional) {
            assert!(additional.iter().any(|address| address.owner.wire() == srv), "{address:?}");
        }
        assert!(serving(512, 41).fits(&served.answer, &question()));
        let silent = Shape { admits_cuts: false, ..shape };
        assert!(!serving(512, 41).cast(answer, &silent, &question()).is_cut);
    }

    #[test]
    fn limits_hold_whatever_the_room() {
        let (answer, shape) = instances(10);
        let shape = Shape { most: Some(5), most_small: Some(3), ..shape };
        for (room_bytes, expected) in [(512, 3), (1232, 5), (65_535, 5)] {
            let served = serving(room_bytes, 3).cast(answer.clone(), &shape, &question());
            assert_eq!((served.answer.answer.len(), served.answer.additional.len()), (expected, expected));
            assert!(served.is_cut);
        }
    }

    #[test]
    fn what_stands_before_the_instances_stays_there() {
        let (mut answer, mut shape) = instances(3);
        let alias = Record::new(name("a.consul"), Rtype::CNAME, 0, question().qname.wire());
        answer.answer.insert(0, alias.clone());
        shape.rotating = 1..4;
        let served = serving(1232, 5).cast(answer, &shape, &question());
        assert_eq!((served.answer.answer.len(), &served.answer.answer[0]), (4, &alias));
    }
}
