//! Names that must stay on this host, or on this site, asked in every way; and all that has reached a public recursor.

use std::{
    collections::BTreeSet,
    net::{Ipv6Addr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use crate::harness::{
    daemon::forward,
    message::{AD, CD, RD},
    netns::Netns,
    upstream::saying,
    *,
};

/// Names of every kind that has to stay: built in, of local sources, and of sources that are away.
fn kept() -> Vec<String> {
    let named = [
        "localhost",
        "db.localhost",
        "localhost.localhost",
        "invalid",
        "www.invalid",
        "facebookcorewwwi.onion",
        "www.alt",
        "_dns.resolver.arpa",
        "resolver.arpa",
        "printer.local",
        "_http._tcp.local",
        "local",
        "nas.home.arpa",
        "www.test",
        "db.internal",
        // As a search list makes them of names that were meant otherwise.
        "www.example.org.localhost",
        "www.example.org.local",
        "galeradb.service.consul.internal",
        // Of local sources.
        "consul",
        "galeradb.service.consul",
        "no.service.consul",
        "_galeradb._tcp.service.dc2.consul",
        "a.node.consul",
        "www.static.example",
        "no.static.example",
        "static.example",
        "held.overlaid.example",
        "db.hosts.example",
        "www.secret.example",
        "7.2.0.192.in-addr.arpa", // in the hosts file
    ];
    let reverse4 = [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [10, 0, 0, 1],
        [10, 255, 255, 254],
        [100, 64, 0, 1],
        [100, 127, 255, 254],
        [127, 0, 0, 1],
        [127, 3, 2, 1],
        [169, 254, 0, 1],
        [169, 254, 169, 254],
        [172, 16, 0, 1],
        [172, 20, 10, 5],
        [172, 31, 255, 254],
        [192, 0, 2, 1],
        [192, 168, 0, 1],
        [192, 168, 255, 254],
        [198, 51, 100, 1],
        [203, 0, 113, 1],
        [255, 255, 255, 255],
    ];
    let reverse6 =
        ["::", "::1", "fd00::1", "fdff:1:2:3::4", "fe80::1", "fe90::1", "fea0::1", "febf:ffff::1", "2001:db8::1"];
    let nibbles = |address: &str| {
        let octets = address.parse::<Ipv6Addr>().unwrap().octets();
        octets.iter().rev().map(|octet| format!("{:x}.{:x}.", octet & 15, octet >> 4)).collect::<String>() + "ip6.arpa"
    };
    (named.into_iter().map(str::to_owned))
        .chain(reverse4.map(|[a, b, c, d]| format!("{d}.{c}.{b}.{a}.in-addr.arpa")))
        // The zones themselves, and names for service discovery below them (RFC 6763 §11).
        .chain(["10.in-addr.arpa", "16.172.in-addr.arpa", "b._dns-sd._udp.0.0.168.192.in-addr.arpa"].map(str::to_owned))
        .chain(reverse6.map(nibbles))
        .chain(["d.f.ip6.arpa", "8.e.f.ip6.arpa"].map(str::to_owned))
        .collect()
}

/// Names beside these that look like them, and are the recursors' to answer.
const FORWARDED: [&str; 8] = [
    "localhost.example",
    "www.local.example",
    "notlocalhost",
    "galeradb.service.consul.example",
    "1.0.0.9.in-addr.arpa",
    "1.0.32.172.in-addr.arpa",
    "1.0.128.100.in-addr.arpa",
    "other.overlaid.example",
];

const TYPES: [&str; 11] = ["A", "AAAA", "PTR", "SRV", "ANY", "SOA", "NS", "DS", "TXT", "HTTPS", "TYPE65280"];

const CLIENTS: usize = 16;

/// The name with each second letter in upper case.
fn mixed(name: &str) -> String {
    name.char_indices().map(|(at, c)| if at % 2 == 0 { c.to_ascii_uppercase() } else { c }).collect()
}

/// Asks for all of them, of all types, in the ways that clients ask.
fn ask_all(daemon: &Daemon, names: &[String]) {
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                let mut stream = Tcp::connect(daemon.address());
                // Those whose source is away take longer, and stand together.
                for (number, name) in names.iter().enumerate().skip(client).step_by(CLIENTS) {
                    for (turn, qtype) in TYPES.iter().enumerate() {
                        let name = if turn % 2 == 0 { name.clone() } else { mixed(name) };
                        let question = query(&format!("{name} {qtype}"));
                        let question = match (number + turn) % 5 {
                            0 => question,
                            1 => question.edns(1232).dnssec_ok(),
                            2 => question.edns(4096).set(CD),
                            3 => question.edns(1232).set(AD),
                            _ => question.clear(RD),
                        };
                        if turn % 3 == 0 {
                            stream.send(&[&question]);
                            assert_eq!(stream.receive().question, question.question);
                        } else {
                            daemon.udp(&question);
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn no_name_that_is_to_stay_reaches_a_public_recursor_whatever_is_down() {
    let Some(netns) = Netns::new("") else { return };
    // By its address it is a recursor of the world.
    let recursor = Upstream::at(SocketAddr::new(netns.host(), 5302), saying("192.0.2.1"));
    let guest = netns.guest();
    let config = [
        forward(".", &[recursor.address()]),
        // Neither agent is there, nor its DNS.
        "[catalog]\nnode_name = \"monitor1\"\naddress = \"192.0.2.9\"\n[catalog.consul]\n".to_owned(),
        "[[zone]]\napex = \"static.example\"\nfile = \"<DIR>/static.zone\"\n".to_owned(),
        "[[zone]]\napex = \"overlaid.example\"\nfile = \"<DIR>/some.overlay\"\nmode = \"overlay\"\n".to_owned(),
        "[[refuse]]\nsuffixes = [\"secret.example\"]\n".to_owned(),
        "[zones]\nhosts = [\"<DIR>/hosts\"]\n".to_owned(),
        format!(
            "[server]\nlisten = [\"{guest}:0\"]\nallow = [\"any\"]\nworkers = 2\n[control]\nlisten = \"{guest}:0\"\n"
        ),
    ];
    let zone = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.30\n";
    let hosts = "192.0.2.7 db.hosts.example\n";
    let daemon = Setup::new(&config.concat())
        .file("static.zone", zone)
        .file("some.overlay", "$TTL 60\nheld A 192.0.2.60\n")
        .file("hosts", hosts)
        .within(&netns)
        .start();
    let kept = kept();
    ask_all(&daemon, &kept);
    // While reloads come one after the other.
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            ask_all(&daemon, &kept);
            is_over.store(true, Ordering::Relaxed);
        });
        while !is_over.load(Ordering::Relaxed) && !asking.is_finished() {
            daemon.reload();
        }
    });
    // While the files of local data are faulty, also after a reload.
    daemon.write("static.zone", "$TTL 60\n@ SOA this is no record\n");
    daemon.write("some.overlay", "held A 192.0.2.666\n");
    wait_until("the faults", PATIENCE, || {
        (daemon.metric("watershed_zone_files", &[("state", "faulty")]) >= 2.0).then_some(())
    });
    assert!(daemon.reload().contains("reloaded"));
    ask_all(&daemon, &kept);
    // While they are gone. A hosts file may be: then it holds no names.
    for file in ["static.zone", "some.overlay"] {
        std::fs::remove_file(daemon.folder().join(file)).unwrap();
    }
    assert!(daemon.reload().contains("reloaded"));
    ask_all(&daemon, &kept);
    // And all of that was seen by a recursor that is there.
    for name in FORWARDED {
        daemon.ask(&format!("{name} A"));
    }
    let mut asked: BTreeSet<String> = recursor.asked().into_iter().collect();
    // Where a busy machine makes it seem down, it is probed.
    asked.remove(". NS");
    assert_eq!(asked, FORWARDED.iter().map(|name| format!("{name}. A")).collect());
}
