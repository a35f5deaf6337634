//! Local data: how fast files are read, and how fast a name is found in them.

use std::{fmt::Write, hint::black_box, path::Path, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use watershed::{
    wire::{Class, Name, Question, Rtype},
    zone::{Client, Overlay, Overlays, Zone},
};

fn zone_text(records: usize) -> String {
    let mut text = "$TTL 5m\n@ SOA ns hostmaster 1 1h 20m 1w 1m\n*.wild A 192.0.2.1\n".to_string();
    for i in 0..records / 4 {
        let _ = write!(
            text,
            "host{i}.rack{} A 192.0.2.1\n  AAAA 2001:db8::{i:x}\n  TXT \"rack {i}\"\nalias{i} CNAME host{i}.rack{}\n",
            i % 50,
            i % 50
        );
    }
    text
}

fn overlay_text(names: usize) -> String {
    let mut text = String::new();
    for i in 0..names {
        let _ = writeln!(text, "ads{i}.tracker{}.example CNAME .", i % 1000);
    }
    text
}

fn question(qname: &str) -> Question {
    Question { qname: qname.parse().expect("a name"), qtype: Rtype::A, qclass: Class::IN }
}

fn zones(criterion: &mut Criterion) {
    let apex: Name = "site.example".parse().expect("a name");
    let text = zone_text(10_000);
    let load = || Zone::parse(Path::new("bench"), &text, &apex).expect("no faults");
    let mut group = criterion.benchmark_group("zone of 10,000 records");
    group.throughput(Throughput::Elements(10_000)).sample_size(20);
    group.bench_function("load", |bencher| bencher.iter(load));
    group.throughput(Throughput::Elements(1));
    let zone = load();
    for (case, qname) in [
        ("exact", "host7.rack7.site.example"),
        ("alias", "alias7.site.example"),
        ("wildcard", "a.b.wild.site.example"),
        ("nxdomain", "nothing.rack7.site.example"),
    ] {
        let question = question(qname);
        group.bench_function(case, |bencher| bencher.iter(|| zone.answer(black_box(&question))));
    }
    group.finish();
}

fn overlays(criterion: &mut Criterion) {
    let text = overlay_text(100_000);
    let load = || Overlay::parse(Path::new("bench"), &text, &Name::root()).expect("no faults");
    let mut group = criterion.benchmark_group("overlay of 100,000 names");
    group.throughput(Throughput::Elements(100_000)).sample_size(20);
    group.bench_function("load", |bencher| bencher.iter(load));
    let feed = format!("$ORIGIN rpz.vendor.test.\n@ 300 SOA . . 1 1h 20m 1w 1m\n@ 300 NS .\n{text}");
    let load_feed = || Overlay::parse(Path::new("bench"), &feed, &Name::root()).expect("no faults");
    group.bench_function("load a feed", |bencher| bencher.iter(load_feed));
    group.throughput(Throughput::Elements(1));
    let overlays = Overlays::new(vec![Arc::new(load())], Vec::new());
    for (case, qname) in [("held", "ads77777.tracker777.example"), ("not held", "www.some.other.example")] {
        let question = question(qname);
        group.bench_function(case, |bencher| bencher.iter(|| overlays.answer(black_box(&question), Client::Remote)));
    }
    group.finish();
}

criterion_group!(benches, zones, overlays);
criterion_main!(benches);
