//! How many instructions a hit takes without the kernel: a number that is the same on a busy machine and an idle one.
//!
//! `cargo bench --bench instructions` has valgrind count each kind of hit, and fails if one takes more than
//! `benches/instructions.txt` says, and a margin. `-- --record` writes that file anew: for a hit that is to cost more, and says in
//! its commit why, for one that costs less, so that it stays so, and for another compiler.

use std::{
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
    process::{Command, exit},
    time::Duration,
};

use rand::{SeedableRng, rngs::StdRng};
use watershed::{
    cache::{Cache, Epoch, Key, Life, Origin, RuleId, Variant},
    clock::Moment,
    resolve::{AtOnce, Client, Resolver, Rules, Tables},
    wire::{
        Answer, Class, Name, Query, Question, Rcode, Record, ReplySize, Rtype, Shape, Soa, UpstreamEdns, UpstreamQuery,
    },
};

/// The kinds of hits.
const CASES: &[(&str, Case)] = &[
    ("an address", Case { make: address, edns: None }),
    ("an address, with EDNS and DO", Case { make: address, edns: DNSSEC }),
    ("a CNAME and three addresses", Case { make: chain, edns: PLAIN }),
    ("NXDOMAIN", Case { make: nxdomain, edns: PLAIN }),
    ("ten instances in turn", Case { make: instances, edns: PLAIN }),
    ("ten instances in turn, SRV", Case { make: targets, edns: PLAIN }),
];

#[derive(Clone, Copy)]
struct Case {
    /// The answer to the question for a name of this number; with a shape if its records take turns.
    make: fn(u32) -> (Question, Answer, Option<Shape>),
    edns: Option<UpstreamEdns<'static>>,
}

const PLAIN: Option<UpstreamEdns<'static>> = Some(UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: &[] });
const DNSSEC: Option<UpstreamEdns<'static>> = Some(UpstreamEdns { udp_size: 1232, dnssec_ok: true, cookie: &[] });
const NAMES: u32 = 500;
const ROUNDS: usize = 20;
/// What a count may be above the recorded one, in percent: the seed of the cache's hash is another in each process.
const MARGIN_PERCENT: f64 = 3.0;
/// The same if the counts were recorded with another compiler.
const OTHER_COMPILER_PERCENT: f64 = 15.0;

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Some(place) = arguments.iter().position(|argument| argument == "--case") {
        let case = arguments.get(place + 1).and_then(|name| CASES.iter().find(|(known, _)| known == name));
        return run(case.expect("a case of this name").1);
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        let strict = env::var("CI").is_ok_and(|set| set == "true");
        eprintln!("instructions: valgrind is missing; `bash tests/run` installs it");
        exit(i32::from(strict));
    }
    let counts: Vec<(&str, f64)> = CASES.iter().map(|(name, _)| (*name, count(name))).collect();
    if arguments.iter().any(|argument| argument == "--record") {
        record(&counts);
    } else if !compare(&counts) {
        exit(1);
    }
}

/// Has each name asked for again and again.
fn run(case: Case) {
    let now = Moment::from_millis(2_000_000_000);
    let cache = Cache::new(64 << 20);
    let origin = Origin { rule: RuleId(1), epoch: Epoch(1), chained: false, loopback_only: false };
    let mut queries = Vec::new();
    for number in 0..NAMES {
        let (question, answer, shape) = (case.make)(number);
        let dnssec_ok = case.edns.is_some_and(|edns| edns.dnssec_ok);
        let variant = Variant { dnssec_ok, ..Variant::default() };
        let key = Key::new(question.qname.wire(), question.qtype, question.qclass, variant);
        let (response, life) = match shape {
            Some(shape) => {
                let response = answer.encode_rotating(&question, &shape).expect("several records can rotate");
                (response, Life::Local { until: None })
            }
            None => {
                let life = Life::Timed { fresh: Duration::from_secs(3600), stale: Duration::ZERO };
                (answer.encode(&question), life)
            }
        };
        cache.insert(&key, &response, life, &origin.into(), now);
        let mut query = Vec::new();
        let Question { qname, qtype, qclass } = question;
        UpstreamQuery { id: 7, qname: &qname, qtype, qclass, checking_disabled: false, edns: case.edns }
            .write(&mut query);
        queries.push(query);
    }
    let rules = Rules::default();
    let resolver = Resolver::new(cache, Tables::new(rules, Epoch(1)), 100);
    // TTLs have to be aged, as most have.
    let later = now + Duration::from_millis(1500);
    let mut reply = Vec::with_capacity(1500);
    // Whatever is set up at the first use is not the hit's; and each entry is promoted once.
    counted_hits(&resolver, &queries, later, 1, &mut reply);
    let hits = collected_hits(&resolver, &queries, later, ROUNDS, &mut reply);
    println!("hits: {hits}");
}

/// What valgrind collects from: it knows it by its name.
#[inline(never)]
fn collected_hits(resolver: &Resolver, queries: &[Vec<u8>], now: Moment, rounds: usize, reply: &mut Vec<u8>) -> usize {
    black_box(counted_hits(resolver, queries, now, rounds, reply))
}

#[inline(never)]
fn counted_hits(resolver: &Resolver, queries: &[Vec<u8>], now: Moment, rounds: usize, reply: &mut Vec<u8>) -> usize {
    let client = Client { is_loopback: true, sees_cache: true, size: ReplySize::Datagram { ceiling_bytes: 1232 } };
    let mut rng = StdRng::seed_from_u64(1);
    let mut hits = 0;
    for query in (0..rounds).flat_map(|_| queries) {
        let query = Query::parse(black_box(query)).expect("it is a query");
        let asker = query.asker(client.size);
        let outcome = resolver.at_once(query, asker, client, now, &mut rng, reply);
        hits += usize::from(matches!(outcome, AtOnce::Reply(..)));
    }
    assert_eq!(hits, rounds * queries.len(), "all of them are hits");
    hits
}

/// The instructions of one hit.
fn count(case: &str) -> f64 {
    let folder = tempfile::tempdir().expect("a folder for what valgrind writes");
    let file = folder.path().join("callgrind.out");
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--collect-atstart=no", "--toggle-collect=*collected_hits*"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(env::current_exe().expect("a path of our own"))
        .args(["--case", case]);
    let output = command.output().expect("valgrind can be run");
    let said = String::from_utf8_lossy(&output.stdout);
    let hits: f64 = said.lines().find_map(|line| line.strip_prefix("hits: ")?.parse().ok()).unwrap_or_else(|| {
        panic!("{case}: {said}{}", String::from_utf8_lossy(&output.stderr));
    });
    let totals = fs::read_to_string(&file).expect("what valgrind wrote");
    let total =
        |line: &str| line.strip_prefix("totals: ").or(line.strip_prefix("summary: "))?.trim().parse::<f64>().ok();
    let total = totals.lines().find_map(total).expect("a total");
    assert!(total > hits, "{case}: nothing was collected; is `collected_hits` called otherwise now");
    total / hits
}

/// Whether no count is above what was recorded and the margin.
fn compare(counts: &[(&str, f64)]) -> bool {
    let text = fs::read_to_string(file()).unwrap_or_default();
    let lines = || text.lines().filter(|line| !line.starts_with('#'));
    let same_compiler = text.lines().any(|line| line == format!("# {}", compiler()));
    let margin = if same_compiler { MARGIN_PERCENT } else { OTHER_COMPILER_PERCENT };
    if !same_compiler {
        println!("instructions: recorded with another compiler than {}, so {margin} % are allowed", compiler());
    }
    let mut is_good = true;
    for (name, count) in counts {
        let Some(recorded) = lines().find_map(|line| line.strip_suffix(name)?.trim().parse::<f64>().ok()) else {
            println!("instructions: {count:>7.0} {name}: not recorded yet");
            is_good = false;
            continue;
        };
        let change = (count / recorded - 1.0) * 100.0;
        println!("instructions: {count:>7.0} {name} ({change:+.1} %)");
        is_good &= change <= margin;
    }
    if !is_good {
        println!(
            "instructions: a hit takes more instructions than {} says and {margin} %. If it has to, record it anew, \
             `cargo bench --bench instructions -- --record`, and say why in the commit",
            file().display()
        );
    }
    is_good
}

fn record(counts: &[(&str, f64)]) {
    let lines: String = counts.iter().map(|(name, count)| format!("{count:>7.0} {name}\n")).collect();
    let head =
        "# Instructions of one hit, by its kind; `cargo bench --bench instructions -- --record` writes them anew.\n";
    let text = format!("{head}# {}\n{lines}", compiler());
    fs::write(file(), &text).expect("the file of the counts can be written");
    print!("{text}");
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt")
}

/// Which compiler builds this.
fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&version).trim().to_owned()
}

fn question(qname: &str, qtype: Rtype) -> Question {
    Question { qname: name(qname), qtype, qclass: Class::IN }
}

fn address(number: u32) -> (Question, Answer, Option<Shape>) {
    let question = question(&format!("host{number}.example"), Rtype::A);
    let record = Record::new(question.qname.clone(), Rtype::A, 3600, [192, 0, 2, 1]);
    (question, Answer { answer: vec![record], authoritative: false, ..Answer::default() }, None)
}

fn chain(number: u32) -> (Question, Answer, Option<Shape>) {
    let question = question(&format!("host{number}.example"), Rtype::A);
    let target = name("target.example.org");
    let mut records = vec![Record::new(question.qname.clone(), Rtype::CNAME, 3600, target.wire())];
    records.extend((1..4).map(|last| Record::new(target.clone(), Rtype::A, 3600, [192, 0, 2, last])));
    (question, Answer { answer: records, authoritative: false, ..Answer::default() }, None)
}

fn nxdomain(number: u32) -> (Question, Answer, Option<Shape>) {
    let question = question(&format!("host{number}.example"), Rtype::A);
    let (mname, rname) = (name("ns.example"), name("host.example"));
    let soa = Soa { mname, rname, serial: 1, refresh: 1, retry: 1, expire: 1, minimum: 3600 };
    (question, Answer::negative(Rcode::NXDOMAIN, soa.record(name("example"))), None)
}

fn instances(number: u32) -> (Question, Answer, Option<Shape>) {
    let question = question(&format!("web{number}.service.consul"), Rtype::A);
    let record = |last| Record::new(question.qname.clone(), Rtype::A, 0, [192, 0, 2, last]);
    let answer = Answer { answer: (0..10).map(record).collect(), ..Answer::default() };
    let shape = Shape { rotating: 0..10, admits_cuts: true, ..Shape::default() };
    (question, answer, Some(shape))
}

fn targets(number: u32) -> (Question, Answer, Option<Shape>) {
    let question = question(&format!("web{number}.service.consul"), Rtype::SRV);
    let target = |node| name(&format!("node{node}.node.dc1.consul"));
    let srv = |node| [&[0, 1, 0, 1, 0, 80][..], target(node).wire()].concat();
    let answer = Answer {
        answer: (0..10).map(|node| Record::new(question.qname.clone(), Rtype::SRV, 0, srv(node))).collect(),
        additional: (0..10).map(|node| Record::new(target(node), Rtype::A, 0, [192, 0, 2, node])).collect(),
        ..Answer::default()
    };
    let shape = Shape { rotating: 0..10, glue: (0..10).map(Some).collect(), admits_cuts: true, ..Shape::default() };
    (question, answer, Some(shape))
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}
