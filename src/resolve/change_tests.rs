//! A catalog that changes at random, and a cache before it: no kept answer outlives what it was made of.

use std::collections::{BTreeMap, BTreeSet};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;
use crate::catalog::{
    Agent, Check, CheckKey, Config, Found, Held, Host, Identity, Instance, Kind, Live, News, Node, NodeKey, Outcomes,
    Registration, Registry, Role, ServiceKey, Set, Settings, SourceId, Standing, System, Tagged, Weights,
    health::Status,
};

const AGENT: SourceId = SourceId(2);

/// What two sources say, and two who answer from it: one keeps its answers, the other makes each anew.
struct World {
    rng: StdRng,
    now: Moment,
    said: [Said; 2],
    /// What is held of the agent, if one is followed.
    held: BTreeSet<ServiceKey>,
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
        let said = Default::default();
        Self { rng, now: NOW, said, held: BTreeSet::new(), registry, live, keeping, forgetful }
    }

    fn follow(&mut self) {
        self.registry.follow(AGENT, true, self.now);
        self.hear(News::Datacenters { own: "dc1".into(), others: vec!["dc2".into()] });
        self.hear(News::Standing(Standing::Current));
    }

    fn hear(&mut self, news: News) {
        self.registry.hear(AGENT, news, self.now);
        self.registry.publish_to(&self.live);
    }

    /// Hears of something at random; the agent's source says no other things than these.
    fn hear_of_anything(&mut self) {
        let names = |rng: &mut StdRng| {
            ["web", "db", "consul"].map(str::to_owned).into_iter().filter(|_| rng.random()).collect()
        };
        let of_own = |name: &String| ServiceKey::new(Kind::Service, "dc1", name);
        let rng = &mut self.rng;
        let held = [Held::Followed, Held::Until(NOW + Duration::from_secs(60))];
        let news = match rng.random_range(0..16) {
            0 => {
                let standing =
                    *[Standing::Current, Standing::Current, Standing::Away, Standing::Lost].choose(rng).unwrap();
                if standing == Standing::Lost {
                    self.held.clear();
                }
                News::Standing(standing)
            }
            1 => {
                let listed: Vec<String> = names(rng);
                self.held = listed.iter().map(of_own).collect();
                let mut set = Set::default();
                for key in &self.held {
                    let more = members(key, rng);
                    set.nodes.extend(more.nodes);
                    set.instances.extend(more.instances);
                }
                News::All { set, listed, held: self.held.iter().cloned().collect() }
            }
            2..4 => {
                let (added, mut removed): (Vec<String>, Vec<String>) = (names(rng), names(rng));
                removed.retain(|name| !added.contains(name));
                self.held.retain(|key| !removed.iter().any(|name| *key == of_own(name)));
                News::Listing { added, removed }
            }
            4 => {
                let (put, gone) = (rng.random_range(0..4), rng.random_range(0..4));
                let gone = (gone != put).then(|| NodeKey::new("dc1", &format!("n{gone}")));
                News::Nodes { put: vec![a_node(put, rng).into()], gone: gone.into_iter().collect() }
            }
            5..12 => {
                let key = a_key(rng);
                self.held.insert(key.clone());
                News::Members { set: members(&key, rng), key, held: *held.choose(rng).unwrap() }
            }
            12 => {
                let key = ServiceKey::new(Kind::Query, "dc1", "db");
                self.held.insert(key.clone());
                let Set { nodes, instances } = members(&ServiceKey::new(Kind::Service, "dc1", "db"), rng);
                let instances = nodes.into_iter().zip(instances).collect();
                let found = rng.random_bool(0.8).then(|| Found { service: "db".into(), ttl: None, instances });
                News::Found { key, found, held: held[1] }
            }
            13 => {
                let key = a_key(rng);
                let failed = Held::Failed { until: NOW + Duration::from_secs(60), has_last: self.held.contains(&key) };
                let state = if self.held.contains(&key) { *held.choose(rng).unwrap() } else { failed };
                News::Held(key, if rng.random() { failed } else { state })
            }
            _ => {
                let gone: Vec<ServiceKey> = self.held.iter().filter(|_| rng.random_bool(0.3)).cloned().collect();
                self.held.retain(|key| !gone.contains(key));
                News::Forget(gone)
            }
        };
        self.hear(news);
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
    text += &format!("node_ttl = '{}s'\n[soa]\nmin_ttl = {}\n", rng.random_range(0..3), rng.random_range(0..3));
    if rng.random_bool(0.3) {
        text += "[service.db]\npolicy = 'one'\nhold_down = '1m'\norder = ['n1', 'i2']\n";
    }
    let config: Config = toml::from_str(&text).unwrap();
    config.settings(&Identity::new(&config, &Agent::default(), &System::default()).0)
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

fn a_key(rng: &mut StdRng) -> ServiceKey {
    let kind = *[Kind::Service, Kind::Service, Kind::Connect, Kind::Ingress].choose(rng).unwrap();
    let datacenter = if rng.random_bool(0.8) { "dc1" } else { "dc2" };
    ServiceKey::new(kind, datacenter, ["web", "db"].choose(rng).unwrap())
}

/// Some instances that a key finds, each with its node.
fn members(key: &ServiceKey, rng: &mut StdRng) -> Set {
    let mut set = Set::default();
    for node in 0..3 {
        if rng.random_bool(0.4) {
            continue;
        }
        let instance = an_instance((node, rng.random_range(0..4)), rng);
        let mut registration = Registration::clone(&instance.registration);
        registration.node = NodeKey::new(key.datacenter(), &format!("n{node}"));
        (registration.service, registration.role) = match key.kind() {
            Kind::Connect => ("proxy".into(), Role::Proxy { destination: key.name().into() }),
            Kind::Ingress => ("gateway".into(), Role::Ingress { services: vec![key.name().into()] }),
            _ => (key.name().into(), if rng.random_bool(0.3) { Role::Native } else { Role::Plain }),
        };
        set.nodes.push(Node { datacenter: key.datacenter().into(), ..a_node(node, rng) }.into());
        set.instances.push(Instance { registration: registration.into(), ..instance }.into());
    }
    set
}

/// What a client is told, with all that others are asked for on the way made up.
fn told(bench: &Bench, qname: &str, qtype: Rtype) -> Response {
    let mut next = match bench.ask(qname, qtype) {
        Asked::Reply(received) => return received.response,
        Asked::Joined => panic!("nobody else asks"),
        Asked::Exchange(exchange, job) => Next::Exchange(exchange, job),
        Asked::Wait(pending, job) => Next::Wait(pending, job),
    };
    let (mut is_first, mut has_waited) = (true, false);
    loop {
        next = match next {
            Next::Settled(settled) => return Response::clone(&settled[0].response),
            Next::Wait(_, job) if has_waited => Next::Settled(bench.resolver.abandon(&job, LOST, bench.now)),
            Next::Wait(_, job) => {
                has_waited = true;
                bench.resolver.resume(job, bench.now, &mut rand::rng())
            }
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
    let elsewhere = ["web.service.dc2.consul", "n1.node.dc2.consul", "db.connect.dc2.consul"];
    let others = [
        "consul",
        "alt.test",
        "n0.node.consul",
        "n1.node.dc1.alt.test",
        "n3.node.consul",
        "nowhere.consul",
        "0a000001.addr.consul",
    ];
    let further = ["go.corp.test", "out.site.example"];
    for qname in services.into_iter().chain(mesh).chain(others).chain(elsewhere).chain(further) {
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

fn sister_fails(bench: &Bench, qname: &str, qtype: Rtype) -> bool {
    let sister = match qtype {
        Rtype::A => Rtype::AAAA,
        Rtype::AAAA => Rtype::A,
        _ => return false,
    };
    told(bench, qname, sister).rcode() == Rcode::SERVFAIL
}

/// Has the world change at random, and demands after each change that all who ask are told what holds now.
fn change_and_ask(seeds: std::ops::Range<u64>, begin: fn(&mut World), change: fn(&mut World)) {
    let questions = questions();
    let (mut kept, mut compared) = (0, 0);
    for seed in seeds {
        let mut world = World::new(seed);
        begin(&mut world);
        for step in 0..60 {
            change(&mut world);
            world.forgetful.resolver.cache().flush_all();
            for (qname, qtype) in &questions {
                let was_kept = is_kept(&world.keeping, qname, *qtype);
                let fresh = content(&told(&world.forgetful, qname, *qtype));
                let said = content(&told(&world.keeping, qname, *qtype));
                let place = || format!("{seed}, {step}: {qname} {qtype:?}");
                let is_nodata = fresh.0 == Rcode::NOERROR && fresh.1[0].is_empty();
                if said.0 == Rcode::SERVFAIL && is_nodata && sister_fails(&world.forgetful, qname, *qtype) {
                    // NODATA makes way for the failure of its sister, which the other has forgotten.
                } else if is_kept(&world.forgetful, qname, *qtype) {
                    assert_eq!(said, fresh, "{}", place());
                    compared += 1;
                } else {
                    // A failure, or one of several answers that are as good.
                    assert!(!was_kept, "{}: {said:?} {fresh:?}", place());
                }
                kept += usize::from(was_kept);
            }
        }
    }
    assert!(kept > compared / 2, "most changes void few answers: {kept} of {compared}");
}

#[test]
fn no_kept_answer_outlives_what_it_was_made_of() {
    change_and_ask(0..2, |_| {}, World::change);
}

#[test]
fn no_kept_answer_outlives_what_an_agent_says() {
    change_and_ask(0..2, World::follow, World::hear_of_anything);
}
