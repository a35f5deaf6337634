//! Link-local addresses with their interface, which comes late, goes, and comes back with another index.

use std::{
    fs,
    net::{SocketAddr, TcpListener, UdpSocket},
    process::Command,
    time::Duration,
};

use crate::harness::{http, netns::Netns, *};

const ZONE: &str = "$TTL 60\n@ SOA ns host 1 2 3 4 60\n@ NS ns\nns A 192.0.2.53\n* A 192.0.2.1\n";

/// Makes the pair of interfaces anew, with an address for each end.
fn join(netns: &Netns) {
    let (name, outside) = (netns.name(), netns.interface());
    for command in [
        format!("link add {outside} type veth peer name inside netns {name}"),
        format!("addr add fe80::1/64 dev {outside} nodad"),
        format!("link set {outside} up"),
        format!("-n {name} addr add fe80::2/64 dev inside nodad"),
        format!("-n {name} link set inside up"),
    ] {
        run(Command::new("ip").args(command.split(' ')));
    }
}

fn part(netns: &Netns) {
    run(Command::new("ip").args(["link", "del", &netns.interface()]));
}

/// The address of the outer end, for sockets of the test.
fn outer(netns: &Netns, port: u16) -> SocketAddr {
    let index = fs::read_to_string(format!("/sys/class/net/{}/ifindex", netns.interface())).unwrap();
    format!("[fe80::1%{}]:{port}", index.trim()).parse().unwrap()
}

/// What a client inside is told by this server.
fn dig(netns: &Netns, arguments: &[&str]) -> String {
    let output = netns.command("dig").args(["+short", "+tries=1", "+time=5"]).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn upstreams_and_listeners_live_as_long_as_their_interface() {
    let Some(netns) = Netns::new("") else { return };
    let tls = rcgen::generate_simple_self_signed(["dns.example".to_owned()]).unwrap();
    part(&netns);
    // Neither interface is there yet.
    let served = "[[zone]]\napex = \"test\"\nfile = \"test.zone\"\n[server]\nworkers = 1\nallow = [\"any\"]\n\
                  listen = [\"127.0.0.1:53\", \"fe80::2%inside\"]\ntls_listen = [\"fe80::2%inside\"]\n\
                  https_listen = [\"[fe80::2%inside]\"]\ncertificate = \"cert.pem\"\nprivate_key = \"key.pem\"\n";
    let server = Setup::new(served)
        .file("test.zone", ZONE)
        .file("cert.pem", &tls.cert.pem())
        .file("key.pem", &tls.signing_key.serialize_pem())
        .within(&netns)
        .start();
    server.wait_for_log(0, |line| line.contains("cannot listen on [fe80::2%inside]:853 yet"));
    let outside = netns.interface();
    let mut config = String::new();
    for (suffix, upstream) in [
        ("udp.test", format!("fe80::2%{outside}")),
        ("tcp.test", format!("tcp://[fe80::2%{outside}]:53")),
        ("tls.test", format!("tls://fe80::2%{outside}#dns.example")),
        ("https.test", format!("https://[fe80::2%{outside}]#dns.example")),
    ] {
        config +=
            &format!("[[forward]]\nsuffixes = [\"{suffix}\"]\nupstreams = [\"{upstream}\"]\nca_file = \"ca.pem\"\n");
    }
    config += &format!(
        "[server]\nworkers = 1\nallow = [\"any\"]\nlisten = [\"127.0.0.1:0\", \"[fe80::1%{outside}]:5355\"]\n\
         [control]\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"[fe80::1%{outside}]:9355\"\n"
    );
    let daemon = Setup::new(&config).file("ca.pem", &tls.cert.pem()).start();
    let upstream = format!("[fe80::2%{outside}]:53");
    assert_eq!(daemon.ask("early.udp.test A").rcode_name(), "SERVFAIL");
    let is_up = |daemon: &Daemon| daemon.metric("watershed_forward_up", &[("upstream", &upstream)]);
    for round in 0..2 {
        join(&netns);
        for transport in ["udp", "tcp", "tls", "https"] {
            let question = format!("name{round}.{transport}.test A");
            wait_until(&question, PATIENCE, || (daemon.ask(&question).data() == ["192.0.2.1"]).then_some(()));
        }
        assert_eq!(is_up(&daemon), 1.0, "named as it is configured");
        for transport in ["+notcp", "+tcp"] {
            let question = format!("name{round}.udp.test");
            let ask = || dig(&netns, &["@fe80::1%inside", "-p", "5355", transport, &question]);
            wait_until("the listener", PATIENCE, || (ask() == "192.0.2.1").then_some(()));
        }
        let metrics = || {
            let fields = [("Host", "[fe80::1]:9355")];
            http::send(outer(&netns, 9355), "GET /metrics", &fields, "", Duration::from_secs(5)).ok()
        };
        let text = wait_until("the metrics", PATIENCE, metrics).body;
        assert!(text.contains(&format!("listener=\"[fe80::1%{outside}]:5355\"")), "{text}");
        part(&netns);
        assert_eq!(daemon.ask(&format!("gone{round}.udp.test A")).rcode_name(), "SERVFAIL");
    }
    drop(server);
}

#[test]
fn the_system_may_name_a_link_local_server() {
    let Some(netns) = Netns::new("nameserver fe80::1%inside\n") else { return };
    part(&netns);
    join(&netns);
    // The socket knows its interface by index; the upstream is gone before that is.
    let address = outer(&netns, 53);
    let (udp, tcp) = (UdpSocket::bind(address).unwrap(), TcpListener::bind(address).unwrap());
    let upstream = Upstream::on(address, udp, tcp, upstream::holding(&["www.example. 300 A 192.0.2.1"]));
    let daemon = Setup::bare().within(&netns).start();
    assert_eq!(dig(&netns, &["@127.0.0.1", "www.example"]), "192.0.2.1");
    assert_eq!(upstream.count("www.example A"), 1);
    drop(daemon);
}

#[test]
fn an_interface_is_checked_where_it_is_written() {
    let check = |line: &str| {
        let ended = Setup::new(&format!("[[forward]]\nsuffixes = [\".\"]\n{line}\n")).check();
        assert_eq!(ended.code, Some(2), "{line}: {}", ended.text);
        ended.text
    };
    for (line, fault) in [
        ("upstreams = [\"fe80::53\"]", ":3: upstream \"fe80::53\": \"fe80::53\" is a link-local address without"),
        ("upstreams = [\"2001:db8::1%lo\"]", ":3: upstream \"2001:db8::1%lo\": \"2001:db8::1%lo\" has a % where"),
        ("upstreams = [\"192.0.2.1\"]\n[server]\nlisten = [\"fe80::1\"]", ":5: "),
        ("upstreams = [\"192.0.2.1\"]\n[control]\nlisten = \"[fe80::1]:80\"", ":5: "),
    ] {
        let text = check(line);
        assert!(text.contains(fault), "{line}: {text}");
    }
}
