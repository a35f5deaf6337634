//! BIND 9, Knot DNS and Unbound as the upstream, with a real zone.

use crate::harness::{daemon::forward, message::TC, programs::Program, *};

const ZONE: &str = include_str!("fixtures/site.example.zone");

/// The zone, and an RRset in it that no datagram holds.
fn zone() -> String {
    let large: String = (0..99).map(|number| format!("large TXT \"{number:0>240}\"\n")).collect();
    format!("{ZONE}\n{large}")
}

#[test]
fn bind_is_forwarded_to() {
    let Some(server) = Program::bind(&[("site.example", &zone())]) else { return };
    check("BIND 9", &server);
}

#[test]
fn knot_is_forwarded_to() {
    let Some(server) = Program::knot(&[("site.example", &zone())]) else { return };
    check("Knot DNS", &server);
}

#[test]
fn unbound_is_forwarded_to() {
    let Some(server) = Program::unbound(&[("site.example", &zone())]) else { return };
    check("Unbound", &server);
}

fn check(program: &str, server: &Program) {
    let other = Upstream::saying("203.0.113.66");
    let config = forward("site.example", &[server.address()]) + &forward(".", &[other.address()]);
    let daemon = Setup::new(&config).start();
    for _ in ["from the upstream", "from the cache"] {
        for (question, expected) in [
            ("mail.site.example A", &["192.0.2.25"][..]),
            ("www.site.example A", &["192.0.2.80", "192.0.2.81", "192.0.2.82"]),
            ("www.site.example AAAA", &["2001:db8::80"]),
            ("site.example MX", &["10 mail.site.example.", "20 mail.other.test."]),
            ("site.example TXT", &["\"v=spf1 -all\" \"second string\""]),
            ("site.example TYPE65280", &["\\# 4 01020304"]),
            ("unknown.site.example TYPE65281", &["\\# 0"]),
            ("any.wild.site.example A", &["192.0.2.100"]),
            (
                "alias2.site.example A",
                &["192.0.2.80", "192.0.2.81", "192.0.2.82", "alias.site.example.", "www.site.example."],
            ),
            // An alias out of the zone is followed by the rule of its target.
            ("outside.site.example A", &["203.0.113.66", "elsewhere.test."]),
            ("www.tree.site.example A", &["192.0.2.110", "other.site.example.", "www.other.site.example."]),
        ] {
            for reply in [daemon.ask(question), daemon.tcp(&query(question))] {
                // The target of a DNAME's CNAME is made of the question's letters, which were mixed for the upstream.
                let mut data: Vec<String> = reply.data().iter().map(|data| data.to_lowercase()).collect();
                data.sort();
                assert_eq!(data, expected, "{program}: {question}");
                assert_eq!(reply.rcode_name(), "NOERROR", "{program}: {question}");
            }
        }
        for (question, expected) in [("no.site.example A", "NXDOMAIN"), ("www.site.example MX", "NOERROR")] {
            let reply = daemon.ask(question);
            assert_eq!((reply.rcode_name(), reply.answer.len()), (expected, 0), "{program}: {question}");
            assert!(reply.soa().is_some(), "{program}: {question}");
        }
    }
    assert!(daemon.ask("large.site.example TXT").has(TC), "{program}");
    assert_eq!(daemon.tcp(&query("large.site.example TXT")).answer.len(), 99, "{program}");
    assert!(other.asked().iter().all(|asked| !asked.contains("site.example")), "{program}: {:?}", other.asked());
}

#[test]
fn one_server_takes_over_from_another() {
    let zone = zone();
    let (Some(first), Some(second)) =
        (Program::bind(&[("site.example", &zone)]), Program::knot(&[("site.example", &zone)]))
    else {
        return;
    };
    let daemon = Setup::new(&forward(".", &[first.address(), second.address()])).start();
    assert_eq!(daemon.ask("mail.site.example A").one(), "192.0.2.25");
    drop(first);
    for number in 0..10 {
        assert_eq!(daemon.ask(&format!("x{number}.wild.site.example A")).one(), "192.0.2.100");
    }
}
