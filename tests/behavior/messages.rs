//! Every fault has a message that says what to do, and an exit code: 1 failed, 2 refused arguments or files.

use std::{fs, net::TcpListener, process::Command};

use crate::harness::{daemon::forward, netns::Netns, *};

/// What `run` and `check` both say of a faulty configuration, and that both refuse it; a faulty zone file costs `run` nothing but
/// that zone.
#[test]
fn a_faulty_file_is_refused_with_its_line_and_a_remedy() {
    let rule = "[[forward]]\nsuffixes = [\".\"]\nupstreams = [\"127.0.0.1:1\"]\n";
    let zone = "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n";
    let soa = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n";
    type Case<'a> = (&'a str, String, Option<String>, &'a [&'a str]);
    let cases: [Case; 15] = [
        ("an unknown key", "[server]\nlistn = []\n".into(), None, &["watershed.toml:2:", "listn"]),
        ("an unknown section", "[servers]\nlisten = []\n".into(), None, &["watershed.toml:1:", "servers"]),
        ("no TOML", "[server\n".into(), None, &["watershed.toml:1:"]),
        ("a wrong type", "[server]\nworkers = \"many\"\n".into(), None, &["watershed.toml:2:", "many"]),
        ("no address", "[server]\nlisten = [\"localhost:53\"]\n".into(), None, &["watershed.toml:2:", "localhost:53"]),
        ("out of range", "[server]\nworkers = 5000\n".into(), None, &["watershed.toml:2:", "workers", "5000", "64"]),
        ("no duration", "[cache]\nmax_ttl = 5\n".into(), None, &["watershed.toml:2:"]),
        (
            "no upstream",
            "[[forward]]\nsuffixes = [\".\"]\nupstreams = [\"nonsense\"]\n".into(),
            None,
            &["watershed.toml:3:", "nonsense"],
        ),
        ("no suffixes", "[[forward]]\nupstreams = [\"127.0.0.1:1\"]\n".into(), None, &["watershed.toml:", "suffixes"]),
        ("a suffix twice", format!("{rule}{rule}"), None, &["watershed.toml:5:", "remove one"]),
        (
            "an unknown policy",
            format!("{rule}policy = \"best\"\n"),
            None,
            &["watershed.toml:4:", "best", "ordered", "fastest", "rotate"],
        ),
        (
            "a loop",
            "[server]\nlisten = [\"127.0.0.1:5399\"]\n[[forward]]\nsuffixes = [\".\"]\nupstreams = [\"127.0.0.1:5399\"]\n".into(),
            None,
            &["watershed.toml:5:", "127.0.0.1:5399", "ourselves"],
        ),
        ("no zone file", zone.to_owned(), None, &["site.zone"]),
        ("a fault in a zone", zone.to_owned(), Some(format!("{soa}www A 300.0.2.1\n")), &["site.zone:5:"]),
        ("no SOA record", zone.to_owned(), Some("$TTL 60\n@ NS ns\n".to_owned()), &["site.zone", "SOA"]),
    ];
    for (fault, config, zone, expected) in &cases {
        let setup = || {
            let setup = Setup::new(config);
            zone.iter().fold(setup, |setup, text| setup.file("site.zone", text))
        };
        let is_configuration = !expected.iter().any(|fragment| fragment.starts_with("site.zone"));
        let run = if is_configuration { setup().run_to_end() } else { run_with_faults(setup()) };
        for (command, ended) in [("run", run), ("check", setup().check())] {
            assert_eq!(ended.code, Some(2), "{command}, {fault}: {}", ended.text);
            for fragment in *expected {
                assert!(ended.text.contains(fragment), "{command}, {fault}: no {fragment:?} in {}", ended.text);
            }
            assert!(!ended.text.contains("panicked"), "{fault}: {}", ended.text);
        }
    }
}

/// What is logged by a daemon that serves in spite of a faulty file, with the exit code that `check` has for it.
fn run_with_faults(setup: Setup) -> daemon::Ended {
    let daemon = setup.start();
    assert_eq!(daemon.ask("www.site.example A").rcode_name(), "SERVFAIL");
    daemon::Ended { code: Some(2), text: daemon.log_from(0).join("\n") }
}

#[test]
fn check_reports_every_fault_and_not_only_the_first() {
    let config = "[server]\nworkers = 5000\nlistn = []\n[cache]\nsize = \"1B\"\n\
                  [[forward]]\nsuffixes = [\"a..b\"]\nupstreams = [\"nonsense\"]\n\
                  [[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n";
    let zone = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.999\nwww AAAA nonsense\n";
    let ended = Setup::new(config).file("site.zone", zone).check();
    assert_eq!(ended.code, Some(2));
    for fragment in [
        "watershed.toml:2:",
        "watershed.toml:3:",
        "watershed.toml:5:",
        "watershed.toml:7:",
        "watershed.toml:8:",
        "site.zone:4:",
        "site.zone:5:",
    ] {
        assert!(ended.text.contains(fragment), "no {fragment} in {}", ended.text);
    }
}

#[test]
fn check_is_content_with_a_good_file() {
    let ended = Setup::new(&forward(".", &[free_address()])).check();
    assert_eq!(ended.code, Some(0), "{}", ended.text);
}

#[test]
fn faulty_arguments_are_refused() {
    let no_file = Setup::bare().arguments(&["--config", "/nonexistent/watershed.toml"]).run_to_end();
    assert_eq!(no_file.code, Some(2), "{}", no_file.text);
    assert!(no_file.text.contains("/nonexistent/watershed.toml"), "{}", no_file.text);
    let unknown = Setup::bare().arguments(&["--no-such-option"]).run_to_end();
    assert_eq!(unknown.code, Some(2), "{}", unknown.text);
    assert!(unknown.text.contains("--no-such-option"), "{}", unknown.text);
    let no_address = Setup::bare().arguments(&["--listen", "nonsense"]).run_to_end();
    assert_eq!(no_address.code, Some(2), "{}", no_address.text);
    assert!(no_address.text.contains("nonsense"), "{}", no_address.text);
}

#[test]
fn an_address_in_use_is_named_with_a_remedy() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let rule = forward(".", &[free_address()]);
    let free = "127.0.0.1:0".parse().unwrap();
    for (section, listen, control) in [("server", address, free), ("control", free, address)] {
        let config = format!("{rule}[server]\nlisten = [\"{listen}\"]\n[control]\nlisten = \"{control}\"\n");
        let ended = Setup::new(&config).run_to_end();
        assert_eq!(ended.code, Some(1), "{section}: {}", ended.text);
        for fragment in [&address.to_string(), "choose another address"] {
            assert!(ended.text.contains(fragment), "{section}: no {fragment:?} in {}", ended.text);
        }
    }
}

#[test]
fn a_port_without_permission_is_named_with_a_remedy() {
    // In a namespace of its own, where no setting of the machine's has lowered the first unprivileged port.
    let Some(netns) = Netns::new("") else { return };
    let Some(_) = require::program("setpriv") else { return };
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let config = forward(".", &["192.0.2.1:53".parse().unwrap()]) + "[server]\nlisten = [\"127.0.0.1:53\"]\n";
    let setup = Setup::new(&config).within(&netns).by(&nobody);
    let ended = setup.reachable_by_all().run_to_end();
    assert_eq!(ended.code, Some(1), "{}", ended.text);
    assert!(ended.text.contains("127.0.0.1:53"), "{}", ended.text);
    assert!(ended.text.to_uppercase().contains("CAP_NET_BIND_SERVICE"), "the remedy: {}", ended.text);
}

/// The one capability suffices; it never needs root.
#[test]
fn port_53_needs_no_more_than_its_capability() {
    let Some(netns) = Netns::new("") else { return };
    let Some(_) = require::program("setpriv") else { return };
    let keep = ["--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service"];
    let bound = "--bounding-set=-all,+net_bind_service";
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", keep[0], keep[1], bound];
    let config = forward(".", &["192.0.2.1:53".parse().unwrap()]) + "[server]\nlisten = [\"127.0.0.1:53\"]\n";
    let daemon = Setup::new(&config).within(&netns).by(&nobody).reachable_by_all().start();
    let text = run(netns.command("dig").args(["@127.0.0.1", "+short", "localhost"]));
    assert_eq!(text.trim(), "127.0.0.1");
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    assert!(status.lines().any(|line| line.starts_with("Uid:\t65534")), "{status}");
}

/// It serves what it can, and says what is missing.
#[test]
fn without_resolv_conf_it_says_what_to_do() {
    for (resolv_conf, case) in [(None, "missing"), (Some("nameserver 127.0.0.1\n"), "naming only ourselves")] {
        let Some(netns) = Netns::new(resolv_conf.unwrap_or("")) else { return };
        // Not merely empty: a folder in its place cannot be read by anyone.
        let setup = Setup::bare().within(&netns);
        let setup = if resolv_conf.is_none() { setup.by(&["sh", "-c", UNREADABLE]) } else { setup };
        let daemon = setup.start();
        let line = daemon.wait_for_log(0, |line| line.contains("WARN") && line.contains("no upstream"));
        assert!(line.contains("[[forward]]") && line.contains("--upstream"), "{case}: no remedy: {line}");
        let text = run(netns.command("dig").args(["@127.0.0.1", "www.example"]));
        assert!(text.contains("SERVFAIL"), "{case}: {text}");
        assert_eq!(daemon.stop().code, Some(0), "{case}");
    }
}

/// `ip netns exec` has given this process mounts of its own: what hides the file hides it from nobody else.
const UNREADABLE: &str = "umount /etc/resolv.conf; mount --bind /dev/null /etc/resolv.conf; exec \"$0\" \"$@\"";

#[test]
fn help_and_version_are_there() {
    for argument in ["--help", "--version"] {
        let output = Command::new(env!("CARGO_BIN_EXE_watershed")).arg(argument).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("watershed"));
    }
}
