//! The catalog: how fast definition files are read and published, and what a change costs beside that.

use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    time::Duration,
};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use watershed::{
    catalog::{
        CheckKey, Config, Identity, Outcomes, Registry, SourceId, System,
        health::Status,
        source::{
            file::{Files, Outcome, Scope},
            value::Value,
        },
    },
    clock::Moment,
    files::Copies,
    wire::{Class, Question, Rtype},
};

const SOURCE: SourceId = SourceId(0);

/// How many services there are in the three cases, each of ten instances.
const SERVICES: [usize; 3] = [10, 1000, 10_000];

fn services(numbers: std::ops::Range<usize>, port: u16) -> String {
    let mut text = "{\"services\": [\n".to_owned();
    for service in numbers.clone() {
        for instance in 0..10 {
            let comma = if service == numbers.start && instance == 0 { "" } else { ",\n" };
            // One check in all, to be flipped.
            let check = if (service, instance) == (7, 3) { ", \"check\": {\"id\": \"flipping\"}" } else { "" };
            let (high, low) = (service / 250 % 250, service % 250);
            let _ = write!(
                text,
                "{comma}{{\"name\": \"service{service}\", \"id\": \"service{service}-{instance}\", \"tags\": [\"v1\"], \
                 \"address\": \"10.{instance}.{high}.{low}\", \"port\": {port}{check}}}"
            );
        }
    }
    text + "\n]}\n"
}

/// One file with all services, or one for each.
fn write_files(folder: &Path, services_in_all: usize, is_one: bool) {
    if is_one {
        fs::write(folder.join("all.json"), services(0..services_in_all, 80)).expect("a folder to write to");
    } else {
        (0..services_in_all).for_each(|number| write_service(folder, number, 80));
    }
}

fn write_service(folder: &Path, number: usize, port: u16) {
    let path = file_of(folder, number);
    let part = path.with_extension("part");
    fs::write(&part, services(number..number + 1, port)).expect("a folder to write to");
    fs::rename(&part, &path).expect("a folder to write to");
}

fn file_of(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("service{number}.json"))
}

fn config() -> Config {
    Config { node_name: Some("own".into()), address: "10.255.0.1".parse().ok(), ..Config::default() }
}

fn identity(files: &Files<()>) -> Identity {
    Identity::new(&config(), &files.agent(), &System::default()).0
}

fn load(folder: &Path, previous: Option<&Files<()>>, scope: Scope<'_>) -> Outcome<()> {
    let outcome = Files::load(folder, 1 << 30, previous, scope, &Copies::default(), &|_: &Value| Ok(()));
    assert!(outcome.faults.is_empty(), "{:?}", outcome.faults.first());
    outcome
}

fn catalog(criterion: &mut Criterion) {
    for services in SERVICES {
        let [one, many] = [true, false].map(|is_one| {
            let folder = tempfile::tempdir().expect("a folder for files");
            write_files(folder.path(), services, is_one);
            folder
        });
        let mut group = criterion.benchmark_group(format!("catalog of {} instances", services * 10));
        group.sample_size(10).measurement_time(Duration::from_secs(3));
        group.throughput(Throughput::Elements(services as u64 * 10));
        group.bench_function("load one file", |bencher| bencher.iter(|| load(one.path(), None, Scope::All)));
        group.bench_function("load a file for each service", |bencher| {
            bencher.iter(|| load(many.path(), None, Scope::All))
        });

        let files = load(many.path(), None, Scope::All).files;
        let identity = identity(&files);
        let settings = config().settings(&identity);
        let publish = || {
            let mut registry = Registry::new(settings.clone());
            registry.publish(SOURCE, files.set(&identity), Outcomes::Ours, Moment::now());
            registry
        };
        group.bench_function("publish all", |bencher| bencher.iter(publish));

        group.throughput(Throughput::Elements(1));
        let mut registry = publish();
        let mut running = files;
        let changed = BTreeSet::from([file_of(many.path(), 7)]);
        let mut port = 80;
        group.bench_function("one file changes", |bencher| {
            let change = || {
                port = 81 - port % 2;
                write_service(many.path(), 7, port);
            };
            let take_in = |()| {
                let outcome = load(many.path(), Some(&running), Scope::Changed(&changed));
                let part = outcome.files.part(&outcome.changed, &identity);
                let changes = registry.publish_part(SOURCE, part, Outcomes::Ours, Moment::now());
                assert!(!changes.slots.is_empty());
                running = outcome.files;
            };
            bencher.iter_batched(change, take_in, BatchSize::PerIteration);
        });

        let mut critical = false;
        let flip =
            CheckKey { node: identity.node().key(), service_id: Some("service7-3".into()), check: "flipping".into() };
        group.bench_function("one check flips", |bencher| {
            bencher.iter(|| {
                critical = !critical;
                let status = if critical { Status::Critical } else { Status::Passing };
                registry.set_check(SOURCE, &flip, status, "said", Moment::now());
                registry.snapshot()
            });
        });

        let snapshot = registry.snapshot();
        let question =
            Question { qname: "service7.service.consul".parse().expect("a name"), qtype: Rtype::A, qclass: Class::IN };
        group.bench_function("one answer", |bencher| {
            bencher.iter(|| snapshot.answer(black_box(&question), 0, 0, Moment::now()))
        });
        group.finish();
    }
}

criterion_group!(benches, catalog);
criterion_main!(benches);
