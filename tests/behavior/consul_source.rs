//! A Consul agent is followed over its HTTP API: its catalog is answered here, also while it is away, and nothing of it
//! goes anywhere else.

use std::{
    fs,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    agent::{Agent, Manner},
    daemon::forward,
    programs::Consul,
    *,
};

/// The section that follows the agent at this address.
fn following(agent: SocketAddr) -> String {
    format!("[catalog.consul]\naddress = \"http://{agent}\"\n")
}

/// A daemon that follows an agent and forwards all else to a recursor. `config` begins with the rest of the section.
fn follower(agent: SocketAddr, recursor: &Upstream, config: &str) -> Daemon {
    let daemon = Setup::new(&(following(agent) + config + &forward(".", &[recursor.address()]))).start();
    wait_for_contact(&daemon, 1.0);
    daemon
}

#[track_caller]
fn wait_for_contact(daemon: &Daemon, up: f64) {
    wait_until("the state of the source", 3 * PATIENCE, || {
        (daemon.metric("watershed_catalog_source_up", &[("source", "consul")]) == up).then_some(())
    });
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

/// An instance on a node of its own, in the words of a registration in the catalog.
fn instance(service: &str, number: usize, status: &str) -> String {
    format!(
        r#"{{"Node": "{service}-{number}", "Address": "{}",
            "Service": {{"ID": "{service}", "Service": "{service}", "Port": 80}},
            "Check": {{"CheckID": "c", "Name": "c", "Status": "{status}", "ServiceID": "{service}"}}}}"#,
        address(number)
    )
}

fn address(number: usize) -> String {
    format!("10.1.{}.{}", number / 250, number % 250 + 1)
}

/// Asks until the data of the answers are these, in any order, and gives the time that it took.
#[track_caller]
fn wait_for(daemon: &Daemon, question: &str, expected: &[&str]) -> Duration {
    let mut expected: Vec<_> = expected.iter().map(|&data| data.to_owned()).collect();
    expected.sort();
    let start = Instant::now();
    loop {
        let mut found = daemon.ask(question).data();
        found.sort();
        if found == expected {
            return start.elapsed();
        }
        assert!(start.elapsed() < 3 * PATIENCE, "{question}: {expected:?} is not there, but {found:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Asks for this long, and demands that nothing else is answered than these.
#[track_caller]
fn demand_throughout(daemon: &Daemon, span: Duration, question: &str, expected: &[&str]) {
    let start = Instant::now();
    while start.elapsed() < span {
        let reply = daemon.ask(question);
        let mut found = reply.data();
        found.sort();
        assert_eq!(found, expected, "{question} after {:?}: {}", start.elapsed(), reply.rcode_name());
        thread::sleep(Duration::from_millis(10));
    }
}

/// The connections that a process of ours has to this address.
fn connections_to(server: SocketAddr) -> usize {
    let SocketAddr::V4(address) = server else { panic!("{server}") };
    let hex = format!("{:08X}:{:04X}", u32::from_le_bytes(address.ip().octets()), address.port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    // Remote address, then state: 01 is ESTABLISHED.
    table.lines().filter(|line| line.split_whitespace().skip(2).take(2).eq([&*hex, "01"])).count()
}

fn median(mut spans: Vec<Duration>) -> Duration {
    spans.sort();
    spans[spans.len() / 2]
}

#[test]
fn a_change_at_the_agent_is_soon_in_the_answers() {
    let Some(consul) = Consul::start("{}", None) else { return };
    consul.register(&instance("web", 0, "passing"));
    consul.register(&instance("web", 1, "passing"));
    let recursor = recursor();
    let daemon = follower(consul.http(), &recursor, "");
    let both = [&*address(0), &*address(1)];
    wait_for(&daemon, "web.service.consul A", &both);
    let mut spans = Vec::new();
    for round in 0..40 {
        let status = if round % 2 == 0 { "critical" } else { "passing" };
        let expected: &[&str] = if round % 2 == 0 { &both[1..] } else { &both };
        consul.register(&instance("web", 0, status));
        spans.push(wait_for(&daemon, "web.service.consul A", expected));
    }
    let median = median(spans);
    println!("a change of a followed service is answered after {median:?} at the median");
    assert!(median < Duration::from_millis(500), "{median:?}");

    // A name that there is none of is one at once when there is, and the other way round.
    assert_eq!(daemon.ask("new.service.consul A").rcode_name(), "NXDOMAIN");
    consul.register(&instance("new", 2, "passing"));
    println!("a new service is answered after {:?}", wait_for(&daemon, "new.service.consul A", &[&address(2)]));
    consul.put("/v1/catalog/deregister", r#"{"Node": "new-2"}"#);
    wait_for(&daemon, "new.service.consul A", &[]);
    wait_for(&daemon, "new-2.node.consul A", &[]);
    // That there are no instances is told apart from that there is no such service.
    wait_until("no such name", PATIENCE, || {
        (daemon.ask("new.service.consul A").rcode_name() == "NXDOMAIN").then_some(())
    });
    // Names that do not exist cost the agent nothing.
    let before = daemon.metric("watershed_catalog_source_requests_total", &[]);
    (0..200).for_each(|number| assert_eq!(daemon.ask(&format!("x{number}.service.consul A")).rcode_name(), "NXDOMAIN"));
    assert!(daemon.metric("watershed_catalog_source_requests_total", &[]) - before < 10.0);
    demand_no_leak(&recursor);
}

#[test]
fn connections_are_bounded_however_many_services_there_are() {
    let Some(consul) = Consul::start("{}", None) else { return };
    let count = 160;
    (0..count).for_each(|number| consul.register(&instance(&format!("s{number}"), number, "passing")));
    let recursor = recursor();
    let daemon = follower(consul.http(), &recursor, "");
    for _ in 0..2 {
        for number in 0..count {
            let question = format!("s{number}.service.consul A");
            wait_for(&daemon, &question, &[&address(number)]);
        }
    }
    let followed = daemon.metric("watershed_catalog_source_followed", &[]);
    let connections = connections_to(consul.http());
    println!("{count} services, {followed} followed, {connections} connections");
    assert_eq!(followed, 128.0);
    assert!(connections <= 139, "{connections}");
    // The last is not among those that are followed: it is asked for once a second, and no longer believed.
    let last = format!("s{}", count - 1);
    let question = format!("{last}.service.consul A");
    let here = address(count - 1);
    wait_for(&daemon, &question, &[&here]);
    let mut spans = Vec::new();
    for (status, expected) in [("critical", &[][..]), ("passing", &[&*here]), ("critical", &[]), ("passing", &[&*here])]
    {
        consul.register(&instance(&last, count - 1, status));
        spans.push(wait_for(&daemon, &question, expected));
    }
    println!("a change of a service that is not followed is answered after {spans:?}");
    assert!(median(spans) < Duration::from_secs(3));
    demand_no_leak(&recursor);
}

#[test]
fn all_that_the_agent_knows_is_answered_as_it_answers() {
    let Some(consul) = Consul::start(r#"{"alt_domain": "lab"}"#, None) else { return };
    consul.register(
        r#"{"Node": "db7", "Address": "192.0.2.7", "NodeMeta": {"rack": "a1"},
            "TaggedAddresses": {"lan_ipv6": "2001:db8::7"},
            "Service": {"ID": "icingadb", "Service": "IcingaDB", "Tags": ["primary", "v1"], "Port": 3307,
                        "Weights": {"Passing": 7, "Warning": 2}}}"#,
    );
    consul.register(
        r#"{"Node": "db8", "Address": "192.0.2.8",
            "Service": {"ID": "icingadb", "Service": "IcingaDB", "Tags": ["v1"], "Address": "192.0.2.80", "Port": 3307,
                        "Weights": {"Passing": 7, "Warning": 2}},
            "Check": {"CheckID": "c", "Name": "c", "Status": "warning", "ServiceID": "icingadb"}}"#,
    );
    consul.register(
        r#"{"Node": "outside", "Address": "www.example.org",
            "Service": {"ID": "shop", "Service": "shop", "Address": "www.example.org", "Port": 443}}"#,
    );
    consul.register(
        r#"{"Node": "six", "Address": "2001:db8::6", "Service": {"ID": "six", "Service": "six", "Port": 6}}"#,
    );
    consul.register(
        r#"{"Node": "mesh", "Address": "192.0.2.9", "Service": {"ID": "proxy", "Service": "icingadb-proxy",
            "Kind": "connect-proxy", "Port": 20000, "Proxy": {"DestinationServiceName": "IcingaDB"}}}"#,
    );
    let id = consul.create_query(r#"{"Name": "nearest", "Service": {"Service": "IcingaDB"}, "DNS": {"TTL": "9s"}}"#);
    consul.create_query(
        r#"{"Name": "geo-", "Template": {"Type": "name_prefix_match", "Regexp": "^geo-(.*)$"},
            "Service": {"Service": "${match(1)}", "OnlyPassing": true}}"#,
    );
    let recursor = recursor();
    let daemon = follower(consul.http(), &recursor, "[catalog]\nalt_domain = \"lab\"\n");
    wait_until("all of it", PATIENCE, || (!daemon.ask("six.service.consul AAAA").answer.is_empty()).then_some(()));
    let by_id = format!("{id}.query.consul SRV");
    for question in [
        "icingadb.service.consul A",
        "ICINGADB.service.dc1.consul A",
        "icingadb.service.consul AAAA",
        "primary.icingadb.service.consul A",
        "v1.icingadb.service.consul A",
        "v2.icingadb.service.consul A",
        "icingadb.service.consul SRV",
        "_icingadb._tcp.service.consul SRV",
        "_icingadb._v1.service.consul SRV",
        "icingadb.connect.consul SRV",
        "icingadb.ingress.consul A",
        "icingadb.service.dc2.consul A",
        "db7.node.consul A",
        "db7.node.consul AAAA",
        "db7.node.dc1.consul TXT",
        "monitor.node.consul A",
        "six.node.consul AAAA",
        "six.service.consul AAAA",
        "six.service.consul A",
        "shop.service.consul SRV",
        "nearest.query.consul A",
        "nearest.query.consul SRV",
        "nearest.query.dc1.consul A",
        "geo-icingadb.query.consul A",
        "geo-six.query.consul AAAA",
        "geo-nothing.query.consul A",
        "nothing.query.consul A",
        "nothing.service.consul A",
        "c0000207.addr.consul A",
        "8.2.0.192.in-addr.arpa PTR",
        "80.2.0.192.in-addr.arpa PTR",
        "icingadb.service.lab A",
        &by_id,
    ] {
        let told = udp(consul.dns(), &message::query(question).edns(1232));
        let said = daemon.ask(question);
        assert_eq!(said.rcode_name(), told.rcode_name(), "{question}");
        let sorted = |records: Vec<String>| {
            let mut sorted = records;
            sorted.sort();
            sorted
        };
        // 1.8.7 forgets the asked domain in targets (CONSUL-DNS.md §8), of which there are none in this question.
        assert_eq!(sorted(said.answers()), sorted(told.answers()), "{question}");
    }
    // Where a name leads out of the domain, it is followed.
    assert_eq!(daemon.ask("shop.service.consul A").data(), ["www.example.org.", "198.51.100.1"]);
    demand_no_leak(&recursor);
}

#[test]
fn a_node_in_maintenance_is_out_of_all_its_services_at_once() {
    let services = r#"{"services": [{"name": "web", "port": 80}, {"name": "db", "port": 81}]}"#;
    let Some(consul) = Consul::start(services, None) else { return };
    let recursor = recursor();
    let daemon = follower(consul.http(), &recursor, "");
    let ip = consul.http().ip().to_string();
    for name in ["web", "db"] {
        wait_for(&daemon, &format!("{name}.service.consul A"), &[&ip]);
    }
    consul.put("/v1/agent/maintenance?enable=true&reason=test", "");
    for name in ["web", "db"] {
        wait_for(&daemon, &format!("{name}.service.consul A"), &[]);
    }
    // A node's name is there however it is.
    assert_eq!(daemon.ask("monitor.node.consul A").data(), [&*ip]);
    consul.put("/v1/agent/maintenance?enable=false", "");
    consul.put("/v1/agent/service/maintenance/db?enable=true", "");
    wait_for(&daemon, "web.service.consul A", &[&ip]);
    wait_for(&daemon, "db.service.consul A", &[]);
}

#[test]
fn a_killed_agent_is_outlived_and_found_again() {
    let Some(mut consul) = Consul::with_memory("{}") else { return };
    (0..3).for_each(|number| consul.register(&instance("web", number, "passing")));
    let recursor = recursor();
    let daemon = follower(consul.http(), &recursor, "");
    let all = [&*address(0), &*address(1), &*address(2)];
    wait_for(&daemon, "web.service.consul A", &all);
    wait_for(&daemon, "web-1.node.consul A", &all[1..2]);
    consul.kill();
    wait_for_contact(&daemon, 0.0);
    demand_throughout(&daemon, Duration::from_secs(2), "web.service.consul A", &all);
    assert_eq!(daemon.ask("no.service.consul A").rcode_name(), "NXDOMAIN");
    assert_eq!(daemon.ask("web-1.node.consul A").data(), &all[1..2]);
    assert_eq!(daemon.get("/ready").0, 200);
    // While it starts, reads its state and finds a leader, nothing is dropped.
    consul.restart();
    let begin = Instant::now();
    while daemon.metric("watershed_catalog_source_up", &[]) == 0.0 {
        demand_throughout(&daemon, Duration::from_millis(50), "web.service.consul A", &all);
        assert!(begin.elapsed() < 4 * PATIENCE, "it is not found again");
    }
    println!("an agent that was restarted is followed again after {:?}", begin.elapsed());
    consul.register(&instance("web", 0, "critical"));
    wait_for(&daemon, "web.service.consul A", &all[1..]);
    demand_no_leak(&recursor);
}

#[test]
fn an_agent_that_has_lost_its_state_is_doubted_and_then_believed() {
    let Some(mut consul) = Consul::start("{}", None) else { return };
    (0..3).for_each(|number| consul.register(&instance("web", number, "passing")));
    let recursor = recursor();
    let daemon = follower(consul.http(), &recursor, "");
    let all = [&*address(0), &*address(1), &*address(2)];
    wait_for(&daemon, "web.service.consul A", &all);
    consul.kill();
    consul.restart();
    // Those who register come back one by one, sooner than it is believed.
    wait_until("a leader", 3 * PATIENCE, || {
        http::request(consul.http(), "GET", "/v1/status/leader", "").ok().filter(|(_, text)| text.contains(':'))
    });
    for number in 0..3 {
        demand_throughout(&daemon, Duration::from_secs(1), "web.service.consul A", &all);
        consul.register(&instance("web", number, "passing"));
    }
    let begin = Instant::now();
    while daemon.metric("watershed_catalog_source_up", &[]) == 0.0 {
        demand_throughout(&daemon, Duration::from_millis(50), "web.service.consul A", &all);
        assert!(begin.elapsed() < 4 * PATIENCE, "it is not believed");
    }
    // And now nobody comes back.
    consul.kill();
    wait_for_contact(&daemon, 0.0);
    consul.restart();
    let begin = Instant::now();
    wait_for(&daemon, "web.service.consul A", &[]);
    println!("an agent that has lost its state is believed after {:?}", begin.elapsed());
    assert_eq!(daemon.ask("web.service.consul A").rcode_name(), "NXDOMAIN");
    demand_no_leak(&recursor);
}

#[test]
fn a_frozen_agent_is_found_out_and_nobody_waits_for_it() {
    let Some(consul) = Consul::start("{}", None) else { return };
    consul.register(&instance("web", 0, "passing"));
    consul.register(&instance("unasked", 1, "passing"));
    let recursor = recursor();
    let daemon = follower(consul.http(), &recursor, "");
    wait_for(&daemon, "web.service.consul A", &[&address(0)]);
    consul.freeze();
    let begin = Instant::now();
    wait_for_contact(&daemon, 0.0);
    println!("a frozen agent is found out after {:?}", begin.elapsed());
    demand_throughout(&daemon, Duration::from_secs(1), "web.service.consul A", &[&address(0)]);
    // What was never held cannot be answered; but in time.
    let begin = Instant::now();
    assert_eq!(daemon.ask("unasked.service.consul A").rcode_name(), "SERVFAIL");
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    consul.thaw();
    wait_for_contact(&daemon, 1.0);
    wait_for(&daemon, "unasked.service.consul A", &[&address(1)]);
    consul.register(&instance("web", 2, "passing"));
    wait_for(&daemon, "web.service.consul A", &[&address(0), &address(2)]);
    demand_no_leak(&recursor);
}

#[test]
fn whatever_an_agent_says_no_wrong_answer_is_made_of_it() {
    for manner in [
        Manner::Status500,
        Manner::Garbage,
        Manner::Truncated,
        Manner::NoHttp,
        Manner::Closing,
        Manner::Slow(Duration::from_secs(4)),
        Manner::Silent,
    ] {
        let agent = Agent::new(&[("web", &["10.0.0.1", "10.0.0.2"]), ("db", &["10.0.0.3"])]);
        let recursor = recursor();
        let daemon = follower(agent.address(), &recursor, "");
        wait_for(&daemon, "web.service.consul A", &["10.0.0.1", "10.0.0.2"]);
        agent.behave(manner);
        wait_for_contact(&daemon, 0.0);
        demand_throughout(&daemon, Duration::from_millis(500), "web.service.consul A", &["10.0.0.1", "10.0.0.2"]);
        assert_eq!(daemon.ask("no.service.consul A").rcode_name(), "NXDOMAIN", "{manner:?}");
        let requests = agent.requests().len();
        demand_throughout(&daemon, Duration::from_millis(500), "web.service.consul A", &["10.0.0.1", "10.0.0.2"]);
        assert!(agent.requests().len() - requests < 50, "{manner:?}: {:?}", &agent.requests()[requests..]);
        agent.set("web", &["10.0.0.1", "10.0.0.2", "10.0.0.9"]);
        agent.behave(Manner::Well);
        wait_for(&daemon, "web.service.consul A", &["10.0.0.1", "10.0.0.2", "10.0.0.9"]);
        wait_for(&daemon, "db.service.consul A", &["10.0.0.3"]);
        demand_no_leak(&recursor);
    }
}

#[test]
fn an_agent_that_is_bad_from_the_start_is_never_believed() {
    for manner in [Manner::Status500, Manner::Garbage, Manner::Unindexed] {
        let agent = Agent::new(&[("web", &["10.0.0.1"])]);
        agent.behave(manner);
        let (recursor, dns) = (recursor(), Upstream::saying("10.9.9.9"));
        let config =
            following(agent.address()) + &forward(".", &[recursor.address()]) + &forward("consul", &[dns.address()]);
        let daemon = Setup::new(&config).start();
        daemon.wait_for_log(0, |line| line.contains("source not reached yet"));
        assert_eq!(daemon.get("/ready").0, 503);
        assert_eq!(daemon.ask("web.service.consul A").data(), ["10.9.9.9"], "{manner:?}");
        agent.behave(Manner::Well);
        wait_for(&daemon, "web.service.consul A", &["10.0.0.1"]);
        assert_eq!(daemon.get("/ready").0, 200);
        demand_no_leak(&recursor);
    }
}

#[test]
fn an_index_that_goes_back_means_that_all_is_read_anew() {
    let agent = Agent::new(&[("web", &["10.0.0.1"]), ("db", &["10.0.0.3"])]);
    let recursor = recursor();
    let daemon = follower(agent.address(), &recursor, "");
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1"]);
    let from = daemon.log_length();
    agent.forget_all();
    agent.set("web", &["10.0.0.5"]);
    daemon.wait_for_log(from, |line| line.contains("another past"));
    demand_throughout(&daemon, Duration::from_secs(1), "web.service.consul A", &["10.0.0.1"]);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.5"]);
    assert_eq!(daemon.ask("db.service.consul A").rcode_name(), "NXDOMAIN");
    agent.set("web", &["10.0.0.6"]);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.6"]);
}

#[test]
fn beyond_max_stale_names_are_forwarded_but_not_those_under_a_policy() {
    let agent = Agent::new(&[("web", &["10.0.0.1"]), ("db", &["10.0.0.3", "10.0.0.4"])]);
    let (recursor, dns) = (recursor(), Upstream::saying("10.9.9.9"));
    let config = "[catalog]\nmax_stale = \"2s\"\n[catalog.service.db]\npolicy = \"one\"\n".to_owned()
        + &following(agent.address())
        + &forward(".", &[recursor.address()])
        + &forward("consul", &[dns.address()]);
    let daemon = Setup::new(&config).start();
    wait_for_contact(&daemon, 1.0);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1"]);
    wait_until("the one", PATIENCE, || (daemon.ask("db.service.consul A").answer.len() == 1).then_some(()));
    let one = daemon.ask("db.service.consul A").data();
    agent.behave(Manner::Closing);
    wait_for_contact(&daemon, 0.0);
    assert_eq!(daemon.ask("db.service.consul A").data(), one);
    wait_for(&daemon, "web.service.consul A", &["10.9.9.9"]);
    for question in ["db.service.consul A", "tag.db.service.consul SRV"] {
        let reply = daemon.ask(question);
        assert_eq!(reply.rcode_name(), "SERVFAIL", "{question}");
        assert!(!reply.extended_errors().is_empty(), "{question}");
    }
    assert!(!dns.asked().iter().any(|asked| asked.contains("db.service")), "{:?}", dns.asked());
    let (status, text) = daemon.get("/ready");
    assert!(status == 503 && text.contains("catalog.consul"), "{status} {text}");
    agent.behave(Manner::Well);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1"]);
    wait_until("the one", PATIENCE, || (daemon.ask("db.service.consul A").answer.len() == 1).then_some(()));
    demand_no_leak(&recursor);
}

#[test]
fn of_several_agents_the_next_is_followed_when_one_fails() {
    let agents = [Agent::new(&[("web", &["10.0.0.1"])]), Agent::new(&[("web", &["10.0.0.1"])])];
    let urls: Vec<String> = agents.iter().map(|agent| format!("\"http://{}\"", agent.address())).collect();
    let recursor = recursor();
    let config = format!("[catalog.consul]\naddress = [{}]\n", urls.join(", ")) + &forward(".", &[recursor.address()]);
    let daemon = Setup::new(&config).start();
    wait_for_contact(&daemon, 1.0);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1"]);
    assert!(agents[1].requests().is_empty());
    agents[0].behave(Manner::Closing);
    agents[1].set("web", &["10.0.0.1", "10.0.0.2"]);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1", "10.0.0.2"]);
    // It stays with the one that works.
    let requests = agents[0].requests().len();
    agents[0].behave(Manner::Well);
    agents[1].set("web", &["10.0.0.2", "10.0.0.3"]);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.2", "10.0.0.3"]);
    assert_eq!(agents[0].requests().len(), requests);
}

#[test]
fn a_reload_that_changes_nothing_of_the_agent_leaves_it_alone() {
    let agent = Agent::new(&[("web", &["10.0.0.1"])]);
    let other = Agent::new(&[("web", &["10.0.0.2"])]);
    let recursor = recursor();
    let daemon = follower(agent.address(), &recursor, "");
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1"]);
    let requests = agent.requests().len();
    daemon.edit_config(|text| text.replace("[control]", "[cache]\nmax_ttl = \"1h\"\n[control]"));
    let log = daemon.reload();
    assert!(log.contains("reloaded"), "{log}");
    agent.set("web", &["10.0.0.3"]);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.3"]);
    let new: Vec<String> = agent.requests()[requests..].to_vec();
    assert!(!new.iter().any(|path| path.contains("/v1/agent/self")), "{new:?}");
    // Another agent is another catalog, which takes the place of the first once it has spoken.
    daemon.edit_config(|text| text.replace(&agent.address().to_string(), &other.address().to_string()));
    daemon.reload();
    wait_for(&daemon, "web.service.consul A", &["10.0.0.2"]);
    // And without one its names go where they went before.
    daemon.edit_config(|text| text.replace("[catalog.consul]", "[catalog]").replace("address = \"http:", "#"));
    let log = daemon.reload();
    assert!(log.contains("reloaded"), "{log}");
    wait_until("no catalog", PATIENCE, || {
        (daemon.ask("web.service.consul A").rcode_name() == "SERVFAIL").then_some(())
    });
    demand_no_leak(&recursor);
}

#[test]
fn a_flood_of_changes_neither_floods_the_agent_nor_is_a_part_of_it_lost() {
    let agent = Agent::new(&[("web", &["10.0.0.1"])]);
    let recursor = recursor();
    let daemon = follower(agent.address(), &recursor, "");
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1"]);
    let (requests, begin) = (agent.requests().len(), Instant::now());
    let (mut changes, mut last) = (0, String::new());
    while begin.elapsed() < Duration::from_secs(1) {
        last = format!("10.2.{}.{}", changes / 250 % 250, changes % 250);
        agent.set("web", &[&last]);
        // Never two at once, and never none.
        if changes % 50 == 0 {
            assert_eq!(daemon.ask("web.service.consul A").answer.len(), 1, "{changes}");
        }
        changes += 1;
    }
    wait_for(&daemon, "web.service.consul A", &[&last]);
    let (requests, span) = (agent.requests().len() - requests, begin.elapsed());
    println!("{changes} changes in {span:?} have cost the agent {requests} requests");
    // Two lists and a service, each at most every 10 ms.
    assert!(requests as u128 <= 3 * (span.as_millis() / 10 + 2) + 20, "{requests} in {span:?}");
}

#[test]
fn a_token_opens_what_is_closed_to_others() {
    const TOKEN: &str = "9a2e5f4c-3f0e-4f53-a1e5-0d9f3b0c8d11";
    let config = format!(
        r#"{{"acl": {{"enabled": true, "default_policy": "deny", "tokens": {{"master": "{TOKEN}", "agent": "{TOKEN}"}}}}}}"#
    );
    let Some(consul) = Consul::start(&config, None) else { return };
    // The token is there some time after the leader.
    wait_until("a registration", 3 * PATIENCE, || {
        let path = format!("/v1/catalog/register?token={TOKEN}");
        let (status, _) = http::request(consul.http(), "PUT", &path, &instance("web", 0, "passing")).ok()?;
        (status == 200).then_some(())
    });
    let recursor = recursor();
    let closed = Setup::new(&(following(consul.http()) + &forward(".", &[recursor.address()]))).start();
    let config = following(consul.http()) + "token_file = \"<DIR>/token\"\n" + &forward(".", &[recursor.address()]);
    let open = Setup::new(&config).file("token", &format!("{TOKEN}\n")).start();
    wait_for(&open, "web.service.consul A", &[&address(0)]);
    assert_eq!(closed.ask("web.service.consul A").answer.len(), 0);
    demand_no_leak(&recursor);
}

#[test]
fn an_agent_is_followed_over_tls_if_it_is_who_it_should_be() {
    let key = |params: rcgen::CertificateParams, issuer: &rcgen::Issuer<'_, rcgen::KeyPair>| {
        let key = rcgen::KeyPair::generate().unwrap();
        (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
    };
    let authority = || {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        (certificate, rcgen::Issuer::new(params, key))
    };
    let ((authority_pem, issuer), (stranger_pem, _)) = (authority(), authority());
    let named = |name: &str| rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let (server_pem, server_key) = key(named("server.dc1.consul"), &issuer);
    let (client_pem, client_key) = key(named("client.dc1.consul"), &issuer);
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("ca", &authority_pem), ("cert", &server_pem), ("key", &server_key)] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let at = folder.path().display();
    let config = format!(
        r#"{{"ports": {{"https": 8501}}, "ca_file": "{at}/ca", "cert_file": "{at}/cert", "key_file": "{at}/key",
            "verify_incoming_https": true}}"#
    );
    let Some(consul) = Consul::start(&config, None) else { return };
    consul.register(&instance("web", 0, "passing"));
    let recursor = recursor();
    let start = |ca: &str, section: &str| {
        let section = format!(
            "[catalog.consul]\naddress = \"https://{}:8501\"\nca_file = \"<DIR>/ca\"\n{section}",
            consul.http().ip()
        );
        let setup = Setup::new(&(section + &forward(".", &[recursor.address()])));
        setup.file("ca", ca).file("cert", &client_pem).file("key", &client_key).start()
    };
    let (named, certified) =
        ("server_name = \"server.dc1.consul\"\n", "cert_file = \"<DIR>/cert\"\nkey_file = \"<DIR>/key\"\n");
    let good = start(&authority_pem, &(named.to_owned() + certified));
    wait_for(&good, "web.service.consul A", &[&address(0)]);
    for (what, ca, section) in [
        ("another authority", &stranger_pem, named.to_owned() + certified),
        ("another name", &authority_pem, certified.to_owned()),
        ("no certificate of ours", &authority_pem, named.to_owned()),
    ] {
        let daemon = start(ca, &section);
        wait_until("attempts", PATIENCE, || {
            (daemon.metric("watershed_catalog_source_requests_total", &[("result", "failed")]) > 1.0).then_some(())
        });
        assert_eq!(daemon.metric("watershed_catalog_source_up", &[]), 0.0, "{what}");
    }
    demand_no_leak(&recursor);
}

#[test]
fn two_sources_are_one_catalog() {
    let agent = Agent::new(&[("web", &["10.0.0.1"]), ("db", &["10.0.0.3"])]);
    let recursor = recursor();
    let files =
        "[catalog]\nnode_name = \"own\"\naddress = \"192.0.2.9\"\n[catalog.files]\ndirectory = \"<DIR>/consul.d\"\n";
    let config = files.to_owned() + &following(agent.address()) + &forward(".", &[recursor.address()]);
    let services = r#"{"services": [{"name": "web", "port": 80}, {"name": "local", "port": 81}]}"#;
    let daemon = Setup::new(&config).file("consul.d/web.json", services).start();
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1", "192.0.2.9"]);
    wait_for(&daemon, "db.service.consul A", &["10.0.0.3"]);
    wait_for(&daemon, "local.service.consul A", &["192.0.2.9"]);
    agent.behave(Manner::Closing);
    wait_for_contact(&daemon, 0.0);
    daemon.write("consul.d/web.json", r#"{"services": [{"name": "local", "port": 81}]}"#);
    wait_for(&daemon, "web.service.consul A", &["10.0.0.1"]);
    wait_for(&daemon, "local.service.consul A", &["192.0.2.9"]);
    demand_no_leak(&recursor);
}

#[test]
fn the_api_asks_the_agent_for_a_service_by_its_name() {
    let agent = Agent::new(&[("web", &["10.0.0.1"]), ("db", &["10.0.0.3"])]);
    let recursor = recursor();
    let daemon = follower(agent.address(), &recursor, "");
    wait_for_contact(&daemon, 1.0);
    let read = |path: &str| http::get(daemon.control.expect("a control address"), path);
    // Nobody has asked for any of them before.
    for (path, expected) in
        [("health/service/web", "10.0.0.1"), ("catalog/service/db", "10.0.0.3"), ("health/service/none", "[]")]
    {
        let (status, body) = read(&format!("/v1/{path}"));
        assert!(status == 200 && body.contains(expected), "{path}: {body}");
    }
    agent.behave(Manner::Closing);
    wait_for_contact(&daemon, 0.0);
    assert!(read("/v1/health/service/web").1.contains("10.0.0.1"), "what it said last");
}

#[test]
fn files_that_cannot_be_used_are_named_at_start() {
    for (section, expected) in [
        ("address = \"https://192.0.2.1:8501\"\nca_file = \"<DIR>/none\"\n", "catalog.consul.ca_file"),
        ("token_file = \"<DIR>/none\"\n", "catalog.consul.token_file"),
        ("wait = \"1h\"\n", "from \"1s\" to \"10m\""),
        ("address = \"192.0.2.1\"\n", "write one such as \"http://127.0.0.1:8500\""),
    ] {
        let ended = Setup::new(&format!("[catalog.consul]\n{section}")).check();
        assert!(ended.code == Some(2) && ended.text.contains(expected), "{section}: {}", ended.text);
    }
}
