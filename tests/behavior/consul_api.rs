//! Tools that speak Consul's HTTP API find it here, with the answers that a Consul would give.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::harness::{netns::Netns, programs::Consul, *};

/// A catalog with registrations that lie in this folder.
fn registering(state: &Path, api: &str) -> String {
    format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\nstate_directory = \"{}\"\n{CATALOG}\
         [catalog.api]\nenable_registration = true\n{api}",
        state.display()
    )
}

const CATALOG: &str = "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n";
const FILES: &str = "[catalog.files]\ndirectory = \"<DIR>/consul.d\"\n";

fn state_folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("watershed-").tempdir().unwrap()
}

fn api(daemon: &Daemon) -> SocketAddr {
    daemon.control.expect("a control address")
}

#[track_caller]
fn send(server: SocketAddr, request: &str, fields: &[(&str, &str)], body: &str) -> http::Response {
    http::send(server, request, fields, body, PATIENCE).unwrap_or_else(|error| panic!("{request}: {error}"))
}

#[track_caller]
fn put(daemon: &Daemon, path: &str, body: &str) {
    let response = send(api(daemon), &format!("PUT /v1/{path}"), &[], body);
    assert_eq!((response.status, &*response.body), (200, ""), "{path}");
}

/// The status and the text with which a change is refused.
#[track_caller]
fn refused(daemon: &Daemon, path: &str, body: &str) -> (u16, String) {
    let response = send(api(daemon), &format!("PUT /v1/{path}"), &[], body);
    (response.status, response.body)
}

#[track_caller]
fn read(server: SocketAddr, path: &str) -> Value {
    let response = send(server, &format!("GET /v1/{path}"), &[], "");
    assert_eq!(response.status, 200, "{path}: {}", response.body);
    serde_json::from_str(&response.body).unwrap_or_else(|error| panic!("{path}: {error}: {}", response.body))
}

/// What a name has, sorted.
fn ask(daemon: &Daemon, question: &str) -> Vec<String> {
    let mut data = daemon.ask(question).data();
    data.sort();
    data
}

/// An answer that came after a while, and its index.
struct Waiting(mpsc::Receiver<http::Response>);

impl Waiting {
    /// Asks for what is other than what has this index.
    fn ask(server: SocketAddr, path: &str, index: u64, wait: &str) -> Self {
        let (answered, answer) = mpsc::channel();
        let separator = if path.contains('?') { '&' } else { '?' };
        let request = format!("GET /v1/{path}{separator}index={index}&wait={wait}");
        thread::spawn(move || {
            // Who has stopped to wait does not want it any more.
            let _ = answered.send(http::send(server, &request, &[], "", Duration::from_secs(60)).unwrap());
        });
        Self(answer)
    }

    fn is_waiting(&self) -> bool {
        matches!(self.0.try_recv(), Err(mpsc::TryRecvError::Empty))
    }

    #[track_caller]
    fn end(self) -> http::Response {
        self.0.recv_timeout(PATIENCE).expect("an answer")
    }
}

fn index(response: &http::Response) -> u64 {
    response.field("X-Consul-Index").expect("an index").parse().expect("a number")
}

/// The index of what there is at present.
#[track_caller]
fn index_of(server: SocketAddr, path: &str) -> u64 {
    index(&send(server, &format!("GET /v1/{path}"), &[], ""))
}

/// The same definitions for both: nothing in them is found out by trying, so that both say the same at any time.
const DEFINITIONS: &str = r#"{
    "node_meta": {"rack": "r1"},
    "services": [
        {"id": "web1", "name": "web", "tags": ["v1", "Primary"], "address": "192.0.2.11", "port": 80,
         "meta": {"version": "1"}, "weights": {"passing": 10, "warning": 2},
         "tagged_addresses": {"lan": {"address": "192.0.2.11", "port": 80},
                              "wan": {"address": "198.51.100.11", "port": 8080}},
         "checks": [{"id": "web1-ttl", "name": "web ttl", "ttl": "1h", "status": "passing", "notes": "a note"},
                    {"ttl": "2h", "status": "passing"}]},
        {"id": "web2", "name": "web", "address": "2001:db8::12", "port": 80, "check": {"ttl": "1h", "status": "warning"}},
        {"id": "web3", "name": "web", "tags": ["v1"], "check": {"ttl": "1h"}},
        {"name": "plain"},
        {"name": "MixedCase", "port": 5, "tags": ["T"], "address": "db.example"},
        {"name": "native", "port": 1, "connect": {"native": true}},
        {"name": "web-proxy", "kind": "connect-proxy", "port": 2, "proxy": {"destination_service_name": "web"}}
    ],
    "checks": [{"id": "node-ttl", "name": "node check", "ttl": "1h", "status": "passing"},
               {"id": "joined", "name": "of another file's service", "ttl": "1h", "status": "passing",
                "service_id": "plain"}]
}"#;

/// Takes out what differs between the two on purpose.
fn plain(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            // Both number what they know in their own ways, and give their nodes ids of their own.
            for key in ["CreateIndex", "ModifyIndex", "ContentHash"] {
                fields.remove(key);
            }
            if fields.contains_key("Datacenter")
                || fields.contains_key("TaggedAddresses") && fields.contains_key("Node")
            {
                fields.remove("ID");
            }
            // Consul registers its own servers as a service, which are none here.
            fields.remove("consul");
            // Consul does not say of what type a check is that stands beside the services.
            if matches!(fields.get("CheckID").and_then(Value::as_str), Some("node-ttl" | "joined")) {
                fields.remove("Type");
            }
            fields.values_mut().for_each(plain);
        }
        Value::Array(items) => {
            // There is no gossip here that would tell whether nodes are alive.
            let is_consuls = |item: &Value| item["CheckID"] == "serfHealth" || item["ID"] == "consul";
            items.retain(|item| !is_consuls(item));
            items.iter_mut().for_each(plain);
            // Tags of all instances together have no order, as the checks of a state have none.
            if items.iter().all(|item| item.is_string() || item.get("CheckID").is_some()) {
                items.sort_by_key(|item| item.to_string());
            }
        }
        _ => {}
    }
}

#[test]
fn what_is_read_is_what_a_consul_says() {
    let Some(consul) = Consul::start(DEFINITIONS, None) else { return };
    let config = CATALOG.replace("monitor1", "monitor").replace("192.0.2.1", &consul.http().ip().to_string()) + FILES;
    let daemon = Setup::new(&config).file("consul.d/all.json", DEFINITIONS).start();
    wait_until("an agent that has told its servers", PATIENCE, || {
        let checks = read(consul.http(), "health/node/monitor");
        (checks.as_array()?.len() == 7).then_some(())
    });
    for path in [
        "catalog/datacenters",
        "catalog/nodes",
        "catalog/nodes?node-meta=rack:r1",
        "catalog/nodes?node-meta=rack:r2",
        "catalog/services",
        "catalog/services?node-meta=rack:r2",
        "catalog/service/web",
        "catalog/service/web?tag=v1",
        "catalog/service/web?tag=V1&tag=primary",
        "catalog/service/web?tag=none",
        "catalog/service/web?dc=dc1&near=_agent&stale",
        "catalog/service/web?node-meta=rack:r1",
        "catalog/service/web?node-meta=rack:r2",
        "catalog/service/MIXEDcase",
        "catalog/service/web-proxy",
        "catalog/service/none",
        "catalog/connect/native",
        "catalog/connect/web",
        "catalog/connect/plain",
        "catalog/node/monitor",
        "catalog/node/MONITOR",
        "catalog/node/none",
        "catalog/node-services/none",
        "health/service/web",
        "health/service/web?passing",
        "health/service/web?passing=1&tag=v1",
        "health/service/web?passing=false",
        "health/service/plain",
        "health/service/none",
        "health/connect/native",
        "health/node/monitor",
        "health/node/none",
        "health/checks/web",
        "health/checks/plain",
        "health/checks/none",
        "health/state/any",
        "health/state/passing",
        "health/state/warning",
        "health/state/critical",
        "health/state/none",
        "agent/services",
        "agent/service/web1",
        "agent/service/native",
        "agent/service/web-proxy",
        "agent/checks",
        "agent/health/service/id/web1",
        "agent/health/service/id/web2",
        "agent/health/service/id/web3",
        "agent/health/service/id/plain",
        "agent/health/service/id/none",
        "agent/health/service/name/web",
        "agent/health/service/name/none",
        "status/leader",
        "status/peers",
    ] {
        let [theirs, ours] = [consul.http(), api(&daemon)].map(|server| {
            let response = send(server, &format!("GET /v1/{path}"), &[], "");
            let mut value: Value =
                serde_json::from_str(&response.body).unwrap_or_else(|error| panic!("{path}: {error}"));
            plain(&mut value);
            // Of the services of a name, an agent shows each, in any order.
            if let Some(items) = value.as_array_mut().filter(|_| path.starts_with("agent/health")) {
                items.sort_by_key(|item| item["Service"]["ID"].to_string());
            }
            (response.status, value)
        });
        assert_eq!(ours.0, theirs.0, "{path}");
        let (ours, theirs) = (ours.1, theirs.1);
        assert_eq!(ours, theirs, "{path}\nours: {ours:#}\ntheirs: {theirs:#}");
    }
    for request in [
        "GET /v1/catalog/services?dc=elsewhere",
        "GET /v1/health/service/web?dc=elsewhere",
        "GET /v1/health/service/web?passing=x",
        "GET /v1/health/service/web?index=x",
        "GET /v1/health/service/web?index=-1",
        "GET /v1/health/service/web?index=1&wait=x",
        "GET /v1/health/service/web?stale&consistent",
        "GET /v1/health/service/",
        "GET /v1/health/node/",
        "GET /v1/health/checks/",
        "GET /v1/health/state/",
        "GET /v1/catalog/service/",
        "GET /v1/catalog/node/",
        "GET /v1/agent/service/none",
        "POST /v1/catalog/services",
        "GET /v1/agent/reload",
        "PUT /v1/agent/metrics",
        "PUT /v1/agent/health/service/id/web1",
        "GET /v1/agent/health/service/id/",
        "GET /v1/agent/health/service/name/",
        "GET /v1/agent/health/service/id/web1?format=text",
        "GET /v1/agent/health/service/id/web2?format=text",
        "GET /v1/agent/health/service/id/web3?format=text",
        "GET /v1/agent/health/service/name/web?format=text",
        "GET /v1/agent/health/service/name/plain?format=text",
        "GET /v1/agent/health/service/name/MIXEDcase?format=text",
        "GET /v1/agent/health/service/name/none?format=text",
        "GET /v1/kv/none",
        "GET /v1/kv/none?recurse",
        "GET /v1/kv/",
        "PUT /v1/health/service/web",
        "GET /v1/agent/service/register",
        "POST /v1/agent/check/pass/web1-ttl",
        // TTL checks, of files too.
        "PUT /v1/agent/check/pass/none",
        "PUT /v1/agent/check/update/web1-ttl",
        "PUT /v1/agent/check/fail/web1-ttl?note=ill",
        "PUT /v1/agent/check/warn/node-ttl?note=hm",
    ] {
        let body = if request.contains("update") { r#"{"Status": "hm"}"# } else { "" };
        let [theirs, ours] = [consul.http(), api(&daemon)].map(|server| send(server, request, &[], body));
        assert_eq!((ours.status, &*ours.body), (theirs.status, &*theirs.body), "{request}");
    }
    for path in ["kv/none", "kv/none?index=1&wait=300ms"] {
        let [theirs, ours] = [consul.http(), api(&daemon)].map(|server| {
            let start = Instant::now();
            let response = send(server, &format!("GET /v1/{path}"), &[], "");
            (
                index(&response),
                response.field("X-Consul-KnownLeader").map(str::to_owned),
                start.elapsed() >= Duration::from_millis(300),
            )
        });
        assert_eq!(ours, theirs, "{path}");
    }
    let [theirs, ours] = [consul.http(), api(&daemon)].map(|server| read(server, "agent/self"));
    for pointer in
        ["/Config/Version", "/Config/Datacenter", "/Config/NodeName", "/Config/Server", "/Stats/build/version"]
    {
        assert_eq!(ours.pointer(pointer), theirs.pointer(pointer), "{pointer}");
    }
    let revision = ours.pointer("/Config/Revision").and_then(Value::as_str).unwrap();
    assert_eq!(revision, format!("watershed-{}", env!("CARGO_PKG_VERSION")));
    // Who reads Consul's metrics finds the same keys in ours.
    let [theirs, ours] = [consul.http(), api(&daemon)].map(|server| {
        let value = read(server, "agent/metrics");
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let lists = ["Gauges", "Counters", "Samples"].map(|list| value[list].as_array().unwrap().first().map(keys));
        let timestamp = value["Timestamp"].as_str().unwrap().len();
        (keys(&value), lists, timestamp)
    });
    assert_eq!((&ours.0, ours.2), (&theirs.0, theirs.2));
    for (ours, theirs) in ours.1.iter().zip(&theirs.1) {
        assert!(theirs.is_none() || ours.is_none() || ours == theirs, "{ours:?} {theirs:?}");
    }
    for (path, expected) in [("health/checks/web", "ill"), ("health/state/warning", "hm")] {
        // Consul's agent tells its servers a moment later.
        let theirs = wait_until(path, PATIENCE, || {
            let mut value = read(consul.http(), path);
            plain(&mut value);
            value.to_string().contains(expected).then_some(value)
        });
        let mut ours = read(api(&daemon), path);
        plain(&mut ours);
        assert_eq!(ours, theirs, "{path}");
    }
    let pretty = send(api(&daemon), "GET /v1/catalog/nodes?pretty", &[], "").body;
    assert!(pretty.starts_with("[\n    {\n        \"ID\": ") && pretty.ends_with("]\n"), "{pretty}");
    let response = send(api(&daemon), "GET /v1/catalog/services", &[], "");
    for (field, expected) in
        [("Content-Type", "application/json"), ("X-Consul-KnownLeader", "true"), ("X-Consul-LastContact", "0")]
    {
        assert_eq!(response.field(field), Some(expected), "{field}");
    }
    assert_eq!(send(api(&daemon), "HEAD /v1/catalog/services", &[], "").status, 200);
    // What would be answered wrongly is not answered.
    for (request, status, text) in [
        ("GET /v1/catalog/nodes?filter=Node==x", 400, "filter expressions are not supported"),
        ("GET /v1/catalog/nodes?ns=other", 400, "Enterprise"),
        ("GET /v1/agent/members", 501, "no members"),
        ("GET /v1/nonsense", 501, "/v1/nonsense is not served"),
        ("GET /v1/session/list", 501, "README"),
        ("PUT /v1/session/create", 501, "not served"),
        ("PUT /v1/kv/key", 501, "not served"),
        ("DELETE /v1/kv/key", 501, "not served"),
        ("GET /v1/coordinate/nodes", 501, "not served"),
        ("PUT /v1/txn", 501, "not served"),
        ("POST /v1/query", 501, "not served"),
        ("GET /v1/", 501, "not served"),
        ("GET /v1/agent/metrics?format=prometheus", 200, "watershed_build_info{"),
    ] {
        let response = send(api(&daemon), request, &[], "");
        assert_eq!(response.status, status, "{request}");
        assert!(response.body.contains(text), "{request}: {}", response.body);
    }
}

/// Runs Consul's own command line against us: whether it succeeds, and both outputs.
fn consul_cli(program: &Path, daemon: &Daemon, arguments: &[&str]) -> (bool, String) {
    let (command, operands) = match arguments {
        ["catalog" | "services", ..] => arguments.split_at(2),
        _ => arguments.split_at(1),
    };
    let address = format!("-http-addr={}", api(daemon));
    let output = Command::new(program).args(command).arg(address).args(operands).output().unwrap();
    (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn the_command_line_of_consul_works() {
    let Some(program) = require::program("consul") else { return };
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "")).start();
    let cli = |arguments: &[&str]| consul_cli(&program, &daemon, arguments);
    #[track_caller]
    fn said(outcome: (bool, String), words: &[&str]) {
        let (succeeds, text) = outcome;
        assert!(succeeds && words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
    let file = state.path().join("web.json");
    let text = r#"{"services": [
        {"name": "web", "id": "web1", "address": "192.0.2.11", "port": 80, "tags": ["v1"], "checks": [{"ttl": "1h", "status": "passing"}]},
        {"name": "web", "id": "web2", "address": "192.0.2.12", "port": 80}]}"#;
    std::fs::write(&file, text).unwrap();
    said(cli(&["services", "register", file.to_str().unwrap()]), &["Registered service: web"]);
    said(cli(&["services", "register", "-name=db", "-port=3306", "-tag=main"]), &["Registered service: db"]);
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.11", "192.0.2.12"]);
    assert_eq!(ask(&daemon, "main.db.service.consul SRV"), ["1 1 3306 monitor1.node.dc1.consul."]);
    said(cli(&["catalog", "services", "-tags"]), &["db", "main", "web", "v1"]);
    said(cli(&["catalog", "nodes", "-service=web"]), &["monitor1", "192.0.2.1", "dc1"]);
    said(cli(&["catalog", "datacenters"]), &["dc1"]);
    said(cli(&["info"]), &["services = 3"]);
    said(cli(&["maint", "-enable", "-service=web2", "-reason=for repair"]), &["enabled"]);
    said(cli(&["maint"]), &["web2", "for repair"]);
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.11"]);
    said(cli(&["maint", "-disable", "-service=web2"]), &["disabled"]);
    said(cli(&["maint", "-enable"]), &["Node maintenance is now enabled"]);
    assert_eq!(ask(&daemon, "web.service.consul A"), Vec::<String>::new());
    said(cli(&["maint", "-disable"]), &["disabled"]);
    said(cli(&["watch", "-type=service", "-service=web"]), &["\"web1\"", "\"web2\"", "192.0.2.11"]);
    said(cli(&["watch", "-type=checks", "-state=passing"]), &["service:web1"]);
    said(cli(&["services", "deregister", "-id=web1"]), &["Deregistered service: web1"]);
    said(cli(&["services", "deregister", file.to_str().unwrap()]), &["web2"]);
    assert_eq!(daemon.ask("web.service.consul A").rcode_name(), "NXDOMAIN");
    let (succeeds, text) = cli(&["members"]);
    assert!(!succeeds && text.contains("no members to name; `consul catalog nodes`"), "{text}");
}

#[test]
fn a_watch_of_consul_is_told_of_each_change() {
    let Some(program) = require::program("consul") else { return };
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "")).start();
    put(&daemon, "agent/service/register", r#"{"Name": "web", "ID": "web1", "Address": "192.0.2.11"}"#);
    let mut watch = Command::new(program)
        .args(["watch", "-type=service", "-service=web", &format!("-http-addr={}", api(&daemon))])
        .args(["sh", "-c", "cat; echo"]) // JSON in a line, for each change
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (lines, heard) = mpsc::channel();
    let output = BufReader::new(watch.stdout.take().unwrap());
    thread::spawn(move || output.lines().map_while(Result::ok).for_each(|line| drop(lines.send(line))));
    let wait_for = |expected: &[&str]| {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = heard.recv_timeout(left).unwrap_or_else(|_| panic!("{expected:?} in vain"));
            let Ok(Value::Array(entries)) = serde_json::from_str(&line) else { continue };
            let mut found: Vec<_> = entries.iter().map(|entry| entry["Service"]["ID"].as_str().unwrap()).collect();
            found.sort();
            if found == expected {
                return;
            }
        }
    };
    wait_for(&["web1"]);
    put(&daemon, "agent/service/register", r#"{"Name": "web", "ID": "web2", "Address": "192.0.2.12"}"#);
    wait_for(&["web1", "web2"]);
    put(&daemon, "agent/service/deregister/web1", "");
    wait_for(&["web2"]);
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// python-consul2, a client that PyPI and Debian have.
#[test]
fn a_client_library_works() {
    let Some(_) = require::file("/usr/lib/python3/dist-packages/consul/__init__.py") else { return };
    let Some(_) = require::file("/usr/bin/python3") else { return };
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "token = \"the secret\"\n")).start();
    let script = r#"
import sys, threading, consul
host, port = sys.argv[1].rsplit(":", 1)
stranger = consul.Consul(host=host, port=int(port))
try:
    stranger.agent.service.register("web")
    sys.exit("registered without a token")
except consul.ACLPermissionDenied as denied:
    assert "X-Consul-Token" in str(denied), denied
c = consul.Consul(host=host, port=int(port), token="the secret")
assert c.agent.self()["Config"]["Datacenter"] == "dc1"
assert c.status.leader() == "192.0.2.1:8300" and c.status.peers() == ["192.0.2.1:8300"]
assert c.agent.service.register("web", service_id="web1", address="192.0.2.11", port=80, tags=["v1"],
                                check=consul.Check.ttl("30s"))
assert c.agent.service.register("web", service_id="web2", address="192.0.2.12", port=80)
index, nodes = c.health.service("web", passing=True)
assert [n["Service"]["ID"] for n in nodes] == ["web2"], nodes
# A blocking query, which the TTL check ends.
found = []
waiting = threading.Thread(target=lambda: found.append(c.health.service("web", passing=True, index=index, wait="30s")))
waiting.start()
assert c.agent.check.ttl_pass("service:web1", notes="all well")
waiting.join(20)
later, nodes = found[0]
assert int(later) > int(index), (later, index)
assert [n["Service"]["ID"] for n in nodes] == ["web1", "web2"], nodes
assert nodes[0]["Checks"][0]["Output"] == "all well", nodes
assert c.agent.check.ttl_fail("service:web1") and c.agent.check.ttl_warn("service:web1")
_, checks = c.health.checks("web")
assert checks[0]["Status"] == "warning", checks
assert [k["CheckID"] for k in c.health.state("warning")[1]] == ["service:web1"]
assert c.agent.check.register("disk", check=consul.Check.ttl("1h"), check_id="disk")
assert c.agent.checks()["disk"]["Status"] == "critical"
assert c.agent.check.deregister("disk") and "disk" not in c.agent.checks()
assert c.agent.service.maintenance("web2", "true", "repair")
assert c.agent.checks()["_service_maintenance:web2"]["Notes"] == "repair"
assert c.agent.service.maintenance("web2", "false")
assert c.catalog.services()[1] == {"web": ["v1"]}
assert [n["ServiceAddress"] for n in c.catalog.service("web", tag="v1")[1]] == ["192.0.2.11"]
assert [n["Node"] for n in c.catalog.nodes()[1]] == ["monitor1"] and c.catalog.datacenters() == ["dc1"]
assert sorted(c.catalog.node("monitor1")[1]["Services"]) == ["web1", "web2"]
index, nothing = c.kv.get("none")
assert nothing is None and int(index) >= 1, (index, nothing)
for unserved in (lambda: c.kv.put("k", "v"), lambda: c.session.create("s"), lambda: c.kv.delete("k")):
    try:
        result = unserved()
        sys.exit("took what is not served for %r" % result)
    except consul.ConsulException as error:
        assert "not served" in str(error), error
assert c.catalog.register("ext", "192.0.2.70", service={"Service": "far", "Port": 7, "Address": "192.0.2.71"})
assert [n["Node"] for n in c.catalog.service("far")[1]] == ["ext"]
assert c.catalog.deregister("ext") and c.catalog.service("far")[1] == []
assert c.agent.service.deregister("web1") and sorted(c.agent.services()) == ["web2"]
print("done")
"#;
    let output = Command::new("/usr/bin/python3").args(["-c", script, &api(&daemon).to_string()]).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!((output.status.success(), &*text), (true, "done\n"));
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.12"]);
}

/// The calls of Prometheus' `consul_sd_configs`: the datacenter, then all services, then each of them, waiting.
#[test]
fn prometheus_discovers_services() {
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "")).start();
    let server = api(&daemon);
    put(&daemon, "agent/service/register", r#"{"Name": "web", "Address": "192.0.2.11", "Port": 80, "Tags": ["v1"]}"#);
    assert_eq!(read(server, "agent/self")["Config"]["Datacenter"], "dc1");
    let services = "catalog/services?stale=&wait=120000ms";
    let known = index_of(server, services);
    let list = Waiting::ask(server, "catalog/services?stale=", known, "120000ms");
    let service = "health/service/web?stale=&dc=dc1";
    let entries = read(server, service);
    let entry = &entries[0];
    assert_eq!((&entry["Service"]["Address"], &entry["Service"]["Port"]), (&json!("192.0.2.11"), &json!(80)));
    assert_eq!((&entry["Node"]["Node"], &entry["Node"]["Address"]), (&json!("monitor1"), &json!("192.0.2.1")));
    assert!(entry["Node"]["Meta"].is_object() && entry["Node"]["TaggedAddresses"].is_object());
    assert!(entry["Node"]["ID"].as_str().is_some_and(|id| id.len() == 36));
    let one = Waiting::ask(server, service, index_of(server, service), "120000ms");

    put(&daemon, "agent/service/register", r#"{"Name": "db", "Port": 3306}"#);
    let response = list.end();
    let names: Value = serde_json::from_str(&response.body).unwrap();
    assert_eq!(names, json!({"db": [], "web": ["v1"]}));
    assert!(index(&response) > known);
    let list = Waiting::ask(server, "catalog/services?stale=", index(&response), "120000ms");
    assert!(one.is_waiting(), "db is not web");
    put(&daemon, "agent/service/register", r#"{"Name": "web", "Address": "192.0.2.12", "Port": 80, "Tags": ["v1"]}"#);
    let entries: Value = serde_json::from_str(&one.end().body).unwrap();
    assert_eq!(entries[0]["Service"]["Address"], "192.0.2.12");
    // The names and tags are as they were.
    put(&daemon, "agent/service/register", r#"{"Name": "cache", "Port": 6379}"#);
    let names: Value = serde_json::from_str(&list.end().body).unwrap();
    assert_eq!(names, json!({"cache": [], "db": [], "web": ["v1"]}));
}

#[test]
fn a_change_wakes_those_who_wait_for_it_and_no_others() {
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "")).start();
    let server = api(&daemon);
    let ttl = |name: &str| format!(r#"{{"Name": "{name}", "Check": {{"TTL": "1h", "Status": "passing"}}}}"#);
    put(&daemon, "agent/service/register", &ttl("web"));
    put(&daemon, "agent/service/register", &ttl("db"));
    let paths =
        ["health/service/web?passing", "catalog/service/web", "health/checks/web", "catalog/services", "catalog/nodes"];
    let waiting = paths.map(|path| Waiting::ask(server, path, index_of(server, path), "5m"));
    let state = Waiting::ask(server, "health/state/passing", index_of(server, "health/state/passing"), "5m");
    let of_none = Waiting::ask(server, "health/service/none", index_of(server, "health/service/none"), "5m");
    put(&daemon, "agent/check/fail/service:db", "");
    assert_eq!(serde_json::from_str::<Value>(&state.end().body).unwrap().as_array().unwrap().len(), 1);
    assert!(waiting.iter().all(Waiting::is_waiting) && of_none.is_waiting());

    let before = index_of(server, paths[0]);
    put(&daemon, "agent/check/fail/service:web", "");
    let [passing, placed, checks, services, nodes] = waiting;
    let response = passing.end();
    assert_eq!(response.body, "[]");
    assert!(index(&response) > before);
    assert!(checks.end().body.contains("critical"));
    placed.end();
    assert!(services.is_waiting() && nodes.is_waiting() && of_none.is_waiting(), "names and nodes are as they were");

    // The end of the wait, which is a sixteenth longer at most, but for a busy machine.
    let start = Instant::now();
    let known = index_of(server, paths[0]);
    let response = Waiting::ask(server, paths[0], known, "300ms").end();
    assert_eq!((index(&response), &*response.body), (known, "[]"));
    assert!(start.elapsed() >= Duration::from_millis(300));
    // Indexes that are not ours are no reason to wait.
    for foreign in [1, u64::MAX] {
        assert_eq!(index(&Waiting::ask(server, paths[0], foreign, "5m").end()), known);
    }
    put(&daemon, "agent/service/register", &ttl("none"));
    assert!(of_none.end().body.contains("service:none"));
    services.end();
    // A reload that takes the catalog away ends what is left.
    daemon.edit_config(|config| config.replace("enable_registration = true", ""));
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(nodes.end().status, 503);
}

/// Nodes without an agent, as Terraform and scripts register them: each request is put to a Consul as well.
#[test]
fn external_nodes_are_registered_as_with_a_consul() {
    let Some(consul) = Consul::start("{}", None) else { return };
    let state = state_folder();
    let config = registering(state.path(), "").replace("monitor1", "monitor");
    let start = || Setup::new(&config.replace("192.0.2.1", &consul.http().ip().to_string())).start();
    let daemon = start();
    let both = |request: &str, body: &str| {
        let [theirs, ours] = [consul.http(), api(&daemon)].map(|server| send(server, request, &[], body));
        assert_eq!(ours.status, theirs.status, "{request} {body}: {} / {}", ours.body, theirs.body);
        // What no decoder can read is refused in other words.
        let is_same = ours.body.trim() == theirs.body.trim() || ours.body.starts_with("Request decode failed: ");
        assert!(is_same, "{request} {body}: {} / {}", ours.body, theirs.body);
    };
    let compare = |daemon: &Daemon, moment: &str| {
        for path in [
            "catalog/nodes",
            "catalog/nodes?node-meta=external-node:true",
            "catalog/services",
            "catalog/service/shop",
            "catalog/service/pay",
            "catalog/service/edge",
            "catalog/connect/shop",
            "catalog/node/ext1",
            "catalog/node/none",
            "catalog/node-services/ext2",
            "health/service/shop",
            "health/service/shop?passing",
            "health/service/pay?passing",
            "health/node/ext1",
            "health/checks/shop",
            "health/state/critical",
            "health/state/any",
        ] {
            let [theirs, ours] = [consul.http(), api(daemon)].map(|server| {
                let mut value = read(server, path);
                plain(&mut value);
                // An agent says more of its own node than others register.
                if let Some(items) = value.as_array_mut() {
                    items.retain(|item| item["Node"] != "monitor");
                    items
                        .iter_mut()
                        .flat_map(|item| item["Checks"].as_array_mut())
                        .for_each(|checks| checks.sort_by_key(Value::to_string));
                }
                forget_definitions(&mut value);
                value
            });
            assert_eq!(ours, theirs, "{moment}: {path}\nours: {ours:#}\ntheirs: {theirs:#}");
        }
    };
    for body in [
        r#"{"Node": "ext1", "Address": "192.0.2.50"}"#,
        r#"{"Node": "ext1", "Address": "192.0.2.51", "NodeMeta": {"external-node": "true", "external-probe": "true"},
            "TaggedAddresses": {"lan": "192.0.2.51", "wan": "198.51.100.51"}, "ID": "40e4a748-2192-161a-0510-9bf59fe950b5",
            "Service": {"ID": "shop1", "Service": "shop", "Tags": ["v1"], "Port": 80, "Address": "shop.example",
                        "Meta": {"m": "1"}, "Weights": {"Passing": 3, "Warning": 1}, "EnableTagOverride": false},
            "Checks": [{"CheckID": "alive", "Name": "node alive", "Status": "passing", "Notes": "n", "Output": "o"},
                       {"Name": "http", "Status": "passing", "ServiceID": "shop1",
                        "Definition": {"HTTP": "http://192.0.2.51/", "Interval": "5s", "Timeout": "1s"}}]}"#,
        r#"{"Node": "ext1", "SkipNodeUpdate": true, "Service": {"Service": "pay"}, "Check": {"Name": "pay", "ServiceID": "pay"}}"#,
        r#"{"node": "EXT2", "address": "192.0.2.52", "service": {"service": "shop", "port": 81},
            "check": {"Name": "tcp", "Status": "warning", "ServiceID": "shop", "Definition": {"TCP": "192.0.2.52:81"}},
            "checks": [{"Name": "tcp2", "Status": "passing", "Definition": {"TCP": "192.0.2.52:81", "Interval": "5s"}}]}"#,
        r#"{"Node": "ext3", "Address": "192.0.2.53", "Service": {"Service": "edge", "Kind": "connect-proxy", "Port": 443,
            "Proxy": {"DestinationServiceName": "shop"}}}"#,
        // These are refused.
        "",
        "nonsense",
        "{}",
        r#"{"Node": "x"}"#,
        r#"{"Address": "192.0.2.9"}"#,
        r#"{"Node": "x", "Address": "192.0.2.9", "Datacenter": "elsewhere"}"#,
        r#"{"Node": "x", "Address": "192.0.2.9", "Bogus": 1}"#,
        r#"{"Node": "x", "Address": "192.0.2.9", "Service": {"ID": "s"}}"#,
        r#"{"Node": "x", "Address": "192.0.2.9", "Service": {}}"#,
        r#"{"Node": "x", "Address": "192.0.2.9", "Service": {"Service": "a", "Address": "0.0.0.0"}}"#,
        r#"{"Node": "x", "Address": "192.0.2.9", "Service": {"Service": "a", "Port": "80"}}"#,
        r#"{"Node": "ext1", "Address": "192.0.2.51", "Check": {"Name": "c", "ServiceID": "none"}}"#,
    ] {
        both("PUT /v1/catalog/register", body);
    }
    // A Consul has put ext1 in order before it refused the check; here a refused request changes nothing.
    let again =
        r#"{"Node": "ext1", "Address": "192.0.2.51", "NodeMeta": {"external-node": "true"}, "Datacenter": "dc1"}"#;
    both("PUT /v1/catalog/register", again);
    compare(&daemon, "registered");
    for request in ["GET /v1/catalog/register", "POST /v1/catalog/deregister"] {
        both(request, "{}");
    }
    let names =
        ["shop.service.consul A", "ext1.node.consul A", "shop.service.consul SRV", "51.2.0.192.in-addr.arpa PTR"];
    let answers = |daemon: &Daemon| names.map(|name| ask(daemon, name));
    let known = answers(&daemon);
    assert_eq!(known[1], ["192.0.2.51"]);
    assert!(known[0].contains(&"192.0.2.52".to_owned()), "{known:?}");
    // As other registrations, they are there again after a restart, an orderly one or not.
    let mut daemon = daemon;
    signal(daemon.pid(), "KILL");
    daemon.wait();
    let daemon = start();
    assert_eq!(answers(&daemon), known);
    compare(&daemon, "restarted");
    let both = |request: &str, body: &str| {
        let [theirs, ours] = [consul.http(), api(&daemon)].map(|server| send(server, request, &[], body));
        assert_eq!((ours.status, ours.body.trim()), (theirs.status, theirs.body.trim()), "{request} {body}");
    };
    for body in [
        "{}",
        r#"{"Node": "none"}"#,
        r#"{"Node": "ext1", "ServiceID": "none"}"#,
        r#"{"Node": "ext1", "CheckID": "none"}"#,
        r#"{"Node": "ext1", "Datacenter": "elsewhere"}"#,
        r#"{"Node": "ext1", "Bogus": 1}"#,
        r#"{"Node": "ext1", "CheckID": "alive"}"#,
        r#"{"Node": "ext1", "ServiceID": "shop1"}"#,
        r#"{"Node": "ext3", "Address": "192.0.2.53"}"#,
    ] {
        both("PUT /v1/catalog/deregister", body);
        compare(&daemon, body);
    }
    both("PUT /v1/catalog/deregister", r#"{"Node": "ext1"}"#);
    both("PUT /v1/catalog/deregister", r#"{"Node": "ext2"}"#);
    compare(&daemon, "deregistered");
    assert_eq!(daemon.ask("shop.service.consul A").rcode_name(), "NXDOMAIN");
}

/// Sidecars, empty checks and aliases are registered as with a Consul, over the API and by files.
#[test]
fn services_with_sidecars_are_what_a_consul_makes_of_them() {
    let services = [
        r#"{"Name": "side", "ID": "side1", "Port": 9000, "Tags": ["t"], "Meta": {"a": "b"}, "Address": "192.0.2.9",
            "Check": {"TTL": "1h", "Status": "passing"}, "Connect": {"SidecarService": {}}}"#,
        r#"{"Name": "side", "ID": "side2", "Port": 9001, "Connect": {"SidecarService": {"Port": 7777, "Name": "own-name",
            "Tags": ["own"], "Check": {"TTL": "1h"}, "Proxy": {"Config": {"a": 1}}}}}"#,
        r#"{"Name": "side3", "Connect": {"SidecarService": {}}}"#,
        r#"{"Name": "empty", "Check": {}}"#,
        r#"{"Name": "alias", "Check": {"AliasService": "side1", "Interval": "10s"}}"#,
    ];
    let Some(consul) = Consul::start("{}", None) else { return };
    let state = state_folder();
    let config = registering(state.path(), "").replace("monitor1", "monitor");
    let over_api = Setup::new(&config).start();
    let file =
        |service: &str| service.replace("SidecarService", "sidecar_service").replace("AliasService", "alias_service");
    let files = services.map(file).join(",");
    let config = CATALOG.replace("monitor1", "monitor") + FILES;
    let by_files = Setup::new(&config).file("consul.d/all.json", &format!("{{\"services\": [{files}]}}")).start();
    for body in services {
        for server in [consul.http(), api(&over_api)] {
            let response = send(server, "PUT /v1/agent/service/register", &[], body);
            assert_eq!(response.status, 200, "{body}: {}", response.body);
        }
    }
    let look = |server, path: &str| {
        let mut value = read(server, path);
        plain(&mut value);
        for item in value.as_object_mut().unwrap().values_mut() {
            let item = item.as_object_mut().unwrap();
            // Of a proxy's configuration only the destination is kept; an output tells more than a status.
            if let Some(proxy) = item.get_mut("Proxy").and_then(Value::as_object_mut) {
                proxy.retain(|key, _| key == "DestinationServiceName");
            }
            item.remove("Output");
        }
        value
    };
    for server in [api(&over_api), api(&by_files)] {
        for path in ["agent/services", "agent/checks"] {
            // Checks are run at some time within their interval.
            wait_until(path, PATIENCE, || (look(server, path) == look(consul.http(), path)).then_some(()));
        }
    }
    assert_eq!(ask(&by_files, "side.connect.consul SRV"), ask(&over_api, "side.connect.consul SRV"));
    for server in [consul.http(), api(&over_api)] {
        assert_eq!(send(server, "PUT /v1/agent/service/deregister/side1", &[], "").status, 200);
        assert!(read(server, "agent/services").get("side1-sidecar-proxy").is_none());
        for sidecar in [r#"{"ID": "x"}"#, r#"{"Connect": {"SidecarService": {}}}"#] {
            let body = format!(r#"{{"Name": "x", "Connect": {{"SidecarService": {sidecar}}}}}"#);
            let response = send(server, "PUT /v1/agent/service/register", &[], &body);
            assert!(response.status == 400 && response.body.contains("A SidecarService cannot "), "{}", response.body);
        }
    }
}

/// What is to be tried in a check that does not run here is not kept.
fn forget_definitions(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(definition) = fields.get_mut("Definition") {
                *definition = json!({});
            }
            fields.values_mut().for_each(forget_definitions);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_definitions),
        _ => {}
    }
}

#[test]
fn the_configuration_is_reloaded_over_the_api() {
    let Some(program) = require::program("consul") else { return };
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "")).start();
    let reload = || send(api(&daemon), "PUT /v1/agent/reload", &[], "");
    daemon.edit_config(|config| config + "\n[cache]\nsize = \"32MiB\"\n");
    assert_eq!((reload().status, reload().body), (200, String::new()));
    assert_eq!(daemon.metric("watershed_cache_limit_bytes", &[]), f64::from(32 << 20));
    daemon.edit_config(|config| config.replace("32MiB", "32 bits"));
    let refused = reload();
    assert_eq!(refused.status, 500);
    assert!(refused.body.contains("watershed.toml:") && refused.body.contains("size"), "{}", refused.body);
    assert_eq!(daemon.metric("watershed_daemon_reloads_total", &[("result", "failed")]), 1.0);
    daemon.edit_config(|config| config.replace("32 bits", "16MiB"));
    let (succeeds, text) = consul_cli(&program, &daemon, &["reload"]);
    assert!(succeeds && text.contains("reload triggered"), "{text}");
    assert_eq!(daemon.metric("watershed_cache_limit_bytes", &[]), f64::from(16 << 20));
}

#[test]
fn a_single_service_of_the_agent_is_followed_by_its_hash() {
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "")).start();
    put(&daemon, "agent/service/register", r#"{"Name": "web", "Port": 80}"#);
    let first = send(api(&daemon), "GET /v1/agent/service/web", &[], "");
    let hash = first.field("X-Consul-ContentHash").unwrap().to_owned();
    assert_eq!(serde_json::from_str::<Value>(&first.body).unwrap()["ContentHash"], *hash);
    let path = format!("agent/service/web?hash={hash}");
    let waiting = Waiting::ask(api(&daemon), &path, 0, "5m");
    put(&daemon, "agent/service/register", r#"{"Name": "db", "Port": 80}"#);
    put(&daemon, "agent/service/register", r#"{"Name": "web", "Port": 81}"#);
    let second = waiting.end();
    assert!(second.body.contains("\"Port\":81"));
    assert_ne!(second.field("X-Consul-ContentHash"), Some(&*hash));
}

#[test]
fn a_registration_is_checked_told_and_taken_back() {
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "")).start();
    let open = std::net::TcpListener::bind(free_address()).unwrap();
    let address = open.local_addr().unwrap();
    let body = json!({
        "Name": "db", "ID": "db1", "Address": address.ip().to_string(), "Port": address.port(), "Tags": ["main"],
        "Checks": [{ "TCP": address.to_string(), "Interval": "1s" }, { "CheckID": "alive", "TTL": "1h" }],
    });
    put(&daemon, "agent/service/register", &body.to_string());
    put(&daemon, "agent/service/register", r#"{"Name": "other", "Address": "192.0.2.7"}"#);
    wait_until("an open port", PATIENCE, || {
        (read(api(&daemon), "agent/checks")["service:db1:1"]["Status"] == "passing").then_some(())
    });
    assert_eq!(daemon.ask("db.service.consul A").rcode_name(), "NXDOMAIN", "not alive yet");
    for (request, expected) in [
        ("pass/alive?note=well", true),
        ("warn/alive", true), // in the answers, if not only_passing
        ("fail/alive", false),
        ("update/alive", true),
        ("update/alive", true),
    ] {
        put(&daemon, &format!("agent/check/{request}"), r#"{"Status": "passing", "Output": "very well"}"#);
        // What is told counts at once.
        assert_eq!(!ask(&daemon, "main.db.service.consul A").is_empty(), expected, "{request}");
    }
    assert_eq!(read(api(&daemon), "agent/checks")["alive"]["Output"], "very well");
    assert_eq!(ask(&daemon, "other.service.consul A"), ["192.0.2.7"]);

    put(&daemon, "agent/check/register", r#"{"Name": "more", "TTL": "1h", "ServiceID": "db1"}"#);
    assert!(ask(&daemon, "db.service.consul A").is_empty());
    put(&daemon, "agent/check/deregister/more", "");
    assert_eq!(ask(&daemon, "db.service.consul A"), [address.ip().to_string()]);
    put(&daemon, "agent/check/register", r#"{"Name": "node", "TTL": "1h", "Status": "critical"}"#);
    assert!(ask(&daemon, "other.service.consul A").is_empty(), "a check of the node counts for all on it");
    put(&daemon, "agent/check/pass/node", "");
    drop(open);
    wait_until("a closed port", PATIENCE, || ask(&daemon, "db.service.consul A").is_empty().then_some(()));
    put(&daemon, "agent/service/deregister/db1", "");
    put(&daemon, "agent/service/deregister/db1", "");
    assert_eq!(read(api(&daemon), "catalog/services"), json!({"other": []}));
    assert_eq!(daemon.metric("watershed_catalog_checks", &[]), 1.0, "its checks went with it");
}

#[test]
fn a_silent_ttl_check_takes_its_service_out() {
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "")).start();
    let body = r#"{"Name": "web", "Check": {"TTL": "1s", "Status": "passing"}}"#;
    put(&daemon, "agent/service/register", body);
    wait_until("its end", PATIENCE, || {
        let check = &read(api(&daemon), "agent/checks")["service:web"];
        (check["Status"] == "critical" && check["Output"] == "TTL expired").then_some(())
    });
    assert_eq!(daemon.ask("web.service.consul A").rcode_name(), "NXDOMAIN");
}

#[test]
fn registrations_survive_a_restart() {
    let state = state_folder();
    let start = || Setup::new(&registering(state.path(), "")).start();
    let daemon = start();
    put(&daemon, "agent/service/register", r#"{"Name": "web", "Address": "192.0.2.11", "Check": {"TTL": "1h"}}"#);
    put(&daemon, "agent/service/register", r#"{"Name": "idle", "Check": {"TTL": "1h"}}"#);
    put(&daemon, "agent/service/register", r#"{"Name": "gone"}"#);
    put(&daemon, "agent/service/register", r#"{"Name": "repaired"}"#);
    put(&daemon, "agent/service/maintenance/repaired?enable=true", "");
    put(&daemon, "agent/service/deregister/gone", "");
    put(&daemon, "agent/check/pass/service:web?note=well", "");
    let last = index_of(api(&daemon), "catalog/services");
    // The first stop is orderly, the second is none; after it, what was told lately may have to be told again.
    assert_eq!(daemon.stop().code, Some(0));
    let mut daemon = start();
    let check = |daemon: &Daemon, id: &str| {
        let check = &read(api(daemon), "agent/checks")[id];
        format!("{} {}", check["Status"].as_str().unwrap_or_default(), check["Output"].as_str().unwrap_or_default())
    };
    assert_eq!(check(&daemon, "service:web"), "passing well");
    assert_eq!(check(&daemon, "service:idle"), "critical ");
    assert_eq!(check(&daemon, "_service_maintenance:repaired"), "critical ");
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.11"]);
    assert!(index_of(api(&daemon), "catalog/services") > last, "whoever waits with an old index is answered");
    put(&daemon, "agent/service/register", r#"{"Name": "late", "Address": "192.0.2.12"}"#);
    signal(daemon.pid(), "KILL");
    daemon.wait();
    let daemon = start();
    assert_eq!(read(api(&daemon), "catalog/services"), json!({"idle": [], "late": [], "repaired": [], "web": []}));
    assert_eq!(ask(&daemon, "late.service.consul A"), ["192.0.2.12"]);
    assert_eq!(check(&daemon, "service:web"), "passing well", "saved at the orderly stop, and restored once more");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(state.path().join("registrations.json")).unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_damaged_file_is_kept_and_no_reason_not_to_start() {
    let state = state_folder();
    let file = state.path().join("registrations.json");
    for (damaged, good) in [
        ("{\"Version\": 1, \"Serv", 0),
        (r#"{"Version": 1, "Services": [{"Name": "good"}, {"Port": 1}], "Checks": [], "Maintenance": []}"#, 1),
    ] {
        std::fs::write(&file, damaged).unwrap();
        std::fs::write(state.path().join("catalog_state.json"), "nonsense").unwrap();
        let daemon = Setup::new(&registering(state.path(), "")).start();
        daemon.wait_for_log(0, |line| line.contains("registration not restored"));
        daemon.wait_for_log(0, |line| line.contains("catalog_state.json") && line.contains("not used"));
        assert_eq!(read(api(&daemon), "catalog/services").as_object().unwrap().len(), good, "{damaged}");
        assert_eq!(std::fs::read_to_string(state.path().join("registrations.json.damaged")).unwrap(), damaged);
        put(&daemon, "agent/service/register", r#"{"Name": "new"}"#);
        assert_eq!(daemon.stop().code, Some(0));
        let daemon = Setup::new(&registering(state.path(), "")).start();
        assert_eq!(read(api(&daemon), "catalog/services").as_object().unwrap().len(), good + 1, "{damaged}");
    }
}

#[test]
fn what_cannot_be_saved_is_not_said_to_be() {
    let state = state_folder();
    let lost = state.path().join("none");
    let daemon = Setup::new(&registering(&lost, "")).start();
    let (status, text) = refused(&daemon, "agent/service/register", r#"{"Name": "web"}"#);
    assert_eq!(status, 500);
    assert!(text.contains("in force, but not saved") && text.contains("registrations.json"), "{text}");
    std::fs::create_dir(&lost).unwrap();
    put(&daemon, "agent/service/register", r#"{"Name": "db"}"#);
    let saved = std::fs::read_to_string(lost.join("registrations.json")).unwrap();
    assert!(saved.contains("web") && saved.contains("db"), "{saved}");
}

#[test]
fn nothing_is_registered_that_should_not_be() {
    let state = state_folder();
    let config = registering(state.path(), "") + FILES;
    let file = r#"{"service": {"name": "web", "address": "192.0.2.11", "check": {"id": "alive", "ttl": "1h"}}}"#;
    let daemon = Setup::new(&config).file("consul.d/web.json", file).start();
    let script =
        r#""Interval": "1s", "Args": ["touch", "<DIR>/ran"]"#.replace("<DIR>", &state.path().display().to_string());
    for (path, body, expected) in [
        ("agent/service/register", format!(r#"{{"Name": "x", "Check": {{{script}}}}}"#), (400, "Scripts are disabled")),
        ("agent/check/register", format!(r#"{{"Name": "x", {script}}}"#), (400, "Scripts are disabled")),
        ("agent/service/register", r#"{"Name": "web"}"#.into(), (409, "defined by a file")),
        ("agent/service/deregister/web", String::new(), (409, "change the file")),
        ("agent/check/deregister/alive", String::new(), (409, "change the file")),
        ("agent/service/register", "x".repeat(3 << 20), (413, "")),
    ] {
        let (status, text) = refused(&daemon, path, &body);
        assert!(status == expected.0 && text.contains(expected.1), "{path}: {status} {text}");
    }
    // From other pages, and under names that are not ours.
    let own = api(&daemon).to_string();
    for (fields, status) in [
        (&[("Origin", "http://attacker.example")][..], 403),
        (&[("Origin", "null")], 403),
        (&[("Sec-Fetch-Site", "cross-site")], 403),
        (&[("Host", "attacker.example")], 421),
        (&[("Host", "attacker.example"), ("Origin", "http://attacker.example")], 421),
    ] {
        for request in ["PUT /v1/agent/service/register", "PUT /v1/agent/check/fail/alive"] {
            assert_eq!(send(api(&daemon), request, fields, r#"{"Name": "x"}"#).status, status, "{request} {fields:?}");
        }
    }
    let own_page = format!("http://{own}");
    assert_eq!(send(api(&daemon), "PUT /v1/agent/check/pass/alive", &[("Origin", &*own_page)], "").status, 200);
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.11"], "a TTL check of a file is told too");
    assert_eq!(read(api(&daemon), "catalog/services"), json!({"web": []}));
    assert!(!state.path().join("ran").exists());

    daemon.edit_config(|config| config.replace("enable_registration = true", "enable_registration = false"));
    assert!(daemon.reload().contains("reloaded"));
    for path in [
        "agent/service/register",
        "agent/service/deregister/x",
        "agent/check/register",
        "agent/check/deregister/x",
        "agent/service/maintenance/web?enable=true",
        "agent/maintenance?enable=true",
        "catalog/register",
        "catalog/deregister",
    ] {
        let (status, text) = refused(&daemon, path, r#"{"Name": "x"}"#);
        assert!(status == 403 && text.contains("set catalog.api.enable_registration"), "{path}: {status} {text}");
    }
    put(&daemon, "agent/check/fail/alive", "");
    assert_eq!(daemon.ask("web.service.consul A").rcode_name(), "NXDOMAIN");
}

#[test]
fn from_elsewhere_nothing_changes_without_the_token() {
    let Some(netns) = Netns::new("nameserver 192.0.2.1\n") else { return };
    let state = state_folder();
    let control = format!("[control]\nlisten = \"{}:8653\"\n", netns.guest());
    for (token, with, without) in [("", 403, 403), ("token = \"the secret\"\n", 200, 403)] {
        let daemon = Setup::new(&(registering(state.path(), token) + &control)).within(&netns).start();
        let register = |fields| send(api(&daemon), "PUT /v1/agent/service/register", fields, r#"{"Name": "x"}"#).status;
        assert_eq!(register(&[]), without, "{token}");
        assert_eq!(register(&[("X-Consul-Token", "the secret")]), with, "{token}");
        assert_eq!(register(&[("Authorization", "Bearer the secret")]), with, "{token}");
        assert_eq!(register(&[("X-Consul-Token", "the secre")]), 403, "{token}");
        // Reading is for everybody whom the address lets in.
        assert_eq!(send(api(&daemon), "GET /v1/catalog/services", &[], "").status, 200);
        assert_eq!(send(api(&daemon), "GET /v1/catalog/services", &[("X-Consul-Token", "other")], "").status, 200);
    }
}

#[test]
fn the_api_has_an_address_of_its_own_and_follows_the_configuration() {
    let state = state_folder();
    let daemon = Setup::new(&registering(state.path(), "listen = \"127.0.0.1:0\"\n")).start();
    let line = daemon.wait_for_log(0, |line| line.contains("serving Consul's API"));
    let own: SocketAddr = line.split("address=").nth(1).unwrap().parse().unwrap();
    put(&daemon, "agent/service/register", r#"{"Name": "web", "Address": "192.0.2.11"}"#);
    assert_eq!(read(own, "catalog/services"), json!({"web": []}));
    for (path, status) in [("/metrics", 404), ("/ready", 404), ("/v1/status/leader", 200)] {
        assert_eq!(http::get(own, path).0, status, "{path}");
    }
    assert_eq!(send(own, "GET /v1/catalog/services", &[("Host", "attacker.example")], "").status, 421);
    // Off, and on again: what was registered is kept meanwhile, and not served.
    daemon.edit_config(|config| {
        config.replace("enable_registration = true", "").replace("listen = \"127.0.0.1:0\"\n\n[control]", "[control]")
    });
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(http::get(api(&daemon), "/v1/catalog/services").0, 503);
    assert_ne!(ask(&daemon, "web.service.consul A"), ["192.0.2.11"]);
    daemon.edit_config(|config| config.replace("[catalog.api]\n", "[catalog.api]\nenable_registration = true\n"));
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.11"]);
}

#[test]
fn without_a_state_directory_it_says_what_is_lost() {
    let config = format!("{CATALOG}[catalog.api]\nenable_registration = true\n");
    let daemon = Setup::new(&config).start();
    daemon.wait_for_log(0, |line| line.contains("will not survive a restart; set server.state_directory"));
    put(&daemon, "agent/service/register", r#"{"Name": "web", "Address": "192.0.2.11"}"#);
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.11"]);
}
