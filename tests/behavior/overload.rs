//! Floods cost those who send them: what they take is bounded, the others are served, and every message is accounted for.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::{
    client::framed,
    daemon::forward,
    flood::{Account, LONG, Quick, client_at, flood, forge, gather, loopback, sink},
    message::TC,
    *,
};

/// A rule for all names, one for names below `dead.example` whose upstream is silent, and a section `[server]`.
fn config(upstream: SocketAddr, silent: SocketAddr, server: &str) -> String {
    let rules = forward(".", &[upstream]) + &forward("dead.example", &[silent]);
    format!("{rules}\n[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\n{server}")
}

/// The option's code (RFC 7873 §4).
const COOKIE: u16 = 10;

fn dead(client: &str, count: usize) -> impl Iterator<Item = String> + use<> {
    let client = client.to_owned();
    (0..count).map(move |number| format!("name{number}.{client}.dead.example A"))
}

fn send_again(client: &UdpSocket, wire: &[u8], times: usize) {
    for _ in 0..times {
        client.send(wire).unwrap();
    }
}

/// A TCP connection from this address.
fn connect_from(ip: std::net::IpAddr, server: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.connect_timeout(&server.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket.into())
}

/// Received is what was replied to, what was dropped for a reason, and what waits; sent is that and what the kernel dropped.
#[test]
fn every_message_is_accounted_for() {
    let (quick, (_sink, silent)) = (Quick::new(100), sink());
    let server = "allow = [\"127.0.0.0/16\", \"127.1.0.0/16\"]\nmax_in_flight = 64\nmax_in_flight_per_client = 16\n\
                  [server.rate_limit]\nresponses_per_second = 5\nexempt = [\"127.0.0.0/16\", \"127.2.0.0/16\"]\n\
                  [[zone]]\napex = \"drop.example\"\nfile = \"<DIR>/drop.overlay\"\nmode = \"overlay\"\n";
    let overlay = "$TTL 60\nwww CNAME rpz-drop.\n";
    let setup = Setup::new(&config(quick.address(), silent, server)).file("drop.overlay", overlay);
    let daemon = setup.start();
    let address = daemon.address();
    let good = query("www.example A").edns(1232).to_wire();
    let changed = |at: usize, value: u8| {
        let mut wire = good.clone();
        wire[at] = value;
        wire
    };
    let mut clients: Vec<UdpSocket> = Vec::new();
    let mut client = |ip: [u8; 4]| {
        clients.push(client_at(ip, address));
        clients.last().unwrap().try_clone().unwrap()
    };
    let mut sent = 0;

    // Hits, misses and those who join them; what is no query, and what no query of ours.
    sent += flood(&client([127, 0, 0, 1]), (0..300).map(|number| format!("name{}.example A", number % 60)));
    for (wire, count) in [
        (&good[..11], 20),           // too short
        (&changed(2, 0x81)[..], 10), // a response
        (&changed(2, 0x28), 10),     // UPDATE
        (&changed(5, 2), 10),        // two questions
        (&query("www.example AXFR").to_wire(), 10),
        (&query("www.example A").class(3).to_wire(), 10),
        (&query("www.drop.example A").to_wire(), 10),
    ] {
        let client = client([127, 0, 0, 1]);
        send_again(&client, wire, count);
        sent += count;
    }
    // Not served; and one of these sends what cannot be replied to.
    let stranger = client([127, 2, 0, 1]);
    sent += flood(&stranger, (0..10).map(|_| "www.example A".to_owned()));
    stranger.send(&good[..11]).unwrap();
    sent += 1;
    // Limited.
    sent += flood(&client([127, 1, 0, 1]), (0..100).map(|_| "localhost A".to_owned()));
    // Over TCP: replied to, waiting when the client ends its side, and waiting when it breaks the connection.
    let mut connection = Tcp::connect(address);
    let queries: Vec<Message> = (0..20).map(|number| query(&format!("name{number}.example A"))).collect();
    connection.send(&queries.iter().collect::<Vec<_>>());
    queries.iter().for_each(|_| drop(connection.receive()));
    let waiting: Vec<Message> = dead("tcp", 5).map(|question| query(&question)).collect();
    for is_broken in [false, true] {
        let mut leaving = Tcp { stream: connect_from([127, 0, 0, 5].into(), address).unwrap() };
        leaving.send(&waiting.iter().collect::<Vec<_>>());
        leaving.send(&[&query("localhost A")]);
        leaving.receive(); // the last is answered, so the others were read
        if is_broken {
            SockRef::from(&leaving.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    sent += 20 + 2 * 6;
    // More than may wait, of one client and in all.
    for ip in 11..=16u8 {
        sent += flood(&client([127, 0, 0, ip]), dead(&format!("client{ip}"), 30));
    }

    wait_until("a balance, of what waits too", LONG, || {
        let account = Account::of(&daemon);
        (account.is_balanced() && account.received + account.kernel_drops == sent as u64).then_some(())
    });
    let end = Account::settled(&daemon, sent);
    assert_eq!(Account::of(&daemon), end, "nothing moves any more");
    assert_eq!(end.kernel_drops, 0, "so few find room");
    let count = |name: &str, reason: &str| daemon.metric(name, &[("reason", reason)]);
    let dropped = |reason| count("watershed_server_dropped_total", reason);
    let rejected = |reason| count("watershed_server_rejected_total", reason);
    let limited = dropped("rate_limit") + rejected("rate_limit");
    assert_eq!((dropped("not_a_query"), dropped("overlay"), dropped("port")), (31.0, 10.0, 0.0));
    assert_eq!((rejected("malformed"), rejected("unsupported"), rejected("acl")), (10.0, 30.0, 10.0));
    assert!((1.0..=95.0).contains(&limited), "{limited}");
    assert!(rejected("client_overload") + rejected("overload") >= 60.0);
    // All of the broken connection, and of the other what came behind the first reply that found nobody.
    assert!((5.0..=10.0).contains(&dropped("gone")), "{}", dropped("gone"));
    // What is counted as a reply has reached the client.
    let replies = daemon.metric("watershed_server_replies_total", &[("transport", "udp")]) as usize;
    assert_eq!(gather(&clients, replies).len(), replies);
}

/// What nobody reads in time is dropped by the kernel, who says so.
#[test]
fn what_the_kernel_drops_is_counted_for_its_listener() {
    let upstream = Quick::new(0);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    daemon.ask("www.example A");
    freeze(daemon.pid());
    let client = client_at([127, 0, 0, 7], daemon.address());
    let wire = query("www.example A").to_wire();
    let sent = 40_000;
    send_again(&client, &wire, 40_000);
    thaw(daemon.pid());
    let account = Account::settled(&daemon, sent + 1);
    assert!(account.kernel_drops > 0, "{account:?}");
    let of_listener = [("listener", &*daemon.address().to_string())];
    assert_eq!(daemon.metric("watershed_server_kernel_drops_total", &of_listener) as u64, account.kernel_drops);
}

/// Some clients ask for names that nobody answers until they may wait for no more; the others do not notice.
#[test]
fn one_client_that_asks_for_names_nobody_answers_leaves_room_for_the_others() {
    let (quick, (_sink, silent)) = (Quick::new(0), sink());
    let server = "max_in_flight = 512\nmax_in_flight_per_client = 128\n";
    let daemon = Setup::new(&config(quick.address(), silent, server)).start();
    let refused = || daemon.metric("watershed_server_rejected_total", &[("reason", "client_overload")]);
    let by_udp = client_at([127, 0, 0, 2], daemon.address());
    flood(&by_udp, dead("udp", 200));
    let mut by_tcp = connect_from([127, 0, 0, 4].into(), daemon.address()).unwrap();
    let frames: Vec<u8> = dead("tcp", 200).flat_map(|name| framed(&query(&name).to_wire())).collect();
    by_tcp.write_all(&frames).unwrap();
    wait_until("most of them to be refused", LONG, || (refused() >= 100.0).then_some(()));
    let ask = |client: &UdpSocket, name: &str| {
        client.send(&query(&format!("{name}.example A")).to_wire()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut buffer = [0; 512];
        let length = client.recv(&mut buffer).expect("a reply");
        Message::from_wire(&buffer[..length]).unwrap()
    };
    // However many there are, they leave room for one who has little waiting.
    let many: Vec<_> = (0..30u8).map(|ip| client_at([127, 0, 8, ip], daemon.address())).collect();
    for (number, client) in many.iter().enumerate() {
        flood(client, dead(&format!("client{number}"), 20));
    }
    for number in 0..20 {
        let victim = client_at([127, 0, 0, 3], daemon.address());
        assert_eq!(ask(&victim, &format!("name{number}")).one(), "192.0.2.1");
        assert!(daemon.metric("watershed_resolve_waiting", &[]) < 512.0);
    }
    wait_until("the end of the flood", LONG, || (daemon.metric("watershed_resolve_waiting", &[]) == 0.0).then_some(()));
    // Each was told, most of them why at once; and once its queries are over the client is served again.
    let replies = gather(std::slice::from_ref(&by_udp), 200);
    assert_eq!(replies.len(), 200);
    assert!(replies.iter().all(|reply| reply.rcode_name() == "SERVFAIL"));
    let reasons = replies.iter().flat_map(|reply| &reply.edns.as_ref().unwrap().options);
    let of_client = reasons.filter(|(_, text)| text.ends_with(b"too many queries of this client wait")).count();
    assert!(of_client >= 40, "{of_client}");
    assert_eq!(ask(&by_udp, "after").one(), "192.0.2.1");
}

#[test]
fn a_network_gets_no_more_replies_than_its_limit_and_true_clients_come_by_tcp() {
    let upstream = Quick::new(0);
    let config = forward(".", &[upstream.address()])
        + "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\n[server.rate_limit]\nresponses_per_second = 40\nexempt = [\"127.0.0.0/16\"]\n";
    let daemon = Setup::new(&config).start();
    let wire = query("www.example A").edns(1232).to_wire();
    daemon.ask("www.example A");
    let from = Instant::now();
    let forged = [client_at([127, 5, 0, 1], daemon.address()), client_at([127, 5, 0, 200], daemon.address())];
    forged.iter().for_each(|client| send_again(client, &wire, 200));
    let replies = gather(&forged, Account::settled(&daemon, 1 + 400).replies as usize - 1);
    let most = 40.0 + 40.0 * from.elapsed().as_secs_f64();
    let (truncated, whole): (Vec<_>, Vec<_>) = replies.into_iter().partition(|reply| reply.has(TC));
    assert!(whole.len() >= 40 && whole.len() as f64 <= most, "{} of {most}", whole.len());
    let beyond = 400 - whole.len();
    assert!(truncated.len() == beyond / 2 || truncated.len() == beyond.div_ceil(2), "{} of {beyond}", truncated.len());
    for reply in &truncated {
        assert!(reply.answer.is_empty() && reply.length <= wire.len() && reply.rcode_name() == "NOERROR", "{reply:?}");
    }
    // TCP, other networks and those exempt know nothing of it.
    let mut connection = connect_from([127, 5, 0, 1].into(), daemon.address()).unwrap();
    for _ in 0..100 {
        connection.write_all(&framed(&wire)).unwrap();
        let reply = client::read_framed(&mut connection).expect("a reply");
        assert_eq!(Message::from_wire(&reply).unwrap().one(), "192.0.2.1");
    }
    for (ip, queries, sent_then) in [([127, 6, 0, 1], 40, 541), ([127, 0, 0, 9], 300, 841)] {
        let client = client_at(ip, daemon.address());
        send_again(&client, &wire, queries);
        Account::settled(&daemon, sent_then);
        let replies = gather(&[client], queries);
        assert_eq!(replies.iter().filter(|reply| !reply.has(TC)).count(), queries, "{ip:?}");
    }
    // Nor does it hold for who shows a cookie of ours: nobody forges that address.
    let with_cookie = |cookie: &[u8]| query("www.example A").edns(1232).option(COOKIE, cookie).to_wire();
    let cookie_by = |connection: &mut TcpStream| {
        connection.write_all(&framed(&with_cookie(&[7; 8]))).unwrap();
        let reply = Message::from_wire(&client::read_framed(connection).expect("a reply")).unwrap();
        reply.edns.unwrap().options.into_iter().find(|(code, _)| *code == COOKIE).expect("a cookie").1
    };
    let proven = client_at([127, 5, 0, 1], daemon.address());
    send_again(&proven, &with_cookie(&cookie_by(&mut connection)), 300);
    Account::settled(&daemon, 1142);
    let replies = gather(&[proven], 300);
    assert_eq!(replies.iter().filter(|reply| !reply.has(TC)).count(), 300);
    // What it is sent is not taken from the others of its network.
    let [proven, other] = [1, 2].map(|host| client_at([127, 7, 0, host], daemon.address()));
    let mut connection = connect_from([127, 7, 0, 1].into(), daemon.address()).unwrap();
    send_again(&proven, &with_cookie(&cookie_by(&mut connection)), 300);
    send_again(&other, &wire, 40);
    Account::settled(&daemon, 1483);
    for (client, queries) in [(proven, 300), (other, 40)] {
        let replies = gather(&[client], queries);
        assert_eq!(replies.iter().filter(|reply| !reply.has(TC)).count(), queries);
    }
    // A reload turns it off.
    daemon.edit_config(|config| config.replace("responses_per_second = 40", "responses_per_second = 0"));
    daemon.reload();
    let client = client_at([127, 5, 0, 1], daemon.address());
    send_again(&client, &wire, 200);
    assert_eq!(gather(&[client], 200).len(), 200);
    Account::settled(&daemon, 1683);
}

#[test]
fn a_client_that_does_not_read_is_let_go_and_its_replies_are_bounded() {
    let text = format!("\"{}\" ", "x".repeat(250)).repeat(60);
    let zone = format!("$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nbig TXT {text}\n");
    let config = "[[zone]]\napex = \"site.example\"\nfile = \"<DIR>/site.zone\"\n\
                  [server]\nlisten = [\"127.0.0.1:0\"]\ntcp_message_timeout = \"500ms\"\n";
    let daemon = Setup::new(config).file("site.zone", &zone).start();
    assert_eq!(daemon.tcp(&query("big.site.example TXT")).answer.len(), 1);
    let before = daemon.resident_kib();
    let slow = || daemon.metric("watershed_server_tcp_refused_total", &[("reason", "slow")]);
    let frames = framed(&query("big.site.example TXT").to_wire()).repeat(1000);
    let mut connections: Vec<TcpStream> = Vec::new();
    for number in 0..30 {
        let mut connection = connect_from(loopback(number), daemon.address()).unwrap();
        // 15 MB of replies are asked for, and nothing is read.
        connection.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let _ = connection.write_all(&frames);
        connections.push(connection);
    }
    wait_until("all of them to be let go", PATIENCE, || (slow() >= 30.0).then_some(()));
    let grown = daemon.resident_kib().saturating_sub(before);
    assert!(grown < 24 << 10, "{grown} KiB for 450 MB of replies");
    wait_until("their places to be free", PATIENCE, || {
        (daemon.metric("watershed_server_tcp_connections", &[]) == 0.0).then_some(())
    });
    assert_eq!(daemon.tcp(&query("big.site.example TXT")).answer.len(), 1);
}

#[test]
fn connections_in_any_number_leave_a_place_for_others() {
    let upstream = Quick::new(0);
    let server = "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_connections = 60\ntcp_connections_per_client = 20\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + server)).start();
    let is_served = |case: &str| {
        let mut honest = connect_from([127, 0, 0, 77].into(), daemon.address()).unwrap();
        honest.write_all(&framed(&query("www.example A").to_wire())).unwrap();
        let reply = client::read_framed(&mut honest).unwrap_or_else(|| panic!("no reply while {case}"));
        assert_eq!(Message::from_wire(&reply).unwrap().one(), "192.0.2.1", "{case}");
        assert_eq!(daemon.ask("www.example A").one(), "192.0.2.1", "{case}");
    };
    for (case, clients, refusal, at_least) in [
        ("one client holds all that it may", 1, "per_client", 180.0),
        ("many clients hold all that there are", 200, "displaced", 120.0),
    ] {
        let held: Vec<_> =
            (0..200).filter_map(|number| connect_from(loopback(number % clients), daemon.address()).ok()).collect();
        let refused = || daemon.metric("watershed_server_tcp_refused_total", &[("reason", refusal)]);
        wait_until(case, PATIENCE, || (refused() >= at_least).then_some(()));
        is_served(case);
        assert!(daemon.metric("watershed_server_tcp_connections", &[]) <= 61.0, "{case}");
        drop(held);
    }
}

/// An octet now and then is not enough to keep a connection (slow loris).
#[test]
fn a_query_that_comes_octet_by_octet_is_not_waited_for() {
    let upstream = Quick::new(0);
    let server = "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_message_timeout = \"500ms\"\n";
    let daemon = Setup::new(&(forward(".", &[upstream.address()]) + server)).start();
    let frame = framed(&query("a-name-of-more-octets-than-will-ever-come.example A").to_wire());
    let mut connections: Vec<_> =
        (0..30).map(|number| connect_from(loopback(number), daemon.address()).unwrap()).collect();
    let closed = || daemon.metric("watershed_server_tcp_refused_total", &[("reason", "slow")]);
    for octet in &frame[..50] {
        connections.iter_mut().for_each(|connection| drop(connection.write_all(&[*octet])));
        if closed() >= 30.0 {
            break;
        }
        assert_eq!(daemon.tcp(&query("www.example A")).one(), "192.0.2.1");
        thread::sleep(Duration::from_millis(100)); // the pace of the attack
    }
    wait_until("all of them to be closed", PATIENCE, || (closed() >= 30.0).then_some(()));
    wait_until("their places to be free", PATIENCE, || {
        (daemon.metric("watershed_server_tcp_connections", &[]) == 0.0).then_some(())
    });
}

/// The kernel gives every client's port to one worker, and so a flood from one port.
#[test]
fn a_flood_on_one_worker_loses_no_query_on_another() {
    let upstream = Quick::new(0);
    let daemon = Setup::new(&config(upstream.address(), upstream.address(), "")).start();
    daemon.ask("www.example A");
    // While it stands still, the queue in which a datagram lies tells whose it is.
    freeze(daemon.pid());
    let queues = || udp_queues(daemon.address());
    let wire = query("www.example A").to_wire();
    let worker_of = |client: &UdpSocket| {
        let before = queues();
        client.send(&wire).unwrap();
        let grown = queues().into_iter().find(|(inode, held)| before[inode] != *held);
        grown.expect("a queue that has grown").0
    };
    let flooder = client_at([127, 0, 0, 2], daemon.address());
    let flooded = worker_of(&flooder);
    let victim = (0..64)
        .map(|_| client_at([127, 0, 0, 3], daemon.address()))
        .find(|client| worker_of(client) != flooded)
        .expect("one of 64 ports of the other worker");
    thaw(daemon.pid());
    wait_until("an end of what was asked to find out", PATIENCE, || {
        let account = Account::of(&daemon);
        (account.is_balanced() && account.waiting == 0 && queues().values().all(|held| held.ends_with(":00000000")))
            .then_some(())
    });
    gather(&[victim.try_clone().unwrap()], 1);

    let is_over = AtomicBool::new(false);
    let mut lost = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            // A bound, though the victim is done long before.
            for _ in 0..3_000_000 {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                let _ = flooder.send(&wire);
            }
        });
        victim.set_read_timeout(Some(PATIENCE)).unwrap();
        for number in 0..300 {
            // Hits and misses.
            let name = if number % 3 == 0 { format!("name{number}.example A") } else { "www.example A".to_owned() };
            victim.send(&query(&name).to_wire()).unwrap();
            lost += usize::from(victim.recv(&mut [0; 512]).is_err());
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(lost, 0);
}

/// Names without end, whether their answers are large or never come: memory is bounded by what is configured.
#[test]
fn floods_of_unique_names_leave_memory_within_bounds() {
    let (quick, (_sink, silent)) = (Quick::new(8000), sink());
    let server = "max_in_flight = 20000\nmax_in_flight_per_client = 20000\n[cache]\nsize = \"4MiB\"\n";
    let mut daemon = Setup::new(&config(quick.address(), silent, server)).start();
    daemon.ask("www.example A");
    let base = daemon.resident_kib();
    let clients: Vec<_> = (0..4u8).map(|ip| client_at([127, 0, 0, 10 + ip], daemon.address())).collect();
    let mut peak = (0.0, 0);
    for round in 0..8 {
        for (number, client) in clients.iter().enumerate() {
            flood(client, dead(&format!("client{number}-{round}"), 600));
        }
        let waiting = daemon.metric("watershed_resolve_waiting", &[]);
        let resident = daemon.resident_kib() - base;
        peak = (waiting.max(peak.0), resident.max(peak.1));
        assert!(waiting <= 20_000.0, "{waiting}");
    }
    // The whole of it, for what was waited for a moment ago may not be free yet.
    let bound = 20_000 * KIB_PER_WAITING + SLACK_KIB;
    assert!(peak.1 < bound, "{} KiB while up to {} waited", peak.1, peak.0);
    wait_until("the end of all waiting", LONG, || {
        (daemon.metric("watershed_resolve_waiting", &[]) == 0.0).then_some(())
    });
    for round in 0..8 {
        let client = client_at([127, 0, 0, 20], daemon.address());
        flood(&client, (0..250).map(|number| format!("name{number}-{round}.example TXT")));
        wait_until("their answers", LONG, || (quick.answered() > 250 * (round + 1)).then_some(()));
    }
    wait_until("the cache to be full", PATIENCE, || {
        (daemon.metric("watershed_cache_evictions_total", &[]) > 0.0).then_some(())
    });
    assert!(daemon.metric("watershed_cache_bytes", &[]) <= f64::from(4 << 20));
    let resident = daemon.resident_kib() - base;
    assert!(resident < bound + (4 << 10), "{resident} KiB");
    assert!(daemon.is_running());
}

/// Tasks have sockets of their own for what comes over TCP. Without descriptors these fail, and nothing else does.
#[test]
fn a_flood_that_takes_all_descriptors_fails_alone() {
    let Some(_) = require::program("prlimit") else { return };
    let (quick, (_sink, silent)) = (Quick::new(0), sink());
    let setup = Setup::new(&config(quick.address(), silent, "")).by(&["prlimit", "--nofile=160:160"]);
    let mut daemon = setup.start();
    // Each worker has a socket towards the upstream.
    for number in 0..20 {
        daemon.ask(&format!("first{number}.example A"));
    }
    let mut flooders: Vec<_> = (0..4).map(|number| connect_from(loopback(number), daemon.address()).unwrap()).collect();
    for (number, connection) in flooders.iter_mut().enumerate() {
        let names = dead(&format!("client{number}"), 100);
        let frames: Vec<u8> = names.flat_map(|name| framed(&query(&name).to_wire())).collect();
        connection.write_all(&frames).unwrap();
    }
    let failed = || daemon.metric("watershed_server_replies_total", &[("transport", "tcp"), ("rcode", "SERVFAIL")]);
    for number in 0..30 {
        assert_eq!(daemon.ask(&format!("name{number}.example A")).one(), "192.0.2.1");
        assert_eq!(daemon.ask("first1.example A").one(), "192.0.2.1");
    }
    wait_until("all of the flood to be answered", LONG, || (failed() >= 400.0).then_some(()));
    drop(flooders);
    assert_eq!(daemon.tcp(&query("after.example A")).one(), "192.0.2.1");
    assert!(daemon.is_running());
    wait_until("a balance", PATIENCE, || Account::of(&daemon).is_balanced().then_some(()));
}

/// What we reply to ourselves, or to whoever answers everything, must not come back as a query.
#[test]
fn a_forged_source_begins_no_loop() {
    if !require::root() {
        return;
    }
    let upstream = Quick::new(0);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    daemon.ask("www.example A");
    let own = daemon.address();
    let broken = [&query("www.example A").to_wire()[..], &[0]].concat();
    let at = |port| SocketAddr::new(own.ip(), port);
    let dropped = |reason| daemon.metric("watershed_server_dropped_total", &[("reason", reason)]) as u64;
    let mut expected = Account::of(&daemon);
    for (from, payload, is_own) in [
        (own, &query("www.example A").to_wire(), true),
        (own, &query("new.example A").to_wire(), true), // by way of the upstream
        (own, &broken, true),                           // FORMERR is a response, too
        (at(0), &query("www.example A").to_wire(), false),
        (at(7), &query("www.example A").to_wire(), false),
        (at(19), &broken, false),
    ] {
        (0..5).for_each(|_| forge(from, own, payload));
        // Our own replies come in, and are no queries.
        expected.received += if is_own { 10 } else { 5 };
        expected.replies += if is_own { 5 } else { 0 };
        expected.dropped += 5;
        wait_until(&format!("{from} to be accounted for"), PATIENCE, || {
            (Account::of(&daemon) == expected).then_some(())
        });
    }
    assert_eq!((dropped("not_a_query"), dropped("port")), (15, 15));
    daemon.ask("www.example A");
    assert_eq!(
        Account::of(&daemon),
        Account { received: expected.received + 1, replies: expected.replies + 1, ..expected }
    );
}

/// What a question takes while it waits, with all that an unoptimized build and the allocator add.
const KIB_PER_WAITING: u64 = 6;
const SLACK_KIB: u64 = 24 << 10;
