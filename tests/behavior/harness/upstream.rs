//! A scripted upstream in the test process: it does to each query what the test says, and remembers all of them.

use std::{
    collections::BTreeSet,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use super::{
    Message, PATIENCE,
    client::{framed, read_framed},
    free_address, query, wait_until,
};

/// A query as it reached the upstream.
#[derive(Debug, Clone)]
pub struct Asked {
    pub message: Message,
    pub over_tcp: bool,
    /// The client's socket.
    pub from: SocketAddr,
    /// How many queries of this question came before it.
    pub earlier: usize,
}

/// What is done with a query; an empty list of acts leaves it unanswered.
#[derive(Debug, Clone)]
pub enum Act {
    /// Sends this.
    Reply(Message),
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends this from a port that was not asked; over UDP only.
    ReplyFromElsewhere(Message),
    /// Sends this from an address that was not asked; over UDP only.
    ReplyFromStranger(Message),
    /// Writes these octets without a length before them; over TCP only.
    Raw(Vec<u8>),
    /// Waits before the next act.
    Wait(Duration),
    /// Closes the TCP connection.
    Close,
    /// Resets the TCP connection.
    Reset,
}

/// An upstream on a loopback address, over UDP and TCP; it ends when this is dropped.
pub struct Upstream {
    address: SocketAddr,
    shared: Arc<Shared>,
}

type Script = dyn Fn(&Asked) -> Vec<Act> + Send + Sync;

struct Shared {
    script: Mutex<Arc<Script>>,
    asked: Mutex<Vec<Asked>>,
    ended: AtomicBool,
}

impl Upstream {
    /// An upstream on an address of its own. The script may block; each query has its own thread.
    pub fn new(script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Self {
        loop {
            let address = free_address();
            // A socket that some program has bound to any address may have taken the port meanwhile.
            if let (Ok(udp), Ok(tcp)) = (UdpSocket::bind(address), TcpListener::bind(address)) {
                return Self::on(address, udp, tcp, script);
            }
        }
    }

    /// An upstream on this address.
    pub fn at(address: SocketAddr, script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) -> Self {
        Self::on(address, UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap(), script)
    }

    /// An upstream on these sockets, which are bound to this address.
    pub fn on(
        address: SocketAddr,
        udp: UdpSocket,
        tcp: TcpListener,
        script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            asked: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        thread::spawn({
            let shared = shared.clone();
            move || shared.serve_udp(udp)
        });
        thread::spawn({
            let shared = shared.clone();
            move || shared.serve_tcp(tcp)
        });
        Self { address, shared }
    }

    /// An upstream that holds these records, and denies all else with a SOA record of minimum 60.
    pub fn holding(records: &[&str]) -> Self {
        Self::new(holding(records))
    }

    /// An upstream that answers every question for an A record with this address, and any other with nothing.
    pub fn saying(address: &'static str) -> Self {
        Self::new(saying(address))
    }

    /// The same, but it answers once the gate is opened.
    pub fn saying_behind_gate(address: &'static str) -> (Self, Gate) {
        let gate = Gate::default();
        let passed = gate.clone();
        let upstream = Self::new(move |asked| {
            passed.pass();
            saying(address)(asked)
        });
        (upstream, gate)
    }

    /// An upstream that never answers.
    pub fn silent() -> Self {
        Self::new(|_| vec![])
    }

    /// An upstream that answers every query so.
    pub fn failing(rcode: &'static str) -> Self {
        Self::new(move |asked| vec![Act::Reply(asked.message.respond().rcode(rcode))])
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Does something else from now on.
    pub fn change(&self, script: impl Fn(&Asked) -> Vec<Act> + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Arc::new(script);
    }

    /// Every query that came, in order, those sent again included.
    pub fn queries(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Every question that came, in order and in lower case. A busy machine has queries sent again, with the same id
    /// from the same socket; these are left out.
    pub fn asked(&self) -> Vec<String> {
        let mut known = BTreeSet::new();
        let mut is_new = |asked: &Asked| known.insert((asked.message.id, asked.from, asked.message.asked()));
        self.queries().into_iter().filter(|asked| is_new(asked)).map(|asked| asked.message.asked()).collect()
    }

    /// How often this question came, again without what was sent again.
    pub fn count(&self, question: &str) -> usize {
        let question = query(question).asked();
        self.asked().iter().filter(|asked| **asked == question).count()
    }

    /// Waits until this question has come so many times.
    #[track_caller]
    pub fn wait_for(&self, question: &str, times: usize) {
        wait_until(&format!("{times} times {question}"), PATIENCE, || (self.count(question) >= times).then_some(()));
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        // Each of the two threads is woken, sees that it has to end, and closes its socket; so the port is closed
        // when this returns.
        let mut any_port = self.address;
        any_port.set_port(0);
        let gone = || {
            let _ = UdpSocket::bind(any_port).and_then(|socket| socket.send_to(&[], self.address));
            let _ = TcpStream::connect(self.address);
            (UdpSocket::bind(self.address).is_ok() && TcpStream::connect(self.address).is_err()).then_some(())
        };
        if !thread::panicking() {
            wait_until("the end of an upstream", PATIENCE, gone);
        }
    }
}

impl Shared {
    fn serve_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = [0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let Some((asked, script)) = self.note(&buffer[..length], from, false) else { continue };
            let socket = Arc::downgrade(&socket);
            thread::spawn(move || {
                for act in script(&asked) {
                    // Gone with the upstream, so that an answer still due does not keep its port open.
                    let Some(socket) = socket.upgrade() else { return };
                    let _ = match act {
                        Act::Reply(message) => socket.send_to(&message.to_wire(), from),
                        Act::Bytes(bytes) => socket.send_to(&bytes, from),
                        Act::ReplyFromElsewhere(message) => {
                            let elsewhere = UdpSocket::bind((socket.local_addr().unwrap().ip(), 0)).unwrap();
                            elsewhere.send_to(&message.to_wire(), from)
                        }
                        Act::ReplyFromStranger(message) => {
                            let stranger = UdpSocket::bind(free_address()).unwrap();
                            stranger.send_to(&message.to_wire(), from)
                        }
                        Act::Wait(span) => {
                            drop(socket);
                            thread::sleep(span);
                            Ok(0)
                        }
                        Act::Raw(_) => Ok(0),
                        Act::Close | Act::Reset => return,
                    };
                }
            });
        }
    }

    fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        for stream in listener.incoming() {
            if self.ended.load(Ordering::Relaxed) {
                return;
            }
            let Ok(stream) = stream else { continue };
            let shared = self.clone();
            thread::spawn(move || shared.serve_connection(stream));
        }
    }

    fn serve_connection(self: Arc<Self>, mut stream: TcpStream) {
        let Ok(from) = stream.peer_addr() else { return };
        while let Some(wire) = read_framed(&mut stream) {
            let Some((asked, script)) = self.note(&wire, from, true) else { return };
            let Ok(mut stream) = stream.try_clone() else { return };
            thread::spawn(move || {
                for act in script(&asked) {
                    let _ = match act {
                        Act::Reply(message) => stream.write_all(&framed(&message.to_wire())),
                        Act::Bytes(bytes) => stream.write_all(&framed(&bytes)),
                        Act::Raw(octets) => stream.write_all(&octets),
                        Act::ReplyFromElsewhere(_) | Act::ReplyFromStranger(_) => Ok(()),
                        Act::Wait(span) => {
                            thread::sleep(span);
                            Ok(())
                        }
                        Act::Close => stream.shutdown(std::net::Shutdown::Both),
                        // Without time to linger, the last to let go of a connection resets it; it ends the reader, too.
                        Act::Reset => (socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)))
                            .and_then(|()| stream.shutdown(std::net::Shutdown::Read)),
                    };
                }
            });
        }
    }

    fn note(&self, wire: &[u8], from: SocketAddr, over_tcp: bool) -> Option<(Asked, Arc<Script>)> {
        let message = Message::from_wire(wire).ok()?;
        let mut all = self.asked.lock().unwrap();
        let question = message.asked();
        let earlier = all.iter().filter(|asked| asked.message.asked() == question).count();
        let asked = Asked { message, over_tcp, from, earlier };
        all.push(asked.clone());
        Some((asked, self.script.lock().unwrap().clone()))
    }
}

/// The script of an upstream that holds these records: an alias is followed as far as they go, a name without the
/// type is NODATA, any other NXDOMAIN.
pub fn holding(records: &[&str]) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync + use<> {
    let held = records.iter().fold(Message::default(), |message, line| message.answer(line)).answer;
    move |asked| {
        let mut response = asked.message.respond();
        let mut owner = asked.message.qname();
        let qtype = asked.message.qtype();
        loop {
            let of_owner: Vec<_> = held.iter().filter(|r| r.owner.eq_ignore_ascii_case(&owner)).collect();
            let found: Vec<_> = of_owner.iter().filter(|r| r.rtype == qtype || r.rtype == 5 || qtype == 255).collect();
            if found.is_empty() {
                if of_owner.is_empty() && response.answer.is_empty() {
                    response = response.rcode("NXDOMAIN");
                }
                return vec![Act::Reply(response.authority(SOA))];
            }
            for record in &found {
                response.answer.push((***record).clone());
                if response.answer.len() == 1 && owner == asked.message.qname() {
                    response.answer[0].owner = owner.clone();
                }
            }
            match found.iter().find(|record| record.rtype == 5 && qtype != 5) {
                Some(alias) => owner = alias.data(),
                None => return vec![Act::Reply(response)],
            }
        }
    }
}

/// The script of `Upstream::saying`.
pub fn saying(address: &'static str) -> impl Fn(&Asked) -> Vec<Act> + Send + Sync {
    move |asked| {
        let (question, response) = (&asked.message, asked.message.respond());
        vec![Act::Reply(match question.qtype() {
            1 => response.answer(&format!("{} 300 A {address}", question.qname())),
            _ => response.authority(SOA),
        })]
    }
}

/// Holds scripts back until a test has seen what it wants to see.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    /// Waits until it is open; a test that failed meanwhile is not waited for.
    pub fn pass(&self) {
        let open = self.0.0.lock().unwrap();
        drop(self.0.1.wait_timeout_while(open, 3 * PATIENCE, |open| !*open).unwrap());
    }
}

/// The SOA record with which a holding upstream denies.
pub const SOA: &str = ". 3600 SOA ns.example. host.example. 1 7200 900 86400 60";
