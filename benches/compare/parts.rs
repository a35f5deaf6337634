//! What the measured servers stand between and are held against: the upstream, and programs that do the least that is
//! possible. Each runs as a process of its own.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use watershed::sys::{Inbox, Outbox, Poller, bind_udp};

use super::traffic;

/// Answers every query at once. As an upstream it is what all servers ask; as a server it is the limit for hits, for
/// nobody can do less than to turn datagrams round.
pub fn answer(listen: SocketAddr) -> io::Result<()> {
    let socket = bind_udp(listen)?;
    let poller = Poller::new()?;
    poller.add(socket.as_fd(), 0)?;
    let (mut inbox, mut outbox, mut tokens) = (Inbox::new(BATCH, BYTES), Outbox::new(BATCH, BYTES), Vec::new());
    loop {
        poller.wait(&mut tokens, None)?;
        let received = inbox.receive(socket.as_fd())?;
        for datagram in (0..received).filter_map(|slot| inbox.get(slot)) {
            if traffic::answer(datagram.payload, outbox.buffer()) {
                outbox.queue(datagram.peer, None);
            }
        }
        outbox.send(socket.as_fd());
    }
}

/// Sends every query on under another id, and its reply back: the limit for misses.
pub fn forward(listen: SocketAddr, upstream: SocketAddr) -> io::Result<()> {
    let clients = bind_udp(listen)?;
    let upstreams = UdpSocket::bind("127.0.0.1:0")?;
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

const BATCH: usize = 64;
const BYTES: usize = 1500;
