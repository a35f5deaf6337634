//! A catalog that changes at random, and a cache before it: no kept answer outlives what it was made of.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::catalog::{
    Agent, Check, CheckKey, Config, Host, Identity, Instance, Live, Node, NodeKey, Outcomes, Registration, Registry,
    Role, Set, Settings, SourceId, System, Tagged, Weights, health::Status,
};

/// What two sources say, and two who answer from it: one keeps its answers, the other makes each anew.
struct World {
    rng: StdRng,
    now: Moment,
    said: [Said; 2],
    registry: Registry,
    live: Arc<Live>,
    keeping: Bench,
    forgetful: Bench,
}

/// What a source says: nodes by number, instances by the numbers of node and instance.
type Said = (BTreeMap<u8, Node>, BTreeMap<(u8, u8), Instance>);

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let registry = Registry::new(settings(&mut rng));
        let live = Arc::new(Live::new(registry.snapshot()).0);
        let bench = || {
            let forwards = [rule("'.'", "192.0.2.53", 3600), rule("'corp.test'", "192.0.2.54", 0)].into();
            let mut bench = Bench::new(Rules { catalog: Some(live.clone()), forwards, ..rules() });
            bench.client.size = ReplySize::Stream;
            bench
        };
        let (keeping, forgetful) = (bench(), bench());
        Self { rng, now: NOW, said: Default::default(), registry, live, keeping, forgetful }
    }

    fn change(&mut self) {
        self.now = self.now + Duration::from_secs(self.rng.random_range(0..40));
        let source = self.rng.random_range(0..2);
        let node = self.rng.random_range(0..4);
        let service = (node, self.rng.random_range(0..4));
        let is_gone = self.rng.random_bool(0.2);
        match self.rng.random_range(0..20) {
            0..6 if is_gone => drop(self.said[source].0.remove(&node)),
            0..6 => drop(self.said[source].0.insert(node, a_node(node, &mut self.rng))),
            6..14 if is_gone => drop(self.said[source].1.remove(&service)),
            6..14 => drop(self.said[source].1.insert(service, an_instance(service, &mut self.rng))),
            14..18 => {
                let (service_id, check) = match self.rng.random_bool(0.7) {
                    true => (Some(format!("i{}", service.1).into()), "own".into()),
                    false => (None, "host".into()),
                };
                let key = CheckKey { node: NodeKey::new("dc1", &format!("n{node}")), service_id, check };
                let status = a_status(&mut self.rng);
                self.registry.set_check(SourceId(source as u8), &key, status, "", self.now);
                let (nodes, instances) = &mut self.said[source];
                let checks = match key.service_id {
                    Some(_) => instances.get_mut(&service).map(|instance| &mut instance.checks),
                    None => nodes.get_mut(&node).map(|node| &mut node.checks),
                };
                checks.into_iter().flatten().filter(|own| own.id == key.check).for_each(|own| own.status = status);
            }
            18 => drop(self.registry.tick(self.now)),
            _ => drop(self.registry.reconfigure(settings(&mut self.rng), self.now)),
        }
        let (nodes, instances) = &self.said[source];
        let set = Set {
            nodes: nodes.values().cloned().map(Arc::new).collect(),
            instances: instances.values().cloned().map(Arc::new).collect(),
        };
        self.registry.publish(SourceId(source as u8), set, Outcomes::Published, self.now);
        self.registry.publish_to(&self.live);
    }
}

fn settings(rng: &mut StdRng) -> Settings {
    let mut text = String::from("address = '10.0.0.9'\nnode_name = 'n3'\nalt_domain = 'alt.test'\n");
    text += &format!("only_passing = {}\n", rng.random_bool(0.3));
    text += &format!("enable_additional_node_meta_txt = {}\n", rng.random_bool(0.7));
    if rng.random_bool(0.3) {
        text += "[service.db]\npolicy = 'one'\nhold_down = '1m'\norder = ['n1', 'i2']\n";
    }
    let config: Config = toml::from_str(&text).unwrap();
    config.settings(&Identity::new(&config, &Agent::default(), &System::default()).unwrap())
}

fn a_status(rng: &mut StdRng) -> Status {
    *[Status::Passing, Status::Passing, Status::Warning, Status::Critical].choose(rng).unwrap()
}

fn a_check(id: &str, rng: &mut StdRng) -> Check {
    let status = a_status(rng);
    Check { id: id.into(), name: id.into(), notes: "".into(), kind: "".into(), status, output: "".into() }
}

fn a_host(rng: &mut StdRng) -> Host {
    let number = rng.random_range(0..4);
    match rng.random_range(0..8) {
        0..4 => Host::Ip([10, 0, 0, number].into()),
        4 => Host::Ip([198, 51, 0, number].into()),
        5 => Host::Name(name(&format!("n{number}.node.consul"))),
        6 => Host::Name(name(["web.service.consul", "db.service.alt.test"][usize::from(number) % 2])),
        _ => Host::Name(name(["ext.corp.test", "out.site.example"][usize::from(number) % 2])),
    }
}

fn tags(tag: &str, rng: &mut StdRng) -> BTreeMap<String, Tagged> {
    let is_there = rng.random_bool(0.3);
    let tagged = Tagged { address: Host::Ip(format!("fd00::{}", rng.random_range(0..3)).parse().unwrap()), port: 1 };
    is_there.then(|| (tag.to_owned(), tagged)).into_iter().collect()
}

fn a_node(number: u8, rng: &mut StdRng) -> Node {
    let name = format!("{}{number}", ["n", "N"].choose(rng).unwrap());
    let address = if rng.random_bool(0.8) { Host::Ip([10, 0, 0, rng.random_range(0..4)].into()) } else { a_host(rng) };
    let meta = [("rack".to_owned(), rng.random_range(0..3).to_string())];
    Node {
        name: name.into(),
        datacenter: "dc1".into(),
        address,
        tagged: tags("lan_ipv6", rng),
        meta: if rng.random_bool(0.5) { meta.into() } else { BTreeMap::new() },
        checks: vec![a_check("host", rng)],
    }
}

fn an_instance((node, id): (u8, u8), rng: &mut StdRng) -> Instance {
    let service = *["web", "db", "Web", "consul"].choose(rng).unwrap();
    let meta = [("watershed-policy".to_owned(), "one".to_owned()), ("watershed-hold-down".to_owned(), "1m".to_owned())];
    let role = match rng.random_range(0..6) {
        0 => Role::Native,
        1 => Role::Proxy { destination: "db".into() },
        2 => Role::Ingress { services: vec!["web".into(), "db".into()] },
        _ => Role::Plain,
    };
    let registration = Registration {
        node: NodeKey::new("dc1", &format!("n{node}")),
        id: format!("i{id}").into(),
        service: service.into(),
        tags: ["blue", "Green"].into_iter().filter(|_| rng.random_bool(0.5)).map(str::to_owned).collect(),
        address: rng.random_bool(0.5).then(|| a_host(rng)),
        port: rng.random_range(80..83),
        tagged: tags("consul-virtual", rng),
        meta: if rng.random_bool(0.1) { meta.into() } else { BTreeMap::new() },
        weights: Weights { passing: rng.random_range(1..3), warning: 1 },
        role,
    };
    Instance { registration: registration.into(), checks: vec![a_check("own", rng)] }
}

/// What a client is told, with all that others are asked for on the way made up.
fn told(bench: &Bench, qname: &str, qtype: Rtype) -> Response {
    let mut next = match bench.ask(qname, qtype) {
        Asked::Reply(received) => return received.response,
        Asked::Joined => panic!("nobody else asks"),
        Asked::Exchange(exchange, job) => Next::Exchange(exchange, job),
        Asked::Wait(pending, job) => Next::Wait(pending, job),
    };
    let mut is_first = true;
    loop {
        next = match next {
            Next::Settled(settled) => return Response::clone(&settled[0].response),
            Next::Wait(_, job) => bench.resolver.resume(job, bench.now, &mut rand::rng()),
            Next::Exchange(_, job) => {
                let said = match qname {
                    "go.corp.test" if is_first => says(qname, qtype, &[cname(qname, "web.service.consul")]),
                    _ if qname.ends_with("arpa") => says(qname, qtype, &[]),
                    _ if qtype == Rtype::A => says("ext.corp.test", qtype, &[a("ext.corp.test", 60, 7)]),
                    _ => says("ext.corp.test", qtype, &[]),
                };
                is_first = false;
                bench.finish(job, Ok(said))
            }
        };
    }
}

/// All that a response says, in no order, but for the time in the serial of a SOA record.
fn content(response: &Response) -> (Rcode, [Vec<String>; 3]) {
    let answer = response.to_answer().unwrap();
    let sorted = |records: Vec<Record>| {
        let mut records: Vec<String> = records
            .into_iter()
            .map(|mut record| {
                if record.rtype == Rtype::SOA {
                    let serial_at = record.rdata.len() - 20;
                    let mut rdata = record.rdata.to_vec();
                    rdata[serial_at..serial_at + 4].fill(0);
                    record.rdata = rdata.into();
                }
                format!("{record:?}")
            })
            .collect();
        records.sort();
        records
    };
    (answer.rcode, [sorted(answer.answer), sorted(answer.authority), sorted(answer.additional)])
}

fn is_kept(bench: &Bench, qname: &str, qtype: Rtype) -> bool {
    let key = Key::new(name(qname).wire(), qtype, Class::IN, Variant::default());
    let tables = bench.resolver.tables();
    let holds = |found: crate::cache::Found<'_>| tables.hold(found.marks);
    bench.resolver.cache().find(&key, bench.now, tables.epoch(), holds).unwrap_or(false)
}

fn questions() -> Vec<(String, Rtype)> {
    let mut questions = Vec::new();
    let services =
        ["web.service.consul", "db.service.alt.test", "blue.web.service.consul", "_db._green.service.consul"];
    let mesh = ["db.connect.consul", "web.ingress.consul", "web.virtual.consul", "db.query.consul"];
    let others = ["consul", "alt.test", "n0.node.consul", "n1.node.dc1.alt.test", "n3.node.consul", "nowhere.consul"];
    let further = ["go.corp.test", "out.site.example"];
    for qname in services.into_iter().chain(mesh).chain(others).chain(further) {
        for qtype in [Rtype::A, Rtype::AAAA, Rtype::SRV, Rtype::TXT, Rtype::ANY, Rtype::NS, Rtype::SOA, Rtype::CNAME] {
            if !qname.ends_with(".test") || qtype != Rtype::ANY {
                questions.push((qname.to_owned(), qtype));
            }
        }
    }
    for number in 0..4 {
        for net in ["0.0.10", "0.51.198"] {
            questions.push((format!("{number}.{net}.in-addr.arpa"), Rtype::PTR));
            questions.push((format!("{number}.{net}.in-addr.arpa"), Rtype::TXT));
        }
    }
    questions
}

#[test]
fn no_kept_answer_outlives_what_it_was_made_of() {
    let questions = questions();
    let (mut kept, mut compared) = (0, 0);
    for seed in 0..3 {
        let mut world = World::new(seed);
        for step in 0..100 {
            world.change();
            world.forgetful.resolver.cache().flush_all();
            for (qname, qtype) in &questions {
                let was_kept = is_kept(&world.keeping, qname, *qtype);
                let fresh = told(&world.forgetful, qname, *qtype);
                let said = told(&world.keeping, qname, *qtype);
                if is_kept(&world.forgetful, qname, *qtype) {
                    assert_eq!(content(&said), content(&fresh), "{seed}, {step}: {qname} {qtype:?}");
                    compared += 1;
                } else {
                    // One of several answers that are as good.
                    assert!(!was_kept, "{seed}, {step}: {qname} {qtype:?}: {:?} {:?}", content(&said), content(&fresh));
                }
                kept += usize::from(was_kept);
            }
        }
    }
    assert!(kept > compared / 2, "most changes void few answers: {kept} of {compared}");
}
