use super::*;

/// What Consul 1.8.7 has said of an agent's own node and of an instance registered by hand.
const HEALTH: &str = r#"[{
    "Node": {"ID": "08fd", "Node": "Monitor", "Address": "192.0.2.1", "Datacenter": "dc1",
        "TaggedAddresses": {"lan": "192.0.2.1", "lan_ipv4": "192.0.2.1", "odd": ""},
        "Meta": {"consul-network-segment": ""}, "CreateIndex": 10, "ModifyIndex": 12},
    "Service": {"ID": "web1", "Service": "Web", "Tags": ["v1"], "Address": "2001:db8::1", "Meta": {"k": "v"},
        "Port": 80, "TaggedAddresses": {"wan": {"Address": "198.51.100.1", "Port": 8080}},
        "Weights": {"Passing": 5, "Warning": 70000}, "EnableTagOverride": false,
        "Proxy": {"MeshGateway": {}, "Expose": {}}, "Connect": {}, "CreateIndex": 10, "ModifyIndex": 10},
    "Checks": [
        {"Node": "Monitor", "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": "passing", "Notes": "",
         "Output": "Agent alive and reachable", "ServiceID": "", "ServiceName": "", "ServiceTags": [], "Type": "",
         "Definition": {}, "CreateIndex": 10, "ModifyIndex": 10},
        {"CheckID": "service:web1", "Name": "web", "Status": "warning", "Notes": null, "ServiceID": "web1"},
        {"CheckID": "new", "Name": "new", "Status": "of a later version", "ServiceID": "web1"}
    ]
}]"#;

fn members(kind: Kind) -> What {
    What::Members(ServiceKey::new(kind, "dc2", "a b"))
}

fn entries(body: &str) -> Vec<Entry> {
    match members(Kind::Service).read(body.as_bytes()) {
        Ok(Reply::Members(entries)) => entries,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_instance_is_read_with_its_node_and_checks() {
    let [entry] = &entries(HEALTH)[..] else { panic!() };
    let registration = &entry.registration;
    assert_eq!((&*registration.service, &*registration.id, registration.port), ("Web", "web1", 80));
    assert_eq!(registration.address, Some("2001:db8::1".parse().unwrap()));
    assert_eq!(registration.weights, Weights { passing: 5, warning: 65535 });
    assert_eq!(registration.tagged["wan"].port, 8080);
    assert_eq!((registration.node.datacenter().as_ref(), registration.node.name()), ("dc1", "monitor"));
    assert_eq!((&*entry.node.node.name, entry.node.modified, entry.node.node.tagged.len()), ("Monitor", 12, 2));
    let statuses = |checks: &[Check]| checks.iter().map(|check| check.status).collect::<Vec<_>>();
    assert_eq!(statuses(&entry.node_checks), [Status::Passing]);
    // What is not understood is not taken for health.
    assert_eq!(statuses(&entry.checks), [Status::Warning, Status::Critical]);
}

#[test]
fn roles_and_addresses_are_read_as_they_are_meant() {
    let service = |text: &str| {
        let node = r#"{"Node": "n", "Address": "192.0.2.1", "Datacenter": "dc1"}"#;
        let found = entries(&format!(r#"[{{"Node": {node}, "Service": {{"ID": "s", "Service": "s", {text}}}}}]"#));
        found.into_iter().next().map(|entry| entry.registration)
    };
    for (text, role) in [
        (r#""Port": 1"#, Role::Plain),
        (r#""Tags": null, "Meta": null, "Weights": null, "Connect": null, "Proxy": null, "Kind": null"#, Role::Plain),
        (r#""Connect": {"Native": true}"#, Role::Native),
        (
            r#""Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "web"}"#,
            Role::Proxy { destination: "web".into() },
        ),
        (r#""Kind": "ingress-gateway""#, Role::Ingress { services: vec![] }),
        (r#""Kind": "mesh-gateway", "NewKey": [1]"#, Role::Plain),
    ] {
        assert_eq!(service(text).unwrap().role, role, "{text}");
    }
    assert_eq!(service(r#""Address": """#).unwrap().address, None);
    let name = service(r#""Address": "db.example.org""#).unwrap().address;
    assert_eq!(name, Some(Host::Name("db.example.org".parse().unwrap())));
    assert_eq!(service(r#""Address": "a..b""#), None); // it is not at its node
    assert_eq!(service(r#""Port": -1"#).unwrap().port, 0);
}

#[test]
fn other_replies_are_read() {
    let read = |what: What, body: &str| what.read(body.as_bytes());
    assert_eq!(read(What::Leader, "\"192.0.2.1:8300\"").unwrap(), Reply::Leader(true));
    assert_eq!(read(What::Leader, "\"\"").unwrap(), Reply::Leader(false));
    let services = read(What::Services, r#"{"consul": [], "web": ["v1", "v2"]}"#).unwrap();
    assert_eq!(services, Reply::Services(vec!["consul".into(), "web".into()]));
    let agent =
        r#"{"Config": {"Datacenter": "dc1", "NodeName": "m"}, "DebugConfig": {"DNSDomain": "lab."}, "Stats": {}}"#;
    let expected = Introduction { datacenter: "dc1".into(), node_name: "m".into(), domain: "lab.".into() };
    assert_eq!(read(What::Agent, agent).unwrap(), Reply::Agent(expected));
    let node = r#"{"Node": {"Node": "n", "Address": "192.0.2.1", "Datacenter": "dc2"}, "Services": {}}"#;
    assert!(matches!(read(members(Kind::Node), node).unwrap(), Reply::Node(Some(_))));
    assert_eq!(read(members(Kind::Node), "null").unwrap(), Reply::Node(None));
    for (ttl, expected) in [("10s", Some(10)), ("", None), ("1m30s", Some(90)), ("soon", None)] {
        let body = format!(r#"{{"Service": "web", "Nodes": null, "DNS": {{"TTL": "{ttl}"}}, "Failovers": 0}}"#);
        let Reply::Query(Some(found)) = read(members(Kind::Query), &body).unwrap() else { panic!() };
        assert_eq!((found.ttl, &*found.service, found.entries.len()), (expected, "web", 0));
    }
}

#[test]
fn garbage_is_a_fault_and_a_denial_is_none() {
    let all = [What::Agent, What::Leader, What::Datacenters, What::Services, What::Nodes, members(Kind::Service)];
    for body in ["", "<html>", "{\"a\": [1", "[[]]", "17", "[{\"Node\": 1}]", "\u{0}"] {
        for what in &all {
            assert!(matches!(what.read(body.as_bytes()), Err(Fault::Json(_))), "{what:?} {body}");
        }
    }
    let denial = |kind, status, text: &str| members(kind).read_denial(status, text.as_bytes());
    assert_eq!(denial(Kind::Query, 404, "Query not found"), Some(Reply::Query(None)));
    assert_eq!(denial(Kind::Query, 500, "rpc error: Query not found"), Some(Reply::Query(None)));
    assert_eq!(denial(Kind::Query, 500, "no leader"), None);
    assert_eq!(denial(Kind::Service, 500, ""), None);
    assert_eq!(What::Services.read_denial(404, b""), None);
}

#[test]
fn paths_say_what_is_wanted() {
    let config: Config = toml::from_str("namespace = 'team a'\nwait = '90s'").unwrap();
    let path = members(Kind::Service).path(&config, Some(7));
    assert_eq!(path, "/v1/health/service/a%20b?stale&dc=dc2&ns=team%20a&index=7&wait=90s");
    let config: Config = toml::from_str("stale = false").unwrap();
    assert_eq!(What::Services.path(&config, None), "/v1/catalog/services");
    assert_eq!(members(Kind::Query).path(&config, None), "/v1/query/a%20b/execute?dc=dc2");
    assert_eq!(What::Leader.path(&config, None), "/v1/status/leader");
}
