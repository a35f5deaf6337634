//! What clients may expect by the RFCs, case by case: the same octets are put to the daemon, to BIND 9 and to Unbound, all of
//! them forwarders to the same upstream.
//!
//! The daemon is held to what a row expects. The others are a second and a third opinion: where at least one shares ours, the
//! row stands as it is; where both say otherwise, it has to say so, and why we are right nevertheless. Either way the row is
//! wrong if that is not so.

mod cookies;
mod edns;
mod header;
mod https;
mod tcp;

use std::{
    net::{SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use crate::harness::{
    daemon::forward,
    message::{self, AA, QR, RA},
    programs::Program,
    *,
};

/// The daemon and those whose opinions are asked.
struct Panel {
    ours: Daemon,
    bind: Program,
    unbound: Program,
    /// Ours; the others have one of their own.
    upstream: Upstream,
    _other_upstream: Upstream,
}

/// One case.
struct Row<T = Vec<u8>> {
    /// Where it is written what has to come of it.
    rfc: &'static str,
    /// What is odd about it.
    what: &'static str,
    /// What is sent: octets, unless there is more to it.
    sent: T,
    /// What comes of it.
    expected: String,
    /// BIND and Unbound both see that differently.
    is_alone: bool,
}

/// A case of a datagram.
fn row(rfc: &'static str, what: &'static str, sent: impl Octets, expected: &str) -> Row {
    Row { rfc, what, sent: sent.octets(), expected: expected.to_owned(), is_alone: false }
}

impl<T> Row<T> {
    /// Neither of the others shares our opinion; whoever says so gives the reason.
    fn alone(self) -> Self {
        Self { is_alone: true, ..self }
    }
}

/// A message, or what is none.
trait Octets {
    fn octets(self) -> Vec<u8>;
}

impl Octets for Message {
    fn octets(self) -> Vec<u8> {
        self.to_wire()
    }
}

impl Octets for Vec<u8> {
    fn octets(self) -> Vec<u8> {
        self
    }
}

impl Panel {
    /// Three forwarders to upstreams that say the same, all of which hold `www.example. A` already.
    fn new() -> Option<Self> {
        let [upstream, other] = [(); 2].map(|()| {
            Upstream::new(|asked| match asked.message.qtype() {
                16 => vec![Act::Reply(texts(asked))],
                _ => upstream::saying("192.0.2.1")(asked),
            })
        });
        let bind = Program::bind_forwarding_all(other.address(), &format!("cookie-secret \"{SECRET}\";"))?;
        let unbound = Program::unbound_forwarding_all(other.address())?;
        let config = format!(
            "{}[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\ncookie_secrets = [\"{SECRET}\"]\n",
            forward(".", &[upstream.address()])
        );
        let ours = Setup::new(&config).start();
        ours.ask("www.example A");
        Some(Self { ours, bind, unbound, upstream, _other_upstream: other })
    }

    /// Asks all three and compares: what counts of a reply is how it looks.
    #[track_caller]
    fn check(&self, rows: Vec<Row>, look: fn(&Row, &Message) -> String) {
        self.compare(rows, |server, row| match reply_to(server, row) {
            None => "silence".to_owned(),
            Some(wire) => look(row, &self.read(server, &wire)),
        });
    }

    /// A reply as far as it can be read. Some repeat what they could not read: then their header has to say enough.
    fn read(&self, server: SocketAddr, wire: &[u8]) -> Message {
        match Message::from_wire(wire) {
            Ok(reply) => reply,
            Err(fault) => {
                assert!(server != self.ours.address(), "{fault}: {wire:02x?}");
                Message::from_wire(&[&wire[..4], &[0; 8]].concat()).unwrap()
            }
        }
    }

    /// The same for what is no datagram: `try_out` says what comes of a case at a server.
    #[track_caller]
    fn compare<T: Sync>(&self, rows: Vec<Row<T>>, try_out: impl Fn(SocketAddr, &Row<T>) -> String + Sync) {
        let servers = [self.ours.address(), self.bind.address(), self.unbound.address()];
        let mut faults = Vec::new();
        for row in rows {
            let [ours, bind, unbound] = thread::scope(|scope| {
                let (row, try_out) = (&row, &try_out);
                servers.map(|server| scope.spawn(move || try_out(server, row))).map(|opinion| opinion.join().unwrap())
            });
            let Row { rfc, what, expected, is_alone, .. } = &row;
            if ours != *expected || *is_alone != (bind != *expected && unbound != *expected) {
                let alone = if *is_alone { ", alone" } else { "" };
                faults.push(format!(
                    "{rfc}, {what}:\n  expected {expected:?}{alone}\n  ours     {ours:?}\n  BIND     {bind:?}\n  Unbound  {unbound:?}",
                ));
            }
        }
        assert!(faults.is_empty(), "{} rows:\n{}", faults.len(), faults.join("\n"));
    }
}

/// What a server says to the octets of a row, if anything. Behind them goes a query of which it knows the answer, by the
/// same socket and so to the same thread: once that is answered, what was to be dropped has been.
fn reply_to(server: SocketAddr, row: &Row) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut probe = query("www.example A");
    while row.sent.starts_with(&probe.id.to_be_bytes()) {
        probe = query("www.example A");
    }
    socket.send(&row.sent).unwrap();
    socket.send(&probe.to_wire()).unwrap();
    let mut buffer = vec![0; 65_535];
    loop {
        let length = socket.recv(&mut buffer).ok()?;
        let wire = &buffer[..length];
        if wire.starts_with(&probe.id.to_be_bytes()) {
            // What has to be asked for may take longer.
            socket.set_read_timeout(Some(if row.expected == "silence" { SILENCE } else { LONGER })).unwrap();
            continue;
        }
        assert_eq!((&wire[..2], wire[2] & 0x80), (&row.sent[..2], 0x80), "{}: of {server}", row.what);
        return Some(wire.to_vec());
    }
}

/// How a reply looks by its header and its answer: `NOERROR rd 192.0.2.1`. AA and RA are not looked at: nobody has one here,
/// and some have the other only where they have an answer.
fn header_look(_: &Row, reply: &Message) -> String {
    let flags = reply.clone().clear(AA | QR | RA).flag_names();
    [reply.rcode_name(), &flags, &reply.data().join(",")]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

/// How it looks by its answer and its OPT record: `NOERROR 192.0.2.1 opt do 10:24`, with code and length of each option.
/// Extended errors are not looked at: each server has its own.
fn opt_look(_: &Row, reply: &Message) -> String {
    let mut parts = vec![reply.rcode_name().to_owned()];
    parts.extend(reply.data());
    match &reply.edns {
        None => parts.push("no opt".to_owned()),
        Some(edns) => {
            parts.push("opt".to_owned());
            parts.extend((edns.version != 0).then(|| format!("version {}", edns.version)));
            parts.extend(edns.dnssec_ok.then(|| "do".to_owned()));
            parts.extend((edns.z != 0).then(|| format!("z {:x}", edns.z)));
            let options = edns.options.iter().filter(|(code, _)| *code != message::OPTION_EDE);
            parts.extend(options.map(|(code, data)| format!("{code}:{}", data.len())));
        }
    }
    parts.join(" ")
}

/// A TXT RRset of as many records of some 100 octets as the name's first label says.
fn texts(asked: &Asked) -> Message {
    let qname = asked.message.qname();
    let count: usize = qname.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(1);
    let text = |number| format!("{qname} 300 TXT \"{number:0>86}\"");
    let response = (0..count).fold(asked.message.respond(), |response, number| response.answer(&text(number)));
    let offered = asked.message.edns.as_ref().map_or(512, |edns| usize::from(edns.udp_size));
    match asked.over_tcp || response.to_wire().len() <= offered {
        true => response,
        false => asked.message.respond().set(message::TC),
    }
}

/// An OPT record with anything in it.
fn opt_record(udp_size: u16, ttl: u32, rdata: &[u8]) -> Vec<u8> {
    let length = (rdata.len() as u16).to_be_bytes();
    [&[0, 0, 41][..], &udp_size.to_be_bytes(), &ttl.to_be_bytes(), &length, rdata].concat()
}

/// The query for `www.example. A` with these records behind the question, and what the header counts of them.
fn with_records(counts: [u16; 3], records: &[&[u8]]) -> Vec<u8> {
    let mut wire = query("www.example A").to_wire();
    for (at, count) in [6, 8, 10].into_iter().zip(counts) {
        wire[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }
    [wire, records.concat()].concat()
}

/// The secret of cookies that all share.
const SECRET: &str = "e5e973e5a6b2a43f48e7dc849e37bfcf";
/// How long a reply that shall not come is waited for, once a later query has had its own.
const SILENCE: Duration = Duration::from_millis(100);
/// How long one that may come from the upstream is.
const LONGER: Duration = Duration::from_secs(1);
