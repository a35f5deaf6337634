use super::*;
use crate::catalog::{Check, Registration, Weights, health::Status};

fn known(name: &str, address: [u8; 4], modified: u64) -> Known {
    let node = Node {
        name: name.into(),
        datacenter: "dc1".into(),
        address: crate::catalog::Host::Ip(address.into()),
        tagged: Default::default(),
        meta: Default::default(),
        checks: Vec::new(),
    };
    Known { node, modified }
}

fn entry(node: Known, service: &str, status: Status, role: Role) -> Entry {
    let check =
        Check { id: "serf".into(), name: "".into(), notes: "".into(), status, output: "".into(), kind: "".into() };
    let registration = Registration {
        node: node.node.key(),
        id: service.into(),
        service: service.into(),
        tags: Vec::new(),
        address: None,
        port: 1,
        tagged: Default::default(),
        meta: Default::default(),
        weights: Weights::default(),
        role,
    };
    Entry { node, node_checks: vec![check], registration, checks: Vec::new() }
}

fn key(kind: Kind, name: &str) -> ServiceKey {
    ServiceKey::new(kind, "dc1", name)
}

/// The status of the node in a response for a service.
fn hear(mirror: &mut Mirror, service: &str, index: u64, status: Status) -> Status {
    let entry = entry(known("n", [192, 0, 2, 1], 1), service, status, Role::Plain);
    mirror.members(&key(Kind::Service, service), index, vec![entry]).nodes[0].status()
}

#[test]
fn checks_of_a_node_from_a_response_that_was_overtaken_are_no_news() {
    let mut mirror = Mirror::default();
    assert_eq!(hear(&mut mirror, "a", 10, Status::Passing), Status::Passing);
    assert_eq!(hear(&mut mirror, "b", 12, Status::Critical), Status::Critical);
    assert_eq!(hear(&mut mirror, "a", 11, Status::Passing), Status::Critical);
    assert_eq!(hear(&mut mirror, "a", 13, Status::Passing), Status::Passing);
    // After a reset small indexes are the latest.
    mirror.reset_indexes();
    assert_eq!(hear(&mut mirror, "a", 1, Status::Critical), Status::Critical);
}

#[test]
fn of_two_descriptions_of_a_node_the_later_counts() {
    let mut mirror = Mirror::default();
    hear(&mut mirror, "a", 10, Status::Warning);
    let (put, gone) = mirror.nodes("dc1", 20, vec![known("n", [192, 0, 2, 9], 15)]);
    assert_eq!((put.len(), gone.len()), (1, 0));
    // The list knows no checks, but they stay.
    assert_eq!((put[0].address.ip(), put[0].status()), (Some([192, 0, 2, 9].into()), Status::Warning));
    let set = mirror.members(
        &key(Kind::Service, "a"),
        21,
        vec![entry(known("n", [192, 0, 2, 1], 1), "a", Status::Passing, Role::Plain)],
    );
    assert_eq!(set.nodes[0].address.ip(), Some([192, 0, 2, 9].into()));
    assert_eq!(mirror.nodes("dc1", 22, vec![known("n", [192, 0, 2, 9], 15)]), (vec![], vec![]));
}

#[test]
fn a_node_that_came_after_the_list_was_made_is_not_missing_there() {
    let mut mirror = Mirror::default();
    let new = entry(known("new", [192, 0, 2, 1], 30), "a", Status::Passing, Role::Plain);
    mirror.members(&key(Kind::Service, "a"), 30, vec![new]);
    assert_eq!(mirror.nodes("dc1", 29, vec![]), (vec![], vec![]));
    assert_eq!(mirror.nodes("dc2", 40, vec![]), (vec![], vec![])); // of another datacenter
    assert_eq!(mirror.nodes("dc1", 31, vec![]), (vec![], vec![NodeKey::new("dc1", "new")]));
}

#[test]
fn a_gateway_is_bound_to_all_services_that_say_so() {
    let mut mirror = Mirror::default();
    let gateway =
        || vec![entry(known("n", [192, 0, 2, 1], 1), "gate", Status::Passing, Role::Ingress { services: vec![] })];
    let services = |set: &Set| match &set.instances[0].registration.role {
        Role::Ingress { services } => services.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(services(&mirror.members(&key(Kind::Ingress, "a"), 1, gateway())), ["a"]);
    assert_eq!(services(&mirror.members(&key(Kind::Ingress, "b"), 2, gateway())), ["a", "b"]);
    assert_eq!(services(&mirror.members(&key(Kind::Service, "gate"), 2, gateway())), ["a", "b"]);
    // It is no longer bound to a: then it is not gone, but has changed.
    assert_eq!(services(&mirror.members(&key(Kind::Ingress, "a"), 3, vec![])), ["b"]);
    assert!(mirror.members(&key(Kind::Ingress, "b"), 4, vec![]).instances.is_empty());
}
