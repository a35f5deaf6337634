//! Files that are not what they should be: endless, sparse, pipes, devices, leased, on a file system that does not answer.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    time::{Duration, Instant},
};

use super::lives_and_ends;
use crate::harness::{agent::Agent, catalog::plain, *};

const ZONE: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";

/// All kinds of data files, and a zone that stays as it is.
fn setup() -> Setup {
    let config = "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n[catalog.files]\ndirectory = \"<DIR>/consul.d\"\n\
                  [zones]\ndirectory = \"<DIR>/zones\"\nhosts = [\"<DIR>/hosts\"]\n\
                  [server]\nlisten = [\"127.0.0.1:0\"]\nstate_directory = \"<DIR>/state\"\n";
    let setup =
        Setup::new(config).file("state/keep", "").file("zones/honest.example.zone", ZONE).file("hosts", GOOD[2].1);
    let setup = setup.file("zones/more.inc", GOOD[3].1);
    GOOD.iter().fold(setup.file("consul.d/web.json", &plain("web", 1)), |setup, (name, text, ..)| match *text {
        "" => setup,
        text => setup.file(name, text),
    })
}

/// Each data file with a good text, and the question that it answers.
const GOOD: [(&str, &str, &str, &str); 5] = [
    (
        "zones/site.example.zone",
        "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.2\n$INCLUDE more.inc\n",
        "www.site.example A",
        "192.0.2.2",
    ),
    ("zones/@over.overlay", "over.example A 192.0.2.3\n", "over.example A", "192.0.2.3"),
    ("hosts", "192.0.2.4 host.example\n", "host.example A", "192.0.2.4"),
    ("zones/more.inc", "more A 192.0.2.5\n", "more.site.example A", "192.0.2.5"),
    ("consul.d/web.json", "", "web.service.consul A", "192.0.2.10"),
];

/// What takes the place of a file.
#[derive(Debug, Clone, Copy)]
enum Trap {
    Sparse,
    Pipe,
    Device,
    Folder,
}

impl Trap {
    fn put(self, path: &Path) {
        let new = path.with_extension("trap");
        match self {
            Self::Sparse => File::create(&new).unwrap().set_len(3 << 30).unwrap(),
            Self::Pipe => drop(run(Command::new("mkfifo").arg(&new))),
            Self::Device => symlink("/dev/zero", &new).unwrap(),
            Self::Folder => fs::create_dir(&new).unwrap(),
        }
        let _ = fs::remove_dir(path);
        if matches!(self, Self::Folder) {
            fs::remove_file(path).unwrap();
        }
        fs::rename(&new, path).unwrap();
    }
}

#[test]
fn whatever_takes_the_place_of_a_file_costs_itself_alone() {
    let daemon = setup().start();
    let most = daemon.resident_kib() + (40 << 10);
    for trap in [Trap::Pipe, Trap::Sparse, Trap::Device, Trap::Folder] {
        for (name, _, question, answer) in GOOD {
            // A folder among definition files is one in which there may be more of them, whatever its name.
            if matches!(trap, Trap::Folder) && name.starts_with("consul.d/") {
                continue;
            }
            let case = format!("{trap:?} {name}");
            let path = daemon.folder().join(name);
            let text = fs::read_to_string(&path).unwrap();
            let from = daemon.log_length();
            trap.put(&path);
            let file = name.rsplit('/').next().unwrap();
            daemon.wait_for_log(from, |line| line.contains("last good") && line.contains(file));
            let wanted = if matches!(trap, Trap::Sparse) { "larger than" } else { "not a regular file" };
            assert!(daemon.log_from(from).iter().any(|line| line.contains(wanted)), "{case}");
            assert_eq!(daemon.ask(question).one(), answer, "{case}: the last good version stays");
            let from = daemon.log_length();
            let begun = Instant::now();
            assert!(daemon.reload().contains("reloaded"), "{case}");
            assert!(begun.elapsed() < Duration::from_secs(2), "{case}: {:?}", begun.elapsed());
            assert_eq!(daemon.ask("www.honest.example A").one(), "192.0.2.1", "{case}");
            assert!(daemon.resident_kib() < most, "{case}: {} KiB", daemon.resident_kib());
            let _ = fs::remove_dir(&path);
            daemon.write(name, &text);
            daemon.wait_for_log(from, |line| line.contains("file mended"));
        }
    }
    lives_and_ends(daemon, "after all");
}

#[test]
fn no_file_keeps_the_daemon_from_starting_or_takes_its_memory() {
    for trap in [Trap::Sparse, Trap::Pipe] {
        let state = ["state/registrations.json", "state/registrations.journal", "state/cache.snapshot"];
        let setup = state.iter().fold(setup(), |setup, name| setup.file(name, ""));
        for name in GOOD.iter().map(|(name, ..)| *name).chain(state) {
            trap.put(&setup.folder().join(name));
        }
        let daemon = setup.start();
        assert_eq!(daemon.ask("www.honest.example A").one(), "192.0.2.1", "{trap:?}");
        assert!(daemon.resident_kib() < 100 << 10, "{trap:?}: {} KiB", daemon.resident_kib());
        lives_and_ends(daemon, &format!("{trap:?}"));
    }
}

#[test]
fn small_files_that_are_large_are_refused() {
    for key in ["upstream_ca", "include", "main"] {
        let config = match key {
            "upstream_ca" => {
                "[[forward]]\nsuffixes = [\".\"]\nupstreams = [\"tls://192.0.2.1\"]\nca_file = \"<DIR>/large\"\n"
            }
            "include" => "include = [\"large\"]\n",
            _ => "",
        };
        let mut setup = Setup::new(config);
        File::create(setup.folder().join("large")).unwrap().set_len(3 << 30).unwrap();
        if key == "main" {
            setup = Setup::bare().arguments(&["large"]);
            File::create(setup.folder().join("large")).unwrap().set_len(3 << 30).unwrap();
        }
        let ended = setup.check();
        assert_eq!(ended.code, Some(2), "{key}: {}", ended.text);
        assert!(ended.text.contains("larger than 4.0 MiB"), "{key}: {}", ended.text);
    }
}

/// A process that holds a lease on a file until it is dropped.
struct Lease {
    holder: Child,
    _input: ChildStdin,
}

impl Lease {
    fn take(path: &Path) -> Self {
        // 1024 is F_SETLEASE, 1 is F_WRLCK; SIGIO asks for the lease to be given up, which is ignored here.
        const HOLD: &str = "$SIG{IO} = 'IGNORE'; open(F, '+<', $ARGV[0]) or die; fcntl(F, 1024, 1) or die $!; \
                            $| = 1; print \"held\\n\"; <STDIN>;";
        let mut holder = Command::new("perl")
            .args(["-e", HOLD])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        let _input = holder.stdin.take().unwrap();
        Self { holder, _input }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

#[test]
fn a_lease_on_a_file_delays_nothing_and_its_end_is_noticed() {
    let daemon = setup().start();
    for (name, question) in
        [("zones/site.example.zone", "new.site.example A"), ("consul.d/web.json", "new.service.consul A")]
    {
        let path = daemon.folder().join(name);
        let text = match name.ends_with("json") {
            true => plain("new", 1),
            false => format!("{ZONE}new A 192.0.2.10\n"),
        };
        let draft = daemon.folder().join("draft");
        fs::write(&draft, text).unwrap();
        let lease = Lease::take(&draft);
        let from = daemon.log_length();
        fs::rename(&draft, &path).unwrap();
        daemon.wait_for_log(from, |line| line.contains("holds a lease"));
        let begun = Instant::now();
        daemon.reload();
        assert!(begun.elapsed() < Duration::from_secs(1), "{name}: {:?}", begun.elapsed());
        assert_eq!(daemon.ask("www.honest.example A").one(), "192.0.2.1", "{name}");
        drop(lease);
        wait_until("the file to be read", PATIENCE, || (daemon.ask(question).data() == ["192.0.2.10"]).then_some(()));
    }
    let path = daemon.folder().join("zones/@over.overlay");
    let _lease = Lease::take(&path);
    File::options().append(true).open(daemon.folder().join("hosts")).unwrap().write_all(b"# changed\n").unwrap();
    lives_and_ends(daemon, "with a lease");
}

/// Ends a process when it is dropped.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Delays each look at a path by a minute, as a network file system does that does not answer.
fn hang(daemon: &Daemon, path: &Path) -> Guard {
    let pid = daemon.pid().to_string();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=open,openat,stat,statx,newfstatat,read"]);
    strace.args(["-e", "inject=open,openat,stat,statx,newfstatat,read:delay_enter=60000000", "-P"]);
    let strace = Guard(strace.arg(path).args(["-p", &pid]).spawn().unwrap());
    wait_until("the tracer of each thread", PATIENCE, || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        let mut states = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
        states.all(|state| !state.contains("TracerPid:\t0\n")).then_some(())
    });
    strace
}

#[test]
fn a_file_system_that_does_not_answer_delays_neither_reload_nor_stop() {
    for name in ["zones/site.example.zone", "consul.d/web.json", "hosts"] {
        let mut daemon = setup().start();
        let path = daemon.folder().join(name);
        let question = GOOD.iter().find(|(known, ..)| *known == name).unwrap();
        let tracer = hang(&daemon, &path);
        // It is noticed, and being read.
        File::options().append(true).open(&path).unwrap().write_all(b"\n").unwrap();
        let from = daemon.log_length();
        for _ in 0..2 {
            let begun = Instant::now();
            assert!(daemon.reload().contains("reloaded"), "{name}");
            assert!(begun.elapsed() < Duration::from_secs(1), "{name}: {:?}", begun.elapsed());
        }
        assert!(daemon.log_from(from).iter().any(|line| line.contains("does not answer")), "{name}");
        assert_eq!(daemon.ask(question.2).one(), question.3, "{name}: the last good version stays");
        assert_eq!(daemon.ask("www.honest.example A").one(), "192.0.2.1", "{name}");
        let (from, begun) = (daemon.log_length(), Instant::now());
        signal(daemon.pid(), "TERM");
        daemon.wait_for_log(from, |line| line.contains(" stopped"));
        assert!(begun.elapsed() < Duration::from_secs(1), "{name}: {:?}", begun.elapsed());
        // The tracer would hold the process up.
        drop(tracer);
        assert_eq!(daemon.wait().code, Some(0), "{name}");
    }
}

#[test]
fn a_token_that_cannot_be_read_delays_nothing_else() {
    let agent = Agent::new(&[("web", &["192.0.2.10"])]);
    let config = format!("[catalog.consul]\naddress = \"http://{}\"\ntoken_file = \"<DIR>/token\"\n", agent.address());
    let mut daemon = Setup::new(&config).file("token", "secret\n").start();
    let is_at = |daemon: &Daemon| (daemon.ask("web.service.consul A").data() == ["192.0.2.10"]).then_some(());
    wait_until("the agent's catalog", 3 * PATIENCE, || is_at(&daemon));
    let (tracer, from) = (hang(&daemon, &daemon.folder().join("token")), daemon.log_length());
    // Several requests at a time need the token.
    agent.set("web", &["192.0.2.11"]);
    let mut slowest = Duration::ZERO;
    wait_until("the requests to fail", 3 * PATIENCE, || {
        let begun = Instant::now();
        assert_eq!(daemon.get("/live").0, 200);
        slowest = slowest.max(begun.elapsed());
        daemon.log_from(from).iter().any(|line| line.contains("source away")).then_some(())
    });
    assert!(slowest < Duration::from_secs(1), "/live took {slowest:?}");
    assert!(!daemon.ask("web.service.consul A").data().is_empty(), "what was said before stays");
    let (from, begun) = (daemon.log_length(), Instant::now());
    signal(daemon.pid(), "TERM");
    daemon.wait_for_log(from, |line| line.contains(" stopped"));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(tracer);
    assert_eq!(daemon.wait().code, Some(0));
}

#[test]
fn sixty_thousand_keys_are_read_in_linear_time() {
    let keys: String = (0..60_000).map(|number| format!("key{number} = {number}\n")).collect();
    let daemon = setup().file("consul.d/web.json", &plain("web", 1)).start();
    let (begun, from) = (Instant::now(), daemon.log_length());
    daemon.write("consul.d/keys.hcl", &keys);
    daemon.wait_for_log(from, |line| line.contains("keys.hcl") && line.contains("59990 more of the kind"));
    // In a debug build on a busy machine; it took a minute when each key was compared with all others.
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    assert_eq!(daemon.ask("web.service.consul A").one(), "192.0.2.10");
}

#[test]
fn a_file_with_many_faults_writes_few_lines() {
    let services: Vec<_> = (0..20_000).map(|n| format!("{{\"name\": \"a\", \"id\": \"{n}\", \"odd\": 1}}")).collect();
    let definitions = format!("{{\"services\": [\n{}\n]}}", services.join(",\n"));
    let zone = format!("{ZONE}{}", "www A 192.0.2.1.1\n".repeat(20_000));
    let hosts = "no.address name\n".repeat(20_000);
    let daemon = setup().start();
    for (name, text) in [
        ("consul.d/odd.json", &definitions),
        ("zones/site.example.zone", &zone),
        ("zones/odd.overlay", &zone),
        ("hosts", &hosts),
    ] {
        let from = daemon.log_length();
        daemon.write(name, text);
        daemon.wait_for_log(from, |line| line.contains("more of the kind") || line.contains("more faults follow"));
        daemon.reload();
        let lines = daemon.log_from(from).len();
        assert!(lines < 40, "{name}: {lines} lines");
    }
}
