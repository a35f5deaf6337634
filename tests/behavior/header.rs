//! What the header and the OPT record of a reply say, and what of a query's is passed on.

use crate::harness::{
    daemon::forward,
    message::{AA, AD, CD, RD},
    *,
};

const ZONE: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";

fn with_local_zone(upstream: &Upstream) -> Daemon {
    let zone = "\n[[zone]]\napex = \"local.example\"\nfile = \"<DIR>/local.example.zone\"\n";
    Setup::new(&(forward(".", &[upstream.address()]) + zone)).file("local.example.zone", ZONE).start()
}

#[test]
fn ra_is_always_set_and_rd_and_cd_are_echoed() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = with_local_zone(&upstream);
    daemon.ask("www.example A"); // so that it is in the cache for the query without RD
    for question in ["www.example A", "www.local.example A", "no.local.example A"] {
        for (flags, expected) in [(RD, "rd ra"), (0, "ra"), (RD | CD, "rd ra cd"), (CD, "ra cd")] {
            daemon.ask("www.example A");
            daemon.udp(&query("www.example A").set(CD));
            let reply = daemon.udp(&query(question).clear(RD).set(flags));
            let names = reply.clone().clear(AA | AD).flag_names();
            assert_eq!(names, format!("qr {expected}"), "{question} {flags:#x}");
        }
    }
}

#[test]
fn aa_is_set_on_local_data_only() {
    let upstream = Upstream::new(|asked| {
        let response = asked.message.respond().set(AA);
        vec![Act::Reply(response.answer(&format!("{} 60 A 192.0.2.9", asked.message.qname())))]
    });
    let daemon = with_local_zone(&upstream);
    for (question, authoritative) in [
        ("www.local.example A", true),
        ("no.local.example A", true),
        ("www.local.example MX", true),
        ("localhost A", true),
        ("www.example A", false), // although the upstream says so of itself
        ("www.example A", false), // nor from the cache
    ] {
        assert_eq!(daemon.ask(question).has(AA), authoritative, "{question}");
    }
}

#[test]
fn a_query_without_rd_is_answered_from_local_data_and_cache_and_else_refused() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = with_local_zone(&upstream);
    let plain = |question: &str| daemon.udp(&query(question).clear(RD));
    assert_eq!(plain("www.local.example A").one(), "192.0.2.1");
    assert_eq!(plain("www.example A").rcode_name(), "REFUSED");
    assert_eq!(upstream.asked().len(), 0, "it went upstream");
    assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1");
    assert_eq!(plain("www.example A").one(), "192.0.2.1");
    assert_eq!(upstream.count("www.example A"), 1);
}

#[test]
fn ad_is_relayed_from_a_trusted_upstream_to_those_who_understand_it() {
    let validating = || {
        Upstream::new(|asked| {
            let response = asked.message.respond().set(AD);
            vec![Act::Reply(response.answer(&format!("{} 60 A 192.0.2.1", asked.message.qname())))]
        })
    };
    let (trusted, untrusted) = (validating(), validating());
    let rule = forward("untrusted.example", &[untrusted.address()]) + "trust_ad = false\n";
    let daemon = Setup::new(&(forward(".", &[trusted.address()]) + &rule)).start();
    for (query, expected) in [
        (query("www.example A"), false),
        (query("www.example A").set(AD), true), // RFC 6840 §5.7
        (query("www.example A").dnssec_ok(), true),
        (query("www.example A"), false), // the cache remembers, the client still does not understand
        (query("www.untrusted.example A").set(AD), false),
        (query("www.untrusted.example A").dnssec_ok(), false),
    ] {
        let reply = daemon.udp(&query);
        assert_eq!(reply.one(), "192.0.2.1");
        assert_eq!(reply.has(AD), expected, "{} {}", query.asked(), query.flag_names());
    }
}

#[test]
fn queries_to_upstreams_are_our_own() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let client_subnet = (8, [0, 1, 24, 0, 192, 0, 2]);
    let client_cookie = (10, [7; 8]);
    let asked = query("www.example A")
        .edns(512)
        .option(client_subnet.0, &client_subnet.1)
        .option(client_cookie.0, &client_cookie.1);
    daemon.udp(&asked);
    daemon.udp(&query("cd.example A").set(CD).dnssec_ok());
    let queries = upstream.queries();
    let edns = queries[0].message.edns.as_ref().expect("EDNS");
    assert!(queries[0].message.has(RD | AD) && !queries[0].message.has(CD));
    assert!(!edns.dnssec_ok);
    for (code, data) in &edns.options {
        assert_ne!(*code, client_subnet.0, "the client's subnet went out");
        assert_ne!(data[..], client_cookie.1, "the client's cookie went out");
    }
    let careful = &queries[1].message;
    assert!(careful.has(CD) && careful.edns.as_ref().unwrap().dnssec_ok, "CD and DO are passed on");
}

#[test]
fn letters_of_the_question_come_back_as_they_were_asked() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for qname in ["www.example", "WWW.EXAMPLE", "wWw.eXamPle"] {
        let reply = daemon.ask(&format!("{qname} A")); // the harness compares the question
        assert_eq!(reply.qname(), format!("{qname}."));
        // Never as they were mixed for the upstream.
        assert!([qname, "www.example"].contains(&reply.answer[0].owner.trim_end_matches('.')), "{reply:#?}");
    }
    assert_eq!(upstream.count("www.example A"), 1, "letters do not matter to the cache");
}
