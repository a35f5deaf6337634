//! TCP: what a client may do with its connection, and what it may not do to others.

use std::{
    io::Write,
    net::{Ipv4Addr, Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use super::{Panel, Row, opt_look, row};
use crate::harness::{client::framed, daemon::forward, *};

/// What a client does with its connection.
enum Step {
    /// Writes these octets, in a segment of their own.
    Send(Vec<u8>),
    /// Says that it will write no more.
    Finish,
}

fn www() -> Message {
    query("www.example A")
}

fn framed_www() -> Vec<u8> {
    framed(&www().to_wire())
}

/// What comes of it: response codes, how often in a row each, and whether the connection is open then: `3 NOERROR, open`.
///
/// It is if a further query on it is answered; a client that has said that it will write no more waits for the end.
fn try_out(panel: &Panel, server: SocketAddr, row: &Row<Vec<Step>>) -> String {
    let mut connection = Tcp::connect(server);
    let mut is_finished = false;
    for step in &row.sent {
        // It may be closed already.
        let _ = match step {
            Step::Send(octets) => connection.stream.write_all(octets),
            Step::Finish => {
                is_finished = true;
                connection.stream.shutdown(Shutdown::Write)
            }
        };
    }
    let last = www();
    if !is_finished {
        let _ = connection.stream.write_all(&framed(&last.to_wire()));
    }
    let mut rcodes: Vec<(usize, &str)> = Vec::new();
    let end = loop {
        match connection.receive_wire().map(|wire| panel.read(server, &wire)) {
            None => break "closed",
            Some(reply) if reply.id == last.id => break "open",
            Some(reply) => match rcodes.last_mut() {
                Some((count, name)) if *name == reply.rcode_name() => *count += 1,
                _ => rcodes.push((1, reply.rcode_name())),
            },
        }
    };
    let said: Vec<String> = rcodes.iter().map(|(count, name)| format!("{count} {name}, ")).collect();
    said.concat() + end
}

#[test]
fn connections_are_served_as_the_rfcs_have_it() {
    let Some(panel) = Panel::new() else { return };
    let case =
        |rfc, what, sent, expected: &str| Row { rfc, what, sent, expected: expected.to_owned(), is_alone: false };
    let many = (0..50).flat_map(|_| framed_www()).collect();
    let two_questions = |wire: &mut Vec<u8>| wire[5] = 2;
    let changed = |change: fn(&mut Vec<u8>)| {
        let mut wire = www().to_wire();
        change(&mut wire);
        framed(&wire)
    };
    let octets = |octets: Vec<u8>| octets.into_iter().map(|octet| Step::Send(vec![octet])).collect::<Vec<_>>();
    let longest = || {
        let mut wire = www().to_wire();
        wire.resize(65_535, 0);
        framed(&wire)
    };
    panel.compare(
        vec![
            case("RFC 7766 §6.2.1", "one query", vec![Step::Send(framed_www())], "1 NOERROR, open"),
            case("RFC 7766 §6.2.1.1", "50 queries in one segment", vec![Step::Send(many)], "50 NOERROR, open"),
            case("RFC 7766 §8", "an octet a segment", octets(framed_www()), "1 NOERROR, open"),
            case(
                "RFC 7766 §8",
                "a query and a half, and the rest",
                vec![Step::Send([framed_www(), vec![0]].concat()), Step::Send(framed_www()[1..].to_vec())],
                "2 NOERROR, open",
            ),
            case(
                "RFC 7766 §6.2.3",
                "a half-close after the third query",
                vec![Step::Send(framed_www().repeat(3)), Step::Finish],
                "3 NOERROR, closed",
            ),
            case("RFC 7766 §6.2.3", "a half-close after nothing", vec![Step::Finish], "closed"),
            case(
                "RFC 7766 §6.2.3",
                "a half-close within a query",
                vec![Step::Send(framed_www()[..20].to_vec()), Step::Finish],
                "closed",
            ),
            case("RFC 1035 §4.2.2", "a length of zero", vec![Step::Send(vec![0, 0])], "closed"),
            case("RFC 1035 §4.2.2", "half a header", vec![Step::Send(vec![0, 5, 0, 1, 2, 3, 4])], "closed"),
            case("RFC 1035 §4.2.2", "a response", vec![Step::Send(changed(|wire| wire[2] |= 0x80))], "closed"),
            case("RFC 9619 §4", "two questions", vec![Step::Send(changed(two_questions))], "1 FORMERR, open"),
            case(
                "RFC 1035 §4.2.2",
                "a query of 65535 octets, most of them none of its own",
                vec![Step::Send(longest())],
                "1 NOERROR, open",
            ),
        ],
        |server, row| try_out(&panel, server, row),
    );
}

/// How a reply by TCP looks.
fn opt_look_by_tcp(server: SocketAddr, row: &Row) -> String {
    let mut connection = Tcp::connect(server);
    connection.stream.write_all(&framed(&row.sent)).unwrap();
    opt_look(row, &connection.receive())
}

#[test]
fn options_by_tcp_are_answered_as_the_rfcs_have_it() {
    let Some(panel) = Panel::new() else { return };
    panel.compare(
        vec![
            row("RFC 7828 §3.3.2", "nobody asked for keepalive", www().edns(1232), "NOERROR 192.0.2.1 opt"),
            row("RFC 7828 §3.3.2", "keepalive", www().option(11, &[]), "NOERROR 192.0.2.1 opt 11:2"),
            row(
                "RFC 7828 §3.2.1",
                "keepalive with a time, which is not the client's to say",
                www().option(11, &[0, 1]),
                "NOERROR 192.0.2.1 opt 11:2",
            ),
            row(
                "RFC 7830 §6",
                "padding, where everybody can read it",
                www().option(12, &[0; 9]),
                "NOERROR 192.0.2.1 opt",
            ),
        ],
        opt_look_by_tcp,
    );
    let reply = panel.ours.tcp(&www().option(11, &[]));
    assert_eq!(reply.edns.unwrap().options, [(11, 300u16.to_be_bytes().to_vec())], "30 s in units of 100 ms");
}

/// A thousand connections on which nothing is asked, of eight clients, and as many again as are allowed beside them.
#[test]
fn a_thousand_idle_connections_keep_nobody_from_being_served() {
    // Each of them costs two descriptors: one here, one there.
    let limits = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limits.maximum, ..limits },
    )
    .unwrap();
    let upstream = Upstream::saying("192.0.2.1");
    let server = "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_idle_timeout = \"10m\"\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + server)).start();
    let connect = |client: u8| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, client), 0)).into()).unwrap();
        socket.connect_timeout(&daemon.address().into(), PATIENCE).unwrap();
        let stream = std::net::TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Tcp { stream }
    };
    let open = || daemon.metric("watershed_server_tcp_connections", &[]);
    let ask = |mut connection: Tcp, name: String| {
        connection.send(&[&query(&format!("{name}.example A"))]);
        assert_eq!(connection.receive().one(), "192.0.2.1", "{name}");
        connection
    };
    let idle: Vec<Tcp> = (0..1000).map(|number| connect(2 + (number % 8) as u8)).collect();
    wait_until("all connections", PATIENCE, || (open() >= 1000.0).then_some(()));
    assert_eq!(daemon.ask("udp.example A").one(), "192.0.2.1");
    let mut more = vec![ask(connect(10), "tcp".to_owned())];
    // Of one client, and of all, there may be no more than so many: then the idlest go.
    more.extend((0..100).map(|number| ask(connect(11), format!("more{number}"))));
    wait_until("those beyond the bound to be gone", PATIENCE, || (open() <= 1024.0).then_some(()));
    let mut refused = (0..29).map(|_| connect(11)).collect::<Vec<_>>();
    assert!(refused.last_mut().unwrap().receive_wire().is_none(), "the 129th of one client");
    assert_eq!(daemon.ask("udp2.example A").one(), "192.0.2.1");
    drop((idle, more));
    wait_until("their end to be seen", PATIENCE, || (open() <= 30.0).then_some(()));
}

#[test]
fn pipelined_queries_are_answered_out_of_order() {
    let gate = Gate::default();
    let upstream = Upstream::new({
        let gate = gate.clone();
        move |asked| {
            if asked.message.asked().starts_with("slow") {
                gate.pass();
            }
            upstream::saying("192.0.2.1")(asked)
        }
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let mut connection = Tcp::connect(daemon.address());
    let queries: Vec<Message> = (0..50).map(|number| query(&format!("name{number}.example A"))).collect();
    let slow = query("slow.example A");
    connection.send(&[&[&slow][..], &queries.iter().collect::<Vec<_>>()].concat());
    let mut ids: Vec<u16> = (0..50).map(|_| connection.receive().id).collect();
    let mut expected: Vec<u16> = queries.iter().map(|query| query.id).collect();
    ids.sort();
    expected.sort();
    assert_eq!(ids, expected, "all but the slow one");
    gate.open();
    assert_eq!(connection.receive().id, slow.id);
}

#[test]
fn a_query_over_tcp_may_come_in_pieces() {
    let upstream = Upstream::saying("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let mut slow = Tcp::connect(daemon.address());
    let bytes = framed(&query("www.example A").to_wire());
    for octet in &bytes[..bytes.len() - 1] {
        slow.stream.write_all(&[*octet]).unwrap();
    }
    // A connection with half a message holds nobody up.
    let mut other = Tcp::connect(daemon.address());
    other.send(&[&query("other.example A")]);
    assert_eq!(other.receive().one(), "192.0.2.1");
    slow.stream.write_all(&bytes[bytes.len() - 1..]).unwrap();
    assert_eq!(slow.receive().one(), "192.0.2.1");
}

#[test]
fn an_idle_connection_is_closed_and_a_client_has_only_so_many() {
    let upstream = Upstream::saying("192.0.2.1");
    let server = "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_idle_timeout = \"1s\"\ntcp_connections_per_client = 3\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + server)).start();
    let mut connections: Vec<Tcp> = (0..3).map(|_| Tcp::connect(daemon.address())).collect();
    for connection in &mut connections {
        connection.send(&[&query("www.example A")]);
        assert_eq!(connection.receive().one(), "192.0.2.1");
    }
    assert!(Tcp::connect(daemon.address()).receive_wire().is_none(), "one too many");
    let start = Instant::now();
    for connection in &mut connections {
        assert!(connection.receive_wire().is_none());
    }
    let elapsed = start.elapsed();
    assert!(elapsed > Duration::from_millis(700) && elapsed < Duration::from_secs(4), "{elapsed:?}");
    assert_eq!(daemon.tcp(&query("www.example A")).one(), "192.0.2.1");
}

#[test]
fn a_client_that_closes_after_asking_still_has_its_answers() {
    let upstream = Upstream::new(|asked| {
        [vec![Act::Wait(Duration::from_millis(50))], upstream::saying("192.0.2.1")(asked)].concat()
    });
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let mut connection = Tcp::connect(daemon.address());
    connection.send(&[&query("a.example A"), &query("b.example A")]);
    connection.stream.shutdown(std::net::Shutdown::Write).unwrap();
    for _ in 0..2 {
        assert_eq!(connection.receive().one(), "192.0.2.1");
    }
    assert!(connection.receive_wire().is_none());
}

#[test]
fn a_connection_stays_open_while_an_answer_is_owed_on_it() {
    let (upstream, gate) = Upstream::saying_behind_gate("192.0.2.1");
    let limits = "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_idle_timeout = \"1s\"\ntcp_message_timeout = \"100ms\"\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + limits)).start();
    let mut client = Tcp::connect(daemon.address());
    client.send(&[&query("slow.example A")]);
    upstream.wait_for("slow.example A", 1);
    // Longer than either limit, and shorter than the deadline of the query.
    thread::sleep(Duration::from_millis(1500));
    gate.open();
    assert_eq!(client.receive().one(), "192.0.2.1");
}

#[test]
fn a_query_that_gets_no_reply_leaves_its_connection_open() {
    let upstream = Upstream::saying("192.0.2.1");
    let config = forward(".", &[upstream.address()]) + "[zones]\ndirectory = \"<DIR>\"\n";
    let daemon = Setup::new(&config).file("@drop.overlay", "dropped.example CNAME rpz-drop.\n").start();
    let mut client = Tcp::connect(daemon.address());
    client.send(&[&query("dropped.example A"), &query("www.example A")]);
    assert_eq!(client.receive().asked(), "www.example. A");
}

/// At the cap the connection that has been idle longest makes room.
#[test]
fn connections_are_capped_and_new_ones_still_served() {
    let upstream = Upstream::saying("192.0.2.1");
    let config = forward(".", &[upstream.address()]) + "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_connections = 20\n";
    let daemon = Setup::new(&config).start();
    let mut connections: Vec<Tcp> = Vec::new();
    for number in 0..60 {
        let mut connection = Tcp::connect(daemon.address());
        connection.send(&[&query(&format!("name{number}.example A"))]);
        assert_eq!(connection.receive().one(), "192.0.2.1", "{number}");
        connections.push(connection);
    }
    assert!(daemon.metric("watershed_server_tcp_connections", &[]) <= 20.0);
    assert!(connections[0].receive_wire().is_none(), "the first is closed");
}
