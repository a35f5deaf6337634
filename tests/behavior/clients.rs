//! Programs that know nothing of us: `dig`, `kdig`, and what libc's resolver does for `getent` and `ping`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::harness::{daemon::forward, message::TC, netns::Netns, *};

/// A daemon on port 53 of a namespace whose `resolv.conf` names it, between the two sides of the horizon.
struct Host {
    public: Upstream,
    _corp: Upstream,
    _daemon: Daemon,
    /// Last, for the others need its addresses until they have ended.
    netns: Netns,
}

impl Host {
    fn new() -> Option<Self> {
        let netns = Netns::new("nameserver 127.0.0.1\nsearch corp.example\n")?;
        let at = |port| SocketAddr::new(netns.host(), port);
        let pingable = format!("reach.example. 60 A {}", netns.host());
        let public = Upstream::at(
            at(5301),
            upstream::holding(&[
                "www.example. 60 A 192.0.2.1",
                "www.example. 60 AAAA 2001:db8::1",
                "v4only.example. 60 A 192.0.2.4",
                "alias.example. 60 CNAME app.corp.example.",
                "_ldap._tcp.example. 60 SRV 0 5 389 www.example.",
                "1.2.0.192.in-addr.arpa. 60 PTR www.example.",
                &pingable,
            ]),
        );
        let corp = Upstream::at(
            at(5302),
            upstream::holding(&["app.corp.example. 60 A 127.0.0.7", "db.corp.example. 60 A 10.0.0.5"]),
        );
        // The addresses of tests are reverse names that public upstreams are not asked for.
        let config = forward(".", &[public.address()])
            + "block_special = false\n"
            + &forward("corp.example", &[corp.address()])
            + "[server]\nlisten = [\"127.0.0.1:53\", \"[::1]:53\"]\n";
        let daemon = Setup::new(&config).within(&netns).start();
        Some(Self { public, _corp: corp, _daemon: daemon, netns })
    }

    #[track_caller]
    fn run(&self, command: &str) -> String {
        let mut words = command.split(' ');
        run(self.netns.command(words.next().unwrap()).args(words))
    }
}

#[test]
fn dig_and_kdig_see_both_sides_of_the_horizon() {
    let Some(host) = Host::new() else { return };
    for program in ["dig", "kdig"] {
        let Some(_) = require::program(program) else { return };
        for (arguments, expected) in [
            ("www.example A", "192.0.2.1"),
            ("www.example AAAA", "2001:db8::1"),
            ("+tcp www.example A", "192.0.2.1"),
            ("@::1 app.corp.example A", "127.0.0.7"),
            ("alias.example A", "app.corp.example.\n127.0.0.7"),
            ("-x 192.0.2.1", "www.example."),
            ("_ldap._tcp.example SRV", "0 5 389 www.example."),
            ("+dnssec www.example A", "192.0.2.1"),
            ("+noedns www.example A", "192.0.2.1"),
            ("+cookie www.example A", "192.0.2.1"),
        ] {
            let text = host.run(&format!("{program} +short {arguments}"));
            assert_eq!(text.trim(), expected, "{program} {arguments}");
        }
        for (arguments, fragments) in [
            ("no.example A", &["NXDOMAIN", "SOA"][..]),
            ("www.example MX", &["NOERROR", "SOA"]),
            ("no.consul A", &["SERVFAIL"]),
        ] {
            let text = host.run(&format!("{program} {arguments}"));
            for fragment in fragments {
                assert!(text.contains(fragment), "{program} {arguments}: no {fragment} in {text}");
            }
            assert!(!text.contains("WARNING") && !text.contains("Warning"), "{program} {arguments}: {text}");
        }
    }
    assert!(host.public.asked().iter().all(|asked| !asked.contains("consul") && !asked.contains("corp")));
}

#[test]
fn dig_turns_to_tcp_when_a_reply_is_truncated() {
    let Some(host) = Host::new() else { return };
    host.public.change(|asked| {
        let record = |number| format!("{} 60 A 192.0.2.{number}", asked.message.qname());
        let whole = (0..200).fold(asked.message.respond(), |response, number| response.answer(&record(number)));
        vec![Act::Reply(if asked.over_tcp { whole } else { asked.message.respond().set(TC) })]
    });
    for program in ["dig", "kdig"] {
        let Some(_) = require::program(program) else { return };
        let text = host.run(&format!("{program} +short +bufsize=1232 many.example A"));
        assert_eq!(text.lines().filter(|line| line.starts_with("192.0.2.")).count(), 200, "{program}: {text}");
    }
}

#[test]
fn getent_finds_what_libc_asks_for() {
    let Some(host) = Host::new() else { return };
    for (arguments, fragments) in [
        ("hosts www.example", &["2001:db8::1", "www.example"][..]),
        ("ahosts www.example", &["2001:db8::1", "192.0.2.1"]),
        ("ahostsv4 www.example", &["192.0.2.1"]),
        ("ahosts v4only.example", &["192.0.2.4"]),
        ("ahostsv4 app.corp.example", &["127.0.0.7"]),
        ("ahostsv4 alias.example", &["127.0.0.7"]),
        ("ahostsv4 db", &["10.0.0.5"]), // by the search list
        ("hosts 192.0.2.1", &["www.example"]),
        ("ahosts localhost", &["127.0.0.1"]),
    ] {
        let start = Instant::now();
        let text = host.run(&format!("getent {arguments}"));
        for fragment in fragments {
            assert!(text.contains(fragment), "{arguments}: no {fragment} in {text}");
        }
        // A pair of which one half is dropped costs glibc 5 s.
        assert!(start.elapsed() < Duration::from_secs(4), "{arguments}: {:?}", start.elapsed());
    }
    let absent = host.netns.command("getent").args(["hosts", "no.example"]).output().unwrap();
    assert_eq!(absent.status.code(), Some(2), "no such host");
}

#[test]
fn ping_reaches_names_of_both_sides() {
    let Some(host) = Host::new() else { return };
    let Some(_) = require::program("ping") else { return };
    for name in ["reach.example", "app.corp.example", "app", "localhost"] {
        let text = host.run(&format!("ping -4 -c 1 -W 2 {name}"));
        assert!(text.contains("1 received"), "{text}");
    }
}
