//! What an upstream's response may say, and in which order: something of the name that was asked for.
//!
//! Nothing that a response holds is used here for another name. But a resolver that stands behind this one takes it for
//! one source, and may believe what it says of any name, though the rules of this one keep the sources apart. So a record
//! is relayed only if it is on the way from the question to its answer: in the answer section those of the name and of
//! those that its CNAME records lead to, in the authority section those of names above these, and proofs that a name does
//! not exist, in the additional section those of names for which the same rule speaks.
//!
//! A client such as glibc reads the answer section once from its beginning. So a chain is put in order, as BIND and
//! Unbound put it: each DNAME, its CNAME, the next CNAME, then the records that answer; an RRSIG follows what it signs.

use std::collections::HashMap;

use super::chase::{Broken, MOST_LINKS};
use crate::wire::{Name, Question, Record, RecordView, Response, Rtype, Section, read_u16};

/// Leaves out what is beside the way, and puts the rest in order. `is_ours` tells whether who has said it speaks for a name.
/// It fails where the way is too long, or something is to be changed and a name of the rest cannot be read: then nothing
/// of it is to be relayed.
pub(super) fn confine(
    response: &mut Response,
    asked: &Question,
    is_ours: impl Fn(&Name) -> bool,
) -> Result<(), Broken> {
    let (mut is_answer_plain, mut is_rest_plain, mut is_behind_signature) = (true, true, false);
    for record in response.records() {
        let is_plain = is_plain(response, &record, asked);
        if record.section == Section::Answer {
            let is_signature = record.rtype == Rtype::RRSIG;
            is_answer_plain &= is_plain && (is_signature || !is_behind_signature);
            is_behind_signature = is_signature;
        } else {
            is_rest_plain &= is_plain;
        }
    }
    if is_answer_plain && is_rest_plain {
        return Ok(());
    }
    let way = Way::new(response, asked, &is_ours)?;
    let serves_the_way = |owner: &Name| way.names.iter().any(|name| name.is_at_or_below(owner));
    let belongs = |record: &RecordView| {
        let Ok(owner) = response.owner(record) else { return false };
        match (record.section, record.rtype) {
            // Consul says so who is responsible.
            (Section::Answer, Rtype::DNAME | Rtype::RRSIG | Rtype::SOA | Rtype::NS) => serves_the_way(&owner),
            (Section::Answer, _) => way.names.contains(&owner),
            (Section::Authority, Rtype::NSEC | Rtype::NSEC3 | Rtype::RRSIG) => true,
            (Section::Authority, _) => serves_the_way(&owner),
            (Section::Additional, _) => is_ours(&owner),
        }
    };
    let answer = if is_answer_plain { None } else { way.order(response, belongs)? };
    match answer {
        Some(answer) => {
            let mut sections = [answer, Vec::new(), Vec::new()];
            for record in response.records().filter(|record| record.section != Section::Answer && belongs(record)) {
                sections[record.section as usize].push(response.record(&record)?);
            }
            *response = response.with_records(&sections);
        }
        None => {
            if let Some(confined) = response.retain(belongs)? {
                *response = confined;
            }
        }
    }
    Ok(())
}

/// Whether a record belongs to the question without a doubt, as all records of almost every response do.
fn is_plain(response: &Response, record: &RecordView, asked: &Question) -> bool {
    match record.section {
        Section::Answer => record.rtype != Rtype::CNAME && response.is_owned_by_qname(record),
        Section::Authority => {
            record.rtype == Rtype::SOA && response.owner(record).is_ok_and(|owner| asked.qname.is_at_or_below(&owner))
        }
        Section::Additional => false,
    }
}

/// The way from the question to its answer.
struct Way {
    /// The name asked for, and those that CNAME records lead to from there.
    names: Vec<Name>,
    /// The CNAME records that DNAME records stand for and the response lacks, each with the place of its owner in `names`. A
    /// server has to send them (RFC 6672 §3.1), and not every one does.
    missing: Vec<(usize, Record)>,
}

/// Where a record comes in the answer section.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// The place of its name on the way.
    place: usize,
    part: Part,
    /// The place of its RRset in the response.
    rrset: usize,
    is_signature: bool,
    /// Its own place in the response.
    position: usize,
}

/// What is said of one name comes in this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Dname,
    Cname,
    Data,
}

impl Way {
    /// Where one of the names belongs to others, the answer is cut by whoever follows it; but if all that is said of the name
    /// itself was asked for, nobody does.
    fn new(response: &Response, asked: &Question, is_ours: impl Fn(&Name) -> bool) -> Result<Self, Broken> {
        let is_followed = !matches!(asked.qtype, Rtype::CNAME | Rtype::ANY | Rtype::RRSIG);
        let of_type = |rtype: Rtype| {
            let answers = response.records().filter(move |r| r.section == Section::Answer && r.rtype == rtype);
            answers.filter_map(|r| Some((response.owner(&r).ok()?, response.name_at(r.rdata.start).ok()?, r.ttl)))
        };
        let aliases: Vec<(Name, Name, u32)> = of_type(Rtype::CNAME).collect();
        let dnames: Vec<(Name, Name, u32)> = of_type(Rtype::DNAME).collect();
        let (mut names, mut missing) = (vec![asked.qname.clone()], Vec::new());
        for _ in 0..aliases.len() + dnames.len() {
            let Some(last) = names.last() else { break };
            let target = match aliases.iter().find(|(owner, ..)| owner == last) {
                Some((_, target, _)) => target.clone(),
                None => {
                    let mut replaced =
                        dnames.iter().filter_map(|(from, to, ttl)| Some((last.replace_suffix(from, to)?.ok()?, ttl)));
                    let Some((target, ttl)) = replaced.next() else { break };
                    let cname = Record::new(last.clone(), Rtype::CNAME, *ttl, target.wire());
                    missing.push((names.len() - 1, cname));
                    target
                }
            };
            if !is_followed && !is_ours(&target) {
                break;
            }
            if names.len() > MOST_LINKS {
                return Err(Broken::Links);
            }
            names.push(target);
        }
        Ok(Self { names, missing })
    }

    /// The records of the answer section that belong there in their order; `None` if they stand in it.
    fn order(&self, response: &Response, belongs: impl Fn(&RecordView) -> bool) -> Result<Option<Vec<Record>>, Broken> {
        let mut places = HashMap::new();
        for (place, name) in self.names.iter().enumerate() {
            places.entry(name).or_insert(place);
        }
        let mut rrsets = HashMap::new();
        let mut ranked = Vec::new();
        let answers = response.records().filter(|record| record.section == Section::Answer && belongs(record));
        for (position, record) in answers.enumerate() {
            let owner = response.owner(&record)?;
            let is_signature = record.rtype == Rtype::RRSIG;
            let signed = || read_u16(response.message(), record.rdata.start).map(Rtype);
            let rtype = if is_signature { signed().unwrap_or(record.rtype) } else { record.rtype };
            let below = || self.names.iter().position(|name| *name != owner && name.is_at_or_below(&owner));
            let (place, part) = match (places.get(&owner), rtype) {
                (Some(&place), Rtype::CNAME) => (place, Part::Cname),
                (None, Rtype::DNAME) => (below().unwrap_or(self.names.len()), Part::Dname),
                (Some(&place), _) => (place, Part::Data),
                (None, _) => (self.names.len(), Part::Data),
            };
            let rrset = *rrsets.entry((owner, rtype)).or_insert(position);
            ranked.push((Rank { place, part, rrset, is_signature, position }, record));
        }
        if self.missing.is_empty() && ranked.is_sorted_by_key(|(rank, _)| *rank) {
            return Ok(None);
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        let mut records = Vec::with_capacity(ranked.len() + self.missing.len());
        let mut missing = self.missing.iter().peekable();
        for (rank, record) in ranked {
            // Behind its DNAME, and before all else that comes later.
            while let Some((_, cname)) = missing.next_if(|(place, _)| (*place, Part::Cname) < (rank.place, rank.part)) {
                records.push(cname.clone());
            }
            records.push(response.record(&record)?);
        }
        records.extend(missing.map(|(_, cname)| cname.clone()));
        Ok(Some(records))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Answer, Class, Record};

    fn record(line: &str) -> Record {
        let (owner, rtype) = line.split_once(' ').unwrap();
        let (rtype, target) = rtype.split_once(' ').unwrap_or((rtype, "target.example"));
        let rtype = match rtype {
            "A" => return Record::new(owner.parse().unwrap(), Rtype::A, 60, [192, 0, 2, 1]),
            "CNAME" => Rtype::CNAME,
            "DNAME" => Rtype::DNAME,
            "NS" => Rtype::NS,
            "NSEC" => Rtype::NSEC,
            "SOA" => Rtype::SOA,
            other => panic!("{other}"),
        };
        let data = target.parse::<Name>().unwrap().wire().to_vec();
        let data = if rtype == Rtype::SOA { [&data[..], &data, &[0; 20]].concat() } else { data };
        Record::new(owner.parse().unwrap(), rtype, 60, data)
    }

    #[test]
    fn what_is_not_on_the_way_to_the_answer_is_left_out() {
        let asked = Question { qname: "www.site.example".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        for (section, line, stays) in [
            (0, "www.site.example A", true),
            (0, "WWW.site.example A", true),
            (0, "victim.corp.test A", false),
            (0, "ns.site.example A", false),
            (0, "site.example A", false), // above, but an address is of one name
            (0, "site.example DNAME", true),
            (0, "corp.test DNAME", false),
            (0, "site.example SOA", true), // Consul's
            (0, "corp.test NS", false),
            (1, "site.example SOA", true),
            (1, ". SOA", true), // a recursor may serve the root
            (1, "corp.test SOA", false),
            (1, "example NS", true),
            (1, "corp.test NS", false),
            (1, "other.example NS", false),  // a sister has nothing to do with it
            (1, "other.example NSEC", true), // but may prove that there is no such name
            (2, "ns.site.example A", true),
            (2, "victim.corp.test A", false),
        ] {
            // Whatever stands there beside it.
            for others in [&[][..], &["www.site.example CNAME a.example", "a.example CNAME b.example", "b.example A"]] {
                let others: Vec<Record> = others.iter().map(|line| record(line)).collect();
                let mut sections = [others.clone(), Vec::new(), Vec::new()];
                sections[section].push(record(line));
                let [answer, authority, additional] = sections.clone();
                let whole = Answer { answer, authority, additional, ..Answer::default() };
                let mut response = whole.encode(&asked);
                confine(&mut response, &asked, |name| name.is_at_or_below(&"example".parse().unwrap())).unwrap();
                if !stays {
                    sections[section].pop();
                }
                // The CNAME record that a DNAME record stands for is added where it is missing (RFC 6672 section 3.1).
                if stays && line.ends_with(" DNAME") && others.is_empty() {
                    sections[0].push(record("www.site.example CNAME www.target.example"));
                }
                let left = response.to_answer().unwrap();
                // In which order is another matter.
                let sorted = |records: &Vec<Record>| {
                    let mut records: Vec<String> =
                        records.iter().map(|record| format!("{record:?}").to_lowercase()).collect();
                    records.sort();
                    records
                };
                let left = [left.answer, left.authority, left.additional];
                assert_eq!(left.each_ref().map(sorted), sections.each_ref().map(sorted), "{section}: {line}");
            }
        }
    }

    /// Whatever the order in which the records come.
    #[test]
    fn a_chain_is_put_in_order_and_nothing_is_lost() {
        let signed = |line: &str, rtype: Rtype| {
            let mut signature = record(line);
            signature.rtype = Rtype::RRSIG;
            signature.rdata = [&rtype.0.to_be_bytes()[..], &[0; 16], b"\x07example\0", &[1]].concat().into();
            signature
        };
        let chain = vec![
            record("a.x.d.example CNAME b.example"),
            signed("a.x.d.example A", Rtype::CNAME),
            record("b.example CNAME www.e.example"),
            record("e.example DNAME f.example"),
            signed("e.example A", Rtype::DNAME),
            record("www.e.example CNAME www.f.example"),
            record("www.f.example A"),
            record("www.f.example A"),
            signed("www.f.example A", Rtype::A),
        ];
        let asked = Question { qname: "a.x.d.example".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        let mut seed = 1u32;
        for round in 0..200 {
            let mut answer = chain.clone();
            if round > 0 {
                for place in (1..answer.len()).rev() {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    answer.swap(place, seed as usize % (place + 1));
                }
            }
            let came = answer.clone();
            let mut response = Answer { answer, ..Answer::default() }.encode(&asked);
            let before = response.message().to_vec();
            confine(&mut response, &asked, |_| true).unwrap();
            assert_eq!(response.to_answer().unwrap().answer, chain, "{came:#?}");
            assert_eq!(response.message() == before, came == chain, "what is in order is not touched");
        }
    }

    #[test]
    fn a_signature_that_comes_before_its_records_is_put_behind_them() {
        let asked = Question { qname: "a.example".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        let mut signature = record("a.example A");
        signature.rtype = Rtype::RRSIG;
        signature.rdata = [&[0, 1][..], &[0; 16], b"\0", &[1]].concat().into();
        let answer = vec![record("a.example A"), signature, record("a.example A")];
        let mut response = Answer { answer: answer.clone(), ..Answer::default() }.encode(&asked);
        confine(&mut response, &asked, |_| true).unwrap();
        let ordered = [answer[0].clone(), answer[2].clone(), answer[1].clone()];
        assert_eq!(response.to_answer().unwrap().answer, ordered);
    }

    #[test]
    fn a_cname_that_its_dname_stands_for_is_added_where_it_lacks() {
        let asked = Question { qname: "www.d.example".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        let answer = ["e.example A", "x.e.example A", "www.e.example A", "d.example DNAME e.example"];
        let mut response = Answer { answer: answer.map(record).to_vec(), ..Answer::default() }.encode(&asked);
        confine(&mut response, &asked, |_| true).unwrap();
        let whole = ["d.example DNAME e.example", "www.d.example CNAME www.e.example", "www.e.example A"];
        assert_eq!(response.to_answer().unwrap().answer, whole.map(record));
    }

    #[test]
    fn of_names_of_others_nothing_is_said_to_those_who_want_all_of_ours() {
        let answer = ["a.example CNAME b.example", "b.example CNAME victim.test", "victim.test A"].map(record).to_vec();
        for (qtype, left) in [(Rtype::A, 3), (Rtype::ANY, 2), (Rtype::CNAME, 2), (Rtype::RRSIG, 2)] {
            let asked = Question { qname: "a.example".parse().unwrap(), qtype, qclass: Class::IN };
            let mut response = Answer { answer: answer.clone(), ..Answer::default() }.encode(&asked);
            confine(&mut response, &asked, |name| name.is_at_or_below(&"example".parse().unwrap())).unwrap();
            assert_eq!(response.to_answer().unwrap().answer, answer[..left], "{qtype}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_read_lets_nothing_slip_through() {
        let asked = Question { qname: "www.site.example".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        // Its target leads forward, which no name may.
        let unreadable = |owner: &str| Record::new(owner.parse().unwrap(), Rtype::SRV, 60, *b"\0\0\0\0\0\0\xff\xff");
        for (odd, foreign, is_relayed) in [
            ("www.site.example", "victim.corp.test A", false),
            ("victim.corp.test", "victim.corp.test A", true), // it is left out itself
            ("www.site.example", "www.site.example A", true), // nothing has to be left out
        ] {
            let records = vec![record("www.site.example A"), unreadable(odd), record(foreign)];
            let mut response = Answer { answer: records, ..Answer::default() }.encode(&asked);
            let confined = confine(&mut response, &asked, |name| name.is_at_or_below(&"example".parse().unwrap()));
            assert_eq!(confined.is_ok(), is_relayed, "{odd}, {foreign}");
            let is_ours = response.records().all(|record| response.owner(&record).unwrap() == asked.qname);
            assert_eq!(is_ours, is_relayed, "{odd}, {foreign}");
        }
    }

    #[test]
    fn a_way_of_thousands_is_not_gone() {
        let asked = Question { qname: "0.example".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        for (links, outcome) in [(MOST_LINKS, Ok(())), (MOST_LINKS + 1, Err(Broken::Links)), (2000, Err(Broken::Links))]
        {
            let answer = (0..links).map(|link| record(&format!("{link}.example CNAME {}.example", link + 1))).collect();
            let mut response = Answer { answer, ..Answer::default() }.encode(&asked);
            assert_eq!(confine(&mut response, &asked, |_| true), outcome, "{links}");
            assert_eq!(response.records().count(), links);
        }
    }

    #[test]
    fn a_circle_comes_to_an_end() {
        let asked = Question { qname: "a.example".parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
        let answer = ["a.example CNAME b.example", "b.example CNAME a.example"].map(record).to_vec();
        let mut response = Answer { answer: answer.clone(), ..Answer::default() }.encode(&asked);
        confine(&mut response, &asked, |_| true).unwrap();
        assert_eq!(response.to_answer().unwrap().answer, answer);
    }
}
