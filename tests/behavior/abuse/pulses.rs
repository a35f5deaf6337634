//! Replies to one network that are made to leave together (DNSBomb, CVE-2024-33655).

use std::{net::UdpSocket, time::Instant};

use super::lives_and_ends;
use crate::harness::{
    daemon::forward,
    flood::{client_at, gather},
    message::query,
    *,
};

/// An upstream that answers when the gate is opened, and a daemon with these keys of its rate limit.
fn besieged(keys: &str) -> (Upstream, Gate, Daemon) {
    let (upstream, gate) = Upstream::saying_behind_gate("192.0.2.1");
    let local = "[[zone]]\napex = \"site.example\"\nfile = \"site.zone\"\n";
    let zone = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.1\n";
    let config = forward(".", &[upstream.address()]) + local + "[server.rate_limit]\n" + keys;
    let daemon = Setup::new(&config).file("site.zone", zone).start();
    (upstream, gate, daemon)
}

/// Asks the same so many times with the addresses of one network, and opens the gate once all of them wait: one response of the
/// upstream answers all.
fn pulse(daemon: &Daemon, gate: &Gate, queries: usize) -> (Vec<UdpSocket>, Instant) {
    let victims: Vec<UdpSocket> = (1..=20).map(|host| client_at([127, 77, 7, host], daemon.address())).collect();
    for number in 0..queries {
        let question = query("pulse.example A").edns(1232);
        victims[number % victims.len()].send(&question.to_wire()).unwrap();
    }
    let waiting = || daemon.metric("watershed_resolve_waiting", &[]);
    wait_until("all of them to wait", PATIENCE, || (waiting() >= queries as f64).then_some(()));
    let opened = Instant::now();
    gate.open();
    (victims, opened)
}

/// How many replies there are for these by now. What has been read has left before this returns.
fn take(victims: &[UdpSocket]) -> usize {
    let mut buffer = [0; 1500];
    let mut replies = 0;
    for victim in victims {
        victim.set_nonblocking(true).unwrap();
        while victim.recv(&mut buffer).is_ok() {
            replies += 1;
        }
    }
    replies
}

#[test]
fn replies_that_have_waited_leave_for_one_network_a_few_at_a_time() {
    const QUERIES: usize = 1200;
    let (_upstream, gate, daemon) = besieged("exempt = []\n");
    let (victims, opened) = pulse(&daemon, &gate, QUERIES);
    let honest = client_at([127, 99, 1, 1], daemon.address());
    honest.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut replies = 0;
    while replies < QUERIES {
        replies += take(&victims);
        let elapsed = opened.elapsed();
        // 20 at once, and 8 in each millisecond.
        let most = 20 + 8 * (elapsed.as_millis() as usize + 1);
        assert!(replies <= most, "{replies} replies within {elapsed:?}");
        assert!(elapsed < PATIENCE, "{replies} replies of {QUERIES}");
        honest.send(&query("www.site.example A").to_wire()).unwrap();
        honest.recv(&mut [0; 512]).expect("an answer for an honest client");
    }
    assert_eq!(daemon.metric("watershed_server_dropped_total", &[("reason", "rate_limit")]), 0.0);
    lives_and_ends(daemon, "after a pulse");
}

#[test]
fn a_rate_limit_counts_replies_as_they_leave() {
    const QUERIES: usize = 190;
    let (_upstream, gate, daemon) = besieged("exempt = []\nresponses_per_second = 200\nslip = 0\n");
    let (victims, opened) = pulse(&daemon, &gate, QUERIES);
    let mut replies = 0;
    let dropped = || daemon.metric("watershed_server_dropped_total", &[("reason", "rate_limit")]) as usize;
    while replies + dropped() < QUERIES {
        replies += take(&victims);
        let elapsed = opened.elapsed();
        // A tenth of a second's worth, and then the rate.
        let most = 20 + elapsed.as_millis() as usize / 5 + 1;
        assert!(replies <= most, "{replies} replies within {elapsed:?}");
        assert!(elapsed < PATIENCE, "{replies} replies of {QUERIES}");
    }
    assert!(replies > 20, "they are spread before they are dropped: {replies}");
}

#[test]
fn clients_whose_addresses_cannot_be_forged_are_not_held_back() {
    const QUERIES: usize = 100;
    // One reply a second, but not for loopback, which is exempt by default.
    let (_upstream, gate, daemon) = besieged("responses_per_second = 1\nslip = 0\n");
    let (victims, _) = pulse(&daemon, &gate, QUERIES);
    gather(&victims, QUERIES);
    // Nor for TCP, whose clients have shown their address.
    let (_upstream, gate, daemon) = besieged("exempt = []\nresponses_per_second = 1\nslip = 0\n");
    let mut client = Tcp::connect(daemon.address());
    let queries = vec![query("pulse.example A"); QUERIES];
    client.send(&queries.iter().collect::<Vec<_>>());
    gate.open();
    for _ in 0..QUERIES {
        assert_eq!(client.receive().one(), "192.0.2.1");
    }
}
