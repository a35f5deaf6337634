//! Questions and answers that follow from a number, so that every reply can be checked down to its data.

use smallvec::SmallVec;
use watershed::wire::{Class, Name, Query, Rtype, UpstreamEdns, UpstreamQuery};

/// What is asked, and what is then to be said; a part of the numbers has each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    A,
    /// The same with the DO bit.
    Dnssec,
    Aaaa,
    Txt,
    /// No such name, says the upstream.
    Denied,
    /// No such name, says a list of the server's own.
    Blocked,
    /// A service of the catalog; the addresses of its instances.
    Service,
}

/// From here on, A, A with DO, AAAA, TXT and names that do not exist take turns.
pub const MIXED: u32 = 0x2000_0000;
/// From here on, names that only a list in the server knows.
pub const BLOCKED: u32 = 0x1000_0000;
/// From here on, services of the catalog.
pub const SERVICES: u32 = 0x3000_0000;
/// From here on, names that no cache has been filled with; so many before them are as new.
pub const FIRST_NEW: u32 = 0x5000_0000;
pub const NEW_NAMES: u32 = 1_000_000;

/// The instances of a service have the addresses 192.0.2.1 to 192.0.2.3.
pub const INSTANCES: u8 = 3;

impl Kind {
    fn of(number: u32) -> Self {
        match number >> 28 {
            1 => Self::Blocked,
            2 => [Self::A, Self::Dnssec, Self::Aaaa, Self::Txt, Self::Denied][number as usize % 5],
            3 => Self::Service,
            _ => Self::A,
        }
    }

    fn qtype(self) -> Rtype {
        match self {
            Self::Aaaa => Rtype::AAAA,
            Self::Txt => Rtype::TXT,
            _ => Rtype::A,
        }
    }

    fn is_denial(self) -> bool {
        matches!(self, Self::Denied | Self::Blocked)
    }
}

/// The name of a number: `n0000002axxx.r00042.bench.example`, the second label its rule. Names are of eight lengths, as
/// real ones are of many: nobody shall profit from datagrams of one length.
pub fn qname(number: u32, rules: u32) -> String {
    let filling = &"xxxxxxx"[(number.wrapping_mul(0x9e37_79b1) >> 29) as usize..];
    match Kind::of(number) {
        Kind::Service => format!("s{}.service.consul", number - SERVICES),
        Kind::Blocked => format!("n{number:08x}{filling}.blocked.example"),
        _ => format!("n{number:08x}{filling}.{}", rule(number % rules.max(1))),
    }
}

/// The suffix of a rule.
pub fn rule(number: u32) -> String {
    format!("r{number:05}.bench.example")
}

/// The query for a number, with EDNS, as most clients ask.
pub fn query(number: u32, rules: u32, id: u16, out: &mut Vec<u8>) {
    let kind = Kind::of(number);
    let qname: Name = qname(number, rules).parse().expect("such are names");
    let edns = Some(UpstreamEdns { udp_size: 1232, dnssec_ok: kind == Kind::Dnssec, cookie: &[] });
    let qtype = kind.qtype();
    out.clear();
    UpstreamQuery { id, qname: &qname, qtype, qclass: Class::IN, checking_disabled: false, edns }.write(out);
}

/// What the upstream says: one record with the number in it, or that there is no such name, below the question as it was
/// asked. False if there is nothing to be said to this message.
pub fn answer(message: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(query) = Query::parse(message) else { return false };
    let question = query.question_bytes();
    let number = number_in(question);
    let kind = number.map(Kind::of);
    let is_denied = kind == Some(Kind::Denied);
    let record = number.filter(|&number| !is_denied && Kind::of(number).qtype() == query.qtype());
    out.clear();
    out.extend(&message[..2]);
    out.extend([0x81, 0x80 | if is_denied { NXDOMAIN } else { 0 }, 0, 1]);
    out.extend([0, u8::from(record.is_some()), 0, u8::from(is_denied), 0, u8::from(query.edns().is_some())]);
    out.extend(question);
    if let Some(number) = record {
        let rdata = rdata(number);
        out.extend(QNAME);
        out.extend(query.qtype().0.to_be_bytes());
        out.extend(CLASS_AND_TTL);
        out.extend([0, rdata.len() as u8]);
        out.extend(rdata);
    }
    if is_denied {
        // The owner is what follows the labels of number and rule.
        out.extend([0xc0, 12 + 1 + question[0] + 7]);
        out.extend(Rtype::SOA.0.to_be_bytes());
        out.extend(CLASS_AND_TTL);
        out.extend([0, SOA.len() as u8]);
        out.extend(SOA);
    }
    if query.edns().is_some() {
        out.extend([0, 0, 41, 4, 208, 0, 0, if query.dnssec_ok() { 0x80 } else { 0 }, 0, 0, 0]);
    }
    true
}

/// Whether a message is the reply to the query for a number.
pub fn is_reply(message: &[u8], number: u32) -> bool {
    let Some((head, rest)) = message.split_at_checked(12) else { return false };
    let Some(question_bytes) = rest.iter().position(|&octet| octet == 0).map(|end| end + 5) else { return false };
    let Some((question, records)) = rest.split_at_checked(question_bytes) else { return false };
    let kind = Kind::of(number);
    let ancount = match kind {
        Kind::Service => INSTANCES,
        kind => u8::from(!kind.is_denial()),
    };
    head[2] & 0x80 != 0
        && head[3] & 0x0f == if kind.is_denial() { NXDOMAIN } else { 0 }
        && head[6..8] == [0, ancount]
        && question[question_bytes - 4..question_bytes - 2] == kind.qtype().0.to_be_bytes()
        && question[question_bytes - 2..] == [0, 1]
        && match kind {
            Kind::Service => is_name(question, &qname(number, 0)) && are_instances(records),
            kind => {
                number_in(question) == Some(number)
                    && match kind {
                        Kind::Blocked => true,
                        Kind::Denied => is_denial(records),
                        _ => is_record(records, kind.qtype(), &rdata(number)),
                    }
            }
        }
}

/// Whether a message says that the server has failed.
pub fn is_failure(message: &[u8]) -> bool {
    message.get(3).is_some_and(|flags| flags & 0x0f == SERVFAIL)
}

/// Whether the first record is of the qname, with these data. A TTL that has aged is as good.
fn is_record(records: &[u8], rtype: Rtype, rdata: &[u8]) -> bool {
    let [high, low] = rtype.0.to_be_bytes();
    records.get(..6) == Some(&[QNAME[0], QNAME[1], high, low, 0, 1])
        && records.get(10..12) == Some(&[0, rdata.len() as u8])
        && records.get(12..12 + rdata.len()) == Some(rdata)
}

/// Whether the SOA record is there, whose owner may be written in several ways.
fn is_denial(records: &[u8]) -> bool {
    let Some(owner) = records.iter().position(|&octet| octet == 0 || octet >= 0xc0) else { return false };
    let behind = owner + if records[owner] == 0 { 1 } else { 2 };
    records.get(behind..behind + 4) == Some(&[0, 6, 0, 1])
        && records.get(behind + 8..behind + 10) == Some(&[0, SOA.len() as u8])
        && records.get(behind + 10..behind + 10 + SOA.len()) == Some(&SOA)
}

/// Whether each instance has its record, in whatever order.
fn are_instances(records: &[u8]) -> bool {
    let mut seen = [false; INSTANCES as usize];
    for record in records.chunks_exact(16).take(seen.len()) {
        let host = record[15].wrapping_sub(1);
        match seen.get_mut(usize::from(host)) {
            Some(seen) if is_record(record, Rtype::A, &[192, 0, 2, host + 1]) => *seen = true,
            _ => return false,
        }
    }
    seen == [true; INSTANCES as usize]
}

fn is_name(question: &[u8], name: &str) -> bool {
    name.parse::<Name>().is_ok_and(|name| question.starts_with(name.wire()))
}

/// What the record of a number says.
fn rdata(number: u32) -> SmallVec<[u8; 80]> {
    let [a, b, c, d] = number.to_be_bytes();
    match Kind::of(number) {
        Kind::Aaaa => SmallVec::from_slice(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]),
        Kind::Txt => {
            // Of several lengths, too.
            let length = 16 + d % 48;
            let text = (0..length).map(|at| b'a' + (number >> (at % 28)) as u8 % 26);
            std::iter::once(length).chain(text).collect()
        }
        _ => SmallVec::from_slice(&[10, b, c, d]),
    }
}

/// The number in a question's first label; `None` for a label of another form.
fn number_in(question: &[u8]) -> Option<u32> {
    let label = question.split_first().filter(|(length, _)| (9..=16).contains(*length)).map(|(_, rest)| rest)?;
    // A forwarder may have mixed the letters.
    let digits = label.split_first().filter(|(first, _)| first.eq_ignore_ascii_case(&b'n'))?.1.get(..8)?;
    u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// A pointer to the question's name.
const QNAME: [u8; 2] = [0xc0, 12];
/// IN, an hour.
const CLASS_AND_TTL: [u8; 6] = [0, 1, 0, 0, 14, 16];
/// The root as its names, which nobody writes in another way; the serial number 1, and an hour for the rest.
const SOA: [u8; 22] = [0, 0, 0, 0, 0, 1, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 14, 16, 0, 0, 14, 16];
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;
