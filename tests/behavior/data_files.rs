//! A data file with faults costs itself alone: at a first start, at a restart, at a reload, and while the daemon runs.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use crate::harness::{catalog::plain, daemon::forward, netns::Netns, programs::Process, *};

const HEAD: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n";

fn zone(address: &str) -> String {
    format!("{HEAD}www A {address}\n")
}

/// What becomes of a good file.
#[derive(Debug, Clone, Copy)]
enum Fault {
    Text(&'static str),
    /// The good text, and this.
    More(&'static str),
    Folder,
    Dangling,
    Loop,
}

impl Fault {
    fn put(self, path: &Path, good: &str) {
        let _ = fs::remove_file(path);
        let _ = fs::remove_dir(path);
        match self {
            Self::Text(text) => fs::write(path, text).unwrap(),
            Self::More(text) => fs::write(path, format!("{good}{text}")).unwrap(),
            Self::Folder => fs::create_dir(path).unwrap(),
            Self::Dangling => symlink("nowhere", path).unwrap(),
            Self::Loop => symlink(path, path).unwrap(),
        }
    }
}

/// A kind of data file: its name, a good text, what is asked, and what is answered by it, by a faulty one that was never good,
/// and by a good one that has changed.
struct Kind {
    file: &'static str,
    good: String,
    question: &'static str,
    answer: &'static str,
    without: &'static str,
    faults: &'static [Fault],
}

fn kinds() -> Vec<Kind> {
    use Fault::{Dangling, Folder, Loop, More, Text};
    const LONG: &str = "a23456789012345678901234567890123456789012345678901234567890abcd A 192.0.2.1\n";
    vec![
        Kind {
            file: "zones/site.example.zone",
            good: zone("192.0.2.1"),
            question: "www.site.example A",
            answer: "192.0.2.1",
            without: "SERVFAIL",
            faults: &[More("bad A 300.0.2.1\n"), More(LONG), Text(""), Text("(\n"), Folder, Dangling, Loop],
        },
        Kind {
            file: "explicit.zone",
            good: zone("192.0.2.2"),
            question: "www.explicit.example A",
            answer: "192.0.2.2",
            without: "SERVFAIL",
            faults: &[More("$INCLUDE missing.inc\n"), Folder, Dangling],
        },
        Kind {
            file: "zones/@block.overlay",
            good: "held.example CNAME .\n".into(),
            question: "held.example A",
            answer: "NXDOMAIN",
            without: "198.51.100.1",
            faults: &[More(LONG), More("x A\n"), Folder, Dangling],
        },
        Kind {
            file: "hosts",
            good: "192.0.2.4 host.example\n".into(),
            question: "host.example A",
            answer: "192.0.2.4",
            without: "198.51.100.1",
            faults: &[Folder, Dangling, Loop],
        },
        Kind {
            file: "consul.d/team.json",
            good: r#"{"service": {"name": "team", "port": 1, "address": "192.0.2.5"}}"#.into(),
            question: "team.service.consul A",
            answer: "192.0.2.5",
            without: "NXDOMAIN",
            faults: &[Text("{"), Text(r#"{"service": {"nmae": "team"}}"#), Folder, Dangling, Loop],
        },
    ]
}

fn config(upstream: &Upstream) -> String {
    forward(".", &[upstream.address()])
        + &format!("[server]\nlisten = [\"{}\"]\nworkers = 2\nstate_directory = \"<DIR>/state\"\n", free_address())
        + &format!("[control]\nlisten = \"{}\"\n", free_address())
        + "[zones]\ndirectory = \"<DIR>/zones\"\nhosts = [\"<DIR>/hosts\"]\n\
           [[zone]]\napex = \"explicit.example\"\nfile = \"<DIR>/explicit.zone\"\n\
           [catalog]\nnode_name = \"own\"\naddress = \"192.0.2.9\"\n[catalog.files]\ndirectory = \"<DIR>/consul.d\"\n"
}

/// The address that is answered, or the response code.
fn said(daemon: &Daemon, question: &str) -> String {
    let reply = daemon.ask(question);
    reply.data().first().cloned().unwrap_or_else(|| reply.rcode_name().to_owned())
}

#[track_caller]
fn becomes(daemon: &Daemon, question: &str, expected: &str) {
    wait_until(&format!("{question} {expected}"), PATIENCE, || (said(daemon, question) == expected).then_some(()));
}

/// The copies in the state directory.
fn copies(daemon: &Daemon) -> Vec<PathBuf> {
    let list = |kind| fs::read_dir(daemon.folder().join("state/last-good").join(kind)).into_iter().flatten().flatten();
    let paths = list("zones").chain(list("definitions")).map(|entry| entry.path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "copy")).collect()
}

#[test]
fn a_faulty_data_file_costs_itself_alone_at_any_time() {
    let upstream = Upstream::saying("198.51.100.1");
    let kinds = kinds();
    let rounds = kinds.iter().map(|kind| kind.faults.len()).max().unwrap();
    for round in 0..rounds {
        let fault_of = |kind: &Kind| kind.faults[round % kind.faults.len()];
        let folder_of = |setup: &Setup| setup.folder().to_owned();
        // A first start: no version was ever good.
        let setup = Setup::new(&config(&upstream)).file("zones/good.example.zone", &zone("192.0.2.7"));
        let setup = setup.file("consul.d/good.json", &plain("good", 1));
        let folder = folder_of(&setup);
        for kind in &kinds {
            fault_of(kind).put(&folder.join(kind.file), &kind.good);
        }
        let mut daemon = setup.start();
        let good = |daemon: &Daemon| {
            assert_eq!(said(daemon, "www.good.example A"), "192.0.2.7");
            becomes(daemon, "good.service.consul A", "192.0.2.10");
            assert_eq!(said(daemon, "www.example A"), "198.51.100.1");
        };
        good(&daemon);
        for kind in &kinds {
            let what = format!("{} {:?}, first start", kind.file, fault_of(kind));
            assert_eq!(said(&daemon, kind.question), kind.without, "{what}");
            let log = daemon.log_from(0).join("\n");
            let name = kind.file.rsplit('/').next().unwrap();
            let is_listed = !(matches!(fault_of(kind), Fault::Folder) && kind.file.ends_with("json"));
            assert_eq!(log.contains(&format!("{name}:")), is_listed, "{what}: {log}");
        }
        let failed = daemon.ask("www.site.example A");
        assert_eq!(failed.extended_errors(), [24], "invalid data (RFC 8914)");
        assert!(!upstream.asked().iter().any(|asked| asked.contains("site.example") || asked.contains("explicit")));
        let (status, text) = daemon.get("/ready");
        assert!(status == 503 && text.contains("zone site.example."), "{text}");
        assert_eq!(daemon.metric("watershed_zone_files", &[("state", "faulty")]), 4.0, "files, not faults");

        // Mended while it runs.
        for kind in &kinds {
            Fault::Text("").put(&folder.join(kind.file), "");
            daemon.write(kind.file, &kind.good);
        }
        for kind in &kinds {
            becomes(&daemon, kind.question, kind.answer);
        }
        daemon.wait_for_log(0, |line| line.contains("file mended") && line.contains("site.example.zone"));
        wait_until("/ready", PATIENCE, || (daemon.get("/ready") == (200, "ready\n".into())).then_some(()));
        wait_until("seven copies", PATIENCE, || (copies(&daemon).len() == 7).then_some(()));

        // Faulty while it runs, after a reload, after a hand-over, and after a crash.
        for kind in &kinds {
            fault_of(kind).put(&folder.join(kind.file), &kind.good);
        }
        wait_until("the faults", PATIENCE, || {
            let (status, text) = daemon.get("/ready");
            (status == 200 && text.matches("fault: ").count() >= 4).then_some(())
        });
        assert!(daemon.reload().contains("reloaded"));
        let last_good = |daemon: &Daemon, when: &str| {
            good(daemon);
            for kind in &kinds {
                let what = format!("{} {:?}, {when}", kind.file, fault_of(kind));
                // A folder in the place of a definition file is a folder of definition files: the file is gone.
                let is_gone = matches!(fault_of(kind), Fault::Folder) && kind.file.ends_with("json");
                let expected = if is_gone { kind.without } else { kind.answer };
                assert_eq!(said(daemon, kind.question), expected, "{what}");
            }
            assert_eq!(daemon.get("/ready").0, 200, "{when}");
        };
        last_good(&daemon, "reload");
        if round == 0 {
            daemon.hand_over();
            last_good(&daemon, "hand-over");
        }
        let again = daemon.kill_and_start();
        last_good(&again, "restart");
        let again = again.kill_and_start();
        last_good(&again, "second restart");
    }
}

#[test]
fn what_was_removed_stays_removed() {
    let upstream = Upstream::saying("198.51.100.1");
    let mut setup = Setup::new(&config(&upstream));
    for kind in kinds() {
        setup = setup.file(kind.file, &kind.good);
    }
    let daemon = setup.start();
    for kind in kinds() {
        becomes(&daemon, kind.question, kind.answer);
    }
    wait_until("the copies", PATIENCE, || (copies(&daemon).len() == 5).then_some(()));
    for kind in kinds() {
        fs::remove_file(daemon.folder().join(kind.file)).unwrap();
    }
    // While it runs, what [[zone]] names stays.
    becomes(&daemon, "www.site.example A", "198.51.100.1");
    assert_eq!(said(&daemon, "www.explicit.example A"), "192.0.2.2");
    let daemon = daemon.kill_and_start();
    for kind in kinds() {
        let expected = match kind.file {
            "zones/site.example.zone" => "198.51.100.1",
            _ => kind.without,
        };
        assert_eq!(said(&daemon, kind.question), expected, "{}", kind.file);
    }
    wait_until("no copies", PATIENCE, || copies(&daemon).is_empty().then_some(()));
    // A file that comes back faulty has no past.
    daemon.write("zones/site.example.zone", "(");
    becomes(&daemon, "www.site.example A", "SERVFAIL");
}

#[test]
fn included_files_belong_to_the_last_good_version() {
    let upstream = Upstream::saying("198.51.100.1");
    let setup = Setup::new(&config(&upstream))
        .file("zones/site.example.zone", &format!("{HEAD}$INCLUDE ../parts/hosts.inc\n"))
        .file("parts/hosts.inc", "www A 192.0.2.1\n$INCLUDE more.inc\n")
        .file("parts/more.inc", "more A 192.0.2.2\n")
        .file("explicit.zone", &zone("192.0.2.3"));
    let daemon = setup.start();
    assert_eq!(said(&daemon, "more.site.example A"), "192.0.2.2");
    // An included file lies in a folder of its own, and is watched there.
    daemon.write("parts/more.inc", "more A 192.0.2.4\n");
    becomes(&daemon, "more.site.example A", "192.0.2.4");
    // It is kept beside serving.
    wait_until("a copy of that", PATIENCE, || {
        let holds =
            |path: &PathBuf| fs::read(path).is_ok_and(|copy| copy.windows(9).any(|octets| octets == b"192.0.2.4"));
        copies(&daemon).iter().any(holds).then_some(())
    });
    fs::remove_dir_all(daemon.folder().join("parts")).unwrap();
    let daemon = daemon.kill_and_start();
    assert_eq!(said(&daemon, "www.site.example A"), "192.0.2.1");
    assert_eq!(said(&daemon, "more.site.example A"), "192.0.2.4");
}

#[test]
fn a_copy_that_is_damaged_or_of_another_version_is_set_aside() {
    let upstream = Upstream::saying("198.51.100.1");
    let setup = Setup::new(&config(&upstream)).file("explicit.zone", &zone("192.0.2.2"));
    let mut daemon = setup.file("zones/site.example.zone", &zone("192.0.2.1")).start();
    for damage in ["truncated", "future", "flipped", "a folder"] {
        becomes(&daemon, "www.site.example A", "192.0.2.1");
        wait_until("the copies", PATIENCE, || (copies(&daemon).len() == 2).then_some(()));
        daemon.write("zones/site.example.zone", "(");
        daemon.write("explicit.zone", "(");
        let damaged = copies(&daemon);
        daemon = daemon.kill_and_start_after(|| {
            for path in &damaged {
                let mut bytes = fs::read(path).unwrap();
                match damage {
                    "truncated" => bytes.truncate(bytes.len() / 2),
                    "future" => bytes = b"watershed data file 99\n".to_vec(),
                    "flipped" => bytes[40] ^= 1,
                    _ => {
                        fs::remove_file(path).unwrap();
                        fs::create_dir(path).unwrap();
                        continue;
                    }
                }
                fs::write(path, bytes).unwrap();
            }
        });
        assert_eq!(said(&daemon, "www.site.example A"), "SERVFAIL", "{damage}");
        assert_eq!(said(&daemon, "www.example A"), "198.51.100.1", "{damage}");
        for path in &damaged {
            if path.is_dir() {
                fs::remove_dir(path).unwrap();
            }
        }
        daemon.write("zones/site.example.zone", &zone("192.0.2.1"));
        daemon.write("explicit.zone", &zone("192.0.2.2"));
    }
}

/// BIND, too, serves the other zones, and answers SERVFAIL for the names of the faulty one.
#[test]
fn bind_serves_the_rest_beside_a_faulty_zone_as_well() {
    let Some(named) = require::program("named") else { return };
    let (good, bad) = (zone("192.0.2.1"), format!("{HEAD}www A 300.0.2.1\n"));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("good"), &good).unwrap();
    fs::write(folder.path().join("bad"), &bad).unwrap();
    let address = free_port();
    let text = format!(
        "options {{ directory \"{}\"; listen-on port {} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }}; pid-file none;\n\
         session-keyfile \"{0}/session\"; recursion no; }};\ncontrols {{ }};\n\
         zone good.example {{ type primary; file \"good\"; }};\nzone bad.example {{ type primary; file \"bad\"; }};\n",
        folder.path().display(),
        address.port()
    );
    fs::write(folder.path().join("named.conf"), text).unwrap();
    let mut command = std::process::Command::new(named);
    command.args(["-f", "-c"]).arg(folder.path().join("named.conf"));
    let mut named = Process::start(&mut command, folder);
    wait_until("BIND", PATIENCE, || {
        named.demand_running();
        let patience = std::time::Duration::from_millis(500);
        let reply = exchange_udp(address, &query("www.good.example A").to_wire(), patience)?;
        (Message::from_wire(&reply).ok()?.data() == ["192.0.2.1"]).then_some(())
    });
    let upstream = Upstream::saying("198.51.100.1");
    let config = forward(".", &[upstream.address()]) + "[zones]\nhosts = []\ndirectory = \"<DIR>/zones\"\n";
    let setup = Setup::new(&config).file("zones/good.example.zone", &good).file("zones/bad.example.zone", &bad);
    let ours = setup.start();
    for (question, expected) in
        [("www.good.example A", "192.0.2.1"), ("www.bad.example A", "SERVFAIL"), ("bad.example SOA", "SERVFAIL")]
    {
        for server in [address, ours.address()] {
            let reply = udp(server, &query(question));
            let said = reply.data().first().cloned().unwrap_or_else(|| reply.rcode_name().to_owned());
            assert_eq!(said, expected, "{question} at {server}");
        }
    }
}

#[test]
fn a_zones_folder_that_is_missing_at_a_start_keeps_its_zones() {
    let upstream = Upstream::saying("198.51.100.1");
    let mut setup = Setup::new(&config(&upstream));
    for kind in kinds() {
        setup = setup.file(kind.file, &kind.good);
    }
    let daemon = setup.start();
    wait_until("the copies", PATIENCE, || (copies(&daemon).len() == 5).then_some(()));
    let folder = daemon.folder().to_owned();
    let daemon = daemon.kill_and_start_after(|| {
        fs::rename(folder.join("zones"), folder.join("zones.away")).unwrap();
        fs::rename(folder.join("consul.d"), folder.join("consul.d.away")).unwrap();
    });
    for kind in kinds() {
        becomes(&daemon, kind.question, kind.answer);
    }
    fs::rename(folder.join("zones.away"), folder.join("zones")).unwrap();
    fs::rename(folder.join("consul.d.away"), folder.join("consul.d")).unwrap();
    wait_until("/ready", PATIENCE, || (daemon.get("/ready") == (200, "ready\n".into())).then_some(()));
    daemon.write("zones/site.example.zone", &zone("192.0.2.11"));
    becomes(&daemon, "www.site.example A", "192.0.2.11");
}

#[test]
fn services_wait_for_the_address_of_their_node() {
    let Some(netns) = Netns::new("") else { return };
    let config = "[server]\nlisten = [\"127.0.0.1:53\"]\n[zones]\nhosts = []\n\
                  [catalog.files]\ndirectory = \"<DIR>/consul.d\"\n";
    let setup = Setup::new(config).file("consul.d/web.json", r#"{"service": {"name": "web", "port": 80}}"#);
    let setup = setup.file("consul.d/far.json", r#"{"service": {"name": "far", "port": 80, "address": "192.0.2.5"}}"#);
    let daemon = setup.within(&netns).start();
    let ask = |name: &str| {
        let name = format!("{name}.service.consul");
        let text = run(netns.command("dig").args(["@127.0.0.1", &name, "A", "+noall", "+comments", "+answer"]));
        let answer = text.lines().find(|line| !line.starts_with(';') && line.contains("IN\tA"));
        match answer.and_then(|line| line.split_whitespace().last()) {
            Some(address) => address.to_owned(),
            None => text.split("status: ").nth(1).unwrap().split(',').next().unwrap().to_owned(),
        }
    };
    let ip = |line: &str| drop(run(netns.command("ip").args(line.split(' '))));
    let waits_for = |expected: &str| wait_until(expected, PATIENCE, || (ask("web") == expected).then_some(()));
    daemon.wait_for_log(0, |line| line.contains("no address for its own node yet") && line.contains("WARN"));
    assert_eq!((ask("web"), ask("far")), ("SERVFAIL".to_owned(), "192.0.2.5".to_owned()));
    // What DHCP brings.
    ip("addr add 10.77.0.5/24 dev inside");
    waits_for("10.77.0.5");
    // What Docker brings changes nothing, for the default route says which address is meant.
    ip("route add default via 10.77.0.1 dev inside");
    ip("link add docker0 type veth peer name docker1");
    ip("addr add 10.1.0.1/16 dev docker0");
    ip("link set docker0 up");
    daemon.wait_for_log(0, |line| line.contains("2 private IPv4 addresses") && line.contains("10.77.0.5"));
    assert_eq!(ask("web"), "10.77.0.5");
    // A lease that ends for a moment costs nothing.
    ip("link del docker0");
    ip("route del default");
    ip("addr del 10.77.0.5/24 dev inside");
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert_eq!(ask("web"), "10.77.0.5");
    ip("addr add 10.77.0.6/24 dev inside");
    waits_for("10.77.0.6");
    drop(daemon);
}
