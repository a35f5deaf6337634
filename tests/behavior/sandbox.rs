//! The unit of examples/: as tight as it says, and no tighter than the daemon can live with.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    os::unix::fs::{PermissionsExt, chown},
    path::Path,
    process::Command,
    time::Duration,
};

use crate::harness::{daemon::forward, netns::Netns, upstream::holding, *};

/// The highest exposure that `systemd-analyze security` may find, in tenths.
const MOST_EXPOSURE: &str = "15";

#[test]
fn systemd_finds_no_fault_in_the_unit_and_rates_it_safe() {
    let Some(analyze) = require::program("systemd-analyze") else { return };
    let folder = tempfile::tempdir().unwrap();
    let unit = folder.path().join("watershed.service");
    // It wants to find the program.
    fs::write(&unit, unit_text().replace("/usr/bin/watershed", env!("CARGO_BIN_EXE_watershed"))).unwrap();
    let verified = Command::new(&analyze).args(["verify", "--man=no"]).arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && !said.contains("watershed.service"), "{said}");
    let security = ["security", "--offline=true", "--no-pager", "--threshold", MOST_EXPOSURE];
    let rated = Command::new(&analyze).args(security).arg(&unit).output().unwrap();
    let said = String::from_utf8_lossy(&rated.stdout).into_owned() + &String::from_utf8_lossy(&rated.stderr);
    assert!(rated.status.success() && said.contains("exposure level"), "{said}");
}

/// Start on port 53, UDP and TCP, IPv4 and IPv6, TLS and QUIC, checks, files that change, reload, HTTP, registration, a
/// hand-over, stop, and start again from what was saved: as a user with one capability, who sees of /proc what
/// `ProcSubset=pid` leaves.
#[test]
fn the_daemon_makes_no_call_that_its_unit_denies() {
    let Some(netns) = Netns::new("nameserver 127.0.0.1\n") else { return };
    for program in ["strace", "setpriv", "systemd-analyze", "dig", "kdig", "curl"] {
        let Some(_) = require::program(program) else { return };
    }
    let address = SocketAddr::new(netns.host(), 5353);
    let _upstream = Upstream::at(address, holding(&["www.example. 300 A 192.0.2.80"]));
    // Apart from the daemon's folder, which goes with it; others than its owner may enter.
    let kept = tempfile::tempdir().unwrap();
    fs::set_permissions(kept.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (calls, state) = (kept.path().join("calls"), kept.path().join("state"));
    fs::create_dir(&state).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    let definitions = r#"{"services": [{"name": "web", "address": "127.0.0.1", "port": 80, "checks": [
        {"tcp": "127.0.0.1:8653", "interval": "1s"}, {"http": "http://127.0.0.1:8653/live", "interval": "1s"},
        {"ttl": "1h", "status": "passing"}]}]}"#;
    let config = forward(".", &[address])
        + "[server]\ntls_listen = [\"127.0.0.1:853\"]\nquic_listen = [\"127.0.0.1:853\"]\ncertificate = \"<DIR>/certificate\"\nprivate_key = \"<DIR>/key\"\n\
           listen = [\"127.0.0.1:53\", \"[::1]:53\"]\n[zones]\ndirectory = \"<DIR>/zones\"\n\
           hosts = [\"/etc/hosts\"]\n[catalog]\naddress = \"192.0.2.5\"\n[catalog.files]\ndirectory = \"<DIR>/definitions\"\n\
           [catalog.api]\nlisten = \"127.0.0.1:8500\"\nenable_registration = true\n[control]\nlisten = \"127.0.0.1:8653\"\n";
    let tls = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    let start = || {
        let narrow = "mount -t proc -o subset=pid proc /proc && exec \"$@\"";
        let caps = ["--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service"];
        Setup::new(&config)
            .file("definitions/web.json", definitions)
            .file("certificate", &tls.cert.pem())
            .file("key", &tls.signing_key.serialize_pem())
            .file("zones/site.example.overlay", "www 60 A 192.0.2.10\n")
            .env("STATE_DIRECTORY", &state.display().to_string())
            .within(&netns)
            .by(&["unshare", "--mount", "sh", "-c", narrow, "sh"])
            .by(&["strace", "-D", "-f", "-q", "-A", "-o", &calls.display().to_string()])
            .by(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", caps[0], caps[1]])
            .by(&["--bounding-set=-all,+net_bind_service", "--no-new-privs"])
            .reachable_by_all()
            .start()
    };
    let ask = |words: &[&str]| run(netns.command("dig").args(["+short", "+tries=3", "+time=5"]).args(words));
    let expect = |what: &str, words: &[&str], expected: &str| {
        wait_until(what, LIMIT, || ask(words).contains(expected).then_some(()));
    };
    let curl = |words: &[&str]| run(netns.command("curl").args(["-sS", "--max-time", "20"]).args(words));
    let stop = |daemon: Daemon| {
        let last = format!("{} +++ exited with 0 +++", daemon.pid());
        let ended = daemon.stop();
        // Of one that was handed over to, only the trace tells.
        assert!(matches!(ended.code, Some(0) | None), "{}", ended.text);
        wait_until("the end of the trace", LIMIT, || {
            let trace = fs::read_to_string(&calls).ok()?;
            trace.lines().any(|line| line.split_whitespace().eq(last.split_whitespace())).then_some(())
        });
    };

    let mut daemon = start();
    expect("an upstream's answer", &["@127.0.0.1", "www.example"], "192.0.2.80");
    expect("an answer over TCP and IPv6", &["@::1", "+tcp", "www.site.example"], "192.0.2.10");
    expect("a service that is well", &["@127.0.0.1", "web.service.consul"], "127.0.0.1");
    for encrypted in ["+tls", "+quic"] {
        let words = ["@127.0.0.1", encrypted, "+short", "www.site.example"];
        assert_eq!(run(netns.command("kdig").args(words)).trim(), "192.0.2.10", "{encrypted}");
    }
    daemon.write("zones/site.example.overlay", "www 60 A 192.0.2.11\n");
    expect("a changed file", &["@127.0.0.1", "www.site.example"], "192.0.2.11");
    let body = r#"{"Name": "registered", "Address": "192.0.2.30"}"#;
    curl(&["-X", "PUT", "--data", body, "http://127.0.0.1:8500/v1/agent/service/register"]);
    assert!(curl(&["http://127.0.0.1:8653/metrics"]).contains("watershed_server_queries_total"));
    // Our own name, which the kernel knows and /proc no longer tells.
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let said = curl(&["http://127.0.0.1:8500/v1/agent/self"]);
    assert!(said.contains(&format!("\"{}\"", host.trim())), "{host}: {said}");
    let reloaded = daemon.reload();
    assert!(reloaded.contains("reloaded"), "{reloaded}");
    // Once to a process that is refused, and has to be done away with.
    let from = daemon.log_length();
    daemon.edit_config(|config| config.replace("[server]", "[servant]"));
    signal(daemon.pid(), "USR2");
    daemon.wait_for_log(from, |line| line.contains("not handed over"));
    daemon.edit_config(|config| config.replace("[servant]", "[server]"));
    daemon.hand_over();
    expect("an answer of the next process", &["@127.0.0.1", "www.site.example"], "192.0.2.11");
    stop(daemon);

    let daemon = start();
    expect("what was registered", &["@127.0.0.1", "registered.service.consul"], "192.0.2.30");
    stop(daemon);
    let denied = denied(&fs::read_to_string(&calls).unwrap(), &unit_text());
    assert!(denied.is_empty(), "examples/watershed.service denies these:\n{}", denied.join("\n"));
}

/// The filter that is read from the unit is one: what it has no use for, it denies.
#[test]
fn the_unit_denies_what_the_daemon_never_calls() {
    let Some(_) = require::program("systemd-analyze") else { return };
    let unit = unit_text();
    for (trace, is_denied) in [
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n7 read(3, \"\", 1) = 0", false),
        ("7 mount(\"a\", \"b\") = 0", false), // before it is the daemon that calls
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n7 mount(\"a\", \"b\") = 0", true),
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n8 <... ptrace resumed>) = 0", true),
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n7 socket(AF_NETLINK, SOCK_RAW) = 3", true),
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n7 socket(AF_INET6, SOCK_DGRAM) = 3", false),
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n7 mprotect(0x1, 2, PROT_READ|PROT_EXEC) = 0", true),
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n7 clone(flags=CLONE_NEWNS|SIGCHLD) = 9", true),
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n7 setuid(0) = 0", true),
        ("7 execve(\"/x/watershed\", [\"watershed\", \"run\"]) = 0\n7 mknod(\"x\", S_IFREG) = 0", true),
    ] {
        assert_eq!(!denied(trace, &unit).is_empty(), is_denied, "{trace}");
    }
}

/// The calls of a trace that the unit would not let through, each with why, from where the daemon begins.
fn denied(trace: &str, unit: &str) -> Vec<String> {
    let calls = allowed_calls(unit);
    let families: Vec<&str> = values(unit, "RestrictAddressFamilies").collect();
    assert!(values(unit, "MemoryDenyWriteExecute").eq(["yes"]) && values(unit, "RestrictNamespaces").eq(["yes"]));
    let mut denied = BTreeSet::new();
    let mut is_daemon = false;
    for line in trace.lines() {
        let Some((_, event)) = line.trim().split_once(' ') else { continue };
        let event = event.trim_start();
        // What is run before it is not the daemon, and sets up what systemd does.
        if let Some(program) = event.strip_prefix("execve(\"") {
            is_daemon = program.split('"').next().is_some_and(|path| path.ends_with("/watershed"));
            continue;
        }
        let name = match event.strip_prefix("<... ") {
            Some(resumed) => resumed.split(' ').next(),
            None => event.split_once('(').map(|(name, _)| name),
        };
        let Some(name) = name.filter(|name| is_daemon && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
        else {
            continue;
        };
        if !calls.contains(name) {
            denied.insert(format!("SystemCallFilter: {name}"));
        }
        // When a call is resumed, its arguments have been seen.
        let Some((_, arguments)) = event.split_once('(') else { continue };
        if name.starts_with("socket") && !families.iter().any(|family| arguments.starts_with(&format!("{family},"))) {
            denied.insert(format!("RestrictAddressFamilies: {event}"));
        }
        let is_executable = arguments.contains("PROT_EXEC");
        if is_executable && (name == "mprotect" || arguments.contains("PROT_WRITE")) {
            denied.insert(format!("MemoryDenyWriteExecute: {event}"));
        }
        if name.starts_with("clone") && arguments.contains("CLONE_NEW") {
            denied.insert(format!("RestrictNamespaces: {event}"));
        }
    }
    denied.into_iter().collect()
}

/// The calls that `SystemCallFilter=` lets through, groups resolved by systemd itself.
fn allowed_calls(unit: &str) -> BTreeSet<String> {
    let mut allowed = calls_of("@default");
    for line in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
        let (is_denial, words) = line.strip_prefix('~').map_or((false, line), |rest| (true, rest));
        for call in words.split_whitespace().flat_map(calls_of) {
            if is_denial {
                allowed.remove(&call)
            } else {
                allowed.insert(call)
            };
        }
    }
    allowed
}

fn calls_of(word: &str) -> BTreeSet<String> {
    if !word.starts_with('@') {
        return BTreeSet::from([word.to_owned()]);
    }
    let listed = run(Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", word]));
    let within =
        listed.lines().map(str::trim).filter(|line| !line.starts_with('#') && !line.is_empty() && *line != word);
    within.flat_map(calls_of).collect()
}

/// The words of all settings of this name.
fn values<'a>(unit: &'a str, setting: &str) -> impl Iterator<Item = &'a str> {
    let prefix = format!("{setting}=");
    let lines = unit.lines().filter_map(move |line| line.strip_prefix(prefix.as_str()).map(|_| line));
    lines.flat_map(|line| line.split_once('=').map_or("", |(_, value)| value).split_whitespace())
}

fn unit_text() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/watershed.service")).unwrap()
}

/// The user who is nobody, and his group.
const NOBODY: u32 = 65_534;
/// Every call costs two switches to the one who notes it down.
const LIMIT: Duration = Duration::from_secs(30);
