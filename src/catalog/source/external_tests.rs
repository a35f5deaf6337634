use super::*;
use crate::catalog::source::registered::ENTRY_BYTES;

fn external(requests: &[&str]) -> External {
    let mut external = External::default();
    for request in requests {
        let new = Addition::read(request).unwrap();
        external.add(new, "dc1", usize::MAX, |_| false).unwrap();
    }
    external
}

/// Each instance with its checks, and each node.
fn shown(external: &External) -> Vec<String> {
    let set = external.set("dc1");
    let checks =
        |checks: &[Check]| checks.iter().map(|check| format!(" {}={}", check.id, check.status)).collect::<String>();
    let nodes = set.nodes.iter().map(|node| format!("{}{}", node.name, checks(&node.checks)));
    let instance = |instance: &Arc<Instance>| {
        let registration = &instance.registration;
        format!("{}/{}:{}{}", registration.node.name(), registration.id, registration.port, checks(&instance.checks))
    };
    nodes.chain(set.instances.iter().map(instance)).collect()
}

const NODE: &str = r#"{"Node": "Ext", "Address": "192.0.2.5", "NodeMeta": {"external-node": "true"},
    "Service": {"Service": "web", "Port": 80, "Tags": ["a"]},
    "Check": {"Name": "c", "Status": "passing", "ServiceID": "web", "Definition": {"HTTP": "http://x", "Interval": "5s"}},
    "Checks": [{"CheckID": "n", "Name": "of the node", "Status": "warning"}]}"#;

#[test]
fn what_is_registered_is_there_until_it_is_taken_out() {
    let mut external =
        external(&[NODE, r#"{"node": "ext", "skipnodeupdate": true, "service": {"ID": "w2", "service": "web"}}"#]);
    assert_eq!(shown(&external), ["Ext n=warning", "ext/w2:0", "ext/web:80 c=passing"]);
    let check = &external.set("dc1").instances[1].checks[0];
    assert_eq!((&*check.kind, &*check.name), ("http", "c"));
    // The same once more, with another port: the check stays.
    external
        .add(
            Addition::read(r#"{"Node": "ext", "Address": "192.0.2.6", "Service": {"Service": "web", "Port": 81}}"#)
                .unwrap(),
            "dc1",
            0,
            |_| false,
        )
        .unwrap();
    assert_eq!(shown(&external), ["ext n=warning", "ext/w2:0", "ext/web:81 c=passing"]);
    for (request, expected) in [
        (r#"{"Node": "ext", "CheckID": "none"}"#, &["ext n=warning", "ext/w2:0", "ext/web:81 c=passing"][..]),
        (r#"{"Node": "ext", "CheckID": "n"}"#, &["ext", "ext/w2:0", "ext/web:81 c=passing"]),
        (r#"{"Node": "EXT", "ServiceID": "web"}"#, &["ext", "ext/w2:0"]),
        (r#"{"Node": "none"}"#, &["ext", "ext/w2:0"]),
        (r#"{"Node": "ext", "Address": "192.0.2.6"}"#, &[]),
    ] {
        let removal = Removal::read(request).unwrap();
        external.remove(&removal, "dc1").unwrap();
        assert_eq!(shown(&external), expected, "{request}");
    }
    assert_eq!((external.bytes(), external.nodes.len()), (0, 0));
}

#[test]
fn what_is_saved_registers_the_same_again() {
    let external = external(&[NODE]);
    let requests: Vec<&str> = external.requests().collect();
    let again = super::tests::external(&requests);
    assert_eq!(shown(&again), shown(&external));
    assert_eq!(again.bytes(), external.bytes());
    assert_eq!(external.bytes(), requests.iter().map(|request| request.len() + ENTRY_BYTES).sum::<usize>());
}

#[test]
fn a_change_concerns_what_it_names_however_much_is_on_the_node() {
    let mut external = external(&[NODE]);
    for number in 0..3 {
        let more = format!(r#"{{"Node": "ext", "SkipNodeUpdate": true, "Service": {{"Service": "s{number}"}}}}"#);
        external.add(Addition::read(&more).unwrap(), "dc1", usize::MAX, |_| false).unwrap();
    }
    let shown = |(part, gone): (Part, Option<NodeKey>)| {
        let nodes = part.nodes.iter().map(|node| node.name.to_string());
        let instances = part.instances.iter().map(|it| format!("{} {}", it.registration.id, it.checks.len()));
        let gone =
            part.gone.iter().map(|key| format!("-{}", key.id)).chain(gone.map(|node| format!("-{}", node.name())));
        nodes.chain(instances).chain(gone).collect::<Vec<_>>()
    };
    for (request, expected) in [
        (r#"{"Node": "ext", "SkipNodeUpdate": true, "Service": {"Service": "s0", "Port": 1}}"#, &["s0 0"][..]),
        (r#"{"Node": "ext", "SkipNodeUpdate": true, "Check": {"CheckID": "x", "ServiceID": "s1"}}"#, &["s1 1"]),
        // It moves from one service to another, and then to the node.
        (r#"{"Node": "ext", "SkipNodeUpdate": true, "Check": {"CheckID": "x", "ServiceID": "s2"}}"#, &["s1 0", "s2 1"]),
        (r#"{"Node": "ext", "SkipNodeUpdate": true, "Check": {"CheckID": "x"}}"#, &["Ext", "s2 0"]),
        (r#"{"Node": "ext", "Address": "192.0.2.6"}"#, &["ext"]),
    ] {
        let changed = external.add(Addition::read(request).unwrap(), "dc1", usize::MAX, |_| false).unwrap();
        assert_eq!(shown(external.part(changed, "dc1")), expected, "{request}");
    }
    for (request, expected) in [
        (r#"{"Node": "ext", "CheckID": "x"}"#, &["ext"][..]),
        (r#"{"Node": "ext", "CheckID": "c"}"#, &["web 0"]),
        (r#"{"Node": "ext", "ServiceID": "web"}"#, &["-web"]),
        (r#"{"Node": "ext"}"#, &["-s0", "-s1", "-s2", "-ext"]),
    ] {
        let changed = external.remove(&Removal::read(request).unwrap(), "dc1").unwrap().unwrap();
        assert_eq!(shown(external.part(changed, "dc1")), expected, "{request}");
    }
    assert_eq!(external.bytes(), 0);
}

#[test]
fn a_request_with_a_fault_changes_nothing() {
    let mut external = external(&[NODE]);
    let before = shown(&external);
    for (request, expected) in [
        ("", "Request decode failed"),
        ("[]", "Request decode failed"),
        (r#"{"Node": "x", "Address": "192.0.2.7", "Bogus": 1}"#, "json: unknown field \"Bogus\""),
        (
            r#"{"Node": "x", "Address": "192.0.2.7", "Service": {"Service": "a", "Bogus": 1}}"#,
            "unknown field \"Bogus\"",
        ),
        (
            r#"{"Node": "x", "Address": "192.0.2.7", "Service": {"Service": "a", "Port": "80"}}"#,
            "Request decode failed",
        ),
        ("{}", "Must provide node"),
        (r#"{"Node": "x"}"#, "Must provide address if SkipNodeUpdate is not set"),
        (r#"{"Node": "x", "SkipNodeUpdate": true}"#, "not registered"),
        (r#"{"Node": "x", "Address": "192.0.2.7", "Datacenter": "dc2"}"#, "No path to datacenter"),
        (r#"{"Node": "x", "Address": "a b/c"}"#, "neither an address nor a name"),
        (r#"{"Node": "x", "Address": "192.0.2.7", "Service": {"ID": "a"}}"#, "Must provide service name with ID"),
        (
            r#"{"Node": "x", "Address": "192.0.2.7", "Service": {"Service": "a", "Address": "::"}}"#,
            "Invalid service address",
        ),
        (
            r#"{"Node": "x", "Address": "192.0.2.7", "Check": {"Name": "c", "ServiceID": "a"}}"#,
            "Missing service registration on node \"x\"",
        ),
        (
            r#"{"Node": "ext", "SkipNodeUpdate": true, "Service": {"Service": "new"}, "Check": {"Name": "c", "ServiceID": "a"}}"#,
            "Missing service",
        ),
        (
            r#"{"Node": "x", "Address": "192.0.2.7", "Check": {"Node": "y", "Name": "c"}}"#,
            "check node \"y\" does not match node \"x\"",
        ),
        (r#"{"Node": "x", "Address": "192.0.2.7", "Check": {}}"#, "object missing primary index on node \"x\""),
        (r#"{"Node": "x", "Address": "192.0.2.7", "Check": {"Name": "c", "Status": "odd"}}"#, "status \"odd\""),
    ] {
        let added = Addition::read(request).and_then(|new| external.add(new, "dc1", usize::MAX, |_| false));
        let error = added.unwrap_err().to_string();
        assert!(error.contains(expected), "{request}: {error}");
        assert_eq!(shown(&external), before, "{request}");
    }
    let large = Addition::read(r#"{"Node": "x", "Address": "192.0.2.7"}"#).unwrap();
    assert_eq!(external.add(large, "dc1", 20, |_| false), Err(Refused::Full));
}
