//! What operators are told: by `check`, by refusals, and by the log.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::harness::{
    catalog::{self, with_definitions},
    daemon::{Ended, forward},
    programs, *,
};

const SOA: &str = "@ 60 IN SOA @ nobody.invalid. 1 1h 20m 1w 1m\n";
/// Runs a program with `JOURNAL_STREAM` as the service manager sets it for this standard error stream.
const WITH_JOURNAL: [&str; 4] =
    ["sh", "-c", "JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec \"$0\" \"$@\"", "env"];

#[test]
fn check_lists_what_would_be_served_and_warns_of_what_run_warns_of() {
    let config = "[zones]\ndirectory = \"<DIR>/zones\"\nhosts = [\"<DIR>/hosts\"]\n\
        [catalog.service.wbe]\npolicy = \"one\"\n\
        [catalog.service.web]\npolicy = \"one\"\norder = [\"web-1\", \"web-9\"]\n\
        [[zone]]\napex = \"alone.example\"\nfile = \"<DIR>/alone.db\"\n"
        .to_owned()
        + &forward(".", &[free_address()]);
    let setup = || {
        let instances = ["web-1", "web-2"]
            .map(|id| format!(r#"{{"name": "web", "id": "{id}", "locality": {{}}, "check": {{"ttl": "10s"}}}}"#));
        with_definitions(&config, &[("a.json", &catalog::services(&instances))])
            .file("zones/corp.example.zone", &format!("{SOA}www 60 IN A 192.0.2.1\n"))
            .file("zones/@ads.overlay", "ads.example 60 IN A 192.0.2.2\n")
            .file("alone.db", SOA)
            .file("hosts", "192.0.2.3 printer\nnonsense\n")
    };
    let checked = setup().check();
    assert_eq!(checked.code, Some(0), "{}", checked.text);
    for expected in [
        "zone     corp.example. from <DIR>/zones/corp.example.zone (2 records)",
        "zone     alone.example. from <DIR>/alone.db (1 record)",
        "overlay  . from <DIR>/zones/@ads.overlay (1 record)",
        "hosts    <DIR>/hosts (2 names)",
        "service  web: 2 instances, 2 checks, policy one",
        "catalog  <DIR>/consul.d",
    ] {
        let (before, after) = expected.split_once("<DIR>").unwrap_or((expected, ""));
        let is_it = |line: &str| line.starts_with(before) && line.ends_with(after);
        assert!(checked.text.lines().any(is_it), "{expected}\n{}", checked.text);
    }
    let warnings = |text: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("warning  "));
        lines.map(|line| line.rsplit('/').next().unwrap_or_default().to_owned()).collect()
    };
    let warnings = warnings(&checked.text);
    for expected in [
        "hosts:2: ",
        "a.json:1: key `locality`",
        "catalog.service.wbe is the name of no known service; did you mean `web`?",
        "catalog.service.web has \"web-9\" in its order, which is neither",
    ] {
        assert!(warnings.iter().any(|warning| warning.starts_with(expected)), "{expected}: {warnings:#?}");
    }

    let daemon = setup().start();
    for warning in &warnings {
        daemon.wait_for_log(0, |line| {
            line.contains("WARN") && line.contains(&warning.replace('"', "\\\"")[..])
                || line.contains("WARN") && line.contains(&warning[..])
        });
    }
    let from = daemon.log_length();
    daemon.reload();
    let reloaded = daemon.log_from(from).join("\n");
    assert!(reloaded.contains("catalog.service.wbe is the name of no known service"), "{reloaded}");
    assert!(!daemon.log_from(0).iter().any(|line| line.contains("WARN") && line.contains("web-1")), "web-1 is known");
}

#[test]
fn check_takes_the_options_of_run() {
    let upstream = free_address().to_string();
    let setup = |arguments: &[&str]| {
        Setup::new("[zones]\nhosts = []\n[server]\nlisten = [\"127.0.0.1:0\"]\n")
            .file("zones/lab.example.zone", SOA)
            .file("bad/lab.example.zone", "nonsense\n")
            .file("services/a.json", r#"{"service": {"name": "a"}, "node_name": "n", "advertise_addr": "192.0.2.1"}"#)
            .arguments(arguments)
    };
    let good = ["--listen", "127.0.0.9:5309", "--zones", "zones", "--services", "services", "--upstream", &upstream];
    let checked = setup(&good).check();
    assert_eq!(checked.code, Some(0), "{}", checked.text);
    for expected in ["listen   127.0.0.9:5309", "zone     lab.example.", "service  a: 1 instance", &upstream] {
        assert!(checked.text.contains(expected), "{expected}: {}", checked.text);
    }
    let checked = setup(&["--zones", "bad"]).check();
    assert_eq!(checked.code, Some(2), "{}", checked.text);
    assert!(checked.text.contains("bad/lab.example.zone:1:"), "{}", checked.text);
}

/// Runs `watershed` with these arguments where `/etc` holds these files alone.
fn run_with_etc(etc: &[(&str, &str)], script: &str, arguments: &[&str]) -> Ended {
    let source = tempfile::tempdir().unwrap();
    fs::set_permissions(source.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for (name, text) in etc {
        let path = source.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let script = format!(
        "mount -t tmpfs none /etc && cp -r {}/. /etc/ && chmod 755 /etc && {script} && exec \"$0\" \"$@\"",
        source.path().display()
    );
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", &script, env!("CARGO_BIN_EXE_watershed")])
        .args(arguments)
        .env_remove("WATERSHED_LOG")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Ended { code: output.status.code(), text }
}

const ACCOUNTS: [(&str, &str); 3] = [
    ("passwd", "root:x:0:0::/:/bin/sh\nresolver:x:950:950::/:/bin/false\nother:x:951:951::/:/bin/false\n"),
    ("group", "root:x:0:\nresolver:x:950:\nother:x:951:\nsecrets:x:960:resolver\n"),
    ("watershed/watershed.toml", "[server]\nlisten = [\"127.0.0.1:0\"]\n[zones]\nhosts = [\"/etc/watershed/hosts\"]\n"),
];

#[test]
fn check_judges_as_another_user_with_the_groups_of_that_user() {
    if !require::root() || require::program("unshare").is_none() {
        return;
    }
    let zone = ("watershed/zones/corp.example.zone", SOA);
    let hosts = ("watershed/hosts", "192.0.2.1 printer\n");
    let etc: Vec<_> = ACCOUNTS.into_iter().chain([zone, hosts]).collect();
    let file = "/etc/watershed/zones/corp.example.zone";
    for (script, user, is_good, expected) in [
        ("true", None, true, "zone     corp.example."),
        ("true", Some("resolver"), true, "zone     corp.example."),
        // What only root can read is good for root.
        (&*format!("chmod 600 {file}"), None, true, "zone     corp.example."),
        (&format!("chmod 600 {file}"), Some("resolver"), false, "corp.example.zone: cannot be read: Permission denied"),
        (&format!("chmod 600 {file}"), Some("950"), false, "corp.example.zone: cannot be read: Permission denied"),
        // Groups besides the main one count.
        (&format!("chown 0:960 {file} && chmod 640 {file}"), Some("resolver"), true, "zone     corp.example."),
        (&format!("chown 0:960 {file} && chmod 640 {file}"), Some("other"), false, "corp.example.zone: cannot be read"),
        (&format!("chown 951 {file} && chmod 400 {file}"), Some("other"), true, "zone     corp.example."),
        // So do the folders on the way.
        ("chmod 700 /etc/watershed/zones", Some("resolver"), false, "/etc/watershed/zones: "),
        ("chmod 711 /etc/watershed/zones", Some("resolver"), false, "/etc/watershed/zones: "),
        ("chmod 700 /etc/watershed", Some("resolver"), false, "/etc/watershed/watershed.toml: cannot be read"),
        ("chmod 600 /etc/watershed/watershed.toml", Some("resolver"), false, "watershed.toml: cannot be read"),
        ("chmod 600 /etc/watershed/hosts", Some("resolver"), false, "/etc/watershed/hosts: cannot be read"),
        // A name without an account owns nothing; numbers need none.
        ("true", Some("watershed"), true, "has no account, as with DynamicUser="),
        (&format!("chmod 600 {file}"), Some("watershed"), false, "LoadCredential="),
        ("true", Some("12345"), true, "no account has the user id 12345"),
        (&format!("chown 12345 {file} && chmod 400 {file}"), Some("12345"), true, "zone     corp.example."),
    ] {
        let arguments: Vec<&str> =
            ["check"].into_iter().chain(user.iter().flat_map(|user| ["--user", *user])).collect();
        let ended = run_with_etc(&etc, script, &arguments);
        let row = format!("{script} {user:?}: {:?}\n{}", ended.code, ended.text);
        assert_eq!(ended.code, Some(if is_good { 0 } else { 2 }), "{row}");
        assert!(ended.text.contains(expected), "{row}");
    }
    let ended = run_with_etc(&etc, "true", &["check", "--user", "resolver", "--log-format", "json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.text);
}

#[test]
fn a_user_who_is_not_root_cannot_judge_as_another() {
    if !require::root() || require::program("setpriv").is_none() {
        return;
    }
    let drop = ["setpriv", "--reuid=12345", "--regid=12345", "--clear-groups"];
    let ended = Setup::new("").reachable_by_all().by(&drop).arguments(&["--user", "root"]).check();
    assert_eq!(ended.code, Some(2), "{}", ended.text);
    assert!(ended.text.contains("cannot judge as user \"root\"") && ended.text.contains("as root"), "{}", ended.text);
    let ended = Setup::new("").reachable_by_all().by(&drop).arguments(&["--user", "12345"]).check();
    assert_eq!(ended.code, Some(0), "judging as oneself: {}", ended.text);
}

#[test]
fn a_configuration_that_may_not_be_read_is_a_fault_also_beside_zones() {
    if !require::root() || require::program("unshare").is_none() {
        return;
    }
    let drop = "setpriv --reuid=950 --regid=950 --clear-groups true && exec setpriv --reuid=950 --regid=950 --clear-groups \"$0\" \"$@\"";
    for script in ["chmod 700 /etc/watershed", "chmod 600 /etc/watershed/watershed.toml"] {
        for arguments in [&["run", "--zones", "/tmp"][..], &["check", "--zones", "/tmp"]] {
            let ended = run_with_etc(&ACCOUNTS, &format!("{script} && {drop}"), arguments);
            assert_eq!(ended.code, Some(2), "{script} {arguments:?}: {}", ended.text);
            assert!(
                ended.text.contains("/etc/watershed/watershed.toml: cannot be read: Permission denied"),
                "{}",
                ended.text
            );
        }
    }
    let dangling = "ln -sf /nowhere /etc/watershed/watershed.toml";
    let ended = run_with_etc(&ACCOUNTS, dangling, &["check"]);
    assert_eq!(ended.code, Some(2), "a link that leads nowhere: {}", ended.text);
    let ended = run_with_etc(&[("passwd", "")], "true", &["check", "--listen", "127.0.0.1:5300"]);
    assert_eq!(ended.code, Some(0), "no configuration at all: {}", ended.text);
}

#[test]
fn a_filter_that_would_silence_the_log_is_refused() {
    for text in ["warning", "debgu", "watershed", "watershed::forwrd=debug", "watershed=loud", "[=info"] {
        let ended = Setup::new("").env("WATERSHED_LOG", text).run_to_end();
        assert_eq!(ended.code, Some(2), "{text}: {}", ended.text);
        assert_eq!(ended.text.lines().count(), 1, "{text}: {}", ended.text);
        assert!(ended.text.contains("write off, error, warn, info, debug or trace"), "{text}: {}", ended.text);
    }
    let daemon = Setup::new("").env("WATERSHED_LOG", "watershed::forward=debug").start();
    assert!(daemon.log_from(0)[0].contains("starting"), "what the filter does not mention is as by default");
}

#[test]
fn the_first_line_names_the_version() {
    let daemon = Setup::new("").start();
    let first = daemon.log_from(0).into_iter().next().unwrap();
    assert!(first.ends_with(&format!("starting version=\"{}\"", env!("CARGO_PKG_VERSION"))), "{first}");
}

#[test]
fn lines_for_the_journal_carry_their_priority_and_no_time() {
    let daemon =
        with_definitions("", &[("a.json", r#"{"service": {"name": "a", "locality": {}}}"#)]).by(&WITH_JOURNAL).start();
    let lines = daemon.log_from(0);
    assert!(lines[0].starts_with("<6> INFO starting"), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("<4> WARN configuration warning")), "{lines:#?}");
    daemon.edit_config(|_| "nonsense".to_owned());
    let from = daemon.log_length();
    daemon.reload();
    assert!(daemon.log_from(from).iter().any(|line| line.starts_with("<3>ERROR reload failed")), "an error is one");

    // The variable may be that of another stream, which systemd.exec(5) warns of.
    let daemon = Setup::new("").env("JOURNAL_STREAM", "1:2").start();
    let first = daemon.log_from(0).into_iter().next().unwrap();
    assert!(first.starts_with("20") && first.contains("INFO starting"), "{first}");

    let ended = Setup::new("[nonsense]\n").by(&WITH_JOURNAL).run_to_end();
    assert!(
        ended.text.lines().any(|line| line.starts_with("<3>") && line.contains("unknown key `nonsense`")),
        "{}",
        ended.text
    );
}

#[test]
fn refusals_are_objects_where_the_log_consists_of_them() {
    let objects = |ended: &Ended| -> Vec<serde_json::Value> {
        let lines = ended.text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")));
        lines.collect()
    };
    let json = ["--log-format", "json"];
    let bad_zone =
        Setup::new("[zones]\ndirectory = \"<DIR>/zones\"\nhosts = []\n").file("zones/a.example.zone", "nonsense\n");
    for (name, ended, expected) in [
        ("a key", Setup::new("[nonsense]\n").arguments(&json).run_to_end(), "unknown key `nonsense`"),
        ("check", Setup::new("[nonsense]\n").arguments(&json).check(), "unknown key `nonsense`"),
        ("a zone", bad_zone.arguments(&json).check(), "a.example.zone:1"),
        ("a filter", Setup::new("").arguments(&json).env("WATERSHED_LOG", "warning").run_to_end(), "WATERSHED_LOG"),
        ("an option", Setup::new("").arguments(&["--log-format=json", "--lsiten", "::1"]).run_to_end(), "--lsiten"),
    ] {
        assert_eq!(ended.code, Some(2), "{name}: {}", ended.text);
        let objects = objects(&ended);
        let is_it = |object: &serde_json::Value| {
            object["level"] == "ERROR" && object["error"].as_str().is_some_and(|error| error.contains(expected))
        };
        assert!(objects.iter().any(is_it), "{name}: {objects:#?}");
    }
}

#[test]
fn sigusr1_logs_statistics_and_ends_nothing() {
    let upstream = Upstream::saying("192.0.2.1");
    let files = [("a.json", r#"{"service": {"name": "a"}}"#)];
    let mut daemon = with_definitions(&forward(".", &[upstream.address()]), &files).start();
    (0..3).for_each(|_| drop(daemon.ask("www.example A")));
    let from = daemon.log_length();
    signal(daemon.pid(), "USR1");
    for expected in [
        &["statistics of queries", "queries=3", "in_flight=0", "version=", "uptime_seconds="][..],
        &["statistics of the cache", "hits=2", "misses=1", "entries=1", "bytes="],
        &["statistics of upstreams", "up=1", "down=0"],
        &["statistics of the catalog", "services=1", "passing=1"],
    ] {
        daemon.wait_for_log(from, |line| expected.iter().all(|word| line.contains(word)));
    }
    assert!(daemon.is_running());
    daemon.ask("www.example A");
}

#[test]
fn changes_of_the_catalog_are_logged() {
    let both = r#"[{"name": "db", "id": "db-1", "address": "192.0.2.11", "check": {"id": "c1", "ttl": "1h"}},
        {"name": "db", "id": "db-2", "address": "192.0.2.12", "check": {"id": "c2", "ttl": "1h"}}]"#;
    let config = "[catalog.api]\nenable_registration = true\n\
        [catalog.service.db]\npolicy = \"one\"\norder = [\"db-1\", \"db-2\"]\nhold_down = \"0s\"\n";
    let daemon = with_definitions(config, &[("a.json", &format!("{{\"services\": {both}}}"))]).start();
    let control = daemon.control.unwrap();
    let put = |path: &str, body: &str| assert_eq!(http::request(control, "PUT", path, body).unwrap().0, 200, "{path}");
    let demand = |from: usize, words: &[&str]| {
        daemon.wait_for_log(from, |line| words.iter().all(|word| line.contains(word)));
    };
    demand(0, &["instance joined", "service=\"db\"", "id=\"db-1\"", "address=\"192.0.2.11\""]);
    put("/v1/agent/check/pass/c1", "");
    demand(0, &["check changed state", "service=\"db-1\"", "from=critical", "status=passing"]);
    demand(0, &["primary moved", "to=\"db-1 on monitor1\"", "none was given before"]);
    put("/v1/agent/check/pass/c2", "");
    // What a check says may be chosen by whoever attacks the terminal of the reader.
    let from = daemon.log_length();
    put("/v1/agent/check/update/c1", r#"{"Status": "critical", "Output": "down\u001b[2J\nERROR forged\u0007"}"#);
    demand(from, &["check changed state", "status=critical", "down\\u{1b}[2J\\nERROR forged\\u{7}"]);
    demand(
        from,
        &["primary moved", "from=\"db-1 on monitor1\"", "to=\"db-2 on monitor1\"", "checks of the one before fail"],
    );
    assert!(!daemon.log_from(from).iter().any(|line| line.contains(['\u{1b}', '\u{7}']) || line.starts_with("ERROR")));
    let from = daemon.log_length();
    put("/v1/agent/check/pass/c1", "");
    demand(from, &["primary moved", "to=\"db-1 on monitor1\"", "order or prefer_tag"]);
    put("/v1/agent/service/maintenance/db-1?enable=true&reason=disk", "");
    demand(from, &["maintenance", "service=\"db-1\"", "reason=\"disk\"", "client=127.0.0.1"]);
    demand(from, &["primary moved", "to=\"db-2 on monitor1\"", "maintenance"]);

    let from = daemon.log_length();
    put("/v1/agent/service/register", r#"{"Name": "web", "ID": "web-1", "Port": 80}"#);
    demand(from, &["service registered", "service=\"web-1\"", "client=127.0.0.1"]);
    demand(from, &["instance joined", "service=\"web\""]);
    put("/v1/agent/check/register", r#"{"Name": "extra", "ServiceID": "web-1", "TTL": "1h"}"#);
    demand(from, &["check registered", "check=\"extra\"", "client=127.0.0.1"]);
    put("/v1/agent/check/deregister/extra", "");
    demand(from, &["check deregistered", "check=\"extra\"", "client=127.0.0.1"]);
    put("/v1/agent/service/deregister/web-1", "");
    demand(from, &["service deregistered", "client=127.0.0.1"]);
    demand(from, &["instance left", "service=\"web\""]);
}

#[test]
fn thousands_of_instances_and_a_flapping_check_do_not_flood_the_log() {
    let instance = |number: usize| format!(r#"{{"name": "web", "id": "web-{number}", "port": 80}}"#);
    let mut instances: Vec<String> = (0..3000).map(instance).collect();
    instances.push(r#"{"name": "flappy", "check": {"id": "f", "ttl": "1h"}}"#.to_owned());
    let daemon = with_definitions("", &[("a.json", &catalog::services(&instances))]).start();
    daemon.wait_for_log(0, |line| line.contains("many changes of the catalog") && line.contains("joined=3001"));
    assert_eq!(daemon.log_from(0).iter().filter(|line| line.contains("instance joined")).count(), 0);
    let control = daemon.control.unwrap();
    let from = daemon.log_length();
    for _ in 0..40 {
        for word in ["pass", "fail"] {
            http::request(control, "PUT", &format!("/v1/agent/check/{word}/f"), "").unwrap();
        }
    }
    daemon.wait_for_log(from, |line| line.contains("check flaps") && line.contains("check=\"f\""));
    let lines = daemon.log_from(from).iter().filter(|line| line.contains("check=\"f\"")).count();
    assert!(lines <= 8, "{lines} lines");
}

#[test]
fn a_reload_says_what_has_changed() {
    let upstream = Upstream::saying("192.0.2.1");
    let other = free_address();
    let config = forward("corp.example", &[upstream.address()]) + "[cache]\nsize = \"8MiB\"\n";
    let daemon = Setup::new(&config).start();
    let reload = |change: &dyn Fn(String) -> String| {
        let from = daemon.log_length();
        daemon.edit_config(change);
        daemon.reload();
        daemon.wait_for_log(from, |line| line.contains("INFO reloaded"))
    };
    let line = reload(&|text| text);
    assert!(line.contains("changed=\"nothing\""), "{line}");
    let line = reload(&|text| {
        text.replace("8MiB", "9MiB").replace("corp.example", "lab.example") + &forward("new.example", &[other])
    });
    for expected in
        ["cache.size", "forward corp.example (removed)", "forward lab.example (added)", "forward new.example (added)"]
    {
        assert!(line.contains(expected), "{expected}: {line}");
    }
}

#[test]
fn sections_for_services_of_an_agent_are_judged_once_its_lists_are_known() {
    let Some(consul) = programs::Consul::start("{}", None) else { return };
    consul
        .register(r#"{"Node": "n1", "Address": "192.0.2.1", "Service": {"ID": "web", "Service": "web", "Port": 80}}"#);
    let config = format!(
        "[catalog.consul]\naddress = \"http://{}\"\n[catalog.service.web]\npolicy = \"one\"\n[catalog.service.wbe]\npolicy = \"one\"\n",
        consul.http()
    );
    let checked = Setup::new(&config).check();
    assert!(checked.code == Some(0) && !checked.text.contains("no known service"), "{}", checked.text);
    let daemon = Setup::new(&config).start();
    daemon.wait_for_log(0, |line| {
        line.contains("catalog.service.wbe is the name of no known service; did you mean `web`?")
    });
    consul.register(r#"{"Node": "n2", "Address": "192.0.2.2", "Service": {"ID": "x", "Service": "x", "Port": 80}}"#);
    wait_until("the other service", PATIENCE, || {
        (daemon.ask("x.service.consul A").rcode_name() == "NOERROR").then_some(())
    });
    let lines = daemon.log_from(0);
    let count = |word: &str| lines.iter().filter(|line| line.contains(word)).count();
    assert_eq!((count("catalog.service.wbe"), count("catalog.service.web is")), (1, 0), "{lines:#?}");
}

#[test]
fn names_of_files_cannot_forge_lines() {
    let folder = tempfile::tempdir().unwrap();
    let name = "a\u{1b}[2Jb\nERROR forged.zone";
    let zones = folder.path().join("zones");
    fs::create_dir(&zones).unwrap();
    fs::write(zones.join(name), "nonsense").unwrap();
    let config = format!("[zones]\ndirectory = \"{}\"\nhosts = []\n", zones.display());
    let log = Setup::new(&config).start().log_from(0).join("\n");
    for text in [Setup::new(&config).check().text, log] {
        assert!(!text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("ERROR")), "{:?}", text);
        assert!(text.contains("forged"), "{:?}", text);
    }
}
