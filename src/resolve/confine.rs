//! What an upstream's response may say: something of the name that was asked for.
//!
//! Nothing that a response holds is used here for another name. But a resolver that stands behind this one takes it for
//! one source, and may believe what it says of any name, though the rules of this one keep the sources apart. So a record
//! is relayed only if it is on the way from the question to its answer: in the answer section those of the name and of
//! those that its CNAME records lead to, in the authority section those of names above these, and proofs that a name does
//! not exist, in the additional section those of names for which the same rule speaks.

use super::chase::{Broken, MOST_LINKS};
use crate::wire::{Name, Question, RecordView, Response, Rtype, Section};

/// Leaves out what is beside the way. `is_ours` tells whether who has said it speaks for a name. It fails where the way is
/// too long, or something is to be left out and a name of the rest cannot be read: then nothing of it is to be relayed.
pub(super) fn confine(
    response: &mut Response,
    asked: &Question,
    is_ours: impl Fn(&Name) -> bool,
) -> Result<(), Broken> {
    if response.records().all(|record| is_plain(response, &record, asked)) {
        return Ok(());
    }
    let way = way(response, asked, &is_ours)?;
    let serves_the_way = |owner: &Name| way.iter().any(|name| name.is_at_or_below(owner));
    let belongs = |record: &RecordView| {
        let Ok(owner) = response.owner(record) else { return false };
        match (record.section, record.rtype) {
            // Consul says so who is responsible.
            (Section::Answer, Rtype::DNAME | Rtype::RRSIG | Rtype::SOA | Rtype::NS) => serves_the_way(&owner),
            (Section::Answer, _) => way.contains(&owner),
            (Section::Authority, Rtype::NSEC | Rtype::NSEC3 | Rtype::RRSIG) => true,
            (Section::Authority, _) => serves_the_way(&owner),
            (Section::Additional, _) => is_ours(&owner),
        }
    };
    if let Some(confined) = response.retain(belongs)? {
        *response = confined;
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

/// The name asked for, and those that CNAME records lead to from there. Where one of these belongs to others, the answer is
/// cut by whoever follows it; but if all that is said of the name itself was asked for, nobody does.
fn way(response: &Response, asked: &Question, is_ours: impl Fn(&Name) -> bool) -> Result<Vec<Name>, Broken> {
    let is_followed = !matches!(asked.qtype, Rtype::CNAME | Rtype::ANY | Rtype::RRSIG);
    let is_alias = |record: &RecordView| record.section == Section::Answer && record.rtype == Rtype::CNAME;
    let aliases = response.records().filter(is_alias);
    let aliases: Vec<(Name, Name)> = aliases
        .filter_map(|record| Some((response.owner(&record).ok()?, response.name_at(record.rdata.start).ok()?)))
        .collect();
    let mut way = vec![asked.qname.clone()];
    for _ in 0..aliases.len() {
        let Some((_, target)) = aliases.iter().find(|(owner, _)| Some(owner) == way.last()) else { break };
        if !is_followed && !is_ours(target) {
            break;
        }
        if way.len() > MOST_LINKS {
            return Err(Broken::Links);
        }
        way.push(target.clone());
    }
    Ok(way)
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
                let left = response.to_answer().unwrap();
                assert_eq!([left.answer, left.authority, left.additional], sections, "{section}: {line}");
            }
        }
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
