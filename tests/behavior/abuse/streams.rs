//! Clients that open connections, ask, and do not read.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};

use super::lives_and_ends;
use crate::harness::{
    client::{framed, read_framed},
    flood::loopback,
    message::{Message, query},
    *,
};

/// A connection from this loopback address that takes in as little as possible.
fn connect(number: usize, server: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.bind(&SocketAddr::new(loopback(number), 0).into()).unwrap();
    socket.connect_timeout(&server.into(), PATIENCE).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    stream
}

#[test]
fn a_displaced_connection_counts_until_its_socket_is_closed() {
    let text = format!("\"{}\" ", "x".repeat(250)).repeat(200);
    let zone =
        format!("$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nbig TXT {text}\nwww A 192.0.2.1\n");
    let config = "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n\
                  [server]\nlisten = [\"127.0.0.1:0\"]\ntcp_connections = 40\ntcp_message_timeout = \"1m\"\n";
    let daemon = Setup::new(config).file("site.zone", &zone).start();
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    let at_start = descriptors();
    let questions = framed(&query("big.site.example TXT").to_wire()).repeat(100);
    let mut attackers = Vec::new();
    for number in 0..120 {
        // It is stalled in a write, which would last a minute.
        let mut attacker = connect(number, daemon.address());
        let _ = attacker.write_all(&questions);
        attackers.push(attacker);
        // One more may have been accepted and wait for its place.
        let open = descriptors() - at_start;
        assert!(open <= 40 + 4, "{open} descriptors for 40 connections");
    }
    let mut honest = connect(200, daemon.address());
    SockRef::from(&honest).set_read_timeout(Some(PATIENCE)).unwrap();
    honest.write_all(&framed(&query("www.site.example A").to_wire())).unwrap();
    let reply = read_framed(&mut honest).expect("a reply for the honest client");
    assert_eq!(Message::from_wire(&reply).unwrap().one(), "192.0.2.1");
    let displaced = daemon.metric("watershed_server_tcp_refused_total", &[("reason", "displaced")]);
    assert!(displaced >= 80.0, "{displaced}");
    lives_and_ends(daemon, "with connections that are stalled");
    drop((attackers, honest));
}

#[test]
fn a_network_opens_no_more_connections_a_second_than_it_may() {
    let config = "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_accept_rate = 20\n[server.rate_limit]\nexempt = []\n";
    let daemon = Setup::new(config).start();
    let attackers: Vec<_> = (0..200).map(|number| connect(number % 50, daemon.address())).collect();
    let refused = || daemon.metric("watershed_server_tcp_refused_total", &[("reason", "rate")]);
    wait_until("most of them to be closed", PATIENCE, || (refused() >= 100.0).then_some(()));
    lives_and_ends(daemon, "with more connections than there may be");
    drop(attackers);
}
