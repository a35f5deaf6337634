//! What a hit costs without the kernel: parse the query, find the entry, write the reply.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use rand::{SeedableRng, rngs::StdRng};
use watershed::{
    cache::{Cache, Epoch, Key, Life, Origin, RuleId, Variant},
    clock::Moment,
    resolve::{AtOnce, Client, Resolver, Rules, Tables},
    wire::{Answer, Class, Name, Query, Question, Record, ReplySize, Rtype, Shape, UpstreamQuery},
};

const NAMES: usize = 10_000;

fn question(number: usize) -> Question {
    let qname: Name = format!("host{number}.example").parse().unwrap();
    Question { qname, qtype: Rtype::A, qclass: Class::IN }
}

fn query(question: &Question) -> Vec<u8> {
    let mut wire = Vec::new();
    let Question { qname, qtype, qclass } = question;
    UpstreamQuery { id: 7, qname, qtype: *qtype, qclass: *qclass, checking_disabled: false, edns: None }
        .write(&mut wire);
    wire
}

fn resolver(now: Moment) -> Arc<Resolver> {
    let rules = Rules::default();
    let cache = Cache::new(64 << 20);
    let origin = Origin { rule: RuleId(1), epoch: Epoch(1), chained: false, loopback_only: false };
    let life = Life::Timed { fresh: Duration::from_secs(3600), stale: Duration::ZERO };
    for number in 0..NAMES {
        let question = question(number);
        let record = Record::new(question.qname.clone(), Rtype::A, 3600, [192, 0, 2, 1]);
        let response = Answer { answer: vec![record], ..Answer::default() }.encode(&question);
        let key = Key::new(question.qname.wire(), Rtype::A, Class::IN, Variant::default());
        cache.insert(&key, &response, life, &origin.into(), now);
    }
    let service = service();
    let record = |i| Record::new(service.qname.clone(), Rtype::A, 0, [192, 0, 2, i]);
    let answer = Answer { answer: (0..10).map(record).collect(), ..Answer::default() };
    let shape = Shape { rotating: 0..10, admits_cuts: true, ..Shape::default() };
    let response = answer.encode_rotating(&service, &shape).expect("ten records can rotate");
    let key = Key::new(service.qname.wire(), Rtype::A, Class::IN, Variant::default());
    cache.insert(&key, &response, Life::Local { until: None }, &origin.into(), now);
    Arc::new(Resolver::new(cache, Tables::new(rules, Epoch(1)), 100))
}

fn service() -> Question {
    let qname = "web.service.consul".parse().expect("a name");
    Question { qname, qtype: Rtype::A, qclass: Class::IN }
}

fn hit_path(c: &mut Criterion) {
    let now = Moment::now();
    let queries: Vec<Vec<u8>> = (0..NAMES).map(|number| query(&question(number))).collect();
    let client = Client { is_loopback: true, size: ReplySize::Datagram { ceiling_bytes: 1232 }, sees_cache: true };
    let resolver = resolver(now);
    let mut group = c.benchmark_group("hit_path");

    group.bench_function("parse", |b| b.iter(|| Query::parse(black_box(&queries[7])).is_ok()));

    let mut next = 0;
    group.bench_function("parse_find_patch", |b| {
        let mut out = Vec::with_capacity(1500);
        let mut rng = StdRng::seed_from_u64(1);
        b.iter(|| {
            next = (next + 1) % NAMES;
            let query = Query::parse(black_box(&queries[next])).expect("a query");
            let outcome = resolver.at_once(query, query.asker(client.size), client, now, &mut rng, &mut out);
            assert!(matches!(outcome, AtOnce::Reply(..)));
            out.len()
        });
    });
    // The same for a service of ten instances, in another order each time.
    let query = query(&service());
    group.bench_function("parse_find_rotate", |b| {
        let mut out = Vec::with_capacity(1500);
        let mut rng = StdRng::seed_from_u64(1);
        b.iter(|| {
            let query = Query::parse(black_box(&query)).expect("a query");
            let outcome = resolver.at_once(query, query.asker(client.size), client, now, &mut rng, &mut out);
            assert!(matches!(outcome, AtOnce::Reply(..)));
            out.len()
        });
    });
    group.finish();
}

criterion_group!(benches, hit_path);
criterion_main!(benches);
