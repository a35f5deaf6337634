//! Definition files are refused for what Consul refuses them for, beside `consul validate`.

use std::{fs, path::Path, process::Command};

use crate::harness::{catalog::with_definitions, *};

/// What `check` should say of a file, beside Consul 1.8.
enum Verdict {
    /// Both take it.
    Taken,
    /// Both refuse it; ours with this message, which begins with the line.
    Refused(&'static str),
    /// Consul refuses it, and `check` takes it, for this reason.
    Lenient(&'static str),
    /// Consul refuses it, because a later version has the key; `check` warns of it with this message.
    Warned(&'static str),
}

use Verdict::{Lenient, Refused, Taken, Warned};

const FILES: &[(&str, &str, Verdict)] = &[
    // The top of a file.
    ("a.json", r#"{"service": {"name": "a"}}"#, Taken),
    ("a.json", r#"{"SERVICE": {"NAME": "a", "Port": 1}}"#, Taken),
    (
        "a.json",
        r#"{"servcie": {"name": "a"}}"#,
        Refused("1: unknown key `servcie` in a definition file; did you mean `service`?"),
    ),
    (
        "a.json",
        "{\n\"Name\": \"a\",\n\"port\": 80}",
        Refused("2: unknown key `Name` in a definition file; a service is written as"),
    ),
    ("a.json", r#"{"_comment": "x", "service": {"name": "a"}}"#, Refused("1: unknown key `_comment`")),
    (
        "a.hcl",
        "service { name = \"a\" }\nchekc { id = \"x\" ttl = \"9s\" }",
        Refused("2: unknown key `chekc` in a definition file; did you mean `check`?"),
    ),
    ("a.json", r#"{"NodeName": "x"}"#, Lenient("keys may be written without underscores, as in the API")),
    (
        "a.json",
        r#"{"start_join": [], "acl": {"enabled": false}, "ports": {"dns": -1}, "server": false, "telemetry": {}}"#,
        Taken,
    ),
    (
        "a.json",
        r#"{"tls": {}, "ui_config": {}, "xds": {}, "peering": {}, "auto_reload_config": true}"#,
        Lenient("keys of an agent up to Consul 1.22"),
    ),
    ("a.json", r#"{"recursor": "192.0.2.1", "advertise_addrs": {}}"#, Lenient("keys of an agent before Consul 1.0")),
    ("a.json", r#"{"ports": {"dsn": 1}}"#, Lenient("what an agent's own keys hold is not looked at")),
    // A service.
    (
        "a.json",
        r#"{"service": {"name": "a", "prot": 1}}"#,
        Refused("1: unknown key `prot` in a service; did you mean `port`?"),
    ),
    (
        "a.json",
        "{\"services\": [{\"name\": \"a\"},\n{\"name\": \"b\",\n\"tag\": []}]}",
        Refused("3: unknown key `tag` in a service; did you mean `tags`?"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "weights": {"passin": 1}}}"#,
        Refused("1: unknown key `passin` in weights; did you mean `passing`?"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "tagged_addresses": {"lan": {"addr": "192.0.2.1"}}}}"#,
        Refused("1: unknown key `addr` in a tagged address"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "EnableTagOverride": true}}"#,
        Lenient("keys may be written without underscores, as in the API"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "meta": {"any": "thing"}, "enable_tag_override": true, "token": "x"}}"#,
        Taken,
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "locality": {"region": "x"}}}"#,
        Warned("1: key `locality` in a service has no effect here"),
    ),
    (
        "a.json",
        "{\"service\": {\"name\": \"a\",\n\"Ports\": [{\"name\": \"x\", \"port\": 1}]}}",
        Warned("2: key `Ports` in a service has no effect here"),
    ),
    // What is within a service.
    ("a.json", r#"{"service": {"name": "a", "connect": {"native": true}}}"#, Taken),
    (
        "a.json",
        r#"{"service": {"name": "a", "connect": {"nativ": true}}}"#,
        Refused("1: unknown key `nativ` in connect; did you mean `native`?"),
    ),
    (
        "a.hcl",
        "service {\n  name = \"a\"\n  port = 1\n  connect { sidecar_service { prot = 1 } }\n}",
        Refused("4: unknown key `prot` in a service; did you mean `port`?"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "kind": "connect-proxy", "port": 1, "proxy": {"destination_service_name": "b", "config": {"any": 1}}}}"#,
        Taken,
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "kind": "connect-proxy", "port": 1, "proxy": {"destination_service_name": "b", "upstream": []}}}"#,
        Refused("1: unknown key `upstream` in proxy; did you mean `upstreams`?"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "kind": "connect-proxy", "port": 1, "proxy": {"destination_service_name": "b", "upstreams": [{"destination_nam": "c"}]}}}"#,
        Refused("1: unknown key `destination_nam` in an upstream; did you mean `destination_name`?"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "kind": "connect-proxy", "port": 1, "proxy": {"destination_service_name": "b", "expose": {"paths": [{"pth": "/"}]}}}}"#,
        Refused("1: unknown key `pth` in an exposed path; did you mean `path`?"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "kind": "connect-proxy", "port": 1, "proxy": {"destination_service_name": "b", "mesh_gateway": {"mod": "local"}}}}"#,
        Refused("1: unknown key `mod` in mesh_gateway; did you mean `mode`?"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "kind": "connect-proxy", "port": 1, "proxy": {"destination_service_name": "b", "transparent_proxy": {}}}}"#,
        Warned("1: key `transparent_proxy` in proxy has no effect here"),
    ),
    // Checks.
    ("a.json", r#"{"check": {"id": "x", "ttl": "10s"}}"#, Taken),
    (
        "a.json",
        "{\"check\": {\"id\": \"x\",\n\"tcp\": \"localhost:1\",\n\"intervall\": \"10s\"}}",
        Refused("3: unknown key `intervall` in a check; did you mean `interval`?"),
    ),
    (
        "a.json",
        r#"{"service": {"name": "a", "checks": [{"ttl": "10s", "colour": "red"}]}}"#,
        Refused("1: unknown key `colour` in a check; correct or remove it"),
    ),
];

#[test]
fn definition_files_are_refused_for_the_keys_for_which_consul_refuses_them() {
    let Some(consul) = require::program("consul") else { return };
    let mut failures = Vec::new();
    for (name, text, verdict) in FILES {
        let is_taken = validate(&consul, name, text);
        let checked = with_definitions("", &[(name, text)]).check();
        let said = |message: &str| checked.text.contains(&format!("consul.d/{name}:{message}"));
        let is_met = match verdict {
            Taken => is_taken && checked.code == Some(0) && !said(""),
            Refused(message) => !is_taken && checked.code == Some(2) && said(message),
            Lenient(_) => !is_taken && checked.code == Some(0) && !said(""),
            Warned(message) => !is_taken && checked.code == Some(0) && said(message),
        };
        // A deviation that no longer applies is to go.
        let reason = if let Lenient(reason) = verdict { reason } else { "" };
        if !is_met {
            failures.push(format!(
                "{text} {reason}\n  consul takes it: {is_taken}; check: {:?}\n{}",
                checked.code, checked.text
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Whether Consul takes the file beside a minimal configuration.
fn validate(consul: &Path, name: &str, text: &str) -> bool {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("0.json"), r#"{"data_dir": "/nonexistent", "bind_addr": "127.0.0.1"}"#).unwrap();
    fs::write(folder.path().join(name), text).unwrap();
    Command::new(consul).arg("validate").arg("-quiet").arg(folder.path()).output().unwrap().status.success()
}

#[test]
fn keys_of_later_versions_are_warned_of_at_start_and_when_the_file_changes() {
    let daemon = with_definitions("", &[("a.json", r#"{"service": {"name": "a", "locality": {}}}"#)]).start();
    daemon.wait_for_log(0, |line| line.contains("WARN") && line.contains("a.json:1: key `locality` in a service"));
    let from = daemon.log_length();
    daemon.write("consul.d/a.json", "{\"service\": {\"name\": \"a\",\n\"ports\": []}}");
    daemon.wait_for_log(from, |line| line.contains("WARN") && line.contains("a.json:2: key `ports` in a service"));
    assert_eq!(daemon.ask("a.service.consul SRV").rcode_name(), "NOERROR");
}

#[test]
fn a_misspelt_key_in_a_changed_file_leaves_the_last_good_version_and_its_mending_is_logged() {
    let daemon = with_definitions("", &[("a.json", r#"{"service": {"name": "a", "address": "192.0.2.7"}}"#)]).start();
    let from = daemon.log_length();
    daemon.write("consul.d/a.json", r#"{"servcie": {"name": "a"}}"#);
    daemon.wait_for_log(from, |line| line.contains("did you mean `service`?"));
    assert_eq!(daemon.ask("a.service.consul A").data(), ["192.0.2.7"]);
    daemon.write("consul.d/a.json", r#"{"service": {"name": "a", "address": "192.0.2.8"}}"#);
    daemon.wait_for_log(from, |line| line.contains("mended") && line.contains("consul.d/a.json"));
    wait_until("the new address", PATIENCE, || {
        (daemon.ask("a.service.consul A").data() == ["192.0.2.8"]).then_some(())
    });
}
