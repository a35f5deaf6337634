//! Who may ask, and what a stranger is told.

use crate::harness::{daemon::forward, flood::client_at, message::RD, netns::Netns, programs::Program, *};

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

/// What a client at this address of loopback is told without recursion, and the data of it.
fn without_recursion(ip: [u8; 4], server: SocketAddr, question: &str) -> (&'static str, Vec<String>) {
    let client = client_at(ip, server);
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send(&query(question).clear(RD).to_wire()).unwrap();
    let mut buffer = [0; 512];
    let length = client.recv(&mut buffer).expect("a reply");
    let reply = Message::from_wire(&buffer[..length]).unwrap();
    (reply.rcode_name(), reply.data())
}

#[test]
fn what_is_cached_is_shown_without_recursion_only_to_those_who_may_see_it() {
    let upstream = Upstream::holding(&["www.example. 300 A 192.0.2.1", "alias.example. 300 CNAME www.example."]);
    let zone =
        "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\nwww A 192.0.2.80\nout CNAME www.example.\n";
    let config = forward(".", &[upstream.address()])
        + "[[zone]]\napex = \"site.example\"\nfile = \"site.zone\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n\
           allow_query_cache = [\"127.7.0.0/16\"]\n";
    let daemon = Setup::new(&config).file("site.zone", zone).start();
    let (friend, stranger) = ([127, 7, 0, 1], [127, 8, 0, 1]);
    let ask = |ip, question| without_recursion(ip, daemon.address(), question);
    let refused = ("REFUSED", Vec::new());
    for ip in [friend, stranger] {
        assert_eq!(ask(ip, "www.example A"), refused, "nobody has asked for it");
    }
    for question in ["www.example A", "no.example A", "out.site.example A"] {
        daemon.ask(question);
    }
    assert_eq!(ask(friend, "www.example A"), ("NOERROR", vec!["192.0.2.1".to_owned()]));
    assert_eq!(ask(friend, "no.example A").0, "NXDOMAIN");
    assert_eq!(ask(friend, "out.site.example A").1, ["www.example.", "192.0.2.1"]);
    for question in ["www.example A", "no.example A", "never.example A"] {
        assert_eq!(ask(stranger, question), refused, "{question}");
    }
    // Local data is nobody's secret, and where it ends the cache is not looked into.
    assert_eq!(ask(stranger, "www.site.example A"), ("NOERROR", vec!["192.0.2.80".to_owned()]));
    assert_eq!(ask(stranger, "out.site.example A"), ("NOERROR", vec!["www.example.".to_owned()]));
    assert_eq!(ask(stranger, "no.site.example A").0, "NXDOMAIN");
    // With recursion all are answered.
    assert_eq!(rcode_for(stranger, daemon.address()), "NOERROR");
    daemon.edit_config(|config| config.replace("127.7.0.0/16", "any"));
    assert!(daemon.reload().contains("reloaded"));
    daemon.ask("www.example A");
    assert_eq!(ask(stranger, "www.example A").0, "NOERROR");
}

#[test]
fn bind_refuses_the_same_queries_for_what_is_cached() {
    let upstream = Upstream::holding(&["www.example. 300 A 192.0.2.1"]);
    let Some(bind) =
        Program::bind_forwarding_all(upstream.address(), "allow-query-cache { 127.0.0.1; 127.7.0.0/16; };")
    else {
        return;
    };
    let config = forward(".", &[upstream.address()])
        + "[server]\nlisten = [\"127.0.0.1:0\"]\nallow_query_cache = [\"127.7.0.0/16\"]\n";
    let daemon = Setup::new(&config).start();
    for server in [bind.address(), daemon.address()] {
        let friend = client_at([127, 7, 0, 1], server);
        friend.set_read_timeout(Some(PATIENCE)).unwrap();
        friend.send(&query("www.example A").to_wire()).unwrap();
        friend.recv(&mut [0; 512]).expect("an answer with recursion");
    }
    for (ip, question) in
        [([127, 7, 0, 1], "www.example A"), ([127, 8, 0, 1], "www.example A"), ([127, 8, 0, 1], "never.example A")]
    {
        let [theirs, ours] = [bind.address(), daemon.address()].map(|server| without_recursion(ip, server, question));
        assert_eq!(theirs, ours, "{ip:?} {question}");
    }
}
