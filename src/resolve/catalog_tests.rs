//! Answers of the catalog, kept until what they were made of changes.

use std::collections::BTreeMap;

use super::*;
use crate::catalog::{
    Agent, Check, CheckKey, Config, Host, Identity, Instance, Live, Node, NodeKey, Outcomes, Registration, Registry,
    Role, Set, SourceId, System, Weights, health::Status,
};

const SOURCE: SourceId = SourceId(0);

/// A catalog with nodes of one instance each of `web` and of `db`, and whoever answers from it.
struct Cluster {
    registry: Registry,
    live: Arc<Live>,
    bench: Bench,
}

impl Cluster {
    fn new(nodes: u8) -> Self {
        let config: Config = toml::from_str("address = \"192.0.2.200\"\nnode_name = \"own\"").unwrap();
        let identity = Identity::new(&config, &Agent::default(), &System::default()).unwrap();
        let registry = Registry::new(config.settings(&identity));
        let (live, _) = Live::new(registry.snapshot());
        let live = Arc::new(live);
        let reverse = rule("'2.0.192.in-addr.arpa'", "192.0.2.53", 0);
        let forwards = rules().forwards.into_iter().chain([reverse]).collect();
        let bench = Bench::new(Rules { catalog: Some(live.clone()), forwards, ..rules() });
        let mut cluster = Self { registry, live, bench };
        cluster.publish(nodes);
        cluster
    }

    fn publish(&mut self, nodes: u8) {
        let instance = |node: u8, service: &str| {
            let check = |id: &str| Check {
                id: id.into(),
                name: id.into(),
                notes: "".into(),
                kind: "".into(),
                status: Status::Passing,
                output: "".into(),
            };
            let registration = Registration {
                node: NodeKey::new("dc1", &format!("n{node}")),
                id: service.into(),
                service: service.into(),
                tags: Vec::new(),
                address: None,
                port: 80,
                tagged: BTreeMap::new(),
                meta: BTreeMap::new(),
                weights: Weights::default(),
                role: Role::Plain,
            };
            Arc::new(Instance { registration: registration.into(), checks: vec![check(service)] })
        };
        let node = |number: u8| {
            Arc::new(Node {
                name: format!("n{number}").into(),
                datacenter: "dc1".into(),
                address: Host::Ip([192, 0, 2, number].into()),
                tagged: BTreeMap::new(),
                meta: BTreeMap::new(),
                checks: Vec::new(),
            })
        };
        let nodes = 1..=nodes;
        let instances = nodes.clone().flat_map(|number| [instance(number, "web"), instance(number, "db")]).collect();
        let set = Set { nodes: nodes.map(node).collect(), instances };
        self.registry.publish(SOURCE, set, Outcomes::Published, NOW);
        self.registry.publish_to(&self.live);
    }

    fn set_check(&mut self, node: &str, service: &str, status: Status) {
        let key = CheckKey { node: NodeKey::new("dc1", node), service_id: Some(service.into()), check: service.into() };
        self.registry.set_check(SOURCE, &key, status, "", NOW);
        self.registry.publish_to(&self.live);
    }

    /// The last octets of the addresses in the answer.
    fn addresses(&self, qname: &str) -> Vec<u8> {
        let answers = answers(&self.bench.ask(qname, Rtype::A).reply());
        answers.iter().map(|record| *record.rdata.last().unwrap()).collect()
    }

    fn sorted(&self, qname: &str) -> Vec<u8> {
        let mut addresses = self.addresses(qname);
        addresses.sort_unstable();
        addresses
    }

    fn is_kept(&self, qname: &str, qtype: Rtype) -> bool {
        let question = question(qname, qtype);
        let key = Key::new(question.qname.wire(), qtype, Class::IN, Variant::default());
        let tables = self.bench.resolver.tables();
        let holds = |found: crate::cache::Found<'_>| tables.hold(found.marks);
        self.bench.resolver.cache().find(&key, self.bench.now, tables.epoch(), holds).unwrap_or(false)
    }
}

#[test]
fn an_answer_is_kept_until_a_check_of_its_own_changes() {
    let mut cluster = Cluster::new(3);
    assert_eq!(cluster.sorted("web.service.consul"), [1, 2, 3]);
    assert_eq!(cluster.sorted("db.service.consul"), [1, 2, 3]);
    cluster.bench.pass(1_000_000);
    let is_kept = |cluster: &Cluster| ["web", "db"].map(|s| cluster.is_kept(&format!("{s}.service.consul"), Rtype::A));
    assert_eq!(is_kept(&cluster), [true, true], "with TTL 0, however long ago");
    cluster.set_check("n2", "web", Status::Critical);
    assert_eq!(is_kept(&cluster), [false, true]);
    assert_eq!(cluster.sorted("web.service.consul"), [1, 3]);
    assert_eq!(is_kept(&cluster), [true, true]);
}

#[test]
fn a_denial_is_kept_until_the_name_comes_into_being() {
    let mut cluster = Cluster::new(0);
    assert_eq!(cluster.bench.ask("web.service.consul", Rtype::A).reply().rcode(), Rcode::NXDOMAIN);
    assert!(cluster.is_kept("web.service.consul", Rtype::A));
    cluster.publish(1);
    assert_eq!(cluster.sorted("web.service.consul"), [1]);
}

#[test]
fn each_instance_comes_first_in_replies_from_the_cache() {
    let cluster = Cluster::new(10);
    let mut first = [0; 11];
    for _ in 0..2000 {
        first[usize::from(cluster.addresses("web.service.consul")[0])] += 1;
    }
    assert!(cluster.is_kept("web.service.consul", Rtype::A));
    // 200 each; that one is this far off happens once in billions of runs.
    assert!(first[1..].iter().all(|count| (100..300).contains(count)), "{first:?}");
}

#[test]
fn an_address_that_others_named_is_asked_of_the_catalog_once_it_has_it() {
    let mut cluster = Cluster::new(1);
    let qname = "2.2.0.192.in-addr.arpa";
    let ptr = |target: &str| Record::new(name(qname), Rtype::PTR, 300, name(target).wire());
    let said = cluster.bench.forwarded(qname, Rtype::PTR, &[ptr("old.example")]);
    assert_eq!(answers(&said), [ptr("old.example")]);
    assert!(cluster.is_kept(qname, Rtype::PTR));
    cluster.publish(2);
    let target = answers(&cluster.bench.ask(qname, Rtype::PTR).reply())[0].target();
    assert_eq!(target, "n2.node.dc1.consul".parse().ok());
}

#[test]
fn another_catalog_voids_all_that_one_said() {
    let cluster = Cluster::new(2);
    cluster.sorted("web.service.consul");
    let other = Cluster::new(1);
    cluster.bench.swap(Rules { catalog: Some(other.live.clone()), ..rules() }, 2);
    assert_eq!(cluster.sorted("web.service.consul"), [1]);
    cluster.bench.swap(Rules { catalog: Some(other.live.clone()), ..rules() }, 3);
    assert_eq!(cluster.bench.resolver.retire(NOW), 0, "the same catalog, in other tables");
}

#[test]
fn a_name_without_one_type_waits_for_its_sister_that_is_open() {
    let cluster = Cluster::new(1);
    // The sister was asked of upstreams, before the catalog had the name.
    let party = super::super::inflight::Party {
        key: Key::new(name("web.service.consul").wire(), Rtype::A, Class::IN, Variant::default()),
        is_loopback: true,
        epoch: Epoch(1),
    };
    let waiter = || Waiter {
        asker: crate::wire::Query::parse(&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1])
            .unwrap()
            .asker(LOCAL.size),
        question: Default::default(),
        way: Way::Datagram { listener: 0, peer: "127.0.0.1:9".parse().unwrap(), local: None },
    };
    cluster.bench.resolver.inflight.join(&party, NOW, Some(waiter), |_| None::<()>);
    let Asked::Wait(_, job) = cluster.bench.ask("web.service.consul", Rtype::AAAA) else { panic!("an answer") };
    assert!(settled(cluster.bench.resolver.resume(job, NOW, &mut rand::rng())).is_empty(), "it is held back");
}
