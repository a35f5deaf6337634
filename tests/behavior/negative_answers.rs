//! What is denied, for how long, and what a failure is as opposed to a denial.

use std::time::{Duration, Instant};

use crate::harness::{daemon::forward, message::TC, upstream::holding, *};

/// An upstream that denies every name with this SOA record, or with none.
fn denying(rcode: &'static str, soa: Option<&'static str>) -> Upstream {
    Upstream::new(move |asked| {
        let response = asked.message.respond().rcode(rcode);
        vec![Act::Reply(soa.into_iter().fold(response, Message::authority))]
    })
}

#[test]
fn a_denial_lives_for_the_smaller_of_soa_ttl_and_soa_minimum() {
    for (rcode, soa, expected) in [
        ("NXDOMAIN", "example. 3600 SOA ns.example. host.example. 1 2 3 4 1", 1),
        ("NXDOMAIN", "example. 1 SOA ns.example. host.example. 1 2 3 4 3600", 1),
        ("NOERROR", "example. 3600 SOA ns.example. host.example. 1 2 3 4 1", 1),
    ] {
        let upstream = denying(rcode, Some(soa));
        let daemon = Setup::forwarding_to(upstream.address()).start();
        let start = Instant::now();
        let first = daemon.ask("no.example A");
        assert_eq!((first.rcode_name(), first.soa().unwrap().ttl), (rcode, expected), "{soa}");
        daemon.ask("no.example A");
        if start.elapsed() < Duration::from_millis(500) {
            assert_eq!(upstream.count("no.example A"), 1, "{soa}");
        }
        wait_until("the end of its life", PATIENCE, || {
            daemon.ask("no.example A");
            (upstream.count("no.example A") > 1).then_some(())
        });
        assert!(start.elapsed() > Duration::from_millis(900), "{soa}: it lived for {:?}", start.elapsed());
    }
}

#[test]
fn the_ttl_of_a_denial_is_capped() {
    let upstream = denying("NXDOMAIN", Some("example. 86400 SOA ns.example. host.example. 1 2 3 4 86400"));
    let default = Setup::forwarding_to(upstream.address()).start();
    assert_eq!(default.ask("no.example A").soa().unwrap().ttl, 3600);
    let config = forward(".", &[upstream.address()]) + "[cache]\nmax_negative_ttl = \"5s\"\n";
    assert_eq!(Setup::new(&config).start().ask("no.example A").soa().unwrap().ttl, 5);
}

#[test]
fn a_denial_without_soa_is_passed_on_and_not_kept() {
    for rcode in ["NXDOMAIN", "NOERROR"] {
        let upstream = denying(rcode, None);
        let never = Upstream::saying("203.0.113.66");
        let daemon = Setup::new(&forward(".", &[upstream.address(), never.address()])).start();
        for times in 1..=3 {
            let reply = daemon.ask("no.example A");
            assert_eq!((reply.rcode_name(), reply.answer.len()), (rcode, 0));
            assert_eq!(upstream.count("no.example A"), times, "{rcode}");
        }
        assert!(never.asked().is_empty(), "{rcode} without SOA is no failure");
    }
}

#[test]
fn a_denial_of_one_type_says_nothing_of_another() {
    let upstream = Upstream::holding(&["www.example. 300 A 192.0.2.1"]);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    assert!(daemon.ask("www.example AAAA").answer.is_empty());
    assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1");
    assert!(daemon.ask("www.example AAAA").answer.is_empty());
    assert_eq!(upstream.count("www.example AAAA"), 1);
}

#[test]
fn a_failure_is_kept_for_seconds_not_longer() {
    let upstream = Upstream::failing("SERVFAIL");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    assert_eq!(daemon.ask("www.example A").rcode_name(), "SERVFAIL");
    let asked = upstream.count("www.example A");
    for _ in 0..5 {
        assert_eq!(daemon.ask("www.example A").rcode_name(), "SERVFAIL");
    }
    assert_eq!(upstream.count("www.example A"), asked, "a failure is kept for a second at least (RFC 9520 §3.2)");
    upstream.change(holding(&["www.example. 300 A 192.0.2.1"]));
    let start = Instant::now();
    wait_until("an answer after the failure", PATIENCE, || {
        (daemon.ask("www.example A").data() == ["192.0.2.1"]).then_some(())
    });
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

/// glibc takes a SERVFAIL beside an empty answer for "no such host".
#[test]
fn no_denial_is_given_from_the_cache_while_the_sister_question_fails() {
    let upstream = Upstream::holding(&["www.example. 300 TXT \"exists\""]);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for (denied, failing) in [("a.example AAAA", "a.example A"), ("b.example A", "b.example AAAA")] {
        upstream.change(|asked| vec![Act::Reply(asked.message.respond().authority(upstream::SOA))]);
        assert_eq!(daemon.ask(denied).rcode_name(), "NOERROR");
        upstream.change(|asked| vec![Act::Reply(asked.message.respond().rcode("SERVFAIL"))]);
        assert_eq!(daemon.ask(failing).rcode_name(), "SERVFAIL");
        let sister = daemon.ask(denied);
        assert_eq!(sister.rcode_name(), "SERVFAIL", "{denied}: {sister:#?}");
        assert!(!sister.has(TC));
    }
}
