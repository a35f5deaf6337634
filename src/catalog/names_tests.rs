//! Each table has the rows of a section of CONSUL-DNS.md: what Consul answers.

use std::{collections::BTreeMap, net::Ipv6Addr, sync::Arc};

use super::*;
use crate::{
    catalog::{
        Check, Instance, Registration, Role, Tagged, Weights,
        registry::{CheckKey, Outcomes, Part, Registry, Set, SourceId},
        snapshot::Given,
    },
    clock::Moment,
    wire::Class,
};

/// Text for a catalog: a line for each node and instance.
///
/// `node NAME ADDRESS [KEY=VALUE...]` and `NAME ID NODE [KEY=VALUE...]`.
fn catalog(text: &str, settings: &str) -> Snapshot {
    let mut registry = Registry::new(super::super::Settings::example(settings));
    registry.publish(SourceId(0), read(text), Outcomes::Published, Moment::default());
    registry.snapshot()
}

fn read(text: &str) -> Set {
    let mut set = Set::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let words: Vec<&str> = line.split(' ').collect();
        let pairs: Vec<(&str, &str)> = words[3..].iter().filter_map(|word| word.split_once('=')).collect();
        let value = |key: &str| pairs.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
        let tagged = ["lan_ipv4", "lan_ipv6", "consul-virtual"]
            .iter()
            .filter_map(|tag| Some((tag.to_string(), Tagged { address: value(tag)?.parse().unwrap(), port: 1 })));
        let tagged: BTreeMap<String, Tagged> = tagged.collect();
        let check = |id: &str, status: &str| Check {
            id: id.into(),
            name: id.into(),
            notes: "".into(),
            kind: "".into(),
            output: "".into(),
            status: match status {
                "passing" => Status::Passing,
                "warning" => Status::Warning,
                "unknown" => Status::Unknown,
                _ => Status::Critical,
            },
        };
        let checks = value("check").map(|status| check("c", status)).into_iter().collect();
        let datacenter = value("dc").unwrap_or("dc1");
        if words[0] == "node" {
            let meta = pairs.iter().filter(|(key, _)| key.starts_with("m-"));
            set.nodes.push(Arc::new(Node {
                name: words[1].into(),
                datacenter: datacenter.into(),
                address: words[2].parse().unwrap(),
                tagged,
                meta: meta.map(|(key, value)| (key[2..].to_owned(), (*value).to_owned())).collect(),
                checks,
            }));
            continue;
        }
        let weights = value("weights").map(|text| text.split_once('/').unwrap());
        let role = match (value("proxy"), value("ingress")) {
            (Some(destination), _) => Role::Proxy { destination: destination.into() },
            (_, Some(services)) => Role::Ingress { services: vec![services.into()] },
            _ if words.contains(&"native") => Role::Native,
            _ => Role::Plain,
        };
        let registration = Registration {
            node: NodeKey::new(datacenter, words[2]),
            id: format!("{}-{}", words[0], words[1]).into(),
            service: words[0].into(),
            tags: value("tags").map(|tags| tags.split(',').map(str::to_owned).collect()).unwrap_or_default(),
            address: value("address").map(|address| address.parse().unwrap()),
            port: value("port").map_or(80, |port| port.parse().unwrap()),
            tagged,
            meta: BTreeMap::new(),
            weights: weights.map_or_else(Weights::default, |(passing, warning)| Weights {
                passing: passing.parse().unwrap(),
                warning: warning.parse().unwrap(),
            }),
            role,
        };
        set.instances.push(Arc::new(Instance { registration: registration.into(), checks }));
    }
    set
}

fn say(snapshot: &Snapshot, question: &str) -> Said {
    let (qname, qtype) = question.split_once(' ').unwrap();
    let question =
        Question { qname: qname.parse::<Name>().unwrap().to_lower(), qtype: qtype.parse().unwrap(), qclass: Class::IN };
    snapshot.answer(&question, 7, 0, Moment::default())
}

/// `RCODE: answer; authority; additional`, where `-` is nothing at all; owners that are the qname are left out.
fn ask(snapshot: &Snapshot, question: &str) -> String {
    let Some(answer) = say(snapshot, question).answer() else { return "pass".to_owned() };
    assert!(answer.authoritative);
    let qname: Name = question.split(' ').next().unwrap().parse().unwrap();
    let sections = [&answer.answer, &answer.authority, &answer.additional].map(|records| {
        let records: Vec<String> = records.iter().map(|record| show(record, &qname)).collect();
        if records.is_empty() { "-".to_owned() } else { records.join(", ") }
    });
    let rcode = if answer.rcode == Rcode::NOERROR { String::new() } else { format!("{}: ", answer.rcode) };
    format!("{rcode}{}", sections.join("; ").trim_end_matches("; -"))
}

fn show(record: &Record, qname: &Name) -> String {
    let name = |at: usize| Name::read(&record.rdata, at).unwrap().0;
    let number = |at: usize| u16::from_be_bytes([record.rdata[at], record.rdata[at + 1]]);
    let rdata = match record.rtype {
        Rtype::A => IpAddr::from(<[u8; 4]>::try_from(&*record.rdata).unwrap()).to_string(),
        Rtype::AAAA => Ipv6Addr::from(<[u8; 16]>::try_from(&*record.rdata).unwrap()).to_string(),
        Rtype::SRV => format!("{} {} {} {}", number(0), number(2), number(4), name(6)),
        Rtype::TXT => format!("{:?}", String::from_utf8_lossy(&record.rdata[1..])),
        Rtype::SOA => {
            return if record.owner.label_count() == 1 { "soa".to_owned() } else { format!("soa {}", record.owner) };
        }
        _ => name(0).to_string(),
    };
    let owner = if record.owner == *qname { String::new() } else { format!("{} ", record.owner) };
    let ttl = if record.ttl == 0 { String::new() } else { format!("{} ", record.ttl) };
    let rtype = if record.rtype == Rtype::A { String::new() } else { format!("{} ", record.rtype) };
    format!("{owner}{ttl}{rtype}{rdata}")
}

fn check(snapshot: &Snapshot, rows: &[(&str, &str)]) {
    let failures: Vec<_> = rows
        .iter()
        .map(|(question, expected)| (question, *expected, ask(snapshot, question)))
        .filter(|(_, expected, found)| expected != found)
        .collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

const CATALOG: &str = "
    node Foo 192.0.2.1 m-k=v
    node bar.baz 2001:db8::2
    node ext ext.example.org
    node far 192.0.2.9 dc=dc2
    web w1 Foo port=8080 tags=v1,Primary
    web w2 bar.baz
    web w3 far dc=dc2
    api a1 Foo address=192.0.2.20 port=0
    api a2 Foo address=2001:db8::20
    old o1 ext
    www h1 Foo address=www.example.com
    in i1 Foo address=api.service.consul
    NODE n1 Foo tags=x
    mesh m1 Foo proxy=web address=192.0.2.30
    nat t1 Foo native
    gate g1 Foo ingress=web port=9000
    virt v1 Foo consul-virtual=240.0.0.1
    down d1 Foo check=critical
    a.b dotted Foo
";

#[test]
fn names_are_read_from_the_right() {
    // CONSUL-DNS.md §1: name match, parsing, SRV shortcut, suffix, unknown dc, no kind
    let snapshot = catalog(CATALOG, "");
    check(
        &snapshot,
        &[
            ("web.service.consul A", "192.0.2.1"),
            ("WEB.Service.CONSUL A", "192.0.2.1"),
            ("web.service.dc1.consul A", "192.0.2.1"),
            ("web.service.DC2.consul A", "192.0.2.9"),
            ("web.service.dc2.dc.consul A", "192.0.2.9"), // §9: explicit labels
            ("web.service.dc3.consul A", "NXDOMAIN: -; soa"),
            ("web.service.x.dc1.consul A", "NXDOMAIN: -; soa"),
            ("web.service.default.ns.consul A", "NXDOMAIN: -; soa"),
            ("service.consul A", "NXDOMAIN: -; soa"),
            ("node.consul A", "NXDOMAIN: -; soa"),
            ("web.consul A", "NXDOMAIN: -; soa"),
            ("ns.consul A", "NXDOMAIN: -; soa"),
            ("x.web.consul A", "NXDOMAIN: -; soa"),
            ("node.service.consul A", "192.0.2.1"), // a service may be called node
            ("x.node.service.consul A", "192.0.2.1"),
            ("_web._tcp.service.consul A", "192.0.2.1"), // §2: RFC form, for A too
            (
                "_web._tcp.consul SRV",
                "SRV 1 1 80 bar.baz.node.dc1.consul., SRV 1 1 8080 Foo.node.dc1.consul.; \
                                  -; bar.baz.node.dc1.consul. AAAA 2001:db8::2, Foo.node.dc1.consul. 192.0.2.1, \
                                  Foo.node.dc1.consul. TXT \"k=v\"",
            ),
            ("_web._tcp.dc2.consul SRV", "SRV 1 1 80 far.node.dc2.consul.; -; far.node.dc2.consul. 192.0.2.9"),
            ("_web._tcp.consul A", "-; soa"), // Consul says NXDOMAIN: a name exists for all types
            ("_none._tcp.consul A", "NXDOMAIN: -; soa"),
            ("xconsul A", "pass"), // whole labels
            ("www.example.com A", "pass"),
        ],
    );
}

#[test]
fn services_answer_by_type() {
    // CONSUL-DNS.md §2: tag.s.service, the RFC forms, connect, ingress, query, virtual
    let snapshot = catalog(CATALOG, "service_ttl = { \"*\" = \"5s\" }");
    check(
        &snapshot,
        &[
            ("web.service.consul A", "5 192.0.2.1"),
            ("web.service.consul AAAA", "5 AAAA 2001:db8::2"),
            ("web.service.consul ANY", "5 AAAA 2001:db8::2, 5 192.0.2.1"),
            ("web.service.consul TXT", "5 AAAA 2001:db8::2, 5 192.0.2.1"), // not TXT
            ("web.service.consul MX", "-; soa"),
            ("web.service.consul CNAME", "-; soa"),
            ("v1.web.service.consul A", "5 192.0.2.1"),
            ("primary.web.service.consul A", "5 192.0.2.1"), // tags compare without case
            ("primary.web.service.consul AAAA", "-; soa"),
            ("v1.primary.web.service.consul A", "NXDOMAIN: -; soa"), // two tags cannot be combined
            ("v2.web.service.consul A", "NXDOMAIN: -; soa"),
            ("v2.web.service.consul MX", "NXDOMAIN: -; soa"),
            ("_web._v1.service.consul A", "5 192.0.2.1"),
            ("_web._udp.service.consul A", "NXDOMAIN: -; soa"), // a tag
            ("x._web._tcp.service.consul A", "NXDOMAIN: -; soa"), // exactly two labels
            ("_._tcp.service.consul A", "NXDOMAIN: -; soa"),    // Consul says SERVFAIL
            ("down.service.consul A", "NXDOMAIN: -; soa"),
            ("down.service.consul TXT", "NXDOMAIN: -; soa"),
            ("none.service.consul ANY", "NXDOMAIN: -; soa"),
            ("a.b.service.consul A", "NXDOMAIN: -; soa"), // tag a of b
            ("a\\.b.service.consul A", "NXDOMAIN: -; soa"),
            ("web.connect.consul A", "5 192.0.2.30"),
            ("x.y.web.connect.consul A", "5 192.0.2.30"), // labels to the left are ignored
            ("nat.connect.consul A", "5 192.0.2.1"),
            ("mesh.service.consul A", "5 192.0.2.30"),
            ("api.connect.consul A", "NXDOMAIN: -; soa"),
            (
                "web.ingress.consul SRV",
                "5 SRV 1 1 9000 Foo.node.dc1.consul.; \
                                    -; Foo.node.dc1.consul. 5 192.0.2.1, Foo.node.dc1.consul. 5 TXT \"k=v\"",
            ),
            ("q.query.consul A", "NXDOMAIN: -; soa"),
            ("virt.virtual.consul A", "240.0.0.1"), // §9: node TTL
            ("virt.virtual.consul AAAA", "-; soa"),
            ("web.virtual.consul A", "NXDOMAIN: -; soa"),
        ],
    );
}

#[test]
fn nodes_answer_by_type() {
    // CONSUL-DNS.md §2: n.node; its meta as §3 says. Where Consul leaves out the SOA, it is there.
    let snapshot = catalog(CATALOG, "node_ttl = \"3s\"");
    check(
        &snapshot,
        &[
            ("foo.node.consul A", "3 192.0.2.1; -; 3 TXT \"k=v\""),
            ("foo.node.dc1.consul AAAA", "-; soa; 3 TXT \"k=v\""),
            ("foo.node.consul TXT", "3 TXT \"k=v\""),
            ("foo.node.consul ANY", "3 192.0.2.1, 3 TXT \"k=v\""),
            ("foo.node.consul SRV", "-; soa"),
            ("foo.node.consul MX", "-; soa"),
            ("bar.baz.node.consul AAAA", "3 AAAA 2001:db8::2"), // dots within
            ("bar.baz.node.consul A", "-; soa"),
            ("bar.baz.node.consul TXT", "-; soa"),
            ("baz.node.consul A", "NXDOMAIN: -; soa"),
            ("none.node.consul MX", "NXDOMAIN: -; soa"), // for every type
            ("foo.node.dc2.consul A", "NXDOMAIN: -; soa"),
            ("far.node.dc2.consul A", "3 192.0.2.9"),
            ("ext.node.consul A", "3 CNAME ext.example.org."), // others follow it
            ("ext.node.consul CNAME", "3 CNAME ext.example.org."),
            ("ext.node.consul MX", "-; soa"),
        ],
    );
    let without = catalog(CATALOG, "enable_additional_node_meta_txt = false");
    check(&without, &[("foo.node.consul A", "192.0.2.1"), ("foo.node.consul ANY", "192.0.2.1, TXT \"k=v\"")]);
}

#[test]
fn addresses_are_spelled_in_names() {
    // CONSUL-DNS.md §2: hex.addr; with another type as §9 says
    let snapshot = catalog(CATALOG, "node_ttl = \"3s\"");
    let v6 = "20010db8000000000000000000000001.addr.consul";
    check(
        &snapshot,
        &[
            ("c0000207.addr.consul A", "3 192.0.2.7"),
            ("C0000207.addr.any.thing.consul ANY", "3 192.0.2.7"),
            ("c0000207.addr.consul AAAA", "-; soa; 3 192.0.2.7"),
            ("c0000207.addr.consul TXT", "-; soa; 3 192.0.2.7"),
            (&format!("{v6} AAAA"), "3 AAAA 2001:db8::1"),
            (&format!("{v6} A"), "-; soa; 3 AAAA 2001:db8::1"),
            ("c00002.addr.consul A", "NXDOMAIN: -; soa"),
            ("x0000207.addr.consul A", "NXDOMAIN: -; soa"),
            ("x.c0000207.addr.consul A", "NXDOMAIN: -; soa"),
        ],
    );
}

#[test]
fn srv_targets_say_where_the_address_comes_from() {
    // CONSUL-DNS.md §3: SRV target, additional for SRV, de-duplication (§4)
    let snapshot = catalog(CATALOG, "");
    check(
        &snapshot,
        &[
            (
                "api.service.consul SRV",
                "SRV 1 1 0 c0000214.addr.dc1.consul., SRV 1 1 80 20010db8000000000000000000000020.addr.dc1.consul.; -; \
             c0000214.addr.dc1.consul. 192.0.2.20, 20010db8000000000000000000000020.addr.dc1.consul. AAAA 2001:db8::20, \
             Foo.node.dc1.consul. TXT \"k=v\"",
            ),
            ("www.service.consul SRV", "SRV 1 1 80 www.example.com.; -; Foo.node.dc1.consul. TXT \"k=v\""),
            ("old.service.consul SRV", "SRV 1 1 80 ext.example.org."),
            (
                "in.service.consul SRV",
                "SRV 1 1 80 api.service.consul.; -; api.service.consul. 192.0.2.20, \
             api.service.consul. AAAA 2001:db8::20, Foo.node.dc1.consul. TXT \"k=v\"",
            ),
        ],
    );
    let snapshot = catalog(
        "node n 192.0.2.1 m-k=v
         s 1 n port=1
         s 2 n port=2
         s 3 n port=1
         s 4 n port=1 address=192.0.2.1",
        "enable_additional_node_meta_txt = false",
    );
    let said = say(&snapshot, "s.service.consul SRV");
    check(
        &snapshot,
        &[
            (
                "s.service.consul SRV",
                "SRV 1 1 1 n.node.dc1.consul., SRV 1 1 2 n.node.dc1.consul., SRV 1 1 1 c0000201.addr.dc1.consul.; -; \
             n.node.dc1.consul. 192.0.2.1, c0000201.addr.dc1.consul. 192.0.2.1",
            ),
            ("s.service.consul A", "192.0.2.1"),
        ],
    );
    assert_eq!((said.shape.rotating, said.shape.glue), (0..3, vec![Some(0), Some(0), Some(1)]));
}

#[test]
fn addresses_come_from_tags_the_service_or_the_node() {
    // CONSUL-DNS.md §3: service address, tagged addresses, IPv4-mapped IPv6
    let snapshot = catalog(
        "node n 192.0.2.1 lan_ipv6=2001:db8::1
         own 1 n address=192.0.2.2
         tagged 1 n address=192.0.2.3 lan_ipv4=192.0.2.4 lan_ipv6=2001:db8::4 port=7
         v6 1 n lan_ipv6=2001:db8::5
         mapped 1 n address=::ffff:192.0.2.6
         bare 1 n",
        "",
    );
    check(
        &snapshot,
        &[
            ("own.service.consul A", "192.0.2.2"),
            ("own.service.consul AAAA", "-; soa"), // the service's address wins over the node's
            ("tagged.service.consul A", "192.0.2.4"),
            ("tagged.service.consul AAAA", "AAAA 2001:db8::4"),
            ("tagged.service.consul ANY", "AAAA 2001:db8::4"),
            (
                "tagged.service.consul SRV",
                "SRV 1 1 7 20010db8000000000000000000000004.addr.dc1.consul.; \
             -; 20010db8000000000000000000000004.addr.dc1.consul. AAAA 2001:db8::4",
            ), // never the tagged port
            ("v6.service.consul A", "192.0.2.1"),
            ("v6.service.consul AAAA", "AAAA 2001:db8::5"),
            ("mapped.service.consul A", "192.0.2.6"),
            ("mapped.service.consul AAAA", "-; soa"),
            ("bare.service.consul A", "192.0.2.1"),
            ("bare.service.consul AAAA", "AAAA 2001:db8::1"),
            (
                "bare.service.consul SRV",
                "SRV 1 1 80 20010db8000000000000000000000001.addr.dc1.consul.; \
             -; 20010db8000000000000000000000001.addr.dc1.consul. AAAA 2001:db8::1",
            ), // a translated address
            ("n.node.consul A", "192.0.2.1"),
            ("n.node.consul AAAA", "AAAA 2001:db8::1"),
        ],
    );
}

#[test]
fn names_of_hosts_become_aliases() {
    // CONSUL-DNS.md §3: hostname address, target inside D
    let snapshot = catalog(
        "node n 192.0.2.1 m-k=v
         node alias real.node.consul
         node real 192.0.2.8 m-r=1
         web 1 n address=www.example.com
         web 2 n address=www.example.net
         mixed 1 n address=www.example.com
         mixed 2 n address=192.0.2.2
         inner 1 n address=mixed.service.consul
         deep 1 n address=inner.service.consul
         a 1 n address=b.service.consul
         b 1 n address=a.service.consul
         gone 1 n address=none.service.consul
         self 1 n address=self.service.consul
         capital 1 n address=Mixed.Service.Consul
         apex 1 n address=consul
         tonode 1 n address=real.node.consul",
        "service_ttl = { \"*\" = \"5s\" }\nnode_ttl = \"3s\"",
    );
    check(
        &snapshot,
        &[
            ("web.service.consul A", "5 CNAME www.example.com."), // one alone
            ("web.service.consul MX", "5 CNAME www.example.com."),
            ("web.service.consul CNAME", "5 CNAME www.example.com."),
            ("mixed.service.consul A", "5 192.0.2.2"),
            ("mixed.service.consul AAAA", "-; soa"), // if any has an address, there is no alias
            ("inner.service.consul A", "5 CNAME mixed.service.consul., mixed.service.consul. 5 192.0.2.2"),
            ("inner.service.consul AAAA", "5 CNAME mixed.service.consul.; soa"),
            ("inner.service.consul MX", "5 CNAME mixed.service.consul.; soa"),
            (
                "deep.service.consul A",
                "5 CNAME inner.service.consul., inner.service.consul. 5 CNAME mixed.service.consul., \
             mixed.service.consul. 5 192.0.2.2",
            ),
            ("a.service.consul A", "5 CNAME b.service.consul., b.service.consul. 5 CNAME a.service.consul.; soa"), // once round is enough
            ("capital.service.consul A", "5 CNAME Mixed.Service.Consul., Mixed.Service.Consul. 5 192.0.2.2"), // letters stay
            ("apex.service.consul ANY", "5 CNAME consul.; soa"),
            ("gone.service.consul A", "5 CNAME none.service.consul.; soa"),
            ("self.service.consul A", "5 192.0.2.1"), // the name itself: the node
            (
                "self.service.consul SRV",
                "5 SRV 1 1 80 n.node.dc1.consul.; -; n.node.dc1.consul. 5 192.0.2.1, \
             n.node.dc1.consul. 5 TXT \"k=v\"",
            ),
            ("alias.node.consul A", "3 CNAME real.node.consul., real.node.consul. 3 192.0.2.8"),
            (
                "alias.node.consul ANY",
                "3 CNAME real.node.consul., real.node.consul. 3 192.0.2.8, \
             real.node.consul. 3 TXT \"r=1\"",
            ), // TXT of the target is kept for nodes
            ("tonode.service.consul ANY", "5 CNAME real.node.consul., real.node.consul. 5 192.0.2.8"), // and dropped here
        ],
    );
    assert!(say(&snapshot, "web.service.consul A").volatile);
    assert!(!say(&snapshot, "inner.service.consul A").volatile);
    assert_eq!(say(&snapshot, "deep.service.consul A").shape.rotating, 2..3);
    assert_eq!(say(&snapshot, "deep.service.consul A").slots.len(), 3, "a chain is made of all its parts");
    let qname: Name = "web.service.consul".parse().unwrap();
    let question = Question { qname, qtype: Rtype::A, qclass: Class::IN };
    let other = snapshot.answer(&question, 7, 1, Moment::default()).answer().unwrap();
    assert_eq!(other.answer[0].target(), "www.example.net".parse().ok());
}

#[test]
fn the_zone_has_its_soa_and_name_servers() {
    // CONSUL-DNS.md §2: NS and SOA. Not under names that do not exist, and the apex exists.
    let snapshot = catalog(CATALOG, "node_name = \"Foo\"\nnode_ttl = \"3s\"\nsoa = { min_ttl = 9 }");
    let ns = "consul. 3 NS foo.node.dc1.consul.";
    let glue = "foo.node.dc1.consul. 3 192.0.2.1";
    check(
        &snapshot,
        &[
            ("consul NS", &format!("3 NS foo.node.dc1.consul.; -; {glue}")),
            ("consul SOA", &format!("soa; 3 NS foo.node.dc1.consul.; {glue}")),
            ("consul ANY", &format!("soa; 3 NS foo.node.dc1.consul.; {glue}")),
            ("consul A", "-; soa"),
            ("web.service.consul NS", &format!("{ns}; -; {glue}")),
            ("web.service.consul SOA", &format!("soa; {ns}; {glue}")),
            ("foo.node.consul NS", &format!("{ns}; -; {glue}")),
            ("c0000207.addr.consul NS", &format!("{ns}; -; {glue}")),
            ("none.service.consul NS", "NXDOMAIN: -; soa"),
            ("none.service.consul SOA", "NXDOMAIN: -; soa"),
        ],
    );
    let soa = say(&snapshot, "consul SOA").answer().unwrap().answer.remove(0);
    let numbers: Vec<u32> = soa.rdata[soa.rdata.len() - 20..]
        .chunks(4)
        .map(|octets| u32::from_be_bytes(octets.try_into().unwrap()))
        .collect();
    assert_eq!((soa.ttl, numbers), (9, vec![7, 3600, 600, 86_400, 9]));
    let mname = Name::read(&soa.rdata, 0).unwrap();
    assert_eq!(mname.0.to_string(), "ns.consul.");
    assert_eq!(Name::read(&soa.rdata, mname.1).unwrap().0.to_string(), "hostmaster.consul.");

    let servers = catalog(
        "node s1 192.0.2.1
         node S2 192.0.2.2
         node s_3 192.0.2.3
         node s4 192.0.2.4
         node s5 192.0.2.5
         node s6 192.0.2.6
         consul 1 s1
         consul 1 S2
         consul 1 s_3
         consul 1 s4 check=critical
         consul 1 s5
         consul 1 s6",
        "",
    );
    let answer = say(&servers, "consul NS").answer().unwrap();
    let names: Vec<String> = answer.answer.iter().map(|record| record.target().unwrap().to_string()).collect();
    // At most three, healthy, lower-cased, and of letters that a host may have.
    assert_eq!(names, ["s1.node.dc1.consul.", "s2.node.dc1.consul.", "s5.node.dc1.consul."]);
    assert_eq!(answer.additional.len(), 3);
}

#[test]
fn addresses_have_names() {
    // CONSUL-DNS.md §2: *.arpa PTR; TTL 0 always
    let snapshot = catalog(
        &format!("{CATALOG}\n zz 1 Foo address=192.0.2.77\n aa 2 Foo address=192.0.2.77"),
        "node_ttl = \"3s\"\nalt_domain = \"alt\"\nservice_ttl = { \"*\" = \"5s\" }",
    );
    let v6 = |last: &str| format!("{}{}8.b.d.0.1.0.0.2.ip6.arpa", last, "0.".repeat(24 - last.len() / 2));
    check(
        &snapshot,
        &[
            ("1.2.0.192.in-addr.arpa PTR", "PTR Foo.node.dc1.consul."),
            ("1.2.0.192.in-addr.arpa ANY", "PTR Foo.node.dc1.consul."),
            ("1.2.0.192.in-addr.arpa A", "-; soa 1.2.0.192.in-addr.arpa."), // Consul gives the PTR record
            (&format!("{} PTR", v6("2.")), "PTR bar.baz.node.dc1.consul."),
            (&format!("{} PTR", v6("0.2.")), "PTR api.service.dc1.consul."),
            ("20.2.0.192.in-addr.arpa PTR", "PTR api.service.dc1.consul."),
            ("77.2.0.192.in-addr.arpa PTR", "PTR aa.service.dc1.consul."), // the first match only
            ("9.2.0.192.in-addr.arpa PTR", "pass"),                        // another datacenter's
            ("99.2.0.192.in-addr.arpa PTR", "pass"),
            ("2.0.192.in-addr.arpa PTR", "pass"),
        ],
    );
    assert_eq!(say(&snapshot, "99.2.0.192.in-addr.arpa PTR").slots.len(), 1, "it may come into being");
}

#[test]
fn health_decides_who_is_given() {
    // CONSUL-DNS.md §4: health, weights
    let text = "
        node well 192.0.2.1 check=passing
        node ill 192.0.2.2 check=critical
        node so-so 192.0.2.3 check=warning
        s 1 well weights=10/5
        s 2 ill
        s 3 so-so weights=10/5
        s 4 well address=192.0.2.4 check=warning weights=0/65535
        s 5 well address=192.0.2.5 check=critical
        down 1 ill";
    let srv = |snapshot: &Snapshot| {
        let answer = say(snapshot, "s.service.consul SRV").answer().unwrap();
        answer.answer.iter().map(|srv| u16::from_be_bytes([srv.rdata[2], srv.rdata[3]])).collect::<Vec<_>>()
    };
    let snapshot = catalog(text, "");
    // A warning of the node weighs like one of the instance.
    assert_eq!(srv(&snapshot), [5, 10, 65_535]);
    check(
        &snapshot,
        &[
            ("down.service.consul A", "NXDOMAIN: -; soa"),
            ("ill.node.consul A", "192.0.2.2"), // nodes are given whatever their health
        ],
    );
    assert_eq!(srv(&catalog(text, "only_passing = true")), [10]);
}

#[test]
fn a_second_domain_answers_in_its_own_name() {
    // CONSUL-DNS.md §8, as since 1.11
    let snapshot = catalog(CATALOG, "alt_domain = \"test.consul\"\nnode_name = \"foo\"");
    check(
        &snapshot,
        &[
            ("web.service.test.consul A", "192.0.2.1"),
            (
                "web.service.dc2.test.consul SRV",
                "SRV 1 1 80 far.node.dc2.test.consul.; -; far.node.dc2.test.consul. 192.0.2.9",
            ),
            ("none.service.test.consul A", "NXDOMAIN: -; soa test.consul."),
            ("test.consul NS", "NS foo.node.dc1.test.consul.; -; foo.node.dc1.test.consul. 192.0.2.1"),
            ("web.service.consul A", "192.0.2.1"),
        ],
    );
}

#[test]
fn an_answer_says_how_it_may_be_cut() {
    // CONSUL-DNS.md §6
    let text = "node n 192.0.2.1\n node m 192.0.2.2\n s 1 n\n s 2 m";
    for (settings, question, expected) in [
        ("", "s.service.consul A", (2, None, None, true)),
        ("a_record_limit = 1", "s.service.consul A", (2, Some(1), None, false)),
        ("a_record_limit = 1", "s.service.consul TXT", (2, Some(1), None, false)),
        ("a_record_limit = 1", "s.service.consul SRV", (2, None, None, false)), // not for SRV
        ("udp_answer_limit = 3", "s.service.consul SRV", (2, None, Some(3), false)),
        ("udp_answer_limit = 3\nenable_truncate = true", "s.service.consul A", (2, None, Some(3), true)),
        ("", "n.node.consul A", (0, None, None, true)),
    ] {
        let shape = say(&catalog(text, settings), question).shape;
        let found = (shape.rotating.len(), shape.most, shape.most_small, shape.admits_cuts);
        assert_eq!(found, expected, "{settings} {question}");
    }
}

#[test]
fn a_long_meta_value_is_split_where_consul_gives_no_answer_at_all() {
    let value = "v".repeat(600);
    let snapshot = catalog(&format!("node n 192.0.2.1 m-k={value}\n s 1 n"), "");
    for question in ["n.node.consul A", "n.node.consul TXT", "s.service.consul SRV"] {
        let said = say(&snapshot, question).answer().unwrap();
        let txt = said.answer.iter().chain(&said.additional).find(|record| record.rtype == Rtype::TXT).unwrap();
        assert_eq!(txt.rdata.len(), 602 + 3, "{question}");
    }
}

#[test]
fn an_instance_without_its_node_is_given_at_its_own_address() {
    let snapshot = catalog("s 1 lost address=192.0.2.2\n s 2 lost", "");
    check(
        &snapshot,
        &[
            ("s.service.consul A", "192.0.2.2"),
            ("s.service.consul SRV", "SRV 1 1 80 c0000202.addr.dc1.consul.; -; c0000202.addr.dc1.consul. 192.0.2.2"),
        ],
    );
    let service = snapshot.service(&ServiceKey::new(Kind::Service, "dc1", "s")).unwrap();
    let given: Vec<Given> = snapshot.given(service, None);
    assert_eq!(given.len(), 2);
}

/// A catalog whose checks have their first results as time goes by.
struct Start {
    registry: Registry,
}

fn millis(number: u64) -> Moment {
    Moment::from_millis(1_000_000 + number)
}

impl Start {
    /// With this catalog, at time 0.
    fn new(text: &str, settings: &str) -> Self {
        let mut registry = Registry::new(super::super::Settings::example(settings));
        registry.publish(SourceId(0), read(text), Outcomes::Ours, millis(0));
        Self { registry }
    }

    fn add(&mut self, text: &str, at: u64) {
        let Set { nodes, instances } = read(text);
        let part = Part { nodes, instances, ..Part::default() };
        self.registry.publish_part(SourceId(0), part, Outcomes::Ours, millis(at));
    }

    /// The check of an instance such as `web-1 n1`, or of a node.
    fn result(&mut self, of: &str, status: Status, at: u64) {
        let (node, service_id) = match of.split_once(' ') {
            Some((id, node)) => (node, Some(id.into())),
            None => (of, None),
        };
        let key = CheckKey { node: NodeKey::new("dc1", node), service_id, check: "c".into() };
        self.registry.set_check(SourceId(0), &key, status, "", millis(at));
    }

    /// The last octets of the addresses, `NXDOMAIN`, `not ready`, or until when to wait.
    fn ask(&mut self, question: &str, at: u64) -> String {
        let now = millis(at);
        if self.registry.wake().is_some_and(|wake| wake <= now) {
            self.registry.tick(now);
        }
        let (qname, qtype) = question.split_once(' ').unwrap();
        let qname = qname.parse::<Name>().unwrap();
        let question = Question { qname, qtype: qtype.parse().unwrap(), qclass: Class::IN };
        match self.registry.snapshot().answer(&question, 7, 0, now).verdict {
            Verdict::Await(awaited) => format!("until {}", awaited.until.since(millis(0)).as_millis()),
            Verdict::NotReady => "not ready".into(),
            Verdict::Answer(answer) if answer.rcode == Rcode::NXDOMAIN => "NXDOMAIN".into(),
            Verdict::Answer(answer) => {
                let octets = answer.answer.iter().map(|record| record.rdata.last().unwrap().to_string());
                octets.collect::<Vec<_>>().join(" ")
            }
            other => panic!("{other:?}"),
        }
    }
}

const UNCHECKED: &str = "node n1 192.0.2.1
    node n2 192.0.2.2
    node n3 192.0.2.3
    web 1 n1 check=unknown tags=v1
    web 2 n2 check=unknown tags=v2
    web 3 n3 check=unknown tags=v2
    free 1 n1";

#[test]
fn questions_wait_for_the_first_results_and_no_longer_than_two_seconds() {
    use Status::{Critical, Passing};
    let mut start = Start::new(UNCHECKED, "");
    for qtype in ["A", "AAAA", "SRV", "ANY", "TXT", "NS", "SOA"] {
        assert_eq!(start.ask(&format!("web.service.consul {qtype}"), 0), "until 2000", "{qtype}");
    }
    for question in ["v1.web.service.consul A", "web.service.dc1.consul A", "_web._tcp.service.consul SRV"] {
        assert_eq!(start.ask(question, 0), "until 2000", "{question}");
    }
    // What does not depend on health, or does not exist, is said at once.
    assert_eq!(start.ask("n1.node.consul A", 0), "1");
    assert_eq!(start.ask("free.service.consul A", 0), "1");
    assert_ne!(start.ask("1.2.0.192.in-addr.arpa PTR", 0), "NXDOMAIN");
    for question in ["none.service.consul A", "v9.web.service.consul A", "web.connect.consul A"] {
        assert_eq!(start.ask(question, 0), "NXDOMAIN", "{question}");
    }
    start.result("web-1 n1", Passing, 10);
    assert_eq!(start.ask("web.service.consul A", 10), "until 2000", "not a part of them");
    assert_eq!(start.ask("v1.web.service.consul A", 10), "1", "all with this tag are known");
    start.result("web-2 n2", Critical, 20);
    start.result("web-3 n3", Passing, 30);
    assert_eq!(start.ask("web.service.consul A", 30), "1 3");

    // One is slow: after two seconds what is known is said, and then at once.
    let mut start = Start::new(UNCHECKED, "");
    start.result("web-1 n1", Passing, 10);
    assert_eq!(start.ask("web.service.consul A", 1999), "until 2000");
    assert_eq!(start.ask("web.service.consul A", 2000), "1");
    assert_eq!(start.ask("v2.web.service.consul A", 2000), "not ready");
    start.result("web-2 n2", Passing, 2500);
    assert_eq!(start.ask("web.service.consul A", 2500), "1 2");

    // Nothing is known: the name may well exist. It is denied once all have failed.
    let mut start = Start::new(UNCHECKED, "");
    assert_eq!(start.ask("web.service.consul A", 2000), "not ready");
    start.result("web-1 n1", Critical, 2100);
    start.result("web-2 n2", Critical, 2100);
    assert_eq!(start.ask("web.service.consul A", 2100), "not ready");
    start.result("web-3 n3", Critical, 2200);
    assert_eq!(start.ask("web.service.consul A", 2200), "NXDOMAIN");
}

#[test]
fn a_declared_status_and_a_critical_check_are_known_at_once() {
    let text = "node n1 192.0.2.1
        node n2 192.0.2.2 check=unknown
        node n3 192.0.2.3 check=critical
        web 1 n1 check=passing
        web 2 n1 check=warning address=192.0.2.9
        db 1 n2 check=passing
        db 2 n3 check=unknown
        old 1 n3 check=unknown
        out 1 n1 check=critical";
    let mut start = Start::new(text, "");
    assert_eq!(start.ask("web.service.consul A", 0), "1 9");
    assert_eq!(start.ask("out.service.consul A", 0), "NXDOMAIN");
    assert_eq!(start.ask("old.service.consul A", 0), "NXDOMAIN", "its node is out whatever its own check says");
    assert_eq!(start.ask("db.service.consul A", 0), "until 2000", "a check of the node counts as its own");
    assert_eq!(start.ask("n2.node.consul A", 0), "2", "health is nothing to names of nodes");
    start.result("n2", Status::Warning, 100);
    assert_eq!(start.ask("db.service.consul A", 100), "2");
}

#[test]
fn an_instance_that_is_new_beside_others_is_not_waited_for() {
    let mut start = Start::new("node n1 192.0.2.1\n node n2 192.0.2.2\n web 1 n1 check=unknown", "");
    start.result("web-1 n1", Status::Passing, 100);
    start.add("web 2 n2 check=unknown", 5000);
    assert_eq!(start.ask("web.service.consul A", 5000), "1");
    // It is all that there is to hope for.
    start.result("web-1 n1", Status::Critical, 5500);
    assert_eq!(start.ask("web.service.consul A", 5500), "until 7000");
    assert_eq!(start.ask("web.service.consul A", 7000), "not ready");
    start.result("web-2 n2", Status::Passing, 7500);
    assert_eq!(start.ask("web.service.consul A", 7500), "2");
    // The same for one that comes when the others are out.
    start.result("web-2 n2", Status::Critical, 8000);
    assert_eq!(start.ask("web.service.consul A", 8000), "NXDOMAIN");
    start.add("node n3 192.0.2.3\n web 3 n3 check=unknown", 9000);
    assert_eq!(start.ask("web.service.consul A", 9000), "until 11000");
    // Instances that come one after the other do not prolong the first round.
    let mut start = Start::new("node n1 192.0.2.1\n new 1 n1 check=unknown", "");
    start.add("new 2 n1 check=unknown", 1500);
    start.result("new-1 n1", Status::Passing, 1600);
    assert_eq!(start.ask("new.service.consul A", 1600), "until 2000");
    assert_eq!(start.ask("new.service.consul A", 2000), "1");
}

#[test]
fn a_policy_gives_the_best_instance_that_answers_in_time() {
    let one = "[service.web]\npolicy = \"one\"\norder = [\"n2\", \"n1\"]";
    let mut start = Start::new(UNCHECKED, one);
    start.result("web-1 n1", Status::Passing, 10);
    assert_eq!(start.ask("web.service.consul A", 10), "until 2000", "n2 is better");
    start.result("web-2 n2", Status::Passing, 20);
    assert_eq!(start.ask("web.service.consul A", 20), "2", "n3 is not");
    assert_eq!(start.ask("v1.web.service.consul A", 20), "NXDOMAIN", "the chosen one has another tag");

    // Too late: the next best is given, and stays.
    let mut start = Start::new(UNCHECKED, one);
    start.result("web-1 n1", Status::Passing, 10);
    assert_eq!(start.ask("web.service.consul A", 2000), "1");
    start.result("web-2 n2", Status::Passing, 3000);
    assert_eq!(start.ask("web.service.consul A", 3000), "1");
    assert_eq!(start.ask("web.service.consul A", 63_000), "2", "after hold_down");

    // None answers.
    let mut start = Start::new(UNCHECKED, one);
    assert_eq!(start.ask("web.service.consul A", 1999), "until 2000");
    assert_eq!(start.ask("web.service.consul A", 2000), "not ready");
    let mut start = Start::new(UNCHECKED, "[service.web]\nmin_healthy = 2\ndamping = \"10s\"");
    start.result("web-1 n1", Status::Passing, 10);
    assert_eq!(start.ask("web.service.consul A", 10), "until 2000");
    assert_eq!(start.ask("web.service.consul A", 2000), "1", "one that is unknown is not given for lack of others");
}

#[test]
fn what_leads_to_a_service_waits_with_it() {
    let text = "node n1 192.0.2.1
        web 1 n1 check=unknown
        alias 1 n1 address=web.service.consul
        proxy 1 n1 proxy=web check=unknown";
    let mut start = Start::new(text, "");
    assert_eq!(start.ask("alias.service.consul A", 0), "until 2000");
    assert_eq!(start.ask("web.connect.consul A", 0), "until 2000");
    assert_eq!(start.ask("alias.service.consul SRV", 1999), "until 2000");
    assert_eq!(start.ask("alias.service.consul A", 2000), "not ready");
    assert_ne!(start.ask("alias.service.consul SRV", 2000), "not ready", "it stands without the address");
    start.result("web-1 n1", Status::Passing, 2500);
    start.result("proxy-1 n1", Status::Critical, 2500);
    assert_eq!(start.ask("alias.service.consul A", 2500), "0 1");
    assert_eq!(start.ask("web.connect.consul A", 2500), "NXDOMAIN");
}
