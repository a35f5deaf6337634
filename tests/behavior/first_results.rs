//! What has not been checked yet is not denied: questions wait for first results, two seconds at most.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::harness::{
    catalog::{CATALOG, plain, services, with_definitions},
    daemon::forward,
    programs::Consul,
    *,
};

/// A web server that answers with this status, once `wait` returns.
fn http_server(status: u16, wait: impl Fn() + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(free_address()).unwrap();
    let address = listener.local_addr().unwrap();
    let wait = Arc::new(wait);
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let wait = wait.clone();
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 1024]);
                wait();
                let _ = write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            });
        }
    });
    address
}

/// A web server that answers after a while.
fn slow_server(millis: u64) -> SocketAddr {
    http_server(200, move || thread::sleep(Duration::from_millis(millis)))
}

/// A web server that answers with this status once the gate is open.
fn gated_server(status: u16, gate: &Gate) -> SocketAddr {
    let gate = gate.clone();
    http_server(status, move || gate.pass())
}

/// An instance `NAME-NUMBER` at 192.0.2.NUMBER, which is well if this server answers.
fn instance(name: &str, number: usize, server: SocketAddr) -> String {
    format!(
        r#"{{"name": "{name}", "id": "{name}-{number}", "address": "192.0.2.{number}", "port": 80, "tags": ["t{number}"],
            "check": {{"http": "http://{server}/", "interval": "10s", "timeout": "10s"}}}}"#
    )
}

fn ask(daemon: &Daemon, question: &str) -> Vec<String> {
    let mut data = daemon.ask(question).data();
    data.sort();
    data
}

/// The codes of the extended errors of a failure; nothing if it is none.
fn failure(daemon: &Daemon, question: &str) -> Option<Vec<u16>> {
    let reply = daemon.ask(question);
    (reply.rcode_name() == "SERVFAIL").then(|| reply.extended_errors())
}

/// Starts a daemon and runs a test for which the time until questions no longer wait must not have passed before it is over. On
/// a machine that stood still meanwhile, it is run again with another daemon.
#[track_caller]
fn while_questions_wait<T>(setup: impl Fn() -> Setup, mut test: impl FnMut(&Daemon) -> T) -> (Daemon, T) {
    for _ in 0..5 {
        let start = Instant::now();
        let daemon = setup().start_serving();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(&daemon)));
        if start.elapsed() < Duration::from_millis(1900) {
            return (daemon, outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    }
    panic!("this machine never took less than 1.9 s");
}

#[test]
fn a_first_start_gives_all_instances_and_denies_nothing() {
    let open: Vec<_> = (0..3).map(|_| TcpListener::bind(free_address()).unwrap()).collect();
    let addresses: Vec<SocketAddr> = open.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let slow = [100, 200, 300].map(slow_server);
    let tcp_checked = addresses.iter().enumerate().map(|(number, address)| {
        format!(
            r#"{{"name": "db", "id": "db-{number}", "address": "{}", "port": 3306,
                "check": {{"tcp": "{address}", "interval": "10s"}}}}"#,
            address.ip()
        )
    });
    let http_checked = (1..=3).map(|number| instance("web", number, slow[number - 1]));
    let text = services(&tcp_checked.chain(http_checked).collect::<Vec<_>>());
    let setup = || with_definitions("", &[("all.json", &text)]);
    let (daemon, ()) = while_questions_wait(setup, |daemon| {
        let ask_all = |question: &str, count: usize| {
            for reply in [daemon.udp(&query(question)), daemon.tcp(&query(question))] {
                assert_eq!((reply.rcode_name(), reply.answer.len()), ("NOERROR", count), "{question}");
            }
        };
        thread::scope(|scope| {
            for (question, count) in [
                ("db.service.consul A", 3),
                ("web.service.consul A", 3),
                ("web.service.consul AAAA", 0),
                ("web.service.consul SRV", 3),
                ("web.service.consul ANY", 3),
                ("t2.web.service.consul A", 1),
                ("_web._tcp.service.consul SRV", 3),
                ("1.2.0.192.in-addr.arpa PTR", 1),
            ] {
                scope.spawn(move || ask_all(question, count));
            }
        });
        ask_all("web.service.consul A", 3);
        assert_eq!(daemon.ask("none.service.consul A").rcode_name(), "NXDOMAIN");
    });
    daemon.wait_for_log(0, |line| line.contains(" ready"));
    assert_eq!(daemon.metric("watershed_catalog_checks", &[("status", "unknown")]), 0.0);
}

#[test]
fn what_is_known_is_said_after_two_seconds() {
    let gate = Gate::default();
    let (fast, silent) = (slow_server(0), gated_server(200, &gate));
    let text = services(&[
        instance("some", 1, fast),
        instance("some", 2, silent),
        instance("none", 3, silent),
        instance("dying", 4, silent).replace(r#""timeout": "10s""#, r#""timeout": "3s""#),
    ]);
    let start = Instant::now();
    let daemon = with_definitions("", &[("all.json", &text)]).start_serving();
    assert_eq!(ask(&daemon, "some.service.consul A"), ["192.0.2.1"]);
    assert!(start.elapsed() >= Duration::from_millis(1900), "it was waited for: {:?}", start.elapsed());
    // From then on nobody waits: four times two seconds would be longer than a question may take.
    let start = Instant::now();
    for question in ["none.service.consul A", "none.service.consul AAAA", "none.service.consul SRV"] {
        assert_eq!(failure(&daemon, question), Some(vec![14]), "{question}");
    }
    assert_eq!(ask(&daemon, "some.service.consul A"), ["192.0.2.1"]);
    assert!(start.elapsed() < Duration::from_millis(1900), "nobody waits: {:?}", start.elapsed());
    // Its check gives up, and then it is known to be out.
    wait_until("the end of a check", PATIENCE, || {
        (daemon.ask("dying.service.consul A").rcode_name() == "NXDOMAIN").then_some(())
    });
    gate.open();
    wait_until("the result of a check", PATIENCE, || {
        (ask(&daemon, "none.service.consul A") == ["192.0.2.3"]).then_some(())
    });
    assert_eq!(ask(&daemon, "some.service.consul A").len(), 2, "no failure is kept for longer than it is true");
}

#[test]
fn a_policy_gives_the_best_instance_at_the_first_start() {
    let servers = [slow_server(500), slow_server(0), slow_server(0)];
    let instances: Vec<_> = (1..=3).map(|number| instance("db", number, servers[number - 1])).collect();
    let policy = "[catalog.service.db]\npolicy = \"one\"\norder = [\"db-1\", \"db-2\", \"db-3\"]\n";
    let setup = || with_definitions(policy, &[("db.json", &services(&instances))]);
    while_questions_wait(setup, |daemon| {
        for question in ["db.service.consul A", "db.service.consul ANY", "db.service.consul A"] {
            assert_eq!(ask(daemon, question), ["192.0.2.1"], "{question}");
        }
        // Another tag than the chosen one's.
        assert_eq!(daemon.ask("t2.db.service.consul A").rcode_name(), "NXDOMAIN");
    });
}

#[test]
fn a_better_instance_that_answers_too_late_waits_for_the_hold_down() {
    let gate = Gate::default();
    let instances = [instance("db", 1, gated_server(200, &gate)), instance("db", 2, slow_server(0))];
    let policy = "[catalog.service.db]\npolicy = \"one\"\norder = [\"db-1\", \"db-2\"]\nhold_down = \"1h\"\n";
    let daemon = with_definitions(policy, &[("db.json", &services(&instances))]).start_serving();
    assert_eq!(ask(&daemon, "db.service.consul A"), ["192.0.2.2"]);
    gate.open();
    daemon.wait_for_log(0, |line| line.contains("db-1") && line.contains("passing"));
    wait_until("the metric", PATIENCE, || {
        (daemon.metric("watershed_catalog_instances", &[("status", "passing")]) == 2.0).then_some(())
    });
    assert_eq!(ask(&daemon, "db.service.consul A"), ["192.0.2.2"], "one writer");
}

#[test]
fn a_check_that_is_added_to_what_is_well_counts_from_its_first_result() {
    let gates = [Gate::default(), Gate::default(), Gate::default()];
    let servers = [gated_server(503, &gates[0]), gated_server(503, &gates[1]), gated_server(503, &gates[2])];
    let check = |server: SocketAddr, keys: &str| {
        format!(r#"{{"name": "late", "http": "http://{server}/", "interval": "10s", "timeout": "10s"{keys}}}"#)
    };
    let api = "[catalog.api]\nenable_registration = true\n";
    let files = [("web.json", &*plain("web", 2)), ("api.json", &plain("api", 1).replace("192.0.2.10", "192.0.2.20"))];
    let daemon = with_definitions(api, &files).start();
    let control = daemon.control.unwrap();
    let known = |check: &str| http::get(control, "/v1/agent/checks").1.contains(&format!("\"{check}\""));
    // By a definition file.
    let with_check =
        plain("web", 2).replacen(r#""port": 80"#, &format!(r#""port": 80, "check": {}"#, check(servers[0], "")), 1);
    daemon.write("consul.d/web.json", &with_check);
    wait_until("the check", PATIENCE, || known("service:web0").then_some(()));
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.10", "192.0.2.11"]);
    // Over the API, and for the node.
    for (server, keys) in
        [(servers[1], r#", "CheckID": "c1", "ServiceID": "api0""#), (servers[2], r#", "CheckID": "c2""#)]
    {
        let body = check(server, keys);
        let (status, text) = http::request(control, "PUT", "/v1/agent/check/register", &body).unwrap();
        assert!(status == 200 || text.contains("defined by a file"), "{status} {text}");
    }
    wait_until("the check of the node", PATIENCE, || known("c2").then_some(()));
    let all = || ["web", "api"].map(|name| ask(&daemon, &format!("{name}.service.consul A")).len());
    assert_eq!(all(), [2, 1]);
    let passing = http::get(control, "/v1/health/service/web?passing=1").1;
    assert_eq!(passing.matches("\"ServiceID\":\"web0\"").count(), 1, "tools that judge by the checks agree: {passing}");
    gates[0].open();
    wait_until("the first result", PATIENCE, || (all()[0] == 1).then_some(()));
    gates[2].open();
    wait_until("that of the node", PATIENCE, || (all() == [0, 0]).then_some(()));
}

#[test]
fn an_instance_that_is_added_is_not_given_unchecked() {
    let gate = Gate::default();
    let server = gated_server(200, &gate);
    let daemon = with_definitions("", &[("web.json", &plain("web", 1))]).start();
    daemon.write("consul.d/more.json", &services(&[instance("web", 99, server), instance("new", 98, server)]));
    // Known from the moment that questions wait for it.
    wait_until("the new instances", PATIENCE, || {
        (daemon.metric("watershed_catalog_instances", &[("status", "unknown")]) == 2.0).then_some(())
    });
    assert_eq!(ask(&daemon, "web.service.consul A"), ["192.0.2.10"]);
    thread::scope(|scope| {
        let start = Instant::now();
        let alone = scope.spawn(|| daemon.ask("new.service.consul A"));
        wait_until("a question that waits", PATIENCE, || {
            (alone.is_finished() || daemon.metric("watershed_resolve_waiting", &[]) > 0.0).then_some(())
        });
        let has_waited = start.elapsed() > Duration::from_millis(1500);
        gate.open();
        let reply = alone.join().unwrap();
        assert!(reply.data() == ["192.0.2.98"] || has_waited && reply.extended_errors() == [14], "{reply:?}");
    });
    wait_until("its result", PATIENCE, || {
        (ask(&daemon, "web.service.consul A") == ["192.0.2.10", "192.0.2.99"]).then_some(())
    });
}

#[test]
fn ready_comes_after_the_first_results() {
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::new(folder.path());
    let gate = Gate::default();
    let upstream = Upstream::saying("203.0.113.5");
    let server = gated_server(200, &gate);
    let config = forward(".", &[upstream.address()]);
    let text = services(&[instance("web", 1, server)]);
    let setup = || {
        with_definitions(&config, &[("web.json", &text)]).env("NOTIFY_SOCKET", &manager.path().display().to_string())
    };
    let (daemon, ()) = while_questions_wait(setup, |daemon| {
        // Whoever does not need the results does not wait for them.
        assert_eq!(daemon.ask("www.example A").one(), "203.0.113.5");
        let (status, body) = daemon.get("/ready");
        assert!(status == 503 && body.contains("no result yet"), "{status} {body}");
        assert_eq!(daemon.get("/live").0, 200);
        // A reload is not the end of the start. The second begins when all is said of the first.
        (0..2).for_each(|_| assert!(daemon.reload().contains("reloaded")));
        assert!(!manager.has_heard("READY=1") && !manager.has_heard("RELOADING=1"));
        gate.open();
        manager.wait_for("READY=1");
        wait_until("/ready", PATIENCE, || (daemon.get("/ready").0 == 200).then_some(()));
        assert_eq!(ask(daemon, "web.service.consul A"), ["192.0.2.1"]);
    });
    drop(daemon);

    // A host that is silent does not keep anybody from being ready.
    let manager = Manager::new(tempfile::tempdir_in(folder.path()).unwrap().keep().as_path());
    let silent = gated_server(200, &Gate::default());
    let daemon = with_definitions(&config, &[("web.json", &services(&[instance("web", 1, silent)]))])
        .env("NOTIFY_SOCKET", &manager.path().display().to_string())
        .start();
    manager.wait_for("READY=1");
    assert_eq!(daemon.get("/ready").0, 200);
}

#[test]
fn lists_of_the_api_wait_for_the_first_results_as_questions_do() {
    let paths =
        ["health/state/critical", "health/node/monitor1", "agent/checks", "agent/health/service/name/web?format=text"];
    let gates = std::sync::Mutex::new(Vec::new());
    let setup = || {
        let gate = Gate::default();
        let server = gated_server(200, &gate);
        gates.lock().unwrap().push(gate);
        with_definitions("", &[("web.json", &services(&[instance("web", 1, server)]))])
    };
    while_questions_wait(setup, |daemon| {
        let control = daemon.control.unwrap();
        thread::scope(|scope| {
            let waiting = paths.map(|path| scope.spawn(move || http::get(control, &format!("/v1/{path}"))));
            wait_until("the requests to wait", Duration::from_secs(2), || {
                // One more is that which asks for it.
                (daemon.metric("watershed_control_connections", &[]) >= 5.0).then_some(())
            });
            gates.lock().unwrap().last().expect("a gate").open();
            for (path, answer) in paths.iter().zip(waiting) {
                let (status, body) = answer.join().unwrap();
                assert!(status == 200 && !body.contains("critical"), "{path}: {status} {body}");
            }
        });
    });
}

#[test]
fn hundreds_of_checks_have_their_first_results_at_once() {
    let open = TcpListener::bind(free_address()).unwrap();
    thread::spawn({
        let open = open.try_clone().unwrap();
        move || open.incoming().map_while(Result::ok).for_each(drop)
    });
    let address = open.local_addr().unwrap();
    let instances: Vec<_> = (0..500)
        .map(|number| {
            format!(
                r#"{{"name": "s{number}", "address": "198.51.100.{}", "port": 80,
                    "check": {{"tcp": "{address}", "interval": "1h"}}}}"#,
                number % 250
            )
        })
        .collect();
    let text = services(&instances);
    let (daemon, ()) = while_questions_wait(
        || with_definitions("", &[("all.json", &text)]),
        |daemon| {
            for number in (0..500).rev().step_by(25) {
                let expected = format!("198.51.100.{}", number % 250);
                assert_eq!(ask(daemon, &format!("s{number}.service.consul A")), [expected], "s{number}");
            }
        },
    );
    daemon.wait_for_log(0, |line| line.contains(" ready"));
    wait_until("all results", PATIENCE, || {
        (daemon.metric("watershed_catalog_checks", &[("status", "passing")]) == 500.0).then_some(())
    });
}

#[test]
fn without_checks_nothing_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let manager = Manager::new(folder.path());
    let (text, upstream) = (plain("web", 1), Upstream::saying("203.0.113.5"));
    let (path, config) = (manager.path().display().to_string(), forward(".", &[upstream.address()]));
    let setup = || with_definitions(&config, &[("web.json", &text)]).env("NOTIFY_SOCKET", &path);
    while_questions_wait(setup, |daemon| {
        manager.wait_for("READY=1");
        wait_until("/ready", PATIENCE, || (daemon.get("/ready").0 == 200).then_some(()));
        assert_eq!(ask(daemon, "web.service.consul A"), ["192.0.2.10"]);
    });
}

/// The measure: Consul denies what it has not checked, and takes out an instance that is given another check.
#[test]
fn consul_denies_what_it_has_not_checked() {
    let Some(consul) = Consul::start("{}", None) else { return };
    let gate = Gate::default();
    let server = gated_server(200, &gate);
    let state = tempfile::tempdir().unwrap();
    let config = format!(
        "{}[catalog.api]\nenable_registration = true\n[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 1\n\
         state_directory = \"{}\"\n",
        CATALOG.split("[catalog.files]").next().unwrap(),
        state.path().display()
    );
    let daemon = Setup::new(&config).start();
    let check = format!(r#""HTTP": "http://{server}/", "Interval": "30m", "Timeout": "10s""#);
    let bodies = [
        ("service", r#"{"Name": "well", "Address": "192.0.2.1", "Port": 80}"#.to_owned()),
        ("check", format!(r#"{{"Name": "late", "ServiceID": "well", {check}}}"#)),
        ("service", format!(r#"{{"Name": "new", "Address": "192.0.2.2", "Port": 80, "Check": {{{check}}}}}"#)),
        ("service", r#"{"Name": "told", "Address": "192.0.2.3", "Port": 80, "Check": {"TTL": "1h"}}"#.to_owned()),
    ];
    for (kind, body) in &bodies {
        for api in [consul.http(), daemon.control.unwrap()] {
            let (status, text) = http::request(api, "PUT", &format!("/v1/agent/{kind}/register"), body).unwrap();
            assert_eq!(status, 200, "{body}: {text}");
        }
    }
    let rcodes = |address: SocketAddr| {
        ["well", "new", "told"].map(|name| {
            let reply = udp(address, &query(&format!("{name}.service.consul A")).edns(1232));
            reply.rcode_name().to_owned()
        })
    };
    assert_eq!(rcodes(daemon.address()), ["NOERROR", "SERVFAIL", "NXDOMAIN"]);
    assert_eq!(rcodes(consul.dns()), ["NXDOMAIN", "NXDOMAIN", "NXDOMAIN"]);
    // To the API both are the same while nothing is known.
    for api in [consul.http(), daemon.control.unwrap()] {
        let checks: serde_json::Value = serde_json::from_str(&http::get(api, "/v1/health/checks/new").1).unwrap();
        assert_eq!(checks[0]["Status"], "critical");
        let critical = http::get(api, "/v1/health/state/critical").1;
        assert!(critical.contains("service:new"), "{critical}");
    }
    gate.open();
    wait_until("our result", PATIENCE, || {
        (rcodes(daemon.address()) == ["NOERROR", "NOERROR", "NXDOMAIN"]).then_some(())
    });
}
