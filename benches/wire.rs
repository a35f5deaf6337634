//! Messages without a resolver around them: a response taken apart, records encoded, a reply written whole and cut.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rand::{SeedableRng, rngs::StdRng};
use watershed::wire::{
    Answer, Asker, Class, ClientEdns, Name, Question, Record, ReplyOptions, Response, Rtype, Shape, Ttls, write_reply,
};

fn wire(c: &mut Criterion) {
    let question = Question { qname: name("www.corp.example"), qtype: Rtype::A, qclass: Class::IN };
    let address = |last| Record::new(question.qname.clone(), Rtype::A, 300, [192, 0, 2, last]);
    let answer = |count| Answer { answer: (0..count).map(address).collect(), ..Answer::default() };
    let target = name("host.example.org");
    let chain = Answer {
        answer: vec![
            Record::new(question.qname.clone(), Rtype::CNAME, 300, target.wire()),
            Record::new(target, Rtype::A, 300, [192, 0, 2, 1]),
        ],
        ..Answer::default()
    };
    let edns = ClientEdns { udp_size: 1232, version: 0, dnssec_ok: false };
    let asker = Asker {
        id: 7,
        recursion_desired: true,
        checking_disabled: false,
        wants_ad: false,
        edns: Some(edns),
        options: ReplyOptions::default(),
        limit_bytes: 1232,
    };
    let mut group = c.benchmark_group("wire");
    for (case, answer) in [("one address", answer(1)), ("a chain", chain), ("a hundred addresses", answer(100))] {
        let response = answer.encode(&question);
        group.bench_function(format!("read {case}"), |b| b.iter(|| Response::read(black_box(response.message()))));
        group.bench_function(format!("encode {case}"), |b| b.iter(|| black_box(&answer).encode(&question)));
        let mut reply = Vec::with_capacity(1500);
        let mut rng = StdRng::seed_from_u64(1);
        group.bench_function(format!("reply with {case}"), |b| {
            b.iter(|| {
                let (view, asked) = (black_box(&response).view(), response.question_bytes());
                write_reply(view, &asker, asked, Ttls::Aged(7), &mut rng, &mut reply);
                reply.len()
            });
        });
    }
    let shape = Shape { rotating: 0..10, admits_cuts: true, ..Shape::default() };
    let ten = answer(10);
    group.bench_function("encode ten that rotate", |b| b.iter(|| ten.encode_rotating(&question, black_box(&shape))));
    group.finish();
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

criterion_group!(benches, wire);
criterion_main!(benches);
