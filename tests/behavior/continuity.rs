//! What the catalog has found out survives the process: no answer changes and no primary moves because of a hand-over, a
//! restart or a crash.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    agent::{Agent, Manner},
    client::socket_for,
    daemon::forward,
    *,
};

/// Servers for checks, definition files that name them, an agent, and a state directory, for one daemon after another.
struct Site {
    folder: TempDir,
    address: SocketAddr,
    agent: Option<Agent>,
    upstream: Upstream,
    /// One for each instance: two for TCP checks, one for HTTP.
    servers: Vec<Server>,
    interval: &'static str,
    has_state_directory: bool,
}

/// A server that answers probes, and counts them.
struct Server {
    address: SocketAddr,
    probes: Arc<AtomicUsize>,
    is_open: Arc<AtomicBool>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (probes, is_open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let (counted, open) = (probes.clone(), is_open.clone());
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                counted.fetch_add(1, Relaxed);
                let status = if open.load(Relaxed) { "200 OK" } else { "503 Service Unavailable" };
                stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                // A TCP check sends nothing and closes.
                if stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {
                    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok").as_bytes());
                }
            }
        });
        Self { address, probes, is_open }
    }
}

impl Site {
    fn new(interval: &'static str) -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            address: free_address(),
            agent: None,
            upstream: Upstream::saying("198.51.100.1"),
            servers: (0..3).map(|_| Server::start()).collect(),
            interval,
            has_state_directory: true,
        }
    }

    fn with_agent(self) -> Self {
        Self {
            agent: Some(Agent::new(&[("remote", &["192.0.2.23"]), ("fleet", &["192.0.2.31", "192.0.2.32"])])),
            ..self
        }
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn state_file(&self) -> PathBuf {
        self.state().join("catalog_state.json")
    }

    /// The definition of an instance: the third has an HTTP check.
    fn instance(&self, service: &str, number: usize) -> String {
        let server = self.servers[number - 1].address;
        let target = match number {
            3 => format!("\"http\": \"http://{server}/health\""),
            _ => format!("\"tcp\": \"{server}\""),
        };
        format!(
            r#"{{"name": "{service}", "id": "{service}-{number}", "address": "192.0.2.1{number}", "port": 80,
                "check": {{"id": "{service}-{number}", {target}, "interval": "{}"}}}}"#,
            self.interval
        )
    }

    fn define(&self, name: &str, instances: &[usize]) {
        let services = ["web", "db", "ranked"];
        let all = services.iter().flat_map(|service| instances.iter().map(|&number| self.instance(service, number)));
        let text = format!("{{\"services\": [{}]}}", all.collect::<Vec<_>>().join(",\n"));
        let definitions = self.folder.path().join("consul.d");
        fs::create_dir_all(&definitions).unwrap();
        fs::write(definitions.join(name), text).unwrap();
    }

    fn setup(&self) -> Setup {
        let folder = self.folder.path().display();
        fs::create_dir_all(self.state()).unwrap();
        let state =
            if self.has_state_directory { format!("state_directory = \"{folder}/state\"\n") } else { String::new() };
        let agent = self.agent.as_ref().map(|agent| {
            format!(
                "[catalog.consul]\naddress = \"http://{}\"\n[catalog.service.remote]\npolicy = \"one\"\n",
                agent.address()
            )
        });
        Setup::new(&format!(
            "{}[server]\nlisten = [\"{}\"]\nworkers = 2\n{state}\
             [catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n\
             [catalog.files]\ndirectory = \"{folder}/consul.d\"\n\
             [catalog.service.db]\npolicy = \"one\"\n\
             [catalog.service.ranked]\npolicy = \"one\"\norder = [\"ranked-3\", \"ranked-2\", \"ranked-1\"]\n{}",
            forward(".", &[self.upstream.address()]),
            self.address,
            agent.unwrap_or_default()
        ))
    }

    /// A daemon in which all three instances are healthy, and the third is the primary of every service with a policy: that is
    /// not the one that a new daemon would choose.
    #[track_caller]
    fn start(&self) -> Daemon {
        self.define("first.json", &[3]);
        let daemon = self.setup().start();
        self.wait_for(&daemon, "db", &["192.0.2.13"]);
        self.wait_for(&daemon, "ranked", &["192.0.2.13"]);
        self.define("others.json", &[1, 2]);
        self.wait_for(&daemon, "web", &["192.0.2.11", "192.0.2.12", "192.0.2.13"]);
        // Before all instances are healthy, a choice may still change for good reason.
        wait_until("all instances to be healthy", 3 * PATIENCE, || {
            let log: Vec<String> = daemon.log_from(0).iter().map(|line| line.replace('"', "")).collect();
            let is_healthy = |service: &str, number| {
                // A result may come before its instance is published.
                let is_about = |line: &str, field| line.contains(&format!(" {field}={service}-{number} "));
                let is_named = |line: &str| is_about(line, "check") || is_about(line, "id");
                log.iter().any(|line| is_named(line) && line.contains(" status=passing"))
            };
            ["db", "ranked"].iter().all(|service| (1..=3).all(|number| is_healthy(service, number))).then_some(())
        });
        if let Some(agent) = &self.agent {
            self.wait_for(&daemon, "remote", &["192.0.2.23"]);
            agent.set("remote", &["192.0.2.21", "192.0.2.22", "192.0.2.23"]);
            // Asked for last, it is as new as this.
            self.wait_for(&daemon, "fleet", &["192.0.2.31", "192.0.2.32"]);
        }
        daemon
    }

    #[track_caller]
    fn wait_for(&self, daemon: &Daemon, service: &str, addresses: &[&str]) {
        wait_until(&format!("{service} at {addresses:?}"), 3 * PATIENCE, || {
            (addresses_of(&daemon.ask(&format!("{service}.service.consul A"))) == addresses).then_some(())
        });
    }

    /// What is to be answered all the time.
    fn expected(&self) -> BTreeMap<&'static str, Vec<&'static str>> {
        let mut expected = BTreeMap::from([
            ("web", vec!["192.0.2.11", "192.0.2.12", "192.0.2.13"]),
            ("db", vec!["192.0.2.13"]),
            ("ranked", vec!["192.0.2.13"]),
        ]);
        if self.agent.is_some() {
            expected.extend([("remote", vec!["192.0.2.23"]), ("fleet", vec!["192.0.2.31", "192.0.2.32"])]);
        }
        expected
    }

    fn probes(&self) -> Vec<usize> {
        self.servers.iter().map(|server| server.probes.load(Relaxed)).collect()
    }
}

fn addresses_of(reply: &Message) -> Vec<String> {
    let mut addresses = reply.data();
    addresses.sort();
    addresses
}

/// A client that asks a hundred times a second, again where no process answers, and notes every other answer.
struct Client {
    is_over: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    wrong: Arc<Mutex<Vec<String>>>,
    thread: thread::JoinHandle<()>,
}

impl Client {
    fn start(server: SocketAddr, expected: BTreeMap<&'static str, Vec<&'static str>>) -> Self {
        let (is_over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let wrong = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let (is_over, answered, wrong) = (is_over.clone(), answered.clone(), wrong.clone());
            move || {
                for (service, addresses) in expected.iter().cycle() {
                    if is_over.load(Relaxed) {
                        return;
                    }
                    if let Some(reply) = ask(server, service) {
                        answered.fetch_add(1, Relaxed);
                        if addresses_of(&reply) != *addresses {
                            wrong.lock().unwrap().push(format!("{service}: {} {:?}", reply.rcode_name(), reply.data()));
                        }
                    }
                    thread::sleep(Duration::from_millis(10));
                }
            }
        });
        Self { is_over, answered, wrong, thread }
    }

    #[track_caller]
    fn wait_for_more(&self, count: usize) {
        let before = self.answered.load(Relaxed);
        wait_until("more answers", 3 * PATIENCE, || (self.answered.load(Relaxed) >= before + count).then_some(()));
    }

    /// The wrong answers.
    fn end(self) -> Vec<String> {
        self.is_over.store(true, Relaxed);
        self.thread.join().unwrap();
        self.wrong.lock().unwrap().clone()
    }
}

/// One query; no answer if no process listens, or the one that had it in its hands was killed.
fn ask(server: SocketAddr, service: &str) -> Option<Message> {
    let socket = socket_for(server);
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    socket.send(&query(&format!("{service}.service.consul A")).to_wire()).ok()?;
    let mut reply = [0; 1500];
    let length = socket.recv(&mut reply).ok()?;
    Message::from_wire(&reply[..length]).ok()
}

/// Fifty times from one process to the next, under load.
#[track_caller]
fn demand_continuity(site: &Site, mut daemon: Daemon, next: impl Fn(&Site, Daemon) -> Daemon) {
    let client = Client::start(site.address, site.expected());
    client.wait_for_more(10);
    let probes = site.probes();
    for _ in 0..50 {
        daemon = next(site, daemon);
        client.wait_for_more(3);
    }
    let probes: Vec<usize> = site.probes().iter().zip(probes).map(|(after, before)| after - before).collect();
    client.wait_for_more(10);
    assert_eq!(client.end(), [] as [String; 0]);
    // Three services share a server. A process that ran all its checks at once would have made 150 probes.
    assert!(probes.iter().all(|&count| count <= 50), "the schedule is kept: {probes:?}");
}

#[test]
fn fifty_hand_overs_change_no_answer_and_move_no_primary() {
    let site = Site::new("10s").with_agent();
    let daemon = site.start();
    demand_continuity(&site, daemon, |_, mut daemon| {
        daemon.hand_over();
        daemon
    });
}

#[test]
fn fifty_restarts_change_no_answer_and_move_no_primary() {
    let site = Site::new("10s").with_agent();
    let daemon = site.start();
    demand_continuity(&site, daemon, |site, daemon| {
        assert_eq!(daemon.stop().code, Some(0));
        site.setup().start()
    });
}

#[test]
fn fifty_crashes_change_no_answer_and_move_no_primary() {
    let site = Site::new("10s").with_agent();
    let daemon = site.start();
    // The last second may be lost.
    wait_until("the state to be saved", PATIENCE, || {
        let saved = fs::read_to_string(site.state_file()).ok()?;
        let catalog = fs::read_to_string(site.state().join("agent_catalog.json")).ok()?;
        let is_whole = (1..=3).all(|number| {
            ["web", "db", "ranked"].iter().all(|service| saved.contains(&format!("\"check\":\"{service}-{number}\"")))
        });
        (is_whole && catalog.contains("192.0.2.21") && catalog.contains("192.0.2.32")).then_some(())
    });
    demand_continuity(&site, daemon, |site, mut daemon| {
        signal(daemon.pid(), "KILL");
        daemon.wait();
        site.setup().start()
    });
}

#[test]
fn without_a_state_directory_a_hand_over_loses_nothing_either() {
    let site = Site { has_state_directory: false, ..Site::new("10s") }.with_agent();
    let mut daemon = site.start();
    daemon.wait_for_log(0, |line| {
        line.contains("results of checks") && line.contains("will not survive a restart; set server.state_directory")
    });
    let client = Client::start(site.address, site.expected());
    for _ in 0..5 {
        daemon.hand_over();
        client.wait_for_more(5);
    }
    assert_eq!(client.end(), [] as [String; 0]);
}

/// What is saved as of this many seconds ago, by the wall clock of another boot.
fn age(saved: &mut Value, seconds: i64) {
    let unix = saved["Saved"]["unix"].as_i64().unwrap();
    saved["Saved"]["unix"] = (unix - seconds * 1000).into();
    saved["Saved"]["boot"] = "another".into();
}

#[test]
fn a_saved_result_counts_if_it_is_recent_and_of_the_same_check() {
    let hour = 3600;
    let site = Site::new("1h");
    site.define("web.json", &[3]);
    let daemon = site.setup().start();
    site.wait_for(&daemon, "web", &["192.0.2.13"]);
    assert_eq!(daemon.stop().code, Some(0));
    let saved = fs::read_to_string(site.state_file()).unwrap();
    let definitions = site.folder.path().join("consul.d/web.json");
    let defined = fs::read_to_string(&definitions).unwrap();
    // From now on, a check that is run is critical.
    site.servers[2].is_open.store(false, Relaxed);
    let edited = |change: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&saved).unwrap();
        change(&mut value);
        value.to_string()
    };
    let same = || defined.clone();
    for (case, state, definition, counts, renamed) in [
        ("as it was", saved.clone(), same(), true, None),
        ("two intervals old", edited(&|saved| age(saved, 2 * hour)), same(), true, None),
        ("four intervals old", edited(&|saved| age(saved, 4 * hour)), same(), false, None),
        ("from the future", edited(&|saved| age(saved, -hour)), same(), false, None),
        ("clock set since", edited(&|saved| saved["Saved"]["unix"] = 1.into()), same(), true, None),
        ("another interval", saved.clone(), defined.replace("1h", "2h"), true, None),
        ("another target", saved.clone(), defined.replace("/health", "/other"), false, None),
        ("empty", String::new(), same(), false, Some("damaged")),
        ("cut", saved[..saved.len() / 2].to_owned(), same(), false, Some("damaged")),
        ("other things in it", r#"{"Version": 1, "Saved": []}"#.to_owned(), same(), false, Some("damaged")),
        ("of a later version", edited(&|saved| saved["Version"] = 2.into()), same(), false, Some("unknown-version")),
    ] {
        fs::write(site.state_file(), &state).unwrap();
        fs::write(&definitions, definition).unwrap();
        site.servers[2].is_open.store(case == "two intervals old", Relaxed);
        let probes = site.probes();
        let daemon = site.setup().start();
        let question = "web.service.consul A";
        if counts && case == "two intervals old" {
            // The check is overdue and runs within seconds, so that nothing but the log tells what it was before.
            assert_eq!(daemon.ask(question).one(), "192.0.2.13", "{case}");
            assert!(!daemon.log_from(0).iter().any(|line| line.contains("from=unknown")), "{case}");
        } else if counts {
            assert_eq!(daemon.ask(question).one(), "192.0.2.13", "{case}");
            assert_eq!(site.probes(), probes, "{case}: the next probe is in an hour");
        } else {
            wait_until(&format!("{case}: the check is run"), PATIENCE, || {
                (site.probes() > probes && daemon.ask(question).answer.is_empty()).then_some(())
            });
        }
        assert_eq!(daemon.stop().code, Some(0), "{case}");
        if let Some(renamed) = renamed {
            let aside = site.state().join(format!("catalog_state.json.{renamed}"));
            assert_eq!(fs::read_to_string(aside).unwrap(), state, "{case}");
        }
    }
}

#[test]
fn a_clock_that_is_set_between_two_processes_changes_nothing() {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    let Some(library) = require::file(&library) else { return };
    let site = Site::new("1h");
    site.define("web.json", &[3]);
    let daemon = site.setup().start();
    site.wait_for(&daemon, "web", &["192.0.2.13"]);
    assert_eq!(daemon.stop().code, Some(0));
    site.servers[2].is_open.store(false, Relaxed);
    for jump in ["+10d", "-10d", "+0"] {
        let setup = site.setup().env("LD_PRELOAD", &library.display().to_string()).env("FAKETIME", jump);
        let daemon = setup.env("DONT_FAKE_MONOTONIC", "1").start();
        assert_eq!(daemon.ask("web.service.consul A").one(), "192.0.2.13", "{jump}");
        assert_eq!(daemon.stop().code, Some(0), "{jump}");
    }
}

#[test]
fn a_saved_catalog_serves_until_the_agent_is_reached_and_no_longer_than_max_stale() {
    let site = Site::new("1h").with_agent();
    let agent = site.agent.as_ref().unwrap();
    site.define("web.json", &[3]);
    let daemon = site.setup().start();
    for (service, addresses) in [("remote", &["192.0.2.23"][..]), ("fleet", &["192.0.2.31", "192.0.2.32"])] {
        site.wait_for(&daemon, service, addresses);
    }
    agent.set("remote", &["192.0.2.21", "192.0.2.22", "192.0.2.23"]);
    assert_eq!(daemon.stop().code, Some(0));
    let catalog_file = site.state().join("agent_catalog.json");
    let saved = [site.state_file(), catalog_file].map(|file| (fs::read_to_string(&file).unwrap(), file));
    let edit = |change: &dyn Fn(&mut Value)| {
        for (text, file) in &saved {
            let mut value: Value = serde_json::from_str(text).unwrap();
            change(&mut value);
            fs::write(file, value.to_string()).unwrap();
        }
    };

    // Away: what was saved is what there is, for the hour of max_stale.
    agent.behave(Manner::Closing);
    for (case, seconds, expected) in [("just now", 0, &["192.0.2.23"][..]), ("an hour before", 3601, &[])] {
        edit(&|saved| age(saved, seconds));
        let daemon = site.setup().start();
        let reply = daemon.ask("remote.service.consul A");
        assert_eq!(addresses_of(&reply), expected, "{case}");
        // Nobody else may answer for it, for he would give all instances.
        assert_eq!(reply.rcode_name(), if expected.is_empty() { "SERVFAIL" } else { "NOERROR" }, "{case}");
        daemon.stop();
    }

    // Back: what was followed is followed again, and the primary stays.
    edit(&|_| {});
    agent.behave(Manner::Well);
    let asked = agent.requests().len();
    let daemon = site.setup().start();
    wait_until("the services to be followed again", PATIENCE, || {
        let requests = agent.requests();
        let is_followed = |name: &str| {
            requests[asked..].iter().any(|path| path.contains(&format!("service/{name}?")) && path.contains("index="))
        };
        (is_followed("remote") && is_followed("fleet")).then_some(())
    });
    assert_eq!(daemon.ask("remote.service.consul A").one(), "192.0.2.23");
    agent.set("fleet", &["192.0.2.31"]);
    site.wait_for(&daemon, "fleet", &["192.0.2.31"]);
    assert_eq!(daemon.ask("remote.service.consul A").one(), "192.0.2.23");
    drop(daemon);

    // Of another agent nothing is believed.
    agent.behave(Manner::Closing);
    edit(&|saved| {
        if let Some(source) = saved["Content"].get_mut("source") {
            source["addresses"] = serde_json::json!(["http://192.0.2.99:8500/"]);
        }
    });
    let daemon = site.setup().start();
    assert_eq!(daemon.ask("fleet.service.consul A").answer.len(), 0);
}
