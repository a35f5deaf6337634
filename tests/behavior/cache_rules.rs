//! How long what an upstream says is kept: each rule of the RFCs, held against the daemon, BIND 9 and Unbound.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    daemon::forward,
    message::{AD, CD, TC},
    programs::Program,
    upstream::saying,
    *,
};

type Script = fn(&Asked) -> Vec<Act>;

struct Row {
    rule: &'static str,
    script: Script,
    /// The response code, and the TTLs of answer and authority section, as a client is told them.
    told: &'static str,
    kept: bool,
    /// Whether BIND 9 and Unbound keep it.
    peers: [bool; 2],
    /// Why we differ, where both of them do.
    because: &'static str,
}

fn row(rule: &'static str, told: &'static str, kept: bool, script: Script) -> Row {
    Row { rule, script, told, kept, peers: [kept, kept], because: "" }
}

impl Row {
    fn peers(self, bind: bool, unbound: bool) -> Self {
        Self { peers: [bind, unbound], ..self }
    }

    fn because(self, because: &'static str) -> Self {
        Self { because, ..self }
    }
}

/// A response with these lines, in which `@` is the name asked for; SOA records are its authority section.
fn says(asked: &Asked, rcode: &str, lines: &[&str]) -> Vec<Act> {
    let response = asked.message.respond().rcode(rcode);
    vec![Act::Reply(lines.iter().fold(response, |response, line| {
        let line = line.replace('@', &asked.message.qname());
        if line.contains(" SOA ") { response.authority(&line) } else { response.answer(&line) }
    }))]
}

/// An alias of a name to which these lines belong; peers ask for that as well.
fn leads_to(asked: &Asked, rcode: &str, lines: &[&str]) -> Vec<Act> {
    if asked.message.qname().to_lowercase().starts_with("to.") {
        return says(asked, rcode, lines);
    }
    let lines: Vec<String> = lines.iter().map(|line| line.replace('@', "to.@")).collect();
    let lines: Vec<&str> = ["@ 300 CNAME to.@"].into_iter().chain(lines.iter().map(String::as_str)).collect();
    says(asked, rcode, &lines)
}

const SOA_BY_MINIMUM: &str = "example. 900 SOA ns.example. host.example. 1 2 3 4 60";
const SOA_BY_TTL: &str = "example. 60 SOA ns.example. host.example. 1 2 3 4 900";

fn rows() -> Vec<Row> {
    vec![
        row("RFC 1035 §3.2.1: for its TTL", "NOERROR 300", true, |asked| {
            says(asked, "NOERROR", &["@ 300 A 192.0.2.1"])
        }),
        row("RFC 1035 §3.2.1: not with a TTL of 0", "NOERROR 0", false, |asked| {
            says(asked, "NOERROR", &["@ 0 A 192.0.2.1"])
        }),
        row("RFC 2181 §5.2: an RRset by its smallest TTL", "NOERROR 100 100", true, |asked| {
            says(asked, "NOERROR", &["@ 300 A 192.0.2.1", "@ 100 A 192.0.2.2"])
        }),
        row("RFC 2181 §5.2: even if that is 0", "NOERROR 0 0", false, |asked| {
            says(asked, "NOERROR", &["@ 300 A 192.0.2.1", "@ 0 A 192.0.2.2"])
        }),
        row("RFC 2181 §8: the largest TTL, bounded by max_ttl", "NOERROR 86400", true, |asked| {
            says(asked, "NOERROR", &["@ 2147483647 A 192.0.2.1"])
        }),
        row("RFC 2181 §8: with the top bit set it is 0", "NOERROR 0", false, |asked| {
            says(asked, "NOERROR", &["@ 2147483648 A 192.0.2.1"])
        })
        .peers(true, false),
        row("RFC 1034 §3.6.2: a chain by each of its records", "NOERROR 300 100", true, |asked| {
            leads_to(asked, "NOERROR", &["@ 100 A 192.0.2.1"])
        }),
        row("RFC 1034 §3.6.2: of which none may be 0", "NOERROR 300 0", false, |asked| {
            leads_to(asked, "NOERROR", &["@ 0 A 192.0.2.1"])
        }),
        row("RFC 2308 §5: NXDOMAIN by the SOA minimum", "NXDOMAIN 60", true, |asked| {
            says(asked, "NXDOMAIN", &[SOA_BY_MINIMUM])
        }),
        row("RFC 2308 §5: or by the SOA's own TTL", "NXDOMAIN 60", true, |asked| {
            says(asked, "NXDOMAIN", &[SOA_BY_TTL])
        }),
        row("RFC 2308 §5: NODATA by the SOA minimum", "NOERROR 60", true, |asked| {
            says(asked, "NOERROR", &[SOA_BY_MINIMUM])
        }),
        row("RFC 2308 §5: NODATA by the SOA's own TTL", "NOERROR 60", true, |asked| {
            says(asked, "NOERROR", &[SOA_BY_TTL])
        }),
        row("RFC 2308 §5: not with a minimum of 0", "NXDOMAIN 0", false, |asked| {
            says(asked, "NXDOMAIN", &["example. 900 SOA ns.example. host.example. 1 2 3 4 0"])
        })
        .peers(true, false),
        row("RFC 2181 §8: nor with a minimum that has the top bit set", "NXDOMAIN 0", false, |asked| {
            says(asked, "NXDOMAIN", &["example. 900 SOA ns.example. host.example. 1 2 3 4 2147483648"])
        })
        .peers(true, true)
        .because("RFC 2308 §4 makes a TTL of the minimum, and RFC 2181 §8 holds for TTLs"),
        row("RFC 2308 §5: bounded by max_negative_ttl", "NXDOMAIN 3600", true, |asked| {
            says(asked, "NXDOMAIN", &["example. 86400 SOA ns.example. host.example. 1 2 3 4 86400"])
        }),
        row("RFC 2308 §5: NXDOMAIN without SOA is not kept", "NXDOMAIN", false, |asked| says(asked, "NXDOMAIN", &[]))
            .peers(false, true),
        row("RFC 2308 §5: nor is NODATA without SOA", "NOERROR", false, |asked| says(asked, "NOERROR", &[]))
            .peers(false, true),
        row("RFC 2308 §3: the SOA is that of a zone above", "NXDOMAIN", false, |asked| {
            says(asked, "NXDOMAIN", &["other.example. 900 SOA ns.example. host.example. 1 2 3 4 60"])
        })
        .peers(false, true),
        row("RFC 2308 §2.1: NXDOMAIN at the end of a chain", "NXDOMAIN 300 60", true, |asked| {
            leads_to(asked, "NXDOMAIN", &[SOA_BY_MINIMUM])
        }),
        row("RFC 2308 §2.2: NODATA at the end of a chain", "NOERROR 300 60", true, |asked| {
            leads_to(asked, "NOERROR", &[SOA_BY_MINIMUM])
        }),
        row("RFC 2308 §5: not if the chain ends without SOA", "NXDOMAIN 300", false, |asked| {
            leads_to(asked, "NXDOMAIN", &[])
        })
        .peers(false, true),
        row("RFC 2181 §9: of what is truncated, the failure alone", "SERVFAIL", true, |asked| match asked.over_tcp {
            true => vec![Act::Close],
            false => vec![Act::Reply(
                asked.message.respond().set(TC).answer(&format!("{} 300 A 192.0.2.1", asked.message.qname())),
            )],
        }),
        row("RFC 9520 §3.2: a failure for a second at least", "SERVFAIL", true, |asked| says(asked, "SERVFAIL", &[])),
        row("RFC 9520 §3.2: a refusal, too", "REFUSED", true, |asked| says(asked, "REFUSED", &[])),
    ]
}

/// What a client is told.
fn told(reply: &Message) -> String {
    let ttls = reply.answer.iter().chain(&reply.authority).map(|record| format!(" {}", record.ttl));
    reply.rcode_name().to_owned() + &ttls.collect::<String>()
}

#[test]
fn what_is_kept_is_what_the_rfcs_allow_to_be_kept() {
    let rows = rows();
    // row3.bind.example is the third row as BIND asks for it.
    let scripts: Vec<Script> = rows.iter().map(|row| row.script).collect();
    let upstream = Upstream::new(move |asked| {
        let qname = asked.message.qname().to_lowercase();
        let row = qname.split('.').find_map(|label| label.strip_prefix("row")?.parse::<usize>().ok());
        row.map_or_else(Vec::new, |row| scripts[row](asked))
    });
    let rules = [("example".to_owned(), vec![upstream.address()])];
    let bind = Program::bind_forwarding(&rules);
    let unbound = Program::unbound_forwarding(&rules);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    // What is told first, and whether that is kept; under a new name for each attempt.
    let found = |server: SocketAddr, name: &str| {
        let question = format!("{name} A");
        let first = told(&udp(server, &query(&question).edns(1232)));
        // Peers ask for the end of a chain by itself.
        let of_row = query(&question).asked();
        let count = || upstream.asked().iter().filter(|asked| asked.ends_with(&of_row)).count();
        let before = count();
        udp(server, &query(&question).edns(1232));
        (first, count() == before)
    };
    // A machine that stands still for a second makes a failure of an answer, and ends the life of a failure.
    let demand = |server: SocketAddr, whose: &str, row: usize, told: Option<&str>, kept: bool| {
        let (mut last, mut attempt) = (None, 0);
        while attempt < 5
            && last.as_ref().is_none_or(|(text, is_kept)| told.is_some_and(|told| text != told) || *is_kept != kept)
        {
            last = Some(found(server, &format!("row{row}.{whose}{attempt}.example")));
            attempt += 1;
        }
        let (text, is_kept) = last.unwrap();
        assert_eq!((told.unwrap_or(&text), kept), (&*text, is_kept), "{}: {whose}", rows[row].rule);
    };
    thread::scope(|scope| {
        for (index, row) in rows.iter().enumerate() {
            let (demand, address) = (&demand, daemon.address());
            scope.spawn(move || demand(address, "us", index, Some(row.told), row.kept));
            for ((whose, peer), kept) in [("bind", &bind), ("unbound", &unbound)].into_iter().zip(row.peers) {
                let Some(peer) = peer else { continue };
                scope.spawn(move || demand(peer.address(), whose, index, None, kept));
            }
            let differ = row.peers.iter().all(|peer| *peer != row.kept);
            assert_eq!(differ, !row.because.is_empty(), "{}: where both differ there is a reason for it", row.rule);
        }
    });
}

/// RFC 9520 §3.2: at least a second, more for those that follow, and no more than five minutes.
#[test]
fn failures_in_a_row_are_kept_for_one_two_and_four_seconds() {
    let arrivals = Arc::new(Mutex::new(Vec::new()));
    let upstream = Upstream::new({
        let (arrivals, known) = (arrivals.clone(), Mutex::new(BTreeSet::new()));
        move |asked| {
            // A busy machine has queries sent again.
            if known.lock().unwrap().insert((asked.message.id, asked.from)) {
                arrivals.lock().unwrap().push(Instant::now());
            }
            vec![Act::Reply(asked.message.respond().rcode("SERVFAIL"))]
        }
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    wait_until("four failures", 2 * PATIENCE, || {
        assert_eq!(daemon.ask("www.example A").rcode_name(), "SERVFAIL");
        (arrivals.lock().unwrap().len() >= 4).then_some(())
    });
    let arrivals = arrivals.lock().unwrap().clone();
    let pauses: Vec<Duration> = arrivals.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // A query may be noted late, but not so late that one of these could be the one before.
    for (pause, least_ms) in pauses.iter().zip([500, 1500, 3000]) {
        assert!(*pause >= Duration::from_millis(least_ms), "{pauses:?}");
    }
}

/// RFC 4035 §3.2: who sets CD wants what was not validated, and is not to suffer from a validation that failed, nor
/// others from that it did not take place.
#[test]
fn a_failure_under_validation_is_none_without() {
    let upstream = Upstream::new(|asked| match asked.message.has(CD) {
        true => saying("192.0.2.1")(asked),
        false => vec![Act::Reply(asked.message.respond().rcode("SERVFAIL").option(15, b"\x00\x06bogus"))],
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for name in ["a", "b"] {
        let question = || query(&format!("{name}.example A")).edns(1232);
        for turn in 0..4 {
            // One begins with CD, the other without.
            if (turn % 2 == 0) == (name == "a") {
                assert_eq!(daemon.answer(&question().set(CD)).data(), ["192.0.2.1"], "{name} {turn}");
            } else {
                let reply = daemon.udp(&question());
                assert_eq!((reply.rcode_name(), reply.has(CD)), ("SERVFAIL", false), "{name} {turn}");
                assert!(reply.extended_errors().contains(&6), "{name} {turn}: the upstream's reason");
            }
        }
    }
}

/// RFC 6840 §5.7, §5.8: AD is for those who set AD or DO, whoever of them asks first, and from a trusted upstream.
#[test]
fn the_ad_bit_is_told_to_those_who_want_it_and_to_no_others() {
    let upstream = Upstream::new(|asked| {
        let Act::Reply(message) = saying("192.0.2.1")(asked).remove(0) else { unreachable!() };
        vec![Act::Reply(message.set(AD))]
    });
    for (trust, trusted) in [("", true), ("trust_ad = false\n", false)] {
        let daemon = Setup::new(&(forward(".", &[upstream.address()]) + trust)).start();
        type Way = (&'static str, fn(Message) -> Message, bool);
        let ways: [Way; 4] = [
            ("plain", |query| query, false),
            ("AD", |query| query.set(AD), true),
            ("DO", Message::dnssec_ok, true),
            ("CD", |query| query.set(CD), false),
        ];
        for first in 0..ways.len() {
            for turn in 0..2 * ways.len() {
                let (way, change, wanted) = ways[(first + turn) % ways.len()];
                let reply = daemon.answer(&change(query(&format!("first{first}.example A")).edns(1232)));
                assert_eq!(reply.has(AD), wanted && trusted, "{way}, {turn} after {}, {trust}", ways[first].0);
            }
        }
    }
}
