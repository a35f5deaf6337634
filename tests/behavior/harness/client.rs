//! Clients: one query over UDP or TCP, or a TCP connection to do as one likes with.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use super::{Message, PATIENCE, message::QR};

/// Asks over UDP and demands a reply that belongs to the query.
#[track_caller]
pub fn udp(server: SocketAddr, query: &Message) -> Message {
    match exchange_udp(server, &query.to_wire(), PATIENCE) {
        Some(wire) => check(query, &wire),
        None => panic!("no reply to {} over UDP within {PATIENCE:?}", query.asked()),
    }
}

/// Sends any bytes over UDP; the reply's bytes, if there is one.
///
/// The socket is connected: a reply from another address than the one asked is none.
pub fn exchange_udp(server: SocketAddr, bytes: &[u8], patience: Duration) -> Option<Vec<u8>> {
    let socket = socket_for(server);
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.send(bytes).unwrap();
    let mut buffer = vec![0; 65_535];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

/// A UDP socket that only `server` can answer.
pub fn socket_for(server: SocketAddr) -> UdpSocket {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(server).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Asks over TCP and demands a reply that belongs to the query.
#[track_caller]
pub fn tcp(server: SocketAddr, query: &Message) -> Message {
    let mut connection = Tcp::connect(server);
    connection.send(&[query]);
    let wire = connection.receive_wire().unwrap_or_else(|| panic!("no reply to {} over TCP", query.asked()));
    check(query, &wire)
}

/// A TCP connection on which queries may be pipelined.
pub struct Tcp {
    pub stream: TcpStream,
}

impl Tcp {
    #[track_caller]
    pub fn connect(server: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&server, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream }
    }

    /// Sends all of them in one write.
    pub fn send(&mut self, queries: &[&Message]) {
        let bytes: Vec<u8> = queries.iter().flat_map(|query| framed(&query.to_wire())).collect();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next reply; `None` when the server closed the connection or fell silent.
    pub fn receive_wire(&mut self) -> Option<Vec<u8>> {
        read_framed(&mut self.stream)
    }

    #[track_caller]
    pub fn receive(&mut self) -> Message {
        Message::from_wire(&self.receive_wire().expect("a reply over TCP")).unwrap()
    }
}

/// A message with its length before it (RFC 1035 §4.2.2).
pub fn framed(wire: &[u8]) -> Vec<u8> {
    [&(wire.len() as u16).to_be_bytes(), wire].concat()
}

/// The next message of a stream.
pub fn read_framed(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut wire = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut wire).ok()?;
    Some(wire)
}

/// What holds of every reply to a well-formed query: our decoder and hickory's read it, and it is to that query.
#[track_caller]
fn check(query: &Message, wire: &[u8]) -> Message {
    let reply = Message::from_wire(wire).unwrap_or_else(|error| panic!("{}: {error}: {wire:02x?}", query.asked()));
    assert_eq!(reply.id, query.id, "{}", query.asked());
    assert!(reply.has(QR), "{}", query.asked());
    assert_eq!(reply.question, query.question, "letters included: {}", query.asked());
    assert_eq!(reply.edns.is_some(), query.edns.is_some(), "OPT as the query has it: {}", query.asked());
    // hickory refuses an empty RDATA, which DNS allows for types that it does not know.
    let records = reply.answer.iter().chain(&reply.authority).chain(&reply.additional);
    if records.clone().all(|record| !record.rdata.is_empty()) {
        let theirs = hickory_proto::op::Message::from_vec(wire);
        assert!(theirs.is_ok(), "hickory cannot read the reply to {}: {theirs:?}", query.asked());
    }
    reply
}
