use std::{fs, time::Duration};

use super::*;
use crate::{
    catalog::{
        Config, Host, Kind, Node, Registry, Role, ServiceKey, SourceId, System, Weights, health::Status,
        registry::Outcomes, source::value::Value,
    },
    clock::Moment,
};

/// Stands for those who run checks: the kind of the check, and no more checked than that it has an interval.
fn define(value: &Value) -> Result<String, Vec<Fault>> {
    let fields = value.table().unwrap();
    let has = |wanted: &str| fields.iter().any(|(key, _)| key == wanted);
    let kind = ["tcp", "http", "script", "args", "ttl"].into_iter().find(|kind| has(kind)).unwrap_or("none");
    if has("docker_container_id") {
        return Err(vec![Fault { line: None, message: "docker".to_owned() }]);
    }
    if kind != "ttl" && !has("interval") && !has("alias_service") {
        return Err(vec![Fault { line: None, message: "no interval".to_owned() }]);
    }
    Ok(kind.to_owned())
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/catalog")
}

/// A folder with some of the fixtures.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(names: &[&str]) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        for name in names {
            folder.write(name, &fs::read_to_string(fixtures().join(name)).unwrap());
        }
        folder
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // Another inode, as editors do it: the clock of the file system may be coarse.
        fs::write(self.0.path().join("new"), text).unwrap();
        fs::rename(self.0.path().join("new"), path).unwrap();
    }

    fn load(&self, previous: Option<&Files<String>>) -> Outcome<String> {
        Files::load(self.0.path(), 1 << 20, previous, Scope::All, &Copies::default(), &define)
    }

    /// As `load`, but looks only at what has one of these names.
    fn load_some(&self, previous: &Files<String>, names: &[&str]) -> Outcome<String> {
        let changed = names.iter().map(|name| self.0.path().join(name)).collect();
        Files::load(self.0.path(), 1 << 20, Some(previous), Scope::Changed(&changed), &Copies::default(), &define)
    }

    /// The faults as the operator reads them, but for the folder.
    fn faults(&self, outcome: &Outcome<String>) -> Vec<String> {
        let folder = format!("{}/", self.0.path().display());
        outcome.faults.iter().map(|fault| fault.to_string().replace(&folder, "")).collect()
    }
}

fn identity(files: &Files<String>) -> Identity {
    let system = System { hostname: "own".into(), addresses: vec![[10, 0, 0, 1].into()], default_address: None };
    Identity::new(&Config::default(), &files.agent(), &system).0
}

fn names(files: &Files<String>) -> Vec<String> {
    files
        .units()
        .map(|unit| unit.service().unwrap())
        .map(|service| format!("{}:{}", service.id, service.port))
        .collect()
}

fn owners(ids: &[&str]) -> HashSet<Owner> {
    ids.iter().map(|&id| Some(id).filter(|id| !id.is_empty()).map(Into::into)).collect()
}

/// A fixture holds the messages that it must provoke, as `refused: LINE: MESSAGE`. One without is read in silence.
#[test]
fn fixtures_provoke_exactly_the_messages_that_they_begin_with() {
    let mut failures = Vec::new();
    let mut count = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let folder = Folder::new(&[&name]);
        let found = folder.faults(&folder.load(None));
        let text = fs::read_to_string(fixtures().join(&name)).unwrap();
        let expected = text.lines().filter_map(|line| Some(line.split_once("refused: ")?.1));
        let trim = |line: &str| match name.ends_with(".json") {
            true => line.rsplit_once('"').unwrap().0.replace("\\\"", "\""),
            false => line.to_owned(),
        };
        let expected: Vec<String> = expected.map(|line| format!("{name}:{}", trim(line))).collect();
        let is_met = found.len() == expected.len() && found.iter().zip(&expected).all(|(f, e)| f.starts_with(e));
        if !is_met {
            failures.push((expected, found));
        }
        count += 1;
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(count > 10, "{count} fixtures");
}

#[test]
fn the_definitions_of_the_first_users_work_as_they_stand() {
    let folder = Folder::new(&["as_in_the_manual.json", "with_the_old_script_key.json"]);
    let outcome = folder.load(None);
    assert_eq!(outcome.faults, []);
    let identity = identity(&outcome.files);
    let checks: Vec<_> = outcome.files.definitions(&identity).collect();
    let checks: Vec<_> = checks
        .iter()
        .map(|(key, kind)| (key.node.name(), key.service_id.as_deref().unwrap(), &*key.check, kind.as_str()))
        .collect();
    assert_eq!(
        checks,
        [("own", "galeradb", "mysql", "tcp"), ("own", "elasticsearch", "service:elasticsearch", "script")]
    );
    let set = outcome.files.set(&identity);
    let galera = set.instances.iter().find(|instance| &*instance.registration.service == "galeradb").unwrap();
    assert_eq!((galera.registration.port, &*galera.registration.tags[0]), (3306, "icinga-galera"));
    assert_eq!((&*galera.checks[0].name, galera.checks[0].status), ("Check mysql port listening", Status::Unknown));
    assert_eq!(galera.registration.address, None, "it is on our own node");
}

#[test]
fn one_file_may_list_instances_on_several_hosts() {
    let folder = Folder::new(&["instances_on_other_hosts.hcl"]);
    let outcome = folder.load(None);
    assert_eq!((folder.faults(&outcome), outcome.unused.len()), (vec![], 0));
    let identity = identity(&outcome.files);
    let set = outcome.files.set(&identity);
    let [db1, db2, db3] = &set.instances[..] else { panic!("{set:?}") };
    assert_eq!(db1.registration.address, "192.0.2.11".parse().ok());
    assert_eq!(db2.registration.meta["watershed-policy"], "one");
    assert_eq!(db3.registration.address, Some(Host::Name("db3.example.org".parse().unwrap())));
    assert_eq!(db3.registration.weights, Weights { passing: 10, warning: 1 });
    assert_eq!(db3.registration.tagged["lan_ipv6"].address, "2001:db8::13".parse().unwrap());
    let ids = |checks: &[Check]| checks.iter().map(|check| (check.id.to_string(), check.status)).collect::<Vec<_>>();
    let expected = [("service:db-2:1".to_owned(), Status::Unknown), ("service:db-2:2".to_owned(), Status::Passing)];
    assert_eq!(ids(&db2.checks), expected);
    assert_eq!(ids(&db3.checks), [("db-3-alive".to_owned(), Status::Unknown)]);
    assert_eq!(ids(&set.nodes[0].checks), [("memory".to_owned(), Status::Unknown)]);
    assert_eq!(outcome.files.definitions(&identity).count(), 5);
}

#[test]
fn agent_keys_count_where_they_mean_something_and_are_named_otherwise() {
    let folder = Folder::new(&["agent_keys.hcl"]);
    let outcome = folder.load(None);
    let identity = identity(&outcome.files);
    assert_eq!(
        (&*identity.datacenter, &*identity.node_name, identity.address),
        ("lab", "host-1", [192, 0, 2, 1].into())
    );
    assert_eq!(identity.domain, "lab.example".parse().unwrap());
    let unused: Vec<_> = outcome.unused.iter().map(String::as_str).collect();
    assert_eq!(unused, ["bind_addr", "encrypt", "proxy.config", "retry_join", "service.enable_tag_override"]);
    let set = outcome.files.set(&identity);
    let Node { meta, tagged, .. } = &*set.nodes[0];
    assert_eq!((&*meta["rack"], &*meta["consul-network-segment"], tagged.len()), ("7", "", 1));
    let roles: Vec<_> = set.instances.iter().map(|instance| instance.registration.role.clone()).collect();
    let proxy = || Role::Proxy { destination: "web".into() };
    assert_eq!(roles, [Role::Plain, proxy(), Role::Native, proxy()], "the last is a sidecar");

    let mut registry = Registry::new(Config::default().settings(&identity));
    registry.publish(SourceId(0), set, Outcomes::Ours, Moment::default());
    let snapshot = registry.snapshot();
    assert!(snapshot.service(&ServiceKey::new(Kind::Connect, "lab", "web")).is_some());
    assert_eq!(folder.load(Some(&outcome.files)).unused.len(), 0, "said once");
}

#[test]
fn what_changes_is_read_again_and_faults_leave_what_was() {
    let folder = Folder::new(&[]);
    folder.write("a.json", r#"{"service": {"name": "a", "port": 1}}"#);
    folder.write("deep/er/b.hcl", "service { name = \"b\" }");
    folder.write("empty.json", " \n");
    folder.write("other.txt", "{");
    folder.write(".hidden.json", "{");
    let first = folder.load(None);
    assert_eq!((names(&first.files), folder.faults(&first)), (vec!["a:1".into(), "b:0".into()], vec![]));
    assert_eq!(first.files.folders().count(), 3);

    folder.write("a.json", r#"{"service": {"name": "a", "port": 2}}"#);
    let second = folder.load(Some(&first.files));
    assert_eq!(names(&second.files), ["a:2", "b:0"]);
    let other = folder.0.path().join("deep/er/b.hcl");
    assert!(
        Arc::ptr_eq(&first.files.files[&other].contents, &second.files.files[&other].contents),
        "the other is not read again"
    );
    assert_eq!(second.changed, owners(&["a"]));

    folder.write("a.json", "{");
    folder.write("c.json", "{\n\"service\": 1}");
    let third = folder.load(Some(&second.files));
    assert_eq!(names(&third.files), ["a:2", "b:0"]);
    assert_eq!(
        folder.faults(&third),
        [
            "a.json:1: this is not JSON: EOF while parsing an object",
            "c.json:2: service has the wrong type; write a table of keys and values"
        ]
    );
    assert_eq!(folder.load(Some(&third.files)).faults.len(), 2, "said until it is mended");

    fs::remove_file(folder.0.path().join("c.json")).unwrap();
    folder.write("a.json", "{}");
    let last = folder.load(Some(&third.files));
    assert_eq!((names(&last.files), last.faults.len()), (vec!["b:0".into()], 0));
}

/// Whatever files change in whatever order: who looks only at those has what he has who reads all anew.
#[test]
fn a_part_is_what_all_comes_to() {
    let texts = [
        "{}",
        r#"{"service": {"name": "a", "port": 1, "check": {"ttl": "9s"}}}"#,
        r#"{"services": [{"name": "b"}, {"name": "a", "port": 2, "check": {"id": "x", "ttl": "9s"}}]}"#,
        r#"{"check": {"id": "x", "service_id": "a", "ttl": "9s"}}"#,
        r#"{"checks": [{"id": "y", "ttl": "9s"}, {"id": "z", "service_id": "b", "ttl": "9s"}], "node_name": "other"}"#,
        "{",
        "gone",
    ];
    let folder = Folder::new(&[]);
    let mut files = folder.load(None).files;
    let node = identity(&files);
    let mut registry = Registry::new(Config::default().settings(&node));
    registry.publish(SourceId(0), files.set(&node), Outcomes::Published, Moment::default());
    let (mut seed, mut faulty) = (1_u64, 0);
    for round in 0..400 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (name, text) =
            (["1.json", "2.json", "3.json"][(seed >> 40) as usize % 3], texts[(seed >> 50) as usize % 7]);
        match text {
            "gone" => drop(fs::remove_file(folder.0.path().join(name))),
            text => folder.write(name, text),
        }
        let part = folder.load_some(&files, &[name]);
        let (whole, anew) = (folder.load(Some(&files)), folder.load(None));
        assert_eq!(folder.faults(&part), folder.faults(&whole), "round {round}: {name} {text}");
        faulty += usize::from(!anew.faults.is_empty());
        let is_read = !part.faults.iter().any(|fault| matches!(fault.problem, Problem::Syntax(_)));
        if is_read {
            assert_eq!(folder.faults(&part), folder.faults(&anew), "round {round}: {name} {text}");
            assert_eq!(part.files.agent(), anew.files.agent());
        }

        registry.publish_part(
            SourceId(0),
            part.files.part(&part.changed, &node),
            Outcomes::Published,
            Moment::default(),
        );
        let version = registry.snapshot().version();
        let set = if is_read { &anew.files } else { &whole.files }.set(&node);
        registry.publish(SourceId(0), set, Outcomes::Published, Moment::default());
        assert_eq!(registry.snapshot().version(), version, "round {round}: {name} {text}: all is as the part said");
        files = part.files;
    }
    assert!(faulty > 50, "{faulty} rounds with faults");
}

#[test]
fn only_what_is_said_to_have_changed_is_looked_at() {
    let folder = Folder::new(&[]);
    folder.write("a.json", r#"{"service": {"name": "a"}}"#);
    folder.write("b.json", r#"{"service": {"name": "b"}}"#);
    let first = folder.load(None).files;
    folder.write("a.json", r#"{"service": {"name": "a", "port": 2}}"#);
    folder.write("b.json", r#"{"service": {"name": "b", "port": 2}}"#);
    let load = |names: &[&str]| folder.load_some(&first, names);
    for (changed, expected) in [
        (&["a.json", "a.json.part", ".swap", "2.txt"][..], &["a:2", "b:0"][..]),
        (&[], &["a:0", "b:0"]),
        // These do not say which files have changed.
        (&["..data"], &["a:2", "b:2"]),
        (&[""], &["a:2", "b:2"]),
        (&["unknown/a.json"], &["a:2", "b:2"]),
    ] {
        assert_eq!(names(&load(changed).files), expected, "{changed:?}");
    }
    folder.write("fresh/c.json", r#"{"service": {"name": "c"}}"#);
    assert_eq!(names(&load(&["fresh"]).files), ["a:2", "b:2", "c:0"], "a folder has come");
    // What was refused is looked at until it is mended.
    folder.write("a.json", "{");
    let refused = load(&["a.json"]);
    assert_eq!(refused.faults.len(), 1);
    folder.write("a.json", r#"{"service": {"name": "a", "port": 3}}"#);
    assert_eq!(names(&folder.load_some(&refused.files, &["b.json"]).files), ["a:3", "b:2"]);
    fs::remove_file(folder.0.path().join("a.json")).unwrap();
    assert_eq!(names(&load(&["a.json"]).files), ["b:0"]);
}

#[test]
fn a_folder_that_is_gone_leaves_what_was() {
    let folder = Folder::new(&["as_in_the_manual.json"]);
    let first = folder.load(None);
    let moved = folder.0.path().with_extension("moved");
    fs::rename(folder.0.path(), &moved).unwrap();
    let lost = folder.load(Some(&first.files));
    fs::rename(&moved, folder.0.path()).unwrap();
    assert_eq!((names(&lost.files), lost.faults.len()), (vec!["galeradb:3306".into()], 2), "{:?}", lost.faults);
}

#[test]
fn values_read_themselves_into_types_of_others() {
    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Other {
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        number: Option<i64>,
        #[serde(default, with = "humantime_serde")]
        span: Option<Duration>,
    }
    let read = |text| <Other as serde::Deserialize>::deserialize(&super::hcl::read(text).unwrap());
    let other = read("names = [\"a\", \"b\"]\nnumber = -1\nspan = \"10s\"").unwrap();
    let expected = Other { names: vec!["a".into(), "b".into()], number: Some(-1), span: Some(Duration::from_secs(10)) };
    assert_eq!(other, expected);
    assert_eq!(read("names = \"one\"").unwrap().names, ["one"]);
    for (text, line) in [("\nnumber = \"x\"", 2), ("names = [\n\"a\",\n1]", 3), ("\n\nspan = \"x\"", 3)] {
        let fault: Fault = read(text).unwrap_err();
        assert_eq!(fault.line, Some(line), "{text:?}: {fault}");
    }
}

/// The ids of the services with their ports.
fn ports(files: &Files<String>) -> Vec<(String, u16)> {
    let mut ports: Vec<_> = files.ports().map(|(id, port)| (id.to_owned(), port)).collect();
    ports.sort();
    ports
}

#[test]
fn a_check_that_is_not_run_here_costs_its_service_alone() {
    let folder = Folder::new(&[]);
    let docker = r#"{"docker_container_id": "c", "shell": "/bin/sh", "args": ["true"], "interval": "10s"}"#;
    folder.write(
        "a.json",
        &format!(
            r#"{{"services": [
                {{"name": "good", "check": {{"ttl": "1h"}}}},
                {{"name": "docker", "checks": [{{"ttl": "1h"}}, {docker}]}},
                {{"name": "unknown", "check": {{"id": "x", "redis": "127.0.0.1:6379"}}}},
                {{"name": "beside"}},
                {{"name": "empty", "check": {{}}}},
                {{"name": "null", "check": {{"name": "", "interval": null}}}}],
              "checks": [{{"id": "node", "ttl": "1h"}}, {{"id": "d", "service_id": "beside", "docker_container_id": "c"}}]}}"#
        ),
    );
    let outcome = folder.load(None);
    let ids = |files: &Files<String>| ports(files).into_iter().map(|(id, _)| id).collect::<Vec<_>>();
    assert_eq!(ids(&outcome.files), ["empty", "good", "null"]);
    let faults = folder.faults(&outcome);
    assert_eq!(faults.len(), 3, "{faults:?}");
    for (fault, line) in faults.iter().zip([3, 4, 8]) {
        assert!(fault.starts_with(&format!("a.json:{line}: ")), "{faults:?}");
    }
    let checks = outcome.files.definitions(&Identity::of(&Config::default())).count();
    assert_eq!(checks, 2, "of the good service, and of the node");
    // They stay known as long as they are there.
    let again = folder.load(Some(&outcome.files));
    assert_eq!((ids(&again.files).len(), folder.faults(&again)), (3, faults));
    // A check for a service of another file would leave that without it.
    folder.write("b.json", r#"{"check": {"id": "e", "service_id": "good", "docker_container_id": "c"}}"#);
    let third = folder.load(Some(&again.files));
    assert!(
        folder.faults(&third).iter().any(|fault| fault.starts_with("b.json:1: ") && fault.contains("another file"))
    );
}

#[test]
fn a_sidecar_is_a_service_with_a_port_that_it_keeps() {
    let folder = Folder::new(&[]);
    let service = |name: &str, sidecar: &str| {
        format!(
            r#"{{"service": {{"name": "{name}", "port": 80, "tags": ["t"], "connect": {{"sidecar_service": {sidecar}}}}}}}"#
        )
    };
    folder.write("b.json", &service("b", "{}"));
    folder.write("c.json", &service("c", r#"{"port": 7777, "name": "own", "tags": ["own"], "check": {"ttl": "1h"}}"#));
    let first = folder.load(None);
    assert_eq!(folder.faults(&first), Vec::<String>::new());
    let of_b = [("b".to_owned(), 80), ("b-sidecar-proxy".to_owned(), 21000)];
    let of_c = [("c".to_owned(), 80), ("c-sidecar-proxy".to_owned(), 7777)];
    assert_eq!(ports(&first.files), [&of_b[..], &of_c].concat());
    let set = first.files.set(&Identity::of(&Config::default()));
    let shown: Vec<_> = set
        .instances
        .iter()
        .map(|instance| {
            let registration = &instance.registration;
            let checks: Vec<_> = instance.checks.iter().map(|check| (&*check.id, &*check.name, &*check.kind)).collect();
            (&*registration.service, registration.role.clone(), registration.tags.join(","), checks)
        })
        .collect();
    let usual = vec![
        ("service:b-sidecar-proxy:1", "Connect Sidecar Listening", "tcp"),
        ("service:b-sidecar-proxy:2", "Connect Sidecar Aliasing b", "alias"),
    ];
    let own = vec![("service:c-sidecar-proxy", "Service 'own' check", "ttl")];
    let proxy = |destination: &str| Role::Proxy { destination: destination.to_owned() };
    assert_eq!(shown[1], ("b-sidecar-proxy", proxy("b"), "t".to_owned(), usual));
    assert_eq!(shown[3], ("own", proxy("c"), "own".to_owned(), own));
    // Another one before it does not take its port.
    folder.write("a.json", &service("a", "{}"));
    folder.write("b.json", &service("b", r#"{"tags": ["new"]}"#));
    let second = folder.load(Some(&first.files));
    let expected = [("a".to_owned(), 80), ("a-sidecar-proxy".to_owned(), 21001)];
    assert_eq!(ports(&second.files), [&expected[..], &of_b, &of_c].concat());
    // It goes with what asks for it.
    folder.write("b.json", r#"{"service": {"name": "b", "port": 80}}"#);
    let third = folder.load(Some(&second.files));
    assert_eq!(ports(&third.files), [&expected[..], &of_b[..1], &of_c].concat());
    folder.write("b.json", &service("b", r#"{"id": "own"}"#));
    let fourth = folder.load(Some(&third.files));
    assert!(folder.faults(&fourth)[0].starts_with("b.json:1: A SidecarService cannot specify an ID"));
}

#[test]
fn many_faults_of_one_kind_are_counted() {
    let folder = Folder::new(&[]);
    let services: Vec<_> = (0..10_000).map(|n| format!("{{\"name\": \"a\", \"id\": \"{n}\", \"odd\": 1}}")).collect();
    folder.write("many.json", &format!("{{\"services\": [\n{}\n]}}", services.join(",\n")));
    folder.write("few.json", "{\"service\": {\"nam\": 1}}");
    let faults: Vec<_> = folder.load(None).faults.iter().map(ToString::to_string).collect();
    let many: Vec<_> = faults.iter().filter(|fault| fault.contains("many.json")).collect();
    assert_eq!(many.len(), 10, "{many:?}");
    assert!(many[9].ends_with("; and 9990 more of the kind") && many[9].contains("many.json:11: "), "{}", many[9]);
    assert!(faults.iter().any(|fault| fault.contains("few.json:1: unknown key `nam`")), "{faults:?}");
}
