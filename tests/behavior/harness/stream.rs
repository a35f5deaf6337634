//! A stream of queries that does not stop whatever happens to the daemon, and what became of each.

use std::{
    collections::HashMap,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{
    Message, PATIENCE, Tcp,
    client::{framed, socket_for},
    query, wait_until,
};

/// Clients that ask for names below `stream.example`, a quarter of them new each time; the upstream is to say `192.0.2.1`.
/// Where the machine is too busy for it to say so in time, a failure is an answer too.
///
/// Nobody asks twice over UDP: a query that is lost stays lost. Over TCP one client opens a connection for each query, and
/// another asks again on a new connection when its own was closed, as it must (RFC 7766 §6.2.4).
pub struct Stream {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    is_over: AtomicBool,
    asked: AtomicUsize,
    answered: AtomicUsize,
    failed: AtomicUsize,
}

impl Stream {
    /// Clients of this server: several ports over UDP, a hundred queries a second in all, and two over TCP.
    pub fn start(server: SocketAddr) -> Self {
        let shared = Arc::new(Shared {
            server,
            is_over: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
        });
        let mut clients = Vec::new();
        let mut spawn = |client: fn(&Shared)| {
            let shared = shared.clone();
            clients.push(thread::spawn(move || client(&shared)));
        };
        spawn(Shared::ask_by_datagrams);
        spawn(Shared::ask_by_connections);
        spawn(Shared::ask_by_one_connection);
        Self { shared, clients }
    }

    /// Waits until so many more are answered.
    #[track_caller]
    pub fn wait_for_more(&self, count: usize) {
        let wanted = self.answered() + count;
        wait_until("answers to the stream", PATIENCE, || (self.answered() >= wanted).then_some(()));
    }

    pub fn answered(&self) -> usize {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Ends it and demands that every query was answered.
    #[track_caller]
    pub fn end(mut self) -> usize {
        self.shared.is_over.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("a client of the stream");
        }
        let (asked, answered) = (self.shared.asked.load(Ordering::Relaxed), self.answered());
        assert_eq!(asked, answered, "queries without an answer");
        let failed = self.shared.failed.load(Ordering::Relaxed);
        assert!(failed <= answered / 4, "{failed} failures among {answered} answers");
        answered
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed)
    }

    fn next(&self, client: &str) -> Message {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let label = if !number.is_multiple_of(4) { "known".to_owned() } else { format!("new{number}") };
        query(&format!("{label}.{client}.stream.example A")).edns(1232)
    }

    fn settle(&self, reply: &[u8], asked: &Message) {
        let reply = Message::from_wire(reply).unwrap();
        assert_eq!(reply.id, asked.id, "{}", asked.asked());
        if reply.rcode_name() == "SERVFAIL" {
            self.failed.fetch_add(1, Ordering::Relaxed);
        } else {
            assert_eq!(reply.data(), ["192.0.2.1"], "{}", asked.asked());
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
    }

    fn ask_by_datagrams(&self) {
        let sockets: Vec<UdpSocket> = (0..6).map(|_| socket_for(self.server)).collect();
        sockets.iter().for_each(|socket| socket.set_read_timeout(Some(PACE)).unwrap());
        let mut open: Vec<HashMap<u16, Message>> = sockets.iter().map(|_| HashMap::new()).collect();
        let mut deadline = Instant::now() + PATIENCE;
        while self.goes_on() || (open.iter().any(|open| !open.is_empty()) && Instant::now() < deadline) {
            for (socket, open) in sockets.iter().zip(&mut open) {
                if self.goes_on() {
                    let question = self.next("udp");
                    socket.send(&question.to_wire()).unwrap();
                    open.insert(question.id, question);
                    deadline = Instant::now() + PATIENCE;
                }
                let mut buffer = [0; 2048];
                loop {
                    match socket.recv(&mut buffer) {
                        Ok(length) => {
                            let id = u16::from_be_bytes([buffer[0], buffer[1]]);
                            let question = open.remove(&id).expect("a reply to a query of this port, and only one");
                            self.settle(&buffer[..length], &question);
                        }
                        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                        Err(error) => panic!("the port is closed: {error}"),
                    }
                }
            }
        }
    }

    fn ask_by_connections(&self) {
        while self.goes_on() {
            let question = self.next("connections");
            let mut connection = Tcp::connect(self.server);
            connection.send(&[&question]);
            let reply = connection.receive_wire().expect("an answer to a query on a new connection");
            self.settle(&reply, &question);
            thread::sleep(PACE);
        }
    }

    fn ask_by_one_connection(&self) {
        let mut connection = Tcp::connect(self.server);
        while self.goes_on() {
            let question = self.next("connection");
            let start = Instant::now();
            let reply = loop {
                assert!(start.elapsed() < PATIENCE, "no answer on a connection that is open");
                let sent = std::io::Write::write_all(&mut connection.stream, &framed(&question.to_wire()));
                match sent.ok().and_then(|()| connection.receive_wire()) {
                    Some(reply) => break reply,
                    None => connection = Tcp::connect(self.server),
                }
            };
            self.settle(&reply, &question);
            thread::sleep(PACE);
        }
    }
}

/// Between two queries of a client. With it, what comes in while no process runs finds room in the sockets.
const PACE: Duration = Duration::from_millis(10);
