//! What the tests stand on: a real daemon, scripted upstreams, clients, and the programs of others.
//!
//! Nothing here sleeps in hope: whoever waits, waits for an event, and a deadline turns its absence into a failure.

pub mod agent;
pub mod catalog;
pub mod client;
pub mod daemon;
pub mod flood;
pub mod http;
pub mod manager;
pub mod memory_group;
pub mod message;
pub mod netns;
pub mod programs;
pub mod require;
pub mod stream;
pub mod upstream;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

pub use client::{Tcp, exchange_udp, tcp, udp};
pub use daemon::{Daemon, Setup};
pub use manager::Manager;
pub use message::{Message, query};
pub use stream::Stream;
pub use upstream::{Act, Asked, Gate, Upstream};

/// How long anything may take on a machine that is busy with other things. Where time is the promise, a test measures it.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Asks again and again until `attempt` gives a value, for states that no event announces.
///
/// Panics after `limit`, naming what was waited for.
#[track_caller]
pub fn wait_until<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A loopback address that no other test uses, with a port free for UDP and TCP.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    loop {
        let host = (std::process::id() << 6).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) & 0x00ff_ffff;
        // Above 127.1: the addresses below are left to the defaults of programs and to those who run the tests.
        let ip = Ipv4Addr::from(0x7f00_0000 | host | 0x0001_0000);
        if matches!(ip.octets()[3], 0 | 255) {
            continue;
        }
        let Ok(stream) = TcpListener::bind((ip, 0)) else { continue };
        let address = stream.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// A free port of 127.0.0.1, for programs that take no other address. It lies below the ports that the kernel gives to
/// whoever asks for any, so it is not lost again before it is used.
pub fn free_port() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = (std::process::id() << 4).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_240 + (number % 22_000) as u16));
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return address;
        }
    }
}

/// Sends a signal, by its name without SIG, to a process that the caller started.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {pid}")).status().unwrap();
    assert!(status.success(), "cannot signal {pid}");
}

/// Stops a process that the caller started, and returns when each of its threads stands still: the signal is sent long
/// before the last of them has heard of it.
pub fn freeze(pid: u32) {
    signal(pid, "STOP");
    wait_until("all threads to stand still", PATIENCE, || {
        let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
        // The state follows the name, which stands in brackets (proc(5)).
        let is_stopped = |stat: String| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"));
        threads.all(|thread| fs::read_to_string(thread.path().join("stat")).is_ok_and(is_stopped)).then_some(())
    });
}

/// Lets a process go on that was stopped.
pub fn thaw(pid: u32) {
    signal(pid, "CONT");
}

/// What lies unread in each of the UDP sockets bound to this IPv4 address, as the kernel writes it, by inode.
pub fn udp_queues(address: SocketAddr) -> BTreeMap<String, String> {
    let IpAddr::V4(ip) = address.ip() else { panic!("{address} is not in /proc/net/udp") };
    let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port());
    // The kernel hands the table out by pages, and leaves rows out or repeats them if others open and close sockets meanwhile.
    let (mut before, mut agreeing) = (None, 0);
    wait_until(&format!("three equal readings of the sockets of {address}"), PATIENCE, || {
        let table = fs::read_to_string("/proc/net/udp").unwrap();
        let fields = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mine = fields.filter(|row| row.get(1) == Some(&&*local));
        let queues: BTreeMap<_, _> = mine.map(|row| (row[9].to_owned(), row[4].to_owned())).collect();
        agreeing = if before.as_ref() == Some(&queues) { agreeing + 1 } else { 1 };
        before = Some(queues);
        before.clone().filter(|_| agreeing == 3)
    })
}

/// Runs a program to its end and gives what it printed; panics if it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
