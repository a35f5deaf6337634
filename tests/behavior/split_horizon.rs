//! Which source speaks for a name, and that no other is ever asked for it.

use std::time::{Duration, Instant};

use crate::harness::{
    daemon::forward,
    message::{AA, AD},
    *,
};

const DAY: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n";

#[test]
fn the_longest_suffix_wins_whatever_kind_of_rule_it_is() {
    let (public, corp, deep) =
        (Upstream::saying("192.0.2.1"), Upstream::saying("192.0.2.2"), Upstream::saying("192.0.2.3"));
    let config = [
        forward("corp.example", &[corp.address()]),
        forward(".", &[public.address()]),
        forward("deep.static.corp.example", &[deep.address()]),
        "[[zone]]\napex = \"static.corp.example\"\nfile = \"<DIR>/static.zone\"\n".to_owned(),
        "[[zone]]\napex = \"corp.example\"\nfile = \"<DIR>/corp.overlay\"\nmode = \"overlay\"\n".to_owned(),
        "[[refuse]]\nsuffixes = [\"secret.corp.example\", \"ads.test\"]\n".to_owned(),
        forward("open.secret.corp.example", &[public.address()]),
    ]
    .concat();
    let daemon = Setup::new(&config)
        .file("static.zone", &format!("{DAY}www A 192.0.2.10\n"))
        .file("corp.overlay", "$TTL 60\nwww A 192.0.2.20\nfixed.static A 192.0.2.21\n")
        .start();
    for (qname, expected) in [
        ("www.example.org", "192.0.2.1"),
        ("corp.example", "192.0.2.2"), // a suffix covers itself
        ("mail.corp.example", "192.0.2.2"),
        ("MAIL.Corp.EXAMPLE", "192.0.2.2"),          // without regard to case
        ("notcorp.example", "192.0.2.1"),            // labels are compared, not letters
        ("corp.example.org", "192.0.2.1"),           // from the end
        ("www.corp.example", "192.0.2.20"),          // an overlay first
        ("www.static.corp.example", "192.0.2.10"),   // a zone below a forward
        ("fixed.static.corp.example", "192.0.2.21"), // an overlay before a longer zone
        ("x.deep.static.corp.example", "192.0.2.3"), // a forward below a zone
        ("deep.static.corp.example", "192.0.2.3"),
        ("no.static.corp.example", "NXDOMAIN"), // a zone denies
        ("www.secret.corp.example", "REFUSED"),
        ("secret.corp.example", "REFUSED"),
        ("ads.test", "REFUSED"),
        ("www.open.secret.corp.example", "192.0.2.1"), // an exception below a refusal
    ] {
        let reply = daemon.ask(&format!("{qname} A"));
        let found = reply.data().first().cloned().unwrap_or(reply.rcode_name().to_owned());
        assert_eq!(found, expected, "{qname}");
    }
    for (upstream, suffixes) in [(&corp, &["corp.example."][..]), (&deep, &["deep.static.corp.example."])] {
        for asked in upstream.asked() {
            assert!(suffixes.iter().any(|suffix| asked.contains(suffix)), "{asked} leaked");
        }
    }
    for asked in public.asked() {
        let allowed = asked.contains("open.secret.corp.example.") || !asked.contains(".corp.example.");
        assert!(allowed && !asked.contains("ads.test"), "{asked} leaked");
    }
}

#[test]
fn a_consul_name_never_reaches_the_recursors() {
    let recursor = Upstream::new(|asked| {
        let alias = format!("{} 60 CNAME galeradb.service.consul.", asked.message.qname());
        let lie = "galeradb.service.consul. 60 A 203.0.113.66";
        vec![Act::Reply(asked.message.respond().answer(&alias).answer(lie))]
    });
    let dead = free_address();
    let daemon = Setup::new(&(forward(".", &[recursor.address()]) + &forward("consul", &[dead]))).start();
    let mut asked = 0;
    for qname in
        ["galeradb.service.consul", "CONSUL", "web.service.dc2.Consul", "x.node.consul", "_a._tcp.service.consul"]
    {
        for qtype in ["A", "AAAA", "SRV", "ANY", "SOA", "NS", "TXT", "TYPE65280"] {
            let start = Instant::now();
            let question = query(&format!("{qname} {qtype}")).edns(1232);
            let reply = if asked % 5 == 0 { daemon.tcp(&question) } else { daemon.udp(&question) };
            assert_eq!(reply.rcode_name(), "SERVFAIL", "{qname} {qtype}");
            assert!(!reply.extended_errors().is_empty(), "{qname} {qtype}: no extended error");
            assert!(start.elapsed() < Duration::from_secs(4), "{qname} {qtype}: {:?}", start.elapsed());
            asked += 1;
        }
    }
    // Nor by way of an alias, nor is the recursor believed about it.
    let reply = daemon.ask("alias.example A");
    assert_eq!(reply.rcode_name(), "SERVFAIL");
    assert!(!reply.data().contains(&"203.0.113.66".to_owned()));
    // Nor while a reload is under way.
    for _ in 0..3 {
        daemon.reload();
        assert_eq!(daemon.ask("galeradb.service.consul A").rcode_name(), "SERVFAIL");
    }
    // The recursor serves meanwhile; and this is all it ever saw.
    assert!(recursor.asked().iter().all(|question| question == "alias.example. A"), "{:?}", recursor.asked());
}

#[test]
fn an_alias_is_followed_by_the_rule_of_its_target() {
    let public = Upstream::holding(&[
        "www.example. 300 CNAME app.corp.example.",
        "app.corp.example. 300 A 203.0.113.66", // no say over this name
        "same.example. 300 CNAME target.example.",
        "target.example. 300 A 192.0.2.7",
        "back.example. 60 A 192.0.2.8",
    ]);
    let corp = Upstream::holding(&[
        "app.corp.example. 60 A 192.0.2.10",
        "there.corp.example. 60 CNAME back.example.",
        "local.corp.example. 60 CNAME www.static.example.",
        "gone.corp.example. 60 CNAME no.static.example.",
    ]);
    let zone = "[[zone]]\napex = \"static.example\"\nfile = \"<DIR>/static.zone\"\n";
    let config = forward(".", &[public.address()]) + &forward("corp.example", &[corp.address()]) + zone;
    let zone = format!("{DAY}www A 192.0.2.30\nout CNAME app.corp.example.\n");
    let daemon = Setup::new(&config).file("static.zone", &zone).start();
    for (question, expected) in [
        ("www.example A", vec!["www.example. 300 CNAME app.corp.example.", "app.corp.example. 60 A 192.0.2.10"]),
        ("same.example A", vec!["same.example. 300 CNAME target.example.", "target.example. 300 A 192.0.2.7"]),
        ("there.corp.example A", vec!["there.corp.example. 60 CNAME back.example.", "back.example. 60 A 192.0.2.8"]),
        (
            "local.corp.example A",
            vec!["local.corp.example. 60 CNAME www.static.example.", "www.static.example. 60 A 192.0.2.30"],
        ),
        (
            "out.static.example A",
            vec!["out.static.example. 60 CNAME app.corp.example.", "app.corp.example. 60 A 192.0.2.10"],
        ),
        ("www.example CNAME", vec!["www.example. 300 CNAME app.corp.example."]), // asked for itself
        ("www.example AAAA", vec!["www.example. 300 CNAME app.corp.example."]),  // the target lacks the type
    ] {
        let reply = daemon.ask(question);
        assert_eq!(reply.rcode_name(), "NOERROR", "{question}");
        assert_eq!(reply.answers(), expected, "{question}");
    }
    let denied = daemon.ask("gone.corp.example A");
    assert_eq!((denied.rcode_name(), denied.answer.len()), ("NXDOMAIN", 1));
    assert!(denied.soa().is_some(), "the denial of the target's zone comes along");
    for asked in public.asked() {
        assert!(!asked.contains("corp.example") && !asked.contains("static.example"), "{asked} leaked");
    }
}

#[test]
fn an_assembled_answer_is_not_authentic_if_a_part_is_not_and_carries_nothing_of_what_was_cut() {
    let public = Upstream::new(|asked| {
        let response = asked.message.respond().set(AD | AA).answer("www.example. 300 CNAME app.corp.example.");
        let response = response.answer("app.corp.example. 300 A 203.0.113.66");
        let response = response.authority("corp.example. 300 NS ns.evil.test.");
        vec![Act::Reply(response.additional("ns.evil.test. 300 A 203.0.113.67"))]
    });
    let corp = Upstream::saying("192.0.2.10");
    let daemon = Setup::new(&(forward(".", &[public.address()]) + &forward("corp.example", &[corp.address()]))).start();
    let reply = daemon.udp(&query("www.example A").set(AD).dnssec_ok());
    assert_eq!(reply.data(), ["app.corp.example.", "192.0.2.10"]);
    assert!(!reply.has(AD) && !reply.has(AA));
    assert!(reply.authority.is_empty() && reply.additional.is_empty(), "{reply:#?}");
}

#[test]
fn long_chains_and_loops_across_rules_come_to_an_end() {
    // n0.a -> n1.b -> n2.a ...: every step crosses a rule.
    let hop = |length: usize| {
        move |asked: &Asked| {
            let qname = asked.message.qname().to_lowercase();
            let number: usize = qname[1..].split('.').next().unwrap().parse().unwrap();
            let next = ["b", "a"][number % 2];
            let response = asked.message.respond();
            vec![Act::Reply(match number < length {
                true => response.answer(&format!("{qname} 60 CNAME n{}.{next}.example.", number + 1)),
                false => response.answer(&format!("{qname} 60 A 192.0.2.1")),
            })]
        }
    };
    for (length, answered) in [(1, true), (16, true), (17, false), (30, false)] {
        let (a, b) = (Upstream::new(hop(length)), Upstream::new(hop(length)));
        let daemon =
            Setup::new(&(forward("a.example", &[a.address()]) + &forward("b.example", &[b.address()]))).start();
        let reply = daemon.ask("n0.a.example A");
        assert_eq!(reply.data().contains(&"192.0.2.1".to_owned()), answered, "{length} steps: {reply:#?}");
        assert!(a.asked().len() + b.asked().len() < 20, "{length} steps");
        assert!(answered || reply.rcode_name() == "SERVFAIL", "{length} steps");
    }
    let a =
        Upstream::new(|asked| vec![Act::Reply(asked.message.respond().answer("x.a.example. 60 CNAME x.b.example."))]);
    let b =
        Upstream::new(|asked| vec![Act::Reply(asked.message.respond().answer("x.b.example. 60 CNAME x.a.example."))]);
    let daemon = Setup::new(&(forward("a.example", &[a.address()]) + &forward("b.example", &[b.address()]))).start();
    assert_eq!(daemon.ask("x.a.example A").rcode_name(), "SERVFAIL");
    assert!(a.asked().len() + b.asked().len() < 12, "{:?}", a.asked());
}

#[test]
fn special_names_are_answered_here() {
    let upstream = Upstream::saying("203.0.113.66");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for (question, expected) in [
        ("localhost A", "127.0.0.1"),
        ("localhost AAAA", "::1"),
        ("LOCALHOST A", "127.0.0.1"),
        ("db.localhost A", "127.0.0.1"), // RFC 6761 §6.3
        ("1.0.0.127.in-addr.arpa PTR", "localhost."),
        ("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.ip6.arpa PTR", "localhost."),
        ("localhost MX", "NOERROR"),
        ("www.invalid A", "NXDOMAIN"),
        ("abcdef.onion A", "NXDOMAIN"),                    // RFC 7686
        ("www.alt A", "NXDOMAIN"),                         // RFC 9476
        ("_dns.resolver.arpa SVCB", "NODATA or NXDOMAIN"), // RFC 9462
        ("4.3.254.169.in-addr.arpa PTR", "NXDOMAIN"),
        ("7.7.0.127.in-addr.arpa PTR", "NXDOMAIN"),
    ] {
        let reply = daemon.ask(question);
        let found = reply.data().first().cloned().unwrap_or(reply.rcode_name().to_owned());
        match expected {
            "NODATA or NXDOMAIN" => assert!(reply.answer.is_empty() && reply.rcode != 2, "{question}: {found}"),
            _ => assert_eq!(found, expected, "{question}"),
        }
        assert!(!reply.answer.is_empty() || reply.soa().is_some(), "{question}: a denial has its SOA record");
    }
    assert_eq!(upstream.asked(), Vec::<String>::new());
}

#[test]
fn names_of_private_networks_are_kept_from_public_upstreams_alone() {
    let private = [
        "1.0.0.10.in-addr.arpa PTR",
        "1.1.168.192.in-addr.arpa PTR",
        "1.1.16.172.in-addr.arpa PTR",
        "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa PTR",
        "printer.local A",
        "nas.home.arpa A",
        "www.test A",
    ];
    let ask_all = |rule: &str, upstream: &Upstream| {
        let daemon = Setup::new(&(forward(".", &[upstream.address()]) + rule)).start();
        private.iter().for_each(|question| drop(daemon.ask(question)));
    };
    let internal = Upstream::saying("192.0.2.1");
    ask_all("", &internal);
    assert_eq!(internal.asked().len(), private.len(), "an internal recursor may know them: {:?}", internal.asked());

    let public = Upstream::saying("192.0.2.1");
    ask_all("block_special = true\n", &public);
    assert_eq!(public.asked(), Vec::<String>::new());
}

#[test]
fn a_special_name_that_is_not_forwarded_says_which_key_decides_that() {
    let upstream = Upstream::saying("192.0.2.1");
    let config = forward(".", &[upstream.address()]) + "block_special = true\n";
    let daemon = Setup::new(&config).start();
    for question in ["db.internal A", "1.1.16.172.in-addr.arpa PTR"] {
        for _ in ["made", "from the cache"] {
            let reply = daemon.ask(question);
            assert_eq!((reply.rcode_name(), reply.extended_errors()), ("NXDOMAIN", vec![15]), "{question}");
            let text = &reply.error_texts()[0];
            assert!(text.contains("block_special is set in the rule for .;"), "{text}");
        }
    }
    let text = &daemon.ask("db.internal A").error_texts()[0];
    assert!(text.starts_with("internal. is not forwarded: ") && text.contains("set block_special = false"), "{text}");
    assert_eq!(daemon.ask("www.invalid A").extended_errors(), [0; 0], "this is no matter of a key");
    let checked = |upstream: &str| Setup::new(&forward(".", &[upstream.parse().unwrap()])).check().text;
    let text = checked("203.0.113.53:53");
    let line = "block    local., home.arpa., test., internal., 10.0.0.0/8, 172.16.0.0/12, ";
    assert!(text.contains(line) && text.contains("not by the rule for . (block_special is on"), "{text}");
    // Resolvers of clouds know private zones.
    for upstream in ["168.63.129.16:53", "169.254.169.253:53", "[fd00:ec2::253]:53", "10.0.0.2:53"] {
        assert!(!checked(upstream).contains("block_special"), "{upstream}");
    }
}

#[test]
fn reverse_names_are_routed_like_others() {
    let (public, corp) =
        (Upstream::holding(&[]), Upstream::holding(&["9.2.0.10.in-addr.arpa. 60 PTR app.corp.example."]));
    let config = [
        forward(".", &[public.address()]),
        forward("10.in-addr.arpa", &[corp.address()]),
        "[zones]\nhosts = [\"<DIR>/hosts\"]\n".to_owned(),
    ]
    .concat();
    let daemon = Setup::new(&config).file("hosts", "10.0.2.1 db.corp.example db\n").start();
    assert_eq!(daemon.ask("1.2.0.10.in-addr.arpa PTR").one(), "db.corp.example.");
    assert_eq!(daemon.ask("9.2.0.10.in-addr.arpa PTR").one(), "app.corp.example.");
    assert_eq!(daemon.ask("8.2.0.10.in-addr.arpa PTR").rcode_name(), "NXDOMAIN");
    assert!(public.asked().is_empty() && corp.asked().len() == 2);
}

#[test]
fn a_network_stands_for_its_reverse_zones_and_the_smaller_one_wins() {
    let (large, small, others) = (Upstream::holding(&[]), Upstream::holding(&[]), Upstream::holding(&[]));
    let config = [
        forward(".", &[others.address()]),
        forward("172.16.0.0/12", &[large.address()]),
        forward("172.20.0.0/16", &[small.address()]),
        "[[refuse]]\nsuffixes = [\"172.21.0.0/16\", \"2001:db8::/32\"]\n".to_owned(),
    ]
    .concat();
    let daemon = Setup::new(&config).start();
    for question in ["1.0.16.172.in-addr.arpa PTR", "1.0.31.172.in-addr.arpa PTR", "1.0.20.172.in-addr.arpa PTR"] {
        assert_eq!(daemon.ask(question).rcode_name(), "NXDOMAIN", "{question}");
    }
    assert_eq!((large.asked().len(), small.asked()), (2, vec!["1.0.20.172.in-addr.arpa. PTR".to_owned()]));
    for refused in ["1.0.21.172.in-addr.arpa PTR", "1.8.b.d.0.1.0.0.2.ip6.arpa PTR"] {
        assert_eq!(daemon.ask(refused).rcode_name(), "REFUSED", "{refused}");
    }
    daemon.ask("1.0.32.172.in-addr.arpa PTR");
    assert_eq!(others.asked(), ["1.0.32.172.in-addr.arpa. PTR"], "outside of the network");
}

#[test]
fn a_name_outside_ascii_is_asked_for_in_its_other_form() {
    let upstream = Upstream::saying("192.0.2.1");
    let config = forward("bücher.example", &[upstream.address()])
        + "[[refuse]]\nsuffixes = [\"straße.example\"]\n[zones]\nhosts = []\ndirectory = \"<DIR>/zones\"\n";
    let zone = "@ 60 SOA ns host 1 1 1 1 60\n@ 60 NS ns\nns 60 A 192.0.2.9\n";
    let daemon = Setup::new(&config).file("zones/müller.example.zone", zone).start();
    assert_eq!(daemon.ask("www.xn--bcher-kva.example A").one(), "192.0.2.1");
    assert_eq!(daemon.ask("xn--strae-oqa.example A").rcode_name(), "REFUSED");
    assert_eq!(daemon.ask("ns.xn--mller-kva.example A").one(), "192.0.2.9");
}

/// dnsmasq and systemd-resolved speak of addresses alone; dnsmasq asks for the address type that the file lacks, too, and
/// systemd-resolved does not, as we do not.
#[test]
fn a_name_in_a_hosts_file_falls_through_for_other_types_if_it_may() {
    let upstream = Upstream::holding(&[
        "db.example. 60 A 203.0.113.66",
        "db.example. 60 AAAA 2001:db8::66",
        "db.example. 60 MX 10 mail.example.",
        "alias.example. 60 CNAME db.example.",
        "7.2.0.192.in-addr.arpa. 60 TXT \"a text\"",
        "7.2.0.192.in-addr.arpa. 60 PTR evil.example.",
    ]);
    let zones = "[zones]\nhosts = [\"<DIR>/hosts\"]\nhosts_fallthrough = true\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + "block_special = false\n" + zones))
        .file("hosts", "192.0.2.7 db.example only.example\n")
        .start();
    for (question, rcode, data) in [
        ("db.example A", "NOERROR", &["192.0.2.7"][..]),
        ("db.example AAAA", "NOERROR", &[]),
        ("db.example MX", "NOERROR", &["10 mail.example."]),
        ("db.example TXT", "NOERROR", &[]),
        ("only.example A", "NOERROR", &["192.0.2.7"]),
        ("only.example MX", "NOERROR", &[]), // the upstream denies the name, which exists all the same
        ("no.example MX", "NXDOMAIN", &[]),
        ("alias.example A", "NOERROR", &["db.example.", "192.0.2.7"]),
        ("alias.example MX", "NOERROR", &["db.example.", "10 mail.example."]),
        ("7.2.0.192.in-addr.arpa PTR", "NOERROR", &["db.example."]),
        ("7.2.0.192.in-addr.arpa TXT", "NOERROR", &["\"a text\""]),
    ] {
        for _ in ["made", "from the cache"] {
            let reply = daemon.ask(question);
            assert_eq!(
                (reply.rcode_name(), reply.data()),
                (rcode, data.iter().map(|d| (*d).to_owned()).collect()),
                "{question}"
            );
            assert!(!reply.answer.is_empty() || reply.soa().is_some(), "{question}");
        }
    }
    for kept in ["db.example A", "db.example AAAA", "only.example A", "7.2.0.192.in-addr.arpa PTR"] {
        assert_eq!(upstream.count(kept), 0, "{kept}");
    }
    daemon.edit_config(|config| config.replace("hosts_fallthrough = true", ""));
    daemon.reload();
    for (question, count) in [("db.example MX", 0), ("7.2.0.192.in-addr.arpa TXT", 0), ("db.example A", 1)] {
        assert_eq!(daemon.ask(question).answer.len(), count, "{question} without the key");
    }
}

#[test]
fn clients_outside_of_the_allowed_networks_are_refused() {
    let upstream = Upstream::saying("192.0.2.1");
    let server = "[server]\nlisten = [\"127.0.0.1:0\"]\nallow = [\"192.0.2.0/24\"]\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + server)).start();
    for question in ["www.example A", "localhost A"] {
        assert_eq!(daemon.ask(question).rcode_name(), "REFUSED");
    }
    // A connection would take the place of somebody who is served, so it is closed without a word.
    let mut stream = std::net::TcpStream::connect(daemon.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(std::io::Read::read(&mut stream, &mut [0; 1]), Ok(0) | Err(_)));
    for (metric, expected) in [("watershed_server_rejected_total", 2.0), ("watershed_server_tcp_refused_total", 1.0)] {
        assert_eq!(daemon.metric(metric, &[("reason", "acl")]), expected, "{metric}");
    }
    assert!(upstream.asked().is_empty());
}
