//! What floods are made of: clients at many addresses, and upstreams that keep pace with any of them, or never answer.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::{Daemon, Message, PATIENCE, free_address, query, wait_until};

/// How long the work of a whole flood may take on a machine that is busy with other things.
pub const LONG: Duration = PATIENCE.saturating_mul(3);

/// A UDP socket at an address of loopback, which is a client of its own to the daemon; only `server` can answer it.
pub fn client_at(ip: [u8; 4], server: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::from(ip), 0)).unwrap();
    // Room for the replies to a whole flood.
    SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
    socket.connect(server).unwrap();
    socket
}

/// What these clients are replied to, so many times in all, and whatever has come beyond that.
#[track_caller]
pub fn gather(clients: &[UdpSocket], expected: usize) -> Vec<Message> {
    let mut replies = Vec::new();
    let mut buffer = [0; 65_535];
    let mut take_all = || {
        for client in clients {
            client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
            while let Ok(length) = client.recv(&mut buffer) {
                replies.push(Message::from_wire(&buffer[..length]).expect("a reply"));
            }
        }
        replies.len()
    };
    wait_until(&format!("{expected} replies"), LONG, || (take_all() >= expected).then_some(()));
    replies
}

/// An address where datagrams vanish: neither an answer nor an error comes back. It lasts as long as the socket.
pub fn sink() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(free_address()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// An upstream that answers every query over UDP at once, without remembering any: A with 192.0.2.1, and everything else
/// with a TXT record of so many octets.
pub struct Quick {
    address: SocketAddr,
    answered: Arc<AtomicUsize>,
    ended: Arc<AtomicBool>,
}

impl Quick {
    pub fn new(text_bytes: usize) -> Self {
        let socket = UdpSocket::bind(free_address()).unwrap();
        // A loss on the way would be one more thing to tell apart.
        SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
        let address = socket.local_addr().unwrap();
        let (answered, ended) = <(Arc<AtomicUsize>, Arc<AtomicBool>)>::default();
        thread::spawn({
            let (answered, ended) = (answered.clone(), ended.clone());
            move || {
                let mut buffer = [0; 4096];
                let mut reply = Vec::new();
                while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    if ended.load(Ordering::Relaxed) {
                        return;
                    }
                    answer(&buffer[..length], text_bytes, &mut reply);
                    let _ = socket.send_to(&reply, from);
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Self { address, answered, ended }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many queries it has answered.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }
}

impl Drop for Quick {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = UdpSocket::bind((self.address.ip(), 0)).and_then(|socket| socket.send_to(&[], self.address));
    }
}

fn answer(query: &[u8], text_bytes: usize, reply: &mut Vec<u8>) {
    let question_end = 12 + query[12..].iter().position(|&octet| octet == 0).expect("a name") + 5;
    let qtype = [query[question_end - 4], query[question_end - 3]];
    reply.clear();
    reply.extend([query[0], query[1], 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    reply.extend(&query[12..question_end]);
    reply.extend([0xc0, 12, qtype[0], qtype[1], 0, 1, 0, 0, 1, 44]);
    let rdata = match qtype {
        [0, 1] => vec![192, 0, 2, 1],
        _ => [&[200][..], &[b'x'; 200]].concat().repeat(text_bytes.div_ceil(201)),
    };
    reply.extend((rdata.len() as u16).to_be_bytes());
    reply.extend(rdata);
}

/// Sends a query for each of these names, from one socket and as fast as it goes.
pub fn flood(socket: &UdpSocket, questions: impl Iterator<Item = String>) -> usize {
    let mut sent = 0;
    for question in questions {
        socket.send(&query(&question).edns(1232).to_wire()).unwrap();
        sent += 1;
    }
    sent
}

/// Sends a datagram with a source port that no socket need have. Needs root.
pub fn forge(from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)).unwrap();
    socket.bind(&SocketAddr::new(from.ip(), 0).into()).unwrap();
    let length = (8 + payload.len()) as u16;
    let mut datagram = Vec::new();
    for word in [from.port(), to.port(), length, 0] {
        datagram.extend(word.to_be_bytes()); // a checksum of zero is none
    }
    datagram.extend(payload);
    assert_eq!(socket.send_to(&datagram, &SocketAddr::new(to.ip(), 0).into()).unwrap(), datagram.len());
}

/// What has become of all that clients have sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub received: u64,
    pub replies: u64,
    pub dropped: u64,
    pub waiting: u64,
    /// These the kernel dropped before they were received.
    pub kernel_drops: u64,
}

impl Account {
    /// As one scrape has it.
    #[track_caller]
    pub fn of(daemon: &Daemon) -> Self {
        let text = daemon.get("/metrics").1;
        let sum = |name: &str| {
            let samples = text.lines().filter_map(|line| {
                let rest = line.strip_prefix(name)?;
                rest.starts_with(['{', ' ']).then(|| rest.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
            });
            samples.sum::<f64>() as u64
        };
        Self {
            received: sum("watershed_server_received_total"),
            replies: sum("watershed_server_replies_total"),
            dropped: sum("watershed_server_dropped_total"),
            waiting: sum("watershed_resolve_waiting"),
            kernel_drops: sum("watershed_server_kernel_drops_total"),
        }
    }

    /// Waits until all that was sent is received or dropped by the kernel, and none of it waits any more.
    #[track_caller]
    pub fn settled(daemon: &Daemon, sent: usize) -> Self {
        wait_until(&format!("what became of {sent} messages"), LONG, || {
            let account = Self::of(daemon);
            let is_all = account.received + account.kernel_drops == sent as u64;
            (is_all && account.waiting == 0 && account.is_balanced()).then_some(account)
        })
    }

    pub fn is_balanced(&self) -> bool {
        self.received == self.replies + self.dropped + self.waiting
    }
}

/// An address of loopback that differs for each number.
pub fn loopback(number: usize) -> IpAddr {
    let [_, _, high, low] = (number as u32 + 1).to_be_bytes();
    IpAddr::from([127, 66, high, low])
}
