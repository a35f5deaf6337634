//! Sockets and signals: where it listens, from where it answers, how it begins and ends.

use std::{
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::harness::{daemon::forward, netns::Netns, *};

fn server(listen: &str) -> String {
    format!("[server]\nworkers = 3\nlisten = [{listen}]\n")
}

#[test]
fn udp_and_tcp_are_served_on_every_address() {
    let upstream = Upstream::saying("192.0.2.1");
    let second = free_address().ip();
    let listen = server(&format!("\"127.0.0.1:0\", \"[::1]:0\", \"{second}:0\""));
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + &listen)).start();
    let ips: Vec<IpAddr> = daemon.addresses.iter().map(SocketAddr::ip).collect();
    assert_eq!(ips, ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap(), second]);
    for address in &daemon.addresses {
        let question = query("www.example A").edns(1232);
        assert_eq!(udp(*address, &question).one(), "192.0.2.1", "UDP {address}");
        assert_eq!(tcp(*address, &question).one(), "192.0.2.1", "TCP {address}");
    }
}

#[test]
fn a_wildcard_listener_answers_from_the_address_that_was_asked() {
    let upstream = Upstream::saying("192.0.2.1");
    let config = forward(".", &[upstream.address()]) + &server("\"0.0.0.0:0\", \"[::]:0\"");
    let daemon = Setup::new(&config).start();
    let (v4, v6) = (daemon.addresses[0].port(), daemon.addresses[1].port());
    // The harness asks through connected sockets: a reply from elsewhere would not arrive.
    for (ip, port) in [("127.0.0.1", v4), ("127.1.2.3", v4), ("127.255.0.9", v4), ("::1", v6)] {
        let address = SocketAddr::new(ip.parse().unwrap(), port);
        for question in ["www.example A", "new.example A", "localhost A"] {
            let question = format!("{}.{question}", ip.replace([':', '.'], "-"));
            assert_eq!(udp(address, &query(&question)).rcode_name(), "NOERROR", "{address} {question}");
        }
        assert_eq!(tcp(address, &query("www.example A")).one(), "192.0.2.1", "{address}");
    }
}

#[test]
fn a_wildcard_listener_answers_from_the_right_one_of_several_ipv6_addresses() {
    let Some(netns) = Netns::new("") else { return };
    let zone = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";
    let rule = "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n";
    let listen = "[server]\nlisten = [\"[::]:53\", \"0.0.0.0:53\"]\nallow = [\"any\"]\n";
    let daemon = Setup::new(&format!("{rule}{listen}")).file("site.zone", zone).within(&netns).start();
    for address in ["2001:db8::2", "2001:db8::3", "::1", "127.0.0.5", &netns.guest().to_string()] {
        let server = format!("@{address}");
        // dig itself refuses a reply from an address that it did not ask.
        let text = run(netns.command("dig").args([&server, "+short", "+tries=1", "www.site.example"]));
        assert_eq!(text.trim(), "192.0.2.1", "{address}");
    }
    drop(daemon);
}

#[test]
fn each_worker_has_a_udp_socket_of_its_own() {
    let cores = thread::available_parallelism().unwrap().get();
    for (workers, expected) in [(3, 3), (0, cores.min(4))] {
        let server = format!("[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = {workers}\n");
        let daemon = Setup::new(&(forward(".", &[free_address()]) + &server)).start();
        assert_eq!(udp_queues(daemon.address()).len(), expected, "workers = {workers}");
    }
}

#[test]
fn a_second_daemon_on_the_same_address_is_refused() {
    let upstream = Upstream::saying("192.0.2.1");
    let first = Setup::forwarding_to(upstream.address()).start();
    let address = first.address();
    let second = Setup::new(&(forward(".", &[upstream.address()]) + &server(&format!("\"{address}\"")))).run_to_end();
    assert_eq!(second.code, Some(1), "{}", second.text);
    assert!(second.text.contains(&address.to_string()), "{}", second.text);
    // The first has lost nothing to it.
    for number in 0..50 {
        assert_eq!(first.ask(&format!("name{number}.example A")).one(), "192.0.2.1");
    }
}

#[test]
fn sigterm_drains_and_ends() {
    let (upstream, gate) = Upstream::saying_behind_gate("192.0.2.1");
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let address = daemon.address();
    let ended = thread::scope(|scope| {
        let clients = [
            scope.spawn(move || udp(address, &query("udp.example A"))),
            scope.spawn(move || tcp(address, &query("tcp.example A"))),
        ];
        upstream.wait_for("udp.example A", 1);
        upstream.wait_for("tcp.example A", 1);
        signal(daemon.pid(), "TERM");
        daemon.wait_for_log(0, |line| line.contains("stopping") || line.contains("drain") || line.contains("stopped"));
        gate.open();
        for client in clients {
            assert_eq!(client.join().unwrap().one(), "192.0.2.1");
        }
        let mut daemon = daemon;
        daemon.wait()
    });
    assert_eq!(ended.code, Some(0));
    assert!(ended.text.lines().last().unwrap().contains("stopped"), "{}", ended.text);
    assert!(UdpSocket::bind(address).is_ok() && TcpListener::bind(address).is_ok());
}

#[test]
fn a_drain_does_not_wait_for_clients_that_stay() {
    let upstream = Upstream::silent();
    let daemon = Setup::forwarding_to(upstream.address()).start();
    let mut idle = Tcp::connect(daemon.address());
    idle.send(&[&query("localhost A")]);
    idle.receive();
    let start = Instant::now();
    assert_eq!(daemon.stop().code, Some(0));
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

/// Sockets that the service manager holds: the descriptors 3 and up, named by LISTEN_FDS (sd_listen_fds(3)).
#[test]
fn sockets_of_the_service_manager_are_taken_over() {
    let upstream = Upstream::saying("192.0.2.1");
    let address = free_address();
    let sockets = (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap());
    let config = forward(".", &[upstream.address()]) + &server(&format!("\"{address}\""));
    let mut daemon = Setup::new(&config).start_with(|daemon| {
        // A shell moves its standard input and output to 3 and 4; `exec` keeps the process id.
        let script = "exec 3<&0 4<&1 0</dev/null 1>&2; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(daemon.get_program()).args(daemon.get_args());
        command.stdin(Stdio::from(OwnedFd::from(sockets.0))).stdout(Stdio::from(OwnedFd::from(sockets.1)));
        command
    });
    let question = query("www.example A");
    assert_eq!(udp(address, &question).one(), "192.0.2.1");
    assert_eq!(tcp(address, &question).one(), "192.0.2.1");
    // They stay the unit's when another process takes over, which serves them whatever is configured.
    daemon.hand_over();
    assert_eq!(udp(address, &question).one(), "192.0.2.1");
    assert_eq!(tcp(address, &question).one(), "192.0.2.1");
    assert!(daemon.stop().text.lines().last().unwrap().contains("stopped"));
}

#[test]
fn the_query_for_which_systemd_starts_it_is_answered() {
    if require::program("systemd-socket-activate").is_none() {
        return;
    }
    let upstream = Upstream::saying("192.0.2.1");
    for is_ours in [false, true] {
        let address = free_address();
        let config = forward(".", &[upstream.address()]) + &server(&format!("\"{address}\""));
        // A socket unit's, or one that we have had stored.
        let name = if is_ours { format!("watershed/{};{}", address.ip(), address.port()) } else { "dns".to_owned() };
        let activation = ["systemd-socket-activate", "--datagram", "--listen", &address.to_string(), "--fdname", &name];
        let setup = Setup::new(&config).by(&activation);
        let question = query("www.example A");
        let asked = thread::spawn({
            let wire = question.to_wire();
            move || {
                // Until it listens, the port is closed.
                wait_until("an answer", PATIENCE, || exchange_udp(address, &wire, PATIENCE))
            }
        });
        let daemon = setup.start();
        let reply = Message::from_wire(&asked.join().unwrap()).unwrap();
        assert_eq!((reply.id, reply.one()), (question.id, "192.0.2.1".to_owned()), "{name}");
        assert_eq!(daemon.addresses, [address], "{name}");
        assert_eq!(TcpStream::connect(address).is_ok(), is_ours, "{name}");
    }
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_end() {
    let upstream = Upstream::saying("192.0.2.1");
    let setup = Setup::forwarding_to(upstream.address()).env("NOTIFY_SOCKET", "<DIR>/notify");
    let manager = UnixDatagram::bind(setup.folder().join("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hears = |wanted: &str| {
        let mut buffer = [0; 4096];
        loop {
            let length = manager.recv(&mut buffer).unwrap_or_else(|error| panic!("no {wanted}: {error}"));
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.lines().any(|line| line == wanted) {
                return text;
            }
        }
    };
    let daemon = setup.start();
    hears("READY=1");
    signal(daemon.pid(), "HUP");
    let reloading = hears("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}"); // demanded by Type=notify-reload
    hears("READY=1");
    signal(daemon.pid(), "TERM");
    hears("STOPPING=1");
}

#[test]
fn it_runs_with_no_configuration_at_all() {
    let Some(netns) = Netns::new("") else { return };
    let upstream = Upstream::at(SocketAddr::new(netns.host(), 53), upstream::saying("192.0.2.1"));
    // Ourselves first, as such hosts have it; the other is the upstream.
    netns.set_resolv_conf(&format!("nameserver 127.0.0.1\nnameserver {}\n", netns.host()));
    let daemon = Setup::bare().within(&netns).start();
    assert_eq!(daemon.addresses, ["127.0.0.1:53".parse().unwrap(), "[::1]:53".parse::<SocketAddr>().unwrap()]);
    for server in ["@127.0.0.1", "@::1"] {
        for transport in ["+notcp", "+tcp"] {
            let text = run(netns.command("dig").args([server, transport, "+short", "www.example"]));
            assert_eq!(text.trim(), "192.0.2.1", "{server} {transport}");
        }
    }
    let refused = run(netns.command("dig").args(["@127.0.0.1", "galeradb.service.consul"]));
    assert!(refused.contains("SERVFAIL"), "{refused}"); // nobody listens on 127.0.0.1:8600
    assert!(upstream.asked().iter().all(|asked| asked == "www.example. A"), "{:?}", upstream.asked());
}

#[test]
fn the_command_line_names_addresses_and_upstreams() {
    let upstream = Upstream::saying("192.0.2.1");
    let address = upstream.address().to_string();
    let setup = Setup::new("").arguments(&["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--upstream", &address]);
    let daemon = setup.start();
    assert_eq!(daemon.addresses.len(), 2);
    assert_eq!(udp(daemon.addresses[1], &query("www.example A")).one(), "192.0.2.1");
    let zone = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n";
    let setup = Setup::new("").file("zones/site.example.zone", zone);
    let folder = setup.folder().join("zones").display().to_string();
    assert_eq!(setup.arguments(&["--zones", &folder]).start().ask("ns.site.example A").one(), "192.0.2.53");
}
