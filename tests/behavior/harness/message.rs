//! DNS messages as the tests read and write them: records are lines of text, `www.example. 60 A 192.0.2.1`.
//!
//! This is written apart from the daemon's own code on purpose, so that an error there is not made here as well.

use std::{
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
    sync::atomic::{AtomicU16, Ordering},
};

/// A query, a response or a reply.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    pub id: u16,
    /// The second word of the header, without the response code.
    pub flags: u16,
    /// The response code, its upper bits from the OPT record.
    pub rcode: u16,
    /// The question section as it came or shall go: letters matter.
    pub question: Vec<u8>,
    pub answer: Vec<Record>,
    pub authority: Vec<Record>,
    pub additional: Vec<Record>,
    pub edns: Option<Edns>,
    /// Length on the wire, of what was read.
    pub length: usize,
}

/// A resource record of class IN, or of that of the question.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub owner: String,
    pub rtype: u16,
    pub ttl: u32,
    /// RDATA with its names written out.
    pub rdata: Vec<u8>,
}

/// The OPT record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Edns {
    pub udp_size: u16,
    pub version: u8,
    pub dnssec_ok: bool,
    /// The flags that mean nothing yet.
    pub z: u16,
    pub options: Vec<(u16, Vec<u8>)>,
}

pub const QR: u16 = 0x8000;
pub const AA: u16 = 0x0400;
pub const TC: u16 = 0x0200;
pub const RD: u16 = 0x0100;
pub const RA: u16 = 0x0080;
pub const AD: u16 = 0x0020;
pub const CD: u16 = 0x0010;
/// The option of extended errors.
pub const OPTION_EDE: u16 = 15;

/// A query with RD and without EDNS, from text such as `www.example. AAAA`.
pub fn query(text: &str) -> Message {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let (qname, qtype) = text.split_once(' ').unwrap_or((text, "A"));
    let mut question = name_to_wire(qname);
    question.extend(number_of(qtype).to_be_bytes());
    question.extend(1u16.to_be_bytes());
    Message { id: NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(40_503), flags: RD, question, ..Message::default() }
}

impl Message {
    /// With an OPT record that offers this size.
    pub fn edns(mut self, udp_size: u16) -> Self {
        self.edns = Some(Edns { udp_size, ..Edns::default() });
        self
    }

    /// With the DO bit, hence EDNS.
    pub fn dnssec_ok(mut self) -> Self {
        let edns = self.edns.get_or_insert_with(|| Edns { udp_size: 1232, ..Edns::default() });
        edns.dnssec_ok = true;
        self
    }

    /// With an option of EDNS.
    pub fn option(mut self, code: u16, data: &[u8]) -> Self {
        let edns = self.edns.get_or_insert_with(|| Edns { udp_size: 1232, ..Edns::default() });
        edns.options.push((code, data.to_vec()));
        self
    }

    pub fn set(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    pub fn clear(mut self, flags: u16) -> Self {
        self.flags &= !flags;
        self
    }

    pub fn class(mut self, class: u16) -> Self {
        let at = self.question.len() - 2;
        self.question[at..].copy_from_slice(&class.to_be_bytes());
        self
    }

    pub fn rcode(mut self, name: &str) -> Self {
        self.rcode = RCODES.iter().find(|(_, text)| *text == name).expect("a response code").0;
        self
    }

    /// Adds a line to the answer section.
    pub fn answer(mut self, line: &str) -> Self {
        self.answer.push(Record::parse(line));
        self
    }

    /// Adds a line to the authority section.
    pub fn authority(mut self, line: &str) -> Self {
        self.authority.push(Record::parse(line));
        self
    }

    /// Adds a line to the additional section.
    pub fn additional(mut self, line: &str) -> Self {
        self.additional.push(Record::parse(line));
        self
    }

    /// The response to this query, as yet empty: the question with its letters, RD, RA.
    pub fn respond(&self) -> Self {
        Self {
            id: self.id,
            flags: QR | RA | self.flags & RD,
            question: self.question.clone(),
            edns: self.edns.as_ref().map(|_| Edns { udp_size: 1232, ..Edns::default() }),
            ..Self::default()
        }
    }

    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }

    /// The flags that are set, in the order of the header: `qr aa rd ra`.
    pub fn flag_names(&self) -> String {
        let names = [(QR, "qr"), (AA, "aa"), (TC, "tc"), (RD, "rd"), (RA, "ra"), (AD, "ad"), (CD, "cd")];
        names.iter().filter(|(bit, _)| self.has(*bit)).map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
    }

    /// The mnemonic of the response code.
    pub fn rcode_name(&self) -> &'static str {
        RCODES.iter().find(|(code, _)| *code == self.rcode).map_or("unknown", |(_, name)| name)
    }

    /// The qname, letters as sent.
    pub fn qname(&self) -> String {
        name_from_wire(&self.question, &mut 0).expect("a qname")
    }

    pub fn qtype(&self) -> u16 {
        let at = self.question.len() - 4;
        u16::from_be_bytes([self.question[at], self.question[at + 1]])
    }

    /// What is asked, as the tests name it: `www.example. A`, in lower case.
    pub fn asked(&self) -> String {
        format!("{} {}", self.qname().to_lowercase(), type_name(self.qtype()))
    }

    /// The answer section's lines.
    pub fn answers(&self) -> Vec<String> {
        self.answer.iter().map(Record::line).collect()
    }

    /// The answer section's RDATA alone, where owner and TTL do not matter.
    pub fn data(&self) -> Vec<String> {
        self.answer.iter().map(Record::data).collect()
    }

    /// The one record of the answer section, as RDATA.
    #[track_caller]
    pub fn one(&self) -> String {
        assert_eq!(self.answer.len(), 1, "{self:#?}");
        self.answer[0].data()
    }

    /// The SOA record of the authority section.
    pub fn soa(&self) -> Option<&Record> {
        self.authority.iter().find(|record| record.rtype == 6)
    }

    fn options(&self, wanted: u16) -> impl Iterator<Item = &[u8]> {
        let options = self.edns.iter().flat_map(|edns| &edns.options);
        options.filter(move |(code, _)| *code == wanted).map(|(_, data)| data.as_slice())
    }

    /// The codes of the extended errors.
    pub fn extended_errors(&self) -> Vec<u16> {
        self.options(OPTION_EDE).map(|data| u16::from_be_bytes([data[0], data[1]])).collect()
    }

    /// The texts of the extended errors.
    pub fn error_texts(&self) -> Vec<String> {
        self.options(OPTION_EDE).map(|data| String::from_utf8_lossy(&data[2..]).into_owned()).collect()
    }

    /// The message on the wire, names uncompressed.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::new();
        let questions = u16::from(!self.question.is_empty());
        let count = |records: &Vec<Record>| records.len() as u16;
        let additional = count(&self.additional) + u16::from(self.edns.is_some());
        let flags = self.flags | self.rcode & 15;
        for word in [self.id, flags, questions, count(&self.answer), count(&self.authority), additional] {
            wire.extend(word.to_be_bytes());
        }
        wire.extend(&self.question);
        for record in self.answer.iter().chain(&self.authority).chain(&self.additional) {
            wire.extend(name_to_wire(&record.owner));
            wire.extend(record.rtype.to_be_bytes());
            wire.extend(1u16.to_be_bytes());
            wire.extend(record.ttl.to_be_bytes());
            wire.extend((record.rdata.len() as u16).to_be_bytes());
            wire.extend(&record.rdata);
        }
        if let Some(edns) = &self.edns {
            let options: Vec<u8> = (edns.options.iter())
                .flat_map(|(code, data)| [&code.to_be_bytes(), &(data.len() as u16).to_be_bytes(), &data[..]].concat())
                .collect();
            wire.extend([0, 0, 41]);
            wire.extend(edns.udp_size.to_be_bytes());
            wire.extend([(self.rcode >> 4) as u8, edns.version]);
            wire.extend((edns.z | if edns.dnssec_ok { 0x8000 } else { 0 }).to_be_bytes());
            wire.extend((options.len() as u16).to_be_bytes());
            wire.extend(options);
        }
        wire
    }

    /// Reads a message; the error says what is broken.
    pub fn from_wire(wire: &[u8]) -> Result<Self, String> {
        let mut at = 0;
        let mut word = || {
            at += 2;
            wire.get(at - 2..at).map(|b| u16::from_be_bytes([b[0], b[1]])).ok_or("no whole header".to_owned())
        };
        let (id, flags, questions) = (word()?, word()?, word()?);
        let counts = [word()?, word()?, word()?];
        let mut message = Self { id, flags: flags & !15, rcode: flags & 15, length: wire.len(), ..Self::default() };
        let question_at = at;
        for _ in 0..questions {
            name_from_wire(wire, &mut at).ok_or("broken question")?;
            at += 4;
        }
        message.question = wire.get(question_at..at).ok_or("cut in the question")?.to_vec();
        for (section, count) in counts.into_iter().enumerate() {
            for index in 0..count {
                message.read_record(wire, &mut at, section).ok_or(format!("record {index} of section {section}"))?;
            }
        }
        if at == wire.len() { Ok(message) } else { Err(format!("{} octets behind the message", wire.len() - at)) }
    }

    fn read_record(&mut self, wire: &[u8], at: &mut usize, section: usize) -> Option<()> {
        let owner = name_from_wire(wire, at)?;
        let fixed: [u8; 10] = wire.get(*at..*at + 10)?.try_into().ok()?;
        let rtype = u16::from_be_bytes([fixed[0], fixed[1]]);
        let class = u16::from_be_bytes([fixed[2], fixed[3]]);
        let ttl = u32::from_be_bytes([fixed[4], fixed[5], fixed[6], fixed[7]]);
        let start = *at + 10;
        let end = start + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let rdata = wire.get(start..end)?;
        *at = end;
        if rtype == 41 {
            self.rcode |= (ttl >> 24 << 4) as u16;
            let (version, flags) = ((ttl >> 16) as u8, ttl as u16);
            let dnssec_ok = flags & 0x8000 != 0;
            let mut edns = Edns { udp_size: class, version, dnssec_ok, z: flags & 0x7fff, options: Vec::new() };
            let mut rest = rdata;
            while !rest.is_empty() {
                let head: [u8; 4] = *rest.first_chunk()?;
                let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
                edns.options.push((u16::from_be_bytes([head[0], head[1]]), rest.get(4..4 + length)?.to_vec()));
                rest = &rest[4 + length..];
            }
            return (owner == "." && section == 2 && self.edns.replace(edns).is_none()).then_some(());
        }
        // A signature has the class ANY.
        if class != 1 && !self.question.ends_with(&class.to_be_bytes()) && (rtype, class) != (250, 255) {
            return None;
        }
        let section = [&mut self.answer, &mut self.authority, &mut self.additional].into_iter().nth(section)?;
        section.push(Record { owner, rtype, ttl, rdata: expand(rtype, wire, start, end)? });
        Some(())
    }
}

impl Record {
    /// Reads `owner ttl TYPE rdata`; RDATA of any type may be written `\# length hex`.
    pub fn parse(line: &str) -> Self {
        let mut fields = line.splitn(4, ' ');
        let mut next = || fields.next().unwrap_or_else(|| panic!("too few fields: {line}"));
        let (owner, ttl, rtype) = (next(), next().parse().expect("a TTL"), number_of(next()));
        let owner = name_from_wire(&name_to_wire(owner), &mut 0).expect("an owner");
        Self { owner, rtype, ttl, rdata: rdata_to_wire(rtype, fields.next().unwrap_or("")) }
    }

    /// The reverse of `parse`.
    pub fn line(&self) -> String {
        format!("{} {} {} {}", self.owner, self.ttl, type_name(self.rtype), self.data())
    }

    /// RDATA as text.
    pub fn data(&self) -> String {
        let rdata = &self.rdata[..];
        let plain = match (self.rtype, rdata.len()) {
            (1, 4) => Some(Ipv4Addr::from(<[u8; 4]>::try_from(rdata).unwrap()).to_string()),
            (28, 16) => Some(Ipv6Addr::from(<[u8; 16]>::try_from(rdata).unwrap()).to_string()),
            (16, 1..) => Some(strings(rdata)),
            _ => names_in(self.rtype).and_then(|layout| fields(rdata, layout)),
        };
        plain.unwrap_or_else(|| {
            let mut text = format!("\\# {}", rdata.len());
            for (index, octet) in rdata.iter().enumerate() {
                write!(text, "{}{octet:02x}", if index == 0 { " " } else { "" }).unwrap();
            }
            text
        })
    }
}

/// Whether RDATA of this type has names in it whose letters do not matter.
pub fn has_names(rtype: u16) -> bool {
    names_in(rtype).is_some()
}

/// The layout of RDATA with names in it: words, then names, then 32-bit numbers.
fn names_in(rtype: u16) -> Option<(usize, usize, usize)> {
    Some(match rtype {
        2 | 3 | 4 | 5 | 7 | 8 | 9 | 12 | 39 => (0, 1, 0),
        6 => (0, 2, 5),
        14 => (0, 2, 0),
        15 => (1, 1, 0),
        33 => (3, 1, 0),
        _ => return None,
    })
}

fn fields(rdata: &[u8], (words, names, numbers): (usize, usize, usize)) -> Option<String> {
    let mut text = Vec::new();
    let mut at = 0;
    for _ in 0..words {
        text.push(u16::from_be_bytes(rdata.get(at..at + 2)?.try_into().ok()?).to_string());
        at += 2;
    }
    for _ in 0..names {
        text.push(name_from_wire(rdata, &mut at)?);
    }
    for _ in 0..numbers {
        text.push(u32::from_be_bytes(rdata.get(at..at + 4)?.try_into().ok()?).to_string());
        at += 4;
    }
    (at == rdata.len()).then(|| text.join(" "))
}

/// RDATA with compressed names written out.
fn expand(rtype: u16, wire: &[u8], start: usize, end: usize) -> Option<Vec<u8>> {
    let Some((words, names, _)) = names_in(rtype).filter(|_| start < end) else {
        return Some(wire[start..end].to_vec());
    };
    let mut at = start + 2 * words;
    let mut rdata = wire.get(start..at)?.to_vec();
    for _ in 0..names {
        rdata.extend(name_to_wire(&name_from_wire(wire, &mut at)?));
    }
    rdata.extend(wire.get(at..end)?);
    Some(rdata)
}

fn rdata_to_wire(rtype: u16, text: &str) -> Vec<u8> {
    if let Some(generic) = text.strip_prefix("\\#") {
        let hex: String = generic.split_whitespace().skip(1).collect();
        return (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect();
    }
    match rtype {
        1 => text.parse::<Ipv4Addr>().expect("an IPv4 address").octets().to_vec(),
        28 => text.parse::<Ipv6Addr>().expect("an IPv6 address").octets().to_vec(),
        16 => (text.trim_matches('"').split("\" \""))
            .flat_map(|string| [&[string.len() as u8], string.as_bytes()].concat())
            .collect(),
        _ => {
            let (words, names, _) = names_in(rtype).unwrap_or_else(|| panic!("write this RDATA as \\#: {text}"));
            let encode = |(index, field): (usize, &str)| match index {
                _ if index < words => field.parse::<u16>().expect("a word").to_be_bytes().to_vec(),
                _ if index < words + names => name_to_wire(field),
                _ => field.parse::<u32>().expect("a number").to_be_bytes().to_vec(),
            };
            text.split(' ').enumerate().flat_map(encode).collect()
        }
    }
}

fn strings(mut rdata: &[u8]) -> String {
    let mut texts = Vec::new();
    while let Some((&length, rest)) = rdata.split_first() {
        let (string, after) = rest.split_at(usize::from(length).min(rest.len()));
        texts.push(format!("\"{}\"", string.escape_ascii()));
        rdata = after;
    }
    texts.join(" ")
}

/// A name on the wire; the final dot may be left out.
pub fn name_to_wire(text: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    let mut label = Vec::new();
    let mut octets = text.trim_end_matches('.').bytes();
    while let Some(octet) = octets.next() {
        match octet {
            b'.' => {
                wire.push(label.len() as u8);
                wire.append(&mut label);
            }
            b'\\' => {
                let next = octets.next().expect("an octet after the backslash");
                if next.is_ascii_digit() {
                    let digits = [next, octets.next().unwrap(), octets.next().unwrap()];
                    label.push(String::from_utf8_lossy(&digits).parse().expect("three digits"));
                } else {
                    label.push(next);
                }
            }
            _ => label.push(octet),
        }
    }
    if !label.is_empty() {
        wire.push(label.len() as u8);
        wire.append(&mut label);
    }
    wire.push(0);
    wire
}

fn name_from_wire(wire: &[u8], at: &mut usize) -> Option<String> {
    let mut text = String::new();
    let mut position = *at;
    let mut after = None;
    for _ in 0..256 {
        let length = usize::from(*wire.get(position)?);
        match length {
            0 => {
                *at = after.unwrap_or(position + 1);
                return Some(if text.is_empty() { ".".to_owned() } else { text });
            }
            0xc0.. => {
                after.get_or_insert(position + 2);
                position = (length & 0x3f) << 8 | usize::from(*wire.get(position + 1)?);
            }
            1..0x40 => {
                for &octet in wire.get(position + 1..position + 1 + length)? {
                    match octet {
                        b'.' | b'\\' => write!(text, "\\{}", char::from(octet)).ok()?,
                        b'!'..=b'~' => text.push(char::from(octet)),
                        _ => write!(text, "\\{octet:03}").ok()?,
                    }
                }
                text.push('.');
                position += 1 + length;
            }
            _ => return None,
        }
    }
    None
}

pub fn type_name(rtype: u16) -> String {
    TYPES.iter().find(|(number, _)| *number == rtype).map_or(format!("TYPE{rtype}"), |(_, name)| (*name).to_owned())
}

pub fn number_of(rtype: &str) -> u16 {
    (TYPES.iter().find(|(_, name)| *name == rtype).map(|(number, _)| *number))
        .or_else(|| rtype.strip_prefix("TYPE")?.parse().ok())
        .unwrap_or_else(|| panic!("no type {rtype}"))
}

const RCODES: &[(u16, &str)] = &[
    (0, "NOERROR"),
    (1, "FORMERR"),
    (2, "SERVFAIL"),
    (3, "NXDOMAIN"),
    (4, "NOTIMP"),
    (5, "REFUSED"),
    (9, "NOTAUTH"),
    (16, "BADVERS"),
    (23, "BADCOOKIE"),
];

const TYPES: &[(u16, &str)] = &[
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (6, "SOA"),
    (12, "PTR"),
    (13, "HINFO"),
    (14, "MINFO"),
    (15, "MX"),
    (16, "TXT"),
    (17, "RP"),
    (28, "AAAA"),
    (29, "LOC"),
    (33, "SRV"),
    (35, "NAPTR"),
    (37, "CERT"),
    (39, "DNAME"),
    (43, "DS"),
    (44, "SSHFP"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (48, "DNSKEY"),
    (52, "TLSA"),
    (64, "SVCB"),
    (65, "HTTPS"),
    (99, "SPF"),
    (251, "IXFR"),
    (252, "AXFR"),
    (255, "ANY"),
    (256, "URI"),
    (257, "CAA"),
];

#[test]
fn records_are_written_and_read_back_equal() {
    for line in [
        "www.example. 60 A 192.0.2.1",
        "www.example. 60 AAAA 2001:db8::1",
        "a\\.b\\032c.example. 0 CNAME .",
        "example. 1 SOA ns.example. host.example. 1 2 3 4 5",
        "example. 1 MX 10 mail.example.",
        "_a._tcp.example. 1 SRV 0 0 8080 node.example.",
        "example. 1 TXT \"one\" \"two words\"",
        "example. 1 TYPE65280 \\# 3 01ff00",
        "example. 1 TYPE65281 \\# 0",
    ] {
        let message = query("www.example").respond().answer(line).edns(1232);
        let read = Message::from_wire(&message.to_wire()).unwrap();
        assert_eq!(read.answers(), [line]);
    }
}
