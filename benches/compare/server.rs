//! A server under measurement: started on a core of its own, and asked what CPU time it has used.

use std::{
    fs,
    io::{self, Read},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    load::{Load, Names, Outcome},
    peers::{Installed, Setup},
    traffic,
};

/// A process that ends with its owner.
pub struct Process(Child);

pub struct Server {
    process: Process,
    pub address: SocketAddr,
    _dir: TempDir,
}

/// What a load has cost a server.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    pub micros_per_query: f64,
    pub queries_per_second: f64,
    pub wrong: u64,
    pub lost: u64,
    pub answered: u64,
}

impl Process {
    /// Starts a program on one core; errors of its own it keeps to itself.
    pub fn start(program: &std::path::Path, args: &[String], core: u32) -> io::Result<Self> {
        let mut command = Command::new("taskset");
        command.arg("-c").arg(core.to_string()).arg(program).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Self)
    }

    /// The CPU time of all its threads, in nanoseconds.
    /// The CPU time that it has taken.
    pub fn cpu_nanos(&self) -> io::Result<u64> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let mut text = String::new();
            // A thread may end meanwhile.
            if fs::File::open(thread?.path().join("schedstat"))
                .and_then(|mut file| file.read_to_string(&mut text))
                .is_ok()
            {
                nanos += text.split(' ').next().and_then(|first| first.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        Ok(nanos)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// Starts a server and waits until it answers.
    pub fn start(peer: &Installed, names: u32, rules: u32, upstream_port: u16) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let port = free_port()?;
        let setup = Setup { dir: dir.path().to_owned(), port, upstream_port, names, rules };
        let (program, args) = peer.prepare(&setup)?;
        let process = Process::start(&program, &args, SERVER_CORE)?;
        let mut server = Self { process, address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)), _dir: dir };
        wait_for(server.address, || Ok(server.process.0.try_wait()?.is_none()))
            .map_err(|error| io::Error::other(format!("{} has not started: {error}", peer.name)))?;
        Ok(server)
    }

    /// Has names come into its cache; false if not all did in time.
    pub fn fill(&self, names: u32, rules: u32, patience: Duration) -> io::Result<bool> {
        let load = Load { names: Names::Each { first: 0, count: names }, rules, outstanding: 100, lasts: patience };
        // What was lost at the first pass comes with the second.
        let first = load.run(self.address)?;
        let left = first.answered < u64::from(names) && first.answered + first.lost >= u64::from(names);
        Ok(first.answered >= u64::from(names) || left && load.run(self.address)?.answered >= u64::from(names))
    }

    /// Runs a load, and measures.
    pub fn measure(&self, load: &Load) -> io::Result<Cost> {
        let (before, start) = (self.process.cpu_nanos()?, Instant::now());
        let Outcome { answered, wrong, lost } = load.run(self.address)?;
        let (nanos, seconds) = (self.process.cpu_nanos()? - before, start.elapsed().as_secs_f64());
        let per_query = |total: f64| total / answered.max(1) as f64;
        Ok(Cost {
            micros_per_query: per_query(nanos as f64 / 1000.0),
            queries_per_second: answered as f64 / seconds,
            wrong,
            lost,
            answered,
        })
    }
}

/// Waits until a query is answered.
pub fn wait_for(server: SocketAddr, mut is_alive: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    let start = Instant::now();
    let (mut query, mut reply) = (Vec::new(), [0; 1500]);
    traffic::query(PROBE, 0, 1, &mut query);
    while start.elapsed() < START_PATIENCE {
        if !is_alive()? {
            return Err(io::Error::other("it has ended"));
        }
        let received = socket.send(&query).and_then(|_| socket.recv(&mut reply));
        if received.is_ok_and(|length| traffic::is_reply(&reply[..length], PROBE)) {
            return Ok(());
        }
        // Nobody listens yet: the error came at once.
        std::thread::sleep(Duration::from_millis(2));
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

/// Servers run alone on this core, load and upstream on the other.
pub const SERVER_CORE: u32 = 0;
pub const LOAD_CORE: u32 = 1;
/// A number that no load asks for.
const PROBE: u32 = 0xffff_ffff;
const START_PATIENCE: Duration = Duration::from_secs(60);
