//! Upstreams that fail, lie, stall or come back, and a client that never waits for its own timeout.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    daemon::forward,
    message::{TC, query},
    upstream::saying,
    *,
};

fn over(policy: &str, upstreams: &[&Upstream]) -> Daemon {
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address()).collect();
    Setup::new(&(forward(".", &addresses) + &format!("policy = \"{policy}\"\n"))).start()
}

fn timed(daemon: &Daemon, question: &str) -> (Message, Duration) {
    let start = Instant::now();
    let reply = daemon.ask(question);
    (reply, start.elapsed())
}

/// The least time of several attempts, each by a new daemon, which has learned nothing of its upstreams: a wait that is
/// part of the way shows in all of them, a busy machine only in some.
fn quickest(attempts: usize, attempt: impl Fn() -> Duration) -> Duration {
    (0..attempts).map(|_| attempt()).min().unwrap()
}

#[test]
fn a_closed_loopback_port_costs_no_time() {
    let good = Upstream::saying("192.0.2.1");
    let closed = free_address();
    let elapsed = quickest(5, || {
        let daemon = Setup::new(&forward(".", &[closed, good.address()])).start();
        let (reply, elapsed) = timed(&daemon, "www.example A");
        assert_eq!(reply.one(), "192.0.2.1");
        elapsed
    });
    assert!(elapsed < FIRST_RESEND, "{elapsed:?}");
}

#[test]
fn a_silent_upstream_costs_less_than_two_seconds() {
    let (silent, good) = (Upstream::silent(), Upstream::saying("192.0.2.1"));
    for policy in ["ordered", "fastest", "rotate"] {
        let daemon = over(policy, &[&silent, &good]);
        for number in 0..6 {
            let (reply, elapsed) = timed(&daemon, &format!("{policy}{number}.example A"));
            assert_eq!(reply.data(), ["192.0.2.1"], "{policy}");
            assert!(elapsed < Duration::from_secs(2), "{policy} {number}: {elapsed:?}");
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
            assert!(elapsed < Duration::from_millis(4500), "{elapsed:?}");
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
        assert!(elapsed < Duration::from_secs(3), "not at the deadline: {elapsed:?}");
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
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
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
            "ordered" => assert!(slow >= 38 && quick <= 10, "{policy}: {slow} {quick}"),
            "rotate" => assert!(slow >= 15 && quick >= 15, "{policy}: {slow} {quick}"),
            _ => assert!(quick > 2 * slow && slow >= 1, "{policy}: {slow} {quick}"),
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
        assert!(elapsed < Duration::from_secs(3), "{elapsed:?}");
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
    assert!(elapsed < Duration::from_millis(3400), "{elapsed:?}");
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
fn letters_are_mixed_where_that_is_wanted_until_an_upstream_fails_to_keep_them() {
    let keeping = Upstream::saying("192.0.2.1");
    let ask_five = |config: &str| {
        let daemon = Setup::new(config).start();
        for number in 0..5 {
            daemon.ask(&format!("a-long-name-with-many-letters{number}.example A"));
        }
    };
    ask_five(&forward(".", &[keeping.address()]));
    assert!(keeping.queries().iter().all(|asked| asked.message.qname() == asked.message.qname().to_lowercase()));
    ask_five(&(forward(".", &[keeping.address()]) + "mixed_case = true\n"));
    let qnames: Vec<String> = keeping.queries().iter().map(|asked| asked.message.qname()).collect();
    assert!(qnames.iter().any(|qname| *qname != qname.to_lowercase()), "{qnames:?}");

    let lowering = Upstream::new(|asked| {
        let mut response = asked.message.respond().answer(&format!("{} 60 A 192.0.2.1", asked.message.qname()));
        response.question = query(&asked.message.asked()).question;
        vec![Act::Reply(response)]
    });
    let daemon = Setup::new(&(forward(".", &[lowering.address()]) + "mixed_case = true\n")).start();
    let slow = (0..8)
        .filter(|number| {
            let (reply, elapsed) = timed(&daemon, &format!("a-long-name{number}.example A"));
            assert_eq!(reply.rcode_name(), "NOERROR");
            elapsed > Duration::from_secs(2)
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
        assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
    }
    let last = upstream.queries().pop().unwrap();
    assert!(last.message.edns.is_none());
    assert_eq!(upstream.count("name4.example A"), 1, "it is remembered");
}

/// Behind a recursor such servers compare letters, and it keeps what they say.
#[test]
fn what_mixed_letters_are_told_is_confirmed_in_plain_ones() {
    const FAULTS: [&str; 5] = ["NXDOMAIN", "NOERROR", "REFUSED", "SERVFAIL", "silence"];
    // `cut` has all of it come over TCP.
    let upstream = Upstream::new(|asked| {
        let qname = asked.message.qname();
        let lowered = qname.to_lowercase();
        let is_plain = qname == lowered;
        let fault = FAULTS.iter().find(|fault| lowered.starts_with(&fault.to_lowercase())).unwrap();
        let response = asked.message.respond();
        match (is_plain, *fault) {
            _ if lowered.contains("cut") && !asked.over_tcp => vec![Act::Reply(response.set(TC))],
            (true, _) => vec![Act::Reply(response.answer(&format!("{qname} 60 A 192.0.2.1")))],
            (false, "silence") => vec![],
            (false, rcode) => vec![Act::Reply(response.rcode(rcode))],
        }
    });
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + "mixed_case = true\n")).start();
    for fault in FAULTS {
        for way in ["whole", "cut"] {
            for over_tcp in [false, true] {
                let question = format!("{}-{way}-{over_tcp}.many.letters.in.this.name.example A", fault.to_lowercase());
                let query = query(&question).edns(1232);
                let reply = if over_tcp { daemon.tcp(&query) } else { daemon.udp(&query) };
                assert_eq!((reply.rcode_name(), reply.data()), ("NOERROR", vec!["192.0.2.1".to_owned()]), "{question}");
            }
        }
    }
    let is_mixed = |asked: &Asked| asked.message.qname() != asked.message.qname().to_lowercase();
    assert!(upstream.queries().iter().any(is_mixed));
    // What is denied in plain letters, too, is denied.
    upstream.change(|asked| vec![Act::Reply(asked.message.respond().rcode("NXDOMAIN"))]);
    assert_eq!(daemon.ask("no-such-name-with-letters.example A").rcode_name(), "NXDOMAIN");
}

/// A client must not be able to take an upstream down by what it asks for.
#[test]
fn an_upstream_that_answers_a_probe_is_not_down_whatever_it_leaves_unanswered() {
    let is_dead = |asked: &Asked| asked.message.asked().starts_with("dead");
    let first = Upstream::new(move |asked| if is_dead(asked) { vec![] } else { saying("192.0.2.1")(asked) });
    let second = Upstream::saying("192.0.2.2");
    let daemon = Setup::new(&forward(".", &[first.address(), second.address()])).start();
    let start = Instant::now();
    let mut number = 0;
    while start.elapsed() < Duration::from_secs(4) {
        number += 1;
        daemon.ask(&format!("dead{number}.example A"));
        thread::sleep(Duration::from_millis(100));
    }
    let probes = first.queries().iter().filter(|asked| asked.message.asked() == ". NS").count();
    assert!(probes >= 1, "there was a suspicion");
    assert!(probes as u64 <= start.elapsed().as_secs() + 2, "{probes} probes in {:?}", start.elapsed());
    let address = first.address().to_string();
    assert_eq!(daemon.metric("watershed_forward_up", &[("upstream", &*address)]), 1.0);
    assert_eq!(daemon.ask("alive.example A").one(), "192.0.2.1");
    // One that answers nothing is found out, and by the same probe.
    first.change(|_| vec![]);
    wait_until("the first upstream to be down", PATIENCE, || {
        number += 1;
        daemon.ask(&format!("dead{number}.example A"));
        (daemon.metric("watershed_forward_up", &[("upstream", &*address)]) == 0.0).then_some(())
    });
}

#[test]
fn the_timeout_of_a_rule_is_kept() {
    let silent = Upstream::silent();
    let rule =
        |suffix: &str, timeout: &str| forward(suffix, &[silent.address()]) + &format!("timeout = \"{timeout}\"\n");
    let config = rule("quick.example", "100ms") + &rule("slow.example", "5s");
    let warning = "the rule for slow.example.: timeout is 5s";
    assert!(Setup::new(&config).check().text.contains(warning));
    let daemon = Setup::new(&config).start();
    thread::scope(|scope| {
        for (name, least, most) in [("www.quick.example A", 100, 2000), ("www.slow.example A", 5000, 8000)] {
            let daemon = &daemon;
            scope.spawn(move || {
                let (reply, elapsed) = timed(daemon, name);
                assert_eq!(reply.rcode_name(), "SERVFAIL");
                assert!((least..most).contains(&elapsed.as_millis()), "{name}: {elapsed:?}");
            });
        }
    });
    daemon.wait_for_log(0, |line| line.contains(warning));
}

/// Once a server has shown that it knows cookies, nobody answers for it without (RFC 7873 §5.3).
#[test]
fn an_upstream_that_has_sent_a_cookie_is_held_to_it() {
    let forging = Arc::new(AtomicBool::new(false));
    let upstream = Upstream::new({
        let forging = forging.clone();
        move |asked| {
            let ours = asked.message.edns.iter().flat_map(|edns| &edns.options).find(|(code, _)| *code == 10);
            let client = ours.map(|(_, data)| data[..8].to_vec()).unwrap_or_default();
            let honest = asked.message.respond().answer(&format!("{} 60 A 192.0.2.1", asked.message.qname()));
            let honest = Act::Reply(honest.option(10, &[&client[..], &[9; 8]].concat()));
            let lie = asked.message.respond().answer(&format!("{} 60 A 203.0.113.66", asked.message.qname()));
            let forge = forging.load(Ordering::Relaxed) && !asked.over_tcp;
            if forge { vec![Act::Reply(lie), honest] } else { vec![honest] }
        }
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    daemon.ask("first.example A");
    daemon.ask("second.example A");
    let cookies: Vec<usize> = (upstream.queries().iter())
        .map(|asked| asked.message.edns.iter().flat_map(|edns| &edns.options).find(|o| o.0 == 10).unwrap().1.len())
        .collect();
    assert_eq!(cookies, [8, 16], "ours alone, then with the server's");
    forging.store(true, Ordering::Relaxed);
    assert_eq!(daemon.ask("third.example A").data(), ["192.0.2.1"]);
}

/// What an upstream does with cookies may change at any time (RFC 7873 §5.3, §5.4), and costs no answer.
#[test]
fn an_upstream_may_renew_refuse_and_forget_its_cookies() {
    // A machine that stands still for seconds has another way with each query.
    let failures: Vec<String> = (0..5).map_while(|_| change_cookie_habits().err()).collect();
    assert!(failures.len() < 5, "{failures:#?}");
}

/// What went otherwise than it should, with an upstream that does one thing after the other.
fn change_cookie_habits() -> Result<(), String> {
    let habit = Arc::new(Mutex::new("sends one"));
    let upstream = Upstream::new({
        let habit = habit.clone();
        move |asked| {
            let cookie = cookie_of(asked);
            let with = |message: Message, secret: u8| {
                vec![Act::Reply(message.option(COOKIE, &[&cookie[..8], &[secret; 8]].concat()))]
            };
            let answer = asked.message.respond().answer(&format!("{} 300 A 192.0.2.1", asked.message.qname()));
            let refusal = asked.message.respond().rcode("BADCOOKIE");
            match *habit.lock().unwrap() {
                "sends one" => with(answer, 9),
                "has a new secret" if cookie[8..] != [8; 8] => with(refusal, 8),
                "has a new secret" => with(answer, 8),
                "refuses all" if !asked.over_tcp => with(refusal, 7),
                _ => vec![Act::Reply(answer)],
            }
        }
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for (step, expected) in [
        // For two names: the octets of the cookie in each query, and whether it came by TCP.
        ("sends one", [&[(8, false)][..], &[(16, false)]]),
        ("has a new secret", [&[(16, false), (16, false)], &[(16, false)]]), // refused once, and known from then on
        ("sends none", [&[(16, false), (16, true)], &[(8, false)]]),         // TCP shows that it is no forgery
        ("sends one", [&[(8, false)], &[(16, false)]]),
        ("refuses all", [&[(16, false), (16, false), (16, true)], &[(16, false), (16, false), (16, true)]]),
    ] {
        *habit.lock().unwrap() = step;
        for (number, expected) in expected.into_iter().enumerate() {
            let before = upstream.queries().len();
            let reply = daemon.ask(&format!("{}{before}.example A", step.replace(' ', "-")));
            let found: Vec<(usize, bool)> =
                upstream.queries()[before..].iter().map(|asked| (cookie_of(asked).len(), asked.over_tcp)).collect();
            if reply.data() != ["192.0.2.1"] || found != expected {
                return Err(format!("{step}, query {number}: {:?} by {found:?}", reply.data()));
            }
        }
    }
    Ok(())
}

/// The data of a query's COOKIE option.
fn cookie_of(asked: &Asked) -> Vec<u8> {
    let options = asked.message.edns.iter().flat_map(|edns| &edns.options);
    options.filter(|(code, _)| *code == COOKIE).map(|(_, data)| data.clone()).next().unwrap_or_default()
}

#[test]
fn beyond_the_bound_of_questions_in_flight_a_failure_comes_at_once() {
    let silent = Upstream::silent();
    let config = forward(".", &[silent.address()]) + "[server]\nlisten = [\"127.0.0.1:0\"]\nmax_in_flight = 16\n";
    let daemon = Setup::new(&config).start();
    thread::scope(|scope| {
        let daemon = &daemon;
        let clients: Vec<_> =
            (0..60).map(|number| scope.spawn(move || timed(daemon, &format!("name{number}.example A")))).collect();
        let replies: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        assert!(replies.iter().all(|(reply, _)| reply.rcode_name() == "SERVFAIL"));
        let at_once = replies.iter().filter(|(_, elapsed)| *elapsed < Duration::from_secs(1)).count();
        assert!(at_once >= 20, "{at_once}");
        assert!(at_once < 60, "those within the bound had their chance");
    });
    assert_eq!(daemon.ask("localhost A").one(), "127.0.0.1");
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
        assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
    }
    flood.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(answered.load(Ordering::Relaxed), 100, "each was told");
}

/// The option of cookies (RFC 7873 §4).
const COOKIE: u16 = 10;
/// When a query is sent again of whose upstream nothing is known.
const FIRST_RESEND: Duration = Duration::from_millis(400);
