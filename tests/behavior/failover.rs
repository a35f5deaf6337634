//! Upstreams that fail, lie, stall or come back, and a client that never waits for its own timeout.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{daemon::forward, message::query, upstream::saying, *};

fn over(policy: &str, upstreams: &[&Upstream]) -> Daemon {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address()).collect();
    Setup::new(&(forward(".", &addresses) + &format!("policy = \"{policy}\"\n"))).start()
}

fn timed(daemon: &Daemon, question: &str) -> (Message, Duration) {
    let start = Instant::now();
    let reply = daemon.ask(question);
    (reply, start.elapsed())
}

#[test]
fn the_next_upstream_is_asked_at_once_when_one_fails() {
    type Script = fn(&Asked) -> Vec<Act>;
    let cases: [(&str, Script); 7] = [
        ("SERVFAIL", |asked| vec![Act::Reply(asked.message.respond().rcode("SERVFAIL"))]),
        ("REFUSED", |asked| vec![Act::Reply(asked.message.respond().rcode("REFUSED"))]),
        ("NOTIMP", |asked| vec![Act::Reply(asked.message.respond().rcode("NOTIMP"))]),
        ("FORMERR, with EDNS and without", |asked| vec![Act::Reply(asked.message.respond().rcode("FORMERR"))]),
        ("a header alone", |asked| {
            let wire = query("x").rcode("REFUSED").to_wire();
            vec![Act::Bytes([&asked.message.id.to_be_bytes()[..], &[0x80, 5], &[0; 8], &wire[..0]].concat())]
        }),
        ("records that are cut", |asked| {
            let mut wire = asked.message.respond().answer("www.example. 1 A 192.0.2.66").to_wire();
            wire.truncate(wire.len() - 15);
            vec![Act::Bytes(wire)]
        }),
        ("an answer without end", |asked| {
            let mut wire = asked.message.respond().to_wire();
            wire[6..8].copy_from_slice(&[0xff, 0xff]);
            vec![Act::Bytes(wire)]
        }),
    ];
    for (fault, script) in cases {
        let (bad, good) = (Upstream::new(script), Upstream::saying("192.0.2.1"));
        let daemon = over("ordered", &[&bad, &good]);
        for question in ["a.example A", "b.example A", "c.example A"] {
            let (reply, elapsed) = timed(&daemon, question);
            assert_eq!(reply.data(), ["192.0.2.1"], "{fault}");
            assert!(elapsed < Duration::from_millis(350), "{fault}: {elapsed:?}");
        }
        assert!(!bad.asked().is_empty(), "{fault}");
    }
}

#[test]
fn a_closed_loopback_port_costs_no_time() {
    let good = Upstream::saying("192.0.2.1");
    let daemon = Setup::new(&forward(".", &[free_address(), good.address()])).start();
    for question in ["a.example A", "b.example A", "c.example A"] {
        let (reply, elapsed) = timed(&daemon, question);
        assert_eq!(reply.one(), "192.0.2.1");
        assert!(elapsed < Duration::from_millis(300), "{elapsed:?}");
    }
}

#[test]
fn a_silent_upstream_costs_less_than_a_second() {
    let (silent, good) = (Upstream::silent(), Upstream::saying("192.0.2.1"));
    for policy in ["ordered", "fastest", "rotate"] {
        let daemon = over(policy, &[&silent, &good]);
        for number in 0..6 {
            let (reply, elapsed) = timed(&daemon, &format!("{policy}{number}.example A"));
            assert_eq!(reply.data(), ["192.0.2.1"], "{policy}");
            assert!(elapsed < Duration::from_secs(1), "{policy} {number}: {elapsed:?}");
        }
    }
}

#[test]
fn a_client_is_told_of_failure_before_it_gives_up() {
    let (a, b) = (Upstream::silent(), Upstream::silent());
    let daemon = over("ordered", &[&a, &b]);
    thread::scope(|scope| {
        let ask = |over_tcp: bool| {
            let daemon = &daemon;
            scope.spawn(move || {
                let start = Instant::now();
                let query = query(&format!("tcp-{over_tcp}.example A")).edns(1232);
                let reply = if over_tcp { daemon.tcp(&query) } else { daemon.udp(&query) };
                (reply, start.elapsed())
            })
        };
        for client in [ask(false), ask(true)] {
            let (reply, elapsed) = client.join().unwrap();
            assert_eq!((reply.rcode_name(), reply.answer.len()), ("SERVFAIL", 0));
            assert!(reply.extended_errors().iter().any(|code| [22, 23].contains(code)), "{reply:#?}");
            assert!(elapsed < Duration::from_secs(4), "{elapsed:?}");
        }
    });
    assert!(!a.asked().is_empty() && !b.asked().is_empty(), "both had their chance");
}

#[test]
fn the_best_failure_is_relayed_with_the_reason() {
    for (rcodes, expected) in
        [(["REFUSED", "REFUSED"], &["REFUSED", "SERVFAIL"][..]), (["SERVFAIL", "REFUSED"], &["SERVFAIL", "REFUSED"])]
    {
        let upstreams = rcodes.map(Upstream::failing);
        let daemon = over("ordered", &[&upstreams[0], &upstreams[1]]);
        let (reply, elapsed) = timed(&daemon, "www.example A");
        assert!(expected.contains(&reply.rcode_name()), "{rcodes:?}: {}", reply.rcode_name());
        assert!(reply.extended_errors().iter().any(|code| [22, 23].contains(code)), "{rcodes:?}: {reply:#?}");
        assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
    }
}

#[test]
fn an_upstream_is_back_within_a_second_of_answering_again() {
    let address = free_address();
    let second = Upstream::saying("192.0.2.2");
    let daemon = Setup::new(&forward(".", &[address, second.address()])).start();
    for number in 0..5 {
        assert_eq!(daemon.ask(&format!("down{number}.example A")).one(), "192.0.2.2");
    }
    let first = Upstream::at(address, saying("192.0.2.1"));
    let start = Instant::now();
    let mut number = 0;
    wait_until("the first upstream", PATIENCE, || {
        number += 1;
        (daemon.ask(&format!("back{number}.example A")).one() == "192.0.2.1").then_some(())
    });
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(first);
    assert_eq!(daemon.ask("again.example A").one(), "192.0.2.2");
}

/// Nothing is dead until restart.
#[test]
fn all_upstreams_down_are_tried_nevertheless() {
    let address = free_address();
    let daemon = Setup::new(&forward(".", &[address])).start();
    for number in 0..20 {
        assert_eq!(daemon.ask(&format!("down{number}.example A")).rcode_name(), "SERVFAIL");
    }
    let _upstream = Upstream::at(address, saying("192.0.2.1"));
    assert_eq!(daemon.ask("new.example A").rcode_name(), "NOERROR", "the first query after its return");
}

#[test]
fn the_policy_decides_who_is_asked() {
    let count = |upstream: &Upstream| upstream.asked().iter().filter(|asked| asked.starts_with("name")).count();
    for policy in ["ordered", "rotate", "fastest"] {
        let slow =
            Upstream::new(|asked| [vec![Act::Wait(Duration::from_millis(30))], saying("192.0.2.1")(asked)].concat());
        let quick = Upstream::saying("192.0.2.2");
        let daemon = over(policy, &[&slow, &quick]);
        for number in 0..40 {
            daemon.ask(&format!("name{number}.example A"));
        }
        let (slow, quick) = (count(&slow), count(&quick));
        match policy {
            "ordered" => assert!(slow >= 38 && quick <= 6, "{policy}: {slow} {quick}"),
            "rotate" => assert!(slow >= 15 && quick >= 15, "{policy}: {slow} {quick}"),
            _ => assert!(quick >= 30 && slow >= 1, "{policy}: {slow} {quick}"),
        }
    }
}

#[test]
fn a_lost_datagram_is_sent_again() {
    let lossy = Upstream::new(|asked| if asked.earlier == 0 { vec![] } else { saying("192.0.2.1")(asked) });
    let daemon = Setup::forwarding_to(lossy.address()).start();
    for number in 0..3 {
        let (reply, elapsed) = timed(&daemon, &format!("name{number}.example A"));
        assert_eq!(reply.one(), "192.0.2.1");
        assert!(elapsed < Duration::from_millis(1500), "{elapsed:?}");
    }
}

#[test]
fn a_late_answer_wins() {
    let slow = Upstream::new(|asked| match asked.earlier {
        0 => [vec![Act::Wait(Duration::from_millis(1500))], saying("192.0.2.1")(asked)].concat(),
        _ => vec![],
    });
    let daemon = Setup::forwarding_to(slow.address()).start();
    let (reply, elapsed) = timed(&daemon, "www.example A");
    assert_eq!(reply.one(), "192.0.2.1", "the first attempt stays open");
    assert!(elapsed < Duration::from_millis(2500), "{elapsed:?}");
    let attempts = slow.queries();
    assert!(attempts.len() > 1, "it was sent again meanwhile");
    let of = |asked: &Asked| (asked.message.id, asked.message.question.clone(), asked.from);
    assert!(attempts.iter().all(|asked| of(asked) == of(&attempts[0])), "id, letters and socket: {attempts:#?}");
}

#[test]
fn a_reply_that_does_not_fit_the_query_is_not_believed() {
    type Forge = fn(Message) -> Message;
    let forgeries: [(&str, Forge); 3] = [
        ("another id", |reply| Message { id: reply.id.wrapping_add(1), ..reply }),
        ("another name", |reply| Message { question: query("evil.example A").question, ..reply }),
        ("another type", |reply| Message { question: query("www.example AAAA").question, ..reply }),
    ];
    for (forgery, forge) in forgeries {
        let upstream = Upstream::new(move |asked| {
            let lie = asked.message.respond().answer("www.example. 60 A 203.0.113.66");
            [vec![Act::Reply(forge(lie)), Act::Wait(Duration::from_millis(20))], saying("192.0.2.1")(asked)].concat()
        });
        let daemon = Setup::forwarding_to(upstream.address()).start();
        assert_eq!(daemon.ask("www.example A").data(), ["192.0.2.1"], "{forgery}");
    }
    let upstream = Upstream::new(|asked| {
        let lie = asked.message.respond().answer("www.example. 60 A 203.0.113.66");
        let first = vec![Act::ReplyFromElsewhere(lie), Act::Wait(Duration::from_millis(20))];
        [first, saying("192.0.2.1")(asked)].concat()
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    assert_eq!(daemon.ask("www.example A").data(), ["192.0.2.1"], "another source");
}

#[test]
fn after_three_wrong_replies_the_query_goes_over_tcp() {
    let upstream = Upstream::new(|asked| {
        if asked.over_tcp {
            return saying("192.0.2.1")(asked);
        }
        let lie = |step: u16| {
            // As one who knows the port and guesses at ids would; on loopback other ids are not even looked at.
            let question = query(&format!("evil{step}.example A")).question;
            Act::Reply(Message { question, ..asked.message.respond().answer("www.example. 60 A 203.0.113.66") })
        };
        (0..3).map(lie).chain(saying("203.0.113.67")(asked)).collect()
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    assert_eq!(daemon.ask("www.example A").data(), ["192.0.2.1"]);
    assert!(upstream.queries().last().unwrap().over_tcp);
}

#[test]
fn letters_are_mixed_until_an_upstream_fails_to_keep_them() {
    let keeping = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(keeping.address()).start();
    for number in 0..5 {
        daemon.ask(&format!("a-long-name-with-many-letters{number}.example A"));
    }
    let qnames: Vec<String> = keeping.queries().iter().map(|asked| asked.message.qname()).collect();
    assert!(qnames.iter().any(|qname| *qname != qname.to_lowercase()), "{qnames:?}");

    let lowering = Upstream::new(|asked| {
        let mut response = asked.message.respond().answer("www.example. 60 A 192.0.2.1");
        response.question = query(&asked.message.asked()).question;
        vec![Act::Reply(response)]
    });
    let daemon = Setup::forwarding_to(lowering.address()).start();
    let slow = (0..8)
        .filter(|number| {
            let (reply, elapsed) = timed(&daemon, &format!("a-long-name{number}.example A"));
            assert_eq!(reply.rcode_name(), "NOERROR");
            elapsed > Duration::from_secs(1)
        })
        .count();
    assert!(slow <= 1, "it has to be learned once, not {slow} times");
    let last = lowering.queries().last().unwrap().message.qname();
    assert_eq!(last, last.to_lowercase());
}

#[test]
fn an_upstream_without_edns_is_asked_without_it() {
    let upstream = Upstream::new(|asked| match asked.message.edns {
        Some(_) => vec![Act::Reply(Message { edns: None, ..asked.message.respond().rcode("FORMERR") })],
        None => saying("192.0.2.1")(asked),
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for number in 0..5 {
        let (reply, elapsed) = timed(&daemon, &format!("name{number}.example A"));
        assert_eq!(reply.one(), "192.0.2.1");
        assert!(elapsed < Duration::from_millis(500), "{elapsed:?}");
    }
    let with_edns = upstream.queries().iter().filter(|asked| asked.message.edns.is_some()).count();
    assert!(with_edns <= 2, "it is remembered: {with_edns}");
}

#[test]
fn a_flood_for_a_dead_suffix_leaves_the_others_alone() {
    let (silent, good) = (Upstream::silent(), Upstream::saying("192.0.2.1"));
    let config = forward("dead.example", &[silent.address()]) + &forward(".", &[good.address()]);
    let daemon = Setup::new(&config).start();
    let answered = Arc::new(AtomicUsize::new(0));
    let flood: Vec<_> = (0..100)
        .map(|number| {
            let (address, answered) = (daemon.address(), answered.clone());
            thread::spawn(move || {
                let question = query(&format!("name{number}.dead.example A"));
                if udp(address, &question).rcode_name() == "SERVFAIL" {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for number in 0..20 {
        let (reply, elapsed) = timed(&daemon, &format!("name{number}.example A"));
        assert_eq!(reply.one(), "192.0.2.1");
        assert!(elapsed < Duration::from_millis(500), "{elapsed:?}");
    }
    flood.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(answered.load(Ordering::Relaxed), 100, "each was told");
}
