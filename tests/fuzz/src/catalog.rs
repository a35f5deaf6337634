//! The catalog: definition files, registrations over HTTP, and what a Consul agent says.

use std::time::Duration;

use rand::{SeedableRng, rngs::StdRng};
use watershed::{
    catalog::{
        Config, Identity, Kind, Outcomes, Registry, ServiceKey, Snapshot, SourceId, System, Verdict,
        check::{self, Declaration, Definition, Scripts},
        source::{
            consul,
            file::{Files, Scope},
            registered::{NewCheck, NewService, OtherChecks, Registered},
            value::{Fault, Value},
        },
    },
    clock::Moment,
    files::Copies,
    wire::{Asker, Class, Question, ReplyOptions, Rtype, Ttls, write_reply},
};

use super::{
    local::can_be_sent,
    messages::check_reply,
    octets::{Octets, Scratch},
};

/// A definition file is refused with all its faults, each at its line, or what it defines can be asked for.
pub(crate) fn definitions(octets: &[u8]) {
    let mut octets = Octets(octets);
    let extension = if octets.bit() { "json" } else { "hcl" };
    let folder = Scratch::new();
    folder.file(&format!("fuzz.{extension}"), octets.0);
    let outcome = Files::load(folder.path(), 1 << 20, None, Scope::All, &Copies::default(), &define);
    for fault in &outcome.faults {
        assert!(fault.location.line.is_none_or(|line| line <= octets.0.len() + 1), "{fault}");
        assert!(!fault.to_string().is_empty());
    }
    let files = outcome.files;
    let (identity, _) = Identity::new(&config(), &files.agent(), &System::default());
    let mut registry = Registry::new(config().settings(&identity));
    registry.publish(SOURCE, files.set(&identity), Outcomes::Ours, NOW);
    for (key, Definition { kind, deregister_after, .. }) in files.definitions(&identity).map(|(key, d)| (key, &**d)) {
        let pause = match kind {
            check::Kind::Probe { interval, .. } => *interval,
            check::Kind::Ttl(_) | check::Kind::Alias(_) => SECOND,
        };
        assert!(pause >= SECOND && deregister_after.is_none_or(|after| after >= 60 * SECOND), "{key:?}");
    }
    ask(&registry.snapshot());
}

/// What is registered is saved, and restored as it was.
pub(crate) fn registrations(octets: &[u8]) {
    let Ok(text) = std::str::from_utf8(octets) else { return };
    let files = Files::default();
    let mut registered = Registered::default();
    if let Ok(service) = NewService::read(text) {
        registered.put_service(service, OtherChecks::Keep, &files).expect("there is room for one");
    }
    if let Ok(check) = NewCheck::read(text) {
        // One of a service that is not there is refused.
        let _ = registered.put_check(check, &files);
    }
    let saved = registered.save();
    let (restored, faults) = Registered::restore(&saved);
    assert!(faults.is_empty(), "{faults:?} {}", String::from_utf8_lossy(&saved));
    assert_eq!(String::from_utf8_lossy(&restored.save()), String::from_utf8_lossy(&saved));

    // What has changed is recorded, and replayed as it was.
    let mut replayed = Registered::default();
    let record = registered.take_changes();
    assert_eq!(replayed.replay(&record), Vec::<String>::new(), "{record}");
    assert_eq!(String::from_utf8_lossy(&replayed.save()), String::from_utf8_lossy(&saved), "{record}");
    let _ = replayed.replay(text);

    let (of_anything, _) = Registered::restore(octets);
    let saved = of_anything.save();
    let (restored, faults) = Registered::restore(&saved);
    assert!(faults.is_empty(), "{faults:?} {}", String::from_utf8_lossy(&saved));
    assert_eq!(String::from_utf8_lossy(&restored.save()), String::from_utf8_lossy(&saved));
}

/// Whatever an agent says, the catalog that is made of it answers.
///
/// The responses stand one in a line. The first octet of a line, a digit, is the index.
pub(crate) fn consul(octets: &[u8]) {
    let answers: Vec<(u64, &[u8])> = octets
        .split(|&octet| octet == b'\n')
        .filter_map(|line| {
            let (index, body) = line.split_first()?;
            Some((u64::from(index.wrapping_sub(b'0')), body))
        })
        .collect();
    let wished = [
        (Kind::Service, "web"),
        (Kind::Connect, "web"),
        (Kind::Ingress, "web"),
        (Kind::Query, "web"),
        (Kind::Node, "node1"),
    ];
    let wished = wished.map(|(kind, name)| ServiceKey::new(kind, "dc1", name));
    let news = consul::rehearse(&answers, &wished, NOW);
    let (identity, _) = Identity::new(&config(), &Default::default(), &System::default());
    let mut registry = Registry::new(config().settings(&identity));
    registry.follow(SOURCE, true, NOW);
    for news in news {
        registry.hear(SOURCE, news, NOW);
    }
    ask(&registry.snapshot());
}

/// Asks a catalog for some names, its own among them, and sends what it says.
fn ask(snapshot: &Snapshot) {
    let services = snapshot.services().take(4).map(|(key, _)| key.name().to_owned());
    let nodes = snapshot.nodes().take(2).map(|(key, _)| key.name().to_string());
    let names: Vec<String> = services
        .chain(["web".to_owned()])
        .flat_map(|name| ["service", "connect", "ingress", "query"].map(|kind| format!("{name}.{kind}.consul")))
        .chain(nodes.map(|name| format!("{name}.node.consul")))
        .chain(["consul".to_owned(), "7f000001.addr.consul".to_owned(), "1.2.0.192.in-addr.arpa".to_owned()])
        .collect();
    for qname in names.iter().filter_map(|name| name.parse().ok()) {
        for qtype in [Rtype::A, Rtype::SRV, Rtype::TXT, Rtype::ANY, Rtype::PTR] {
            let question = Question { qname: watershed::wire::Name::clone(&qname), qtype, qclass: Class::IN };
            let said = snapshot.answer(&question, 1, 7, NOW);
            let Verdict::Answer(answer) = &said.verdict else { continue };
            can_be_sent(&question, answer);
            let Some(response) = answer.encode_rotating(&question, &said.shape) else { continue };
            let mut out = Vec::new();
            let mut rng = StdRng::seed_from_u64(1);
            write_reply(response.view(), &SMALL, response.question_bytes(), Ttls::Aged(0), &mut rng, &mut out);
            check_reply(&out, &SMALL, response.question_bytes());
        }
    }
}

fn define(value: &Value) -> Result<Definition, Vec<Fault>> {
    let declaration: Declaration = serde::Deserialize::deserialize(value).map_err(|fault| vec![fault])?;
    declaration.define(Scripts::Allowed).map_err(|problems| {
        problems.iter().map(|problem| Fault { line: Some(value.line), message: problem.to_string() }).collect()
    })
}

fn config() -> Config {
    Config { node_name: Some("own".into()), address: "192.0.2.1".parse().ok(), ..Config::default() }
}

const SECOND: Duration = Duration::from_secs(1);
const SOURCE: SourceId = SourceId(0);
const NOW: Moment = Moment::from_millis(2_000_000_000);
const SMALL: Asker = Asker {
    id: 7,
    recursion_desired: true,
    checking_disabled: false,
    wants_ad: false,
    edns: None,
    options: ReplyOptions { cookie: None, keepalive: None, padded: false },
    limit_bytes: 512,
};
