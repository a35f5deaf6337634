use super::*;

fn define(json: &str) -> Result<Definition, Vec<Problem>> {
    let declaration: Declaration = serde_json::from_str(json).unwrap_or_else(|e| panic!("{json}: {e}"));
    declaration.define(Scripts::Allowed)
}

fn probe(json: &str) -> Probe {
    match define(json).unwrap_or_else(|e| panic!("{json}: {e:?}")).kind {
        Kind::Probe { probe, .. } => probe,
        kind => panic!("{json}: {kind:?}"),
    }
}

fn target(host: &str, port: u16) -> Target {
    Target { host: host.to_owned(), port }
}

const PLAIN: Tls = Tls { server_name: None, trust: Trust::Verified };

#[test]
fn the_definitions_in_use_work_as_they_stand() {
    let galera = r#"{"id": "mysql", "name": "Check mysql port listening", "tcp": "localhost:3306", "interval": "10s",
                     "timeout": "1s"}"#;
    assert_eq!(
        define(galera).unwrap(),
        Definition {
            name: Some("Check mysql port listening".to_owned()),
            notes: None,
            kind: Kind::Probe {
                probe: Probe::Tcp(target("localhost", 3306), None),
                interval: Duration::from_secs(10),
                timeout: Duration::from_secs(1),
            },
            initial: None,
            thresholds: Thresholds { passing: 0, warning: 0, critical: 0 },
            deregister_after: None,
            output_bytes: 4096,
        }
    );
    let elasticsearch = r#"{"script": "curl -s http://127.0.0.1:9200", "interval": "10s"}"#;
    let Kind::Probe { probe, timeout, .. } = define(elasticsearch).unwrap().kind else { panic!() };
    assert_eq!(probe, Probe::Script(["/bin/sh", "-c", "curl -s http://127.0.0.1:9200"].map(str::to_owned).into()));
    assert_eq!(timeout, Duration::from_secs(30));
}

#[test]
fn every_kind_is_read_in_both_spellings() {
    let server_name = Some(ServerName::try_from("db.example").unwrap());
    for (json, expected) in [
        (r#"{"args": ["a", "b"], "interval": "1s"}"#, Probe::Script(vec!["a".into(), "b".into()])),
        (r#"{"ScriptArgs": ["a"], "Interval": "1s", "Token": "t"}"#, Probe::Script(vec!["a".into()])),
        (
            r#"{"TCP": "[2001:db8::1]:25", "TCPUseTLS": true, "TLSServerName": "db.example", "Interval": "1s"}"#,
            Probe::Tcp(target("2001:db8::1", 25), Some(Tls { server_name, trust: Trust::Verified })),
        ),
        (r#"{"udp": ":53", "interval": 1000000000}"#, Probe::Udp(target("localhost", 53))),
        (
            r#"{"grpc": "127.0.0.1:50051/a.B/c", "grpc_use_tls": false, "interval": "1s", "http": "", "ttl": null}"#,
            Probe::Grpc(target("127.0.0.1", 50051), None, "a.B/c".to_owned()),
        ),
        (
            r#"{"GRPC": "127.0.0.1:50051", "GRPCUseTLS": true, "TLSSkipVerify": true, "Interval": "1s"}"#,
            Probe::Grpc(
                target("127.0.0.1", 50051),
                Some(Tls { server_name: None, trust: Trust::Anyone }),
                String::new(),
            ),
        ),
        // The only kind that has TLS if nothing is said.
        (r#"{"H2PING": "a.example:1", "Interval": "1s"}"#, Probe::H2Ping(target("a.example", 1), Some(PLAIN))),
        (
            r#"{"h2ping": "a.example:1", "h2ping_use_tls": false, "interval": "1s"}"#,
            Probe::H2Ping(target("a.example", 1), None),
        ),
    ] {
        assert_eq!(probe(json), expected, "{json}");
    }
    let alias = |node: Option<&str>, service: Option<&str>| {
        Kind::Alias(Alias { node: node.map(str::to_owned), service: service.map(str::to_owned) })
    };
    for (json, expected) in [
        (r#"{"ttl": "30s", "timeout": "1s"}"#, Kind::Ttl(Duration::from_secs(30))),
        (r#"{"alias_service": "web"}"#, alias(None, Some("web"))),
        (r#"{"AliasNode": "db1", "AliasService": "db"}"#, alias(Some("db1"), Some("db"))),
        (r#"{"alias_node": "db1"}"#, alias(Some("db1"), None)),
    ] {
        assert_eq!(define(json).unwrap().kind, expected, "{json}");
    }
}

#[test]
fn http_requests_are_read_in_full() {
    let Probe::Http(http) = probe(
        r#"{"http": "https://us%40er:pa:ss@a.example:8443/health?x=1", "method": "POST", "body": "{}", "interval": "1s",
            "header": {"X-Two": ["a", "b"], "user-agent": ["us"]}, "tls_skip_verify": true, "disable_redirects": true}"#,
    ) else {
        panic!("not http")
    };
    assert_eq!(http.url.as_str(), "https://a.example:8443/health?x=1");
    assert_eq!((http.method, http.body.as_str(), http.redirects), (Method::POST, "{}", Redirects::Take));
    assert_eq!(http.tls.trust, Trust::Anyone);
    let mut headers: Vec<_> =
        http.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    headers.sort();
    assert_eq!(
        headers,
        [
            ("accept", "text/plain, text/*, */*"),
            ("authorization", "Basic dXNAZXI6cGE6c3M="),
            ("user-agent", "us"),
            ("x-two", "a"),
            ("x-two", "b"),
        ]
    );
}

#[test]
fn small_values_are_raised_as_consul_raises_them() {
    let json = r#"{"tcp": "a:1", "interval": "10ms", "deregister_critical_service_after": "1s", "output_max_size": 9999999,
                   "failures_before_critical": 3, "status": "passing"}"#;
    let definition = define(json).unwrap();
    assert!(matches!(definition.kind, Kind::Probe { interval: MIN_INTERVAL, timeout: TIMEOUT, .. }));
    assert_eq!(definition.deregister_after, Some(MIN_DEREGISTER_AFTER));
    assert_eq!(definition.output_bytes, OUTPUT_BYTES);
    assert_eq!(definition.thresholds, Thresholds { passing: 0, warning: 3, critical: 3 });
    assert_eq!(definition.initial, Some(Status::Passing));
}

/// Consul passes over it.
#[test]
fn an_alias_may_have_an_interval() {
    let definition = define(r#"{"alias_service": "a", "interval": "1s"}"#).unwrap();
    assert!(matches!(definition.kind, Kind::Alias(_)));
}

#[test]
fn every_fault_is_named() {
    for (json, expected) in [
        ("{}", vec!["the check says not what to do"]),
        (r#"{"tcp": "a:1", "ttl": "1s"}"#, vec!["several in one (tcp, ttl)"]),
        (r#"{"tcp": "a:1"}"#, vec!["the tcp check has no interval"]),
        (r#"{"tcp": "a:1", "interval": "0s"}"#, vec!["the tcp check has no interval"]),
        (r#"{"ttl": "1s", "interval": "1s"}"#, vec!["the ttl check has an interval"]),
        (r#"{"docker_container_id": "c", "shell": "/bin/sh"}"#, vec!["docker_container_id checks are not supported"]),
        (r#"{"os_service": "c", "interval": "1s"}"#, vec!["os_service checks are not supported"]),
        (r#"{"tcp": "a", "interval": "1s"}"#, vec!["tcp \"a\" is not HOST:PORT"]),
        (r#"{"udp": "::1:53", "interval": "1s"}"#, vec!["udp \"::1:53\" is not"]),
        (r#"{"http": "ftp://a/", "interval": "1s"}"#, vec!["http \"ftp://a/\" is not"]),
        (r#"{"http": "/health", "interval": "1s"}"#, vec!["http \"/health\" is not"]),
        (r#"{"tcp": "a:1", "interval": "1s", "failures_before_warning": 2}"#, vec!["failures_before_warning is above"]),
        (
            r#"{"http": "x", "intervall": "1s", "status": "ok", "method": "G T", "header": {"a b": ["c"]},
                "TLSServerName": "-.-"}"#,
            vec![
                "unknown key `intervall` in a check; did you mean `interval`?",
                "http check has no interval",
                "tls_server_name",
                "header \"a b\"",
                "method \"G T\"",
                "http \"x\"",
                "status \"ok\"",
            ],
        ),
    ] {
        let problems = define(json).expect_err(json);
        assert_eq!(problems.len(), expected.len(), "{json}: {problems:?}");
        for (problem, part) in problems.iter().zip(expected) {
            assert!(problem.to_string().contains(part), "{json}: {problem}");
        }
    }
}

#[test]
fn commands_run_only_where_they_are_allowed() {
    for json in [r#"{"args": ["true"], "interval": "1s"}"#, r#"{"script": "true", "interval": "1s"}"#] {
        let declaration: Declaration = serde_json::from_str(json).unwrap();
        assert_eq!(declaration.define(Scripts::Refused), Err(vec![Problem::Script]), "{json}");
    }
}
