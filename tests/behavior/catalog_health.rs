//! Services from definition files are answered as Consul does, and only while their checks say that they are well.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread,
};

use crate::harness::{
    catalog::{CATALOG, plain, services, with_definitions},
    daemon::forward,
    message::{AA, RA, RD, TC},
    programs::Consul,
    *,
};

/// Asks until the data of the answers are these, in any order; that they stay away for long is a failure.
#[track_caller]
fn wait_for(daemon: &Daemon, question: &str, expected: &[&str]) {
    let mut expected: Vec<_> = expected.iter().map(|&data| data.to_owned()).collect();
    expected.sort();
    wait_until(&format!("{question}: {expected:?}"), PATIENCE, || {
        let mut found = daemon.ask(question).data();
        found.sort();
        (found == expected).then_some(())
    });
}

/// A service `id` of this name at an address, with a check.
fn instance(name: &str, id: &str, address: SocketAddr, check: &str) -> String {
    format!(
        r#"{{"name": "{name}", "id": "{id}", "address": "{}", "port": {}, "check": {{{check}, "interval": "1s"}}}}"#,
        address.ip(),
        address.port()
    )
}

fn tcp_check(address: SocketAddr) -> String {
    format!(r#""tcp": "{address}""#)
}

/// Three database nodes that answer by TCP, and the file that defines them.
fn galera() -> (Vec<TcpListener>, String) {
    let nodes: Vec<_> = (0..3).map(|_| TcpListener::bind(free_address()).unwrap()).collect();
    let instances = nodes.iter().enumerate().map(|(number, node)| {
        let address = node.local_addr().unwrap();
        instance("galeradb", &format!("db{number}"), address, &tcp_check(address))
    });
    let text = services(&instances.collect::<Vec<_>>());
    (nodes, text)
}

fn ip(node: &TcpListener) -> String {
    node.local_addr().unwrap().ip().to_string()
}

#[test]
fn a_name_has_the_nodes_whose_port_is_open() {
    let (mut nodes, text) = galera();
    let daemon = with_definitions("", &[("galera.json", &text)]).start();
    let addresses: Vec<String> = nodes.iter().map(ip).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    wait_for(&daemon, "galeradb.service.consul A", &addresses);

    let closed = nodes.remove(1);
    let address = closed.local_addr().unwrap();
    drop(closed);
    wait_for(&daemon, "galeradb.service.consul A", &[addresses[0], addresses[2]]);
    daemon.wait_for_log(0, |line| line.contains("check changed state") && line.contains("critical"));
    wait_until("the metric", PATIENCE, || {
        (daemon.metric("watershed_catalog_instances", &[("status", "critical")]) == 1.0).then_some(())
    });

    nodes.push(TcpListener::bind(address).unwrap());
    wait_for(&daemon, "galeradb.service.consul A", &addresses);
    assert!(daemon.metric("watershed_catalog_check_changes_total", &[]) >= 5.0);
}

#[test]
fn the_two_definitions_work_as_they_stand() {
    let galeradb = r#"{"service": {"name": "galeradb", "tags": ["icinga-galera"], "port": 3306,
        "check": {"id": "mysql", "name": "Check mysql port listening", "tcp": "localhost:3306", "interval": "10s", "timeout": "1s"}}}"#;
    let elasticsearch = r#"{"service": {"name": "elasticsearch", "port": 9200,
        "check": {"script": "curl -s http://127.0.0.1:9200", "interval": "10s"}}}"#;
    let files = [("galeradb.json", galeradb), ("elastic/search.json", elasticsearch)];
    let refused = with_definitions("", &files).start();
    let line = refused.wait_for_log(0, |line| line.contains("search.json:2: "));
    assert!(line.contains("enable_script_checks"), "{line}");
    assert_eq!(refused.ask("elasticsearch.service.consul A").rcode_name(), "NXDOMAIN");
    drop(refused);
    let checked = with_definitions("", &files).check();
    assert!(checked.code == Some(2) && checked.text.contains("search.json:2: "), "{}", checked.text);

    let daemon = with_definitions("enable_script_checks = true\n", &files).start();
    // Nothing listens on these ports, so the checks say what they have to.
    assert_eq!(daemon.ask("galeradb.service.consul A").rcode_name(), "NXDOMAIN");
    wait_until("the checks", PATIENCE, || {
        (daemon.metric("watershed_catalog_checks", &[("status", "critical")]) == 2.0).then_some(())
    });
    // The same with a check that begins as passing, of a port that is open.
    let open = TcpListener::bind(free_address()).unwrap();
    let passing = galeradb.replace(r#""timeout": "1s""#, r#""timeout": "1s", "status": "passing""#);
    let passing = passing.replace("localhost:3306", &open.local_addr().unwrap().to_string());
    let daemon = with_definitions("", &[("galeradb.json", &passing)]).start();
    let reply = daemon.ask("icinga-galera.galeradb.service.consul SRV");
    assert_eq!(reply.answers(), ["icinga-galera.galeradb.service.consul. 0 SRV 1 1 3306 monitor1.node.dc1.consul."]);
    assert_eq!(reply.additional[0].line(), "monitor1.node.dc1.consul. 0 A 192.0.2.1");
}

/// A web server that answers with this status until told otherwise.
fn http_server(status: Arc<AtomicU16>) -> SocketAddr {
    let listener = TcpListener::bind(free_address()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 1024]);
            let status = status.load(Ordering::Relaxed);
            let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    address
}

#[test]
fn an_http_check_leaves_only_the_synced_node() {
    let statuses: Vec<_> = [200, 503, 503].map(|status| Arc::new(AtomicU16::new(status))).into();
    let servers: Vec<_> = statuses.iter().map(|status| http_server(status.clone())).collect();
    let instances = servers.iter().enumerate().map(|(number, &server)| {
        let address = SocketAddr::from(([192, 0, 2, 10 + number as u8], 3306));
        instance("galeradb", &format!("db{number}"), address, &format!(r#""http": "http://{server}/""#))
    });
    let text = services(&instances.collect::<Vec<_>>());
    let daemon = with_definitions("", &[("galera.json", &text)]).start();
    wait_for(&daemon, "galeradb.service.consul A", &["192.0.2.10"]);
    statuses[0].store(503, Ordering::Relaxed);
    statuses[2].store(200, Ordering::Relaxed);
    wait_for(&daemon, "galeradb.service.consul A", &["192.0.2.12"]);
    statuses[2].store(500, Ordering::Relaxed);
    wait_for(&daemon, "galeradb.service.consul A", &[]);
    assert_eq!(daemon.ask("galeradb.service.consul A").rcode_name(), "NXDOMAIN");
}

#[test]
fn a_changed_file_counts_and_a_faulty_one_is_refused() {
    let daemon = with_definitions("", &[("web.json", &plain("web", 2))]).start();
    wait_for(&daemon, "web.service.consul A", &["192.0.2.10", "192.0.2.11"]);
    daemon.write("consul.d/web.json", &plain("web", 1));
    wait_for(&daemon, "web.service.consul A", &["192.0.2.10"]);
    daemon.write("consul.d/api.hcl", "service { name = \"api\" address = \"192.0.2.20\" port = 1 }");
    wait_for(&daemon, "api.service.consul A", &["192.0.2.20"]);

    let from = daemon.log_length();
    daemon.write("consul.d/web.json", "{\"service\": {\n\"name\": \"web\", \"prot\": 1}}");
    let line = daemon.wait_for_log(from, |line| line.contains("file refused"));
    assert!(line.contains("web.json:2: ") && line.contains("prot"), "{line}");
    wait_for(&daemon, "web.service.consul A", &["192.0.2.10"]);
    wait_until("/ready", PATIENCE, || {
        let (status, text) = daemon.get("/ready");
        (status == 200 && text.contains("fault: ") && text.contains("web.json:2: ")).then_some(())
    });
    assert_eq!(daemon.metric("watershed_catalog_faults", &[]), 1.0);
    assert!(daemon.reload().contains("reloaded"), "a definition file costs no reload");
    wait_for(&daemon, "web.service.consul A", &["192.0.2.10"]);

    std::fs::remove_file(daemon.folder().join("consul.d/web.json")).unwrap();
    wait_for(&daemon, "web.service.consul A", &[]);
    wait_for(&daemon, "api.service.consul A", &["192.0.2.20"]);
    // What is answered is there before what is told of it.
    wait_until("the metric", PATIENCE, || (daemon.metric("watershed_catalog_faults", &[]) == 0.0).then_some(()));
}

#[test]
fn one_writer_is_given_and_the_next_when_it_fails() {
    let (mut nodes, text) = galera();
    let policy = "[catalog.service.galeradb]\npolicy = \"one\"\norder = [\"db1\", \"db0\"]\nhold_down = \"1d\"\n";
    let daemon =
        with_definitions(policy, &[("galera.json", &text.replace("}}", ", \"status\": \"passing\"}}"))]).start();
    let addresses: Vec<String> = nodes.iter().map(ip).collect();
    wait_for(&daemon, "galeradb.service.consul A", &[&addresses[1]]);
    let closed = nodes.remove(1);
    let address = closed.local_addr().unwrap();
    drop(closed);
    wait_for(&daemon, "galeradb.service.consul A", &[&addresses[0]]);
    nodes.push(TcpListener::bind(address).unwrap());
    daemon.wait_for_log(0, |line| line.contains("check changed state") && line.contains("passing"));
    assert_eq!(daemon.ask("galeradb.service.consul A").one(), addresses[0], "it stays for hold_down");
}

#[test]
fn answers_are_those_of_an_authority_that_recurses() {
    let upstream = Upstream::holding(&["db.example. 60 A 203.0.113.5"]);
    let files = [
        ("web.json", &*plain("web", 3)),
        ("far.hcl", "service { name = \"far\" address = \"db.example\" port = 3306 }"),
    ];
    let daemon = with_definitions(&forward(".", &[upstream.address()]), &files).start();
    for query in [query("web.service.consul A"), query("web.service.consul A").clear(RD)] {
        for reply in [daemon.udp(&query), daemon.tcp(&query)] {
            assert!(reply.has(AA) && reply.has(RA) && !reply.has(TC));
            assert_eq!(reply.answer.len(), 3);
        }
    }
    let reply = daemon.ask("WEB.service.Consul AAAA");
    assert_eq!((reply.rcode_name(), reply.answer.len()), ("NOERROR", 0));
    assert!(reply.soa().is_some_and(|soa| soa.line().to_lowercase().contains("ns.consul. hostmaster.consul.")));
    let reply = daemon.ask("none.service.consul A");
    assert_eq!((reply.rcode_name(), reply.soa().is_some()), ("NXDOMAIN", true));
    assert_eq!(daemon.ask("10.2.0.192.in-addr.arpa PTR").one(), "web.service.dc1.consul.");
    assert_eq!(daemon.ask("1.2.0.192.in-addr.arpa PTR").one(), "monitor1.node.dc1.consul.");
    assert_eq!(daemon.ask("99.2.0.192.in-addr.arpa PTR").answer.len(), 0);
    assert_eq!(upstream.count("99.2.0.192.in-addr.arpa PTR"), 1, "of other addresses, others know");
    let reply = daemon.ask("far.service.consul A");
    assert_eq!(reply.answers(), ["far.service.consul. 0 CNAME db.example.", "db.example. 60 A 203.0.113.5"]);
    assert!(upstream.asked().iter().all(|asked| !asked.contains("consul")), "no name of ours gets out");
}

#[test]
fn each_instance_is_first_now_and_then_and_what_does_not_fit_is_cut() {
    let daemon = with_definitions("", &[("web.json", &plain("web", 60))]).start();
    let mut first = std::collections::HashSet::new();
    for _ in 0..1000 {
        first.insert(daemon.ask("web.service.consul A").data().remove(0));
    }
    assert_eq!(first.len(), 60);
    let reply = daemon.udp(&query("web.service.consul SRV"));
    assert!(reply.has(TC) && reply.length <= 512 && !reply.answer.is_empty());
    assert_eq!(reply.answer.len(), reply.additional.len(), "each target with its address");
    let whole = daemon.tcp(&query("web.service.consul SRV"));
    assert_eq!((whole.answer.len(), whole.has(TC)), (60, false));

    let limits = "[catalog.soa]\nmin_ttl = 5\n";
    let limited = CATALOG.replace("[catalog.files]", "udp_answer_limit = 3\n[catalog.files]") + limits;
    let daemon = Setup::new(&limited).file("consul.d/web.json", &plain("web", 60)).start();
    let reply = daemon.udp(&query("web.service.consul A"));
    assert_eq!((reply.answer.len(), reply.has(TC)), (3, false), "as Consul cuts, in silence");
}

#[test]
fn the_catalog_comes_and_goes_with_the_configuration() {
    let agent = Upstream::saying("203.0.113.9");
    let setup = Setup::new(&forward("consul", &[agent.address()])).file("consul.d/web.json", &plain("web", 1));
    let daemon = setup.start();
    assert_eq!(daemon.ask("web.service.consul A").one(), "203.0.113.9");
    daemon.edit_config(|config| CATALOG.replace("<DIR>", &daemon.folder().display().to_string()) + &config);
    let refused = daemon.reload();
    assert!(refused.contains("is the catalog's domain"), "{refused}");
    let from_agent = forward("consul", &[agent.address()]);
    daemon.edit_config(|config| config.replace(&from_agent, ""));
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(daemon.ask("web.service.consul A").one(), "192.0.2.10");
    daemon.edit_config(|config| config.replace("[catalog]\n", "[catalog]\ndomain = \"lab\"\n"));
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(daemon.ask("web.service.lab A").one(), "192.0.2.10");
}

#[test]
fn the_command_line_names_a_folder() {
    let setup =
        Setup::new("[catalog]\nnode_name = \"n\"\naddress = \"192.0.2.1\"\n").file("s/web.json", &plain("web", 1));
    let folder = setup.folder().join("s").display().to_string();
    let daemon = setup.arguments(&["--services", &folder]).start();
    assert_eq!(daemon.ask("web.service.consul A").one(), "192.0.2.10");
}

/// Servers that bend HTTP's grammar: what Consul's check takes for healthy, ours does, and nothing else.
#[test]
fn http_checks_read_what_those_of_consul_read() {
    let Some(consul) = Consul::start("{}", None) else { return };
    let ok = "HTTP/1.1 200 OK\r\n";
    let fields = |count: usize, size: usize| format!("X-Filler: {}\r\n", "a".repeat(size)).repeat(count);
    let end = "Content-Length: 2\r\n\r\nok";
    let whole = |header: &str| format!("{ok}{header}{end}");
    let responses: Vec<(&str, String)> = vec![
        ("space", whole("Server : x\r\n")),
        ("tab", whole("Server\t: x\r\n")),
        ("length-space", format!("{ok}Content-Length : 1\r\n\r\nok")),
        ("folded", whole("X-A: a\r\n b\r\n\tc\r\n")),
        ("folded-first", whole(" x: y\r\n")),
        ("odd-names", whole("X A: b\r\nX(A): b\r\nGröße: b\r\n: b\r\nX/\0: b\r\n")),
        ("odd-values", whole("X: \u{1}\r\nY: a\0b\r\nZ: \u{7f}ö\r\n")),
        ("no-colon", whole("nonsense\r\n")),
        ("line-feeds", "HTTP/1.1 200 OK\nServer: x\nContent-Length: 2\n\nok".to_owned()),
        ("150-fields", whole(&fields(150, 3))),
        ("40000-fields", whole(&fields(40_000, 3))),
        ("600-kB", whole(&fields(1, 600_000))),
        ("11-MB", whole(&fields(11, 1_000_000))),
        ("no-reason", format!("HTTP/1.1 200\r\n{end}")),
        ("two-spaces", format!("HTTP/1.1  200 OK\r\n{end}")),
        ("glued", format!("HTTP/1.1 200OK\r\n{end}")),
        ("http-1.2", format!("HTTP/1.2 200 OK\r\n{end}")),
        ("http-2.0", format!("HTTP/2.0 200 OK\r\n{end}")),
        ("icy", format!("ICY 200 OK\r\n{end}")),
        ("299", format!("HTTP/1.1 299 X\r\n{end}")),
        ("1000", format!("HTTP/1.1 1000 X\r\n{end}")),
        ("600", format!("HTTP/1.1 600 X\r\n{end}")),
        ("429", format!("HTTP/1.1 429 Busy\r\n{end}")),
        ("continue", format!("HTTP/1.1 100 Continue\r\n\r\n{ok}{end}")),
        ("early", format!("{}{ok}{end}", "HTTP/1.1 103 Early\r\n\r\n".repeat(6))),
        ("two-lengths", format!("{ok}Content-Length: 2\r\nContent-Length: 3\r\n\r\nok")),
        ("bad-length", format!("{ok}Content-Length: -2\r\n\r\nok")),
        ("long-length", format!("{ok}Content-Length: 20\r\n\r\nok")),
        ("chunked", format!("{ok}Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")),
        ("bad-chunk", format!("{ok}Transfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n")),
        ("gzip", format!("{ok}Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n")),
        ("cut", format!("{ok}Server: x\r\n")),
        ("empty", String::new()),
        ("leading-line", format!("\r\n{ok}{end}")),
        ("redirect", format!("HTTP/1.1 302 Found\r\nLocation: /space\r\n{end}")),
        ("redirect-space", format!("HTTP/1.1 302 Found\r\nLocation : /space\r\n{end}")),
    ];
    let server = serve_raw(responses.clone());
    let checks = responses.iter().map(|(name, _)| {
        serde_json::json!({"id": name, "name": name, "http": format!("http://{server}/{name}"), "interval": "5s", "timeout": "10s"})
    });
    let definitions = serde_json::json!({ "checks": checks.collect::<Vec<_>>() }).to_string();
    let config = "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n[catalog.files]\ndirectory = \"<DIR>/consul.d\"\n";
    let daemon = Setup::new(config).file("consul.d/checks.json", &definitions).start();
    for check in serde_json::from_str::<serde_json::Value>(&definitions).unwrap()["checks"].as_array().unwrap() {
        let (status, text) =
            http::request(consul.http(), "PUT", "/v1/agent/check/register", &check.to_string()).unwrap();
        assert_eq!(status, 200, "{text}");
    }
    let verdicts = |server| {
        let (_, text) = http::get(server, "/v1/agent/checks");
        let checks: serde_json::Value = serde_json::from_str(&text).unwrap();
        let verdict = |name: &str| {
            let check = &checks[name];
            // Neither has an output before its first run, at some time within the interval.
            let output = check["Output"].as_str().filter(|output| !output.is_empty())?;
            Some((check["Status"].as_str()?.to_owned(), output.to_owned()))
        };
        responses.iter().map(|(name, _)| verdict(name)).collect::<Option<Vec<_>>>()
    };
    let wait = |what, server| wait_until(what, 4 * PATIENCE, || verdicts(server));
    let (theirs, ours) = (wait("Consul's checks", consul.http()), wait("our checks", daemon.control.unwrap()));
    for (((name, _), theirs), ours) in responses.iter().zip(theirs).zip(ours) {
        assert_eq!(ours.0, theirs.0, "{name}: {} / {}", ours.1, theirs.1);
        if theirs.0 == "passing" {
            assert_eq!(ours.1, theirs.1, "{name}");
        }
    }
}

/// A server that answers a request for a name with the octets that it stands for.
fn serve_raw(responses: Vec<(&'static str, String)>) -> SocketAddr {
    let listener = TcpListener::bind(free_address()).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let responses = responses.clone();
            thread::spawn(move || {
                let (mut request, mut part) = (Vec::new(), [0; 4096]);
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut part) {
                        Ok(length) if length > 0 => request.extend_from_slice(&part[..length]),
                        _ => return,
                    }
                }
                let request = String::from_utf8_lossy(&request).into_owned();
                let name = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
                if let Some((_, response)) = responses.iter().find(|(known, _)| *known == name) {
                    let _ = stream.write_all(response.as_bytes());
                }
            });
        }
    });
    address
}
