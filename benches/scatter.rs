//! What a forger of responses would have to guess: ports, ids and letters of queries to an upstream on another host.
//!
//!     cargo bench --bench scatter
//!
//! Watershed, BIND 9 and Unbound are asked for names that they do not know, 1,000 and 10,000, and what of their queries
//! differs from one to the next is counted. It runs in a network namespace of its own, where the upstream has an address
//! that is not on loopback, so it takes root; without, or without the programs, it says what it leaves out. It takes seconds,
//! a minute at most for each line. `--quick` asks watershed for 1,000 names only.

#[path = "compare/namespace.rs"]
mod namespace;

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use watershed::wire::{Class, Name, Query, Rtype, UpstreamEdns, UpstreamQuery};

fn main() -> anyhow::Result<()> {
    if namespace::enter()? {
        return measure_all(std::env::args().any(|arg| arg == "--quick"));
    }
    println!("scatter: skipped, for it takes root and the programs unshare and ip");
    Ok(())
}

fn measure_all(is_quick: bool) -> anyhow::Result<()> {
    let upstream = Upstream::start()?;
    println!("| | queries | source ports | most from one port | ids | ids expected | steps | upper case |");
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    for server in if is_quick { &SERVERS[..1] } else { &SERVERS[..] } {
        let Some(program) = server.find() else {
            println!("| {} | not installed |", server.name);
            continue;
        };
        for count in if is_quick { &[1000][..] } else { &[1000, 10_000] } {
            println!("{}", measure(server, &program, *count, &upstream)?);
        }
    }
    Ok(())
}

/// A server under measurement.
struct Server {
    name: &'static str,
    program: &'static str,
    config: &'static str,
    args: &'static [&'static str],
}

static SERVERS: [Server; 3] = [
    Server {
        name: "watershed",
        program: env!("CARGO_BIN_EXE_watershed"),
        config: "[server]\nlisten = ['127.0.0.1:5300']\nworkers = 1\n[control]\nlisten = '127.0.0.1:0'\n\
                 [[forward]]\nsuffixes = ['.']\nupstreams = ['192.0.2.53:53']\n",
        args: &["run", "--config", "CONFIG"],
    },
    Server {
        name: "BIND 9",
        program: "/usr/sbin/named",
        config: "options { directory \"DIR\"; pid-file none; session-keyfile none; listen-on port 5300 { 127.0.0.1; };\n\
                 listen-on-v6 { none; }; recursion yes; forward only; forwarders { 192.0.2.53; };\n\
                 dnssec-validation no; empty-zones-enable no; };\ncontrols { };\n",
        args: &["-g", "-n", "1", "-c", "CONFIG"],
    },
    Server {
        name: "Unbound",
        program: "/usr/sbin/unbound",
        config: "server:\n  interface: 127.0.0.1\n  port: 5300\n  directory: \"DIR\"\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n\
                 \x20 use-syslog: no\n  do-daemonize: no\n  do-ip6: no\n  num-threads: 1\n  module-config: iterator\n\
                 remote-control:\n  control-enable: no\nforward-zone:\n  name: \".\"\n  forward-addr: 192.0.2.53\n",
        args: &["-d", "-c", "CONFIG"],
    },
];

/// A process that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    fn find(&self) -> Option<String> {
        Path::new(self.program).is_file().then(|| self.program.to_owned())
    }

    fn start(&self, program: &str, dir: &Path) -> anyhow::Result<Process> {
        let dir_text = dir.display().to_string();
        let config = dir.join("config");
        fs::write(&config, self.config.replace("DIR", &dir_text))?;
        let args = self.args.iter().map(|arg| arg.replace("CONFIG", &config.display().to_string()));
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Process(command.spawn().with_context(|| program.to_owned())?))
    }
}

/// Asks for so many names, and gives the line of the table.
fn measure(server: &Server, program: &str, count: u32, upstream: &Upstream) -> anyhow::Result<String> {
    let dir = tempfile::tempdir()?;
    let _process = server.start(program, dir.path())?;
    let deadline = Instant::now() + LIMIT;
    while ask(&format!("{}.ready.example", rand::random::<u32>()), Duration::from_millis(200))?.is_none() {
        ensure!(Instant::now() < deadline, "{} does not answer", server.name);
    }
    upstream.seen.lock().expect("no thread panics with it").clear();
    let next = AtomicU32::new(0);
    thread::scope(|scope| {
        let client = || -> anyhow::Result<()> {
            while let number @ 0.. = next.fetch_add(1, Ordering::Relaxed)
                && number < count
            {
                let name = format!("name{number}.of.many.letters.example");
                while ask(&name, Duration::from_secs(5))?.is_none() {
                    ensure!(Instant::now() < deadline, "{} does not answer", server.name);
                }
            }
            Ok(())
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client does not panic"))
    })?;
    let seen = upstream.seen.lock().expect("no thread panics with it").clone();
    Ok(line(server.name, &seen))
}

/// Whether an answer has come.
fn ask(name: &str, patience: Duration) -> anyhow::Result<Option<()>> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.connect("127.0.0.1:5300")?;
    socket.set_read_timeout(Some(patience))?;
    let qname: Name = name.parse()?;
    let edns = Some(UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: &[] });
    let query =
        UpstreamQuery { id: 1, qname: &qname, qtype: Rtype::A, qclass: Class::IN, checking_disabled: false, edns };
    let mut wire = Vec::new();
    query.write(&mut wire);
    let mut reply = [0; 1500];
    // Where nobody listens yet the error comes at once.
    let length = match socket.send(&wire).and_then(|_| socket.recv(&mut reply)) {
        Ok(length) => length,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
        Err(_) => {
            thread::sleep(Duration::from_millis(10));
            return Ok(None);
        }
    };
    Ok((length > 12 && reply[3] & 15 == 0 && reply[7] == 1).then_some(()))
}

/// A query as it reached the upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    port: u16,
    id: u16,
    qname: Vec<u8>,
}

/// An upstream that answers everything and notes what it has seen, those sent again once.
struct Upstream {
    seen: Arc<Mutex<Vec<Seen>>>,
    is_over: Arc<AtomicBool>,
}

impl Upstream {
    fn start() -> anyhow::Result<Self> {
        let socket = UdpSocket::bind((namespace::ADDRESS, 53))?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let upstream = Self { seen: Arc::default(), is_over: Arc::default() };
        let (seen, is_over) = (Arc::clone(&upstream.seen), Arc::clone(&upstream.is_over));
        thread::spawn(move || {
            let mut buffer = [0; 1500];
            let mut last: HashMap<Vec<u8>, Seen> = HashMap::new();
            while !is_over.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                let Ok(query) = Query::parse(&buffer[..length]) else { continue };
                let (qname, question) = (query.qname().to_vec(), query.question_bytes().to_vec());
                let _ = socket.send_to(&answer(&buffer[..2], &question), client);
                let SocketAddr::V4(client) = client else { continue };
                let id = u16::from_be_bytes([buffer[0], buffer[1]]);
                let asked = Seen { port: client.port(), id, qname };
                if last.insert(asked.qname.to_ascii_lowercase(), asked.clone()).as_ref() != Some(&asked)
                    && let Ok(mut seen) = seen.lock()
                {
                    seen.push(asked);
                }
            }
        });
        Ok(upstream)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// An address for whatever is asked.
fn answer(id: &[u8], question: &[u8]) -> Vec<u8> {
    let header = [0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0];
    let record = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0x0e, 0x10, 0, 4, 192, 0, 2, 1];
    [id, &header, question, &record].concat()
}

fn line(name: &str, seen: &[Seen]) -> String {
    let mut by_port: BTreeMap<u16, usize> = BTreeMap::new();
    seen.iter().for_each(|query| *by_port.entry(query.port).or_default() += 1);
    let mut ids: Vec<u16> = seen.iter().map(|query| query.id).collect();
    // Chi-squared over 16 parts of how one id follows from the other: 15 is what chance gives, above 61 it is none.
    let mut steps = [0.0_f64; 16];
    ids.windows(2).for_each(|pair| steps[usize::from(pair[1].wrapping_sub(pair[0]) >> 12)] += 1.0);
    let expected = (ids.len() - 1) as f64 / 16.0;
    let chi_squared: f64 = steps.iter().map(|count| (count - expected).powi(2) / expected).sum();
    ids.sort_unstable();
    ids.dedup();
    let expected_ids = 65_536.0 * (1.0 - (1.0 - 1.0 / 65_536.0_f64).powi(seen.len() as i32));
    let letters = seen.iter().flat_map(|query| &query.qname).filter(|octet| octet.is_ascii_alphabetic());
    let upper = letters.clone().filter(|octet| octet.is_ascii_uppercase()).count() as f64 / letters.count() as f64;
    format!(
        "| {name} | {} | {} | {} | {} | {expected_ids:.0} | {chi_squared:.1} | {:.1} % |",
        seen.len(),
        by_port.len(),
        by_port.values().max().unwrap_or(&0),
        ids.len(),
        100.0 * upper
    )
}

const CLIENTS: usize = 16;
/// How long a server may take for one line.
const LIMIT: Duration = Duration::from_secs(60);
