//! What the machine does to the daemon: it serves on, says what is wrong, and is well again once the machine is.

use std::{
    fs,
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    thread,
};

use crate::harness::{daemon::forward, http, netns::Netns, programs::Process, *};

const ZONE: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A ADDRESS\n";

fn zone(address: &str) -> String {
    ZONE.replace("ADDRESS", address)
}

/// Runs a script before the daemon, in a mount namespace in which it may do to folders what it likes.
fn after(setup: Setup, script: &str) -> Option<Setup> {
    if !require::root() {
        return None;
    }
    let folder = setup.folder().display().to_string();
    let script = format!("{}; exec \"$0\" \"$@\"", script.replace("<DIR>", &folder));
    Some(setup.by(&["unshare", "--mount", "sh", "-e", "-c", &script]))
}

#[track_caller]
fn wait_for_answer(daemon: &Daemon, question: &str, address: &str) {
    wait_until(question, PATIENCE, || (daemon.ask(question).data() == [address]).then_some(()));
}

/// Each of the daemon's descriptors but a few is taken by clients that do nothing.
#[test]
fn without_descriptors_udp_is_answered_and_tcp_once_there_are_some() {
    if require::program("prlimit").is_none() {
        return;
    }
    let upstream = Upstream::saying("192.0.2.1");
    let limits = "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\ntcp_connections_per_client = 1000\n";
    let config = forward(".", &[upstream.address()]) + limits;
    let daemon = Setup::new(&config).start();
    assert_eq!(daemon.ask("first.example A").one(), "192.0.2.1");
    // Fewer than the limit that connections have got their share of.
    let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let limit = format!("--nofile={}", open + 6);
    run(std::process::Command::new("prlimit").args(["--pid", &daemon.pid().to_string(), &limit]));
    let idle: Vec<Tcp> = (0..200).map(|_| Tcp::connect(daemon.address())).collect();
    daemon.wait_for_log(0, |line| line.contains("cannot accept TCP connections"));
    for number in 0..50 {
        assert_eq!(daemon.ask(&format!("name{number}.example A")).one(), "192.0.2.1");
    }
    drop(idle);
    // As long as there are no descriptors, HTTP has none either.
    wait_until("those who are gone to be gone", PATIENCE, || {
        let (_, text) = http::request(daemon.control.unwrap(), "GET", "/metrics", "").ok()?;
        let counts = |line: &str| line.starts_with("watershed_server_tcp_connections") && line.ends_with(" 0");
        text.lines().any(counts).then_some(())
    });
    for number in 0..10 {
        let question = query(&format!("name{number}.example A"));
        assert_eq!(daemon.tcp(&question).one(), "192.0.2.1");
    }
    // What lasts is said once.
    let said = daemon.log_from(0).iter().filter(|line| line.contains("cannot accept")).count();
    assert!(said < 3, "{said} lines");
}

#[test]
fn a_full_disk_costs_what_would_be_saved_and_nothing_else() {
    let upstream = Upstream::saying("192.0.2.1");
    for (fault, script) in [
        (
            "full",
            "mkdir <DIR>/state; mount -t tmpfs -o size=16k tmpfs <DIR>/state; head -c 16384 /dev/zero ><DIR>/state/other",
        ),
        ("read-only", "mkdir <DIR>/state; mount -t tmpfs -o ro tmpfs <DIR>/state"),
    ] {
        let api =
            "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.5\"\n[catalog.api]\nenable_registration = true\n";
        let server = "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\nstate_directory = \"<DIR>/state\"\n";
        let config = forward(".", &[upstream.address()]) + server + api;
        let Some(setup) = after(Setup::new(&config), script) else { return };
        let daemon = setup.start();
        assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1", "{fault}");
        let body = r#"{"Name": "web", "Port": 80}"#;
        let control = daemon.control.unwrap();
        let (status, text) = http::request(control, "PUT", "/v1/agent/service/register", body).unwrap();
        // Nobody is told that something is safe which is not.
        assert_eq!(status, 500, "{fault}: {text}");
        let ended = daemon.stop();
        assert_eq!(ended.code, Some(0), "{fault}");
        assert!(ended.text.contains("cache not saved"), "{fault}: {}", ended.text);
        assert_eq!(ended.text.matches("state of the catalog not saved").count(), 1, "{fault}: {}", ended.text);
    }
}

#[test]
fn a_damaged_snapshot_is_ignored_and_replaced() {
    let upstream = Upstream::saying("192.0.2.1");
    let state = tempfile::tempdir().unwrap();
    let setup = || {
        let server = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\nstate_directory = \"{}\"\n",
            state.path().display()
        );
        Setup::new(&(forward(".", &[upstream.address()]) + &server))
    };
    let file = state.path().join("cache.snapshot");
    for (fault, expected) in [
        ("none", None),
        ("cut", Some("damaged")),
        ("empty", Some("not a snapshot")),
        ("another's", Some("not a snapshot")),
        ("a folder", Some("not read")),
    ] {
        let daemon = setup().start();
        assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1", "{fault}");
        assert_eq!(daemon.stop().code, Some(0), "{fault}");
        let saved = fs::read(&file).unwrap();
        match fault {
            "cut" => fs::write(&file, &saved[..saved.len() / 2]).unwrap(),
            "empty" => fs::write(&file, "").unwrap(),
            "another's" => fs::write(&file, [b"something else", &saved[..]].concat()).unwrap(),
            "a folder" => {
                fs::remove_file(&file).unwrap();
                fs::create_dir(&file).unwrap();
            }
            _ => {}
        }
        let daemon = setup().start();
        let line = daemon.wait_for_log(0, |line| line.contains("saved cache"));
        assert!(line.contains(expected.unwrap_or("taken in")), "{fault}: {line}");
        assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1", "{fault}");
        daemon.stop();
        if file.is_dir() {
            fs::remove_dir(&file).unwrap();
        }
    }
}

#[test]
fn a_zone_folder_that_vanishes_leaves_its_zones_until_it_is_back() {
    let upstream = Upstream::saying("192.0.2.9");
    let config = forward(".", &[upstream.address()]) + "[zones]\nhosts = []\ndirectory = \"<DIR>/zones\"\n";
    let daemon = Setup::new(&config).file("zones/site.example.zone", &zone("192.0.2.1")).start();
    assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.1");
    let zones = daemon.folder().join("zones");
    for round in 2..5 {
        fs::rename(&zones, daemon.folder().join("away")).unwrap();
        wait_until("/ready to say so", PATIENCE, || {
            let (status, text) = daemon.get("/ready");
            assert_eq!(status, 200, "every answer is as it was: {text}");
            text.contains("fault: ").then_some(())
        });
        assert_eq!(daemon.ask("www.site.example A").one(), format!("192.0.2.{}", round - 1), "the last good version");
        fs::remove_dir_all(daemon.folder().join("away")).unwrap();
        daemon.write("zones/site.example.zone", &zone(&format!("192.0.2.{round}")));
        wait_for_answer(&daemon, "www.site.example A", &format!("192.0.2.{round}"));
        wait_until("/ready to be content", PATIENCE, || (daemon.get("/ready").1 == "ready\n").then_some(()));
    }
}

#[test]
fn a_file_that_is_half_written_is_not_served() {
    let config = "[zones]\nhosts = []\ndirectory = \"<DIR>/zones\"\n";
    let daemon = Setup::new(&(forward(".", &[free_address()]) + config))
        .file("zones/site.example.zone", &zone("192.0.2.1"))
        .start();
    let path = daemon.folder().join("zones/site.example.zone");
    let whole = zone("192.0.2.2");
    // In place, as some tools write, and with a pause in the middle of a record.
    for length in [0, whole.len() / 2, whole.len() - 10] {
        let from = daemon.log_length();
        fs::write(&path, &whole[..length]).unwrap();
        daemon.wait_for_log(from, |line| line.contains("file refused"));
        assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.1", "{length} of {}", whole.len());
    }
    fs::write(&path, &whole).unwrap();
    wait_for_answer(&daemon, "www.site.example A", "192.0.2.2");
}

#[test]
fn where_the_system_cannot_tell_of_changes_the_files_are_looked_at() {
    if !require::root() {
        return;
    }
    let config = "[zones]\nhosts = []\ndirectory = \"<DIR>/zones\"\n";
    for limit in ["max_inotify_instances", "max_inotify_watches"] {
        let setup = Setup::new(&(forward(".", &[free_address()]) + config))
            .file("zones/site.example.zone", &zone("192.0.2.1"))
            // The limits are those of the user namespace.
            .by(&["unshare", "--user", "--map-root-user", "sh", "-e", "-c"])
            .by(&[&format!("echo 0 >/proc/sys/user/{limit}; exec \"$0\" \"$@\"")]);
        let daemon = setup.start();
        daemon.wait_for_log(0, |line| line.contains("looking at them twice a second"));
        daemon.write("zones/site.example.zone", &zone("192.0.2.2"));
        wait_for_answer(&daemon, "www.site.example A", "192.0.2.2");
        daemon.write("zones/site.example.zone", &zone("192.0.2.3"));
        assert!(daemon.reload().contains("reloaded"), "{limit}");
        assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.3", "{limit}");
    }
}

/// Sets the wall clock of one process, and leaves the monotonic one alone.
#[test]
fn the_clock_may_jump_and_no_answer_lives_longer_or_dies() {
    let library = format!("/usr/lib/{}-linux-gnu/faketime/libfaketime.so.1", std::env::consts::ARCH);
    let Some(library) = require::file(&library) else { return };
    let upstream = Upstream::holding(&["www.example. 300 A 192.0.2.1", "short.example. 2 A 192.0.2.2"]);
    let setup = Setup::new(&forward(".", &[upstream.address()]))
        .file("clock", "+0")
        .env("LD_PRELOAD", &library.display().to_string())
        .env("FAKETIME_TIMESTAMP_FILE", "<DIR>/clock")
        .env("FAKETIME_NO_CACHE", "1")
        .env("DONT_FAKE_MONOTONIC", "1");
    let daemon = setup.start();
    let started = |daemon: &Daemon| daemon.metric("watershed_daemon_last_reload_success_timestamp_seconds", &[]);
    let before = started(&daemon);
    assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1");
    for (jump, days) in [("+1d", 1.0), ("-1d", -1.0), ("+0", 0.0)] {
        daemon.write("clock", jump);
        daemon.reload();
        let moved = (started(&daemon) - before) / 86_400.0;
        assert!((moved - days).abs() < 0.01, "the daemon's wall clock has jumped: {moved} days");
        let reply = daemon.ask("www.example A");
        assert!((280..=300).contains(&reply.answer[0].ttl), "{jump}: {}", reply.answer[0].ttl);
        assert_eq!(upstream.count("www.example A"), 1, "{jump}: still cached");
        assert_eq!(daemon.ask("short.example A").one(), "192.0.2.2");
        assert_eq!(daemon.ask(&format!("new{days}.example A")).rcode_name(), "NXDOMAIN", "{jump}: timers go on");
    }
    wait_until("the short answer to be asked for again", PATIENCE, || {
        daemon.ask("short.example A");
        (upstream.count("short.example A") > 1).then_some(())
    });
}

#[test]
fn an_address_may_come_late_go_and_come_back() {
    let Some(netns) = Netns::new("") else { return };
    let ip = |command: &str| {
        run(Command::new("ip").args(["-n", netns.name()]).args(command.split(' ')));
    };
    let zone = zone("192.0.2.1");
    let rule = "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n";
    let listen = "[server]\nlisten = [\"192.0.2.77:53\", \"127.0.0.1:53\"]\nallow = [\"any\"]\nworkers = 2\n";
    // The address is not there yet when the daemon starts.
    let daemon = Setup::new(&format!("{rule}{listen}")).file("site.zone", &zone).within(&netns).start();
    let ask = |server: &str, transport: &str| {
        let server = format!("@{server}");
        let mut dig = netns.command("dig");
        let output =
            dig.args([&server, transport, "+short", "+tries=3", "+time=3", "www.site.example"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(ask("127.0.0.1", "+notcp"), "192.0.2.1");
    for round in 0..3 {
        ip("link add late type veth peer name other");
        ip("addr add 192.0.2.77/32 dev late");
        ip("link set late up");
        ip("link set other up");
        for transport in ["+notcp", "+tcp"] {
            assert_eq!(ask("192.0.2.77", transport), "192.0.2.1", "{round} {transport}");
        }
        ip("link del late");
        assert_eq!(ask("127.0.0.1", "+notcp"), "192.0.2.1", "the others do not suffer");
    }
    drop(daemon);
}

#[test]
fn a_system_that_names_ourselves_alone_is_no_loop() {
    let Some(netns) = Netns::new("nameserver 127.0.0.1\nnameserver ::1\n") else { return };
    let daemon = Setup::bare().within(&netns).start();
    daemon.wait_for_log(0, |line| line.contains("no upstream for names"));
    let reply = run(netns.command("dig").args(["@127.0.0.1", "+tries=1", "www.example"]));
    assert!(reply.contains("SERVFAIL"), "{reply}");
    drop(daemon);
}

#[test]
fn an_unspecified_name_server_of_the_system_is_passed_over() {
    let Some(netns) = Netns::new("") else { return };
    let upstream =
        Upstream::at(SocketAddr::new(netns.host(), 53), upstream::holding(&["www.example. 300 A 192.0.2.1"]));
    netns.set_resolv_conf(&format!("nameserver 0.0.0.0\nnameserver ::\nnameserver {}\n", netns.host()));
    let daemon = Setup::bare().within(&netns).start();
    daemon.wait_for_log(0, |line| line.contains("passed over") && line.contains("0.0.0.0:53, [::]:53"));
    let reply = run(netns.command("dig").args(["@127.0.0.1", "+tries=1", "+short", "www.example"]));
    assert_eq!((reply.trim(), upstream.count("www.example A")), ("192.0.2.1", 1));
    drop(daemon);
}

/// Starts a resolver that forwards everything back to us.
fn forwarding_back(program: &str, own: SocketAddr, to: SocketAddr) -> Option<Process> {
    let program = require::program(program)?;
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(&program);
    if program.ends_with("dnsmasq") {
        command.args([
            "--keep-in-foreground",
            "--no-resolv",
            "--no-hosts",
            "--conf-file=/dev/null",
            "--bind-interfaces",
        ]);
        command.args(["--user=root", "--cache-size=0"]);
        // Not the one of the system, for which others who run the tests would contend.
        command.arg(format!("--pid-file={}", folder.path().join("pid").display()));
        command.arg(format!("--port={}", own.port())).arg(format!("--listen-address={}", own.ip()));
        command.arg(format!("--server={}#{}", to.ip(), to.port()));
    } else {
        let config = format!(
            "server:\n interface: {}@{}\n do-daemonize: no\n username: \"\"\n chroot: \"\"\n directory: \"{3}\"\n \
             pidfile: \"\"\n use-syslog: no\n do-not-query-localhost: no\n module-config: \"iterator\"\n \
             outgoing-interface: {0}\nforward-zone:\n name: \".\"\n forward-addr: {2}\nremote-control:\n control-enable: no\n",
            own.ip(),
            own.port(),
            to.to_string().replace(':', "@"),
            folder.path().display(),
        );
        fs::write(folder.path().join("unbound.conf"), config).unwrap();
        command.arg("-d").arg("-c").arg(folder.path().join("unbound.conf"));
    }
    Some(Process::start(&mut command, folder))
}

#[test]
fn a_loop_through_another_resolver_is_found_and_every_query_answered() {
    thread::scope(|scope| {
        for program in ["unbound", "dnsmasq"] {
            scope.spawn(move || loop_through(program));
        }
    });
}

fn loop_through(program: &str) {
    let (ours, theirs) = (free_address(), free_address());
    let Some(_other) = forwarding_back(program, theirs, ours) else { return };
    // A query that comes before it listens fails without a loop.
    wait_until(program, PATIENCE, || TcpStream::connect(theirs).ok());
    let config = format!("[server]\nlisten = [\"{ours}\"]\nworkers = 2\n");
    let daemon = Setup::new(&(forward(".", &[theirs]) + &config)).start();
    let socket = client::socket_for(ours);
    for number in 0..8 {
        socket.send(&query(&format!("name{number}.example A")).to_wire()).unwrap();
    }
    for _ in 0..8 {
        let mut reply = [0; 512];
        let length = socket.recv(&mut reply).expect("an answer to each");
        assert_eq!(Message::from_wire(&reply[..length]).unwrap().rcode_name(), "SERVFAIL", "{program}");
    }
    daemon.wait_for_log(0, |line| line.contains("a loop"));
    assert!(daemon.metric("watershed_forward_loops_total", &[]) > 0.0, "{program}");
    assert_eq!(daemon.ask("localhost A").one(), "127.0.0.1", "{program}: the rest does not suffer");
    // It did not run wild: each query went there a few times, and not for ever.
    let sent = daemon.metric("watershed_forward_sends_total", &[]);
    assert!(sent < 200.0, "{program}: {sent} queries for 8");
}

#[test]
fn the_memory_of_the_cache_is_bounded() {
    const NAMES: usize = 1500;
    // Scripted upstreams remember what they were asked, and cost more than all this.
    let upstream = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = upstream.local_addr().unwrap();
    thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = upstream.recv_from(&mut query) {
            let mut reply = Message::from_wire(&query[..length]).unwrap().respond();
            // Large ones, so that few are enough.
            for number in 0..80 {
                let line = format!("{} 300 A 192.0.2.{number}", reply.qname());
                reply = reply.answer(&line);
            }
            upstream.send_to(&reply.to_wire(), from).unwrap();
        }
    });
    let config = forward(".", &[address]) + "[cache]\nsize = \"1MiB\"\n";
    let daemon = Setup::new(&config).start();
    let client = client::socket_for(daemon.address());
    let mut open = 0;
    for number in 0..NAMES {
        client.send(&query(&format!("name{number}.memory.example A")).to_wire()).unwrap();
        open += 1;
        while open > if number + 1 == NAMES { 0 } else { 32 } {
            client.recv(&mut [0; 512]).expect("an answer");
            open -= 1;
        }
    }
    assert!(daemon.metric("watershed_cache_bytes", &[]) <= f64::from(1 << 20));
    let (kept, dropped) =
        (daemon.metric("watershed_cache_entries", &[]), daemon.metric("watershed_cache_evictions_total", &[]));
    assert_eq!(kept + dropped, NAMES as f64);
    assert!(kept > 300.0 && dropped > 100.0, "{kept} {dropped}");
}
