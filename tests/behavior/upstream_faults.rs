//! What a faulty upstream can do to a client, fault by fault: alone, and with a good server behind it.
//!
//! BIND 9 and Unbound stand in front of the same upstreams and say what they make of each.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    daemon::forward,
    message::{AA, QR, RA, TC},
    programs::Program,
    *,
};

type Script = fn(&Asked) -> Vec<Act>;

struct Row {
    fault: &'static str,
    /// The rule that decides what becomes of it.
    rule: &'static str,
    /// What the upstream does; without it nobody listens at its address.
    script: Option<Script>,
    qtype: &'static str,
    /// What the client is told if nobody else can be asked.
    alone: &'static str,
    /// What it is told if a good server can be.
    both: &'static str,
    /// That server is asked before its time would come.
    at_once: bool,
    /// The sample of `watershed_forward_NAME_total` that counts the fault.
    counted: &'static str,
    /// What BIND 9 and Unbound tell their clients, if nobody else can be asked.
    peers: [&'static str; 2],
    /// Why we differ, where both of them do.
    because: &'static str,
}

/// The upstream's true answer, its false one, and that of the good server.
const OWN: &str = "192.0.2.7";
const LIE: &str = "203.0.113.66";
const SECOND: &str = "192.0.2.1";
/// What is told to whoever can be told nothing: that no upstream had an answer, or that none could be reached.
const FAILED: &str = "SERVFAIL 22";
const UNREACHABLE: &str = "SERVFAIL 23";
/// What a peer tells then: SERVFAIL, or nothing before libc gives up.
const SERVFAIL: &str = "SERVFAIL";

/// A row with a script, of a fault after which nobody has an answer.
fn failing(rule: &'static str, fault: &'static str, script: Script) -> Row {
    Row {
        fault,
        rule,
        script: Some(script),
        qtype: "A",
        alone: FAILED,
        both: SECOND,
        at_once: false,
        counted: "failures mismatch",
        peers: [SERVFAIL, SERVFAIL],
        because: "",
    }
}

/// The same of a fault that does no harm.
fn harmless(rule: &'static str, fault: &'static str, script: Script) -> Row {
    let row = failing(rule, fault, script);
    Row { alone: OWN, both: OWN, counted: "responses NOERROR", peers: [OWN, OWN], ..row }
}

impl Row {
    fn at_once(self) -> Self {
        Self { at_once: true, ..self }
    }

    fn counted(self, counted: &'static str) -> Self {
        Self { counted, ..self }
    }

    fn told(self, alone: &'static str, both: &'static str) -> Self {
        Self { alone, both, ..self }
    }

    fn peers(self, bind: &'static str, unbound: &'static str) -> Self {
        Self { peers: [bind, unbound], ..self }
    }

    fn because(self, because: &'static str) -> Self {
        Self { because, ..self }
    }
}

fn own(asked: &Asked) -> Message {
    asked.message.respond().answer(&format!("{} 300 A {OWN}", asked.message.qname()))
}

fn lie(asked: &Asked) -> Message {
    asked.message.respond().answer(&format!("{} 300 A {LIE}", asked.message.qname()))
}

fn rcode(asked: &Asked, rcode: &str) -> Vec<Act> {
    vec![Act::Reply(asked.message.respond().rcode(rcode))]
}

/// A message with its octets changed.
fn octets(message: Message, change: impl FnOnce(&mut Vec<u8>)) -> Vec<Act> {
    let mut wire = message.to_wire();
    change(&mut wire);
    vec![Act::Bytes(wire)]
}

/// Truncated by UDP; over TCP this.
fn truncated(asked: &Asked, over_tcp: impl FnOnce() -> Vec<Act>) -> Vec<Act> {
    if asked.over_tcp { over_tcp() } else { vec![Act::Reply(asked.message.respond().set(TC))] }
}

/// This to queries with EDNS, an answer to those without.
fn to_edns(asked: &Asked, complaint: impl FnOnce() -> Vec<Act>) -> Vec<Act> {
    if asked.message.edns.is_some() { complaint() } else { vec![Act::Reply(own(asked))] }
}

/// More octets than the message has, and less than a whole frame.
fn half_a_frame(asked: &Asked) -> Act {
    Act::Raw([&[1, 0][..], &own(asked).to_wire()].concat())
}

fn lowered(asked: &Asked) -> Act {
    Act::Reply(Message { question: query(&asked.message.asked()).question, ..own(asked) })
}

fn with_question(asked: &Asked, question: &str) -> Vec<Act> {
    vec![Act::Reply(Message { question: query(question).question, ..lie(asked) })]
}

/// TXT records of so many octets in all, each of a size that peers take.
fn large(asked: &Asked, octets: usize) -> Vec<u8> {
    let mut message = Message { edns: None, ..asked.message.respond() };
    let record = |lengths: &[usize]| {
        let strings: Vec<String> = lengths.iter().map(|&length| format!("\"{}\"", "x".repeat(length))).collect();
        format!("{} 300 TXT {}", asked.message.qname(), strings.join(" "))
    };
    let length_of = |message: &Message| message.to_wire().len();
    let overhead = length_of(&message.clone().answer(&record(&[0]))) - length_of(&message);
    while octets - length_of(&message) > 2000 {
        message = message.answer(&record(&[200; 5]));
    }
    while octets - length_of(&message) > 2 * (overhead + 200) {
        message = message.answer(&record(&[200]));
    }
    let first = (octets - length_of(&message)) / 2;
    message = message.answer(&record(&[first - overhead]));
    let left = octets - length_of(&message);
    message.answer(&record(&[left - overhead])).to_wire()
}

fn rows() -> Vec<Row> {
    vec![
        failing("at most 3.5 s", "silence", |_| vec![]).counted("timeouts"),
        Row { script: None, ..failing("RFC 1122 §4.1.3.3", "a closed port", |_| vec![]) }
            .told(UNREACHABLE, SECOND)
            .counted("failures network")
            .at_once(),
        harmless("a late answer wins", "slowness", |asked| {
            vec![Act::Wait(Duration::from_millis(700)), Act::Reply(own(asked))]
        })
        .told(OWN, SECOND)
        .counted("timeouts"),
        failing("RFC 2308 §2.2", "a referral", |asked| {
            vec![Act::Reply(asked.message.respond().clear(RA).authority("example. 60 NS ns.example."))]
        })
        .counted("responses NOERROR")
        .at_once(),
        failing("the next one at once", "SERVFAIL", |asked| rcode(asked, "SERVFAIL"))
            .counted("responses SERVFAIL")
            .at_once(),
        failing("the next one at once", "REFUSED", |asked| rcode(asked, "REFUSED"))
            .told("REFUSED 22", SECOND)
            .counted("responses REFUSED")
            .at_once()
            .because("RFC 8914 §4.19: it says whose fault it is; with a failure of its own it would be lost"),
        failing("the next one at once", "NOTAUTH", |asked| rcode(asked, "NOTAUTH"))
            .counted("responses other")
            .at_once(),
        // Truncation.
        harmless("RFC 2181 §9", "truncation by UDP", |asked| truncated(asked, || vec![Act::Reply(own(asked))])),
        harmless("RFC 2181 §9", "truncation in a record", |asked| match asked.over_tcp {
            true => vec![Act::Reply(own(asked))],
            false => octets(lie(asked).set(TC), |wire| wire.truncate(wire.len() - 13)),
        }),
        failing("RFC 7766 §5", "truncation, and TCP is closed", |asked| truncated(asked, || vec![Act::Close]))
            .told(UNREACHABLE, SECOND)
            .counted("failures network"),
        failing("RFC 7766 §5", "truncation, and TCP is reset", |asked| truncated(asked, || vec![Act::Reset]))
            .told(UNREACHABLE, SECOND)
            .counted("failures network"),
        failing("RFC 7766 §8", "truncation, and half a message by TCP", |asked| {
            truncated(asked, || vec![half_a_frame(asked), Act::Close])
        })
        .told(UNREACHABLE, SECOND)
        .counted("failures network"),
        failing("at most 3.5 s", "truncation, and half a message by TCP without an end", |asked| {
            truncated(asked, || vec![half_a_frame(asked)])
        })
        .counted("timeouts"),
        failing("at most 3.5 s", "truncation, and silence by TCP", |asked| truncated(asked, Vec::new))
            .counted("timeouts"),
        failing("RFC 2181 §9", "truncation to nothing by TCP, too", |asked| {
            vec![Act::Reply(asked.message.respond().set(TC))]
        })
        .counted("responses NOERROR"),
        failing("RFC 2181 §9", "truncation by TCP, too", |asked| vec![Act::Reply(own(asked).set(TC))])
            .told("TC", "TC")
            .counted("responses NOERROR")
            .because("RFC 2181 §9 allows the use of what is there; Consul cuts answers above 64 KiB so"),
        Row {
            qtype: "TXT",
            ..harmless("RFC 1035 §4.2.2", "64 KiB by TCP", |asked| {
                truncated(asked, || vec![Act::Bytes(large(asked, 65_535))])
            })
        }
        .told("TC", "TC")
        .peers("TC", "TC"),
        Row {
            qtype: "TXT",
            ..harmless("RFC 6891 §6.2.5", "60 KiB by UDP, unasked", |asked| {
                if asked.over_tcp { vec![Act::Close] } else { vec![Act::Bytes(large(asked, 60_000))] }
            })
        }
        .told("TC", "TC")
        .peers("TC", "TC"),
        // What is not a reply to this query.
        failing("RFC 5452 §9.1", "another id", |asked| octets(lie(asked), |wire| wire[1] ^= 1)).counted("timeouts"),
        harmless("RFC 5452 §9.1", "another id first", |asked| {
            let pause = Act::Wait(Duration::from_millis(20));
            [octets(lie(asked), |wire| wire[1] ^= 1), vec![pause, Act::Reply(own(asked))]].concat()
        }),
        failing("RFC 5452 §9.1", "another port", |asked| vec![Act::ReplyFromElsewhere(lie(asked))]).counted("timeouts"),
        failing("RFC 5452 §9.1", "another address", |asked| vec![Act::ReplyFromStranger(lie(asked))])
            .counted("timeouts"),
        failing("RFC 5452 §9.1", "another name", |asked| with_question(asked, "evil.example A")),
        failing("RFC 5452 §9.1", "another type", |asked| {
            with_question(asked, &format!("{} AAAA", asked.message.qname()))
        }),
        failing("RFC 5452 §9.1", "another class", |asked| vec![Act::Reply(lie(asked).class(3))]),
        failing("RFC 1035 §4.1.1", "a query", |asked| vec![Act::Reply(lie(asked).clear(QR))]).at_once(),
        failing("RFC 1035 §4.1.1", "another opcode", |asked| vec![Act::Reply(lie(asked).set(0x2000))]).at_once(),
        failing("RFC 9619 §4", "two questions", |asked| {
            octets(lie(asked), |wire| {
                wire[5] = 2;
                wire.splice(12..12, asked.message.question.clone());
            })
        })
        .at_once(),
        failing("RFC 5452 §9.1", "no question", |asked| vec![Act::Reply(Message { question: vec![], ..lie(asked) })]),
        // What is no message.
        failing("RFC 1035 §4.1.1", "an empty datagram", |_| vec![Act::Bytes(vec![])]).counted("timeouts"),
        failing("RFC 1035 §4.1", "garbage behind the id", |asked| {
            vec![Act::Bytes([&asked.message.id.to_be_bytes()[..], &[0xff; 40]].concat())]
        }),
        failing("RFC 1035 §4.1", "a header alone", |asked| {
            vec![Act::Bytes([&asked.message.id.to_be_bytes()[..], &[0x80, 5], &[0; 8]].concat())]
        })
        .told("REFUSED 22", SECOND)
        .counted("responses REFUSED")
        .because("RFC 1035 §4.1.1: an error may come without its question"),
        failing("RFC 1035 §4.1", "records that are cut", |asked| {
            octets(lie(asked), |wire| wire.truncate(wire.len() - 13))
        })
        .at_once(),
        failing("RFC 1035 §4.1", "records without end", |asked| {
            octets(asked.message.respond(), |wire| wire[6..8].copy_from_slice(&[0xff; 2]))
        })
        .at_once(),
        failing("RFC 1035 §4.1.4", "a pointer to itself", |asked| {
            let at = 12 + asked.message.question.len();
            octets(lie(asked), |wire| wire[at..at + 2].copy_from_slice(&[0xc0, at as u8]))
        })
        .at_once(),
        failing("RFC 6891 §6.1.1", "two OPT records", |asked| {
            octets(lie(asked), |wire| {
                let opt = wire[wire.len() - 11..].to_vec();
                wire[11] += 1;
                wire.extend(opt);
            })
        })
        .peers(SERVFAIL, LIE)
        .at_once(),
        harmless("RFC 5452 §9.1", "a second reply, with another answer", |asked| {
            vec![Act::Reply(own(asked)), Act::Reply(lie(asked))]
        }),
        // Letters and EDNS.
        harmless("draft-vixie-dnsext-dns0x20 §3", "letters lowered", |asked| vec![lowered(asked)])
            .counted("failures mismatch"),
        harmless("a server that keeps no letters is spared", "letters lowered, and TCP is closed", |asked| {
            if asked.over_tcp { vec![Act::Close] } else { vec![lowered(asked)] }
        })
        .told(OWN, SECOND)
        .counted("failures mismatch"),
        harmless("RFC 6891 §7", "no OPT record", |asked| vec![Act::Reply(Message { edns: None, ..own(asked) })]),
        harmless("RFC 6891 §7", "FORMERR to EDNS", |asked| {
            to_edns(asked, || vec![Act::Reply(Message { edns: None, ..asked.message.respond().rcode("FORMERR") })])
        })
        .counted("responses FORMERR"),
        harmless("RFC 6891 §7", "FORMERR to EDNS, without a question", |asked| {
            let bare = Message { edns: None, question: vec![], ..asked.message.respond().rcode("FORMERR") };
            to_edns(asked, || vec![Act::Reply(bare)])
        })
        .counted("responses FORMERR"),
        harmless("RFC 6891 §7", "NOTIMP to EDNS", |asked| {
            to_edns(asked, || vec![Act::Reply(Message { edns: None, ..asked.message.respond().rcode("NOTIMP") })])
        })
        .counted("responses NOTIMP")
        .peers(SERVFAIL, OWN),
        harmless("RFC 6891 §6.1.3", "BADVERS to EDNS", |asked| to_edns(asked, || rcode(asked, "BADVERS")))
            .counted("responses BADVERS")
            .peers(SERVFAIL, "NODATA")
            .because("RFC 6891 §6.1.3: it knows no version that we could speak, so none is spoken"),
        failing("RFC 6891 §7", "FORMERR, with EDNS and without", |asked| rcode(asked, "FORMERR"))
            .counted("responses FORMERR")
            .at_once(),
        failing("RFC 6891 §7", "NOTIMP, with EDNS and without", |asked| rcode(asked, "NOTIMP"))
            .counted("responses NOTIMP")
            .at_once(),
        // A server or a wall before it that drops what it does not know is not met half-way (DNS flag day 2019).
        failing("RFC 6891 §6.2.5", "silence to EDNS", |asked| to_edns(asked, Vec::new)).counted("timeouts"),
        // What the message says.
        failing("RFC 2181 §5.4.1", "an answer about another name", |asked| {
            vec![Act::Reply(asked.message.respond().answer(&format!("evil.example. 300 A {LIE}")))]
        })
        .peers(SERVFAIL, "NODATA")
        .at_once(),
        harmless("RFC 2181 §5.4.1", "another name beside the answer", |asked| {
            vec![Act::Reply(own(asked).answer(&format!("evil.example. 300 A {LIE}")))]
        }),
        failing("RFC 1034 §3.6.2", "an alias of itself", |asked| {
            vec![Act::Reply(asked.message.respond().answer(&format!("{0} 300 CNAME {0}", asked.message.qname())))]
        })
        .told("SERVFAIL 0", "SERVFAIL 0") // a fault of the name, not of the server
        .counted("responses NOERROR"),
        harmless("RFC 1035 §4.1.1", "no RA bit", |asked| vec![Act::Reply(own(asked).clear(RA).set(AA))]),
        harmless("RFC 2308 §2.1", "NXDOMAIN without SOA", |asked| rcode(asked, "NXDOMAIN"))
            .told("NXDOMAIN", "NXDOMAIN")
            .counted("responses NXDOMAIN")
            .peers("NXDOMAIN", "NXDOMAIN"),
        harmless("RFC 2308 §2.2", "nothing at all", |asked| rcode(asked, "NOERROR"))
            .told("NODATA", "NODATA")
            .peers("NODATA", "NODATA"),
    ]
}

/// What a client is told.
fn told(reply: &Message) -> String {
    match (reply.rcode_name(), &reply.data()[..]) {
        _ if reply.has(TC) => "TC".to_owned(),
        ("NOERROR", []) => "NODATA".to_owned(),
        ("NOERROR", data) => data.join(" "),
        (rcode, _) => reply.extended_errors().iter().fold(rcode.to_owned(), |text, code| format!("{text} {code}")),
    }
}

/// Whether a peer's client is told the same: a failure is one, whatever the words.
fn is_same(ours: &str, peers: &str) -> bool {
    ours == peers || ours.starts_with(SERVFAIL) && peers == SERVFAIL
}

#[test]
fn no_fault_of_an_upstream_costs_a_client_more_than_its_answers() {
    let rows = rows();
    let good = Upstream::new(|asked| {
        let record = match asked.message.qtype() {
            1 => format!("{} 300 A {SECOND}", asked.message.qname()),
            _ => format!("{} 300 TXT \"{SECOND}\"", asked.message.qname()),
        };
        vec![Act::Reply(asked.message.respond().answer(&record))]
    });
    let faulty = |row: &Row| {
        let upstream = row.script.map(Upstream::new);
        (upstream.as_ref().map_or_else(free_address, Upstream::address), upstream)
    };
    let (alone, both): (Vec<_>, Vec<_>) = rows.iter().map(|row| (faulty(row), faulty(row))).unzip();
    let mut rules: Vec<(String, Vec<SocketAddr>)> = Vec::new();
    let mut config = String::new();
    for (row, ((alone, _), (both, _))) in alone.iter().zip(&both).enumerate() {
        rules.push((format!("row{row}.alone.example"), vec![*alone]));
        rules.push((format!("row{row}.both.example"), vec![*both, good.address()]));
        for (suffix, servers) in &rules[2 * row..] {
            config += &forward(suffix, servers);
            config += if rows[row].fault.contains("letters") { "mixed_case = true\n" } else { "" };
        }
    }
    let peers = thread::scope(|scope| {
        let bind = scope.spawn(|| Program::bind_forwarding(&rules));
        let unbound = scope.spawn(|| Program::unbound_forwarding(&rules));
        [bind.join().unwrap(), unbound.join().unwrap()]
    });
    let daemon = Setup::new(&config).start();

    // A machine that stands still for seconds makes a failure of an answer, and a wait of what comes at once. So it is
    // tried again, under another name; but never may there be a lie.
    let demand = |row: &Row, kind: &str, name: &str, expected: &str, most: Duration| {
        let mut attempt = 0;
        wait_until(&format!("{expected} for {} ({}), {kind}", row.fault, row.rule), 2 * PATIENCE, || {
            attempt += 1;
            let question = format!("www{attempt}.{name} {}", row.qtype);
            let start = Instant::now();
            let text = told(&daemon.ask(&question));
            let elapsed = start.elapsed();
            assert!(!text.contains(LIE), "{}, {kind}", row.fault);
            (text == expected && elapsed < most).then_some(question)
        })
    };
    thread::scope(|scope| {
        for (index, row) in rows.iter().enumerate() {
            let (demand, daemon) = (&demand, &daemon);
            scope.spawn(move || demand(row, "alone", &format!("row{index}.alone.example"), row.alone, LIBC));
            scope.spawn(move || {
                let most = if row.at_once { FIRST_RESEND } else { LIBC };
                let question = demand(row, "with a good server", &format!("row{index}.both.example"), row.both, most);
                // What is kept is what was told.
                assert!(!told(&daemon.ask(&question)).contains(LIE), "{}", row.fault);
            });
        }
    });
    for (row, (address, upstream)) in rows.iter().zip(&alone) {
        let (metric, label) = row.counted.split_once(' ').unwrap_or((row.counted, ""));
        let address = address.to_string();
        let label = (if metric == "failures" { "reason" } else { "rcode" }, label);
        let labels = [("upstream", &*address), label];
        let labels = if label.1.is_empty() { &labels[..1] } else { &labels[..] };
        let counted = daemon.metric(&format!("watershed_forward_{metric}_total"), labels);
        assert!(counted >= 1.0, "{}: {} is not counted", row.fault, row.counted);
        assert!(upstream.iter().all(|upstream| !upstream.asked().is_empty()), "{}", row.fault);
    }
    check_peers(&rows, &peers);
}

/// Holds what the table says of BIND 9 and Unbound against them.
fn check_peers(rows: &[Row], peers: &[Option<Program>; 2]) {
    for row in rows {
        let differ = row.peers.iter().all(|peer| !is_same(row.alone, peer));
        assert_eq!(differ, !row.because.is_empty(), "{}: where both differ there is a reason for it", row.fault);
    }
    thread::scope(|scope| {
        for (index, row) in rows.iter().enumerate() {
            for (peer, said) in peers.iter().zip(row.peers) {
                let Some(peer) = peer else { continue };
                scope.spawn(move || {
                    let mut last = String::new();
                    for attempt in 0..5 {
                        let question = format!("www{attempt}.row{index}.alone.example {}", row.qtype);
                        // Who waits this long for what must fail may as well have failed.
                        let patience = if said == SERVFAIL { LIBC / 2 } else { LIBC };
                        let reply = exchange_udp(peer.address(), &query(&question).edns(1232).to_wire(), patience);
                        let text = reply.map_or(SERVFAIL.to_owned(), |wire| told(&Message::from_wire(&wire).unwrap()));
                        last = if text.starts_with(SERVFAIL) { SERVFAIL.to_owned() } else { text };
                        if last == said {
                            return;
                        }
                    }
                    assert_eq!(last, said, "{}, {}", row.fault, peer.name());
                });
            }
        }
    });
}

/// When a query is sent again of whose upstream nothing is known.
const FIRST_RESEND: Duration = Duration::from_millis(400);
/// When libc gives up.
const LIBC: Duration = Duration::from_secs(5);
