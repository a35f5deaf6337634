//! What a forger would have to guess, and that he loses even if he may guess as often as there are ids.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use crate::harness::{daemon::forward, netns::Netns, upstream::saying, *};

/// A daemon in a namespace, asked from outside, in front of an upstream outside: all of it over a link, none on loopback.
fn behind_a_link(
    netns: &Netns,
    rule: &str,
    script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static,
) -> (Upstream, Daemon) {
    let upstream = Upstream::at(SocketAddr::new(netns.host(), 5301), script);
    let guest = netns.guest();
    let config = format!(
        "{}{rule}[server]\nlisten = [\"{guest}:0\"]\nallow = [\"any\"]\nworkers = 2\n[control]\nlisten = \"{guest}:0\"\n",
        forward(".", &[upstream.address()])
    );
    let daemon = Setup::new(&config).within(netns).start();
    (upstream, daemon)
}

/// How far counts are from being equal: for `counts.len() - 1` degrees of freedom, about that much is to be expected.
fn chi_squared(counts: &[usize]) -> f64 {
    let expected = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
    counts.iter().map(|&count| (count as f64 - expected).powi(2) / expected).sum()
}

/// How many values fall into each of 16 equal parts of a range.
fn spread(values: impl Iterator<Item = u32>, range: std::ops::Range<u32>) -> Vec<usize> {
    let mut counts = vec![0; 16];
    values.for_each(|value| counts[((value - range.start) * 16 / range.len() as u32) as usize] += 1);
    counts
}

/// RFC 5452 §9.2. The bounds are such that chance passes them once in ten million runs.
#[test]
fn ports_ids_and_letters_of_a_thousand_queries_are_without_order() {
    let Some(netns) = Netns::new("") else { return };
    for is_mixed in [false, true] {
        let rule = format!("mixed_case = {is_mixed}\n");
        let (upstream, daemon) = behind_a_link(&netns, &rule, saying("192.0.2.1"));
        demand_scatter(&upstream, &daemon, is_mixed);
    }
}

fn demand_scatter(upstream: &Upstream, daemon: &Daemon, is_mixed: bool) {
    const QUERIES: usize = 1000;
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let number @ ..QUERIES = next.fetch_add(1, Ordering::Relaxed) {
                    daemon.demand(&format!("name{number}.with.many.letters.example A"), "192.0.2.1", false);
                }
            });
        }
    });
    // Those sent again are the same to the letter, and say nothing new.
    let mut known = BTreeSet::new();
    let mut queries = upstream.queries();
    queries.retain(|asked| known.insert((asked.message.question.clone(), asked.message.id, asked.from)));
    assert!(queries.len() >= QUERIES);

    let mut by_port: BTreeMap<u16, usize> = BTreeMap::new();
    queries.iter().for_each(|asked| *by_port.entry(asked.from.port()).or_default() += 1);
    // Each query has a port of its own, and some twenty of a thousand meet one by chance that an earlier one had.
    assert!(queries.len() - by_port.len() < 60, "{} ports of {} queries", by_port.len(), queries.len());
    let most = by_port.values().max().unwrap();
    assert!(*most <= 4, "{most} queries from one port");
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let range: Vec<u32> = range.split_whitespace().map(|end| end.parse().unwrap()).collect();
    let ports = spread(by_port.keys().map(|&port| port.into()), range[0]..range[1] + 1);
    assert!(chi_squared(&ports) < UNLIKELY, "ports: {ports:?}");

    let ids: BTreeSet<u16> = queries.iter().map(|asked| asked.message.id).collect();
    // Some eight of a thousand meet another.
    assert!(queries.len() - ids.len() < 40, "{} ids of {} queries", ids.len(), queries.len());
    for shift in [0, 4, 8, 12] {
        let part = spread(queries.iter().map(|asked| u32::from(asked.message.id >> shift & 15)), 0..16);
        assert!(chi_squared(&part) < UNLIKELY, "bits of ids from {shift} on: {part:?}");
    }
    // How one id follows from the other: by any step equally often.
    let steps = queries.windows(2).map(|pair| u32::from(pair[1].message.id.wrapping_sub(pair[0].message.id)));
    let steps = spread(steps, 0..65_536);
    assert!(chi_squared(&steps) < UNLIKELY, "steps: {steps:?}");

    let letters: Vec<u8> =
        (queries.iter().flat_map(|asked| asked.message.qname().into_bytes())).filter(u8::is_ascii_alphabetic).collect();
    let upper = letters.iter().filter(|letter| letter.is_ascii_uppercase()).count() as f64 / letters.len() as f64;
    let expected = if is_mixed { 0.47..0.53 } else { 0.0..f64::EPSILON };
    assert!(expected.contains(&upper), "{upper} of {} letters are upper case", letters.len());
    // No datagram of a size that is cut into fragments on the way, where the second needs no guess at all.
    assert!(queries.iter().all(|asked| asked.message.edns.as_ref().is_some_and(|edns| edns.udp_size == 1232)));
}

/// The chi-squared distribution with 15 degrees of freedom is below this but for one time in ten million.
const UNLIKELY: f64 = 61.0;

#[test]
fn a_forger_who_tries_every_id_loses_and_stops_nobody_else() {
    let Some(netns) = Netns::new("") else { return };
    for rule in ["", "mixed_case = true\n"] {
        let (upstream, daemon) = behind_a_link(&netns, rule, |asked| {
            let truth = saying("192.0.2.1")(asked);
            if asked.over_tcp || !asked.message.asked().starts_with("victim") {
                return truth;
            }
            if asked.earlier > 0 {
                return [vec![Act::Wait(Duration::from_secs(2))], truth].concat();
            }
            // He knows port and name, not the letters; and the right id comes last to him, or it would be his luck.
            let lie = Message { question: query(&asked.message.asked()).question, ..asked.message.respond() };
            let record = format!("{} 300 A 203.0.113.66", lie.qname());
            let mut lie = lie.answer(&record).to_wire();
            let forged = (1..=65_536u32).map(|step| {
                lie[..2].copy_from_slice(&asked.message.id.wrapping_add(step as u16).to_be_bytes());
                Act::Bytes(lie.clone())
            });
            forged.chain(truth).collect()
        });
        let queries_of_victims = || {
            let mut queries = upstream.queries();
            queries.retain(|asked| asked.message.asked().starts_with("victim"));
            queries
        };
        // On a machine that stands still meanwhile, the truth may come before him.
        let mut number = 0;
        let is_noticed = (0..5).any(|attempt| {
            thread::scope(|scope| {
                let victim = scope.spawn(|| {
                    let question = format!("victim{attempt}.with.many.letters.example A");
                    // And that is what is kept.
                    (0..2).for_each(|_| daemon.demand(&question, "192.0.2.1", false));
                });
                // Meanwhile others are served.
                while number < 50 || !victim.is_finished() {
                    daemon.demand(&format!("other{number}.example A"), "192.0.2.1", false);
                    number += 1;
                }
            });
            let mismatches = daemon.metric("watershed_forward_failures_total", &[("reason", "mismatch")]);
            mismatches >= 3.0 && queries_of_victims().iter().any(|asked| asked.over_tcp)
        });
        assert!(is_noticed, "{rule}");
        // The sockets whose ports he knew are closed, so the rest of his lies costs the kernel and not us.
        let known = queries_of_victims().into_iter().filter(|asked| !asked.over_tcp).map(|asked| asked.from.port());
        let known: BTreeSet<u16> = known.collect();
        wait_until("the end of those sockets", 2 * PATIENCE, || {
            number += 1;
            daemon.demand(&format!("other{number}.example A"), "192.0.2.1", false);
            open_ports(&daemon).is_disjoint(&known).then_some(())
        });
    }
}

/// Twelve octets with the right id from the right address, as from whoever knows port and id and nothing of the question.
#[test]
fn a_reply_without_the_question_ends_no_query_and_changes_no_habit() {
    const HEADERS: [(&str, [u8; 2]); 6] = [
        ("REFUSED", [0x81, 0x85]),
        ("SERVFAIL", [0x81, 0x82]),
        ("TC", [0x83, 0x80]),
        ("FORMERR", [0x81, 0x81]),
        ("NOTIMP", [0x81, 0x84]),
        ("NOERROR", [0x81, 0x80]),
    ];
    let upstream = Upstream::new(|asked| {
        let header = HEADERS.iter().find(|(name, _)| asked.message.asked().starts_with(&name.to_lowercase()));
        let mut truth = saying("192.0.2.1")(asked);
        if let Some((_, flags)) = header.filter(|_| !asked.over_tcp) {
            let forged = [&asked.message.id.to_be_bytes()[..], flags, &[0; 8]].concat();
            truth.splice(0..0, [Act::Bytes(forged), Act::Wait(Duration::from_millis(20))]);
        }
        truth
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    // Its usual time is known to be short, so the truth comes after the first resend at times.
    for (name, _) in HEADERS.iter().chain(&HEADERS) {
        for number in 0..2 {
            wait_until("the truth", PATIENCE, || {
                let reply = daemon.ask(&format!("{name}{number}.example A"));
                (reply.data() == ["192.0.2.1"]).then_some(())
            });
        }
    }
    daemon.demand("last.example A", "192.0.2.1", false);
    let last = upstream.queries().pop().unwrap();
    assert!(last.message.edns.is_some(), "that the server has no EDNS is not believed");
}

/// A server from before EDNS, which sends no more than a header where it does not understand.
#[test]
fn a_server_that_complains_with_a_header_alone_costs_no_deadline() {
    let upstream = Upstream::new(|asked| match asked.message.edns {
        Some(_) => vec![Act::Bytes([&asked.message.id.to_be_bytes()[..], &[0x81, 0x81], &[0; 8]].concat())],
        None => saying("192.0.2.1")(asked),
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for number in 0..4 {
        let start = std::time::Instant::now();
        daemon.demand(&format!("name{number}.example A"), "192.0.2.1", false);
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }
    assert!(upstream.queries().pop().unwrap().message.edns.is_none());
    assert_eq!(upstream.count("name3.example A"), 1, "it is remembered once it is confirmed");
}

/// The ports of all UDP sockets where the daemon is.
fn open_ports(daemon: &Daemon) -> BTreeSet<u16> {
    let sockets = fs::read_to_string(format!("/proc/{}/net/udp", daemon.pid())).unwrap();
    let port = |line: &str| {
        let (_, port) = line.split_whitespace().nth(1).unwrap().rsplit_once(':').unwrap();
        u16::from_str_radix(port, 16).unwrap()
    };
    sockets.lines().skip(1).map(port).collect()
}
