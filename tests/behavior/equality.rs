//! What passes through us is what the upstream says, section by section.

use crate::harness::{
    message::{AD, CD, Record},
    programs::Program,
    *,
};

const ZONE: &str = include_str!("fixtures/site.example.zone");

/// TTLs may have aged; AA, AD, RA, RD and the OPT record are ours; an RRset has no order.
#[test]
fn a_few_thousand_answers_are_those_of_the_upstream() {
    let hosts: String = (0..700)
        .map(|number| {
            let (a, b) = (number / 250, number % 250 + 1);
            let more = match number % 7 {
                0 => format!("host{number} AAAA 2001:db8::{number:x}\n"),
                1 => format!("host{number} MX 10 host{}\n", number - 1),
                2 => format!("host{number} TXT \"number {number}\"\n"),
                3 => format!("www.host{number} {number} CNAME host{number}\n"),
                _ => String::new(),
            };
            format!("host{number} A 10.1.{a}.{b}\n{more}")
        })
        .collect();
    let Some(server) = Program::bind(&[("site.example", &format!("{ZONE}\n{hosts}"))]) else { return };
    let daemon = Setup::forwarding_to(server.address()).start();

    let mut questions = Vec::new();
    for owner in ZONE.lines().filter_map(owner_of).chain(ODD_NAMES.iter().map(|name| (*name).to_owned())) {
        for qtype in TYPES {
            questions.push(format!("{owner} {qtype}"));
        }
    }
    for number in 0..700 {
        for (qname, qtype) in [("host", "A"), ("HOST", "AAAA"), ("www.host", "A"), ("nohost", "MX")] {
            questions.push(format!("{qname}{number}.Site.example {qtype}"));
        }
    }
    assert!(questions.len() > 3000, "{}", questions.len());
    for (index, question) in questions.iter().enumerate() {
        let plain = query(question).edns(4096);
        let asked = match index % 5 {
            0 => plain.dnssec_ok(),
            1 => plain.set(CD),
            2 => plain.set(AD),
            3 => query(question),
            _ => plain,
        };
        let theirs = udp(server.address(), &asked);
        if theirs.has(message::TC) {
            continue; // what a datagram holds is another matter
        }
        if is_bare_alias(&asked, &theirs) {
            continue; // a server that does not recurse leaves the target to the client, and we follow it
        }
        for source in ["upstream", "cache"] {
            let ours = daemon.udp(&asked);
            let context = format!("{question} from the {source}");
            if is_referral(&theirs) {
                // A server that does not recurse has nothing to say to a client that does not either.
                assert_eq!((ours.rcode_name(), ours.answer.len()), ("SERVFAIL", 0), "{context}");
                continue;
            }
            assert_eq!(ours.rcode_name(), theirs.rcode_name(), "{context}");
            assert!(!ours.has(message::TC), "{context}");
            for (section, ours, theirs) in [
                ("answer", &ours.answer, &theirs.answer),
                ("authority", &ours.authority, &theirs.authority),
                ("additional", &ours.additional, &theirs.additional),
            ] {
                compare(ours, theirs, &format!("{context}, {section} section"));
            }
        }
    }
}

#[track_caller]
fn compare(ours: &[Record], theirs: &[Record], context: &str) {
    let order = |records: &[Record]| {
        let mut rrsets: Vec<(String, u16)> = records.iter().map(|r| (r.owner.to_lowercase(), r.rtype)).collect();
        rrsets.dedup();
        rrsets
    };
    assert_eq!(order(ours), order(theirs), "the RRsets and their order: {context}");
    let sorted = |records: &[Record]| {
        let mut records: Vec<Record> = records.to_vec();
        records.sort_by_key(|record| (record.owner.to_lowercase(), record.rtype, record.rdata.to_ascii_lowercase()));
        records
    };
    for (our, their) in sorted(ours).iter().zip(sorted(theirs)) {
        // A name may be written with the letters of the question, which are mixed on the way, by a pointer to it.
        let same = match message::has_names(our.rtype) {
            true => our.data().eq_ignore_ascii_case(&their.data()),
            false => our.rdata == their.rdata,
        };
        assert!(same, "{context}: {} {}", our.data(), their.data());
        assert!(our.owner.eq_ignore_ascii_case(&their.owner), "{context}: {} {}", our.owner, their.owner);
        // Seconds pass; nothing else takes from a TTL, and nothing adds to it.
        assert!(our.ttl <= their.ttl && our.ttl + 60 >= their.ttl, "{context}: TTL {} for {}", our.ttl, their.ttl);
    }
    assert_eq!(ours.len(), theirs.len(), "{context}");
}

fn is_referral(response: &Message) -> bool {
    response.rcode == 0 && response.answer.is_empty() && response.authority.iter().any(|record| record.rtype == 2)
}

/// The owner that a line of the fixture names.
fn owner_of(line: &str) -> Option<String> {
    let owner = line.split_whitespace().next().filter(|_| !line.starts_with([';', '$', ' ']))?;
    Some(if owner == "@" { "site.example".to_owned() } else { format!("{owner}.site.example") })
}

const ODD_NAMES: &[&str] = &[
    "x.wild.site.example",
    "a.b.c.wild.site.example",
    "x.under.wild.site.example",
    "x.aliases.site.example",
    "b.c.empty.site.example",
    "www.tree.site.example",
    "no.tree.site.example",
    "x.child.site.example",
    "child.site.example",
    "x.secure.site.example",
    "no.site.example",
    "WWW.SITE.EXAMPLE",
    "elsewhere.test",
    "test",
];

const TYPES: &[&str] = &[
    "A",
    "AAAA",
    "NS",
    "CNAME",
    "SOA",
    "MX",
    "TXT",
    "SRV",
    "PTR",
    "CAA",
    "DS",
    "HTTPS",
    "TYPE65280",
    "TYPE65281",
    "LOC",
];

/// True if a reply holds an alias and nothing of what it leads to.
fn is_bare_alias(asked: &Message, reply: &Message) -> bool {
    let cname = message::number_of("CNAME");
    let is_alias = |record: &message::Record| record.rtype == cname;
    ![cname, message::number_of("ANY")].contains(&asked.qtype())
        && reply.answer.iter().any(is_alias)
        && reply.answer.iter().all(|record| is_alias(record) || record.rtype == message::number_of("RRSIG"))
        && reply.authority.is_empty()
}
