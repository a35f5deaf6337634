//! What the measured servers stand between and are held against: the upstream, and programs that do the least that is
//! possible. Each runs as a process of its own.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use rand::RngExt;
use watershed::sys::{Inbox, Outbox, Poller, bind_udp};

use super::traffic;

/// How an upstream answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// How long after the query.
    pub delay: Duration,
    /// How many of a thousand queries it does not hear.
    pub lost_permille: u32,
}

/// What an upstream has seen since it was last asked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    pub queries: u64,
    /// Different source ports of them.
    pub ports: u64,
}

/// Answers every query. As an upstream it is what all servers ask; as a server, with so many threads, it is the limit for
/// hits, for nobody can do less than to turn datagrams round.
pub fn answer(listen: SocketAddr, threads: u32, manner: Manner) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer_stream(stream));
        }
    });
    for _ in 1..threads {
        thread::spawn(move || answer_datagrams(listen, manner));
    }
    answer_datagrams(listen, manner)
}

/// At once, and uncounted: who is asked by TCP may ask by TCP, too.
fn answer_stream(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut length, mut query, mut reply) = ([0; 2], Vec::new(), Vec::new());
    loop {
        stream.read_exact(&mut length)?;
        query.resize(u16::from_be_bytes(length).into(), 0);
        stream.read_exact(&mut query)?;
        if traffic::answer(&query, &mut reply) {
            stream.write_all(&[&(reply.len() as u16).to_be_bytes(), &reply[..]].concat())?;
        }
    }
}

fn answer_datagrams(listen: SocketAddr, manner: Manner) -> io::Result<()> {
    let socket = bind_udp(listen)?;
    let poller = Poller::new()?;
    poller.add(socket.as_fd(), 0)?;
    let (mut inbox, mut outbox, mut tokens) = (Inbox::new(BATCH, BYTES), Outbox::new(BATCH, BYTES), Vec::new());
    let mut rng = rand::rng();
    let (mut queries, mut ports, mut port_count) = (0_u64, vec![false; 1 << 16], 0_u64);
    let mut delayed: VecDeque<(Instant, SocketAddr, Vec<u8>)> = VecDeque::new();
    loop {
        poller.wait(&mut tokens, delayed.front().map(|_| Duration::ZERO))?;
        let received = if tokens.is_empty() { 0 } else { inbox.receive(socket.as_fd())? };
        let due = (!manner.delay.is_zero()).then(|| Instant::now() + manner.delay);
        for datagram in (0..received).filter_map(|slot| inbox.get(slot)) {
            if outbox.is_full() {
                outbox.send(socket.as_fd());
            }
            if datagram.payload == SEEN {
                outbox.buffer().clear();
                outbox.buffer().extend([queries, port_count].map(u64::to_be_bytes).as_flattened());
                outbox.queue(datagram.peer, None);
                (queries, port_count) = (0, 0);
                ports.fill(false);
                continue;
            }
            queries += 1;
            port_count += u64::from(!std::mem::replace(&mut ports[usize::from(datagram.peer.port())], true));
            let is_lost = manner.lost_permille > 0 && rng.random_ratio(manner.lost_permille, 1000);
            if is_lost || !traffic::answer(datagram.payload, outbox.buffer()) {
                continue;
            }
            match due {
                Some(due) => delayed.push_back((due, datagram.peer, outbox.buffer().clone())),
                None => outbox.queue(datagram.peer, None),
            }
        }
        while delayed.front().is_some_and(|(due, ..)| *due <= Instant::now())
            && let Some((_, peer, message)) = delayed.pop_front()
        {
            if outbox.is_full() {
                outbox.send(socket.as_fd());
            }
            outbox.buffer().clear();
            outbox.buffer().extend(message);
            outbox.queue(peer, None);
        }
        outbox.send(socket.as_fd());
        if received == 0 && !delayed.is_empty() {
            // The poller counts in milliseconds.
            thread::sleep(MOMENT);
        }
    }
}

/// Asks an upstream what it has seen; it then starts anew.
pub fn seen(upstream: SocketAddr) -> io::Result<Seen> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(upstream)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(SEEN)?;
    let mut reply = [[0; 8]; 2];
    socket.recv(reply.as_flattened_mut())?;
    let [queries, ports] = reply.map(u64::from_be_bytes);
    Ok(Seen { queries, ports })
}

/// Sends every query on under another id, and its reply back: the limit for misses.
pub fn forward(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    let clients = bind_udp(listen)?;
    let upstreams = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    upstreams.set_nonblocking(true)?;
    upstreams.connect(upstream)?;
    let poller = Poller::new()?;
    poller.add(clients.as_fd(), 0)?;
    poller.add(upstreams.as_fd(), 1)?;
    let (mut inbox, mut outbox, mut tokens) = (Inbox::new(BATCH, BYTES), Outbox::new(BATCH, BYTES), Vec::new());
    let mut askers = vec![(listen, [0; 2]); 1 << 16];
    let mut next = 0u16;
    loop {
        poller.wait(&mut tokens, None)?;
        for &token in &tokens {
            let (from, to) = if token == 0 { (&clients, &upstreams) } else { (&upstreams, &clients) };
            let received = inbox.receive(from.as_fd())?;
            for datagram in (0..received).filter_map(|slot| inbox.get(slot)) {
                let Some((id, rest)) = datagram.payload.split_first_chunk() else { continue };
                let buffer = outbox.buffer();
                buffer.clear();
                if token == 0 {
                    next = next.wrapping_add(1);
                    askers[usize::from(next)] = (datagram.peer, *id);
                    buffer.extend(next.to_be_bytes());
                    buffer.extend(rest);
                    outbox.queue_connected();
                } else {
                    let (peer, id) = askers[usize::from(u16::from_be_bytes(*id))];
                    buffer.extend(id);
                    buffer.extend(rest);
                    outbox.queue(peer, None);
                }
            }
            outbox.send(to.as_fd());
        }
    }
}

/// No query: what it asks is what was seen.
const SEEN: &[u8] = b"?";
const BATCH: usize = 64;
const BYTES: usize = 1500;
const MOMENT: Duration = Duration::from_micros(50);
