//! A restart loses nothing: what comes in while no process runs waits in its socket, and the cache is there again.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use tempfile::TempDir;

use crate::harness::{client::socket_for, daemon::forward, *};

/// A daemon that can be started again and again: on fixed addresses, with a folder for its state.
struct House {
    folder: TempDir,
    upstream: Upstream,
    address: SocketAddr,
    control: SocketAddr,
    manager: Manager,
}

impl House {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (address, control) = (free_address(), free_address());
        let manager = Manager::new(folder.path());
        Self { upstream: Upstream::saying("192.0.2.1"), address, control, manager, folder }
    }

    /// Waits until what the manager keeps is what belongs to these addresses: of the first TCP and two workers' UDP.
    #[track_caller]
    fn wait_for_stored(&self, address: SocketAddr) {
        let name = |address: SocketAddr| format!("watershed/{}", address.to_string().replace(':', ";"));
        let mut expected = [vec![name(address); 3], vec![name(self.control)]].concat();
        expected.sort();
        wait_until("the manager's word", PATIENCE, || (self.manager.stored() == expected).then_some(()));
    }

    fn setup(&self, workers: usize) -> Setup {
        let (address, control, state) = (self.address, self.control, self.folder.path().display());
        Setup::new(&format!(
            "{}[server]\nlisten = [\"{address}\"]\nworkers = {workers}\nstate_directory = \"{state}\"\n\
             [control]\nlisten = \"{control}\"\n",
            forward(".", &[self.upstream.address()]),
        ))
    }
}

#[test]
fn a_restart_loses_no_query_however_many_workers_there_are() {
    let house = House::new();
    let mut daemon = house.manager.start(house.setup(2));
    // TCP, two workers' UDP, control.
    house.manager.wait_for_stored(4);
    assert_eq!(daemon.ask("kept.example A").one(), "192.0.2.1");
    let stream = Stream::start(house.address);
    for (workers, stored) in [
        (3, 5), // one more socket
        (1, 5), // none less: the queries in it would be lost
        (2, 5),
    ] {
        stream.wait_for_more(100);
        assert_eq!(daemon.stop().code, Some(0));
        daemon = house.manager.start(house.setup(workers));
        house.manager.wait_for_stored(stored);
        assert!(!daemon.wait_for_log(0, |line| line.contains("saved cache taken in")).contains("entries=0"));
    }
    stream.wait_for_more(100);
    let answered = stream.end();
    assert!(answered > 400);
    assert_eq!(daemon.ask("kept.example A").one(), "192.0.2.1");
    assert_eq!(house.upstream.count("kept.example A"), 1, "the cache came along");
    assert_eq!(daemon.get("/live").0, 200);
}

#[test]
fn what_comes_in_after_a_crash_is_answered_by_the_next_process() {
    let house = House::new();
    let mut daemon = house.manager.start(house.setup(2));
    house.manager.wait_for_stored(4);
    signal(daemon.pid(), "KILL");
    daemon.wait();
    let question = query("www.example A");
    let ports: Vec<_> = (0..50).map(|_| socket_for(house.address)).collect();
    for port in &ports {
        port.send(&question.to_wire()).unwrap();
    }
    let mut connection = Tcp::connect(house.address);
    connection.send(&[&question]);
    let _daemon = house.manager.start(house.setup(2));
    for port in &ports {
        let mut reply = [0; 512];
        let length = port.recv(&mut reply).expect("an answer to what was queued");
        assert_eq!(Message::from_wire(&reply[..length]).unwrap().one(), "192.0.2.1");
    }
    assert_eq!(connection.receive().one(), "192.0.2.1");
}

#[test]
fn sockets_that_are_no_longer_configured_are_closed_and_not_kept() {
    let mut house = House::new();
    let daemon = house.manager.start(house.setup(2));
    house.manager.wait_for_stored(4);
    let before = house.address;
    house.address = free_address();
    // By a reload: the new one is kept, the old one not.
    daemon.edit_config(|config| config.replace(&before.to_string(), &house.address.to_string()));
    assert!(daemon.reload().contains("reloaded"));
    house.wait_for_stored(house.address);
    daemon.stop();
    // And by a start.
    let kept = house.address;
    house.address = before;
    let mut daemon = house.manager.start(house.setup(2).reachable_by_all());
    house.wait_for_stored(before);
    assert!(TcpListener::bind(kept).is_ok());
    // And by a hand-over: the manager does not listen to the new process before it is the main one.
    daemon.edit_config(|config| config.replace(&before.to_string(), &kept.to_string()));
    daemon.hand_over();
    house.wait_for_stored(kept);
    assert!(TcpListener::bind(before).is_ok());
}

#[test]
fn a_new_binary_takes_over_without_a_gap() {
    let house = House::new();
    let mut daemon = house.manager.start(house.setup(2).reachable_by_all());
    house.manager.wait_for_stored(4);
    assert_eq!(daemon.ask("kept.example A").one(), "192.0.2.1");
    let stream = Stream::start(house.address);
    for _ in 0..3 {
        stream.wait_for_more(100);
        let old = daemon.pid();
        daemon.replace_binary();
        let from = daemon.log_length();
        daemon.hand_over();
        daemon.wait_for_log(from, |line| line.contains("saved cache taken in"));
        assert_ne!(daemon.pid(), old);
        let runs = fs::metadata(format!("/proc/{}/exe", daemon.pid())).unwrap().ino();
        assert_eq!(runs, fs::metadata(daemon.folder().join("watershed")).unwrap().ino(), "the new file");
        house.manager.wait_for(&format!("MAINPID={}", daemon.pid()));
    }
    stream.wait_for_more(100);
    stream.end();
    assert_eq!(daemon.ask("kept.example A").one(), "192.0.2.1");
    assert_eq!(house.upstream.count("kept.example A"), 1, "the cache came along");
    // It is a daemon like any other: it reloads, serves HTTP, and ends.
    assert!(daemon.reload().contains("reloaded"));
    assert_eq!(daemon.get("/live").0, 200);
    assert!(daemon.stop().text.lines().last().unwrap().contains("stopped"));
}

#[test]
fn who_waits_for_an_upstream_is_answered_by_the_process_that_hands_over() {
    let house = House::new();
    let gate = Gate::default();
    let passed = gate.clone();
    house.upstream.change(move |asked| {
        passed.pass();
        upstream::saying("192.0.2.1")(asked)
    });
    let mut daemon = house.setup(2).reachable_by_all().start();
    thread::scope(|scope| {
        let clients = [
            scope.spawn(|| udp(house.address, &query("udp.example A"))),
            scope.spawn(|| tcp(house.address, &query("tcp.example A"))),
        ];
        house.upstream.wait_for("udp.example A", 1);
        house.upstream.wait_for("tcp.example A", 1);
        signal(daemon.pid(), "USR2");
        daemon.wait_for_log(0, |line| line.contains("stopping"));
        gate.open();
        for client in clients {
            assert_eq!(client.join().unwrap().one(), "192.0.2.1");
        }
    });
    assert_eq!(daemon.wait().code, Some(0));
    let line = daemon.wait_for_log(0, |line| line.contains("handed over process="));
    signal(line.split("process=").nth(1).unwrap().trim().parse().unwrap(), "TERM");
    daemon.wait_for_log(0, |line| line.contains("stopped"));
}

/// Those who ask the next process have its whole deadline before them: nobody may hold it up for as long.
#[test]
fn who_waits_for_an_upstream_is_told_when_the_daemon_is_to_end() {
    let house = House::new();
    house.upstream.change(|_| vec![]);
    let daemon = house.setup(2).start();
    thread::scope(|scope| {
        let clients = [
            scope.spawn(|| udp(house.address, &query("udp.example A").edns(1232))),
            scope.spawn(|| tcp(house.address, &query("tcp.example A").edns(1232))),
        ];
        house.upstream.wait_for("udp.example A", 1);
        house.upstream.wait_for("tcp.example A", 1);
        assert_eq!(daemon.stop().code, Some(0));
        for client in clients {
            let reply = client.join().unwrap();
            assert_eq!(reply.rcode_name(), "SERVFAIL");
            assert_eq!(reply.error_texts(), ["the server is stopping"]);
        }
    });
}

#[test]
fn a_process_that_does_not_come_up_changes_nothing() {
    let house = House::new();
    let mut daemon = house.setup(2).reachable_by_all().start();
    let stream = Stream::start(house.address);
    let config = fs::read_to_string(daemon.folder().join("watershed.toml")).unwrap();
    let binary = daemon.folder().join("watershed");
    for fault in ["a configuration that is refused", "a binary that crashes", "no binary"] {
        match fault {
            "a configuration that is refused" => daemon.write("watershed.toml", "[server]\nlisten = 5\n"),
            "a binary that crashes" => {
                daemon.write("watershed.toml", &config);
                fs::remove_file(&binary).unwrap();
                fs::write(&binary, "#!/bin/sh\nkill -SEGV $$\n").unwrap();
                fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).unwrap();
            }
            _ => fs::remove_file(&binary).unwrap(),
        }
        stream.wait_for_more(50);
        let from = daemon.log_length();
        signal(daemon.pid(), "USR2");
        daemon.wait_for_log(from, |line| line.contains("not handed over"));
        assert_eq!(daemon.get("/live").0, 200, "{fault}");
    }
    daemon.replace_binary();
    daemon.hand_over();
    stream.wait_for_more(50);
    stream.end();
}

/// Makes a file whose reader waits until somebody writes to it.
fn make_gate(daemon: &Daemon) -> PathBuf {
    let gate = daemon.folder().join("gate");
    assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
    gate
}

/// Waits until somebody reads it.
#[track_caller]
fn open_gate(gate: &Path) -> fs::File {
    // Without waiting (O_NONBLOCK) it can be opened only then.
    wait_until("a reader", PATIENCE, || fs::OpenOptions::new().write(true).custom_flags(0o4000).open(gate).ok())
}

#[test]
fn a_process_that_reads_its_files_for_long_and_is_refused_gets_no_query() {
    let house = House::new();
    let daemon = house.setup(2).reachable_by_all().start();
    let records: String = (0..100_000).map(|number| format!("h{number} A 192.0.2.1\n")).collect();
    daemon.write("long.zone", &format!("$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n{records}"));
    daemon.write("no.pem", "no certificate\n");
    // More workers want more sockets, which the kernel gives queries as soon as they are there.
    daemon.edit_config(|config| {
        let tls = "tls_listen = [\"127.0.0.1:0\"]\ncertificate = \"<DIR>/no.pem\"\nprivate_key = \"<DIR>/no.pem\"";
        let zone = "\n[[zone]]\napex = \"long.example\"\nfile = \"<DIR>/long.zone\"\n";
        config.replace("workers = 2", &format!("workers = 8\n{tls}")) + zone
    });
    let stream = Stream::start(house.address);
    signal(daemon.pid(), "USR2");
    stream.wait_for_more(100);
    daemon.wait_for_log(0, |line| line.contains("not handed over"));
    stream.wait_for_more(50);
    stream.end();
}

#[test]
fn a_reload_that_is_asked_for_during_a_hand_over_is_done_by_whoever_serves_then() {
    let house = House::new();
    let mut daemon = house.setup(2).reachable_by_all().start();
    let gate = make_gate(&daemon);
    let binary = daemon.folder().join("watershed");
    let real = daemon.folder().join("real");
    fs::rename(&binary, &real).unwrap();
    let script = format!("#!/bin/sh\nread line <'{}'\nexec '{}' \"$@\"\n", gate.display(), real.display());
    fs::write(&binary, script).unwrap();
    fs::set_permissions(&binary, PermissionsExt::from_mode(0o755)).unwrap();
    let (from, old) = (daemon.log_length(), daemon.pid());
    signal(old, "USR2");
    let mut file = open_gate(&gate);
    signal(old, "HUP");
    file.write_all(b"go\n").unwrap();
    drop(file);
    daemon.await_hand_over(from, old);
    daemon.wait_for_log(from, |line| line.contains("reloaded"));
    assert_eq!(daemon.get("/live").0, 200);
}

#[test]
fn the_first_process_of_a_container_does_not_hand_over() {
    if !require::root() {
        return;
    }
    let house = House::new();
    let daemon = house.setup(2).by(&["unshare", "--pid", "--fork", "--kill-child"]).start();
    let parent = daemon.pid();
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap();
    signal(children.trim().parse().unwrap(), "USR2");
    daemon.wait_for_log(0, |line| line.contains("not handed over") && line.contains("container"));
    assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1");
    assert_eq!(daemon.get("/live").0, 200);
}

#[test]
fn what_is_registered_survives_a_hand_over() {
    let house = House::new();
    let api =
        "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.5\"\n[catalog.api]\nenable_registration = true\n";
    let mut daemon = house.setup(2).configured(|config| config + api).reachable_by_all().start();
    let body = r#"{"Name": "web", "Port": 80, "Check": {"TTL": "1h"}}"#;
    let registered = http::request(house.control, "PUT", "/v1/agent/service/register", body).unwrap();
    assert_eq!(registered.0, 200, "{}", registered.1);
    // What a check is told is saved a second later, or now.
    let told = http::request(house.control, "PUT", "/v1/agent/check/pass/service:web", "").unwrap();
    assert_eq!(told.0, 200, "{}", told.1);
    daemon.hand_over();
    assert_eq!(daemon.ask("web.service.consul A").one(), "192.0.2.5");
    let deregistered = http::request(house.control, "PUT", "/v1/agent/service/deregister/web", "").unwrap();
    assert_eq!(deregistered.0, 200, "{}", deregistered.1);
    daemon.hand_over();
    assert_eq!(daemon.ask("web.service.consul A").rcode_name(), "NXDOMAIN");
}
