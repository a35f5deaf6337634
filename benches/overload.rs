//! What a flood does to those who do not take part in it.
//!
//!     cargo bench --profile release --bench overload
//!
//! A daemon with two workers is flooded, with more than it can answer, while one client goes on asking: a cached name and a
//! new one in turn, 500 times a second. The kernel gives every client's port to one worker, so the client knows whether it
//! shares its worker with the flood. What counts are the client's waits and losses beside what they are without a flood;
//! what the daemon did not take in, the kernel has counted. All of it shares the cores of the machine. `-- --quick` takes
//! some seconds; `-- --daemon target/debug/watershed` floods a slow build, with many times more than that can answer.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Parser;
use watershed::{
    sys::Outbox,
    wire::{Class, Name, Rtype, UpstreamEdns, UpstreamQuery},
};

/// Floods a daemon and measures what a client beside the flood sees.
#[derive(Parser)]
struct Arguments {
    /// Take some seconds
    #[arg(long)]
    quick: bool,
    /// The program to flood
    #[arg(long, default_value = env!("CARGO_BIN_EXE_watershed"))]
    daemon: PathBuf,
    /// An argument of cargo
    #[arg(long = "bench", hide = true)]
    _bench: bool,
    /// An argument of the other benchmarks
    #[arg(long = "noplot", hide = true)]
    _noplot: bool,
}

/// Who floods, with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    None,
    /// A cached name, from a port of the other worker, or of the client's own.
    Hits {
        on_other_worker: bool,
    },
    /// A cached name, from 200 addresses, so on both workers.
    HitsOfMany,
    /// Names that nobody answers, from so many addresses.
    Dead {
        clients: u32,
    },
    /// TCP connections, opened and closed.
    Connections,
}

const ATTACKS: [(&str, Attack); 7] = [
    ("none", Attack::None),
    ("hits, one client, another worker", Attack::Hits { on_other_worker: true }),
    ("hits, one client, the same worker", Attack::Hits { on_other_worker: false }),
    ("hits, 200 clients, both workers", Attack::HitsOfMany),
    ("unanswered names, one client", Attack::Dead { clients: 1 }),
    ("unanswered names, 200 clients", Attack::Dead { clients: 200 }),
    ("TCP connections", Attack::Connections),
];

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let program = arguments.daemon.as_path();
    let span = if arguments.quick { Duration::from_millis(500) } else { Duration::from_secs(5) };
    println!(
        "| Flood | offered/s | received/s | dropped by the kernel | hit p50, p99 us | miss p50, p99 us | failed, lost |"
    );
    println!("|---|---|---|---|---|---|---|");
    for (name, attack) in ATTACKS {
        let seen = measure(program, attack, span)?;
        let [hit_half, hit_most, miss_half, miss_most] =
            [(&seen.hits, 50), (&seen.hits, 99), (&seen.misses, 50), (&seen.misses, 99)].map(|(w, p)| percentile(w, p));
        println!(
            "| {name} | {:.0} | {:.0} | {:.1} % | {hit_half:.0}, {hit_most:.0} | {miss_half:.0}, {miss_most:.0} | {}, {} of {} |",
            seen.offered,
            seen.received,
            seen.kernel_share * 100.0,
            seen.failed,
            seen.lost,
            seen.failed + seen.lost + seen.hits.len() + seen.misses.len(),
        );
    }
    println!("\nResident memory of 65,536 queries that wait: {}", waiting_memory(program)?);
    Ok(())
}

/// What the client saw, and what the flood came to.
struct Seen {
    offered: f64,
    received: f64,
    /// Of what was sent.
    kernel_share: f64,
    hits: Vec<Duration>,
    misses: Vec<Duration>,
    failed: usize,
    lost: usize,
}

fn measure(program: &Path, attack: Attack, span: Duration) -> anyhow::Result<Seen> {
    let upstream = answering()?;
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let daemon = Daemon::start(program, upstream, silent.local_addr()?, "")?;
    let (address, hit) = (daemon.address, query("www.example"));
    let client = client_at(Ipv4Addr::new(127, 0, 0, 3), address)?;
    client.send(&hit)?;
    client.recv(&mut [0; 512]).context("no answer at all")?;

    let flooders: Vec<UdpSocket> = match attack {
        Attack::Hits { on_other_worker } => vec![daemon.socket_beside(&client, on_other_worker)?],
        Attack::HitsOfMany | Attack::Dead { clients: 200 } => {
            (0..200).map(|n| client_at(Ipv4Addr::from_bits(0x7f42_0001 + n), address)).collect::<Result<_, _>>()?
        }
        Attack::Dead { .. } => vec![client_at(Ipv4Addr::new(127, 0, 0, 2), address)?],
        Attack::None | Attack::Connections => Vec::new(),
    };
    let is_over = AtomicBool::new(false);
    let before = daemon.counts()?;
    let start = Instant::now();
    let (mut hits, mut misses, mut lost) = (Vec::new(), Vec::new(), 0);
    let mut failed = 0;
    let offered = thread::scope(|scope| -> anyhow::Result<u64> {
        let flooding = scope.spawn(|| {
            // A flood comes from elsewhere: it takes no core from those that it is to be measured at.
            let _ = rustix::process::setpriority_process(None, 19);
            let mut outbox = Outbox::new(BATCH, 128);
            let dead = query(&format!("{:016x}.dead.example", 0));
            let mut number = 0_u64;
            while !is_over.load(Relaxed) {
                match attack {
                    Attack::None => thread::sleep(Duration::from_millis(10)),
                    Attack::Connections => drop(TcpStream::connect(address)),
                    _ => {}
                }
                for socket in &flooders {
                    for _ in 0..BATCH {
                        number += 1;
                        let payload = outbox.buffer();
                        payload.clear();
                        match attack {
                            Attack::Dead { .. } => {
                                payload.extend_from_slice(&dead);
                                // Behind the header and the length of the label.
                                let digits = (0..16).map(|digit| HEX[(number >> (digit * 4) & 15) as usize]);
                                payload[13..29].iter_mut().zip(digits).for_each(|(octet, digit)| *octet = digit);
                            }
                            _ => payload.extend_from_slice(&hit),
                        }
                        payload[..2].copy_from_slice(&(number as u16).to_be_bytes());
                        outbox.queue_connected();
                    }
                    outbox.send(socket.as_fd());
                }
            }
            number
        });
        for number in 0.. {
            let due = start + PACE * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // Who waits for what is lost asks less.
            if start.elapsed() >= span {
                break;
            }
            let (wire, waits) = match number % 2 {
                0 => (hit.clone(), &mut hits),
                _ => (query(&format!("n{number}.victim.example")), &mut misses),
            };
            let asked = Instant::now();
            client.send(&wire)?;
            let mut buffer = [0; 512];
            loop {
                match client.recv(&mut buffer) {
                    // One that comes too late is lost.
                    Ok(_) if buffer[..2] != wire[..2] => {}
                    Ok(_) if buffer[3] & 0x0f != 0 => break failed += 1,
                    Ok(_) => break waits.push(asked.elapsed()),
                    Err(_) => break lost += 1,
                }
            }
        }
        is_over.store(true, Relaxed);
        flooding.join().map_err(|_| anyhow::anyhow!("the flood has panicked"))
    })?;
    let elapsed = start.elapsed().as_secs_f64();
    // What lies in the queues is still taken in.
    thread::sleep(Duration::from_millis(200));
    let after = daemon.counts()?;
    let grown = |name| after.get(name).unwrap_or(&0.0) - before.get(name).unwrap_or(&0.0);
    let (received, kernel_drops) =
        (grown("watershed_server_received_total"), grown("watershed_server_kernel_drops_total"));
    Ok(Seen {
        offered: offered as f64 / elapsed,
        received: received / elapsed,
        kernel_share: kernel_drops / (received + kernel_drops).max(1.0),
        hits,
        misses,
        failed,
        lost,
    })
}

/// What queries take while they wait, each for a name of its own.
fn waiting_memory(program: &Path) -> anyhow::Result<String> {
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let bounds = "max_in_flight = 65536\nmax_in_flight_per_client = 65536\n";
    let daemon = Daemon::start(program, answering()?, silent.local_addr()?, bounds)?;
    let client = client_at(Ipv4Addr::new(127, 0, 0, 2), daemon.address)?;
    let before = daemon.resident_kib()?;
    let (mut most, mut resident) = (0.0f64, 0);
    for number in 0..80_000 {
        client.send(&query(&format!("n{number:012}.dead.example")))?;
        if number % 4096 == 4095 {
            let waiting = *daemon.counts()?.get("watershed_resolve_waiting").unwrap_or(&0.0);
            if waiting > most {
                (most, resident) = (waiting, daemon.resident_kib()? - before);
            }
        }
    }
    Ok(format!("{resident} KiB more while {most} waited, {:.2} KiB each", resident as f64 / most))
}

/// A daemon that ends with this.
struct Daemon {
    child: Child,
    address: SocketAddr,
    control: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Daemon {
    fn start(program: &Path, upstream: SocketAddr, silent: SocketAddr, server: &str) -> anyhow::Result<Self> {
        let free = || -> anyhow::Result<SocketAddr> { Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?) };
        let (folder, address, control) = (tempfile::tempdir()?, free()?, free()?);
        let file = folder.path().join("watershed.toml");
        let config = format!(
            "[server]\nlisten = [\"{address}\"]\nworkers = 2\n{server}\n[control]\nlisten = \"{control}\"\n[zones]\nhosts = []\n\
             [[forward]]\nsuffixes = [\".\"]\nupstreams = [\"{upstream}\"]\n\
             [[forward]]\nsuffixes = [\"dead.example\"]\nupstreams = [\"{silent}\"]\n"
        );
        fs::write(&file, config)?;
        let mut command = Command::new(program);
        command.args(["run", "--config"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
        let daemon = Self { child: command.spawn()?, address, control, _folder: folder };
        let start = Instant::now();
        while daemon.counts().is_err() {
            ensure!(start.elapsed() < Duration::from_secs(10), "the daemon has not started");
            thread::sleep(Duration::from_millis(20));
        }
        Ok(daemon)
    }

    /// The metrics, summed over their labels.
    fn counts(&self) -> anyhow::Result<HashMap<String, f64>> {
        let mut stream = TcpStream::connect(self.control)?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.control)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let mut counts = HashMap::new();
        for (series, value) in text.lines().filter_map(|line| line.rsplit_once(' ')) {
            let name = series.split('{').next().unwrap_or_default().to_owned();
            *counts.entry(name).or_default() += value.parse::<f64>().unwrap_or(0.0);
        }
        Ok(counts)
    }

    fn resident_kib(&self) -> anyhow::Result<i64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// A socket whose queries come to the same worker as this client's, or to the other. While the daemon stands still, the
    /// queue in which a datagram lies tells whose it is.
    fn socket_beside(&self, client: &UdpSocket, on_other_worker: bool) -> anyhow::Result<UdpSocket> {
        let signal = |name: &str| Command::new("kill").args([name, &self.child.id().to_string()]).status();
        signal("-STOP")?;
        let found = (|| {
            let worker = self.worker_of(client)?;
            for _ in 0..64 {
                let socket = client_at(Ipv4Addr::new(127, 0, 0, 2), self.address)?;
                if (self.worker_of(&socket)? == worker) != on_other_worker {
                    return Ok(socket);
                }
            }
            anyhow::bail!("64 ports, and all of one worker")
        })();
        signal("-CONT")?;
        // What was asked to find out is answered.
        let _ = client.recv(&mut [0; 512]);
        found
    }

    fn worker_of(&self, client: &UdpSocket) -> anyhow::Result<String> {
        let port = format!("0100007F:{:04X}", self.address.port());
        let queues = || -> anyhow::Result<Vec<[String; 2]>> {
            let table = fs::read_to_string("/proc/net/udp")?;
            let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            Ok(rows.filter(|row| row.get(1) == Some(&&*port)).map(|row| [row[9].into(), row[4].into()]).collect())
        };
        let before = queues()?;
        client.send(&query("www.example"))?;
        let grown = queues()?.into_iter().find(|queue| !before.contains(queue)).context("no queue has grown")?;
        let [socket, _] = grown;
        Ok(socket)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An upstream that answers every query for an address at once.
fn answering() -> anyhow::Result<SocketAddr> {
    let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?);
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Some(name) = buffer[12..length].iter().position(|&octet| octet == 0) else { continue };
            let mut reply = buffer[..12 + name + 5].to_vec();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 1, 44, 0, 4, 192, 0, 2, 1]);
            let _ = socket.send_to(&reply, from);
        }
    });
    Ok(address)
}

fn client_at(ip: Ipv4Addr, server: SocketAddr) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((ip, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

/// Each has an id of its own.
fn query(qname: &str) -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let qname: Name = qname.parse().unwrap_or_else(|_| Name::root());
    let id = NEXT.fetch_add(1, Relaxed) as u16;
    let edns = Some(UpstreamEdns { udp_size: 1232, dnssec_ok: false, cookie: &[] });
    let (qtype, qclass) = (Rtype::A, Class::IN);
    let mut wire = Vec::new();
    UpstreamQuery { id, qname: &qname, qtype, qclass, checking_disabled: false, edns }.write(&mut wire);
    wire
}

/// In microseconds.
fn percentile(waits: &[Duration], percent: usize) -> f64 {
    let mut waits = waits.to_vec();
    waits.sort();
    waits.get((waits.len() * percent / 100).min(waits.len().saturating_sub(1))).map_or(0.0, |w| w.as_secs_f64() * 1e6)
}

const HEX: &[u8; 16] = b"0123456789abcdef";
/// Queries that leave with one system call.
const BATCH: usize = 64;
/// From one query of the client to the next.
const PACE: Duration = Duration::from_millis(2);
