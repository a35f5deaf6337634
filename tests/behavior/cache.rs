//! What the cache keeps, for whom, and for how long.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    daemon::forward,
    message::{CD, TC},
    upstream::{holding, saying},
    *,
};

#[test]
fn an_answer_is_given_again_with_its_ttl_aged() {
    let upstream = Upstream::holding(&["www.example. 200 CNAME to.example.", "to.example. 100 A 192.0.2.2"]);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let ttls = |reply: Message| reply.answer.iter().map(|record| record.ttl).collect::<Vec<_>>();
    daemon.ask("www.example A");
    let aged = wait_until("a TTL that ages", PATIENCE, || {
        let ttls = ttls(daemon.ask("www.example A"));
        (ttls[1] < 100).then_some(ttls)
    });
    assert_eq!(aged[0] - aged[1], 100, "each record ages by itself");
    let over_tcp = ttls(daemon.tcp(&query("www.example A")));
    assert!(over_tcp[0] <= aged[0], "{over_tcp:?}");
    assert_eq!(upstream.count("www.example A"), 1);
}

#[test]
fn do_cd_type_and_class_have_entries_of_their_own() {
    let upstream = Upstream::new(|asked| {
        let dnssec = asked.message.edns.as_ref().is_some_and(|edns| edns.dnssec_ok);
        let text = format!("{} 300 TXT \"do {dnssec} cd {}\"", asked.message.qname(), asked.message.has(CD));
        vec![Act::Reply(asked.message.respond().answer(&text))]
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let plain = || query("www.example TXT").edns(1232);
    for _ in 0..2 {
        for (query, expected) in [
            (plain(), "\"do false cd false\""),
            (plain().dnssec_ok(), "\"do true cd false\""),
            (plain().set(CD), "\"do false cd true\""),
            (plain().dnssec_ok().set(CD), "\"do true cd true\""),
        ] {
            assert_eq!(daemon.udp(&query).one(), expected);
        }
    }
    assert_eq!(upstream.asked().len(), 4);
}

#[test]
fn the_ttl_is_bounded_by_the_rules() {
    let upstream = Upstream::holding(&[
        "long.example. 1000000 A 192.0.2.1",
        "short.example. 2 A 192.0.2.1",
        "sign.example. 2147483648 A 192.0.2.1", // above 2^31-1 is 0 (RFC 2181 §8)
    ]);
    let default = Setup::forwarding_to(upstream.address()).start();
    assert_eq!(default.ask("long.example A").answer[0].ttl, 86_400);
    assert_eq!(default.ask("sign.example A").answer[0].ttl, 0);
    let config = forward(".", &[upstream.address()]) + "[cache]\nmin_ttl = \"60s\"\nmax_ttl = \"10m\"\n";
    let capped = Setup::new(&config).start();
    assert_eq!(capped.ask("long.example A").answer[0].ttl, 600);
    assert_eq!(capped.ask("short.example A").answer[0].ttl, 60);
}

#[test]
fn equal_queries_in_flight_are_one_across_workers_and_transports() {
    let gate = Gate::default();
    let upstream = Upstream::new({
        let gate = gate.clone();
        move |asked| {
            gate.pass();
            // TTL 0: shared with whoever waits, and kept for nobody.
            vec![Act::Reply(asked.message.respond().answer(&format!("{} 0 A 192.0.2.1", asked.message.qname())))]
        }
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let arrived = || daemon.metric("watershed_server_queries_total", &[]) as usize;
    thread::scope(|scope| {
        let daemon = &daemon;
        let clients: Vec<_> = (0..40)
            .map(|number| {
                let letters = if number % 2 == 0 { "www.example A" } else { "WWW.example A" };
                scope.spawn(move || match number % 4 {
                    0 => daemon.tcp(&query(letters).edns(1232)),
                    _ => daemon.udp(&query(letters).edns(1232)),
                })
            })
            .collect();
        // All have arrived before the answer does; a resend to the upstream in between is no second query.
        wait_until("forty queries", PATIENCE, || (arrived() >= 40).then_some(()));
        gate.open();
        for client in clients {
            assert_eq!(client.join().unwrap().one(), "192.0.2.1");
        }
    });
    assert_eq!(upstream.count("www.example A"), 1);
    daemon.ask("www.example A");
    assert_eq!(upstream.count("www.example A"), 2, "TTL 0 was kept");
}

#[test]
fn a_truncated_response_is_not_kept() {
    let upstream = Upstream::new(|asked| match asked.over_tcp {
        // TCP fails, so all that is known is truncated.
        true => vec![Act::Close],
        false => vec![Act::Reply(asked.message.respond().set(TC))],
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    assert_eq!(daemon.ask("www.example A").rcode_name(), "SERVFAIL");
    upstream.change(saying("192.0.2.1"));
    wait_until("an answer", PATIENCE, || (daemon.ask("www.example A").data() == ["192.0.2.1"]).then_some(()));
}

#[test]
fn a_popular_name_is_refreshed_before_it_expires() {
    let upstream = Upstream::holding(&["www.example. 5 A 192.0.2.1"]);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let count = |metric: &str| daemon.metric(&format!("watershed_cache_{metric}_total"), &[]);
    // On a machine that stands still in the last half second of a life, the next life has to do.
    wait_until("a refresh", PATIENCE, || {
        daemon.ask("www.example A");
        (count("prefetches") > 0.0).then_some(())
    });
    // Nobody has waited for it: each miss was asked for, and beside them the refresh.
    wait_until("its query", PATIENCE, || {
        (upstream.count("www.example A") as f64 == count("misses") + count("prefetches")).then_some(())
    });
    upstream.change(holding(&["www.example. 300 A 192.0.2.2"]));
    wait_until("the new answer", PATIENCE, || (daemon.ask("www.example A").data() == ["192.0.2.2"]).then_some(()));
}

#[test]
fn a_stale_answer_is_better_than_none() {
    let upstream = Upstream::holding(&["silent.example. 1 A 192.0.2.1", "failing.example. 1 A 192.0.2.2"]);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    daemon.ask("silent.example A");
    daemon.ask("failing.example A");
    upstream.change(|asked| match asked.message.asked().starts_with("silent") {
        true => vec![],
        false => vec![Act::Reply(asked.message.respond().rcode("SERVFAIL"))],
    });
    for (question, address, expected) in [
        ("failing.example A", "192.0.2.2", 0..1500),
        ("silent.example A", "192.0.2.1", 1500..3400), // the upstream has 1.8 s (RFC 8767 §5)
    ] {
        let (reply, elapsed) = wait_until("a stale answer", PATIENCE, || {
            let start = Instant::now();
            let reply = daemon.ask(question);
            (reply.extended_errors() == [3]).then(|| (reply, start.elapsed().as_millis()))
        });
        assert_eq!((reply.rcode_name(), reply.one(), reply.answer[0].ttl), ("NOERROR", address.to_owned(), 30));
        assert!(expected.contains(&elapsed), "{question}: {elapsed} ms");
        // And those who come next need not wait.
        let start = Instant::now();
        assert_eq!(daemon.ask(question).extended_errors(), [3], "{question}");
        assert!(start.elapsed() < Duration::from_millis(1500), "{question}: {:?}", start.elapsed());
    }
    upstream.change(holding(&["silent.example. 300 A 192.0.2.3", "failing.example. 300 A 192.0.2.3"]));
    for question in ["silent.example A", "failing.example A"] {
        wait_until("a fresh answer", PATIENCE, || (daemon.ask(question).data() == ["192.0.2.3"]).then_some(()));
    }
}

#[test]
fn a_popular_name_outlives_an_upstream_that_goes_silent_during_a_prefetch() {
    // It answers once, and not the query of the prefetch, nor any after that.
    let upstream = Upstream::new(|asked| match asked.earlier {
        0 => vec![Act::Reply(asked.message.respond().answer("www.example. 3 A 192.0.2.1"))],
        _ => vec![],
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    daemon.demand("www.example A", "192.0.2.1", false);
    // Past the life of the answer, and past the deadline of the exchange that the prefetch began.
    let end = Instant::now() + Duration::from_millis(7500);
    thread::scope(|scope| {
        for over_tcp in [false, false, true] {
            let daemon = &daemon;
            scope.spawn(move || {
                let query = query("www.example A").edns(1232);
                while Instant::now() < end {
                    let start = Instant::now();
                    let reply = if over_tcp { daemon.tcp(&query) } else { daemon.udp(&query) };
                    assert_eq!((reply.rcode_name(), reply.data()), ("NOERROR", vec!["192.0.2.1".to_owned()]));
                    // 1.8 s (RFC 8767 §5), and what a busy machine takes.
                    assert!(start.elapsed() < Duration::from_millis(3000), "{:?}", start.elapsed());
                    thread::sleep(Duration::from_millis(30));
                }
            });
        }
    });
    assert!(daemon.metric("watershed_cache_stale_total", &[]) > 0.0);
}

#[test]
fn staleness_is_decided_by_the_rule() {
    let upstream = Upstream::holding(&["a.consul. 1 A 192.0.2.1", "a.never.example. 1 A 192.0.2.1"]);
    let rules = [
        forward(".", &[upstream.address()]),
        forward("consul", &[upstream.address()]), // off by default, so that no dead instance is given
        forward("never.example", &[upstream.address()]) + "serve_stale = \"0s\"\n",
    ];
    let daemon = Setup::new(&rules.concat()).start();
    for question in ["a.consul A", "a.never.example A"] {
        assert_eq!(daemon.ask(question).one(), "192.0.2.1");
    }
    upstream.change(|asked| vec![Act::Reply(asked.message.respond().rcode("SERVFAIL"))]);
    for question in ["a.consul A", "a.never.example A"] {
        wait_until("a failure", PATIENCE, || {
            let reply = daemon.ask(question);
            assert!(!reply.extended_errors().contains(&3), "{question} is stale");
            (reply.rcode_name() == "SERVFAIL").then_some(())
        });
    }
}

#[test]
fn the_cache_is_bounded_in_bytes() {
    let upstream = Upstream::new(|asked| {
        let text = format!("{} 300 TXT \"{}\"", asked.message.qname(), "x".repeat(200));
        vec![Act::Reply((0..8).fold(asked.message.respond(), |response, _| response.answer(&text)))]
    });
    let config = forward(".", &[upstream.address()]) + "[cache]\nsize = \"1MiB\"\n";
    let daemon = Setup::new(&config).start();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while next.load(Ordering::Relaxed) < 1500 {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let question = query(&format!("name{number}.example TXT")).edns(4096);
                    assert_eq!(daemon.udp(&question).answer.len(), 8);
                }
            });
        }
    });
    assert!(daemon.metric("watershed_cache_bytes", &[]) <= 1_048_576.0);
    assert!(daemon.metric("watershed_cache_evictions_total", &[]) > 500.0);
    assert!(daemon.metric("watershed_cache_entries", &[]) > 100.0);
}

#[test]
fn the_cache_survives_a_restart() {
    let upstream = Upstream::holding(&["www.example. 300 A 192.0.2.1", "moved.test. 300 A 192.0.2.2"]);
    let state = tempfile::tempdir().unwrap();
    let address = free_address();
    let server = format!("[server]\nlisten = [\"{address}\"]\nstate_directory = \"{}\"\n", state.path().display());
    let rules = |test: &Upstream| forward(".", &[upstream.address()]) + &forward("test", &[test.address()]) + &server;
    let first = Setup::new(&rules(&upstream)).start();
    first.ask("www.example A");
    first.ask("moved.test A");
    assert_eq!(first.stop().code, Some(0));
    for entry in state.path().read_dir().unwrap() {
        let mode = std::os::unix::fs::PermissionsExt::mode(&entry.unwrap().metadata().unwrap().permissions());
        assert_eq!(mode & 0o077, 0, "what hosts were asked for is nobody's business");
    }
    let elsewhere = Upstream::saying("192.0.2.3");
    let second = Setup::new(&rules(&elsewhere)).start();
    // It is loaded after READY, so as not to delay it.
    let entries = || second.metric("watershed_cache_entries", &[]);
    wait_until("the entries of the first", PATIENCE, || (entries() >= 1.0).then_some(()));
    assert_eq!(second.ask("www.example A").one(), "192.0.2.1");
    assert_eq!(upstream.count("www.example A"), 1);
    assert_eq!(second.ask("moved.test A").one(), "192.0.2.3", "its rule has changed");
    second.stop();
    for entry in state.path().read_dir().unwrap() {
        std::fs::write(entry.unwrap().path(), b"damaged").unwrap();
    }
    let third = Setup::new(&rules(&elsewhere)).start();
    assert_eq!(third.ask("www.example A").one(), "192.0.2.1");
    assert_eq!(upstream.count("www.example A"), 2);
}
