//! Over whichever transport a query comes and goes, what the upstream says arrives octet for octet.

use std::{collections::BTreeSet, thread};

use crate::harness::{
    message::{OPTION_EDE, TC},
    *,
};

#[test]
fn every_record_type_passes_octet_for_octet() {
    let records = [
        "x.example. 60 A 192.0.2.1",
        "x.example. 60 AAAA 2001:db8::1",
        "x.example. 60 MX 10 Mail.Example.",
        "x.example. 60 SRV 1 2 3 Target.Example.",
        "x.example. 60 TXT \"one\" \"two\" \"\"",
        "x.example. 60 CAA \\# 14 00056973737565636120202e74",
        "x.example. 60 LOC \\# 16 00121613889172e28ab9a5e700989680",
        "x.example. 60 HTTPS \\# 10 00010000010003026832",
        "x.example. 60 NAPTR \\# 16 0064000a0175074532552b7369700000",
        "x.example. 60 DNSKEY \\# 6 010103080102",
        "x.example. 60 RRSIG \\# 20 0001080100000e100000000000000000000000aa",
        "x.example. 60 TYPE65280 \\# 5 00ff00ff00",
        "x.example. 60 TYPE65281 \\# 0",   // RDATA may be empty
        "x.example. 60 TYPE1234 \\# 1 c0", // what looks like a pointer is none
        "x.example. 60 TYPE10 \\# 0",
    ];
    let upstream = Upstream::holding(&records);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for line in records {
        let record = message::Record::parse(line);
        let question = query(&format!("x.example {}", message::type_name(record.rtype))).edns(4096);
        for reply in [daemon.udp(&question), daemon.tcp(&question)] {
            assert_eq!(reply.answers(), [record.line()], "{line}");
        }
    }
}

/// Pointers, letters, the order and the sections: what lies between the question and the OPT record stays as it is.
#[test]
fn the_sections_of_a_response_arrive_as_they_were_sent() {
    let records: &[u8] = &[
        // A compressed owner, and a CNAME whose target points into the question.
        0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60, 0, 8, 5, b'A', b'l', b'i', b'A', b'S', 0xc0, 16,
        // An owner that points into the RDATA before.
        0xc0, 41, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1,
        // Authority: SOA-less NS. Additional: an address of an odd owner.
        0xc0, 16, 0, 2, 0, 1, 0, 0, 0, 60, 0, 5, 2, b'n', b's', 0xc0, 16, 2, b'N', b's', 0xc0, 16, 0, 1, 0, 1, 0, 0, 0,
        60, 0, 4, 192, 0, 2, 2,
    ];
    let upstream = Upstream::new(move |asked| {
        let mut wire = Message { edns: None, ..asked.message.respond() }.to_wire();
        wire.extend(records);
        wire[6..12].copy_from_slice(&[0, 2, 0, 1, 0, 1]);
        vec![Act::Bytes(wire)]
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let question = query("www.example A");
    assert_eq!(question.question.len(), 17, "the pointers above count on it");
    for _ in 0..2 {
        let wire = exchange_udp(daemon.address(), &question.to_wire(), PATIENCE).unwrap();
        assert_eq!(wire[6..12], [0, 2, 0, 1, 0, 1]);
        assert_eq!(&wire[12 + 17..], records);
        assert_eq!(daemon.udp(&question).data(), ["AliAS.example.", "192.0.2.1"]);
    }
}

#[test]
fn the_extended_error_of_an_upstream_is_passed_on() {
    let upstream = Upstream::new(|asked| {
        let blocked = [&15u16.to_be_bytes()[..], b"blocked by policy"].concat();
        vec![Act::Reply(
            asked.message.respond().rcode("NXDOMAIN").authority(upstream::SOA).option(OPTION_EDE, &blocked),
        )]
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for source in ["upstream", "cache"] {
        let reply = daemon.ask("ads.example A");
        assert_eq!((reply.rcode_name(), reply.extended_errors()), ("NXDOMAIN", vec![15]), "from the {source}");
        let option = &reply.edns.unwrap().options[0].1;
        assert_eq!(option[2..], *b"blocked by policy");
    }
    assert!(daemon.udp(&query("ads.example A")).edns.is_none(), "not for those without EDNS");
}

/// TC of an upstream leads to TCP, whatever the client came by.
#[test]
fn each_way_in_meets_each_way_out() {
    let upstream = Upstream::new(|asked| {
        let qname = asked.message.qname();
        let cut = qname.to_lowercase().contains("tcp-out") && !asked.over_tcp;
        let whole = asked.message.respond().answer(&format!("{qname} 60 A 192.0.2.1"));
        vec![Act::Reply(if cut { asked.message.respond().set(TC) } else { whole })]
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for way_out in ["udp-out", "tcp-out"] {
        let question = |way_in: &str| query(&format!("{way_in}.{way_out}.example A")).edns(1232);
        assert_eq!(daemon.udp(&question("udp-in")).one(), "192.0.2.1");
        assert_eq!(daemon.tcp(&question("tcp-in")).one(), "192.0.2.1");
        for way_in in ["udp-in", "tcp-in"] {
            let asked = question(way_in).asked();
            let over_tcp = upstream.queries().iter().any(|query| query.over_tcp && query.message.asked() == asked);
            assert_eq!(over_tcp, way_out == "tcp-out", "{asked}");
        }
    }
}

#[test]
fn an_upstream_may_be_asked_over_tcp_alone() {
    let upstream = Upstream::saying("192.0.2.1");
    let rule = format!("[[forward]]\nsuffixes = [\".\"]\nupstreams = [\"tcp://{}\"]\n", upstream.address());
    let daemon = Setup::new(&rule).start();
    for number in 0..20 {
        assert_eq!(daemon.ask(&format!("name{number}.example A")).one(), "192.0.2.1");
    }
    let queries = upstream.queries();
    assert!(queries.iter().all(|asked| asked.over_tcp));
    let connections: BTreeSet<_> = queries.iter().map(|asked| asked.from).collect();
    assert!(connections.len() < 5, "a connection is kept open: {connections:?}");
}

#[test]
fn many_clients_at_once_each_get_their_own_answer() {
    let upstream = Upstream::new(|asked| {
        let number: u32 = asked.message.qname()[4..].split('.').next().unwrap().parse().unwrap();
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        vec![Act::Reply(asked.message.respond().answer(&format!("{} 60 A {address}", asked.message.qname())))]
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    thread::scope(|scope| {
        for client in 0..8u32 {
            let daemon = &daemon;
            scope.spawn(move || {
                for step in 0..100u32 {
                    let number = (client * 37 + step) % 300;
                    let question = query(&format!("name{number}.example A")).edns(1232);
                    let reply = if client == 0 { daemon.tcp(&question) } else { daemon.udp(&question) };
                    assert_eq!(reply.one(), std::net::Ipv4Addr::from(0x0a00_0000 + number).to_string());
                }
            });
        }
    });
}
