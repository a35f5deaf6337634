//! Who may ask, and what a stranger is told.

use crate::harness::{daemon::forward, flood::client_at, netns::Netns, *};

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

/// What a client at this address of loopback is told, by UDP.
fn rcode_for(ip: [u8; 4], server: SocketAddr) -> &'static str {
    let client = client_at(ip, server);
    client.send(&query("www.example A").edns(1232).to_wire()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).expect("a reply");
    let reply = Message::from_wire(&buffer[..length]).unwrap();
    assert!(reply.rcode_name() == "NOERROR" || reply.answer.is_empty());
    reply.rcode_name()
}

#[test]
fn the_list_of_clients_is_obeyed_and_follows_a_reload() {
    let upstream = Upstream::saying("192.0.2.1");
    let config =
        forward(".", &[upstream.address()]) + "[server]\nlisten = [\"127.0.0.1:0\"]\nallow = [\"127.0.0.0/16\"]\n";
    let daemon = Setup::new(&config).start();
    let (near, far) = ([127, 0, 9, 9], [127, 3, 0, 1]);
    let mut list = "127.0.0.0/16".to_owned();
    for (allow, near_is, far_is) in [
        ("127.0.0.0/16", "NOERROR", "REFUSED"),
        ("127.3.0.1", "REFUSED", "NOERROR"),
        ("::ffff:127.3.0.0/112", "REFUSED", "NOERROR"), // IPv4 as IPv6 has it
        ("192.0.2.0/24", "REFUSED", "REFUSED"),
        ("private", "REFUSED", "REFUSED"), // loopback is a list of its own
        ("loopback", "NOERROR", "NOERROR"),
        ("any", "NOERROR", "NOERROR"),
    ] {
        daemon
            .edit_config(|config| config.replace(&format!("allow = [\"{list}\"]"), &format!("allow = [\"{allow}\"]")));
        allow.clone_into(&mut list);
        assert!(daemon.reload().contains("reloaded"), "{allow}");
        assert_eq!((rcode_for(near, daemon.address()), rcode_for(far, daemon.address())), (near_is, far_is), "{allow}");
    }
    // The cache was filled by those who are served, and nobody else has made it ask.
    assert_eq!(upstream.asked(), ["www.example. A"]);
}

#[test]
fn a_stranger_is_refused_by_udp_and_finds_no_connection() {
    let Some(netns) = Netns::new("") else { return };
    let upstream = Upstream::saying("192.0.2.1");
    let config = forward(".", &[upstream.address()]) + "[server]\nlisten = [\"0.0.0.0:0\"]\n";
    let daemon = Setup::new(&config).start();
    let (server, port) = (format!("@{}", netns.host()), daemon.address().port().to_string());
    // The address inside is of a network that is neither private nor ours (RFC 2544).
    let dig = |arguments: &[&str]| {
        let output =
            netns.command("dig").args([&*server, "-p", &port, "+tries=1", "+timeout=5"]).args(arguments).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    };
    let refused = dig(&["www.example", "A"]);
    assert!(refused.contains("REFUSED") && refused.contains("ANSWER: 0"), "{refused}");
    let start = Instant::now();
    let closed = dig(&["+tcp", "www.example", "A"]);
    assert!(!closed.contains("status:") && start.elapsed() < Duration::from_secs(4), "{closed}");
    assert_eq!(daemon.metric("watershed_server_rejected_total", &[("reason", "acl")]), 1.0);
    assert!(daemon.metric("watershed_server_tcp_refused_total", &[("reason", "acl")]) >= 1.0);
    assert!(upstream.asked().is_empty());
    daemon.edit_config(|config| {
        config.replace(
            "listen = [\"0.0.0.0:0\"]",
            &format!("listen = [\"0.0.0.0:0\"]\nallow = [\"{}/30\"]", netns.host()),
        )
    });
    daemon.reload();
    for arguments in [&["+short", "www.example", "A"][..], &["+short", "+tcp", "www.example", "A"]] {
        assert_eq!(dig(arguments).trim(), "192.0.2.1");
    }
}

/// Who asks what we are called or made of learns nothing: not by class CHAOS, and not by class IN.
#[test]
fn a_stranger_learns_neither_version_nor_name() {
    let upstream = Upstream::holding(&[]);
    let daemon = Setup::forwarding_to(upstream.address()).start();
    for qname in ["version.bind", "version.server", "hostname.bind", "id.server", "authors.bind"] {
        for qtype in ["TXT", "ANY"] {
            let query = query(&format!("{qname} {qtype}")).class(3).edns(1232);
            for reply in [daemon.udp(&query), daemon.tcp(&query)] {
                assert_eq!((reply.rcode_name(), reply.answer.len()), ("REFUSED", 0), "{qname} {qtype}");
            }
        }
    }
    assert!(upstream.asked().is_empty());
    // NSID (RFC 5001) asks for the same in another way.
    let client = client_at([127, 0, 0, 1], daemon.address());
    client.send(&query("www.example A").option(3, &[]).to_wire()).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).expect("a reply");
    let reply = Message::from_wire(&buffer[..length]).unwrap();
    assert!(reply.edns.unwrap().options.iter().all(|(code, _)| *code != 3));
}
