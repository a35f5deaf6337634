//! What does not fit a datagram is cut honestly, and is whole over TCP.

use crate::harness::{daemon::forward, message::TC, *};

/// An upstream with a TXT RRset of so many records of some 100 octets; over UDP it truncates what exceeds the offer.
fn with_many_records() -> Upstream {
    Upstream::new(|asked| {
        let qname = asked.message.qname();
        let count: usize = qname[1..].split('.').next().unwrap().parse().unwrap();
        let text = |number| format!("{qname} 300 TXT \"{number:0>86}\"");
        let response = (0..count).fold(asked.message.respond(), |response, number| response.answer(&text(number)));
        let offered = asked.message.edns.as_ref().map_or(512, |edns| usize::from(edns.udp_size));
        vec![Act::Reply(match asked.over_tcp || response.to_wire().len() <= offered {
            true => response,
            false => asked.message.respond().set(TC),
        })]
    })
}

#[test]
fn the_largest_message_passes_over_tcp() {
    let upstream = with_many_records();
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let reply = daemon.tcp(&query("n550.example TXT").edns(1232));
    assert_eq!(reply.answer.len(), 550);
    assert!(reply.length > 50_000, "{}", reply.length);
    assert!(daemon.udp(&query("n550.example TXT").edns(1232)).has(TC));
    assert_eq!(upstream.queries().iter().filter(|asked| asked.over_tcp).count(), 1, "then from the cache");
}

#[test]
fn a_truncated_response_is_asked_for_over_tcp() {
    let upstream = Upstream::new(|asked| {
        let whole = asked.message.respond().answer(&format!("{} 300 A 192.0.2.1", asked.message.qname()));
        vec![Act::Reply(if asked.over_tcp { whole } else { asked.message.respond().set(TC) })]
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for number in 0..3 {
        let reply = daemon.ask(&format!("name{number}.example A"));
        assert_eq!((reply.one(), reply.has(TC)), ("192.0.2.1".to_owned(), false));
    }
    let mut transports: Vec<bool> = upstream.queries().iter().map(|asked| asked.over_tcp).collect();
    transports.dedup(); // sent again on a busy machine
    assert_eq!(transports, [false, true, false, true, false, true]);
}

#[test]
fn an_upstream_whose_tcp_fails_after_truncation_is_left_for_the_next() {
    let broken = Upstream::new(|asked| match asked.over_tcp {
        true => vec![Act::Close],
        false => vec![Act::Reply(asked.message.respond().set(TC))],
    });
    let good = Upstream::saying("192.0.2.1");
    let daemon = Setup::new(&forward(".", &[broken.address(), good.address()])).start();
    assert_eq!(daemon.ask("www.example A").data(), ["192.0.2.1"]);
}

/// Consul cuts silently to the size that it is offered.
#[test]
fn a_loopback_upstream_is_offered_much() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    daemon.udp(&query("www.example A"));
    assert_eq!(upstream.queries()[0].message.edns.as_ref().unwrap().udp_size, 16_384);
}

#[test]
fn what_is_only_additional_goes_without_tc() {
    let upstream = Upstream::new(|asked| {
        let response = asked.message.respond().answer("www.example. 60 MX 10 mail.example.");
        let extra = |number| format!("mail.example. 60 A 192.0.2.{number}");
        vec![Act::Reply((1..60).fold(response, |response, number| response.additional(&extra(number))))]
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let reply = daemon.udp(&query("www.example MX"));
    assert_eq!((reply.has(TC), reply.answer.len()), (false, 1), "RFC 2181 §9");
    assert!(reply.length <= 512);
    assert_eq!(daemon.tcp(&query("www.example MX")).additional.len(), 59);
}
