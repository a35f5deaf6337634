//! What is asked: every form of every name, by every type, in every manner.

use crate::harness::{Message, message::name_to_wire, query};

use super::fixtures::{Bench, COUNTS};

/// A question with the manner in which it is asked.
#[derive(Debug, Clone)]
pub struct Asking {
    /// Lower case, without the final dot.
    pub name: String,
    pub query: Message,
    pub over_tcp: bool,
}

impl Asking {
    fn new(name: &str, qtype: &str, letters: Letters, manner: &Manner) -> Self {
        let text = match letters {
            Letters::Lower => name.to_owned(),
            Letters::Upper => name.to_uppercase(),
            Letters::Mixed => {
                name.char_indices().map(|(at, c)| if at % 3 == 0 { c.to_ascii_uppercase() } else { c }).collect()
            }
        };
        let mut query = query(&format!("{text} {qtype}"));
        if let Some(size) = manner.edns {
            query = query.edns(size);
        }
        if manner.dnssec_ok {
            query = query.dnssec_ok();
        }
        Self { name: name.to_owned(), query, over_tcp: manner.over_tcp }
    }

    /// The most that a reply may have.
    pub fn limit_bytes(&self) -> usize {
        let size = self.query.edns.as_ref().map_or(512, |edns| usize::from(edns.udp_size).max(512));
        if self.over_tcp { 65_535 } else { size.min(16_384) }
    }

    /// The manner, for those who read of a failure.
    pub fn manner(&self) -> String {
        let edns = self.query.edns.as_ref().map_or("no EDNS".to_owned(), |edns| format!("EDNS {}", edns.udp_size));
        format!("{}, {edns}", if self.over_tcp { "TCP" } else { "UDP" })
    }
}

/// A few thousand of them for a bench.
pub fn questions(bench: &Bench) -> Vec<Asking> {
    let services = services(bench);
    let mut askings = Vec::new();
    let mut index = 0;
    let domain = bench.setting.domain;
    let mut ask = |name: &str, qtype: &str| {
        let name = &in_domain(name, domain);
        // Numbers without a common divisor, so that each meets each.
        let (letters, manner) = (LETTERS[index % LETTERS.len()], &MANNERS[index % MANNERS.len()]);
        index += 1;
        if name_to_wire(name).len() <= 255 && name.split('.').all(|label| (1..=63).contains(&label.len())) {
            askings.push(Asking::new(name, qtype, letters, manner));
        }
    };
    let mut odd_type = TYPES.iter().cycle();
    for (service, tags) in &services {
        let main = format!("{service}.service.consul");
        TYPES.iter().for_each(|qtype| ask(&main, qtype));
        let mut forms = vec![
            format!("{service}.service.dc1.consul"),
            format!("{service}.service.dc2.consul"),
            format!("{service}.service.a.dc1.consul"),
            format!("{service}.consul"),
            format!("no-tag.{service}.service.consul"),
            format!("_{service}._tcp.service.consul"),
            format!("_{service}._udp.service.consul"),
            format!("_{service}._tcp.service.dc1.consul"),
            format!("_{service}._tcp.consul"),
            format!("_{service}._tcp.dc1.consul"),
            format!("_{service}.tcp.service.consul"),
            format!("x._{service}._tcp.service.consul"),
            format!("{service}.connect.consul"),
            format!("x.{service}.connect.dc1.consul"),
            format!("{service}.ingress.consul"),
            format!("{service}.query.consul"),
            format!("{service}.node.consul"),
        ];
        for tag in tags {
            forms.push(format!("{tag}.{service}.service.consul"));
            forms.push(format!("_{service}._{tag}.service.dc1.consul"));
            forms.push(format!("x.{tag}.{service}.service.consul"));
        }
        for form in forms {
            for qtype in ["A", "SRV", "ANY"].into_iter().chain(odd_type.by_ref().take(1).copied()) {
                ask(&form, qtype);
            }
        }
    }
    let mut others: Vec<String> = Vec::new();
    for node in nodes(bench) {
        others.extend([
            format!("{node}.node.consul"),
            format!("{node}.node.dc1.consul"),
            format!("{node}.node.dc2.consul"),
            format!("{node}.node.x.dc1.consul"),
            format!("x.{node}.node.consul"),
            format!("{node}.consul"),
            format!("{node}.service.consul"),
        ]);
    }
    others.extend(ODD_NAMES.iter().map(|name| (*name).to_owned()));
    let mut reverse: Vec<String> = Vec::new();
    reverse.push(reverse_name(bench.consul.ip()));
    reverse.extend(REVERSE.iter().map(|address| reverse_name(address.parse().unwrap())));
    for name in others.iter().chain(&reverse) {
        TYPES.iter().for_each(|qtype| ask(name, qtype));
    }
    for (service, _) in COUNTS {
        for name in [format!("{service}.service.{domain}"), format!("_{service}._tcp.service.dc1.{domain}")] {
            for qtype in ["A", "AAAA", "ANY", "TXT", "SRV"] {
                askings.extend(MANNERS.iter().map(|manner| Asking::new(&name, qtype, Letters::Lower, manner)));
            }
        }
    }
    askings
}

/// The name in the domain of the setting, which replaces `consul`.
fn in_domain(name: &str, domain: &str) -> String {
    match name.strip_suffix("consul") {
        Some(start) if start.is_empty() || start.ends_with('.') => format!("{start}{domain}"),
        _ => name.to_owned(),
    }
}

/// Every service that the agent has, by its name in lower case and as it may stand in a name, with its tags.
fn services(bench: &Bench) -> Vec<(String, Vec<String>)> {
    let known = bench.consul.get("/v1/catalog/services");
    let escape = |text: &str| text.to_lowercase().replace(' ', "\\032");
    let mut services: Vec<_> = (known.as_object().unwrap().iter())
        .map(|(name, tags)| {
            (escape(name), tags.as_array().unwrap().iter().map(|tag| escape(tag.as_str().unwrap())).collect())
        })
        .collect();
    services.extend(["none".to_owned(), "*".to_owned()].map(|name| (name, vec!["v1".to_owned()])));
    services
}

/// Every node by its name in lower case.
fn nodes(bench: &Bench) -> Vec<String> {
    let known = bench.consul.get("/v1/catalog/nodes");
    known.as_array().unwrap().iter().map(|node| node["Node"].as_str().unwrap().to_lowercase()).collect()
}

fn reverse_name(address: std::net::IpAddr) -> String {
    match address {
        std::net::IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        std::net::IpAddr::V6(v6) => {
            let digits: Vec<String> = (0..32).map(|at| format!("{:x}", u128::from(v6) >> (4 * at) & 15)).collect();
            format!("{}.ip6.arpa", digits.join("."))
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Letters {
    Lower,
    Upper,
    Mixed,
}

/// How a question is asked.
struct Manner {
    over_tcp: bool,
    edns: Option<u16>,
    dnssec_ok: bool,
}

const LETTERS: [Letters; 3] = [Letters::Lower, Letters::Upper, Letters::Mixed];

const fn by_udp(edns: Option<u16>) -> Manner {
    Manner { over_tcp: false, edns, dnssec_ok: false }
}

const MANNERS: [Manner; 10] = [
    by_udp(None),
    by_udp(Some(512)),
    by_udp(Some(513)),
    by_udp(Some(1232)),
    Manner { over_tcp: true, edns: None, dnssec_ok: false },
    by_udp(Some(4096)),
    by_udp(Some(65_535)),
    Manner { over_tcp: false, edns: Some(1232), dnssec_ok: true },
    by_udp(Some(0)),
    Manner { over_tcp: true, edns: Some(1232), dnssec_ok: false },
];

const TYPES: [&str; 17] = [
    "A",
    "AAAA",
    "ANY",
    "SRV",
    "TXT",
    "CNAME",
    "MX",
    "NS",
    "SOA",
    "PTR",
    "DS",
    "CAA",
    "HTTPS",
    "NAPTR",
    "DNSKEY",
    "URI",
    "TYPE65280",
];

const ODD_NAMES: &[&str] = &[
    "consul",
    "ns.consul",
    "hostmaster.consul",
    "service.consul",
    "node.consul",
    "addr.consul",
    "connect.consul",
    "query.consul",
    "service.dc1.consul",
    "dc1.consul",
    "x.y.consul",
    "web.service.node.consul",
    "web.node.service.consul",
    "a\\.b.service.consul",
    "a\\000b.service.consul",
    "_._tcp.service.consul",
    "_web._.service.consul",
    "_._.service.consul",
    "_.service.consul",
    "_web.service.consul",
    "_tcp.consul",
    "c0000207.addr.consul",
    "c0000207.addr.dc1.consul",
    "c0000207.addr.dc2.consul",
    "c0000207.addr.a.b.c.consul",
    "x.c0000207.addr.consul",
    "c00002.addr.consul",
    "c000020.addr.consul",
    "x0000207.addr.consul",
    "20010db8000000000000000000000007.addr.consul",
    "00000000000000000000ffffc0000207.addr.consul",
    "20010db800000000000000000000000700.addr.consul",
];

/// Addresses whose names are asked for.
const REVERSE: &[&str] = &[
    "192.0.2.2",
    "192.0.2.8",
    "192.0.2.10",
    "192.0.2.11",
    "192.0.2.13",
    "192.0.2.20",
    "192.0.2.52",
    "192.0.2.7",
    "2001:db8::5",
    "2001:db8::6",
    "2001:db8::13",
    "198.18.10.3",
    "203.0.113.99",
    "198.51.100.7",
    "198.51.100.9",
    "2001:db8:8::8",
    "2001:db8:8::10",
    "2001:db8::99",
];
