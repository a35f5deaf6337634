use std::{collections::BTreeMap, net::Ipv4Addr, time::Instant};

use super::*;
use crate::{
    catalog::{Registration, Role, Weights},
    wire::{Class, Question, Rcode, Rtype},
};

const FILES: SourceId = SourceId(0);
const AGENT: SourceId = SourceId(1);

fn check(id: &str, status: Status) -> Check {
    Check { id: id.into(), name: id.into(), notes: "".into(), kind: "".into(), status, output: "".into() }
}

fn node(name: &str, address: [u8; 4]) -> Arc<Node> {
    Arc::new(Node {
        name: name.into(),
        datacenter: "dc1".into(),
        address: Host::Ip(address.into()),
        tagged: BTreeMap::new(),
        meta: BTreeMap::new(),
        checks: vec![check("node", Status::Passing)],
    })
}

fn instance(node: &str, service: &str, port: u16, status: Status) -> Arc<Instance> {
    let registration = Registration {
        node: NodeKey::new("dc1", node),
        id: service.into(),
        service: service.into(),
        tags: Vec::new(),
        address: None,
        port,
        tagged: BTreeMap::new(),
        meta: BTreeMap::new(),
        weights: Weights::default(),
        role: Role::Plain,
    };
    Arc::new(Instance { registration: registration.into(), checks: vec![check(service, status)] })
}

/// Three nodes with an instance each of web and db.
fn set() -> Set {
    let nodes = (1..=3).map(|n| node(&format!("n{n}"), [192, 0, 2, n])).collect();
    let instances =
        (1..=3).flat_map(|n| ["web", "db"].map(|service| instance(&format!("n{n}"), service, 80, Status::Passing)));
    Set { nodes, instances: instances.collect() }
}

fn registry(settings: &str) -> Registry {
    let mut registry = Registry::new(Settings::example(settings));
    registry.publish(FILES, set(), Outcomes::Ours, Moment::default());
    registry
}

fn service_slot(name: &str) -> Slot {
    Slot::of(&ServiceKey::new(Kind::Service, "dc1", name))
}

fn node_slot(name: &str) -> Slot {
    Slot::of(&NodeKey::new("dc1", name))
}

fn address_slot(address: [u8; 4]) -> Slot {
    Slot::of(&IpAddr::from(address))
}

/// The last octets of the addresses that a name has.
fn ask(registry: &Registry, qname: &str) -> Vec<u8> {
    let question = Question { qname: qname.parse().unwrap(), qtype: Rtype::A, qclass: Class::IN };
    let answer = registry.snapshot().answer(&question, 0, 0, Moment::default()).answer().unwrap();
    assert_eq!(answer.rcode == Rcode::NXDOMAIN, answer.answer.is_empty());
    answer.answer.iter().map(|record| record.rdata[3]).collect()
}

fn sorted(mut slots: Vec<Slot>) -> Vec<Slot> {
    slots.sort();
    slots.dedup();
    slots
}

fn flip(registry: &mut Registry, node: &str, service: Option<&str>, status: Status) -> Changes {
    let key = CheckKey {
        node: NodeKey::new("dc1", node),
        service_id: service.map(Into::into),
        check: service.unwrap_or("node").into(),
    };
    registry.set_check(FILES, &key, status, "said", Moment::default())
}

#[test]
fn a_change_names_what_it_voids_and_nothing_else() {
    let mut registry = registry("");
    let version = registry.snapshot().version();

    let changes = flip(&mut registry, "n1", Some("web"), Status::Critical);
    assert_eq!(changes, Changes { version: version + 1, slots: vec![service_slot("web")] });
    assert_eq!(
        (ask(&registry, "web.service.consul"), ask(&registry, "db.service.consul")),
        (vec![2, 3], vec![1, 2, 3])
    );

    // Another output is another snapshot, but no other answer.
    let changes = registry.set_check(
        FILES,
        &CheckKey { node: NodeKey::new("dc1", "n1"), service_id: Some("web".into()), check: "web".into() },
        Status::Critical,
        "more",
        Moment::default(),
    );
    assert_eq!(changes, Changes { version: version + 2, slots: vec![] });
    let snapshot = registry.snapshot();
    let web = snapshot.service(&ServiceKey::new(Kind::Service, "dc1", "web")).unwrap();
    assert_eq!(&*web.instances[0].checks[0].output, "more");

    // Nothing new, or nothing known: nothing changes.
    assert_eq!(flip(&mut registry, "n2", Some("db"), Status::Passing).slots, []);
    assert_eq!(flip(&mut registry, "n9", Some("db"), Status::Passing), Changes { version: version + 3, slots: vec![] });

    // A node's check counts for all that is on it.
    let changes = flip(&mut registry, "n2", None, Status::Critical);
    assert_eq!(changes.slots, sorted(vec![service_slot("web"), service_slot("db"), node_slot("n2")]));
    assert_eq!((ask(&registry, "web.service.consul"), ask(&registry, "db.service.consul")), (vec![3], vec![1, 3]));
}

#[test]
fn a_source_publishes_complete_sets() {
    let mut registry = registry("");
    let version = registry.snapshot().version();
    let again = registry.publish(FILES, set(), Outcomes::Ours, Moment::default());
    assert_eq!(again, Changes { version, slots: vec![] }, "the same is no change");

    let mut smaller = set();
    smaller.nodes.pop();
    smaller.instances.retain(|instance| instance.registration.node.name() != "n3");
    smaller.nodes[0] = node("n1", [192, 0, 2, 9]);
    let changes = registry.publish(FILES, smaller, Outcomes::Ours, Moment::default());
    let mut expected = vec![service_slot("web"), service_slot("db"), node_slot("n1"), node_slot("n3")];
    expected.extend([1, 3, 9].map(|octet| address_slot([192, 0, 2, octet])));
    assert_eq!(changes.slots, sorted(expected));
    assert_eq!(ask(&registry, "web.service.consul"), [9, 2]);
    assert!(ask(&registry, "n3.node.consul").is_empty());

    registry.publish(FILES, Set::default(), Outcomes::Ours, Moment::default());
    assert!(ask(&registry, "web.service.consul").is_empty());
    let snapshot = registry.snapshot();
    assert_eq!((snapshot.nodes().count(), snapshot.services().count()), (0, 0));
    assert!(registry.members.is_empty() && registry.on_node.is_empty() && registry.snapshot.holders.is_empty());
}

#[test]
fn outcomes_of_our_own_checks_outlive_a_new_set() {
    let mut registry = registry("");
    flip(&mut registry, "n1", Some("web"), Status::Critical);
    flip(&mut registry, "n2", None, Status::Warning);
    let changes = registry.publish(FILES, set(), Outcomes::Ours, Moment::default());
    assert_eq!((changes.slots, ask(&registry, "web.service.consul")), (vec![], vec![2, 3]));
    // Another registration with the same check keeps its outcome too.
    let mut other = set();
    other.instances[0] = instance("n1", "web", 81, Status::Passing);
    registry.publish(FILES, other, Outcomes::Ours, Moment::default());
    assert_eq!(ask(&registry, "web.service.consul"), [2, 3]);
    registry.publish(FILES, set(), Outcomes::Published, Moment::default());
    assert_eq!(ask(&registry, "web.service.consul"), [1, 2, 3]);
}

#[test]
fn of_two_sources_the_first_is_believed() {
    let mut registry = registry("");
    let mut theirs = set();
    theirs.nodes[0] = node("n1", [192, 0, 2, 99]);
    theirs.instances[0] = instance("n1", "web", 1, Status::Critical);
    theirs.instances.push(instance("n3", "only", 1, Status::Passing));
    let changes = registry.publish(AGENT, theirs, Outcomes::Published, Moment::default());
    assert_eq!(changes.slots, [service_slot("only")]);
    assert_eq!((ask(&registry, "web.service.consul"), ask(&registry, "only.service.consul")), (vec![1, 2, 3], vec![3]));

    registry.publish(FILES, Set::default(), Outcomes::Ours, Moment::default());
    assert_eq!(ask(&registry, "web.service.consul"), [2, 3], "now the second has the word");
    assert_eq!(ask(&registry, "n1.node.consul"), [99]);
}

#[test]
fn one_service_can_be_published_alone() {
    let mut registry = registry("");
    let key = ServiceKey::new(Kind::Service, "dc1", "web");
    let alone =
        Set { nodes: vec![node("n4", [192, 0, 2, 4])], instances: vec![instance("n4", "web", 1, Status::Passing)] };
    let changes = registry.publish_service(FILES, &key, alone, Outcomes::Published, Moment::default());
    assert_eq!(changes.slots, sorted(vec![service_slot("web"), node_slot("n4"), address_slot([192, 0, 2, 4])]));
    assert_eq!((ask(&registry, "web.service.consul"), ask(&registry, "db.service.consul")), (vec![4], vec![1, 2, 3]));
}

#[test]
fn a_part_leaves_the_rest_as_it_is() {
    let mut registry = registry("");
    let key = |node: &str, id: &str| InstanceKey { node: NodeKey::new("dc1", node), id: id.into() };
    let part = Part {
        nodes: vec![node("n4", [192, 0, 2, 4])],
        instances: vec![instance("n4", "web", 1, Status::Passing)],
        gone: vec![key("n1", "web"), key("n9", "none")],
    };
    let changes = registry.publish_part(FILES, part, Outcomes::Ours, Moment::default());
    assert_eq!(changes.slots, sorted(vec![service_slot("web"), node_slot("n4"), address_slot([192, 0, 2, 4])]));
    assert_eq!(
        (ask(&registry, "web.service.consul"), ask(&registry, "db.service.consul")),
        (vec![2, 3, 4], vec![1, 2, 3])
    );
    // It is a part of all that the source says, and of nothing that another does.
    let part = Part { gone: vec![key("n2", "web")], ..Part::default() };
    assert_eq!(registry.publish_part(AGENT, part, Outcomes::Published, Moment::default()).slots, []);
    registry.publish(AGENT, Set::default(), Outcomes::Published, Moment::default());
    assert_eq!(ask(&registry, "web.service.consul"), [2, 3, 4]);
    registry.publish(FILES, Set::default(), Outcomes::Ours, Moment::default());
    assert!(ask(&registry, "web.service.consul").is_empty() && registry.held[&FILES].instances.is_empty());
}

#[test]
fn an_address_keeps_its_name_while_any_has_it() {
    let mut registry = Registry::new(Settings::example(""));
    let with_address = |node: &str| {
        let plain = instance(node, "web", 1, Status::Passing);
        let address = Some(Host::Ip([192, 0, 2, 50].into()));
        let registration = Registration { address, ..Registration::clone(&plain.registration) };
        Arc::new(Instance { registration: registration.into(), checks: Vec::new() })
    };
    let publish = |registry: &mut Registry, instances: Vec<Arc<Instance>>| {
        registry.publish(FILES, Set { nodes: vec![], instances }, Outcomes::Ours, Moment::default());
        registry.snapshot().holder([192, 0, 2, 50].into()).is_some()
    };
    assert!(publish(&mut registry, vec![with_address("a"), with_address("b")]));
    assert!(publish(&mut registry, vec![with_address("b")]));
    assert!(!publish(&mut registry, vec![]));
}

#[test]
fn a_policy_is_kept_from_change_to_change_and_woken_when_due() {
    let at = |second: u64| Moment::from_millis(1_000_000 + second * 1000);
    let settings = "service.web = { policy = \"one\", order = [\"n1\"], hold_down = \"30s\" }";
    let mut registry = Registry::new(Settings::example(settings));
    registry.publish(FILES, set(), Outcomes::Ours, at(0));
    assert_eq!((ask(&registry, "web.service.consul"), ask(&registry, "db.service.consul")), (vec![1], vec![1, 2, 3]));
    let flip = |registry: &mut Registry, node: &str, status, now| {
        let key = CheckKey { node: NodeKey::new("dc1", node), service_id: None, check: "node".into() };
        registry.set_check(FILES, &key, status, "", now)
    };
    flip(&mut registry, "n1", Status::Critical, at(1));
    assert_eq!(ask(&registry, "web.service.consul"), [2]);
    flip(&mut registry, "n1", Status::Passing, at(10));
    registry.publish(FILES, set(), Outcomes::Ours, at(11)); // a reload moves nothing
    registry.reconfigure(Settings::example(settings), at(12));
    assert_eq!((ask(&registry, "web.service.consul"), registry.wake()), (vec![2], Some(at(40))));
    assert_eq!(registry.tick(at(39)).slots, []);
    assert_eq!(registry.tick(at(40)).slots, [service_slot("web")]);
    assert_eq!((ask(&registry, "web.service.consul"), registry.wake()), (vec![1], None));

    // An operator takes the node out.
    let mut maintained = set();
    let mut out = Node::clone(&maintained.nodes[0]);
    out.checks.push(check("_node_maintenance", Status::Critical));
    maintained.nodes[0] = out.into();
    registry.publish(FILES, maintained, Outcomes::Ours, at(50));
    assert_eq!(ask(&registry, "web.service.consul"), [2]);
    // The policy goes, and all are back.
    let changes = registry.reconfigure(Settings::example(""), at(60));
    assert_eq!((ask(&registry, "web.service.consul"), changes.slots.len()), (vec![2, 3], super::super::SLOTS));
}

#[test]
fn what_is_taken_back_moves_no_writer() {
    let at = |second: u64| Moment::from_millis(1_000_000 + second * 1000);
    let settings = "service.web = { policy = \"one\", order = [\"n2\", \"n1\", \"n3\"] }";
    let mut registry = Registry::new(Settings::example(settings));
    registry.publish(FILES, set(), Outcomes::Ours, at(0));
    assert_eq!(ask(&registry, "web.service.consul"), [2]);
    let key =
        |node: &str| CheckKey { node: NodeKey::new("dc1", node), service_id: Some("web".into()), check: "web".into() };
    let fail = |registry: &mut Registry, node: &str, now| {
        registry.set_check(FILES, &key(node), Status::Critical, "no answer", now);
        ask(registry, "web.service.consul")
    };
    assert_eq!(fail(&mut registry, "n3", at(1)), [2], "long before, by itself");
    // An outage, which the checks notice one by one.
    assert_eq!((fail(&mut registry, "n2", at(100)), fail(&mut registry, "n1", at(104))), (vec![1], vec![]));
    let before = ["n1", "n2"].map(|node| (key(node), Status::Passing, "ok".into()));
    let changes = registry.roll_back(FILES, &before, at(100), at(105));
    assert_eq!((ask(&registry, "web.service.consul"), changes.slots), (vec![2], vec![service_slot("web")]));
    assert_eq!(registry.wake(), None, "nobody is waiting to take over");
    assert_eq!(
        registry.roll_back(FILES, &before, at(100), at(106)).slots,
        [],
        "there is nothing to take back any more"
    );

    // Both are lost at the same moment: none of them is given for a moment, nor has it been.
    let now_lost = ["n1", "n2"].map(|node| (key(node), Status::Critical, "no answer".into()));
    registry.set_checks(FILES, &now_lost, at(200));
    assert!(ask(&registry, "web.service.consul").is_empty());
    registry.set_checks(FILES, &before, at(201));
    assert_eq!(ask(&registry, "web.service.consul"), [2], "the last keeps its claim");
}

/// Counted anew, by looking at everything.
fn count(snapshot: &Snapshot) -> Tally {
    let mut tally = Tally::default();
    for (_, node) in snapshot.nodes() {
        node.checks.iter().for_each(|check| tally.checks[check.status as usize] += 1);
    }
    for instance in snapshot.services().flat_map(|(_, service)| &service.instances) {
        tally.instances[snapshot.status(instance) as usize] += 1;
        instance.checks.iter().for_each(|check| tally.checks[check.status as usize] += 1);
    }
    tally
}

#[test]
fn what_is_counted_is_what_is_there() {
    let mut registry = registry("service.web = { policy = \"one\" }");
    assert_eq!(registry.snapshot().tally(), Tally { instances: [6, 0, 0, 0], checks: [9, 0, 0, 0] });
    let mut theirs = set();
    theirs.nodes.push(node("n4", [192, 0, 2, 4]));
    theirs.instances.push(instance("n4", "web", 80, Status::Warning));
    theirs.instances.push(instance("n5", "unknown node", 80, Status::Critical));
    let mut fewer = set();
    fewer.nodes.pop();
    fewer.instances.drain(2..);
    type Step = Box<dyn Fn(&mut Registry)>;
    let steps: [Step; 8] = [
        Box::new(|registry| drop(flip(registry, "n1", Some("web"), Status::Critical))),
        Box::new(|registry| drop(flip(registry, "n1", None, Status::Warning))),
        Box::new(move |registry| {
            registry.publish(AGENT, theirs.clone(), Outcomes::Published, Moment::default());
        }),
        Box::new(|registry| drop(flip(registry, "n2", None, Status::Critical))),
        Box::new(|registry| {
            let gone = vec![InstanceKey { node: NodeKey::new("dc1", "n2"), id: "db".into() }];
            registry.publish_part(FILES, Part { gone, ..Part::default() }, Outcomes::Ours, Moment::default());
        }),
        Box::new(move |registry| {
            registry.publish(FILES, fewer.clone(), Outcomes::Ours, Moment::default());
        }),
        Box::new(|registry| {
            registry.reconfigure(Settings::example("datacenter = \"dc2\""), Moment::default());
        }),
        Box::new(|registry| {
            registry.publish(AGENT, Set::default(), Outcomes::Published, Moment::default());
            registry.publish(FILES, Set::default(), Outcomes::Published, Moment::default());
            assert_eq!(registry.snapshot().tally(), Tally::default());
        }),
    ];
    for (number, step) in steps.iter().enumerate() {
        step(&mut registry);
        let snapshot = registry.snapshot();
        assert_eq!(snapshot.tally(), count(&snapshot), "after step {number}");
    }
}

#[test]
fn another_datacenter_has_other_names_for_its_addresses() {
    let mut registry = registry("datacenter = \"dc2\"");
    assert!(registry.snapshot().holder(Ipv4Addr::new(192, 0, 2, 1).into()).is_none());
    registry.reconfigure(Settings::example(""), Moment::default());
    assert!(registry.snapshot().holder(Ipv4Addr::new(192, 0, 2, 1).into()).is_some());
}

/// DESIGN: 10,000 services of 10 instances are there in a second, and a change costs what it changes.
#[test]
fn a_change_costs_what_it_touches() {
    let nodes = (0..100).map(|n| node(&format!("n{n}"), [10, 0, 0, n])).collect();
    let instances = (0..10_000).flat_map(|service| {
        (0..10).map(move |n| instance(&format!("n{}", (service + n) % 100), &format!("s{service}"), 1, Status::Passing))
    });
    let set = Set { nodes, instances: instances.collect() };
    let mut registry = Registry::new(Settings::example(""));
    let begin = Instant::now();
    registry.publish(FILES, set, Outcomes::Ours, Moment::default());
    let built = begin.elapsed();
    let held = registry.snapshot();
    let begin = Instant::now();
    for round in 0..1000 {
        let status = if round % 2 == 0 { Status::Critical } else { Status::Passing };
        flip(&mut registry, &format!("n{}", round % 100), Some(&format!("s{}", round % 100)), status);
    }
    let flipped = begin.elapsed() / 1000;
    assert_eq!(held.service(&ServiceKey::new(Kind::Service, "dc1", "s0")).unwrap().instances.len(), 10);
    assert!(flipped * 1000 < built, "a change costs like building all");
}

/// The status of an instance `n9 new` whose check of this kind is undeclared, after its first result is awaited.
fn begun(registry: &mut Registry, kind: &str, ids: &[&str]) -> Status {
    let checks = ids.iter().map(|id| Check { kind: kind.into(), ..check(id, Status::Unknown) }).collect();
    let registration = instance("n9", "new", 80, Status::Passing).registration.clone();
    let key =
        |id: &&str| CheckKey { node: NodeKey::new("dc1", "n9"), service_id: Some("new".into()), check: (*id).into() };
    let first: Vec<Status> = ids.iter().map(|id| registry.first_status(&key(id), None, kind == "ttl")).collect();
    let known = service_status(registry);
    let part = Part { instances: vec![Instance { registration, checks }.into()], ..Part::default() };
    registry.publish_part(FILES, part, Outcomes::Ours, Moment::default());
    let status = service_status(registry).unwrap();
    if known.is_none() {
        assert_eq!(first.into_iter().max(), Some(status), "the runner is told the same");
    }
    status
}

fn service_status(registry: &Registry) -> Option<Status> {
    let snapshot = registry.snapshot();
    let service = snapshot.service(&ServiceKey::new(Kind::Service, "dc1", "new"))?;
    Some(snapshot.status(&service.instances[0]))
}

#[test]
fn a_check_without_result_is_unknown_but_counts_nothing_where_all_is_well() {
    let result = |registry: &mut Registry, id: &str, status| {
        let key = CheckKey { node: NodeKey::new("dc1", "n9"), service_id: Some("new".into()), check: id.into() };
        registry.set_check(FILES, &key, status, "said", Moment::default());
        service_status(registry)
    };
    let mut registry = registry("");
    assert_eq!(begun(&mut registry, "tcp", &["a"]), Status::Unknown);
    assert_eq!(begun(&mut registry, "tcp", &["a", "b"]), Status::Unknown);
    assert_eq!(result(&mut registry, "a", Status::Passing), Some(Status::Unknown), "b is awaited");
    assert_eq!(result(&mut registry, "b", Status::Passing), Some(Status::Passing));
    // A check that is added to a healthy instance counts from its first result on.
    assert_eq!(begun(&mut registry, "tcp", &["a", "b", "c"]), Status::Passing);
    assert_eq!(begun(&mut registry, "ttl", &["a", "b", "c", "d"]), Status::Critical, "unless nobody finds it out");
    assert_eq!(begun(&mut registry, "ttl", &["a", "b", "c"]), Status::Passing);
    assert_eq!(result(&mut registry, "c", Status::Critical), Some(Status::Critical));
    // One that takes the place of a failing check does not make the instance healthy.
    assert_eq!(begun(&mut registry, "tcp", &["a", "b", "e"]), Status::Unknown);
    assert_eq!(result(&mut registry, "a", Status::Critical), Some(Status::Critical));
    assert_eq!(result(&mut registry, "e", Status::Passing), Some(Status::Critical));

    let mut fresh = Registry::new(Settings::example(""));
    assert_eq!(begun(&mut fresh, "ttl", &["a"]), Status::Critical, "nobody has said that it lives, as in Consul");
}

#[test]
fn a_check_that_is_added_to_a_healthy_node_counts_from_its_first_result() {
    let mut registry = registry("");
    let with = |status| {
        let node = node("n1", [192, 0, 2, 1]);
        let checks = vec![check("node", Status::Passing), check("disk", status)];
        Part { nodes: vec![Node { checks, ..Node::clone(&node) }.into()], ..Part::default() }
    };
    registry.publish_part(FILES, with(Status::Unknown), Outcomes::Ours, Moment::default());
    assert_eq!(ask(&registry, "web.service.consul"), [1, 2, 3]);
    let disk = CheckKey { node: NodeKey::new("dc1", "n1"), service_id: None, check: "disk".into() };
    registry.set_check(FILES, &disk, Status::Critical, "full", Moment::default());
    assert_eq!(ask(&registry, "web.service.consul"), [2, 3]);
    // A declared status is a result.
    let mut declared = Registry::new(Settings::example(""));
    declared.publish(FILES, set(), Outcomes::Ours, Moment::default());
    declared.publish_part(FILES, with(Status::Critical), Outcomes::Ours, Moment::default());
    assert_eq!(ask(&declared, "web.service.consul"), [2, 3]);
}
