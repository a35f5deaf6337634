//! The catalog says what a real Consul says, but for deviations that the README states.
//!
//! Both have the same services. Each of some thousand questions is asked of both, in many manners; what Consul says is
//! rewritten by the deviations that apply to it, and then ours must be the same: response code, flags, question and every
//! section, in which the order does not count. A deviation that never applied fails the test as well.

mod cuts;
mod deviations;
mod fixtures;
mod questions;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
    thread,
    time::Duration,
};

use crate::harness::{
    Message, PATIENCE, exchange_udp,
    message::{AA, AD, CD, QR, RA, RD, Record, TC, has_names},
    tcp, udp,
};
use deviations::{DEVIATIONS, is_met};
use fixtures::{Bench, Limits, Setting, Way};
use questions::{Asking, questions};

#[test]
fn from_the_same_definition_files_every_answer_is_consuls_or_a_stated_deviation() {
    compare_all(Way::Files);
}

#[test]
fn from_the_agents_own_api_every_answer_is_consuls_or_a_stated_deviation() {
    compare_all(Way::Agent);
}

const SETTINGS: &[Setting] = &[
    DEFAULTS,
    Setting { name: "recursors", recursors: true, stride: 3, ..DEFAULTS },
    Setting {
        name: "only_passing",
        theirs: r#""only_passing": true"#,
        ours: "only_passing = true",
        stride: 5,
        ..DEFAULTS
    },
    Setting {
        name: "TTLs",
        theirs: r#""node_ttl": "7s", "soa": {"min_ttl": 9, "expire": 1, "refresh": 2, "retry": 3},
            "service_ttl": {"*": "1s", "w*": "2s", "web": "3s", "mix*": "4s", "mixe*": "5s", "Upper-Case": "6s"}"#,
        ours: "node_ttl = \"7s\"\nservice_ttl = { \"*\" = \"1s\", \"w*\" = \"2s\", web = \"3s\", \"mix*\" = \"4s\", \
               \"mixe*\" = \"5s\", \"Upper-Case\" = \"6s\" }\n\
               [catalog.soa]\nmin_ttl = 9\nexpire = 1\nrefresh = 2\nretry = 3\n",
        recursors: true,
        stride: 3,
        ..DEFAULTS
    },
    Setting {
        name: "a_record_limit",
        theirs: r#""a_record_limit": 5"#,
        ours: "a_record_limit = 5",
        limits: Limits { a_record: Some(5), ..NO_LIMITS },
        stride: 3,
        ..DEFAULTS
    },
    Setting {
        name: "a_record_limit and enable_truncate",
        theirs: r#""a_record_limit": 2, "enable_truncate": true"#,
        ours: "a_record_limit = 2\nenable_truncate = true",
        limits: Limits { a_record: Some(2), enable_truncate: true, ..NO_LIMITS },
        stride: 7,
        ..DEFAULTS
    },
    Setting {
        name: "udp_answer_limit",
        theirs: r#""udp_answer_limit": 4"#,
        ours: "udp_answer_limit = 4",
        limits: Limits { udp_answer: Some(4), ..NO_LIMITS },
        stride: 3,
        ..DEFAULTS
    },
    Setting {
        name: "enable_truncate",
        theirs: r#""enable_truncate": true, "udp_answer_limit": 8"#,
        ours: "enable_truncate = true\nudp_answer_limit = 8",
        limits: Limits { udp_answer: Some(8), enable_truncate: true, ..NO_LIMITS },
        stride: 3,
        ..DEFAULTS
    },
    Setting {
        name: "no meta",
        theirs: r#""enable_additional_node_meta_txt": false"#,
        ours: "enable_additional_node_meta_txt = false",
        stride: 5,
        ..DEFAULTS
    },
    Setting { name: "second domain", domain: "second.test", stride: 3, ..DEFAULTS },
    Setting {
        name: "a node that warns, with two families",
        more: r#"{"tagged_addresses": {"lan_ipv6": "2001:db8::111"},
            "check": {"id": "warns", "name": "warns", "ttl": "24h", "status": "warning"}}"#,
        stride: 5,
        ..DEFAULTS
    },
    Setting {
        name: "a node in maintenance",
        more: r#"{"check": {"id": "_node_maintenance", "name": "maintenance", "ttl": "24h", "status": "critical"}}"#,
        stride: 11,
        ..DEFAULTS
    },
];

const DEFAULTS: Setting = Setting {
    name: "defaults",
    domain: "consul",
    theirs: "",
    ours: "",
    more: "",
    recursors: false,
    limits: NO_LIMITS,
    stride: 1,
};
const NO_LIMITS: Limits = Limits { a_record: None, udp_answer: None, enable_truncate: false };

/// What came of all comparisons.
#[derive(Default)]
struct Outcome {
    compared: usize,
    /// How often each deviation applied.
    applied: BTreeMap<&'static str, usize>,
    failures: Vec<String>,
}

fn compare_all(way: Way) {
    let queue = Mutex::new(SETTINGS.iter());
    let outcome = Mutex::new(Outcome::default());
    let is_skipped = Mutex::new(false);
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(setting) = { queue.lock().unwrap().next() } {
                    match Bench::start(way, *setting) {
                        Some(bench) => compare_one(&bench, &outcome),
                        None => *is_skipped.lock().unwrap() = true,
                    }
                }
            });
        }
    });
    if *is_skipped.lock().unwrap() {
        return;
    }
    let Outcome { compared, applied, failures } = outcome.into_inner().unwrap();
    println!("{compared} questions compared");
    for deviation in DEVIATIONS {
        println!("{:6} {}", applied.get(deviation.what).unwrap_or(&0), deviation.what);
    }
    for what in cuts::ALL {
        println!("{:6} {what}", applied.get(what).unwrap_or(&0));
    }
    let shown: Vec<_> = failures.iter().take(SHOWN).cloned().collect();
    assert!(failures.is_empty(), "{} differences, the first of which are\n{}", failures.len(), shown.join("\n"));
    let idle: Vec<_> = (DEVIATIONS.iter().map(|deviation| deviation.what).chain(cuts::ALL.iter().copied()))
        .filter(|what| !applied.contains_key(what) && is_met(what, way))
        .collect();
    assert!(idle.is_empty(), "deviations that do not exist any more: {idle:#?}");
    assert!(compared > 5000, "{compared}");
}

fn compare_one(bench: &Bench, outcome: &Mutex<Outcome>) {
    let askings = questions(bench);
    let mut found = Outcome::default();
    for asking in askings.into_iter().step_by(bench.setting.stride) {
        found.compared += 1;
        match compare(&Case { bench, asking: &asking }) {
            Ok(applied) => {
                for what in applied {
                    *found.applied.entry(what).or_default() += 1;
                }
            }
            Err(failure) => {
                let (setting, way) = (bench.setting.name, bench.way);
                let (asked, manner) = (asking.query.asked(), asking.manner());
                found.failures.push(format!("{asked} by {manner} with {setting} and {way:?}: {failure}"));
            }
        }
    }
    println!("{:6} with {}", found.compared, bench.setting.name);
    let mut outcome = outcome.lock().unwrap();
    outcome.compared += found.compared;
    outcome.failures.extend(found.failures);
    for (what, times) in found.applied {
        *outcome.applied.entry(what).or_default() += times;
    }
}

/// A question for both.
pub struct Case<'a> {
    pub bench: &'a Bench,
    pub asking: &'a Asking,
}

impl Case<'_> {
    fn theirs(&self) -> Message {
        ask_consul(self.bench, &self.asking.query, self.asking.over_tcp)
    }

    /// What Consul says to another question, over TCP.
    pub fn consul(&self, question: &str) -> Message {
        ask_consul(self.bench, &crate::harness::query(question), true)
    }
}

fn ask_consul(bench: &Bench, query: &Message, over_tcp: bool) -> Message {
    let server = bench.consul.dns();
    let wire = if over_tcp {
        let mut connection = crate::harness::Tcp::connect(server);
        connection.send(&[query]);
        connection.receive_wire()
    } else {
        // Where datagrams get lost, a second try tells.
        (0..5).find_map(|_| exchange_udp(server, &query.to_wire(), PATIENCE))
    };
    let wire = wire.unwrap_or_else(|| panic!("Consul says nothing to {}", query.asked()));
    Message::from_wire(&wire).unwrap_or_else(|error| panic!("{}: {error}", query.asked()))
}

/// The deviations that applied; what else differs is an error.
fn compare(case: &Case) -> Result<Vec<&'static str>, String> {
    let asking = case.asking;
    let server = case.bench.daemon.address();
    let ours = if asking.over_tcp { tcp(server, &asking.query) } else { udp(server, &asking.query) };
    let mut first = None;
    // Where Consul chooses by chance, it is asked until it chooses as we do.
    for _ in 0..CHANCES {
        let (expected, mut applied) = rewrite(case, case.theirs());
        if lettered(&ours, asking) != ours {
            applied.push(LETTERS);
        }
        let (ours, expected) = (lettered(&ours, asking), lettered(&expected, asking));
        let differences = differences(&ours, &expected);
        if differences.is_empty() {
            return Ok(applied);
        }
        match cuts::compare(case, &ours, &expected) {
            Some(Ok(of_cuts)) => {
                applied.extend(of_cuts);
                return Ok(applied);
            }
            Some(Err(failure)) => drop(first.get_or_insert(failure)),
            None => drop(first.get_or_insert(format!("{applied:?}\n{}", differences.join("\n")))),
        }
    }
    Err(first.unwrap_or_default())
}

/// What we are to say where Consul says this, and the deviations by which it differs.
fn rewrite(case: &Case, mut theirs: Message) -> (Message, Vec<&'static str>) {
    let mut applied = Vec::new();
    for deviation in DEVIATIONS {
        let before = theirs.clone();
        (deviation.rewrite)(case, &mut theirs);
        if theirs != before {
            applied.push(deviation.what);
        }
    }
    (theirs, applied)
}

/// What tells the two replies apart.
fn differences(ours: &Message, expected: &Message) -> Vec<String> {
    let mut differences = Vec::new();
    let mut demand = |what: &str, ours: String, expected: String| {
        if ours != expected {
            differences.push(format!("  {what}: {ours}\n    instead of: {expected}"));
        }
    };
    demand("response code", ours.rcode_name().into(), expected.rcode_name().into());
    let flags = |message: &Message| Message { flags: message.flags & FLAGS, ..Message::default() }.flag_names();
    demand("flags", flags(ours), flags(expected));
    demand("question", format!("{:?}", ours.question), format!("{:?}", expected.question));
    demand("OPT record", ours.edns.is_some().to_string(), expected.edns.is_some().to_string());
    demand("answer", lines(&ours.answer), lines(&expected.answer));
    demand("authority", lines(&ours.authority), lines(&expected.authority));
    demand("additional", lines(&ours.additional), lines(&expected.additional));
    differences
}

/// With lower case where names end as the question does: there we point to the question, and so have its letters.
fn lettered(message: &Message, asking: &Asking) -> Message {
    let qname = asking.query.qname();
    let lower = |name: &str| {
        let own: Vec<&str> = labels(name);
        let asked = labels(&qname);
        let shared = own.iter().rev().zip(asked.iter().rev()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
        let end: usize = own.iter().rev().take(shared).map(|label| label.len()).sum();
        let (start, end) = name.split_at(name.len() - end);
        format!("{start}{}", end.to_ascii_lowercase())
    };
    let record = |record: &Record, is_asked: bool| {
        let line = record.line();
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        if !is_asked {
            words[0] = lower(&words[0]);
        }
        if has_names(record.rtype) {
            words[3..].iter_mut().filter(|word| word.ends_with('.')).for_each(|word| *word = lower(word));
        }
        Record::parse(&words.join(" "))
    };
    // What was asked for is said of the name as it was asked.
    let is_asked = |(place, record): (usize, &Record)| {
        let own = record.owner.eq_ignore_ascii_case(&qname) && ![2, 6].contains(&record.rtype);
        own && (place == 0 || record.rtype != 5)
    };
    let answer = message.answer.iter().enumerate().map(|(place, r)| record(r, is_asked((place, r)))).collect();
    let records = |records: &[Record]| records.iter().map(|r| record(r, false)).collect();
    Message {
        answer,
        authority: records(&message.authority),
        additional: records(&message.additional),
        ..message.clone()
    }
}

/// The labels of a name in text, each with the dot behind it.
fn labels(name: &str) -> Vec<&str> {
    let mut labels = Vec::new();
    let mut start = 0;
    let mut octets = name.bytes().enumerate();
    while let Some((at, octet)) = octets.next() {
        match octet {
            b'\\' => drop(octets.next()),
            b'.' => {
                labels.push(&name[start..=at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    labels
}

/// Records in no order.
fn lines(records: &[Record]) -> String {
    let mut lines: Vec<String> = records.iter().map(|record| without_serial(record).line()).collect();
    lines.sort();
    lines.join("; ")
}

/// Serials are the time of the answer, on both sides.
fn without_serial(record: &Record) -> Record {
    let mut record = record.clone();
    if record.rtype == 6 {
        let at = record.rdata.len() - 20;
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        let serial = u32::from_be_bytes(record.rdata[at..at + 4].try_into().unwrap());
        if now.as_secs().abs_diff(serial.into()) < 300 {
            record.rdata[at..at + 4].fill(0);
        }
    }
    record
}

/// All flags but those by which we differ from every server that only holds data: RA is set by a row of the table.
const FLAGS: u16 = QR | AA | TC | RD | RA | AD | CD;
const LETTERS: &str = "names that end as the question does have its letters";
const AT_ONCE: usize = 3;
const CHANCES: usize = 40;
const SHOWN: usize = 40;
/// How long Consul may take to know what it was told.
const START_LIMIT: Duration = Duration::from_secs(30);

#[test]
fn the_readme_states_each_deviation() {
    let readme: String = README.split_whitespace().collect::<Vec<_>>().join(" ");
    let stated: BTreeSet<&str> = DEVIATIONS.iter().map(|deviation| deviation.stated).collect();
    for sentence in stated {
        assert!(readme.contains(sentence), "{sentence}");
    }
}

const README: &str = include_str!("../../../README.md");
