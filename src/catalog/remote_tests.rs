use std::{collections::BTreeMap, net::Ipv4Addr};

use super::*;
use crate::{
    catalog::{
        Check, Host, Registration, Role, Said, Settings, Verdict, Weights,
        health::Status::{self, Critical, Passing},
    },
    wire::{Class, Question, Rcode, Rtype},
};

const FILES: SourceId = SourceId(0);
const AGENT: SourceId = SourceId(2);

fn node(datacenter: &str, name: &str) -> Arc<Node> {
    Arc::new(Node {
        name: name.into(),
        datacenter: datacenter.into(),
        address: Host::Ip([192, 0, 2, 1].into()),
        tagged: BTreeMap::new(),
        meta: BTreeMap::new(),
        checks: Vec::new(),
    })
}

fn set(datacenter: &str, service: &str, statuses: &[Status], meta: &[(&str, &str)]) -> Set {
    let instance = |(number, status): (usize, &Status)| {
        let registration = Registration {
            node: NodeKey::new(datacenter, "n"),
            id: format!("{service}{number}").into(),
            service: service.into(),
            tags: Vec::new(),
            address: Some(Host::Ip(Ipv4Addr::new(10, 0, 0, number as u8).into())),
            port: 80,
            tagged: BTreeMap::new(),
            meta: meta.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            weights: Weights::default(),
            role: Role::Plain,
        };
        let check = Check {
            id: "c".into(),
            name: "".into(),
            notes: "".into(),
            status: *status,
            output: "".into(),
            kind: "".into(),
        };
        Arc::new(Instance { registration: registration.into(), checks: vec![check] })
    };
    Set { nodes: vec![node(datacenter, "n")], instances: statuses.iter().enumerate().map(instance).collect() }
}

fn key(kind: Kind, datacenter: &str, name: &str) -> ServiceKey {
    ServiceKey::new(kind, datacenter, name)
}

fn service(name: &str) -> ServiceKey {
    key(Kind::Service, "dc1", name)
}

/// A catalog that follows an agent, at a moment.
struct Catalog {
    registry: Registry,
    now: Moment,
}

impl Catalog {
    fn new(settings: &str) -> Self {
        let mut registry = Registry::new(Settings::example(settings));
        let now = Moment::from_millis(1_000_000);
        registry.follow(AGENT, true, now);
        Self { registry, now }
    }

    /// One that knows the datacenters dc1 and dc2 and the services web, db and idle, and follows web.
    fn current(settings: &str) -> Self {
        let mut catalog = Self::new(settings);
        let listed = ["web", "db", "idle"].map(str::to_owned).to_vec();
        let held = vec![service("web")];
        catalog.hear(News::Datacenters { own: "DC1".into(), others: vec!["dc2".into()] });
        catalog.hear(News::All { set: set("dc1", "web", &[Passing, Critical], &[]), listed, held });
        catalog.hear(News::Standing(Standing::Current));
        catalog
    }

    fn hear(&mut self, news: News) {
        self.registry.hear(AGENT, news, self.now);
    }

    fn fetch(&mut self, key: ServiceKey, set: Set) {
        self.hear(News::Members { key, set, held: Held::Until(self.now + Duration::from_secs(1)) });
    }

    fn ask(&self, text: &str) -> Said {
        let (qname, qtype) = text.split_once(' ').unwrap_or((text, "A"));
        let qtype = match qtype {
            "A" => Rtype::A,
            "SRV" => Rtype::SRV,
            other => panic!("{other}"),
        };
        let question = Question { qname: qname.parse().unwrap(), qtype, qclass: Class::IN };
        self.registry.snapshot().answer(&question, 1, 0, self.now)
    }

    fn say(&self, text: &str) -> String {
        match self.ask(text).verdict {
            Verdict::Answer(answer) if answer.rcode == Rcode::NXDOMAIN => "NXDOMAIN".to_owned(),
            Verdict::Answer(answer) => format!("{} records", answer.answer.len()),
            Verdict::Pass => "pass".to_owned(),
            Verdict::Wait(key) => format!("wait {:?} {} {}", key.kind(), key.datacenter(), key.name()),
            Verdict::Forward => "forward".to_owned(),
            Verdict::Fail(_) => "fail".to_owned(),
            Verdict::Await(awaited) => format!("await {}", awaited.service.name()),
            Verdict::NotReady => "not ready".to_owned(),
        }
    }

    /// The slots of a question that are void since it was asked.
    fn voids(&mut self, name: &str, change: impl FnOnce(&mut Self)) -> bool {
        let (live, _) = crate::catalog::Live::new(self.registry.snapshot());
        self.registry.publish_to(&live);
        let (said, version) = (self.ask(name), self.registry.snapshot().version());
        change(self);
        self.registry.publish_to(&live);
        assert!(!said.slots.is_empty());
        said.slots.iter().any(|slot| live.last_change(slot.index()) > version)
    }
}

#[test]
fn a_question_is_answered_from_what_is_held_and_else_put_to_the_agent() {
    let mut catalog = Catalog::current("");
    for (name, expected) in [
        ("web.service.consul", "1 records"),
        ("web.service.dc1.consul SRV", "1 records"),
        ("no.service.consul", "NXDOMAIN"), // the list is complete
        ("db.service.consul", "wait Service dc1 db"),
        ("v1.db.service.consul", "wait Service dc1 db"),
        ("web.connect.consul", "wait Connect dc1 web"), // of those there is no list
        ("web.ingress.consul", "wait Ingress dc1 web"),
        ("q.query.consul", "wait Query dc1 q"),
        ("web.service.dc2.consul", "wait Service dc2 web"),
        ("web.service.dc3.consul", "NXDOMAIN"), // nobody knows it
        ("q.query.dc3.consul", "NXDOMAIN"),
        ("n.node.consul", "1 records"),
        ("x.node.consul", "NXDOMAIN"),
        ("n.node.dc2.consul", "wait Node dc2 n"),
        ("db.virtual.consul", "wait Service dc1 db"),
        ("c0000201.addr.consul", "1 records"),
        ("nonsense.consul", "NXDOMAIN"),
        ("consul", "0 records"),
        ("1.2.0.192.in-addr.arpa", "0 records"), // a node has it, and PTR is not asked for
        ("9.2.0.192.in-addr.arpa", "pass"),
        ("www.example", "pass"),
    ] {
        assert_eq!(catalog.say(name), expected, "{name}");
    }
    catalog.fetch(service("db"), set("dc1", "db", &[Passing; 3], &[]));
    catalog.fetch(service("idle"), Set::default());
    catalog.fetch(key(Kind::Service, "dc2", "web"), set("dc2", "web", &[Passing; 2], &[]));
    catalog.fetch(key(Kind::Node, "dc2", "n"), Set { nodes: vec![node("dc2", "n")], instances: vec![] });
    catalog.fetch(key(Kind::Node, "dc2", "x"), Set::default());
    for (name, expected) in [
        ("db.service.consul", "3 records"),
        ("idle.service.consul", "NXDOMAIN"),
        ("web.service.dc2.consul", "2 records"),
        ("n.node.dc2.consul", "1 records"),
        ("x.node.dc2.consul", "NXDOMAIN"),
    ] {
        assert_eq!(catalog.say(name), expected, "{name}");
    }
}

#[test]
fn an_answer_says_until_when_it_holds() {
    let mut catalog = Catalog::current("");
    catalog.fetch(service("db"), set("dc1", "db", &[Passing], &[]));
    let until = |catalog: &Catalog, name: &str| catalog.ask(name).until.map(|until| until.since(catalog.now));
    assert_eq!(until(&catalog, "web.service.consul"), Some(NOTICE)); // so that it is known that it is asked for
    assert_eq!(until(&catalog, "db.service.consul"), Some(Duration::from_secs(1)));
    assert_eq!(until(&catalog, "no.service.consul"), None);
    assert_eq!(until(&catalog, "n.node.consul"), None);
    catalog.now = catalog.now + Duration::from_secs(1);
    assert_eq!(catalog.say("db.service.consul"), "wait Service dc1 db");
    // The agent cannot say: what it said last is said a little longer.
    let until_then = catalog.now + Duration::from_secs(1);
    catalog.hear(News::Held(service("db"), Held::Failed { until: until_then, has_last: true }));
    assert_eq!(catalog.say("db.service.consul"), "1 records");
    catalog.hear(News::Held(service("idle"), Held::Failed { until: until_then, has_last: false }));
    assert_eq!(catalog.say("idle.service.consul"), "forward");
    catalog.now = catalog.now + Duration::from_secs(1);
    assert_eq!(catalog.say("idle.service.consul"), "wait Service dc1 idle");
}

#[test]
fn while_the_agent_is_away_what_was_held_is_said_and_once_it_is_lost_nothing() {
    let mut catalog = Catalog::current("[service.idle]\npolicy = 'one'");
    assert_eq!(Catalog::new("").say("web.service.consul"), "forward"); // never heard of
    assert_eq!(Catalog::new("[service.web]\npolicy = 'one'").say("web.service.consul"), "fail");
    catalog.fetch(service("db"), set("dc1", "db", &[Passing; 2], &[("watershed-policy", "one")]));
    catalog.hear(News::Standing(Standing::Away));
    catalog.now = catalog.now + Duration::from_secs(60);
    for (name, expected) in [
        ("web.service.consul", "1 records"),
        ("db.service.consul", "1 records"),
        ("idle.service.consul", "fail"), // not held, and under a policy
        ("no.service.consul", "NXDOMAIN"),
        ("n.node.consul", "1 records"),
        ("q.query.consul", "forward"),
        ("web.service.dc2.consul", "forward"),
    ] {
        assert_eq!(catalog.say(name), expected, "{name}");
    }
    catalog.hear(News::Standing(Standing::Lost));
    for (name, expected) in [
        ("web.service.consul", "forward"),
        ("db.service.consul", "fail"), // its policy stood in its meta
        ("idle.service.consul", "fail"),
        ("no.service.consul", "forward"),
        ("n.node.consul", "forward"),
        ("nonsense.consul", "NXDOMAIN"),
        ("1.2.0.192.in-addr.arpa", "pass"),
    ] {
        assert_eq!(catalog.say(name), expected, "{name}");
    }
    // What another source knows is not lost with it.
    let mut of_files = set("dc1", "web", &[Passing; 4], &[]);
    of_files.nodes = vec![node("dc1", "own")];
    catalog.registry.publish(FILES, of_files, Outcomes::Published, catalog.now);
    assert_eq!(catalog.say("web.service.consul"), "4 records");
    assert_eq!(catalog.say("own.node.consul"), "1 records");
    // And it is as before once it is back.
    let held = vec![service("web")];
    catalog.hear(News::Datacenters { own: "dc1".into(), others: vec![] });
    catalog.hear(News::All { set: Set::default(), listed: vec!["web".into()], held });
    catalog.hear(News::Standing(Standing::Current));
    assert_eq!(catalog.say("web.service.consul"), "4 records");
    catalog.registry.follow(AGENT, false, catalog.now);
    assert_eq!(catalog.say("q.query.consul"), "NXDOMAIN");
}

#[test]
fn a_query_is_answered_as_the_agent_has_executed_it() {
    let mut catalog = Catalog::current("service_ttl = { web = '7s' }");
    let found = |ttl: Option<u32>, statuses: &[Status]| {
        let set = set("dc2", "Web", statuses, &[]);
        let instances = set.instances.into_iter().rev().map(|instance| (set.nodes[0].clone(), instance));
        Found { service: "Web".into(), ttl, instances: instances.collect() }
    };
    let held = Held::Until(catalog.now + Duration::from_secs(1));
    let hear = |catalog: &mut Catalog, found: Option<Found>| {
        catalog.hear(News::Found { key: key(Kind::Query, "dc1", "q"), found, held });
    };
    hear(&mut catalog, Some(found(None, &[Passing, Critical, Passing])));
    let said = catalog.ask("q.query.consul");
    assert!(said.until.is_some() && said.shape.rotating.is_empty());
    let answer = said.answer().unwrap();
    // Its order is that of the agent, and its choice, too.
    let last = |record: &crate::wire::Record| *record.rdata.last().unwrap();
    assert_eq!(answer.answer.iter().map(last).collect::<Vec<_>>(), [2, 1, 0]);
    assert!(answer.answer.iter().all(|record| record.ttl == 7));
    let targets = catalog.ask("q.query.consul SRV").answer().unwrap();
    assert_eq!((targets.answer.len(), targets.additional.len()), (3, 3));
    hear(&mut catalog, Some(found(Some(3), &[Passing])));
    assert_eq!(catalog.ask("_q._tcp.query.consul").answer().unwrap().answer[0].ttl, 3);
    hear(&mut catalog, Some(found(None, &[])));
    assert_eq!(catalog.say("q.query.consul"), "NXDOMAIN");
    hear(&mut catalog, None);
    assert_eq!(catalog.say("q.query.consul"), "NXDOMAIN");
}

#[test]
fn each_change_voids_the_answers_that_it_makes_wrong() {
    let mut catalog = Catalog::current("");
    let later = Held::Until(catalog.now + Duration::from_secs(1));
    assert!(!catalog.voids("web.service.consul", |catalog| {
        catalog.hear(News::Members {
            key: service("web"),
            set: set("dc1", "web", &[Passing, Critical], &[]),
            held: Held::Followed,
        });
    }));
    assert!(catalog.voids("web.service.consul", |catalog| {
        catalog.hear(News::Members {
            key: service("web"),
            set: set("dc1", "web", &[Passing; 2], &[]),
            held: Held::Followed,
        });
    }));
    assert!(catalog.voids("new.service.consul", |catalog| {
        catalog.hear(News::Listing { added: vec!["New".into()], removed: vec![] });
    }));
    assert_eq!(catalog.say("new.service.consul"), "wait Service dc1 new");
    // It is followed no more, so what is kept of it must be good for a moment only.
    assert!(catalog.voids("web.service.consul", |catalog| catalog.hear(News::Held(service("web"), later))));
    assert!(catalog.voids("web.service.consul", |catalog| {
        catalog.hear(News::Listing { added: vec![], removed: vec!["web".into()] });
    }));
    assert_eq!(catalog.say("web.service.consul"), "NXDOMAIN");
    assert!(catalog.voids("no.service.consul", |catalog| catalog.hear(News::Standing(Standing::Away))));
    assert!(catalog.voids("x.node.consul", |catalog| {
        catalog.hear(News::Nodes { put: vec![node("dc1", "x")], gone: vec![] });
    }));
    assert!(catalog.voids("x.node.consul", |catalog| {
        catalog.hear(News::Nodes { put: vec![], gone: vec![NodeKey::new("dc1", "x")] });
    }));
    assert!(catalog.voids("web.service.dc3.consul", |catalog| {
        catalog.hear(News::Datacenters { own: "dc1".into(), others: vec!["dc3".into()] });
    }));
}

#[test]
fn nodes_and_services_of_an_agent_stay_when_what_nobody_asks_for_is_forgotten() {
    let mut catalog = Catalog::current("");
    catalog.fetch(key(Kind::Service, "dc2", "web"), set("dc2", "web", &[Passing], &[]));
    catalog.fetch(key(Kind::Node, "dc2", "n"), Set { nodes: vec![node("dc2", "n")], instances: vec![] });
    catalog.hear(News::Forget(vec![key(Kind::Node, "dc2", "n"), key(Kind::Connect, "dc1", "no")]));
    assert_eq!(catalog.say("n.node.dc2.consul"), "wait Node dc2 n");
    assert_eq!(catalog.say("web.service.dc2.consul"), "1 records");
    catalog.hear(News::Forget(vec![key(Kind::Service, "dc2", "web")]));
    assert_eq!(catalog.say("web.service.dc2.consul"), "wait Service dc2 web");
    assert_eq!(catalog.say("web.service.consul"), "1 records");
}

#[test]
fn what_is_held_by_another_name_stays_when_one_is_forgotten() {
    let mut catalog = Catalog::current("");
    let mut proxies = set("dc1", "db", &[Passing], &[]);
    let mut registration = Registration::clone(&proxies.instances[0].registration);
    registration.role = Role::Proxy { destination: "web".into() };
    proxies.instances =
        vec![Arc::new(Instance { registration: registration.into(), checks: proxies.instances[0].checks.clone() })];
    let connect = key(Kind::Connect, "dc1", "web");
    catalog.hear(News::Members { key: service("db"), set: proxies.clone(), held: Held::Followed });
    catalog.fetch(connect.clone(), proxies);
    assert_eq!([catalog.say("db.service.consul"), catalog.say("web.connect.consul")], ["1 records", "1 records"]);
    catalog.hear(News::Forget(vec![connect.clone()]));
    assert_eq!(catalog.say("db.service.consul"), "1 records");
    assert_eq!(catalog.say("web.connect.consul"), "wait Connect dc1 web");
    catalog.hear(News::Forget(vec![service("db")]));
    assert!(catalog.registry.snapshot().service(&connect).is_none(), "nothing holds it any more");
}
