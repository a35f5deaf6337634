//! Where we say something else than Consul, on purpose.

use crate::harness::{
    Message,
    message::{AA, RA, Record, TC, number_of, type_name},
    query, udp,
};

use super::{
    Case,
    fixtures::{NODE, Way},
};

/// A deliberate deviation.
pub struct Deviation {
    pub what: &'static str,
    /// The sentence of the README that tells operators.
    pub stated: &'static str,
    /// Makes of what Consul says what we are to say.
    pub rewrite: fn(&Case, &mut Message),
}

pub const DEVIATIONS: &[Deviation] = &[
    Deviation {
        what: "nothing in the domain is asked of others, DS records included",
        stated: "A name of the domain never goes to others",
        rewrite: |case, said| {
            if is_type(case, &["DS"]) && case.bench.setting.recursors {
                // Of a type without meaning it says what it knows.
                let known = case.consul(&format!("{} TYPE65281", case.asking.query.qname()));
                *said = Message { question: said.question.clone(), edns: said.edns.clone(), ..known };
            }
        },
    },
    Deviation { what: "RA is set", stated: "RA is set", rewrite: |_, said| said.flags |= RA },
    Deviation {
        what: "names that do not exist do not for NS and SOA either",
        stated: EXISTENCE,
        rewrite: |case, said| {
            if is_type(case, &["NS", "SOA"]) && kind(case) != "arpa" && !exists(case) {
                deny(case, said);
            }
        },
    },
    Deviation {
        what: "nodes that do not exist do not for any type",
        stated: EXISTENCE,
        rewrite: |case, said| {
            if kind(case) == "node" && !is_type(case, &["A", "AAAA", "ANY", "TXT", "NS", "SOA"]) && !exists(case) {
                deny(case, said);
            }
        },
    },
    Deviation {
        what: "an empty name of a service is none",
        stated: EXISTENCE,
        rewrite: |case, said| {
            if said.rcode_name() == "SERVFAIL" && case.asking.name.starts_with("_._") {
                deny(case, said);
            }
        },
    },
    Deviation {
        what: "the short names of SRV records exist for all types",
        stated: EXISTENCE,
        rewrite: |case, said| {
            if said.rcode_name() == "NXDOMAIN" && kind(case) == "_" && exists(case) {
                said.rcode = 0;
            }
        },
    },
    Deviation {
        what: "the apex exists",
        stated: EXISTENCE,
        rewrite: |case, said| {
            if said.rcode_name() == "NXDOMAIN" && kind(case) == "apex" {
                said.rcode = 0;
                if is_type(case, &["ANY"]) {
                    *said = Message { flags: said.flags, question: said.question.clone(), ..case.consul("consul SOA") };
                }
            }
        },
    },
    Deviation {
        what: "the name of an address of the wrong length does not exist",
        stated: "The name of an address with the wrong length does not exist",
        rewrite: |case, said| {
            if kind(case) == "addr" && said.rcode_name() == "NOERROR" && !is_type(case, &["NS", "SOA"]) && !exists(case)
            {
                deny(case, said);
            }
        },
    },
    Deviation {
        what: "the record of an address of another type is beside the answer",
        stated: "with another type its record is in the additional section",
        rewrite: |case, said| {
            let is_other = |record: &Record| !is_type(case, &["ANY"]) && record.rtype != case.asking.query.qtype();
            if kind(case) == "addr" && said.answer.first().is_some_and(is_other) && said.answer.len() == 1 {
                said.additional.append(&mut said.answer);
            }
        },
    },
    Deviation {
        what: "the name of an address is repeated as it was asked",
        stated: "Names end in the letters of the question",
        rewrite: |case, said| {
            if kind(case) == "addr" && !is_type(case, &["NS", "SOA"]) {
                let records = said.answer.iter_mut().chain(&mut said.additional);
                records.for_each(|record| record.owner = case.asking.query.qname());
            }
        },
    },
    Deviation {
        what: "an alias of itself means the node, whatever the letters",
        stated: "whatever its letters",
        rewrite: |case, said| {
            let name = case.asking.query.qname();
            let leads_to_itself = |record: &Record| {
                (is_alias(record) || record.rtype == number_of("SRV")) && target(record).eq_ignore_ascii_case(&name)
            };
            if said.answer.first().is_some_and(leads_to_itself) {
                let qtype = type_name(case.asking.query.qtype());
                let mut lower = case.consul(&format!("{} {qtype}", case.asking.name));
                lower.answer.iter_mut().for_each(|record| record.owner.clone_from(&name));
                (said.answer, said.authority, said.additional) = (lower.answer, lower.authority, lower.additional);
            }
        },
    },
    Deviation {
        what: "an alias within the domain is followed wholly, by the type that was asked for",
        stated: ALIASES,
        rewrite: |case, said| {
            // Consul follows it by ANY, and limits what it finds as if that were a small datagram of its own.
            if said.answer.first().is_some_and(is_inner_alias) {
                said.answer.truncate(1);
                let Record { ttl, .. } = said.answer[0];
                let followed = match type_name(case.asking.query.qtype()).as_str() {
                    "CNAME" => Vec::new(),
                    "A" => follow(case, &said.answer[0].data(), "A", 1),
                    "AAAA" => follow(case, &said.answer[0].data(), "AAAA", 1),
                    "ANY" | "TXT" => follow(case, &said.answer[0].data(), "ANY", 1),
                    _ => follow(case, &said.answer[0].data(), "none", 1),
                };
                said.answer.extend(followed.into_iter().map(|record| Record { ttl, ..record }));
                said.flags &= !TC;
            }
        },
    },
    Deviation {
        what: "all is said beside SRV records of what a target within the domain leads to",
        stated: ALIASES,
        rewrite: |case, said| {
            let is_meta = |record: &Record| record.rtype == number_of("TXT");
            if let [srv] = &said.answer[..]
                && srv.rtype == number_of("SRV")
                && target(srv).to_lowercase().contains(".service.")
            {
                said.additional.retain(is_meta);
                let followed = follow(case, &target(srv), "ANY", 1);
                said.additional.extend(followed.into_iter().map(|record| Record { ttl: srv.ttl, ..record }));
            }
        },
    },
    Deviation {
        what: "the addresses of targets that are names of others are not there",
        stated: "stand without the addresses of targets that are names of others",
        rewrite: |_, said| {
            if said.answer.first().is_some_and(|record| record.rtype == number_of("SRV")) {
                said.additional.retain(|record| record.owner.to_lowercase().ends_with(".consul."));
            }
        },
    },
    Deviation {
        what: "no record stands in a section twice",
        stated: "No record stands in a section twice",
        rewrite: |_, said| {
            for section in [&mut said.answer, &mut said.additional] {
                let mut known: Vec<Record> = Vec::new();
                section.retain(|record| {
                    let same = |other: &Record| {
                        record.owner.eq_ignore_ascii_case(&other.owner)
                            && record.rtype == other.rtype
                            && record.rdata == other.rdata
                    };
                    let is_new = !known.iter().any(same);
                    known.extend(is_new.then(|| record.clone()));
                    is_new
                });
            }
        },
    },
    Deviation {
        what: NODE_ALIAS,
        stated: "The alias of a node is found by the type CNAME, too",
        rewrite: |case, said| {
            if kind(case) == "node" && is_type(case, &["CNAME"]) {
                let any = case.consul(&format!("{} ANY", case.asking.query.qname())).answer;
                said.answer.extend(any.into_iter().take(1).filter(is_alias));
            }
        },
    },
    Deviation {
        what: "a service with an address is no alias for any type",
        stated: "Where an instance has an address, the service is no alias",
        rewrite: |case, said| {
            let has_address = || {
                let any = case.consul(&format!("{} ANY", case.asking.name)).answer;
                any.iter()
                    .any(|record| [1, 28].contains(&record.rtype) && record.owner.eq_ignore_ascii_case(&any[0].owner))
            };
            let is_foreign = said.answer.first().is_some_and(|record| is_alias(record) && !is_inner_alias(record));
            if is_foreign && kind(case) != "node" && has_address() {
                said.answer.clear();
                said.authority = vec![soa(case)];
            }
        },
    },
    Deviation {
        what: "an alias to a name of others is followed by the type that was asked for",
        stated: "A name of others is followed by the type that was asked for, with every TTL as it comes",
        rewrite: |case, said| {
            let is_foreign = |record: &Record| is_alias(record) && !is_inner_alias(record);
            let Some(place) = said.answer.iter().position(is_foreign) else { return };
            // The meta of a node stands behind its alias.
            let mut meta = said.answer.split_off(place + 1);
            meta.retain(|record| record.rtype == number_of("TXT") && kind(case) == "node");
            // The alias itself is of these types.
            if !is_type(case, &["CNAME", "ANY"]) {
                let qtype = type_name(case.asking.query.qtype());
                let question = query(&format!("{} {qtype}", said.answer[place].data()));
                let others = udp(case.bench.recursor.address(), &question);
                said.rcode = others.rcode;
                said.answer.extend(others.answer);
                said.authority = others.authority;
                said.additional.clear();
            }
            said.answer.append(&mut meta);
        },
    },
    Deviation {
        what: "what comes from others is not said with authority",
        stated: "AA on local data alone",
        rewrite: |case, said| {
            let is_foreign = |record: &Record| is_alias(record) && !is_inner_alias(record);
            if said.answer.iter().any(is_foreign) && !is_type(case, &["CNAME", "ANY"]) {
                said.flags &= !AA;
            }
        },
    },
    Deviation {
        what: "the name of an address that we hold has PTR records alone",
        stated: "has PTR records and no others",
        rewrite: |case, said| {
            if kind(case) == "arpa" && said.rcode == 0 && !is_type(case, &["PTR", "ANY"]) {
                said.answer.clear();
                said.authority = vec![Record { owner: case.asking.query.qname(), ..soa(case) }];
            }
        },
    },
    Deviation {
        what: "an address has its name however it was written",
        stated: "however it was written",
        rewrite: |case, said| {
            // Consul compares texts.
            let name = match &*case.asking.name {
                "7.2.0.192.in-addr.arpa" => "mapped", // ::ffff:192.0.2.7
                name if name.starts_with("5.0.0.0.") && name.ends_with(".ip6.arpa") => "dual", // 2001:DB8::5
                _ => return,
            };
            if said.rcode_name() == "SERVFAIL" || case.bench.setting.recursors {
                let owner = case.asking.query.qname();
                said.authority.clear();
                *said = std::mem::take(said).rcode("NOERROR").set(AA);
                if is_type(case, &["PTR", "ANY"]) {
                    said.answer = vec![Record::parse(&format!("{owner} 0 PTR {name}.service.dc1.consul"))];
                } else {
                    said.authority = vec![Record { owner, ..soa(case) }];
                }
            }
        },
    },
    Deviation {
        what: "others know the names of other addresses",
        stated: "for the reverse names of the addresses that it holds",
        rewrite: |case, said| {
            if kind(case) == "arpa" && said.rcode_name() == "SERVFAIL" {
                let others = udp(case.bench.recursor.address(), &query(&case.asking.query.asked()));
                (said.rcode, said.answer, said.authority) = (others.rcode, others.answer, others.authority);
                said.flags &= !AA;
            }
        },
    },
    Deviation {
        what: "keys of service_ttl are compared without regard to case",
        stated: "keys of `service_ttl` are compared without regard to case",
        rewrite: |case, said| {
            // Where Consul never finds `Upper-Case`; the setting has six seconds for it.
            let is_set = case.bench.setting.ours.contains("\"Upper-Case\" = \"6s\"");
            if is_set && case.asking.name.contains("upper-case") && !is_type(case, &["NS", "SOA"]) {
                let of_service = |record: &&mut Record| [1, 16, 33].contains(&record.rtype);
                let records = said.answer.iter_mut().chain(&mut said.additional).filter(of_service);
                records.for_each(|record| record.ttl = 6);
            }
        },
    },
    Deviation {
        what: "a denial of others lives for its SOA minimum",
        stated: "a negative one for the smaller of its SOA's TTL and minimum",
        rewrite: |_, said| {
            let theirs = said.authority.iter_mut().filter(|record| record.owner == ".");
            theirs.for_each(|soa| soa.ttl = soa.ttl.min(EXTERNAL_MINIMUM));
        },
    },
    Deviation {
        what: OWN_NODE,
        stated: "our own node is the name server",
        rewrite: |case, said| {
            let asks = is_type(case, &["NS", "SOA"]) || is_type(case, &["ANY"]) && kind(case) == "apex";
            let has_node = case.bench.way == Way::Files;
            if has_node && asks && said.rcode == 0 && kind(case) != "arpa" && said.additional.is_empty() {
                let name = format!("{}.node.dc1.consul", NODE.to_lowercase());
                let ns = Record::parse(&format!("consul 0 NS {name}"));
                if is_type(case, &["NS"]) { &mut said.answer } else { &mut said.authority }.push(ns);
                said.additional.push(Record::parse(&format!("{name} 0 A {}", case.bench.consul.ip())));
            }
        },
    },
    Deviation {
        what: "NODATA has its SOA record",
        stated: "NODATA has its SOA record",
        rewrite: |case, said| {
            let is_nothing = match said.answer.last() {
                Some(last) => is_inner_alias(last) && !is_type(case, &["CNAME"]),
                None => true,
            };
            if said.rcode == 0 && is_nothing && said.authority.is_empty() && kind(case) != "arpa" {
                said.authority.push(soa(case));
            }
        },
    },
    Deviation {
        what: "who asks in the second domain is answered in it",
        stated: "An alternative domain is kept in targets and SOA records",
        rewrite: |case, said| {
            let domain = case.bench.setting.domain;
            if domain != "consul" && kind(case) != "arpa" {
                let sections = [&mut said.answer, &mut said.authority, &mut said.additional];
                sections.into_iter().flatten().for_each(|record| *record = in_domain(record, domain));
            }
        },
    },
];

/// Whether a deviation can be met this way: who follows an agent has no node of its own, and only an agent knows others.
pub fn is_met(what: &str, way: Way) -> bool {
    match what {
        OWN_NODE => way == Way::Files,
        NODE_ALIAS => way == Way::Agent,
        _ => true,
    }
}

const NODE_ALIAS: &str = "the alias of a node is found by its type";
const OWN_NODE: &str = "our own node is the name server where no server of Consul's is healthy";

const EXISTENCE: &str = "A name exists for every type or for none";
/// The minimum of the SOA record of those others.
const EXTERNAL_MINIMUM: u32 = 60;
const ALIASES: &str = "A service whose address is a name of the catalog";
/// How many names Consul follows.
const MAX_DEPTH: usize = 3;

/// The record with the names that are made by the catalog in this domain; those that were registered stay.
fn in_domain(record: &Record, domain: &str) -> Record {
    let is_made = |name: &str| {
        let is_of_zone =
            [2, 6].contains(&record.rtype) && ["consul.", "ns.consul.", "hostmaster.consul."].contains(&name);
        is_of_zone || [".node.dc1.consul.", ".addr.dc1.consul."].iter().any(|kind| name.ends_with(kind))
    };
    let line = record.line();
    let words = line.split(' ').map(|word| match word.strip_suffix("consul.") {
        Some(start) if is_made(word) && record.rtype != number_of("CNAME") => format!("{start}{domain}."),
        _ => word.to_owned(),
    });
    Record::parse(&words.collect::<Vec<_>>().join(" "))
}

fn is_alias(record: &Record) -> bool {
    record.rtype == number_of("CNAME")
}

/// Whether it is an alias of a name in the domain.
fn is_inner_alias(record: &Record) -> bool {
    is_alias(record) && format!(".{}", record.data().to_lowercase()).ends_with(".consul.")
}

fn target(srv: &Record) -> String {
    srv.data().rsplit(' ').next().unwrap_or_default().to_owned()
}

/// The records of this type, or of any, that a name leads to, and the aliases on the way.
fn follow(case: &Case, name: &str, qtype: &str, depth: usize) -> Vec<Record> {
    let said = everything(case, &format!("{name} ANY"));
    let is_address = |record: &Record| [1, 28].contains(&record.rtype);
    match said.answer.first() {
        Some(alias) if is_alias(alias) && depth < MAX_DEPTH && is_inner_alias(alias) => {
            let rest = follow(case, &alias.data(), qtype, depth + 1);
            [alias.clone()].into_iter().chain(rest).collect()
        }
        Some(alias) if is_alias(alias) => vec![alias.clone()],
        _ if qtype == "ANY" => said.answer.into_iter().filter(is_address).collect(),
        _ if qtype == "none" => Vec::new(),
        _ => {
            let records = everything(case, &format!("{name} {qtype}")).answer;
            records.into_iter().filter(|record| record.rtype == number_of(qtype)).collect()
        }
    }
}

/// What Consul says to a question, all of it. Where not even TCP has all, many answers together do.
pub fn everything(case: &Case, question: &str) -> Message {
    let mut whole = case.consul(question);
    let (mut idle, limit) = (0, case.bench.setting.limits.a_record);
    while limit.is_some_and(|limit| whole.answer.len() >= limit) && idle < 100 {
        let before = whole.answer.len();
        for record in case.consul(question).answer {
            if !whole.answer.contains(&record) {
                whole.answer.push(record);
            }
        }
        idle = if whole.answer.len() > before { 0 } else { idle + 1 };
    }
    whole
}

fn is_type(case: &Case, names: &[&str]) -> bool {
    names.iter().any(|name| number_of(name) == case.asking.query.qtype())
}

/// The label that says what a name is, as Consul reads it; `_` for the short form of SRV names.
fn kind<'a>(case: &Case<'a>) -> &'a str {
    let name = &*case.asking.name;
    if name.ends_with(".arpa") {
        return "arpa";
    }
    let Some(labels) = name.strip_suffix(case.bench.setting.domain).and_then(|name| name.strip_suffix('.')) else {
        return "apex";
    };
    let kinds = ["service", "connect", "ingress", "node", "query", "addr"];
    let found = labels.rsplit('.').find(|label| kinds.contains(label) || label.starts_with('_'));
    found.map_or("", |label| if label.starts_with('_') { "_" } else { label })
}

/// Whether there is anything under the name.
fn exists(case: &Case) -> bool {
    let name = &case.asking.name;
    let is_there = |qtype: &str| case.consul(&format!("{name} {qtype}")).rcode == 0;
    match kind(case) {
        "addr" => name.split('.').next().is_some_and(|label| [8, 32].contains(&label.len())) && is_there("A"),
        "apex" => true,
        _ => is_there("ANY") || is_there("SRV") && kind(case) == "_",
    }
}

fn deny(case: &Case, said: &mut Message) {
    said.answer.clear();
    said.additional.clear();
    said.authority = vec![soa(case)];
    *said = std::mem::take(said).rcode("NXDOMAIN");
}

/// The record that Consul has in denials.
fn soa(case: &Case) -> Record {
    case.consul("none.service.consul A").authority.remove(0)
}
