//! Answers of the catalog, kept until what they were made of changes.

use std::collections::BTreeMap;

use super::*;
use crate::catalog::{
    Agent, Check, CheckKey, Config, Held, Host, Identity, Instance, Kind, Live, News, Node, NodeKey, Outcomes,
    Registration, Registry, Role, ServiceKey, Set, SourceId, Standing, System, Weights, health::Status,
};

const SOURCE: SourceId = SourceId(0);
const AGENT: SourceId = SourceId(2);

fn idle() -> ServiceKey {
    ServiceKey::new(Kind::Service, "dc1", "idle")
}

/// A catalog with nodes of one instance each of `web` and of `db`, and whoever answers from it.
struct Cluster {
    registry: Registry,
    live: Arc<Live>,
    bench: Bench,
}

impl Cluster {
    fn new(nodes: u8) -> Self {
        let config: Config = toml::from_str("address = \"192.0.2.200\"\nnode_name = \"own\"").unwrap();
        let identity = Identity::new(&config, &Agent::default(), &System::default()).0;
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

    /// Follows an agent that has the service `idle`, of which nothing is held.
    fn follow(&mut self) {
        self.registry.follow(AGENT, true, NOW);
        self.hear(News::Datacenters { own: "dc1".into(), others: Vec::new() });
        self.hear(News::All { set: Set::default(), listed: vec!["idle".into()], held: Vec::new() });
        self.hear(News::Standing(Standing::Current));
    }

    fn hear(&mut self, news: News) {
        self.registry.hear(AGENT, news, NOW);
        self.registry.publish_to(&self.live);
    }

    /// Hears that there is an instance of `idle`.
    fn hear_of_idle(&mut self) {
        let set = Set { nodes: vec![node(1)], instances: vec![instance(1, "idle")] };
        self.hear(News::Members { key: idle(), set, held: Held::Followed });
    }

    fn ask_and_wait(&self, qname: &str) -> Box<Job> {
        let Asked::Wait(_, job) = self.bench.ask(qname, Rtype::A) else { panic!("nothing to wait for") };
        job
    }

    fn resume(&self, job: Box<Job>) -> Response {
        settled(self.bench.resolver.resume(job, self.bench.now, &mut rand::rng())).remove(0).0
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

fn node(number: u8) -> Arc<Node> {
    Arc::new(Node {
        name: format!("n{number}").into(),
        datacenter: "dc1".into(),
        address: Host::Ip([192, 0, 2, number].into()),
        tagged: BTreeMap::new(),
        meta: BTreeMap::new(),
        checks: Vec::new(),
    })
}

fn instance(node: u8, service: &str) -> Arc<Instance> {
    let check = Check {
        id: service.into(),
        name: service.into(),
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
    Arc::new(Instance { registration: registration.into(), checks: vec![check] })
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
    let key = Key::new(name("web.service.consul").wire(), Rtype::A, Class::IN, Variant::default());
    let party = super::super::inflight::Party::new(&key, LOCAL, Epoch(1));
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

#[test]
fn an_address_that_a_built_in_zone_denied_is_asked_of_the_catalog_once_it_has_it() {
    let mut cluster = Cluster::new(1);
    let qname = "7.0.0.10.in-addr.arpa";
    assert_eq!(cluster.bench.ask(qname, Rtype::PTR).reply().rcode(), Rcode::NXDOMAIN);
    assert!(cluster.is_kept(qname, Rtype::PTR));
    let mut private = Node::clone(&node(7));
    private.address = Host::Ip([10, 0, 0, 7].into());
    let set = Set { nodes: vec![private.into()], instances: Vec::new() };
    cluster.registry.publish(SourceId(1), set, Outcomes::Published, NOW);
    cluster.registry.publish_to(&cluster.live);
    let target = answers(&cluster.bench.ask(qname, Rtype::PTR).reply())[0].target();
    assert_eq!(target, "n7.node.dc1.consul".parse().ok());
}

#[test]
fn an_answer_that_was_waited_for_is_kept() {
    let mut cluster = Cluster::new(1);
    cluster.follow();
    let job = cluster.ask_and_wait("idle.service.consul");
    cluster.hear_of_idle();
    assert_eq!(answers(&cluster.resume(job)).len(), 1);
    assert!(cluster.is_kept("idle.service.consul", Rtype::A));
}

#[test]
fn a_failure_is_remembered_though_an_answer_that_is_void_was_kept() {
    let mut cluster = Cluster::new(1);
    cluster.follow();
    cluster.hear_of_idle();
    assert_eq!(cluster.sorted("idle.service.consul"), [1]);
    cluster.hear(News::Forget(vec![idle()]));
    let job = cluster.ask_and_wait("idle.service.consul");
    cluster.bench.pass(4000);
    assert_eq!(cluster.resume(job).rcode(), Rcode::SERVFAIL);
    // Whoever asks now does not wait as well.
    assert_eq!(cluster.bench.ask("idle.service.consul", Rtype::A).reply().rcode(), Rcode::SERVFAIL);
    cluster.hear_of_idle();
    assert_eq!(cluster.sorted("idle.service.consul"), [1]);
}

#[test]
fn what_is_said_for_lack_of_results_holds_until_they_are_there() {
    let mut cluster = Cluster::new(0);
    let mut unknown = Instance::clone(&instance(1, "web"));
    unknown.checks[0].status = Status::Unknown;
    let set = Set { nodes: vec![node(1)], instances: vec![unknown.into()] };
    cluster.registry.publish(SOURCE, set, Outcomes::Ours, cluster.bench.now);
    cluster.registry.publish_to(&cluster.live);
    let job = cluster.ask_and_wait("web.service.consul");
    cluster.bench.pass(2000);
    let late = cluster.resume(job);
    // Option 15 holds the code (RFC 8914 §2).
    assert_eq!((late.rcode(), &late.extended_errors()[4..6]), (Rcode::SERVFAIL, &[0, 14][..]));
    // Nobody waits again, and nobody is told that for longer than it is true.
    assert_eq!(cluster.bench.ask("web.service.consul", Rtype::A).reply().rcode(), Rcode::SERVFAIL);
    cluster.set_check("n1", "web", Status::Passing);
    assert_eq!(cluster.addresses("web.service.consul"), [1]);
}

#[tokio::test]
async fn who_waits_for_results_goes_on_once_they_are_there() {
    let mut cluster = Cluster::new(0);
    let unknown = |number, id: &str| {
        let mut unknown = Instance::clone(&instance(number, "web"));
        unknown.checks[0] = Check { status: Status::Unknown, id: id.into(), ..unknown.checks[0].clone() };
        unknown.into()
    };
    let set = Set { nodes: vec![node(1), node(2)], instances: vec![unknown(1, "web"), unknown(2, "web")] };
    cluster.registry.publish(SOURCE, set, Outcomes::Ours, Moment::now());
    cluster.registry.publish_to(&cluster.live);
    let key = ServiceKey::new(Kind::Service, "dc1", "web");
    let awaited = cluster.live.load().awaited(&key, None, Moment::now()).unwrap();
    let mut told = cluster.live.await_results(awaited.clone());
    let open = tokio::sync::oneshot::error::TryRecvError::Empty;
    cluster.set_check("n1", "web", Status::Passing);
    assert_eq!(told.try_recv(), Err(open), "one of two is not enough");
    cluster.set_check("n2", "web", Status::Critical);
    assert!(told.await.is_err(), "it has ended");
    // Who comes too late for the news does not wait for it.
    assert!(cluster.live.await_results(awaited).await.is_err());
}
