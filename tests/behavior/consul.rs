//! The seed of it all: a monitoring host finds its database in Consul and every other host through the recursors.

use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::harness::{daemon::forward, netns::Netns, programs::Consul, *};

/// The nodes of a Galera cluster, each an open port on an address of its own.
struct Cluster {
    nodes: Vec<(IpAddr, Option<TcpListener>)>,
    port: u16,
}

impl Cluster {
    fn new() -> Self {
        let port = free_port().port();
        let node = || {
            let ip = free_address().ip();
            (ip, Some(TcpListener::bind((ip, port)).unwrap()))
        };
        Self { nodes: vec![node(), node(), node()], port }
    }

    /// Definitions as `/etc/consul.d` has them.
    fn definitions(&self) -> String {
        let services: Vec<String> = (self.nodes.iter().enumerate())
            .map(|(number, (ip, _))| {
                let port = self.port;
                format!(
                    r#"{{"id": "galeradb{number}", "name": "galeradb", "address": "{ip}", "port": {port},
                        "check": {{"tcp": "{ip}:{port}", "interval": "1s", "timeout": "1s"}}}}"#
                )
            })
            .collect();
        format!(r#"{{"services": [{}]}}"#, services.join(","))
    }

    /// The addresses of the nodes whose port is open, sorted.
    fn healthy(&self) -> Vec<String> {
        let mut ips: Vec<String> =
            self.nodes.iter().filter(|(_, port)| port.is_some()).map(|(ip, _)| ip.to_string()).collect();
        ips.sort();
        ips
    }
}

fn recursor() -> Upstream {
    Upstream::saying("198.51.100.1")
}

/// No name of Consul's has come here.
#[track_caller]
fn demand_no_leak(recursor: &Upstream) {
    let leaks: Vec<String> = recursor.asked().into_iter().filter(|asked| asked.contains("consul")).collect();
    assert!(leaks.is_empty(), "{leaks:?}");
}

#[test]
fn the_database_is_found_at_its_healthy_nodes_while_external_names_resolve() {
    let mut cluster = Cluster::new();
    let Some(consul) = Consul::start(&cluster.definitions(), None) else { return };
    let recursor = recursor();
    let daemon = Setup::new(&(forward(".", &[recursor.address()]) + &forward("consul", &[consul.dns()]))).start();
    let mut externals = 0;
    let mut becomes = |what: &str, expected: Vec<String>| {
        wait_until(what, 2 * PATIENCE, || {
            externals += 1;
            assert_eq!(daemon.ask(&format!("host{externals}.example A")).one(), "198.51.100.1");
            // What libc asks, and what Consul's UDP would cut to three without EDNS.
            let mut found = daemon.udp(&query("galeradb.service.consul A")).data();
            found.sort();
            (found == expected).then_some(())
        });
    };
    becomes("all three nodes", cluster.healthy());
    cluster.nodes[1].1 = None;
    becomes("the node without a port is gone", cluster.healthy());
    cluster.nodes[1].1 = Some(TcpListener::bind((cluster.nodes[1].0, cluster.port)).unwrap());
    becomes("it is back", cluster.healthy());
    cluster.nodes[0].1 = None;
    cluster.nodes[1].1 = None;
    becomes("one is left", cluster.healthy());
    cluster.nodes[2].1 = None;
    becomes("none is left", vec![]);
    assert_eq!(daemon.ask("galeradb.service.consul A").rcode_name(), "NXDOMAIN");
    demand_no_leak(&recursor);
}

#[test]
fn consul_is_understood_in_all_that_it_says() {
    let cluster = Cluster::new();
    let Some(consul) = Consul::start(&cluster.definitions(), None) else { return };
    // A node with no agent here, as the other hosts of the cluster are.
    consul.register(
        r#"{"Node": "db7", "Address": "192.0.2.7", "NodeMeta": {"rack": "a1"}, "Service":
            {"ID": "icingadb", "Service": "icingadb", "Tags": ["primary"], "Address": "2001:db8::7", "Port": 3307}}"#,
    );
    let many = (0..40).map(|number| {
        format!(
            r#"{{"Node": "many{number}", "Address": "192.0.2.{number}",
                "Service": {{"ID": "many", "Service": "many", "Port": 80}}}}"#
        )
    });
    many.for_each(|body| consul.register(&body));
    let recursor = recursor();
    let daemon = Setup::new(&(forward(".", &[recursor.address()]) + &forward("consul", &[consul.dns()]))).start();
    wait_until("three healthy nodes", 2 * PATIENCE, || {
        (daemon.udp(&query("galeradb.service.consul A")).answer.len() == 3).then_some(())
    });
    for (question, rcode, expected) in [
        ("db7.node.consul A", "NOERROR", "192.0.2.7"),
        ("DB7.node.dc1.Consul A", "NOERROR", "192.0.2.7"),
        ("icingadb.service.consul AAAA", "NOERROR", "2001:db8::7"),
        ("primary.icingadb.service.consul AAAA", "NOERROR", "2001:db8::7"),
        ("icingadb.service.consul A", "NOERROR", ""), // the other half of libc's pair
        ("db7.node.consul AAAA", "NOERROR", ""),      // NODATA without SOA is no failure
        ("db7.node.consul MX", "NOERROR", ""),
        ("no.service.consul A", "NXDOMAIN", ""),
        ("no.service.other-dc.consul A", "NXDOMAIN", ""),
        ("c0000207.addr.dc1.consul A", "NOERROR", "192.0.2.7"),
    ] {
        let reply = daemon.ask(question);
        assert_eq!(reply.rcode_name(), rcode, "{question}");
        assert_eq!(reply.data().join(" "), expected, "{question}");
    }
    let services = daemon.ask("galeradb.service.consul SRV");
    assert_eq!(services.answer.len(), 3);
    assert!(services.data().iter().all(|data| data.starts_with(&format!("1 1 {} ", cluster.port))));
    assert_eq!(services.additional.iter().filter(|record| record.rtype == 1).count(), 3);
    // Consul cuts silently to the size that it is offered; we offer enough and cut with TC.
    assert_eq!(daemon.udp(&query("many.service.consul A").edns(4096)).answer.len(), 40);
    assert_eq!(daemon.tcp(&query("many.service.consul A")).answer.len(), 40);
    assert!(daemon.udp(&query("many.service.consul A")).has(message::TC));
    demand_no_leak(&recursor);
}

#[test]
fn while_consul_is_down_its_names_fail_and_go_nowhere_else() {
    let cluster = Cluster::new();
    let Some(consul) = Consul::start(&cluster.definitions(), None) else { return };
    let recursor = recursor();
    let daemon = Setup::new(&(forward(".", &[recursor.address()]) + &forward("consul", &[consul.dns()]))).start();
    wait_until("a healthy node", 2 * PATIENCE, || {
        (!daemon.ask("galeradb.service.consul A").answer.is_empty()).then_some(())
    });
    drop(consul);
    for number in 0..10 {
        for question in ["galeradb.service.consul A", "galeradb.service.consul AAAA", "monitor.node.consul A"] {
            let reply = daemon.ask(question);
            assert_eq!(reply.rcode_name(), "SERVFAIL", "{question}");
            assert!(!reply.extended_errors().is_empty(), "{question}");
        }
        assert_eq!(daemon.ask(&format!("host{number}.example A")).one(), "198.51.100.1");
    }
    demand_no_leak(&recursor);
}

#[test]
fn an_agent_on_8600_needs_no_configuration() {
    let Some(netns) = Netns::new("") else { return };
    let recursor = Upstream::at(SocketAddr::new(netns.host(), 53), upstream::saying("198.51.100.1"));
    netns.set_resolv_conf(&format!("nameserver 127.0.0.1\nnameserver {}\n", netns.host()));
    let service = r#"{"service": {"name": "galeradb", "address": "10.0.0.5", "port": 3306}}"#;
    let Some(consul) = Consul::start(service, Some(&netns)) else { return };
    let _daemon = Setup::bare().within(&netns).start();
    // What fails with us, libc would take to the next server; a host that splits its horizon names nobody but us.
    netns.set_resolv_conf("nameserver 127.0.0.1\n");
    let find = |name: &str| {
        let output = netns.command("getent").args(["ahostsv4", name]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).split_whitespace().next().unwrap_or_default().to_owned()
    };
    wait_until("the service", 2 * PATIENCE, || (find("galeradb.service.consul") == "10.0.0.5").then_some(()));
    assert_eq!(find("www.example"), "198.51.100.1");
    drop(consul);
    wait_until("the end of what was known", PATIENCE, || (find("galeradb.service.consul").is_empty()).then_some(()));
    assert_eq!(find("mail.example"), "198.51.100.1");
    demand_no_leak(&recursor);
}
