//! Hosts files: addresses with their names, in the format of `/etc/hosts` (hosts(5)).
//!
//! A name answers with its addresses, an address with the first name of the first line that it begins. A name in the file is
//! owned for all types, as in an overlay. What is said of a loopback address is said to loopback clients only: to any other
//! it would name a machine that is not meant. `localhost` is passed over: it means loopback whatever a file says
//! (RFC 6761 §6.3).
//!
//! Lines and names that cannot be read are passed over, as libc passes over them: a typing error in `/etc/hosts` is no
//! reason not to start. There is one warning of each kind, with a count.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use super::{Error, Problem, error::Findings, names::Names, next_generation, synthesize_soa};
use crate::{
    location::Location,
    wire::{Answer, Name, Question, Rcode, Record, Rtype},
};

/// The names and addresses of one hosts file.
pub struct Hosts {
    generation: u64,
    warnings: Vec<Error>,
    /// Numbers are places in `nodes`.
    names: Names,
    nodes: Vec<Node>,
}

/// Who asks, as far as it makes a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// A client on this machine.
    Loopback,
    /// Any other.
    Remote,
}

/// What is said of a name; names with the same addresses share one.
enum Node {
    Addresses(Box<[IpAddr]>),
    /// The name of an address is that of the reverse zones; this is the name it leads to.
    Pointer(IpAddr, Name),
}

impl Hosts {
    /// Reads a hosts file from its bytes; `file` is what warnings call it.
    pub fn parse(file: &Path, bytes: &[u8]) -> Self {
        let mut findings = Findings::default();
        let mut names = Names::default();
        // The number of a name and what is said of it, a thing at a time.
        let mut addresses: Vec<(u32, IpAddr)> = Vec::new();
        let mut pointers: Vec<(u32, Node)> = Vec::new();
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        for (line, number) in bytes.split(|&byte| byte == b'\n').zip(1..) {
            let mut warn = |problem: Problem| findings.add(problem.at(Location::line(file, number)));
            // Comments may be in any encoding.
            let line = line.split(|&byte| byte == b'#').next().unwrap_or_default();
            if line.len() > MAX_LINE_BYTES {
                warn(Problem::LongLine);
                continue;
            }
            let line = String::from_utf8_lossy(line);
            let mut words = line.split_ascii_whitespace();
            let Some(word) = words.next() else { continue };
            let address = match read_address(word) {
                Address::Of(address) => address,
                Address::OfLink => continue,
                Address::None => {
                    warn(Problem::BadAddress(word.to_string()));
                    continue;
                }
            };
            let mut first = None;
            let mut has_names = false;
            for word in words {
                has_names = true;
                let Some(name) = read_host(word) else {
                    warn(Problem::BadHost(word.to_string()));
                    continue;
                };
                if !is_localhost(&name) {
                    addresses.extend(names.insert(name.wire()).map(|number| (number, address)));
                }
                first.get_or_insert(name);
            }
            match first {
                None if has_names => {}
                None => warn(Problem::NoNames(word.to_string())),
                // The unspecified address stands for "nowhere" in blocklists: it has no name.
                Some(first) if !address.is_unspecified() => {
                    let known = names.len();
                    if let Some(number) = names.insert(reverse_name(address).wire()).filter(|&n| n as usize == known) {
                        pointers.push((number, Node::Pointer(address, first)));
                    }
                }
                Some(_) => {}
            }
        }

        let mut nodes = Vec::new();
        let mut place_of = vec![0; names.len()];
        for (number, pointer) in pointers {
            place_of[number as usize] = nodes.len() as u32;
            nodes.push(pointer);
        }
        addresses.sort_by_key(|&(number, _)| number);
        let mut known: HashMap<Box<[IpAddr]>, u32> = HashMap::new();
        for entries in addresses.chunk_by(|a, b| a.0 == b.0) {
            let mut set: Vec<IpAddr> = Vec::with_capacity(entries.len());
            for (_, address) in entries {
                if !set.contains(address) {
                    set.push(*address);
                }
            }
            let set: Box<[IpAddr]> = set.into();
            place_of[entries[0].0 as usize] = *known.entry(set).or_insert_with_key(|set| {
                nodes.push(Node::Addresses(set.clone()));
                nodes.len() as u32 - 1
            });
        }
        names.renumber(|number| place_of[number as usize]);
        names.shrink();
        Self { generation: next_generation(), warnings: findings.into_errors(), names, nodes }
    }

    /// Under which answers of this file are cached: a file read anew has another one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How many names there are, those of addresses included.
    pub fn name_count(&self) -> usize {
        self.names.len()
    }

    /// The lines that were passed over, and why.
    pub fn warnings(&self) -> &[Error] {
        &self.warnings
    }

    /// What the file says to a question of class IN; `None` if it does not say anything of the name to this client.
    pub fn answer(&self, question: &Question, client: Client) -> Option<Answer> {
        let qname = &question.qname;
        let wants = |rtype| question.qtype == rtype || question.qtype == Rtype::ANY;
        let is_shown = |address: &&IpAddr| client == Client::Loopback || !address.is_loopback();
        let mut answer = Vec::new();
        match self.nodes.get(self.names.find(qname.wire())? as usize)? {
            Node::Addresses(addresses) => {
                let mut shown = addresses.iter().filter(is_shown).peekable();
                shown.peek()?;
                answer.extend(shown.filter_map(|address| match address {
                    IpAddr::V4(a) => wants(Rtype::A).then(|| Record::new(qname.clone(), Rtype::A, TTL, a.octets())),
                    IpAddr::V6(a) => {
                        wants(Rtype::AAAA).then(|| Record::new(qname.clone(), Rtype::AAAA, TTL, a.octets()))
                    }
                }));
            }
            Node::Pointer(address, name) => {
                Some(address).filter(is_shown)?;
                if wants(Rtype::PTR) {
                    answer.push(Record::new(qname.clone(), Rtype::PTR, TTL, name.wire()));
                }
            }
        }
        if answer.is_empty() {
            return Some(Answer::negative(Rcode::NOERROR, synthesize_soa(qname)));
        }
        Some(Answer { answer, ..Answer::default() })
    }

    /// The types of which the file speaks for a name: addresses, or the name of an address. `None` if it does not say anything
    /// of the name to this client.
    pub(super) fn own_types(&self, qname: &Name, client: Client) -> Option<&'static [Rtype]> {
        let is_shown = |address: &IpAddr| client == Client::Loopback || !address.is_loopback();
        match self.nodes.get(self.names.find(qname.wire())? as usize)? {
            Node::Addresses(addresses) => addresses.iter().any(is_shown).then_some(&[Rtype::A, Rtype::AAAA]),
            Node::Pointer(address, _) => is_shown(address).then_some(&[Rtype::PTR]),
        }
    }

    /// Whether loopback clients are told something else of this name than others.
    pub fn is_client_dependent(&self, qname: &Name) -> bool {
        match self.names.find(qname.wire()).and_then(|place| self.nodes.get(place as usize)) {
            Some(Node::Addresses(addresses)) => addresses.iter().any(IpAddr::is_loopback),
            Some(Node::Pointer(address, _)) => address.is_loopback(),
            None => false,
        }
    }
}

/// What a line of a hosts file begins with.
enum Address {
    Of(IpAddr),
    /// An address with a zone identifier means something on this machine's links alone (RFC 4007 §11).
    OfLink,
    None,
}

fn read_address(word: &str) -> Address {
    match word.split_once('%') {
        Some((address, zone)) if !zone.is_empty() && address.parse::<Ipv6Addr>().is_ok() => Address::OfLink,
        Some(_) => Address::None,
        // `::ffff:192.0.2.1` is the IPv4 address to every host.
        None => word.parse::<IpAddr>().map_or(Address::None, |address| Address::Of(address.to_canonical())),
    }
}

/// A name of letters, digits, hyphens and, as many hosts have them, underscores.
fn read_host(word: &str) -> Option<Name> {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    word.parse().ok().filter(|name: &Name| !name.is_root() && word.bytes().all(is_letter))
}

/// The name under which the reverse zones keep an address (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse_name(address: IpAddr) -> Name {
    let text = match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(v6) => {
            let nibbles = v6.octets().into_iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 0x0f, octet >> 4));
            nibbles.collect::<String>() + "ip6.arpa."
        }
    };
    text.parse().expect("short labels of digits")
}

fn is_localhost(name: &Name) -> bool {
    name.labels().last().is_some_and(|label| label.eq_ignore_ascii_case(b"localhost"))
}

/// TTL of all that hosts files say, in seconds. They are changed by hand while others wait for the effect: short, and not 0, for
/// then a client that keeps answers would ask for each packet again.
const TTL: u32 = 30;
/// Longest line: more names than an address has.
const MAX_LINE_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Class;

    const FILE: &str = "\
127.0.0.1 localhost loop.example # a comment
127.0.1.1\tbox.example box
192.0.2.7 box.example
192.0.2.8 db.example DB2.example.
192.0.2.8 late.example
2001:db8::8 db.example
fe80::1%eth0 link.example
192.0.2 short.example
192.0.2.9
0.0.0.0 ads.example a..b
";

    fn hosts() -> Hosts {
        Hosts::parse(Path::new("hosts"), FILE.as_bytes())
    }

    /// The RDATA that a client sees, as text; `-` is NODATA, nothing a name that falls through.
    fn ask(hosts: &Hosts, qname: &str, qtype: Rtype, client: Client) -> String {
        let question = Question { qname: qname.parse().unwrap(), qtype, qclass: Class::IN };
        let Some(answer) = hosts.answer(&question, client) else { return String::new() };
        if answer.answer.is_empty() {
            assert_eq!(answer.authority[0].owner, question.qname, "a denial has its SOA");
            return "-".to_string();
        }
        let texts = answer.answer.iter().map(|record| match (record.rtype, &*record.rdata) {
            (Rtype::A, &[a, b, c, d]) => format!("{a}.{b}.{c}.{d}"),
            (Rtype::AAAA, octets) => std::net::Ipv6Addr::from(<[u8; 16]>::try_from(octets).unwrap()).to_string(),
            _ => record.target().unwrap().to_string(),
        });
        texts.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn names_and_addresses_answer_for_each_other() {
        use Client::{Loopback, Remote};
        let v6 = "8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa";
        for (qname, qtype, client, expected) in [
            ("db.example", Rtype::A, Remote, "192.0.2.8"),
            ("db.example", Rtype::AAAA, Remote, "2001:db8::8"),
            ("db.example", Rtype::ANY, Remote, "192.0.2.8 2001:db8::8"),
            ("db.example", Rtype::MX, Remote, "-"), // a name is owned for all types
            ("db2.example", Rtype::AAAA, Remote, "-"),
            ("example", Rtype::A, Remote, ""),
            ("x.db.example", Rtype::A, Remote, ""),
            ("8.2.0.192.in-addr.arpa", Rtype::PTR, Remote, "db.example."), // the first name of the first line
            ("8.2.0.192.in-addr.arpa", Rtype::A, Remote, "-"),
            (v6, Rtype::PTR, Remote, "db.example."),
            ("box.example", Rtype::A, Loopback, "127.0.1.1 192.0.2.7"),
            ("box.example", Rtype::A, Remote, "192.0.2.7"), // loopback addresses stay at home
            ("box", Rtype::A, Loopback, "127.0.1.1"),
            ("box", Rtype::A, Remote, ""),
            ("1.1.0.127.in-addr.arpa", Rtype::PTR, Loopback, "box.example."),
            ("1.1.0.127.in-addr.arpa", Rtype::PTR, Remote, ""),
            ("localhost", Rtype::A, Loopback, ""), // built in
            ("loop.example", Rtype::A, Loopback, "127.0.0.1"),
            ("link.example", Rtype::AAAA, Loopback, ""),
            ("ads.example", Rtype::A, Remote, "0.0.0.0"),
            ("0.0.0.0.in-addr.arpa", Rtype::PTR, Remote, ""),
        ] {
            assert_eq!(ask(&hosts(), qname, qtype, client), expected, "{qname} {qtype} {client:?}");
        }
        for (qname, expected) in [("box.example", true), ("box", true), ("db.example", false), ("other.example", false)]
        {
            assert_eq!(hosts().is_client_dependent(&qname.parse().unwrap()), expected, "{qname}");
        }
    }

    #[test]
    fn faulty_lines_are_passed_over_with_a_warning() {
        let warnings: Vec<String> = hosts().warnings().iter().map(ToString::to_string).collect();
        let expected = [
            "hosts:8: `192.0.2` is not an address; the line is passed over",
            "hosts:9: 192.0.2.9 has no name behind it; the line is passed over",
            "hosts:10: `a..b` is not the name of a host and is passed over; write letters, digits, hyphens and single dots",
        ];
        assert_eq!(warnings, expected);
    }

    #[test]
    fn lines_of_real_hosts_files_are_read() {
        use Client::{Loopback, Remote};
        let long = format!("192.0.2.66 long.example{}\n", " x".repeat(40_000));
        let text = [
            b"\xef\xbb\xbf192.0.2.1 bom.example\r\n".as_slice(),
            b"192.0.2.2 latin.example # M\xfcnchen\n",
            b"# \xff\n",
            b"::ffff:192.0.2.3 mapped.example\n::ffff:127.0.0.9 mapped-loop.example\n",
            b"fe80::1%lo0 localhost\nfe80::2%en0 scoped.example\nfoo%bar bad.example\n192.0.2.9%eth0 bad2.example\n",
            b"192.0.2.4 *.wild.example b\xc3\xbccher.example fine.example \\097.example under_score.example dot.example.\n",
            b"192.0.2.5 *.only.example\n",
            b"192.0.2.6#glued.example\n",
            b"192.0.2.7 a.example#b.example\n",
            long.as_bytes(),
            b"\t 192.0.2.8\tlast.example",
        ]
        .concat();
        let hosts = Hosts::parse(Path::new("hosts"), &text);
        for (qname, qtype, client, expected) in [
            ("bom.example", Rtype::A, Remote, "192.0.2.1"),
            ("latin.example", Rtype::A, Remote, "192.0.2.2"),
            ("mapped.example", Rtype::A, Remote, "192.0.2.3"),
            ("mapped.example", Rtype::AAAA, Remote, "-"),
            ("3.2.0.192.in-addr.arpa", Rtype::PTR, Remote, "mapped.example."),
            ("mapped-loop.example", Rtype::A, Remote, ""), // a loopback address in any form
            ("mapped-loop.example", Rtype::A, Loopback, "127.0.0.9"),
            ("scoped.example", Rtype::AAAA, Loopback, ""),
            ("fine.example", Rtype::A, Remote, "192.0.2.4"),
            ("under_score.example", Rtype::A, Remote, "192.0.2.4"),
            ("dot.example", Rtype::A, Remote, "192.0.2.4"),
            ("4.2.0.192.in-addr.arpa", Rtype::PTR, Remote, "fine.example."),
            ("a.example", Rtype::A, Remote, "192.0.2.7"), // a comment needs no blank before it
            ("b.example", Rtype::A, Remote, ""),
            ("x.wild.example", Rtype::A, Remote, ""),
            ("bad2.example", Rtype::A, Remote, ""),
            ("long.example", Rtype::A, Remote, ""),
            ("last.example", Rtype::A, Remote, "192.0.2.8"),
        ] {
            assert_eq!(ask(&hosts, qname, qtype, client), expected, "{qname} {qtype} {client:?}");
        }
        let warnings: Vec<String> = hosts.warnings().iter().map(ToString::to_string).collect();
        let expected = [
            "hosts:8: `foo%bar` is not an address; the line is passed over; and 1 more of the kind",
            "hosts:10: `*.wild.example` is not the name of a host and is passed over; write letters, digits, hyphens and \
             single dots; and 3 more of the kind",
            "hosts:12: 192.0.2.6 has no name behind it; the line is passed over",
            "hosts:14: the line is longer than 64 KiB and is passed over; split it",
        ];
        assert_eq!(warnings, expected);
    }
}
