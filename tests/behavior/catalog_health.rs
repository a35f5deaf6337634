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
    let refused = with_definitions("", &files).run_to_end();
    assert_eq!(refused.code, Some(2), "{}", refused.text);
    assert!(
        refused.text.contains("search.json:2: ") && refused.text.contains("enable_script_checks"),
        "{}",
        refused.text
    );
    let checked = with_definitions("", &files).check();
    assert!(checked.code == Some(2) && checked.text.contains("search.json:2: "), "{}", checked.text);

    let daemon = with_definitions("enable_script_checks = true\n", &files).start();
    // Nothing listens on these ports, so the checks say what they have to.
    assert_eq!(daemon.ask("galeradb.service.consul A").rcode_name(), "NXDOMAIN");
    wait_until("the checks", PATIENCE, || {
        (daemon.metric("watershed_catalog_checks", &[("status", "critical")]) == 2.0).then_some(())
    });
    // The same with checks that begin as passing.
    let passing = galeradb.replace(r#""timeout": "1s""#, r#""timeout": "1s", "status": "passing""#);
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
        (status == 503 && text.contains("web.json:2: ")).then_some(())
    });
    assert_eq!(daemon.metric("watershed_catalog_faults", &[]), 1.0);
    assert!(daemon.reload().contains("reload failed"), "all or nothing");

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
    daemon.edit_config(|config| CATALOG.replace("DIR", &daemon.folder().display().to_string()) + &config);
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
