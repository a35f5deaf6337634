//! A hit allocates nothing: not to read the query, not to check its cookie, not to find the answer, not to write the reply.
//!
//! A binary of its own, for it counts with an allocator of its own.

use std::{net::IpAddr, sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use watershed::{
    cache::{Cache, Epoch, Key, Life, Origin, RuleId, Variant},
    clock::Moment,
    metrics::{Metrics, Transport},
    resolve::{Client, Resolver, Rules, Tables},
    server::{self, Desk, Face, Incoming, Taken},
    wire::{Answer, Class, Name, Question, Record, ReplySize, Rtype, Shape, UpstreamEdns, UpstreamQuery},
};

#[test]
fn a_hit_allocates_nothing() {
    let now = Moment::now();
    let cache = Cache::new(1 << 20);
    let qname: Name = "www.example".parse().unwrap();
    for (rtype, rdata) in [(Rtype::A, vec![192, 0, 2, 1]), (Rtype::TXT, vec![7; 2000])] {
        let question = Question { qname: qname.clone(), qtype: rtype, qclass: Class::IN };
        let records = (0..3).map(|_| Record::new(qname.clone(), rtype, 60, rdata.clone())).collect();
        let response = Answer { answer: records, ..Answer::default() }.encode(&question);
        let origin = Origin { rule: RuleId(1), epoch: Epoch(1), chained: false, loopback_only: false };
        for dnssec_ok in [false, true] {
            let variant = Variant { dnssec_ok, ..Variant::default() };
            let key = Key::new(qname.wire(), rtype, Class::IN, variant);
            let life = Life::Timed { fresh: Duration::from_secs(60), stale: Duration::ZERO };
            cache.insert(&key, &response, life, &origin.into(), now);
        }
    }
    // Instances that take turns, of which not all fit.
    let instances: Name = "web.service.consul".parse().unwrap();
    let question = Question { qname: instances.clone(), qtype: Rtype::SRV, qclass: Class::IN };
    let target = |i: u8| format!("node{i}.node.dc1.consul").parse::<Name>().unwrap();
    let srv = |i| {
        let rdata = [&[0, 1, 0, 1, 0, 80][..], target(i).wire()].concat();
        Record::new(instances.clone(), Rtype::SRV, 0, rdata)
    };
    let answer = Answer {
        answer: (0..60).map(srv).collect(),
        additional: (0..60).map(|i| Record::new(target(i), Rtype::A, 0, [192, 0, 2, i])).collect(),
        ..Answer::default()
    };
    let shape = Shape { rotating: 0..60, glue: (0..60).map(Some).collect(), admits_cuts: true, ..Shape::default() };
    let response = answer.encode_rotating(&question, &shape).unwrap();
    let key = Key::new(instances.wire(), Rtype::SRV, Class::IN, Variant::default());
    let origin = Origin { rule: RuleId(1), epoch: Epoch(1), chained: false, loopback_only: false };
    cache.insert(&key, &response, Life::Local { until: None }, &origin.into(), now);
    let rules = Rules { prefetch: true, ..Rules::default() };
    let resolver = Arc::new(Resolver::new(cache, Tables::new(rules, Epoch(1)), 100));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (metrics, config) = (Metrics::new(), server::Config::default());
    let face = Face::new(resolver, config.clone(), &metrics, runtime.handle().clone());
    let cells = metrics.cells();
    let peer: IpAddr = "127.0.0.1".parse().unwrap();
    let datagram = face.datagram_client(peer, &config).unwrap();
    // As to others than loopback clients, so that not everything fits.
    let client = Some(Client { size: ReplySize::Datagram { ceiling_bytes: 1232 }, ..datagram });
    let mut out = Vec::with_capacity(65_535);
    let mut rng = StdRng::seed_from_u64(1);
    let client_cookie = [1; 8];
    // The cookie that a client was given last.
    let mut given = [1; 24];

    for (hit, qname, qtype, edns) in [
        ("plain", "www.example", Rtype::A, None),
        ("in other letters", "WWW.eXample", Rtype::A, None),
        ("EDNS", "www.example", Rtype::A, Some((false, 0))),
        ("DO", "www.example", Rtype::A, Some((true, 0))),
        ("a cookie of nobody's", "www.example", Rtype::A, Some((false, 24))),
        ("a client's cookie", "www.example", Rtype::A, Some((false, 8))),
        ("a cookie of ours", "www.example", Rtype::A, Some((false, 24))),
        ("truncated", "www.example", Rtype::TXT, Some((true, 0))),
        ("instances", "web.service.consul", Rtype::SRV, Some((false, 0))),
        ("some instances", "web.service.consul", Rtype::SRV, None),
    ] {
        let qname: Name = qname.parse().unwrap();
        let cookie = given;
        let edns = edns.map(|(dnssec_ok, cookie_bytes)| UpstreamEdns {
            udp_size: 1232,
            dnssec_ok,
            cookie: &cookie[..cookie_bytes],
        });
        let mut query = Vec::new();
        UpstreamQuery { id: 7, qname: &qname, qtype, qclass: Class::IN, checking_disabled: false, edns }
            .write(&mut query);
        let mut ask = |now: Moment| {
            let incoming = Incoming { wire: &query, client, peer, transport: Transport::Udp };
            let waiter = |_, _: &[u8]| panic!("{hit}: no hit");
            match face.take(incoming, waiter, &mut Desk { now, rng: &mut rng, cells: &cells }, &mut out) {
                Taken::Reply(_) => {}
                _ => panic!("{hit}: no reply at once"),
            }
        };
        ask(now); // whatever a thread sets up once is not the hit's
        let later = now + Duration::from_secs(3);
        let counted = allocation_counter::measure(|| {
            ask(now);
            ask(later); // promoted in the order of use
        });
        assert_eq!(counted.count_total, 0, "{hit}");
        let cookie_bytes = edns.map_or(0, |edns| edns.cookie.len());
        let head = [&[0, 10, 0, 24][..], &client_cookie].concat();
        let cookie_at = out.windows(head.len()).position(|octets| octets == head).map(|at| at + 4);
        assert_eq!(cookie_at.is_some(), cookie_bytes > 0, "{hit}");
        if let Some(at) = cookie_at {
            given.copy_from_slice(&out[at..at + 24]);
        }
    }
}
