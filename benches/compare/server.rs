//! A server under measurement: started on a core of its own, and asked what CPU time and memory it uses.

use std::{
    fs,
    io::{self, ErrorKind, Read},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use tempfile::TempDir;

use super::{
    load::{Load, Names, Outcome},
    parts::{self, Manner},
    peers::{ANSWER, Installed, Own, Place, Setup},
    traffic,
};

/// A process that ends with its owner.
pub struct Process {
    child: Child,
    started_at: Instant,
}

pub struct Server {
    pub process: Process,
    pub address: SocketAddr,
    /// From its start to its first answer.
    pub started_in: Duration,
    _dir: TempDir,
}

/// The part of this program that all servers ask.
pub struct Upstream {
    _process: Process,
    pub address: SocketAddr,
}

/// What a load has cost a server.
#[derive(Debug, Clone)]
pub struct Cost {
    pub micros_per_query: f64,
    pub queries_per_second: f64,
    pub outcome: Outcome,
}

impl Process {
    /// Starts a program on some cores, as `taskset` writes them; errors of its own it keeps to itself.
    pub fn start(program: &Path, args: &[String], cores: &str) -> io::Result<Self> {
        let start = || {
            // It inherits the cores of the thread that starts it, and so its own start is all that is timed.
            let own = fs::read_link("/proc/thread-self")?;
            let pinned =
                Command::new("taskset").args(["-cp", cores]).arg(own.file_name().unwrap_or_default()).output()?;
            if !pinned.status.success() {
                return Err(io::Error::other(String::from_utf8_lossy(&pinned.stderr).into_owned()));
            }
            let started_at = Instant::now();
            let mut command = Command::new(program);
            let child = command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
            Ok(Self { child, started_at })
        };
        let outcome = thread::scope(|scope| scope.spawn(start).join());
        outcome.unwrap_or_else(|_| Err(io::Error::other("cannot start a process")))
    }

    /// The CPU time of all its threads and of the processes it has started, in nanoseconds.
    pub fn cpu_nanos(&self) -> io::Result<u64> {
        let mut nanos = ended_children_nanos(self.child.id());
        for process in self.with_children()? {
            for thread in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten() {
                // A thread may end meanwhile.
                let text = read(&thread?.path().join("schedstat"));
                nanos += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(nanos)
    }

    /// What it and its children have in memory.
    pub fn resident_bytes(&self) -> io::Result<u64> {
        let resident = |process: u32| {
            let text = read(Path::new(&format!("/proc/{process}/status")));
            let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        Ok(self.with_children()?.into_iter().map(resident).sum::<u64>() << 10)
    }

    fn with_children(&self) -> io::Result<Vec<u32>> {
        let own = self.child.id();
        let mut processes = vec![own];
        for entry in fs::read_dir("/proc")? {
            let Some(process) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if stat(process).get(PARENT).is_some_and(|parent| *parent == u64::from(own)) {
                processes.push(process);
            }
        }
        Ok(processes)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Upstream {
    /// Starts it at a free port of this address.
    pub fn start(ip: Ipv4Addr, manner: Manner) -> io::Result<Self> {
        let address = SocketAddr::from((ip, free_port()?));
        let delay = manner.delay.as_micros().to_string();
        let args = [ANSWER.into(), address.to_string(), "1".into(), delay, manner.lost_permille.to_string()];
        let process = Process::start(&std::env::current_exe()?, &args, LOAD_CORE)?;
        wait_for(address)?;
        Ok(Self { _process: process, address })
    }

    /// How many queries reach it meanwhile, from how many ports.
    pub fn seen_during<T>(&self, run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, parts::Seen)> {
        parts::seen(self.address)?;
        let outcome = run()?;
        Ok((outcome, parts::seen(self.address)?))
    }
}

impl Server {
    /// Starts a server and waits until it answers: on its core, or on all if it has several threads.
    pub fn start(peer: &Installed, setup: &Setup) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let (program, args) = peer.prepare(&Place { setup, dir: dir.path(), port })?;
        let process = Process::start(&program, &args, if setup.threads == 1 { SERVER_CORE } else { BOTH_CORES })?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self { process, address, started_in: Duration::ZERO, _dir: dir };
        // Some answer before they have read what they are to know.
        let probe = match setup.own {
            Own::Nothing => PROBE,
            Own::Blocked(count) => traffic::BLOCKED + count - 1,
            Own::Services(count) => traffic::SERVICES + count - 1,
        };
        wait_until(server.address, probe, || Ok(server.process.child.try_wait()?.is_none()))
            .map_err(|error| io::Error::other(format!("{} has not started: {error}", peer.name)))?;
        server.started_in = server.process.started_at.elapsed();
        Ok(server)
    }

    /// Has names come into its cache; an error if not all did in the time that the load is given.
    pub fn fill(&self, load: Load, first: u32, count: u32) -> anyhow::Result<()> {
        let load = Load { names: Names::Each { first, count }, outstanding: 100, pace: None, ..load };
        // What was lost at the first pass comes with the second.
        for _ in 0..2 {
            let filled = load.run(self.address)?;
            if filled.answered - filled.failed >= u64::from(count) {
                return Ok(());
            }
            ensure!(filled.answered + filled.lost >= u64::from(count), "the cache was not filled in time");
        }
        anyhow::bail!("the cache could not be filled")
    }

    /// Runs a load, and measures.
    pub fn measure(&self, load: &Load) -> io::Result<Cost> {
        let (before, start) = (self.process.cpu_nanos()?, Instant::now());
        let outcome = load.run(self.address)?;
        let (nanos, seconds) = (self.process.cpu_nanos()?.saturating_sub(before), start.elapsed().as_secs_f64());
        let answered = outcome.answered as f64;
        let micros_per_query = nanos as f64 / 1000.0 / answered.max(1.0);
        Ok(Cost { micros_per_query, queries_per_second: answered / seconds, outcome })
    }

    /// The same, and an error if the replies are not what they have to be.
    pub fn measure_sound(&self, load: &Load) -> anyhow::Result<Cost> {
        let cost = self.measure(load)?;
        let Outcome { answered, failed, wrong, lost, .. } = cost.outcome;
        let is_sound = wrong == 0 && (lost + failed) * 1000 <= answered && answered > 0;
        ensure!(is_sound, "{answered} answered, {failed} failed, {wrong} wrong, {lost} lost");
        Ok(cost)
    }
}

/// Waits until a query is answered.
pub fn wait_for(server: SocketAddr) -> io::Result<()> {
    wait_until(server, PROBE, || Ok(true))
}

/// Waits until the query for a number is answered rightly.
fn wait_until(server: SocketAddr, probe: u32, mut is_alive: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let start = Instant::now();
    let (mut query, mut reply) = (Vec::new(), [0; 1500]);
    traffic::query(probe, 0, 1, &mut query);
    while start.elapsed() < START_PATIENCE {
        if !is_alive()? {
            return Err(io::Error::other("it has ended"));
        }
        let received = socket.send(&query).and_then(|_| socket.recv(&mut reply));
        match received {
            Ok(length) if traffic::is_reply(&reply[..length], probe) => return Ok(()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // Nobody listens yet, and the error came at once; or the server is not ready.
            _ => thread::sleep(Duration::from_micros(100)),
        }
    }
    Err(io::Error::other("it does not answer"))
}

/// A port that nobody uses at present, by UDP nor by TCP.
pub fn free_port() -> io::Result<u16> {
    loop {
        let port = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
}

/// The numbers of a process after its name and its state; 0 for what is below 0.
fn stat(process: u32) -> Vec<u64> {
    let text = read(Path::new(&format!("/proc/{process}/stat")));
    let Some((_, numbers)) = text.rsplit_once(") ") else { return Vec::new() };
    numbers.split_whitespace().skip(1).map(|number| number.parse().unwrap_or(0)).collect()
}

/// The CPU time of children that have ended, which is known to a tick.
fn ended_children_nanos(process: u32) -> u64 {
    stat(process).get(ENDED_CHILDREN..ENDED_CHILDREN + 2).map_or(0, |ticks| ticks.iter().sum::<u64>() * TICK_NANOS)
}

/// The text of a file, empty if it is gone.
fn read(path: &Path) -> String {
    let mut text = String::new();
    let _ = fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    text
}

/// Servers run alone on this core, load and upstream on the other.
pub const SERVER_CORE: &str = "0";
pub const LOAD_CORE: &str = "1";
/// Where a server with two threads runs.
const BOTH_CORES: &str = "0,1";
/// Places in what `stat` gives.
const PARENT: usize = 0;
const ENDED_CHILDREN: usize = 12;
const TICK_NANOS: u64 = 10_000_000;
/// A number that no load asks for.
const PROBE: u32 = 0xffff_ffff;
/// A million blocked names take some servers their time.
const START_PATIENCE: Duration = Duration::from_secs(120);
