//! A hit allocates nothing: not to read the query, not to find the answer, not to write the reply.
//!
//! A binary of its own, for it counts with an allocator of its own.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};
use watershed::{
    cache::{Cache, Epoch, Key, Life, Origin, RuleId, Variant},
    clock::Moment,
    resolve::{AtOnce, Client, Resolver, Rules, Tables},
    wire::{Answer, Class, Name, Question, Record, ReplySize, Rtype, Shape, UpstreamEdns, UpstreamQuery},
    zone::Overlays,
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
    let rules = Rules {
        overlays: Overlays::default(),
        zones: Vec::new(),
        forwards: Vec::new(),
        refused: Vec::new(),
        catalog: None,
        prefetch: true,
    };
    let resolver = Resolver::new(cache, Tables::new(rules, Epoch(1)), 100);
    let client = Client { is_loopback: true, size: ReplySize::Datagram { ceiling_bytes: 1232 } };
    let mut out = Vec::with_capacity(65_535);
    let mut rng = StdRng::seed_from_u64(1);

    for (hit, qname, qtype, edns) in [
        ("plain", "www.example", Rtype::A, None),
        ("in other letters", "WWW.eXample", Rtype::A, None),
        ("EDNS", "www.example", Rtype::A, Some(false)),
        ("DO", "www.example", Rtype::A, Some(true)),
        ("truncated", "www.example", Rtype::TXT, Some(true)),
        ("instances", "web.service.consul", Rtype::SRV, Some(false)),
        ("some instances", "web.service.consul", Rtype::SRV, None),
    ] {
        let qname: Name = qname.parse().unwrap();
        let edns = edns.map(|dnssec_ok| UpstreamEdns { udp_size: 1232, dnssec_ok, cookie: &[] });
        let mut query = Vec::new();
        UpstreamQuery { id: 7, qname: &qname, qtype, qclass: Class::IN, checking_disabled: false, edns }
            .write(&mut query);
        let mut ask = |at: Moment| match resolver.at_once(&query, client, at, &mut rng, &mut out) {
            AtOnce::Reply(..) => {}
            _ => panic!("{hit}: no hit"),
        };
        ask(now); // whatever a thread sets up once is not the hit's
        let later = now + Duration::from_secs(3);
        let counted = allocation_counter::measure(|| {
            ask(now);
            ask(later); // promoted in the order of use
        });
        assert_eq!(counted.count_total, 0, "{hit}");
    }
}
