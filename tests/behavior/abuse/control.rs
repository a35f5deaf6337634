//! Clients of the HTTP port that do not read, send what is refused, or take all descriptors.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use socket2::{Domain, Socket, Type};

use super::large::definitions;
use crate::harness::{catalog::with_definitions, *};

/// A connection that takes in as little as possible before it is read.
fn slow_reader(server: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    socket.connect_timeout(&server.into(), PATIENCE).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    Some(stream)
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let config = "[control]\nlisten = \"127.0.0.1:0\"\nmessage_timeout = \"300ms\"\n";
    let daemon = with_definitions(config, &[("all.json", &definitions())]).start();
    let mut stalled = slow_reader(daemon.control.unwrap()).unwrap();
    stalled.write_all("GET /v1/catalog/services HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(3).as_bytes()).unwrap();
    wait_until("the connection to be closed", PATIENCE, || {
        let slow = daemon.metric("watershed_control_closed_total", &[("reason", "slow")]);
        (slow == 1.0 && daemon.metric("watershed_budget_held_bytes", &[]) == 0.0).then_some(())
    });
}

#[test]
fn without_descriptors_http_fails_alone() {
    let Some(_) = require::program("prlimit") else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let setup = Setup::new(&daemon::forward(".", &[upstream.address()])).by(&["prlimit", "--nofile=256:256"]);
    let daemon = setup.start();
    let control = daemon.control.unwrap();
    let attackers: Vec<_> = (0..400).filter_map(|_| slow_reader(control)).collect();
    assert!(attackers.len() > 200, "{}", attackers.len());
    for number in 0..50 {
        assert_eq!(daemon.ask(&format!("name{number}.example A")).one(), "192.0.2.1");
        assert_eq!(daemon.tcp(&query(&format!("tcp{number}.example A"))).one(), "192.0.2.1");
    }
    // An eighth of what is divided among all.
    let connections = daemon.metric("watershed_control_connections", &[]);
    assert!(connections <= 28.0, "{connections}");
    assert!(daemon.metric("process_open_fds", &[]) <= 160.0);
    assert_eq!(daemon.metric("process_max_fds", &[]), 256.0);
    assert!(daemon.metric("watershed_control_closed_total", &[("reason", "displaced")]) >= 100.0);
    drop(attackers);
}

#[test]
fn the_head_decides_before_a_body_is_read() {
    let config = "[control]\nlisten = \"127.0.0.1:0\"\n[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.1\"\n\
                  [catalog.api]\nenable_registration = true\ntoken = \"secret\"\n";
    let daemon = Setup::new(config).start();
    let status = |request: &str, body: &str| {
        let (sent, response) = (format!("{request}\r\n\r\n{body}"), &mut String::new());
        let mut stream = TcpStream::connect(daemon.control.unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        std::io::Read::read_to_string(&mut stream, response).unwrap();
        let statuses = response.split("HTTP/1.1 ").skip(1).filter_map(|rest| rest.split([' ', '\r']).next());
        statuses.map(str::to_owned).collect::<Vec<_>>().join(" ")
    };
    let own = "Host: localhost\r\nConnection: close";
    let expect = "Expect: 100-continue\r\nContent-Length: 500";
    let register = "PUT /v1/agent/service/register HTTP/1.1";
    for (request, body, expected) in [
        // No client that asks whether to send a body is told to before all else is right.
        (format!("{register}\r\n{expect}\r\nHost: attacker.example\r\nConnection: close"), "", "421"),
        (format!("{register}\r\n{expect}\r\n{own}"), "", "403"),
        (format!("POST /v1/agent/service/register HTTP/1.1\r\n{expect}\r\n{own}"), "", "405"),
        (format!("PUT /nowhere HTTP/1.1\r\n{expect}\r\n{own}"), "", "404"),
        (
            format!("{register}\r\nX-Consul-Token: secret\r\nExpect: 100-continue\r\nContent-Length: 600000\r\n{own}"),
            "",
            "413",
        ),
        (
            format!("{register}\r\nX-Consul-Token: secret\r\nExpect: 100-continue\r\nContent-Length: 15\r\n{own}"),
            "{\"Name\": \"web\"}",
            "100 200",
        ),
        // Pipelined; a body that is not wanted is passed over.
        (
            format!(
                "GET /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhelloGET /live HTTP/1.1\r\n{own}"
            ),
            "",
            "200 200",
        ),
        (
            format!("{register}\r\nContent-Length: 5\r\nHost: localhost\r\n\r\nhelloGET /live HTTP/1.1\r\n{own}"),
            "",
            "403 200",
        ),
        (format!("GET /live HTTP/1.1\r\n{own}\r\nX: {}", "x".repeat(20_000)), "", "431"),
    ] {
        assert_eq!(status(&request, body), expected, "{request:.120}");
    }
}
