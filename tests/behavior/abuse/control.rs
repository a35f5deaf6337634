//! Clients of the HTTP port that send requests only in part, do not read responses, or take all connections.
//!
//! The attacks run in a network namespace in which any address may be bound, so that they come from one IPv4 address, one
//! IPv6 /64 and many of these.

use std::{
    env, fs,
    io::Write,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpStream},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::harness::{
    catalog::{services, with_definitions},
    flood::LONG,
    netns::Netns,
    *,
};

/// Where the connections of an attack come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Loopback,
    OneIpv4,
    OneIpv6Network,
    ManyIpv6Networks,
}

impl Origin {
    fn address(self, number: usize) -> IpAddr {
        let ipv6 =
            |network: usize, host: usize| Ipv6Addr::new(0x2001, 0xdb8, 1, network as u16, 0, 0, 0, host as u16 + 1);
        match self {
            Self::Loopback => [127, 0, 0, 1].into(),
            Self::OneIpv4 => [203, 0, 113, 1].into(),
            Self::OneIpv6Network => ipv6(0, number).into(),
            Self::ManyIpv6Networks => ipv6(number, 0).into(),
        }
    }

    /// Where it reaches the daemon: at `control.listen`, or at `catalog.api.listen`, which is of IPv6.
    fn server(self, daemon: &Daemon) -> SocketAddr {
        let port = daemon.control.unwrap().port();
        match self {
            Self::Loopback => ([127, 0, 0, 1], port).into(),
            Self::OneIpv4 => ([203, 0, 113, 2], port).into(),
            Self::OneIpv6Network | Self::ManyIpv6Networks => {
                let line = daemon.wait_for_log(0, |line| line.contains("serving Consul's API"));
                let address = line.split("address=").nth(1).unwrap().split(' ').next().unwrap();
                (Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1), address.parse::<SocketAddr>().unwrap().port()).into()
            }
        }
    }
}

/// What each connection of an attack sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attack {
    Nothing,
    HalfAHead,
    HalfABody,
    /// Requests whose responses are not read, each with a body of its own.
    UnreadResponses,
    /// Blocking queries that are woken together, and not read.
    UnreadNews,
}

impl Attack {
    fn request(self, number: usize, index: u64) -> Vec<u8> {
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes();
        match self {
            Self::Nothing => Vec::new(),
            Self::HalfAHead => {
                let long = "x".repeat(15_000);
                format!("GET /live HTTP/1.1\r\nHost: localhost\r\nX-Long: {long}").into_bytes()
            }
            Self::HalfABody => {
                let head =
                    "PUT /v1/agent/service/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n";
                [head.as_bytes(), &[b' '; 400_000]].concat()
            }
            Self::UnreadResponses => get(&format!("/v1/catalog/services?other={number}")).repeat(3),
            Self::UnreadNews => get(&format!("/v1/catalog/services?index={index}&wait=10m")),
        }
    }
}

fn connect(origin: Origin, number: usize, server: SocketAddr) -> Option<TcpStream> {
    let from = SocketAddr::new(origin.address(number), 0);
    let socket = Socket::new(Domain::for_address(server), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    if from.is_ipv6() {
        socket.set_freebind_v6(true).unwrap();
    }
    socket.bind(&from.into()).unwrap_or_else(|error| panic!("{from}: {error}"));
    socket.connect_timeout(&server.into(), PATIENCE).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    Some(stream)
}

/// Services with tags: their list takes 600 KB, which is more than the kernel takes in for a connection.
fn definitions() -> String {
    let tag = "x".repeat(1000);
    let service = |number: usize| {
        let tags: Vec<String> = (0..10).map(|at| format!("\"{at}{tag}\"")).collect();
        format!(r#"{{"name": "service{number}", "port": 80, "tags": [{}]}}"#, tags.join(", "))
    };
    services(&(0..60).map(service).collect::<Vec<_>>())
}

/// How long `/live` takes; the least of some tries, for the machine may stand still.
fn live_after(daemon: &Daemon) -> Duration {
    let try_once = || {
        let start = Instant::now();
        assert_eq!(daemon.get("/live").0, 200);
        start.elapsed()
    };
    (0..5).map(|_| try_once()).find(|elapsed| *elapsed < Duration::from_secs(1)).unwrap_or_else(try_once)
}

fn descriptors(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

/// Runs a test again as a process within a network namespace in which any address of these networks may be bound. Returns true
/// there, and false where the test has to end.
fn is_within_namespace(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let Some(netns) = Netns::new("") else { return false };
    for words in [
        "addr add 203.0.113.1/24 dev lo",
        "addr add 203.0.113.2/24 dev lo",
        "-6 addr add 2001:db8:2::1/64 dev lo nodad",
        "-6 route add local 2001:db8:1::/48 dev lo",
    ] {
        run(Command::new("ip").args(["-n", netns.name()]).args(words.split(' ')));
    }
    let this = env::current_exe().unwrap();
    let mut command = netns.command(&this.display().to_string());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1").stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

/// Set in the process that runs within the namespace.
const INSIDE: &str = "WATERSHED_TEST_INSIDE";

#[test]
fn what_waits_for_http_clients_is_bounded_and_live_answers_all_the_while() {
    if !is_within_namespace("abuse::control::what_waits_for_http_clients_is_bounded_and_live_answers_all_the_while") {
        return;
    }
    let config = "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n\
                  [server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\n\
                  [control]\nlisten = \"0.0.0.0:0\"\nconnections = 40\nconnections_per_client = 20\n\
                  [catalog.api]\nlisten = \"[::]:0\"\nenable_registration = true\n\
                  [limits]\nconnection_bytes = \"1MiB\"\nclient_bytes = \"4MiB\"\ntotal_bytes = \"16MiB\"\n";
    let zone = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";
    for attack in [Attack::Nothing, Attack::HalfAHead, Attack::HalfABody, Attack::UnreadResponses, Attack::UnreadNews] {
        let daemon = with_definitions(config, &[("all.json", &definitions())]).file("site.zone", zone).start();
        assert_eq!(daemon.get("/v1/catalog/services").0, 200);
        let (rss, files) = (daemon.resident_kib() >> 10, descriptors(&daemon));
        let (mut attackers, mut most_held_kib) = (Vec::new(), 0);
        for origin in [Origin::Loopback, Origin::OneIpv4, Origin::OneIpv6Network, Origin::ManyIpv6Networks] {
            let case = format!("{attack:?} from {origin:?}");
            let index = http::send(daemon.control.unwrap(), "GET /v1/catalog/services", &[], "", PATIENCE).unwrap();
            let index = index.field("X-Consul-Index").unwrap().parse().unwrap();
            let server = origin.server(&daemon);
            let mut check = |moment: &str| {
                let held_kib = daemon.metric("watershed_budget_held_bytes", &[]) as usize >> 10;
                most_held_kib = held_kib.max(most_held_kib);
                assert!(held_kib <= (16 << 10) * 5 / 4, "{case}, {moment}: {held_kib} KiB held");
                let now = daemon.resident_kib() >> 10;
                assert!(now < rss + 100, "{case}, {moment}: {rss} MiB, then {now}");
                let open = descriptors(&daemon);
                assert!(open <= files + 50, "{case}, {moment}: {files} descriptors, then {open}");
                let live = live_after(&daemon);
                assert!(live < Duration::from_secs(1), "{case}, {moment}: /live took {live:?}");
                assert_eq!(daemon.ask("www.site.example A").one(), "192.0.2.1", "{case}, {moment}");
            };
            for number in 0..60 {
                if let Some(mut attacker) = connect(origin, number, server) {
                    let _ = attacker.write_all(&attack.request(number, index));
                    attackers.push(attacker);
                }
                if number % 20 == 19 {
                    check(&format!("{number} connections"));
                }
            }
            if attack == Attack::UnreadNews {
                let body = format!("{{\"Name\": \"{origin:?}\"}}");
                let registered = http::request(daemon.control.unwrap(), "PUT", "/v1/agent/service/register", &body);
                assert_eq!(registered.unwrap().0, 200, "{case}");
                wait_until("the queries to be woken", PATIENCE, || {
                    (daemon.metric("watershed_control_waiting", &[]) == 0.0).then_some(())
                });
                check("woken");
            }
        }
        let exceeded = daemon.metric("watershed_budget_exceeded_total", &[]);
        match attack {
            Attack::Nothing => assert_eq!(exceeded, 0.0),
            Attack::HalfAHead => assert!(most_held_kib > 400 && exceeded == 0.0, "{most_held_kib} KiB held"),
            Attack::HalfABody | Attack::UnreadResponses => assert!(exceeded > 0.0, "{attack:?}"),
            // All of them wait with one body, and so none of the limits is met.
            Attack::UnreadNews => {
                assert!(most_held_kib > 500 && exceeded == 0.0, "{most_held_kib} KiB held, {exceeded}")
            }
        }
        let stalled = daemon.metric("watershed_control_connections", &[]);
        assert!(stalled >= 15.0, "{attack:?}: {stalled} connections");
        drop(attackers);
        wait_until(&format!("{attack:?}: connections and memory to be free"), LONG, || {
            let connections = daemon.metric("watershed_control_connections", &[]);
            (connections <= 1.0 && daemon.resident_kib() >> 10 < rss + 50).then_some(())
        });
        let _held: Vec<_> =
            (0..50).filter_map(|number| connect(Origin::OneIpv4, number, Origin::OneIpv4.server(&daemon))).collect();
        let start = Instant::now();
        assert_eq!(daemon.stop().code, Some(0));
        let elapsed = start.elapsed();
        assert!(elapsed < Duration::from_secs(3), "{attack:?}: stopped after {elapsed:?}");
    }
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let config = "[control]\nlisten = \"127.0.0.1:0\"\nmessage_timeout = \"300ms\"\n";
    let daemon = with_definitions(config, &[("all.json", &definitions())]).start();
    let mut stalled = connect(Origin::Loopback, 0, daemon.control.unwrap()).unwrap();
    stalled.write_all(&Attack::UnreadResponses.request(0, 0)).unwrap();
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
    let attackers: Vec<_> = (0..400).filter_map(|number| connect(Origin::Loopback, number, control)).collect();
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
