//! Clients that open connections, ask, and do not read.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::{
    client::{framed, read_framed},
    flood::loopback,
    message::{Message, query},
    *,
};

/// An upstream that answers by TCP, with some 60 KB of text.
fn long_winded() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer_all(stream));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream) -> Option<()> {
    let text = format!("\"{}\" ", "x".repeat(250)).repeat(240);
    while let Some(wire) = read_framed(&mut stream) {
        let question = Message::from_wire(&wire).ok()?;
        let answer = format!("{} 60 TXT {text}", question.qname());
        stream.write_all(&framed(&question.respond().answer(&answer).to_wire())).ok()?;
    }
    Some(())
}

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

fn rss_mib(daemon: &Daemon) -> u64 {
    daemon.resident_kib() >> 10
}

#[test]
fn replies_that_are_never_read_are_bounded_in_bytes() {
    let config = format!(
        "[[forward]]\nsuffixes = [\".\"]\nupstreams = [\"tcp://{}\"]\n\
         [[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n\
         [cache]\nsize = \"8MiB\"\n[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_connections_per_client = 512\n\
         [limits]\nconnection_bytes = \"2MiB\"\nclient_bytes = \"8MiB\"\ntotal_bytes = \"24MiB\"\n",
        long_winded()
    );
    let zone = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";
    for (case, clients, limit_mib) in [("one client", 1, 8), ("many clients", 64, 24)] {
        let daemon = Setup::new(&config).file("site.zone", zone).start();
        assert_eq!(daemon.tcp(&query("first.example TXT")).answer.len(), 1, "{case}");
        let before = rss_mib(&daemon);
        let mut most = 0;
        let mut attackers = Vec::new();
        for number in 0..64 {
            let mut attacker = connect(number % clients, daemon.address());
            // Each query is a miss, and its reply has some 60 KB.
            let queries = (0..64).map(|at| framed(&query(&format!("n{at}.c{number}.example TXT")).to_wire()));
            let _ = attacker.write_all(&queries.collect::<Vec<_>>().concat());
            attackers.push(attacker);
            let held = daemon.metric("watershed_budget_held_bytes", &[]) as u64 >> 20;
            assert!(held <= limit_mib * 5 / 4, "{case}: {held} MiB held");
            most = rss_mib(&daemon).max(most);
            assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.1", "{case}");
        }
        wait_until("the data to be gone", PATIENCE, || {
            most = rss_mib(&daemon).max(most);
            (daemon.metric("watershed_budget_held_bytes", &[]) == 0.0).then_some(())
        });
        let exceeded = ["connection", "client", "total"]
            .map(|limit| daemon.metric("watershed_budget_exceeded_total", &[("limit", limit)]));
        assert!(exceeded.iter().sum::<f64>() > 0.0, "{case}: {exceeded:?}");
        // Of 240 MB: what may wait, the cache, and what is under way in the exchanges.
        assert!(most - before < 100, "{case}: {before} MiB, then {most}");
        // The exchanges that nobody waits for any more end first, after four seconds at most.
        let start = std::time::Instant::now();
        while rss_mib(&daemon) >= before + 40 {
            let now = rss_mib(&daemon);
            assert!(start.elapsed() < 2 * PATIENCE, "{case}: {before} MiB, at most {most}, still {now}");
            thread::sleep(Duration::from_millis(100));
        }
        // The upstream may still be busy with what nobody waits for.
        let mut number = 0;
        wait_until("an answer of the upstream", PATIENCE, || {
            number += 1;
            (daemon.tcp(&query(&format!("last{number}.example TXT"))).answer.len() == 1).then_some(())
        });
    }
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
    drop(attackers);
    let _ = honest.read(&mut [0]);
}

#[test]
fn a_network_opens_no_more_connections_a_second_than_it_may() {
    let config = "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_accept_rate = 20\n[server.rate_limit]\nexempt = []\n";
    let daemon = Setup::new(config).start();
    let attackers: Vec<_> = (0..200).map(|number| connect(number % 50, daemon.address())).collect();
    let refused = || daemon.metric("watershed_server_tcp_refused_total", &[("reason", "rate")]);
    wait_until("most of them to be closed", PATIENCE, || (refused() >= 100.0).then_some(()));
    drop(attackers);
}
