//! Chains of aliases, and RDATA as servers write it that no client should see: put right, or refused.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::harness::{
    daemon::forward,
    message::{AD, name_to_wire, number_of},
    netns::Netns,
    programs::Program,
    upstream::SOA,
    *,
};

/// What an upstream says of a name: records in their order, the response code, and whether there is a SOA record.
type Saying = (&'static str, &'static [&'static str], &'static str, bool);

/// An upstream that says this to the names of the table, and denies others.
fn scripted(table: &'static [Saying]) -> Upstream {
    Upstream::new(says(table))
}

fn says(table: &'static [Saying]) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync {
    move |asked| {
        let qname = asked.message.qname().to_lowercase();
        let response = asked.message.respond();
        let found = table.iter().find(|(name, ..)| format!("{name}.") == qname);
        let Some((_, lines, rcode, has_soa)) = found else {
            return vec![Act::Reply(response.rcode("NXDOMAIN").authority(SOA))];
        };
        let of_type = |line: &&&str| {
            let rtype = number_of(line.split(' ').nth(2).unwrap());
            rtype == asked.message.qtype() || !matches!(rtype, 1 | 28)
        };
        let response = lines.iter().filter(of_type).fold(response, |response, line| response.answer(line));
        vec![Act::Reply(match has_soa {
            true => response.rcode(rcode).authority(SOA),
            false => response.rcode(rcode),
        })]
    }
}

/// What a server says, in a line: the code, the RDATA in order.
fn told(server: SocketAddr, question: &str) -> String {
    let query = query(question).edns(1232);
    let Some(wire) = exchange_udp(server, &query.to_wire(), Duration::from_secs(8)) else { return "nothing".into() };
    let reply = Message::from_wire(&wire).unwrap();
    if reply.rcode_name() == "SERVFAIL" {
        return "SERVFAIL".into(); // BIND sends a loop along
    }
    format!("{} {}", reply.rcode_name(), reply.data().join(" ").to_lowercase()).trim().to_owned()
}

/// An upstream's answers in any order and of any completeness.
const SAYINGS: &[Saying] = &[
    ("www.example", &["www.example. 60 A 192.0.2.80"], "NOERROR", false),
    ("ordered.example", &["ordered.example. 60 CNAME b1.example.", "b1.example. 60 A 192.0.2.1"], "NOERROR", false),
    ("reversed.example", &["b2.example. 60 A 192.0.2.2", "reversed.example. 60 CNAME b2.example."], "NOERROR", false),
    (
        "shuffled.example",
        &[
            "c3.example. 60 CNAME d3.example.",
            "d3.example. 60 A 192.0.2.3",
            "shuffled.example. 60 CNAME b3.example.",
            "d3.example. 60 A 192.0.2.33",
            "b3.example. 60 CNAME c3.example.",
        ],
        "NOERROR",
        false,
    ),
    (
        "www.dname.example",
        &[
            "www.t4.example. 60 A 192.0.2.4",
            "www.dname.example. 60 CNAME www.t4.example.",
            "dname.example. 60 DNAME t4.example.",
        ],
        "NOERROR",
        false,
    ),
    ("bare.example", &["bare.example. 60 CNAME b5.example."], "NOERROR", false),
    ("b5.example", &["b5.example. 60 A 192.0.2.5"], "NOERROR", false),
    (
        "halfway.example",
        &["b6.example. 60 CNAME c6.example.", "halfway.example. 60 CNAME b6.example."],
        "NOERROR",
        false,
    ),
    ("c6.example", &["c6.example. 60 A 192.0.2.6"], "NOERROR", false),
    ("other.example", &["other.example. 60 CNAME b7.elsewhere.example."], "NOERROR", false), // a rule with the same upstream
    ("b7.elsewhere.example", &["b7.elsewhere.example. 60 A 192.0.2.7"], "NOERROR", false),
    ("lacking.example", &["lacking.example. 60 CNAME b8.example."], "NOERROR", true), // NODATA, and so not asked again
    ("b8.example", &[], "NOERROR", true),
    // BIND and Unbound ask for each target of a chain by itself, whatever came with it.
    ("b1.example", &["b1.example. 60 A 192.0.2.1"], "NOERROR", false),
    ("b2.example", &["b2.example. 60 A 192.0.2.2"], "NOERROR", false),
    ("b3.example", &["b3.example. 60 CNAME c3.example."], "NOERROR", false),
    ("c3.example", &["c3.example. 60 CNAME d3.example."], "NOERROR", false),
    ("d3.example", &["d3.example. 60 A 192.0.2.3", "d3.example. 60 A 192.0.2.33"], "NOERROR", false),
    ("www.t4.example", &["www.t4.example. 60 A 192.0.2.4"], "NOERROR", false),
    ("b6.example", &["b6.example. 60 CNAME c6.example."], "NOERROR", false),
    ("dangling.example", &["dangling.example. 60 CNAME b9.example."], "NXDOMAIN", true),
    ("gone.example", &["gone.example. 60 CNAME b10.example."], "NOERROR", false), // whose target does not exist
    ("loop.example", &["loop.example. 60 CNAME b11.example."], "NOERROR", false),
    ("b11.example", &["b11.example. 60 CNAME loop.example."], "NOERROR", false),
    ("self.example", &["self.example. 60 CNAME self.example."], "NOERROR", false),
];

/// What we answer to each name, and what BIND and Unbound do where that differs.
const TOLD: &[(&str, &str, Option<&str>, Option<&str>)] = &[
    ("ordered.example A", "NOERROR b1.example. 192.0.2.1", None, None),
    ("reversed.example A", "NOERROR b2.example. 192.0.2.2", None, None),
    ("shuffled.example A", "NOERROR b3.example. c3.example. d3.example. 192.0.2.3 192.0.2.33", None, None),
    ("www.dname.example A", "NOERROR t4.example. www.t4.example. 192.0.2.4", None, None),
    ("bare.example A", "NOERROR b5.example. 192.0.2.5", None, None),
    ("bare.example CNAME", "NOERROR b5.example.", None, None),
    ("halfway.example A", "NOERROR b6.example. c6.example. 192.0.2.6", None, None),
    ("other.example A", "NOERROR b7.elsewhere.example. 192.0.2.7", None, None),
    ("lacking.example A", "NOERROR b8.example.", None, None),
    ("dangling.example A", "NXDOMAIN b9.example.", None, None),
    ("gone.example A", "NXDOMAIN b10.example.", None, None),
    ("loop.example A", "SERVFAIL", None, None),
    ("self.example A", "SERVFAIL", None, None),
];

#[test]
fn a_chain_in_any_order_is_answered_as_bind_and_unbound_answer_it() {
    let upstream = scripted(SAYINGS);
    let bind = Program::bind_forwarding_all(upstream.address(), "");
    let unbound = Program::unbound_forwarding_all(upstream.address());
    let peers = [bind, unbound];
    let config = forward(".", &[upstream.address()]) + &forward("elsewhere.example", &[upstream.address()]);
    let daemon = Setup::new(&config).start();
    let mut wrong = String::new();
    for (question, ours, by_bind, by_unbound) in TOLD {
        for from in ["the upstream", "the cache"] {
            let found = told(daemon.address(), question);
            if !same(&found, ours) {
                wrong += &format!("{question} from {from}: {found}, not {ours}\n");
            }
        }
        for (peer, differently) in peers.iter().zip([by_bind, by_unbound]) {
            let Some(peer) = peer else { continue };
            let found = told(peer.address(), question);
            if !same(&found, differently.unwrap_or(ours)) {
                wrong += &format!("{question} by {}: {found}\n", peer.name());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    let before = upstream.count("b8.example A");
    daemon.ask("lacking.example AAAA");
    assert_eq!(upstream.count("b8.example AAAA") + upstream.count("b8.example A"), before, "NODATA is an answer");
}

/// An RRset has no order, and the last one may be rotated.
fn same(found: &str, expected: &str) -> bool {
    let sorted = |text: &str| {
        let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let names = words.iter().take_while(|word| !word.starts_with("192.")).count();
        words[names..].sort();
        words
    };
    sorted(found) == sorted(expected)
}

#[test]
fn libc_finds_the_address_behind_a_chain_in_any_order() {
    let Some(netns) = Netns::new("nameserver 127.0.0.1\n") else { return };
    let upstream = Upstream::at(SocketAddr::new(netns.host(), 5301), says(SAYINGS));
    let config = forward(".", &[upstream.address()])
        + "block_special = false\n[server]\nlisten = [\"127.0.0.1:53\"]\nworkers = 1\n";
    let _daemon = Setup::new(&config).within(&netns).start();
    for (name, address) in [
        ("reversed.example", "192.0.2.2"),
        ("shuffled.example", "192.0.2.3"),
        ("www.dname.example", "192.0.2.4"),
        ("bare.example", "192.0.2.5"),
    ] {
        for database in ["ahosts", "ahostsv4"] {
            let found = run(netns.command("getent").args([database, name]));
            assert!(found.contains(address), "{database} {name}: {found}");
        }
    }
}

/// Each step is asked for by itself: of one rule, and of a local zone that leads to it.
#[test]
fn a_chain_is_followed_sixteen_times_and_no_more() {
    let upstream = Upstream::new(|asked| {
        let qname = asked.message.qname().to_lowercase();
        let (number, rest) = qname[1..].split_once('.').unwrap();
        let number: usize = number.parse().unwrap();
        let length: usize = rest.split('.').next().unwrap()[1..].parse().unwrap();
        let response = asked.message.respond().set(AD);
        vec![Act::Reply(match number < length {
            true => response.answer(&format!("{qname} 60 CNAME n{}.{rest}", number + 1)),
            false => response.answer(&format!("{qname} 60 A 192.0.2.1")),
        })]
    });
    let zone = "@ 60 SOA ns host 1 1 1 1 60\n@ 60 NS ns\nns 60 A 192.0.2.9\nlocal 60 CNAME n1.l16.example.\n\
                far 60 CNAME n0.l16.example.\n";
    let config = forward(".", &[upstream.address()])
        + "trust_ad = true\n[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n";
    let daemon = Setup::new(&config).file("site.zone", zone).start();
    for (question, links) in [
        ("n0.l1.example A", Some(1)),
        ("n0.l16.example A", Some(16)),
        ("n0.l17.example A", None),
        ("local.site.example A", Some(16)),
        ("far.site.example A", None),
    ] {
        for _ in 0..2 {
            let reply = daemon.ask(question);
            match links {
                Some(links) => {
                    assert_eq!((reply.rcode_name(), reply.answer.len()), ("NOERROR", links + 1), "{question}");
                    for pair in reply.answer.windows(2) {
                        assert_eq!(pair[0].data().to_lowercase(), pair[1].owner.to_lowercase(), "{question}");
                    }
                }
                None => assert_eq!((reply.rcode_name(), reply.answer.len()), ("SERVFAIL", 0), "{question}"),
            }
        }
    }
    // All parts were validated, and the upstream is trusted with that.
    assert!(daemon.udp(&query("n0.l3.example A").set(AD).dnssec_ok()).has(AD));
    assert!(!daemon.udp(&query("local.site.example A").set(AD).dnssec_ok()).has(AD), "local data is not validated");
}

#[test]
fn a_and_aaaa_of_a_bare_alias_are_followed_together() {
    let upstream = scripted(&[
        ("pair.example", &["pair.example. 60 CNAME t.example."], "NOERROR", false),
        ("t.example", &["t.example. 60 A 192.0.2.1", "t.example. 60 AAAA 2001:db8::1"], "NOERROR", false),
        ("four.example", &["four.example. 60 CNAME t4.example."], "NOERROR", false),
        ("t4.example", &["t4.example. 60 A 192.0.2.4"], "NOERROR", false), // and an empty answer without SOA for AAAA
    ]);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    assert_eq!(daemon.ask("pair.example AAAA").data(), ["t.example.", "2001:db8::1"]);
    assert_eq!(daemon.ask("pair.example A").data(), ["t.example.", "192.0.2.1"]);
    assert_eq!(daemon.ask("four.example A").data(), ["t4.example.", "192.0.2.4"]);
    let lacking = daemon.ask("four.example AAAA");
    assert_eq!((lacking.rcode_name(), lacking.data()), ("NOERROR", vec!["t4.example.".to_owned()]));
    assert_eq!(daemon.ask("pair.example CNAME").data(), ["t.example."]);
}

/// A record whose RDATA is given in octets, as the only answer.
fn raw_answer(asked: &Asked, rtype: u16, rdata: &[u8]) -> Vec<u8> {
    let mut wire = Message { edns: None, ..asked.message.respond() }.to_wire();
    wire[6..8].copy_from_slice(&1u16.to_be_bytes());
    wire.extend(b"\xc0\x0c");
    wire.extend(rtype.to_be_bytes());
    wire.extend(b"\x00\x01\x00\x00\x00\x3c");
    wire.extend((rdata.len() as u16).to_be_bytes());
    wire.extend(rdata);
    wire
}

/// The RDATA of the first answer as it came, with its owner a pointer to the question.
fn raw_rdata(server: SocketAddr, question: &str) -> Vec<u8> {
    let query = query(question);
    let wire = exchange_udp(server, &query.to_wire(), Duration::from_secs(8)).expect("a reply");
    let at = 12 + query.question.len();
    assert_eq!(wire[6..8], [0, 1], "{question}: {wire:x?}");
    assert_eq!(wire[at..at + 2], [0xc0, 0x0c], "{question}");
    let length = usize::from(u16::from_be_bytes([wire[at + 10], wire[at + 11]]));
    wire[at + 12..at + 12 + length].to_vec()
}

/// The types in which a receiver may be surprised by a pointer: what stands before their names, and how many names there are.
const EXPANDED: &[(&str, &[u8], usize)] = &[
    ("SRV", b"\x00\x01\x00\x02\x01\x85", 1),
    ("NAPTR", b"\x00\x01\x00\x02\x01S\x03SIP\x00", 1),
    ("RP", b"", 2),
    ("TYPE18", b"\x00\x01", 1), // AFSDB
    ("TYPE21", b"\x00\x01", 1), // RT
    ("TYPE36", b"\x00\x01", 1), // KX
    ("TYPE26", b"\x00\x01", 2), // PX
    ("DNAME", b"", 1),
    ("MINFO", b"", 2),
];

#[test]
fn compressed_names_are_written_out_where_they_may_surprise() {
    let upstream = Upstream::new(|asked| {
        let rtype = asked.message.qtype();
        let (before, names) = match EXPANDED.iter().find(|(name, ..)| number_of(name) == rtype) {
            Some((_, before, names)) => (*before, *names),
            None if rtype == number_of("MX") => (&b"\x00\x0a"[..], 1),
            None => return vec![Act::Reply(asked.message.respond().answer("www.example. 60 A 192.0.2.1"))],
        };
        let rdata = [before, &b"\x02dc\xc0\x0c".repeat(names)].concat();
        vec![Act::Bytes(raw_answer(asked, rtype, &rdata))]
    });
    let peers =
        [Program::bind_forwarding_all(upstream.address(), ""), Program::unbound_forwarding_all(upstream.address())];
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for (rtype, before, names) in EXPANDED {
        let expected = [before, &*name_to_wire("dc.site.example").repeat(*names)].concat();
        let question = format!("site.example {rtype}");
        for _ in ["from the upstream", "from the cache"] {
            assert_eq!(raw_rdata(daemon.address(), &question), expected, "{rtype}");
        }
        for peer in peers.iter().flatten().filter(|_| *rtype != "MINFO") {
            assert_eq!(raw_rdata(peer.address(), &question), expected, "{rtype} by {}", peer.name());
        }
    }
    // Of MX every reader expects a pointer.
    assert_eq!(raw_rdata(daemon.address(), "site.example MX"), b"\x00\x0a\x02dc\xc0\x0c");
}

/// A type, its RDATA, and what BIND and Unbound make of it where that is not our SERVFAIL.
type Malformed = (&'static str, &'static [u8], Option<&'static str>, Option<&'static str>);

/// Unbound passes on what it need not look into.
const PASSED: Option<&str> = Some("NOERROR");
/// RDATA that lacks the form of its type, and what BIND and Unbound make of it where that is no failure.
const MALFORMED: &[Malformed] = &[
    ("A", b"\xc0\x00\x02", None, PASSED),
    ("A", &[7; 16], None, PASSED),
    ("A", b"", None, PASSED),
    ("AAAA", b"\xc0\x00\x02\x01", None, PASSED),
    ("AAAA", &[7; 17], None, PASSED),
    ("MX", b"\x00", None, None),
    ("MX", b"\x00\x0a\xc0\x0c\x00", None, PASSED), // something after its name
    ("CNAME", b"\x03www\x07examp", None, None),    // a name that is cut
    ("CNAME", b"\x3fwww\x07example\x00", None, None), // a label beyond RDLENGTH
    ("NS", b"\xc0", None, None),
    ("NS", b"\xc0\xff", None, None),  // a pointer beyond the message
    ("PTR", b"\xc0\x02", None, None), // a pointer into the header
    ("SOA", b"\x00\x00\x00\x00\x00\x01", None, PASSED),
    ("TXT", b"", None, PASSED),
    ("TXT", b"\x05abc", None, PASSED),
    ("SRV", b"\x00\x01\x00\x02\x01\x85", None, Some("unreadable")),
    ("NAPTR", b"\x00\x01\x00\x02\x01S\x09SIP\x00\x00", None, None),
    ("HINFO", b"\x03abc", None, PASSED),
    ("DS", b"\x00\x01\x08\x02abc", None, PASSED),
    ("CAA", b"\x00\x09issue", None, PASSED),
    ("HTTPS", b"\x00\x01\x00\x00\x01\x00\x09h2", None, PASSED),
    ("TLSA", b"\x03\x01", None, PASSED),
];

#[test]
fn rdata_without_the_form_of_its_type_makes_a_response_broken() {
    let faulty = |asked: &Asked| {
        let qname = asked.message.qname().to_lowercase();
        let row = qname.split('.').next().and_then(|label| label[1..].parse::<usize>().ok());
        let Some((rtype, rdata, ..)) = row.and_then(|row| MALFORMED.get(row)) else {
            return vec![Act::Reply(asked.message.respond().answer("www.example. 60 A 192.0.2.1"))];
        };
        vec![Act::Bytes(raw_answer(asked, number_of(rtype), rdata))]
    };
    let (upstream, other) = (Upstream::new(faulty), Upstream::holding(&[]));
    let peers =
        [Program::bind_forwarding_all(upstream.address(), ""), Program::unbound_forwarding_all(upstream.address())];
    let config =
        forward("one.example", &[upstream.address()]) + &forward("two.example", &[upstream.address(), other.address()]);
    let daemon = Setup::new(&config).start();
    let wrong = Arc::new(Mutex::new(String::new()));
    std::thread::scope(|scope| {
        for (row, (rtype, rdata, by_bind, by_unbound)) in MALFORMED.iter().enumerate() {
            for (server, name, suffix, expected) in [
                (Some(daemon.address()), "watershed", "one.example", "SERVFAIL"),
                (Some(daemon.address()), "watershed", "two.example", "NXDOMAIN"),
                (peers[0].as_ref().map(Program::address), "bind", "one.example", by_bind.unwrap_or("SERVFAIL")),
                (peers[1].as_ref().map(Program::address), "unbound", "one.example", by_unbound.unwrap_or("SERVFAIL")),
            ] {
                let Some(server) = server else { continue };
                let wrong = wrong.clone();
                scope.spawn(move || {
                    let question = format!("r{row}.{suffix} {rtype}");
                    let wire = exchange_udp(server, &query(&question).edns(1232).to_wire(), Duration::from_secs(9));
                    let reply = wire.map(|wire| Message::from_wire(&wire).map(|reply| reply.rcode_name()));
                    let found = reply.map_or("SERVFAIL", |reply| reply.unwrap_or("unreadable"));
                    if found != expected {
                        *wrong.lock().unwrap() += &format!("{question} {rdata:x?} by {name}: {found}\n");
                    }
                });
            }
        }
    });
    let wrong = wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{wrong}");
    // What is unknown has no form.
    upstream.change(|asked| vec![Act::Bytes(raw_answer(asked, asked.message.qtype(), b"\xc0\x00\x02"))]);
    assert_eq!(daemon.ask("x.one.example TYPE65280").data(), ["\\# 3 c00002"]);
}
