//! What zones answer, as tables: the qname and type asked, and the reply in short.

use super::*;
use crate::wire::Class;

const APEX: &str = "@ 300 IN SOA ns hostmaster 1 3600 1200 604800 60\n";

fn zone(text: &str) -> Zone {
    let text = format!("{APEX}{text}");
    Zone::parse(Path::new("example.zone"), &text, &"example.".parse().unwrap()).unwrap()
}

fn ask(zone: &Zone, qname: &str, qtype: Rtype) -> Answer {
    zone.answer(&Question { qname: qname.parse().unwrap(), qtype, qclass: Class::IN })
}

/// The reply in short: an rcode if it is not NOERROR, `NODATA`, the answer's owners and types, `->` a referral, `+` what is
/// additional.
fn outline(answer: &Answer) -> String {
    let list = |records: &[Record]| {
        let records = records.iter().map(|record| format!("{} {}", record.owner, record.rtype));
        records.collect::<Vec<_>>().join(", ")
    };
    let denies = answer.authority.iter().any(|record| record.rtype == Rtype::SOA);
    let mut parts = Vec::new();
    match answer.rcode {
        Rcode::NOERROR if denies => parts.push("NODATA".to_string()),
        Rcode::NOERROR => {}
        rcode => parts.push(rcode.to_string()),
    }
    if !answer.answer.is_empty() {
        parts.push(list(&answer.answer));
    }
    if !answer.authority.is_empty() && !denies {
        parts.push(format!("-> {}", list(&answer.authority)));
    }
    if !answer.additional.is_empty() {
        parts.push(format!("+ {}", list(&answer.additional)));
    }
    parts.join(" ")
}

fn check(zone: &Zone, rows: &[(&str, Rtype, &str)]) {
    for (qname, qtype, expected) in rows {
        assert_eq!(outline(&ask(zone, qname, *qtype)), *expected, "{qname} {qtype}");
    }
}

#[test]
fn wildcards_answer_as_in_the_example_of_rfc_4592() {
    // RFC 4592 §2.2.1
    let zone = zone(
        "
@ 3600 NS ns.example.com.
@ 3600 NS ns.example.net.
*.example. 3600 TXT \"this is a wildcard\"
*.example. 3600 MX 10 host1.example.
sub.*.example. 3600 TXT \"this is not a wildcard\"
host1.example. 3600 A 192.0.2.1
_ssh._tcp.host1.example. 3600 SRV 0 0 22 host1.example.
_ssh._tcp.host2.example. 3600 SRV 0 0 22 host2.example.
subdel.example. 3600 NS ns.example.com.
subdel.example. 3600 NS ns.example.net.
",
    );
    check(
        &zone,
        &[
            ("host3.example.", Rtype::MX, "host3.example. MX + host1.example. A"),
            ("host3.example.", Rtype::A, "NODATA"),
            ("foo.bar.example.", Rtype::TXT, "foo.bar.example. TXT"),
            // The name exists, so no wildcard stands for it.
            ("host1.example.", Rtype::MX, "NODATA"),
            ("sub.*.example.", Rtype::MX, "NODATA"),
            // `_tcp.host1.example.` exists, with nothing.
            ("_telnet._tcp.host1.example.", Rtype::SRV, "NXDOMAIN"),
            ("_tcp.host1.example.", Rtype::SRV, "NODATA"),
            ("host.subdel.example.", Rtype::A, "-> subdel.example. NS, subdel.example. NS"),
            // `*.example.` exists, and is the closest encloser.
            ("ghost.*.example.", Rtype::MX, "NXDOMAIN"),
            // The asterisk can be asked for itself.
            ("*.example.", Rtype::TXT, "*.example. TXT"),
            ("host2.example.", Rtype::TXT, "NODATA"),
            ("x.host2.example.", Rtype::TXT, "NXDOMAIN"),
        ],
    );
}

#[test]
fn a_wildcard_may_be_an_alias_and_stand_below_an_empty_name() {
    let zone = zone(
        "
*.a.b 60 CNAME www
www 60 A 192.0.2.1
*.loop 60 CNAME x.loop
",
    );
    check(
        &zone,
        &[
            ("x.a.b.example.", Rtype::A, "x.a.b.example. CNAME, www.example. A"),
            ("x.a.b.example.", Rtype::CNAME, "x.a.b.example. CNAME"),
            ("x.a.b.example.", Rtype::MX, "NODATA x.a.b.example. CNAME"),
            ("a.b.example.", Rtype::A, "NODATA"),
            ("b.example.", Rtype::A, "NODATA"),
            ("x.b.example.", Rtype::A, "NXDOMAIN"),
            ("y.loop.example.", Rtype::A, "SERVFAIL"),
        ],
    );
}

#[test]
fn names_below_a_delegation_are_referred() {
    let zone = zone(
        "
@ 60 NS ns
ns 60 A 192.0.2.1
sub 60 NS ns.sub
sub 60 NS ns.other.test.
sub 60 DS 1 8 99 00
ns.sub 60 A 192.0.2.2
ns.sub 60 AAAA 2001:db8::2
mail.sub 60 A 192.0.2.3
alias 60 CNAME www.sub
mx 60 MX 5 mail.sub
",
    );
    let referral = "-> sub.example. NS, sub.example. NS + ns.sub.example. A, ns.sub.example. AAAA";
    check(
        &zone,
        &[
            ("www.sub.example.", Rtype::A, referral),
            ("sub.example.", Rtype::A, referral),
            ("sub.example.", Rtype::NS, referral),
            // The parent answers for DS at the cut, and for nothing else there (RFC 4035 §3.1.4.1).
            ("sub.example.", Rtype::DS, "sub.example. DS"),
            ("x.sub.example.", Rtype::DS, referral),
            // Glue is not served as an answer.
            ("ns.sub.example.", Rtype::A, referral),
            ("mx.example.", Rtype::MX, "mx.example. MX"),
            ("alias.example.", Rtype::A, &format!("alias.example. CNAME {referral}")),
            ("example.", Rtype::NS, "example. NS + ns.example. A"),
        ],
    );
    assert!(!ask(&zone, "www.sub.example.", Rtype::A).authoritative, "a referral is not");
    assert!(ask(&zone, "alias.example.", Rtype::A).authoritative, "the alias is");
    assert!(ask(&zone, "sub.example.", Rtype::DS).authoritative);
}

#[test]
fn aliases_are_followed_while_they_stay_in_the_zone() {
    let chain = |length: usize| (0..length).map(|i| format!("c{i} 60 CNAME c{}\n", i + 1)).collect::<String>();
    let text = format!(
        "
www 60 CNAME Host
host 60 A 192.0.2.1
out 60 CNAME www.other.test.
gone 60 CNAME nothing
loop 60 CNAME loop
{}c8 60 A 192.0.2.8
d0 60 CNAME c0
",
        chain(8)
    );
    let zone = zone(&text);
    check(
        &zone,
        &[
            ("www.example.", Rtype::A, "www.example. CNAME, host.example. A"),
            ("www.example.", Rtype::ANY, "www.example. CNAME"),
            ("www.example.", Rtype::AAAA, "NODATA www.example. CNAME"),
            ("out.example.", Rtype::A, "out.example. CNAME"), // whoever asked goes on from there
            ("gone.example.", Rtype::A, "NXDOMAIN gone.example. CNAME"), // RFC 2308 §2.1
            ("loop.example.", Rtype::A, "SERVFAIL"),
            ("d0.example.", Rtype::A, "SERVFAIL"), // nine steps
        ],
    );
    assert_eq!(ask(&zone, "c0.example.", Rtype::A).answer.len(), 9, "eight steps");
}

#[test]
fn dname_records_redirect_what_is_below_them() {
    let long = ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(60)].join(".");
    let zone = zone(
        "
old 60 DNAME new
old 60 A 192.0.2.9
www.new 60 A 192.0.2.1
far 60 DNAME other.test.
wide 60 DNAME long.long.long.long.test.
",
    );
    check(
        &zone,
        &[
            ("www.old.example.", Rtype::A, "old.example. DNAME, www.old.example. CNAME, www.new.example. A"),
            ("x.old.example.", Rtype::A, "NXDOMAIN old.example. DNAME, x.old.example. CNAME"),
            ("www.old.example.", Rtype::CNAME, "old.example. DNAME, www.old.example. CNAME"),
            ("old.example.", Rtype::A, "old.example. A"), // at its owner a DNAME record says nothing
            ("old.example.", Rtype::DNAME, "old.example. DNAME"),
            ("old.example.", Rtype::AAAA, "NODATA"),
            ("www.far.example.", Rtype::A, "far.example. DNAME, www.far.example. CNAME"),
        ],
    );
    let too_long = format!("{}.wide.example.", &long[..230]);
    assert_eq!(outline(&ask(&zone, &too_long, Rtype::A)), "YXDOMAIN wide.example. DNAME");
    let synthesized = &ask(&zone, "www.old.example.", Rtype::A).answer[1];
    assert_eq!((synthesized.ttl, synthesized.target().unwrap().to_string().as_str()), (60, "www.new.example."));
}

#[test]
fn denials_live_for_the_soa_minimum() {
    let zone = zone("www 60 A 192.0.2.1\n");
    for qname in ["www.example.", "nothing.example."] {
        let answer = ask(&zone, qname, Rtype::TXT);
        assert_eq!((answer.authority[0].ttl, answer.authoritative), (60, true), "{qname}");
        assert_eq!(answer.authority[0].owner.to_string(), "example.");
    }
    assert_eq!(ask(&zone, "example.", Rtype::SOA).answer[0].ttl, 300, "the record itself keeps its own TTL");
}

#[test]
fn any_gives_all_that_a_name_has() {
    let zone = zone("www 60 A 192.0.2.1\nwww 60 A 192.0.2.2\nwww 60 TXT x\n");
    check(&zone, &[("www.example.", Rtype::ANY, "www.example. A, www.example. A, www.example. TXT")]);
}

#[test]
fn hosts_that_records_lead_to_come_with_their_addresses() {
    let zone = zone(
        "
_db._tcp 60 SRV 0 0 5432 a
_db._tcp 60 SRV 0 0 5432 b
_db._tcp 60 SRV 0 1 5432 a
@ 60 MX 10 a
a 60 A 192.0.2.1
b 60 AAAA 2001:db8::2
",
    );
    let srv = "_db._tcp.example. SRV";
    check(
        &zone,
        &[
            ("_db._tcp.example.", Rtype::SRV, &format!("{srv}, {srv}, {srv} + a.example. A, b.example. AAAA")),
            ("example.", Rtype::MX, "example. MX + a.example. A"),
        ],
    );
}

#[test]
fn the_root_can_be_a_zone() {
    let zone = Zone::parse(Path::new("@.zone"), &format!("{APEX}www.example 60 A 192.0.2.1\n"), &Name::root()).unwrap();
    check(
        &zone,
        &[
            ("www.example.", Rtype::A, "www.example. A"),
            ("example.", Rtype::A, "NODATA"),
            ("test.", Rtype::A, "NXDOMAIN"),
        ],
    );
}
