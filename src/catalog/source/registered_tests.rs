use serde::Deserialize;

use super::*;
use crate::catalog::{
    Config,
    check::{Declaration, Scripts},
    model::Node,
    source::{file::Scope, value::Value},
};

fn service(text: &str) -> Result<NewService, Refused> {
    NewService::read(text)
}

fn put(registered: &mut Registered, text: &str) -> BTreeSet<Owner> {
    registered.put_service(service(text).unwrap(), OtherChecks::Keep, &Files::default()).unwrap()
}

fn put_check(registered: &mut Registered, text: &str) -> Result<BTreeSet<Owner>, Refused> {
    registered.put_check(NewCheck::read(text).unwrap(), &Files::default())
}

fn own_node() -> Node {
    Identity::of(&Config::default()).node()
}

/// What is in the catalog: `ID: CHECK=STATUS ...`, and first the node.
fn show(registered: &Registered, files: &Files<Definition>) -> Vec<String> {
    let node = own_node();
    let key = node.key();
    let mut set = Set { nodes: vec![node.into()], instances: Vec::new() };
    registered.join(files, &key, &mut set);
    let line = |id: &str, checks: &[Check]| {
        let checks = checks.iter().map(|check| format!(" {}={}", check.id, check.status));
        format!("{id}:{}", checks.collect::<String>())
    };
    let nodes = set.nodes.iter().map(|node| line("", &node.checks));
    nodes.chain(set.instances.iter().map(|instance| line(&instance.registration.id, &instance.checks))).collect()
}

fn owners(ids: &[&str]) -> BTreeSet<Owner> {
    ids.iter().map(|id| Some(Arc::from(*id)).filter(|id: &Arc<str>| !id.is_empty())).collect()
}

#[test]
fn what_is_no_definition_is_refused_in_consuls_words() {
    for (text, expected) in [
        ("", "Request decode failed: "),
        ("nonsense", "Request decode failed: "),
        (r#"{"Port": 8}"#, "Missing service name"),
        (r#"{"Name": "a", "Unknown": 8}"#, r#"Request decode failed: json: unknown field "Unknown""#),
        (r#"{"Name": "a", "Port": "8"}"#, "Request decode failed: "),
        (r#"{"Name": "a", "Address": "0.0.0.0"}"#, "Invalid service address"),
        (r#"{"Name": "a", "Address": "a:8"}"#, "Invalid service: "),
        (r#"{"Name": "a", "Check": {"Name": "c"}}"#, "Invalid check: "),
        (r#"{"Name": "a", "Check": {"TCP": "a:1"}}"#, "Invalid check: "),
        (r#"{"Name": "a", "Check": {"TTL": "bad"}}"#, "Invalid check: "),
        (r#"{"Name": "a", "Check": {"TTL": "1s", "Unheard": 1}}"#, "Invalid check: "),
    ] {
        let refused = service(text).unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{text}: {refused}");
    }
    for (text, expected) in [
        (r#"{"TTL": "1h"}"#, "Missing check name"),
        (r#"{"CheckID": "c", "TTL": "1h"}"#, "Missing check name"),
        (r#"{"Name": "c"}"#, "Invalid check: "),
    ] {
        let refused = NewCheck::read(text).unwrap_err().to_string();
        assert!(refused.starts_with(expected), "{text}: {refused}");
    }
}

#[test]
fn no_registration_runs_a_program() {
    for check in [
        r#"{"Args": ["true"], "Interval": "1s"}"#,
        r#"{"ScriptArgs": ["true"], "Interval": "1s"}"#,
        r#"{"script_args": ["true"], "interval": "1s"}"#,
        r#"{"Script": "true", "Interval": "1s"}"#,
        r#"{"TTL": "1s", "SCRIPT": "true"}"#,
        r#"{"HTTP": "http://127.0.0.1/", "Interval": "1s", "args": "true"}"#,
    ] {
        for body in [r#"{"Name": "a", "Check": @}"#, r#"{"Name": "a", "Checks": [{"TTL": "1s"}, @]}"#] {
            assert_eq!(service(&body.replace('@', check)).unwrap_err(), Refused::Script, "{check}");
        }
        let body = check.replacen('{', r#"{"Name": "c", "#, 1);
        assert_eq!(NewCheck::read(&body).unwrap_err(), Refused::Script, "{check}");
        // What is restored is read by the same rule.
        let saved = format!(r#"{{"Version": 1, "Services": [], "Checks": [{body}], "Maintenance": []}}"#);
        let (registered, faults) = Registered::restore(saved.as_bytes());
        assert_eq!((registered.units.len(), faults.len()), (0, 1));
    }
}

#[test]
fn checks_come_and_go_with_their_services() {
    let mut registered = Registered::default();
    let none = Files::default();
    put(
        &mut registered,
        r#"{"Name": "web", "Checks": [{"TTL": "1s"}, {"TTL": "2s", "CheckID": "own", "Status": "passing"}]}"#,
    );
    assert_eq!(show(&registered, &none), [":", "web: own=passing service:web:1=unknown"]);
    put(&mut registered, r#"{"Name": "web", "Check": {"TTL": "1s"}}"#);
    assert_eq!(show(&registered, &none), [":", "web: own=passing service:web=unknown service:web:1=unknown"]);
    let again = service(r#"{"Name": "web", "Check": {"TTL": "1s"}}"#).unwrap();
    registered.put_service(again, OtherChecks::Drop, &none).unwrap();
    assert_eq!(show(&registered, &none), [":", "web: service:web=unknown"]);

    let refused = put_check(&mut registered, r#"{"Name": "c", "TTL": "1s", "ServiceID": "none"}"#).unwrap_err();
    assert_eq!(refused.to_string(), r#"ServiceID "none" does not exist"#);
    put_check(&mut registered, r#"{"Name": "c", "TTL": "1s"}"#).unwrap();
    assert_eq!(show(&registered, &none), [": c=unknown", "web: service:web=unknown"]);
    // The id of a check is unique on its node.
    let moved = put_check(&mut registered, r#"{"Name": "c", "TTL": "1s", "ServiceID": "web"}"#).unwrap();
    assert_eq!((moved, &*show(&registered, &none)[1]), (owners(&["", "web"]), "web: c=unknown service:web=unknown"));
    assert_eq!(registered.remove_check("c", &none).unwrap(), owners(&["web"]));
    assert_eq!(registered.remove_service("web", &none).unwrap(), owners(&["web"]));
    assert_eq!(registered.remove_service("web", &none).unwrap(), owners(&[]));
    assert_eq!((show(&registered, &none).len(), registered.bytes), (1, 0));
    assert!(registered.units.is_empty() && registered.owners.is_empty());
}

#[test]
fn what_is_registered_again_as_it_was_changes_nothing() {
    let mut registered = Registered::default();
    let none = Files::default();
    let body = r#"{"Name": "web", "Check": {"TTL": "1s"}}"#;
    assert_eq!(put(&mut registered, body), owners(&["web"]));
    assert_eq!(put(&mut registered, body), owners(&[]));
    put_check(&mut registered, r#"{"Name": "c", "TTL": "1s", "ServiceID": "web"}"#).unwrap();
    assert_eq!(put(&mut registered, body), owners(&[]));
    let again = || service(body).unwrap();
    assert_eq!(registered.put_service(again(), OtherChecks::Drop, &none).unwrap(), owners(&["web"]), "c goes");
    assert_eq!(registered.put_service(again(), OtherChecks::Drop, &none).unwrap(), owners(&[]));
    assert_eq!(put(&mut registered, &body.replace("1s", "2s")), owners(&["web"]));
}

#[test]
fn maintenance_is_a_critical_check() {
    let mut registered = Registered::default();
    let none = Files::default();
    let web = || Some(Arc::from("web"));
    let refused = registered.maintain(web(), Some(""), &none).unwrap_err();
    assert_eq!(refused.to_string(), r#"No service registered with ID "web""#);
    put(&mut registered, r#"{"Name": "web"}"#);
    registered.maintain(web(), Some(""), &none).unwrap();
    registered.maintain(None, Some("why"), &none).unwrap();
    assert_eq!(show(&registered, &none), [": _node_maintenance=critical", "web: _service_maintenance:web=critical"]);
    let (restored, faults) = Registered::restore(&registered.save());
    assert_eq!((show(&restored, &none), faults), (show(&registered, &none), vec![]));
    registered.maintain(web(), None, &none).unwrap();
    registered.maintain(None, None, &none).unwrap();
    assert_eq!(show(&registered, &none), [":", "web:"]);
}

#[test]
fn a_file_outranks_a_registration_as_long_as_it_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let text =
        r#"{"services": [{"name": "web", "check": {"id": "c", "ttl": "1s"}}], "check": {"id": "n", "ttl": "1s"}}"#;
    std::fs::write(folder.path().join("web.json"), text).unwrap();
    let define = |value: &Value| Ok(Declaration::deserialize(value).unwrap().define(Scripts::Refused).unwrap());
    let files = Files::load(folder.path(), 1 << 20, None, Scope::All, &crate::files::Copies::default(), &define).files;
    let none = Files::default();

    let mut registered = Registered::default();
    let web = || service(r#"{"Name": "web", "Check": {"CheckID": "r", "TTL": "1s"}}"#).unwrap();
    let refused = registered.put_service(web(), OtherChecks::Keep, &files).unwrap_err();
    assert_eq!(refused, Refused::ServiceOfFile("web".into()));
    assert!(refused.to_string().contains("change the file"));
    assert_eq!(registered.remove_service("web", &files), Err(Refused::ServiceOfFile("web".into())));
    assert_eq!(registered.remove_check("n", &files), Err(Refused::CheckOfFile("n".into())));
    let taken = service(r#"{"Name": "api", "Check": {"CheckID": "n", "TTL": "1s"}}"#).unwrap();
    assert_eq!(registered.put_service(taken, OtherChecks::Keep, &files), Err(Refused::CheckOfFile("n".into())));

    // A check may join a service of a file, and waits for it while the file is away.
    registered.put_check(NewCheck::read(r#"{"Name": "x", "TTL": "1s", "ServiceID": "web"}"#).unwrap(), &files).unwrap();
    let running = |registered: &Registered, files| {
        let identity = Identity::of(&Config::default());
        registered.definitions(files, &identity).map(|(key, _)| key.check.to_string()).collect::<Vec<_>>()
    };
    assert_eq!((running(&registered, &files), running(&registered, &none)), (vec!["x".to_owned()], vec![]));
    let mut set = files.set(&Identity::of(&Config::default()));
    registered.join(&files, &own_node().key(), &mut set);
    assert_eq!(set.instances[0].checks.iter().map(|check| &*check.id).collect::<Vec<_>>(), ["c", "x"]);

    // One that was there before the file stands back.
    let mut registered = Registered::default();
    registered.put_service(web(), OtherChecks::Keep, &none).unwrap();
    assert_eq!((show(&registered, &files), running(&registered, &files)), (vec![":".to_owned()], vec![]));
    assert_eq!(show(&registered, &none), [":", "web: r=unknown"]);
}

#[test]
fn what_is_saved_is_restored_as_it_was() {
    let mut registered = Registered::default();
    put(
        &mut registered,
        r#"{"ID": "web1", "Name": "web", "Tags": ["a"], "Port": 80, "Address": "192.0.2.1", "Meta": {"k": "v"},
            "Weights": {"Passing": 5, "Warning": 1}, "TaggedAddresses": {"lan": {"Address": "192.0.2.2", "Port": 1}},
            "Check": {"HTTP": "http://192.0.2.1/", "Interval": "10s", "Header": {"X-A": ["b"]}, "Notes": "n"},
            "Checks": null, "EnableTagOverride": false}"#,
    );
    put_check(&mut registered, r#"{"ID": "alive", "Name": "alive", "TTL": "30s", "Status": "passing"}"#).unwrap();
    let saved = registered.save();
    let (restored, faults) = Registered::restore(&saved);
    assert_eq!(faults, Vec::<String>::new());
    assert_eq!(restored.save(), saved);
    assert_eq!(restored.bytes, registered.bytes);
    let [before, after] = [&registered, &restored].map(|registered| {
        let key = own_node().key();
        let mut set = Set { nodes: vec![own_node().into()], instances: Vec::new() };
        registered.join(&Files::default(), &key, &mut set);
        (set.nodes, set.instances)
    });
    assert_eq!(before, after);
    assert_eq!(before.1[0].checks[0].name, "Service 'web' check".into());
}

#[test]
fn of_what_is_damaged_the_good_is_kept() {
    let mut registered = Registered::default();
    put(&mut registered, r#"{"Name": "a"}"#);
    put(&mut registered, r#"{"Name": "b"}"#);
    let saved = String::from_utf8(registered.save()).unwrap();
    for (damaged, services, faults) in [
        (saved.replace(r#""b""#, "7"), 1, 1),
        (saved.replace(r#""Version": 1"#, r#""Version": 2"#), 2, 1),
        (saved[..saved.len() / 2].to_owned(), 0, 1),
        ("{}".to_owned(), 0, 1),
        ("[1]".to_owned(), 0, 1),
        (String::new(), 0, 1),
        ("\u{0}\u{0}".to_owned(), 0, 1),
    ] {
        let (restored, found) = Registered::restore(damaged.as_bytes());
        assert_eq!((restored.units.len(), found.len()), (services, faults), "{damaged}: {found:?}");
    }
}

#[test]
fn there_is_an_end_to_what_may_be_registered() {
    let mut registered = Registered::default();
    let body = |number: usize| format!(r#"{{"Name": "s{number}", "Meta": {{"k": "{}"}}}}"#, "v".repeat(1 << 20));
    let put = |registered: &mut Registered, number| {
        registered.put_service(service(&body(number)).unwrap(), OtherChecks::Keep, &Files::default())
    };
    let most = (0..).find(|number| put(&mut registered, *number).is_err()).unwrap();
    assert_eq!(most, 31);
    assert_eq!(put(&mut registered, 40).unwrap_err(), Refused::Full);
    registered.drop_service("s1");
    put(&mut registered, 40).unwrap(); // What replaces something takes only what it is longer.
    let changed = service(&body(40).replace("Meta", "Tags\": [], \"Meta")).unwrap();
    registered.put_service(changed, OtherChecks::Keep, &Files::default()).unwrap();
    let shorter = service(r#"{"Name": "s40", "Tags": ["t"]}"#).unwrap();
    registered.put_service(shorter, OtherChecks::Keep, &Files::default()).unwrap();
}

#[test]
fn a_sidecar_comes_and_goes_with_its_service() {
    let mut registered = Registered::default();
    let with = r#"{"Name": "a", "ID": "a1", "Port": 80, "Connect": {"SidecarService": {}}}"#;
    assert_eq!(put(&mut registered, with), owners(&["a1", "a1-sidecar-proxy"]));
    assert_eq!(put(&mut registered, with), owners(&[]), "nothing new");
    put(&mut registered, r#"{"Name": "b", "Connect": {"SidecarService": {"Check": {"TTL": "1h"}}}}"#);
    put(&mut registered, r#"{"Name": "c-sidecar-proxy", "Port": 21002}"#);
    put(&mut registered, r#"{"Name": "c"}"#);
    put(&mut registered, r#"{"Name": "d", "Connect": {"SidecarService": {}}}"#);
    let (restored, faults) = Registered::restore(&registered.save());
    assert_eq!(faults, Vec::<String>::new());
    for mut registered in [registered, restored] {
        let port = |id: &str| registered.units[&Some(Arc::from(id))].service.as_ref().unwrap().read.port;
        assert_eq!((port("a1-sidecar-proxy"), port("b-sidecar-proxy"), port("d-sidecar-proxy")), (21000, 21001, 21003));
        let shown = show(&registered, &Files::default());
        let sidecar = "service:a1-sidecar-proxy:";
        assert!(
            shown.iter().any(|line| line.contains(&format!("{sidecar}1=")) && line.contains(&format!("{sidecar}2=")))
        );
        let gone = registered.remove_service("a1", &Files::default()).unwrap();
        assert_eq!(gone, owners(&["a1", "a1-sidecar-proxy"]));
        // What was registered by itself stays.
        assert_eq!(registered.remove_service("c", &Files::default()).unwrap(), owners(&["c"]));
        assert!(registered.units.contains_key(&Some("c-sidecar-proxy".into())));
    }
    for (text, expected) in [
        (r#"{"Name": "a", "Connect": {"SidecarService": {"ID": "x"}}}"#, "A SidecarService cannot specify an ID"),
        (
            r#"{"Name": "a", "Connect": {"SidecarService": {"Connect": {"SidecarService": {}}}}}"#,
            "A SidecarService cannot have a nested SidecarService",
        ),
    ] {
        assert!(service(text).unwrap_err().to_string().starts_with(expected), "{text}");
    }
}

#[test]
fn an_empty_check_is_none_and_an_alias_may_have_an_interval() {
    for (text, expected) in [
        (r#"{"Name": "a", "Check": {}}"#, 0),
        (r#"{"Name": "a", "Check": null}"#, 0),
        (r#"{"Name": "a", "Check": {"Name": "", "Interval": ""}, "Checks": [{"TTL": "1h"}]}"#, 1),
        (r#"{"Name": "a", "Check": {"AliasService": "b", "Interval": "10s"}}"#, 1),
    ] {
        assert_eq!(service(text).unwrap().checks.len(), expected, "{text}");
    }
    for text in [r#"{"Name": "a", "Checks": [{}]}"#, r#"{"Name": "a", "Check": {"Status": "passing"}}"#] {
        assert!(service(text).is_err(), "{text}");
    }
    let mut registered = Registered::default();
    put(&mut registered, r#"{"Name": "a", "Check": {}, "Checks": [{"TTL": "1h", "Name": "own"}]}"#);
    assert!(String::from_utf8(registered.save()).unwrap().contains("own"));
}

#[test]
fn external_nodes_are_saved_with_the_rest_and_bounded_with_it() {
    let mut registered = Registered::default();
    put(&mut registered, r#"{"Name": "a"}"#);
    let add = |registered: &mut Registered, text: &str| {
        registered.add_external(Addition::read(text).unwrap(), "dc1", |_| false).map(drop)
    };
    add(&mut registered, r#"{"Node": "ext", "Address": "192.0.2.5", "Service": {"Service": "far"}}"#).unwrap();
    let (restored, faults) = Registered::restore(&registered.save());
    assert_eq!(faults, Vec::<String>::new());
    assert_eq!(restored.save(), registered.save());
    let large = |name: &str| {
        format!(r#"{{"Node": "{name}", "Address": "192.0.2.5", "NodeMeta": {{"x": "{}"}}}}"#, "x".repeat(20 << 20))
    };
    add(&mut registered, &large("large")).unwrap();
    assert_eq!(add(&mut registered, &large("more")), Err(Refused::Full));
    let service = format!(r#"{{"Name": "b", "Meta": {{"x": "{}"}}}}"#, "x".repeat(20 << 20));
    let refused = registered.put_service(service_of(&service), OtherChecks::Keep, &Files::default());
    assert_eq!(refused, Err(Refused::Full));
    registered.remove_external(&Removal::read(r#"{"Node": "large"}"#).unwrap(), "dc1").unwrap();
    registered.put_service(service_of(&service), OtherChecks::Keep, &Files::default()).unwrap();
}

fn service_of(text: &str) -> NewService {
    service(text).unwrap()
}

#[test]
fn reasons_of_maintenance_count() {
    let mut registered = Registered::default();
    let files = Files::default();
    for name in ["a", "b"] {
        put(&mut registered, &format!(r#"{{"Name": "{name}"}}"#));
    }
    let empty = registered.bytes;
    let reason = "x".repeat(20 << 20);
    let maintain = |registered: &mut Registered, id: &str, reason: Option<&str>| {
        registered.maintain(Some(id.into()), reason, &files).map(drop)
    };
    maintain(&mut registered, "a", Some(&reason)).unwrap();
    maintain(&mut registered, "a", Some(&reason)).unwrap();
    assert_eq!(maintain(&mut registered, "b", Some(&reason)), Err(Refused::Full));
    let (restored, faults) = Registered::restore(&registered.save());
    assert_eq!((restored.bytes, faults), (registered.bytes, vec![]));
    maintain(&mut registered, "a", None).unwrap();
    assert_eq!(registered.bytes, empty);
    maintain(&mut registered, "b", Some(&reason)).unwrap();
    registered.drop_service("a");
    registered.drop_service("b");
    assert_eq!(registered.bytes, 0);
}

#[test]
fn keys_that_differ_only_in_case_mean_the_same_after_a_restart() {
    for text in [
        r#"{"id": "x", "ID": "y", "Name": "a"}"#,
        r#"{"ID": "x", "id": "y", "NAME": "b", "name": "a", "Port": 1, "port": 2, "Meta": {"k": "1", "K": "2"}}"#,
        r#"{"Name": "a", "Weights": {"Passing": 5, "passing": 7}}"#,
        r#"{"Name": "a", "Check": {"TTL": "1h", "Name": "b", "name": "c", "Notes": "x", "notes": "y"}}"#,
    ] {
        let mut registered = Registered::default();
        put(&mut registered, text);
        let (restored, faults) = Registered::restore(&registered.save());
        assert_eq!(faults, Vec::<String>::new(), "{text}");
        let files = Files::default();
        assert_eq!(show(&restored, &files), show(&registered, &files), "{text}");
        assert_eq!(restored.save(), registered.save(), "{text}");
    }
}

#[test]
fn short_registrations_have_a_bound_too() {
    let mut registered = Registered::default();
    let (empty, files) = (registered.bytes, Files::default());
    for text in [r#"{"Name": "a"}"#, r#"{"Name": "b", "Check": {"TTL": "1h"}}"#] {
        put(&mut registered, text);
    }
    registered.maintain(None, Some("x"), &files).unwrap();
    let add = |registered: &mut Registered, text: &str| {
        registered.add_external(Addition::read(text).unwrap(), "dc1", |_| false).map(drop)
    };
    add(&mut registered, r#"{"Node": "c", "Address": "192.0.2.5", "Service": {"Service": "d"}}"#).unwrap();
    let counted = registered.bytes + registered.external.bytes();
    assert!(
        (6 * ENTRY_BYTES..8 * ENTRY_BYTES).contains(&counted),
        "two services, a check, a reason, a node, a service"
    );
    let (restored, _) = Registered::restore(&registered.save());
    assert_eq!(restored.bytes + restored.external.bytes(), counted);
    for id in ["a", "b"] {
        registered.drop_service(id);
    }
    registered.maintain(None, None, &files).unwrap();
    registered.remove_external(&Removal::read(r#"{"Node": "c"}"#).unwrap(), "dc1").unwrap();
    assert_eq!(registered.bytes + registered.external.bytes(), empty);
}
