//! Whatever the network sends is answered, counted or dropped; it costs the sender and nobody else.

use std::{io::Write, net::Shutdown, thread, time::Instant};

use crate::harness::{
    client::{framed, socket_for},
    *,
};

#[test]
fn random_octets_neither_end_it_nor_let_it_grow() {
    let upstream = Upstream::saying("192.0.2.1");
    let mut daemon = Setup::forwarding_to(upstream.address()).start();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let good = query("www.example A").edns(1232).to_wire();
    let socket = socket_for(daemon.address());
    let mut flood = |count: usize| {
        for number in 0..count {
            let wire: Vec<u8> = match number % 3 {
                0 => (0..random.below(600)).map(|_| random.next() as u8).collect(),
                // Like a query, but for the octets behind the id.
                1 => {
                    let mut wire = good.clone();
                    for _ in 0..1 + random.below(6) {
                        let at = 2 + random.below(wire.len() - 2);
                        // Only the header and the OPT record: other names would fill the cache, as they should.
                        if !(12..good.len() - 11).contains(&at) {
                            wire[at] = random.next() as u8;
                        }
                    }
                    wire
                }
                _ => good[..random.below(good.len())].to_vec(),
            };
            let _ = socket.send(&wire);
            if number % 64 == 0 {
                daemon.ask("www.example A"); // keeps step, so that it is read and not dropped by the kernel
            }
        }
    };
    flood(5000);
    let before = daemon.resident_kib();
    flood(40_000);
    let after = daemon.resident_kib();
    assert!(after < before + 4096, "{before} KiB before, {after} KiB after");
    assert!(daemon.is_running());
    assert_eq!(daemon.ask("new.example A").one(), "192.0.2.1");
    let of_daemon = |name| daemon.metric(name, &[]);
    let rejected = of_daemon("watershed_server_rejected_total") + of_daemon("watershed_server_dropped_total");
    assert!(rejected > 10_000.0);
}

#[test]
fn garbage_over_tcp_ends_its_own_connection_alone() {
    let upstream = Upstream::saying("192.0.2.1");
    let config = daemon::forward(".", &[upstream.address()])
        + "[server]\nlisten = [\"127.0.0.1:0\"]\ntcp_message_timeout = \"300ms\"\ntcp_idle_timeout = \"1s\"\n";
    let mut daemon = Setup::new(&config).start();
    let mut honest = Tcp::connect(daemon.address());
    let mut random = Random(1);
    let noise: Vec<u8> = (0..20_000).map(|_| random.next() as u8).collect();
    for (case, bytes) in [
        ("a length and nothing", &[0, 50][..]),
        ("half a length", &[0]),
        ("the largest length and little", &[0xff, 0xff, 1, 2, 3]),
        ("noise", &noise),
    ] {
        let mut connection = Tcp::connect(daemon.address());
        let _ = connection.stream.write_all(bytes);
        let start = Instant::now();
        while connection.receive_wire().is_some() {} // FORMERR, or whatever it deserves
        assert!(start.elapsed() < PATIENCE, "{case}: neither answered nor closed");
        honest.send(&[&query("www.example A")]);
        assert_eq!(honest.receive().one(), "192.0.2.1", "{case}");
    }
    // Closed in the midst of it, as often as one likes.
    for number in 0..500 {
        let mut connection = Tcp::connect(daemon.address());
        let _ = connection.stream.write_all(&noise[number..number + 7]);
        let _ = connection.stream.shutdown(Shutdown::Both);
    }
    assert!(daemon.is_running());
    // So many at once were more than one client may have; they are forgotten as soon as their end is seen.
    let reply = wait_until("a connection", PATIENCE, || {
        let mut connection = Tcp::connect(daemon.address());
        let _ = connection.stream.write_all(&framed(&query("www.example A").to_wire()));
        connection.receive_wire()
    });
    assert_eq!(Message::from_wire(&reply).unwrap().one(), "192.0.2.1");
}

/// Nonsense from an upstream is as harmless.
#[test]
fn random_octets_from_an_upstream_are_a_failure_and_no_more() {
    let seeds = std::sync::atomic::AtomicU64::new(1);
    let upstream = Upstream::new(move |asked| {
        let mut random = Random(seeds.fetch_add(7919, std::sync::atomic::Ordering::Relaxed));
        let mut wire =
            asked.message.respond().answer(&format!("{} 60 MX 10 mail.example.", asked.message.qname())).to_wire();
        let from = asked.message.question.len() + 12;
        for _ in 0..1 + random.below(4) {
            let at = if random.below(4) == 0 { 4 + random.below(8) } else { from + random.below(wire.len() - from) };
            wire[at] = random.next() as u8;
        }
        wire.truncate(wire.len() - random.below(3) * random.below(wire.len() - 12));
        vec![Act::Bytes(wire)]
    });
    let mut daemon = Setup::forwarding_to(upstream.address()).start();
    thread::scope(|scope| {
        for client in 0..16 {
            let address = daemon.address();
            scope.spawn(move || {
                for number in 0..20 {
                    let question = query(&format!("name{number}.client{client}.example MX")).edns(1232).to_wire();
                    assert!(exchange_udp(address, &question, PATIENCE).is_some(), "{number}: no reply at all");
                }
            });
        }
    });
    assert!(daemon.is_running());
    upstream.change(upstream::saying("192.0.2.1"));
    wait_until("an honest answer", PATIENCE, || (daemon.ask("new.example A").data() == ["192.0.2.1"]).then_some(()));
}

/// A xorshift generator: the same octets at every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}
