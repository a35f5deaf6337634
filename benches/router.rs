//! What it costs to find the longest suffix: it must not grow with the number of rules.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use watershed::{router::Router, wire::Name};

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for rules in [1, 100, 10_000] {
        let mut router = Router::new();
        router.insert(Name::root(), 0);
        for number in 1..rules {
            router.insert(name(&format!("zone{number}.corp.example.")), number);
        }
        for (case, qname) in [("above", "www.example.org."), ("below", "a.www.zone42.corp.example.")] {
            let qname = name(qname);
            group.bench_function(BenchmarkId::new(case, rules), |bencher| {
                bencher.iter(|| router.route(black_box(&qname)));
            });
        }
    }
    group.finish();
}

fn name(text: &str) -> Name {
    text.parse().expect("the names of this file are well-formed")
}

criterion_group!(benches, route);
criterion_main!(benches);
