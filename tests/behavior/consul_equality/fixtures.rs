//! The same services in a real Consul and in our catalog.

use std::{fs, path::Path};

use tempfile::TempDir;

use crate::harness::{Daemon, Setup, Upstream, daemon::forward, programs::Consul, wait_until};

use super::START_LIMIT;

/// How our catalog comes to know what that Consul knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It reads the definition files that the agent reads.
    Files,
    /// It follows the agent over its HTTP API.
    Agent,
}

/// What both are told besides their services.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    pub name: &'static str,
    /// Under which domain is asked, Consul's own or its second.
    pub domain: &'static str,
    /// What stands in Consul's `dns_config`.
    pub theirs: &'static str,
    /// What stands in our `[catalog]`.
    pub ours: &'static str,
    /// A definition file besides those of all settings.
    pub more: &'static str,
    /// Whether Consul has recursors, which we always have.
    pub recursors: bool,
    pub limits: Limits,
    /// Every so manieth question is asked.
    pub stride: usize,
}

/// The limits that the setting has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    pub a_record: Option<usize>,
    pub udp_answer: Option<usize>,
    pub enable_truncate: bool,
}

/// Both of them, with the upstream of other names.
pub struct Bench {
    pub way: Way,
    pub setting: Setting,
    pub consul: Consul,
    pub daemon: Daemon,
    pub recursor: Upstream,
    _definitions: TempDir,
}

impl Bench {
    /// Starts both and waits until both know all; `None` where the test is to be skipped.
    pub fn start(way: Way, setting: Setting) -> Option<Self> {
        let recursor = Upstream::holding(EXTERNAL);
        let definitions = tempfile::tempdir().unwrap();
        for (name, text) in fixtures(&setting) {
            fs::write(definitions.path().join(name), text).unwrap();
        }
        let recursors = if setting.recursors { format!("\"{}\"", recursor.address()) } else { String::new() };
        let (alt, theirs) = (if setting.domain == "consul" { "" } else { setting.domain }, setting.theirs);
        let config = format!(
            r#"{{"node_name": "{NODE}", "recursors": [{recursors}], "alt_domain": "{alt}",
                "dns_config": {{{theirs}}}, "log_level": "warn"}}"#,
        );
        let consul = Consul::start_with(&config, Some(definitions.path()), None)?;
        wait_until_all_is_known(&consul);
        if way == Way::Agent {
            // What no definition file can say.
            REGISTRATIONS.iter().for_each(|body| consul.register(body));
            QUERIES.iter().for_each(|body| drop(consul.create_query(body)));
        }
        let daemon = ours(way, &setting, &consul, definitions.path(), &recursor).start();
        if way == Way::Agent {
            wait_until("contact with the agent", START_LIMIT, || {
                (daemon.metric("watershed_catalog_source_up", &[("source", "consul")]) == 1.0).then_some(())
            });
        }
        Some(Self { way, setting, consul, daemon, recursor, _definitions: definitions })
    }
}

/// Waits until the agent has told its catalog, which it does bit by bit.
fn wait_until_all_is_known(consul: &Consul) {
    let count = |path: &str| consul.get(path).as_object().map_or(0, serde_json::Map::len);
    let services = count("/v1/agent/services");
    let checks = count("/v1/agent/checks");
    // It tells of its node last.
    let meta = consul.get("/v1/agent/self")["Meta"].clone();
    wait_until("what the agent knows in its catalog", START_LIMIT, || {
        let node = consul.get(&format!("/v1/catalog/node/{NODE}"));
        let known = consul.get(&format!("/v1/health/node/{NODE}"));
        let statuses = consul.get("/v1/agent/checks");
        let is_same = |check: &serde_json::Value| {
            let own = &statuses[check["CheckID"].as_str().unwrap()];
            own.is_null() || own["Status"] == check["Status"]
        };
        let known = known.as_array().unwrap();
        // The catalog has the health of the node besides.
        let is_whole = node["Services"].as_object().map_or(0, serde_json::Map::len) >= services
            && node["Node"]["Meta"] == meta
            && known.len() > checks
            && known.iter().all(is_same);
        is_whole.then_some(())
    });
}

fn ours(way: Way, setting: &Setting, consul: &Consul, definitions: &Path, recursor: &Upstream) -> Setup {
    let Setting { ours, domain, .. } = setting;
    let alt = if *domain == "consul" { String::new() } else { format!("alt_domain = \"{domain}\"\n") };
    let (inline, tables) = ours.split_once("[catalog.").unwrap_or((ours, ""));
    let tables = if tables.is_empty() { String::new() } else { format!("[catalog.{tables}") };
    let (own, source) = match way {
        Way::Files => (
            format!("node_name = \"{NODE}\"\naddress = \"{}\"\n", consul.ip()),
            format!("[catalog.files]\ndirectory = \"{}\"\n", definitions.display()),
        ),
        Way::Agent => (String::new(), format!("[catalog.consul]\naddress = \"http://{}\"\n", consul.http())),
    };
    let others = forward(".", &[recursor.address()]);
    Setup::new(&format!("[catalog]\n{own}{alt}{inline}\n{source}{tables}\n{others}"))
}

/// The definition files, name and text of each.
fn fixtures(setting: &Setting) -> Vec<(&'static str, String)> {
    let mut files: Vec<_> = FILES.iter().map(|(name, text)| (*name, (*text).to_owned())).collect();
    files.push(("counts.json", counts()));
    if !setting.more.is_empty() {
        files.push(("more.json", setting.more.to_owned()));
    }
    files
}

/// Services of many instances.
fn counts() -> String {
    let instance = |name: &str, number: usize, address: String, port: usize| {
        format!(r#"{{"name": "{name}", "id": "{name}{number}", "port": {port}, "address": "{address}"}}"#)
    };
    let mut services = Vec::new();
    for (name, count) in COUNTS {
        services.extend((0..*count).map(|number| match *name {
            "many-v6" => instance(name, number, format!("2001:db8:1::{number:x}"), 80),
            "many-ports" => instance(name, number, String::new(), 8000 + number),
            _ => instance(name, number, format!("198.18.{count}.{number}"), 80),
        }));
    }
    format!("{{\"services\": [{}]}}", services.join(",\n"))
}

/// Services of `counts`.
pub const COUNTS: &[(&str, usize)] = &[
    ("two", 2),
    ("three", 3),
    ("four", 4),
    ("ten", 10),
    ("a-name-that-is-long-enough-to-matter-to-the-length-of-answers", 20),
    ("many", 60),
    ("many-v6", 60),
    ("many-ports", 60),
];

/// With letters of both cases, which answers keep.
pub const NODE: &str = "Monitor-1";

/// Nodes without an agent here, in the words of the catalog's API.
const REGISTRATIONS: &[&str] = &[
    r#"{"Node": "Db7.Rack-A", "Address": "198.51.100.7", "NodeMeta": {"rack": "a7", "os": "linux"},
        "Service": {"ID": "pg", "Service": "Postgres", "Tags": ["primary"], "Port": 5432, "Weights": {"Passing": 7, "Warning": 2}},
        "Check": {"CheckID": "c", "Name": "c", "Status": "warning", "ServiceID": "pg"}}"#,
    r#"{"Node": "db8", "Address": "2001:db8:8::8", "Service": {"ID": "pg", "Service": "postgres", "Tags": ["replica"], "Port": 5433}}"#,
    r#"{"Node": "db9", "Address": "198.51.100.9", "Service": {"ID": "pg", "Service": "postgres", "Port": 5432},
        "Check": {"CheckID": "node", "Name": "node", "Status": "critical"}}"#,
    r#"{"Node": "dual8", "Address": "198.51.100.10", "TaggedAddresses": {"lan_ipv6": "2001:db8:8::10", "wan": "203.0.113.10"},
        "Service": {"ID": "dual", "Service": "tagged-node", "Port": 1}}"#,
    r#"{"Node": "outside", "Address": "db.example", "NodeMeta": {"external-node": "true"},
        "Service": {"ID": "ext", "Service": "external", "Port": 3306}}"#,
    r#"{"Node": "no_host", "Address": "198.51.100.11", "Service": {"ID": "web9", "Service": "web", "Tags": ["v9"], "Port": 80}}"#,
];

/// Prepared queries.
const QUERIES: &[&str] = &[
    r#"{"Name": "web", "Service": {"Service": "web"}, "DNS": {"TTL": "11s"}}"#,
    r#"{"Name": "postgres", "Service": {"Service": "postgres", "OnlyPassing": true}}"#,
    r#"{"Name": "all-states", "Service": {"Service": "all-states", "Tags": ["!none"]}}"#,
    r#"{"Name": "critical", "Service": {"Service": "critical"}}"#,
];

const FILES: &[(&str, &str)] = &[
    ("agent.json", include_str!("../fixtures/consul/agent.json")),
    ("addresses.json", include_str!("../fixtures/consul/addresses.json")),
    ("aliases.json", include_str!("../fixtures/consul/aliases.json")),
    ("health.json", include_str!("../fixtures/consul/health.json")),
    ("mesh.hcl", include_str!("../fixtures/consul/mesh.hcl")),
    ("names.json", include_str!("../fixtures/consul/names.json")),
    // A server of Consul's has it by itself.
    ("consul.json", r#"{"service": {"name": "consul", "port": 8300}}"#),
];

/// What the upstream of both holds.
pub const EXTERNAL: &[&str] = &[
    "db.example 300 A 203.0.113.5",
    "www.example 120 CNAME edge.example",
    "edge.example 60 A 203.0.113.6",
    "edge.example 60 A 203.0.113.7",
    "v6.example 300 AAAA 2001:db8:f::5",
];
