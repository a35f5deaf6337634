//! A real daemon: the binary of this crate with a configuration in a folder of its own.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{Message, PATIENCE, http, netns::Netns, query, signal, tcp, udp, wait_until};

/// A daemon that is about to be started.
pub struct Setup {
    folder: TempDir,
    config: Option<String>,
    prefix: Vec<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A daemon that serves; it is ended when this is dropped.
pub struct Daemon {
    /// Where it listens, in the order of the configuration, with real ports.
    pub addresses: Vec<SocketAddr>,
    /// Where it speaks HTTP, if it does.
    pub control: Option<SocketAddr>,
    /// Nothing only once it is another daemon's.
    folder: Option<TempDir>,
    child: Child,
    /// What starts it again.
    again: Command,
    /// The process that has taken over from the child.
    successor: Option<u32>,
    log: Arc<Log>,
}

/// How a run that came to its end went.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    /// Both of its outputs.
    pub text: String,
}

impl Setup {
    /// A configuration, in which `<DIR>` stands for the daemon's folder. Sections that a test does not care for are
    /// added: any port, two workers, no files of the machine.
    pub fn new(config: &str) -> Self {
        let mut config = config.to_owned();
        for (section, text) in [
            ("[server]", "listen = [\"127.0.0.1:0\"]\nworkers = 2"),
            ("[control]", "listen = \"127.0.0.1:0\""),
            ("[zones]", "hosts = []"),
        ] {
            if !config.lines().any(|line| line.trim() == section) {
                config.push_str(&format!("\n{section}\n{text}\n"));
            }
        }
        Self { config: Some(config), ..Self::bare() }
    }

    /// No configuration file at all.
    pub fn bare() -> Self {
        let folder = tempfile::Builder::new().prefix("watershed-").tempdir().unwrap();
        // Tests that run the daemon as another user have it here too.
        fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        Self { folder, config: None, prefix: Vec::new(), arguments: Vec::new(), environment: Vec::new() }
    }

    /// The default for names that no other rule has: this upstream.
    pub fn forwarding_to(upstream: SocketAddr) -> Self {
        Self::new(&forward(".", &[upstream]))
    }

    /// Puts a file into the folder.
    pub fn file(self, name: &str, text: &str) -> Self {
        write(self.folder.path(), name, text);
        self
    }

    /// With the configuration that `change` makes of it.
    pub fn configured(mut self, change: impl FnOnce(String) -> String) -> Self {
        self.config = self.config.map(change);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.replace("<DIR>", &self.folder.path().display().to_string())));
        self
    }

    /// Further arguments of `run`.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The program that runs it: the daemon's own command line follows these words.
    pub fn by(mut self, prefix: &[&str]) -> Self {
        self.prefix.extend(prefix.iter().map(|&word| word.to_owned()));
        self
    }

    /// Inside a network namespace.
    pub fn within(self, netns: &Netns) -> Self {
        self.by(&["ip", "netns", "exec", netns.name()])
    }

    /// With a copy of the binary in the folder, for users who may not read where it was built.
    pub fn reachable_by_all(self) -> Self {
        fs::copy(BINARY, self.folder.path().join(COPY)).unwrap();
        self
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut words = self.prefix.clone();
        let copy = self.folder.path().join(COPY);
        words.push(if copy.exists() { copy.display().to_string() } else { BINARY.to_owned() });
        words.push(subcommand.to_owned());
        if let Some(config) = &self.config {
            write(self.folder.path(), CONFIG, config);
            if subcommand != "check" {
                words.push("--config".to_owned());
            }
            words.push(self.folder.path().join(CONFIG).display().to_string());
        }
        words.extend(self.arguments.clone());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(self.folder.path()).stdin(Stdio::null());
        for inherited in ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "STATE_DIRECTORY", "WATERSHED_LOG", "RUST_LOG"] {
            command.env_remove(inherited);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts it and waits until it is ready.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut command = self.command("run");
        self.start_as(&mut command, READY)
    }

    /// Starts it and waits until it can be asked, which may be before it is ready.
    #[track_caller]
    pub fn start_serving(self) -> Daemon {
        let mut command = self.command("run");
        self.start_as(&mut command, SERVING)
    }

    /// As `start`, but the caller has the last word on the command that runs it.
    #[track_caller]
    pub fn start_with(self, change: impl FnOnce(Command) -> Command) -> Daemon {
        let mut command = change(self.command("run"));
        self.start_as(&mut command, READY)
    }

    #[track_caller]
    fn start_as(self, command: &mut Command, sign: &str) -> Daemon {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let log = Arc::new(Log::default());
        let stderr = child.stderr.take().unwrap();
        thread::spawn({
            let log = log.clone();
            move || log.follow(BufReader::new(stderr))
        });
        // Whatever panics from here on ends the process and shows its log.
        let mut again = Command::new(command.get_program());
        again.args(command.get_args()).current_dir(self.folder.path()).stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => again.env(name, value),
                None => again.env_remove(name),
            };
        }
        let mut daemon = Daemon {
            addresses: Vec::new(),
            control: None,
            folder: Some(self.folder),
            child,
            again,
            successor: None,
            log,
        };
        daemon.wait_for_log(0, |line| line.contains(sign));
        for line in daemon.log.lines() {
            if let Some((before, address)) = line.split_once("listening address=") {
                // One with an interface is nobody else's to look up.
                let address = address.split(' ').next().unwrap();
                if address.contains('%') {
                    continue;
                }
                let address = address.parse().expect("an address");
                match before.ends_with("control ") {
                    true => daemon.control = Some(address),
                    false => daemon.addresses.push(address),
                }
            }
        }
        daemon
    }

    /// Runs it and expects it to end by itself.
    #[track_caller]
    pub fn run_to_end(self) -> Ended {
        ended(&mut self.command("run"))
    }

    /// Runs `watershed check` on the configuration.
    #[track_caller]
    pub fn check(self) -> Ended {
        ended(&mut self.command("check"))
    }
}

impl Daemon {
    /// Where it listens first.
    pub fn address(&self) -> SocketAddr {
        *self.addresses.first().expect("a listen address")
    }

    /// Asks over UDP with EDNS, as most clients do: `www.example. A`.
    #[track_caller]
    pub fn ask(&self, question: &str) -> Message {
        udp(self.address(), &query(question).edns(1232))
    }

    #[track_caller]
    pub fn udp(&self, query: &Message) -> Message {
        udp(self.address(), query)
    }

    #[track_caller]
    pub fn tcp(&self, query: &Message) -> Message {
        tcp(self.address(), query)
    }

    /// Asks over UDP, and again while upstreams seem to be silent: on a machine that stands still for seconds they do.
    #[track_caller]
    pub fn answer(&self, query: &Message) -> Message {
        let is_silence = |reply: &Message| reply.rcode == 2 && reply.extended_errors().contains(&22);
        wait_until(&format!("an answer to {}", query.asked()), 2 * PATIENCE, || {
            Some(self.udp(query)).filter(|reply| !is_silence(reply))
        })
    }

    /// Asks likewise for an address, over TCP or UDP, and demands that it is this one.
    #[track_caller]
    pub fn demand(&self, question: &str, address: &str, over_tcp: bool) {
        let query = query(question).edns(1232);
        wait_until(&format!("an answer to {question}"), 2 * PATIENCE, || {
            let reply = if over_tcp { self.tcp(&query) } else { self.udp(&query) };
            assert!(reply.data() == [address] || reply.rcode == 2 && reply.answer.is_empty(), "{question}: {reply:#?}");
            (reply.rcode == 0).then_some(())
        });
    }

    pub fn pid(&self) -> u32 {
        self.successor.unwrap_or_else(|| self.child.id())
    }

    /// Puts another file in the place of the binary that it was started from, which is a copy in its folder.
    pub fn replace_binary(&self) {
        let new = self.folder().join("new");
        fs::copy(BINARY, &new).unwrap();
        fs::rename(&new, self.folder().join(COPY)).unwrap();
    }

    /// Has it hand over to a new process. The old one must end well.
    #[track_caller]
    pub fn hand_over(&mut self) {
        let (from, old) = (self.log_length(), self.pid());
        signal(old, "USR2");
        self.await_hand_over(from, old);
    }

    /// Waits until it has handed over, which it was told behind the first `from` lines of the log.
    #[track_caller]
    pub fn await_hand_over(&mut self, from: usize, old: u32) {
        let line = self.wait_for_log(from, |line| line.contains("handed over"));
        let new = line.split("process=").nth(1).and_then(|rest| rest.split(' ').next()).expect("a process");
        self.await_end_of(old);
        self.successor = Some(new.parse().unwrap());
    }

    fn await_end_of(&mut self, process: u32) -> Option<ExitStatus> {
        if process == self.child.id() {
            return Some(wait_until("the end of the daemon", LIMIT, || self.child.try_wait().unwrap()));
        }
        // Not our child: whoever adopted it knows how it ended.
        wait_until("the end of the daemon", LIMIT, || (!is_alive(process)).then_some(()));
        None
    }

    pub fn folder(&self) -> &Path {
        self.folder.as_ref().expect("a daemon has a folder").path()
    }

    /// Writes a file of its folder anew, in one step, as editors do.
    pub fn write(&self, name: &str, text: &str) {
        write(self.folder(), name, text);
    }

    /// Replaces the configuration by what `change` makes of it.
    pub fn edit_config(&self, change: impl FnOnce(String) -> String) {
        let config = fs::read_to_string(self.folder().join(CONFIG)).unwrap();
        self.write(CONFIG, &change(config));
    }

    /// Sends SIGHUP, waits for the outcome and gives the lines logged until then.
    #[track_caller]
    pub fn reload(&self) -> String {
        let from = self.log_length();
        signal(self.pid(), "HUP");
        self.wait_for_log(from, |line| line.contains("reloaded") || line.contains("reload failed"));
        self.log.lines()[from..].join("\n")
    }

    pub fn log_length(&self) -> usize {
        self.log.lines().len()
    }

    /// The lines logged behind the first `from`.
    pub fn log_from(&self, from: usize) -> Vec<String> {
        self.log.lines().split_off(from)
    }

    /// Waits for a log line behind the first `from` that satisfies `wanted`, and gives it.
    #[track_caller]
    pub fn wait_for_log(&self, from: usize, wanted: impl Fn(&str) -> bool) -> String {
        match self.log.wait(from, wanted) {
            Ok(line) => line,
            Err(what) => panic!("{what} before the expected log line; the log:\n{}", self.log.lines().join("\n")),
        }
    }

    /// GET on the control address.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        http::get(self.control.expect("a control address"), path)
    }

    /// The sum of a metric's samples that have these labels; zero if there is none.
    #[track_caller]
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200, "{text}");
        let wanted: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let samples = text.lines().filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (family, labels) = series.split_once('{').unwrap_or((series, ""));
            (family == name && wanted.iter().all(|label| labels.contains(label.as_str()))).then_some(value)
        });
        samples.map(|value| value.parse::<f64>().expect("a number")).sum()
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Kills it and starts another in its folder.
    #[track_caller]
    pub fn kill_and_start(self) -> Self {
        self.kill_and_start_after(|| {})
    }

    /// The same, with this done between.
    #[track_caller]
    pub fn kill_and_start_after(mut self, between: impl FnOnce()) -> Self {
        let pid = self.pid();
        signal(pid, "KILL");
        self.await_end_of(pid);
        between();
        let folder = self.folder.take().expect("a daemon has a folder");
        let mut command = std::mem::replace(&mut self.again, Command::new("true"));
        let setup = Setup { folder, config: None, prefix: Vec::new(), arguments: Vec::new(), environment: Vec::new() };
        setup.start_as(&mut command, READY)
    }

    pub fn is_running(&mut self) -> bool {
        match self.successor {
            Some(process) => is_alive(process),
            None => self.child.try_wait().unwrap().is_none(),
        }
    }

    /// Asks it to end and waits until it has.
    #[track_caller]
    pub fn stop(mut self) -> Ended {
        signal(self.pid(), "TERM");
        self.wait()
    }

    /// Waits until it has ended.
    #[track_caller]
    pub fn wait(&mut self) -> Ended {
        let status = self.await_end_of(self.pid());
        self.log.await_end();
        Ended { code: status.and_then(|status| status.code()), text: self.log.lines().join("\n") }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(process) = self.successor.filter(|&process| is_alive(process)) {
            signal(process, "KILL");
        }
        if thread::panicking() {
            eprintln!("--- log of the daemon\n{}\n---", self.log.lines().join("\n"));
        }
    }
}

/// The lines that the daemon has logged so far.
#[derive(Default)]
struct Log {
    state: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Log {
    fn follow(&self, stderr: impl BufRead) {
        for line in stderr.lines().map_while(Result::ok) {
            self.state.lock().unwrap().0.push(line);
            self.changed.notify_all();
        }
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }

    fn lines(&self) -> Vec<String> {
        self.state.lock().unwrap().0.clone()
    }

    /// Waits for the last lines of a process that has ended; a successor may hold the log open.
    fn await_end(&self) {
        let state = self.state.lock().unwrap();
        let is_open = |state: &mut (Vec<String>, bool)| !state.1;
        drop(self.changed.wait_timeout_while(state, Duration::from_secs(2), is_open).unwrap());
    }

    fn wait(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Result<String, &'static str> {
        let deadline = Instant::now() + LIMIT;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(line) = state.0.iter().skip(from).find(|line| wanted(line)) {
                return Ok(line.clone());
            }
            if state.1 {
                return Err("the daemon ended");
            }
            let left = deadline.checked_duration_since(Instant::now()).ok_or("the limit passed")?;
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }
}

/// A `[[forward]]` section.
pub fn forward(suffix: &str, upstreams: &[SocketAddr]) -> String {
    let upstreams: Vec<String> = upstreams.iter().map(|address| format!("\"{address}\"")).collect();
    format!("\n[[forward]]\nsuffixes = [\"{suffix}\"]\nupstreams = [{}]\n", upstreams.join(", "))
}

fn is_alive(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with(['Z', 'X']))
}

#[track_caller]
fn ended(command: &mut Command) -> Ended {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + LIMIT;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            let output = child.wait_with_output().unwrap();
            panic!("{command:?} did not end:\n{}", String::from_utf8_lossy(&output.stderr));
        }
        thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    Ended { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() }
}

fn write(folder: &Path, name: &str, text: &str) {
    let path: PathBuf = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let draft = path.with_extension("draft");
    fs::write(&draft, text.replace("<DIR>", &folder.display().to_string())).unwrap();
    fs::rename(&draft, &path).unwrap();
}

const BINARY: &str = env!("CARGO_BIN_EXE_watershed");
/// Where the daemon's folder has a copy of the binary, if it has one.
/// In the log once it serves: the control address is the last that it opens.
const SERVING: &str = " control listening";
const READY: &str = " ready";
const COPY: &str = "watershed";
const CONFIG: &str = "watershed.toml";
/// How long a debug build on a busy machine may take to start, reload or end.
const LIMIT: Duration = Duration::from_secs(15);
