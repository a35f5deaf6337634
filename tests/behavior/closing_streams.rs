//! Servers that close a stream while queries are open on it: those go out again until their time is up (RFC 7766 §6.2.4).

use std::{
    collections::HashMap,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use tokio_rustls::rustls::{self, ServerConfig, ServerConnection, StreamOwned};

use crate::harness::{
    client::{framed, socket_for},
    programs::Process,
    *,
};

/// A server that answers some queries on each connection, and then closes it while others may be open.
struct Closing {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    /// How often each question came.
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

/// How a connection ends.
#[derive(Clone, Copy)]
enum End {
    /// In order, with what is still sent read.
    Orderly,
    /// With a reset, for what has come is not read.
    Reset,
}

impl Closing {
    /// `answers` says how many queries the connection of a number gets answered.
    fn start(
        answers: impl Fn(usize) -> usize + Send + Sync + 'static,
        end: End,
        tls: Option<Arc<ServerConfig>>,
    ) -> Self {
        let listener = TcpListener::bind(free_address()).unwrap();
        let server =
            Self { address: listener.local_addr().unwrap(), connections: Arc::default(), asked: Arc::default() };
        let (connections, asked) = (server.connections.clone(), server.asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let answers = answers(connections.fetch_add(1, Relaxed));
                let (tls, asked) = (tls.clone(), asked.clone());
                thread::spawn(move || serve(stream, answers, end, tls, &asked));
            }
        });
        server
    }

    fn connections(&self) -> usize {
        self.connections.load(Relaxed)
    }

    /// How often the question that came most often did.
    fn most_asked(&self) -> usize {
        self.asked.lock().unwrap().values().copied().max().unwrap_or(0)
    }
}

fn serve(
    stream: TcpStream,
    answers: usize,
    end: End,
    tls: Option<Arc<ServerConfig>>,
    asked: &Mutex<HashMap<String, usize>>,
) -> io::Result<()> {
    let plain = stream.try_clone()?;
    match tls {
        None => {
            let mut stream = stream;
            answer(&mut stream, answers, asked)?;
        }
        Some(config) => {
            let connection = ServerConnection::new(config).map_err(io::Error::other)?;
            let mut stream = StreamOwned::new(connection, stream);
            answer(&mut stream, answers, asked)?;
            stream.conn.send_close_notify();
            stream.flush()?;
        }
    }
    if let End::Orderly = end {
        plain.shutdown(Shutdown::Write)?;
        io::copy(&mut &plain, &mut io::sink())?;
    }
    Ok(())
}

fn answer(stream: &mut (impl Read + Write), answers: usize, asked: &Mutex<HashMap<String, usize>>) -> io::Result<()> {
    for _ in 0..answers {
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut wire = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut wire)?;
        let question = Message::from_wire(&wire).map_err(io::Error::other)?;
        *asked.lock().unwrap().entry(question.asked()).or_default() += 1;
        let response = question.respond().answer(&format!("{} 60 A 192.0.2.1", question.qname()));
        stream.write_all(&framed(&response.to_wire()))?;
        stream.flush()?;
    }
    Ok(())
}

fn forwarding_to(upstreams: &[String], keys: &str) -> Setup {
    Setup::new(&format!("[[forward]]\nsuffixes = [\".\"]\nupstreams = {upstreams:?}\n{keys}"))
}

/// Asks for so many names with so many queries open at a time; every one has to be answered with an address.
#[track_caller]
fn demand_answers(daemon: &Daemon, names: usize, open: usize) {
    let client = socket_for(daemon.address());
    let mut buffer = [0; 512];
    let (mut sent, mut answered) = (0, 0);
    while answered < names {
        while sent < names && sent - answered < open {
            client.send(&query(&format!("name{sent}.example A")).to_wire()).unwrap();
            sent += 1;
        }
        let length = client.recv(&mut buffer).unwrap_or_else(|error| panic!("after {answered} answers: {error}"));
        let reply = Message::from_wire(&buffer[..length]).unwrap();
        assert_eq!(reply.data(), ["192.0.2.1"], "after {answered} answers: {reply:?}");
        answered += 1;
    }
}

#[test]
fn no_query_fails_when_its_server_closes_streams_after_some_answers() {
    let tls = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth();
    let key = rustls::pki_types::PrivateKeyDer::try_from(tls.signing_key.serialize_der()).unwrap();
    let acceptor = Arc::new(config.with_single_cert(vec![tls.cert.der().clone()], key).unwrap());
    for (scheme, end) in [("tcp", End::Orderly), ("tcp", End::Reset), ("tls", End::Orderly)] {
        for (case, answers) in
            [("one", (|_| 1) as fn(usize) -> usize), ("seven", |_| 7), ("one to nine", |connection| 1 + connection % 9)]
        {
            let is_tls = scheme == "tls";
            let server = Closing::start(answers, end, is_tls.then(|| acceptor.clone()));
            let name = if is_tls { "#dns.example" } else { "" };
            let upstream = format!("{scheme}://{}{name}", server.address);
            let keys = if is_tls { "ca_file = \"ca.pem\"\n" } else { "" };
            let daemon = forwarding_to(&[upstream], keys).file("ca.pem", &tls.cert.pem()).start();
            demand_answers(&daemon, 150, 20);
            assert!(server.most_asked() <= 16, "{scheme}, {case}: a query was sent {} times", server.most_asked());
            assert!(server.connections() <= 400, "{scheme}, {case}: {} connections", server.connections());
        }
    }
}

#[test]
fn dnsmasq_answers_a_hundred_queries_on_a_stream_and_none_beyond_fails() {
    let Some(program) = require::program("dnsmasq") else { return };
    let address = free_address();
    let folder = tempfile::tempdir().unwrap();
    let mut command = Command::new(program);
    command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=/dev/null", "--bind-interfaces"]);
    command.args(["--user=root", "--cache-size=0", "--address=/example/192.0.2.1"]);
    command.arg(format!("--pid-file={}", folder.path().join("pid").display()));
    command.arg(format!("--port={}", address.port())).arg(format!("--listen-address={}", address.ip()));
    let _dnsmasq = Process::start(&mut command, folder);
    wait_until("dnsmasq", PATIENCE, || TcpStream::connect(address).ok());
    let daemon = forwarding_to(&[format!("tcp://{address}")], "").start();
    demand_answers(&daemon, 3000, 150);
}

#[test]
fn a_server_that_closes_at_once_is_not_flooded_and_another_takes_over() {
    let server = Closing::start(|_| 0, End::Orderly, None);
    let closing = format!("tcp://{}", server.address);
    let daemon = forwarding_to(std::slice::from_ref(&closing), "").start();
    let start = Instant::now();
    let client = socket_for(daemon.address());
    for number in 0..40 {
        client.send(&query(&format!("name{number}.example A")).edns(1232).to_wire()).unwrap();
    }
    let mut buffer = [0; 512];
    for _ in 0..40 {
        let length = client.recv(&mut buffer).expect("a failure for each");
        let reply = Message::from_wire(&buffer[..length]).unwrap();
        assert_eq!(reply.rcode_name(), "SERVFAIL");
        assert!(!reply.extended_errors().is_empty(), "{reply:?}");
    }
    let opened = server.connections() as u128;
    let most = 6 + start.elapsed().as_millis() / 400;
    assert!((2..=most).contains(&opened), "{opened} connections for 40 queries in {:?}", start.elapsed());

    let good = Upstream::saying("192.0.2.1");
    let daemon = forwarding_to(&[closing, format!("tcp://{}", good.address())], "").start();
    let before = server.connections();
    demand_answers(&daemon, 40, 10);
    assert!(server.connections() - before < 40, "{} connections", server.connections() - before);
}
